//! What the API server said, for a few seconds.
//!
//! Keys are hashes: no credential stays in memory. What many requests ask at
//! once is asked once; failures are not kept.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use rand::RngCore;
use sha2::{Digest, Sha256};

use crate::rest::error::ApiError;

/// How long an answer is kept: so long after a revocation it may still be taken.
pub const KEEP: Duration = Duration::from_secs(5);

/// Most answers of a kind that are kept. A flood of made-up tokens pushes out
/// what is seldom asked first.
const MOST: u64 = 10_000;

/// A SHA-256.
pub type Fingerprint = [u8; 32];

/// Answers by what was asked.
pub struct Answers<K, V>(Cache<K, V>);

impl<K, V> Default for Answers<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(MOST).time_to_live(KEEP);
        Self(cache.build())
    }
}

impl<K, V> Answers<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to `question`: one that is kept, or else what `ask` brings.
    pub async fn get(
        &self,
        question: K,
        ask: impl Future<Output = Result<V, ApiError>>,
    ) -> Result<V, ApiError> {
        let answer = self.0.try_get_with(question, ask).await;
        answer.map_err(|error: Arc<ApiError>| (*error).clone())
    }
}

/// Hashes credentials under a salt that only this process knows.
pub struct Salt([u8; 32]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt")
    }
}

impl Default for Salt {
    fn default() -> Self {
        let mut salt = [0; 32];
        rand::rng().fill_bytes(&mut salt);
        Self(salt)
    }
}

impl Salt {
    /// The hash of a credential.
    pub fn hash(&self, credential: &str) -> Fingerprint {
        Sha256::new()
            .chain_update(self.0)
            .chain_update(credential)
            .finalize()
            .into()
    }
}
