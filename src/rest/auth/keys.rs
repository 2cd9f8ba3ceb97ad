//! API keys.
//!
//! A key is 32 random bytes. What is kept of it is its SHA-256, in the Secret
//! [`names::API_KEYS_SECRET`]: an entry a key, whose value is a JSON object
//! `{"user": …, "groups": […], "sha256": …}`. Whoever may write that Secret
//! says who may be whom: so names that Kubernetes itself gives out are not
//! taken, but for service accounts'.
//!
//! The Secret is got by its name whenever a key is shown and it was not looked
//! at for [`cache::KEEP`]: a key that is removed is of no use that much later.
//! An entry that cannot be read is reported by its name and leaves the others
//! as they are.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::User;
use super::cache::{Answers, Fingerprint};
use crate::resources::names;
use crate::rest::error::ApiError;
use crate::rest::store::in_time;

/// What every key begins with, so that scanners for secrets know it.
const PREFIX: &str = "relance_";

/// Longest key that is looked at, in bytes.
const LONGEST: usize = 1024;

/// The group of all whom Kubernetes knows.
const AUTHENTICATED: &str = "system:authenticated";

/// Why the user or a group of an entry is not taken.
const RESERVED: &str = "names that begin with 'system:' are Kubernetes' own";

/// An entry's value.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    user: String,
    #[serde(default)]
    groups: Vec<String>,
    sha256: String,
}

/// A key's hash, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    sha256: Fingerprint,
    user: User,
}

/// See the module.
pub struct Keys {
    secrets: Api<Secret>,
    entries: Answers<(), Arc<Vec<Entry>>>,
    /// The Secret's version that was last reported on.
    reported: Mutex<Option<String>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// The keys of `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            entries: Answers::default(),
            reported: Mutex::default(),
        }
    }

    /// Whose key it is, if it is anybody's.
    pub async fn user(&self, key: &str) -> Result<Option<User>, ApiError> {
        if key.is_empty() || key.len() > LONGEST {
            return Ok(None);
        }
        let entries = self.entries.get((), self.load()).await?;
        Ok(find(&entries, key).cloned())
    }

    async fn load(&self) -> Result<Arc<Vec<Entry>>, ApiError> {
        let secret = match in_time(self.secrets.get_opt(names::API_KEYS_SECRET)).await {
            Ok(secret) => secret.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, secret = names::API_KEYS_SECRET, "the Secret of the API keys cannot be read");
                return Err(ApiError::Unavailable(
                    "the Kubernetes API cannot say now whose key this is; try again".into(),
                ));
            }
        };
        let version = secret.metadata.resource_version;
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = *reported != version;
        *reported = version;
        drop(reported);
        let mut entries = Vec::new();
        for (name, value) in secret.data.unwrap_or_default() {
            match read(&value.0) {
                Ok(entry) => entries.push(entry),
                Err(why) if tell => {
                    tracing::warn!(
                        secret = names::API_KEYS_SECRET,
                        entry = name,
                        why,
                        "an API key is left out; make it anew with 'relance key'"
                    );
                }
                Err(_) => {}
            }
        }
        if tell {
            tracing::info!(keys = entries.len(), "API keys read");
        }
        Ok(Arc::new(entries))
    }
}

/// Looks at all entries, whichever fits, so that the time tells nothing.
fn find<'e>(entries: &'e [Entry], key: &str) -> Option<&'e User> {
    let shown: Fingerprint = Sha256::digest(key).into();
    let mut found = u64::MAX;
    for (at, entry) in entries.iter().enumerate() {
        found.conditional_assign(&(at as u64), entry.sha256.ct_eq(&shown));
    }
    let at = usize::try_from(found).ok()?;
    entries.get(at).map(|entry| &entry.user)
}

/// Reads an entry; what is wrong with it in words that hold nothing of it.
fn read(value: &[u8]) -> Result<Entry, &'static str> {
    let stored: Stored = serde_json::from_slice(value)
        .map_err(|_| "its value is no JSON object of user, groups and sha256")?;
    let mut sha256 = [0; 32];
    hex::decode_to_slice(&stored.sha256, &mut sha256)
        .map_err(|_| "its sha256 has not 64 hexadecimal digits")?;
    check_names(&stored.user, &stored.groups)?;
    let mut groups = stored.groups;
    groups.push(AUTHENTICATED.to_string());
    Ok(Entry {
        sha256,
        user: User {
            name: stored.user,
            uid: None,
            groups,
            extra: Default::default(),
        },
    })
}

fn check_names(user: &str, groups: &[String]) -> Result<(), &'static str> {
    if user.is_empty() || groups.iter().any(String::is_empty) {
        return Err("its user or a group is empty");
    }
    let reserved = |name: &str| name.starts_with("system:");
    if (reserved(user) && !user.starts_with("system:serviceaccount:"))
        || groups.iter().any(|group| reserved(group))
    {
        return Err(RESERVED);
    }
    Ok(())
}

/// A new key, and the Secret's manifest with its entry.
#[derive(Clone)]
pub struct NewKey {
    /// The key. Nobody can tell it again.
    pub key: String,
    /// YAML, without the key.
    pub manifest: String,
}

/// Makes a key for `user`, to be kept as the entry `name`. Fails with a
/// sentence that says what is wrong with a name.
pub fn make(name: &str, user: &str, groups: &[String]) -> Result<NewKey, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) {
        return Err(format!(
            "'{name}' cannot be the name of a Secret's entry: give --name letters, digits, '-', '_' and '.'"
        ));
    }
    check_names(user, groups).map_err(|why| format!("the key cannot be for '{user}': {why}"))?;
    let mut random = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut random)
        .map_err(|error| format!("no random numbers: {error}"))?;
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let entry = json!(Stored {
        user: user.to_string(),
        groups: groups.to_vec(),
        sha256: hex::encode(Sha256::digest(&key)),
    });
    let (managed_by, relance) = names::MANAGED_BY;
    // JSON strings are YAML too.
    let manifest = format!(
        "# An API key of relance for {user:?}. Only its hash stands here. To add it to the others:\n\
         #   kubectl -n NAMESPACE apply --server-side --field-manager=key-{name} -f THIS_FILE\n\
         # and to revoke it:\n\
         #   kubectl -n NAMESPACE patch secret {secret} --type=json -p '[{{\"op\":\"remove\",\"path\":\"/data/{name}\"}}]'\n\
         apiVersion: v1\n\
         kind: Secret\n\
         metadata:\n  \
           name: {secret}\n  \
           labels:\n    \
             {managed_by}: {relance}\n\
         stringData:\n  \
           {name}: {value}\n",
        secret = names::API_KEYS_SECRET,
        value = json!(entry.to_string()),
    );
    Ok(NewKey { key, manifest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of(made: &NewKey, name: &str) -> Entry {
        let secret: Secret = serde_yaml::from_str(&made.manifest).unwrap();
        assert_eq!(
            secret.metadata.name.as_deref(),
            Some(names::API_KEYS_SECRET)
        );
        read(secret.string_data.unwrap()[name].as_bytes()).unwrap()
    }

    #[test]
    fn a_key_that_was_made_is_found_and_no_other() {
        let a = make("a", "alice", &["etl".into()]).unwrap();
        let b = make("b.1", "system:serviceaccount:n:b", &[]).unwrap();
        assert_ne!(a.key, b.key);
        assert!(a.key.len() > 50, "{}", a.key);
        let entries = [entry_of(&a, "a"), entry_of(&b, "b.1")];
        let found = find(&entries, &a.key).unwrap();
        assert_eq!(found.name, "alice");
        assert_eq!(found.groups, ["etl", AUTHENTICATED]);
        assert_eq!(
            find(&entries, &b.key).unwrap().name,
            "system:serviceaccount:n:b"
        );
        for other in ["", "relance_", &a.key[..a.key.len() - 1]] {
            assert_eq!(find(&entries, other), None);
        }
        assert_eq!(find(&[], &a.key), None);
    }

    #[test]
    fn a_manifest_does_not_hold_its_key() {
        let made = make("a", "alice", &[]).unwrap();
        assert!(!made.manifest.contains(&made.key));
        assert!(!made.manifest.contains(made.key.trim_start_matches(PREFIX)));
    }

    #[test]
    fn what_is_no_entry_is_refused_in_words_that_hold_nothing_of_it() {
        let hash = "ab".repeat(32);
        for (value, why) in [
            ("hush".to_string(), "no JSON object"),
            (r#"{"user": "hush"}"#.to_string(), "no JSON object"),
            (
                format!(r#"{{"user": "u", "sha256": "{hash}", "hush": 1}}"#),
                "no JSON object",
            ),
            (
                r#"{"user": "u", "sha256": "hush"}"#.to_string(),
                "64 hexadecimal digits",
            ),
            (format!(r#"{{"user": "", "sha256": "{hash}"}}"#), "empty"),
            (
                format!(r#"{{"user": "system:admin", "sha256": "{hash}"}}"#),
                "Kubernetes' own",
            ),
            (
                format!(r#"{{"user": "u", "groups": ["system:masters"], "sha256": "{hash}"}}"#),
                "Kubernetes' own",
            ),
        ] {
            let said = read(value.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{value}: {said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn a_name_that_fits_no_secret_is_refused() {
        for wrong in ["", "a b", "a/b", "a\nb: c"] {
            assert!(make(wrong, "alice", &[]).is_err(), "{wrong:?}");
        }
        assert!(make("a", "system:masters", &[]).is_err());
    }
}
