//! The kubeconfig of another cluster: what of it is taken, and what is refused. Pure.
//!
//! Whoever may write the Secret that holds it decides where the operator
//! connects, and nothing more: it may not name the operator's own files (or
//! its token would go elsewhere), nor programs and plug-ins to run, nor a
//! proxy, nor somebody to impersonate, nor leave out looking who answers. So
//! of the context that it says is current only the fields that are known here
//! to be harmless are read, and any other is refused, by its name.
//!
//! No sentence here repeats a value of the file: any may be a credential.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Config;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use serde_yaml::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::kubernetes;

/// How long a connection may take to come about.
const CONNECT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a kubeconfig is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It cannot be read as one.
    #[error("the kubeconfig is no YAML{place}; put a whole kubeconfig under the Secret's key")]
    NotYaml {
        /// Where it ends to be YAML.
        place: String,
    },
    /// A part is missing.
    #[error("the kubeconfig has no {0}; write it with `kubectl config view --minify --flatten`")]
    Missing(&'static str),
    /// A field is there that must not be.
    #[error("{field} of the kubeconfig {why}")]
    Field {
        /// The field, such as `user.exec`.
        field: String,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
}

fn field(field: &str, why: &'static str) -> Refusal {
    Refusal::Field {
        field: field.to_string(),
        why,
    }
}

const INLINE: &str = "names a file of the operator's; put the content itself into the kubeconfig, as `kubectl config view --flatten` does";
const IMPERSONATION: &str =
    "impersonates somebody; give credentials of a user who may create Jobs himself";
const NO_PASSWORD: &str = "is a password; give a token or a client certificate";

/// Fields that are refused, and why.
const REFUSED: [(&str, &str, &str); 14] = [
    ("cluster", "certificate-authority", INLINE),
    (
        "cluster",
        "insecure-skip-tls-verify",
        "would send credentials to whoever answers; put the server's CA into certificate-authority-data",
    ),
    (
        "cluster",
        "proxy-url",
        "names a proxy; the operator must reach the API server itself",
    ),
    ("user", "client-certificate", INLINE),
    ("user", "client-key", INLINE),
    ("user", "tokenFile", INLINE),
    (
        "user",
        "exec",
        "names a program to run; give a token or a client certificate",
    ),
    (
        "user",
        "auth-provider",
        "names a plug-in; give a token or a client certificate",
    ),
    ("user", "username", NO_PASSWORD),
    ("user", "password", NO_PASSWORD),
    ("user", "as", IMPERSONATION),
    ("user", "as-uid", IMPERSONATION),
    ("user", "as-groups", IMPERSONATION),
    ("user", "as-user-extra", IMPERSONATION),
];

/// Fields that are read, or that say nothing to anyone but kubectl.
const TAKEN: [(&str, &[&str]); 2] = [
    (
        "cluster",
        &[
            "server",
            "certificate-authority-data",
            "tls-server-name",
            "disable-compression",
            "extensions",
        ],
    ),
    (
        "user",
        &[
            "token",
            "client-certificate-data",
            "client-key-data",
            "extensions",
        ],
    ),
];

/// By what a cluster is known again: a digest of its API server's address, which
/// other credentials and another certificate authority leave as it is.
pub fn server_digest(config: &Config) -> String {
    let address = config.cluster_url.to_string();
    // Without a default port, and in small letters.
    let address = url::Url::parse(&address).map_or(address, |url| url.to_string());
    let digest = Sha256::digest(address.trim_end_matches('/'));
    hex::encode(&digest[..8])
}

/// How to reach the cluster that a kubeconfig's current context names. Its
/// `default_namespace` is the context's, or `default`.
pub fn config(bytes: &[u8]) -> Result<Config, Refusal> {
    let whole: Value = serde_yaml::from_slice(bytes).map_err(|error| Refusal::NotYaml {
        // The place alone: what stands there may be a token.
        place: error.location().map_or(String::new(), |at| {
            format!(" (line {}, column {})", at.line(), at.column())
        }),
    })?;
    let current = text(&whole, "current-context").ok_or(Refusal::Missing("current-context"))?;
    let context = named(&whole, "contexts", current, "context")
        .ok_or(Refusal::Missing("context that current-context names"))?;
    let cluster = text(context, "cluster")
        .and_then(|name| named(&whole, "clusters", name, "cluster"))
        .ok_or(Refusal::Missing("cluster that its context names"))?;
    let user = text(context, "user")
        .and_then(|name| named(&whole, "users", name, "user"))
        .ok_or(Refusal::Missing("user that its context names"))?;
    judge("cluster", cluster)?;
    judge("user", user)?;

    let server = text(cluster, "server").ok_or(Refusal::Missing("cluster.server"))?;
    let url = url::Url::parse(server).ok().filter(|url| {
        url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if url.is_none() {
        return Err(field(
            "cluster.server",
            "is no https:// address without a user; give the API server's own",
        ));
    }
    let token = text(user, "token");
    if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(field(
            "user.token",
            "holds spaces, line breaks or characters that no token has; give the token alone",
        ));
    }
    let (certificate, key) = (
        text(user, "client-certificate-data"),
        text(user, "client-key-data"),
    );
    if certificate.is_some() != key.is_some() {
        return Err(Refusal::Missing(
            "client-key-data beside client-certificate-data, or the other way round",
        ));
    }
    if token.is_none() && certificate.is_none() {
        return Err(Refusal::Missing(
            "token and no client-certificate-data in its user",
        ));
    }
    // No error below may be passed on: it could repeat what it could not read.
    let unusable = || {
        field(
            "certificate-authority-data, client-certificate-data or client-key-data",
            "is no PEM in base64; write it with `kubectl config view --minify --flatten`",
        )
    };
    // Not by kube, which would look for a proxy in the operator's environment.
    let mut config = Config::new(server.parse().map_err(|_| unusable())?);
    if let Some(namespace) = text(context, "namespace") {
        config.default_namespace = namespace.to_string();
    }
    config.root_cert = text(cluster, "certificate-authority-data")
        .map(|data| certificates(data).ok_or_else(unusable))
        .transpose()?;
    config.tls_server_name = text(cluster, "tls-server-name").map(str::to_string);
    let user = json!({
        "token": token,
        "client-certificate-data": certificate,
        "client-key-data": key,
    });
    config.auth_info = serde_json::from_value(user).map_err(|_| unusable())?;
    config.connect_timeout = Some(CONNECT_PATIENCE);
    kubernetes::end_silent_connections(&mut config);
    Ok(config)
}

/// The certificates of PEM in base64.
fn certificates(data: &str) -> Option<Vec<Vec<u8>>> {
    let pem = STANDARD.decode(data).ok()?;
    CertificateDer::pem_slice_iter(&pem)
        .map(|certificate| certificate.ok().map(|der| der.to_vec()))
        .collect()
}

/// Refuses what must not be there.
fn judge(part: &'static str, fields: &Value) -> Result<(), Refusal> {
    let Value::Mapping(fields) = fields else {
        return Err(Refusal::Missing(part));
    };
    for (key, value) in fields {
        if says_nothing(value) {
            continue;
        }
        let Some(key) = key.as_str() else {
            return Err(field(part, "has a key that is no text; leave it out"));
        };
        let refused = REFUSED
            .iter()
            .find(|(of, name, _)| *of == part && *name == key);
        if let Some((_, _, why)) = refused {
            return Err(field(&format!("{part}.{key}"), why));
        }
        let known = TAKEN.iter().filter(|(of, _)| *of == part);
        if !known
            .flat_map(|(_, known)| *known)
            .any(|known| *known == key)
        {
            // Its name is not repeated: a file that is cut wrongly has anything there.
            return Err(field(
                &format!("a field of the {part}"),
                "is not known here; leave out all but server, certificate-authority-data, tls-server-name, token, client-certificate-data and client-key-data",
            ));
        }
    }
    Ok(())
}

/// As if the field were left out.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Sequence(items) => items.is_empty(),
        Value::Mapping(fields) => fields.is_empty(),
        _ => false,
    }
}

fn text<'a>(part: &'a Value, key: &str) -> Option<&'a str> {
    part.get(key)?.as_str().filter(|text| !text.is_empty())
}

fn named<'a>(whole: &'a Value, list: &str, name: &str, inner: &str) -> Option<&'a Value> {
    let mut entries = whole.get(list)?.as_sequence()?.iter();
    entries
        .find(|entry| text(entry, "name") == Some(name))?
        .get(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value as Json;

    const SECRET: &str = "very-secret";

    fn good() -> Json {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "jobs"}}],
            "clusters": [
                {"name": "c", "cluster": {"server": "https://10.0.0.1:6443"}},
                {"name": "other", "cluster": {"server": "http://x", "proxy-url": "http://y"}},
            ],
            "users": [{"name": "u", "user": {"token": SECRET}}],
        })
    }

    async fn taken(kubeconfig: &Json) -> Result<Config, Refusal> {
        config(serde_yaml::to_string(kubeconfig).unwrap().as_bytes())
    }

    /// The sentence with which a kubeconfig is refused that has this beside what is good.
    async fn refused(part: &str, key: &str, value: Json) -> String {
        let mut kubeconfig = good();
        kubeconfig[format!("{part}s")][0][part][key] = value;
        let refusal = taken(&kubeconfig).await.expect_err("refused").to_string();
        assert!(refusal.contains(&format!("{part}.{key}")), "{refusal}");
        assert!(!refusal.contains(SECRET), "{refusal}");
        refusal
    }

    #[tokio::test]
    async fn a_token_that_stands_in_it_is_taken_with_the_contexts_namespace() {
        let config = taken(&good()).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://10.0.0.1:6443/");
        assert_eq!(config.default_namespace, "jobs");
        assert!(!config.accept_invalid_certs);
        assert!(config.auth_info.token.is_some());
        assert!(config.auth_info.token_file.is_none());
    }

    #[tokio::test]
    async fn a_cluster_is_known_again_by_its_address_alone() {
        let mut kubeconfig = good();
        let known = server_digest(&taken(&kubeconfig).await.unwrap());
        assert_eq!(known.len(), 16);
        kubeconfig["users"][0]["user"]["token"] = json!("rotated");
        kubeconfig["contexts"][0]["context"]["namespace"] = json!("others");
        let cluster = &mut kubeconfig["clusters"][0]["cluster"];
        cluster["tls-server-name"] = json!("api");
        cluster["server"] = json!("HTTPS://10.0.0.1:6443/");
        assert_eq!(server_digest(&taken(&kubeconfig).await.unwrap()), known);
        kubeconfig["clusters"][0]["cluster"]["server"] = json!("https://10.0.0.2:6443");
        assert_ne!(server_digest(&taken(&kubeconfig).await.unwrap()), known);
    }

    #[tokio::test]
    async fn what_kubectl_writes_where_nothing_is_said_is_no_reason_to_refuse() {
        let mut kubeconfig = good();
        kubeconfig["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = json!(false);
        kubeconfig["users"][0]["user"]["exec"] = json!(null);
        kubeconfig["users"][0]["user"]["client-key"] = json!("");
        kubeconfig["contexts"][0]["context"]["namespace"] = json!(null);
        let config = taken(&kubeconfig).await.unwrap();
        assert_eq!(config.default_namespace, "default");
    }

    #[tokio::test]
    async fn a_file_for_the_servers_certificate_is_refused() {
        let why = refused("cluster", "certificate-authority", json!("/etc/ca.crt")).await;
        assert!(why.contains("names a file"), "{why}");
    }

    #[tokio::test]
    async fn a_file_for_the_clients_certificate_or_its_key_is_refused() {
        for key in ["client-certificate", "client-key"] {
            let why = refused("user", key, json!("/etc/tls.pem")).await;
            assert!(why.contains("names a file"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_file_for_the_token_is_refused_since_it_could_be_the_operators_own() {
        let own = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        let why = refused("user", "tokenFile", json!(own)).await;
        assert!(why.contains("names a file"), "{why}");
    }

    #[tokio::test]
    async fn a_program_is_refused() {
        let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"});
        let why = refused("user", "exec", exec).await;
        assert!(why.contains("program"), "{why}");
    }

    #[tokio::test]
    async fn a_plug_in_is_refused() {
        let why = refused("user", "auth-provider", json!({"name": "oidc"})).await;
        assert!(why.contains("plug-in"), "{why}");
    }

    #[tokio::test]
    async fn a_proxy_is_refused() {
        let why = refused("cluster", "proxy-url", json!("http://proxy:3128")).await;
        assert!(why.contains("proxy"), "{why}");
    }

    #[tokio::test]
    async fn impersonation_is_refused_in_all_its_forms() {
        for (key, value) in [
            ("as", json!("admin")),
            ("as-uid", json!("1")),
            ("as-groups", json!(["system:masters"])),
            ("as-user-extra", json!({"scopes": ["all"]})),
        ] {
            let why = refused("user", key, value).await;
            assert!(why.contains("impersonates"), "{why}");
        }
    }

    #[tokio::test]
    async fn tls_that_is_not_verified_is_refused() {
        let why = refused("cluster", "insecure-skip-tls-verify", json!(true)).await;
        assert!(why.contains("whoever answers"), "{why}");
    }

    #[tokio::test]
    async fn a_password_is_refused() {
        refused("user", "username", json!("admin")).await;
        refused("user", "password", json!(SECRET)).await;
    }

    #[tokio::test]
    async fn a_server_without_tls_or_with_a_password_in_its_address_is_refused() {
        for server in [
            "http://10.0.0.1:6443",
            "https://admin:very-secret@10.0.0.1",
            "https://",
            "10.0.0.1:6443",
        ] {
            refused("cluster", "server", json!(server)).await;
        }
    }

    #[tokio::test]
    async fn what_is_not_known_is_refused() {
        for part in ["cluster", "user"] {
            let mut kubeconfig = good();
            kubeconfig[format!("{part}s")][0][part]["very-secret"] = json!(SECRET);
            let why = taken(&kubeconfig).await.expect_err("refused").to_string();
            assert!(why.contains("not known here"), "{why}");
            assert!(!why.contains(SECRET), "{why}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let without = |change: fn(&mut Json)| {
            let mut kubeconfig = good();
            change(&mut kubeconfig);
            async move { taken(&kubeconfig).await.expect_err("refused").to_string() }
        };
        for (change, word) in [
            (
                (|k| k["current-context"] = json!("")) as fn(&mut Json),
                "current-context",
            ),
            (|k| k["contexts"] = json!([]), "current-context names"),
            (|k| k["clusters"] = json!([]), "cluster that"),
            (|k| k["users"] = json!([]), "user that"),
            (|k| k["users"][0]["user"] = json!({}), "token"),
            (
                |k| k["users"][0]["user"] = json!({"client-certificate-data": "QQ=="}),
                "client-key-data",
            ),
        ] {
            let why = without(change).await;
            assert!(why.contains(word), "{why}");
        }
    }

    #[tokio::test]
    async fn no_content_is_repeated_of_what_cannot_be_read() {
        for content in [
            format!("{SECRET}: [{SECRET}"),
            format!("token: {SECRET}\n\t- x"),
            SECRET.to_string(),
        ] {
            let why = config(content.as_bytes()).unwrap_err().to_string();
            assert!(!why.contains(SECRET), "{why}");
        }
        for (part, key) in [
            ("cluster", "certificate-authority-data"),
            ("user", "client-certificate-data"),
        ] {
            let mut kubeconfig = good();
            kubeconfig[format!("{part}s")][0][part][key] = json!(SECRET);
            kubeconfig["users"][0]["user"]["client-key-data"] = json!(SECRET);
            let Err(why) = taken(&kubeconfig).await else {
                // The client's own certificate is read when the client is made.
                continue;
            };
            assert!(!why.to_string().contains(SECRET), "{why}");
        }
        let mut kubeconfig = good();
        kubeconfig["users"][0]["user"]["token"] = json!(format!("{SECRET}\nx: y"));
        let why = taken(&kubeconfig).await.unwrap_err().to_string();
        assert!(why.contains("user.token") && !why.contains(SECRET), "{why}");
    }
}
