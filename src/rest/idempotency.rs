//! `Idempotency-Key`: a retried POST makes the same refresh, on any replica.
//!
//! The refresh's name is derived from the caller and the key, and the API
//! server lets one object of a name exist. A key is good for as long as its
//! refresh is kept. The name is public while a caller's credential is not, so
//! what is hashed begins with a salt that only the namespace's Secret holds:
//! without it, nobody can try credentials against a name.

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};

use super::auth::credential::Caller;
use super::error::ApiError;

/// Most characters of a key.
pub const MAX_KEY: usize = 255;

/// Bytes of the salt.
pub const SALT_BYTES: usize = 32;

/// The request's key, if it has one.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    let printable = |byte: &u8| (0x20..0x7f).contains(byte);
    let key = key.as_bytes();
    if keys.next().is_some() || key.is_empty() || key.len() > MAX_KEY || !key.iter().all(printable)
    {
        return Err(ApiError::InvalidInput(format!(
            "Idempotency-Key must be given once, with 1 to {MAX_KEY} printable ASCII characters"
        )));
    }
    Ok(Some(String::from_utf8_lossy(key).into_owned()))
}

/// The name of the refresh that `caller` asks for under `key`: a UUID.
pub fn name(salt: &[u8; SALT_BYTES], caller: &Caller, key: &str) -> String {
    let caller = caller.secret_bytes();
    let digest = Sha256::new()
        .chain_update(salt)
        .chain_update((caller.len() as u64).to_be_bytes())
        .chain_update(caller)
        .chain_update(key)
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes)
        .into_uuid()
        .to_string()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::resources::names::MAX_REFRESH_NAME;

    fn caller(key: &'static str) -> Caller {
        let headers =
            HeaderMap::from_iter([("x-api-key".parse().unwrap(), HeaderValue::from_static(key))]);
        Caller::unknown(&headers, &Default::default()).unwrap()
    }

    #[test]
    fn a_name_is_the_same_for_the_same_caller_and_key_alone() {
        let salt = [7; SALT_BYTES];
        let one = name(&salt, &caller("a"), "k");
        assert_eq!(one, name(&salt, &caller("a"), "k"));
        assert_ne!(one, name(&salt, &caller("a"), "l"));
        assert_ne!(one, name(&salt, &caller("b"), "k"));
        assert_ne!(one, name(&[8; SALT_BYTES], &caller("a"), "k"));
        assert_ne!(
            name(&salt, &caller("ab"), "c"),
            name(&salt, &caller("a"), "bc")
        );
    }

    #[test]
    fn a_name_fits_a_refresh() {
        let name = name(&[0; SALT_BYTES], &Caller::default(), "k");
        assert!(name.len() <= MAX_REFRESH_NAME);
        assert!(name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
    }

    #[test]
    fn a_key_is_visible_ascii_of_sensible_length_and_given_once() {
        let headers = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", HeaderValue::from_bytes(value).unwrap());
            }
            headers
        };
        assert_eq!(key(&headers(&[])).unwrap(), None);
        assert_eq!(
            key(&headers(&[b"daily 1"])).unwrap().as_deref(),
            Some("daily 1")
        );
        let long = vec![b'x'; MAX_KEY + 1];
        for wrong in [&[b"".as_slice()][..], &[b"\xe9"], &[&long], &[b"a", b"a"]] {
            assert!(key(&headers(wrong)).is_err(), "{wrong:?}");
        }
    }
}
