//! Tokens that the API server would never give, signed with its own key: the
//! one way to have a token that has expired without waiting for that.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::support::kubeconfig;

/// The token with its claims changed, signed anew with the test cluster's key.
pub fn signed_again(token: &str, change: impl FnOnce(&mut Value)) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let mut claims: Value = serde_json::from_slice(&claims).unwrap();
    change(&mut claims);
    let signed = format!(
        "{}.{}",
        parts[0],
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let state = Path::new(&kubeconfig()).parent().unwrap().to_path_buf();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(signed.as_bytes()).unwrap();
    let signature = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(state.join("pki/tokens.key"))
        .arg(file.path())
        .output()
        .unwrap();
    assert!(signature.status.success(), "{signature:?}");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.stdout))
}
