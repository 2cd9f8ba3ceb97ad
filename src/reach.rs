//! How the Kubernetes API of whoever runs this is reached: by kubeconfig as
//! kubectl would, else by the service account of the pod.
//!
//! Which proxy stands in between is decided here and not by kube, which asks of
//! `NO_PROXY` whether it names the proxy, and not whether it names the API
//! server. No sentence here repeats a proxy's URL or a kubeconfig's content:
//! either may hold a password.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use axum::http::Uri;
use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;

/// Why it is not known how to reach it.
#[derive(Debug, Error)]
pub enum ReachError {
    /// A kubeconfig is there, and cannot be used.
    #[error("{0}")]
    Kubeconfig(#[source] KubeconfigError),
    /// A kubeconfig is there, and is none.
    #[error("{file} is no kubeconfig{place}")]
    NoYaml {
        /// Its path.
        file: PathBuf,
        /// Where it ends to be one.
        place: String,
    },
    /// A context is asked for, and no file could have it.
    #[error("there is no kubeconfig, so there is no context '{0}'")]
    NoContext(String),
    /// Neither kubeconfig nor service account.
    #[error("there is no kubeconfig, and no service account of a pod ({0})")]
    Nowhere(#[source] InClusterError),
    /// What names a proxy names none.
    #[error("{0} is no http://, https:// or socks5:// URL of a proxy")]
    Proxy(&'static str),
}

/// What `file` says of `context`, if it is given; else the kubeconfigs of the
/// environment or the home folder, merged. The service account counts only
/// where there is none of these: whoever has a kubeconfig that is wrong means
/// another cluster than the one that he happens to be in.
pub async fn config(file: Option<&Path>, context: Option<&str>) -> Result<Config, ReachError> {
    let kubeconfig = match file {
        Some(file) => Some(read(file)?),
        None => merged(&places())?,
    };
    let Some(kubeconfig) = kubeconfig else {
        if let Some(context) = context {
            return Err(ReachError::NoContext(context.to_string()));
        }
        let mut config = Config::incluster().map_err(ReachError::Nowhere)?;
        config.apply_debug_overrides();
        return Ok(config);
    };
    let own = own_proxy(&kubeconfig, context);
    let options = KubeConfigOptions {
        context: context.map(str::to_string),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.map_err(ReachError::Kubeconfig)?;
    if file.is_none() && context.is_none() {
        config.apply_debug_overrides();
    }
    config.proxy_url = proxy(own.as_deref(), &config.cluster_url, |name| {
        std::env::var(name).ok()
    })?;
    Ok(config)
}

fn read(file: &Path) -> Result<Kubeconfig, ReachError> {
    Kubeconfig::read_from(file).map_err(|error| match error {
        // Its own words show the lines around, and tokens stand there.
        KubeconfigError::Parse(error) => ReachError::NoYaml {
            file: file.to_path_buf(),
            place: error.location().map_or(String::new(), |at| {
                format!(" (line {}, column {})", at.line(), at.column())
            }),
        },
        error => ReachError::Kubeconfig(error),
    })
}

/// Where kubeconfigs may be, as kubectl looks for them.
fn places() -> Vec<PathBuf> {
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let listed: Vec<PathBuf> = std::env::split_paths(&listed)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    let home = std::env::home_dir();
    home.map(|home| home.join(".kube").join("config"))
        .into_iter()
        .collect()
}

/// Those of `places` that are there, in one: what one of them says first,
/// counts. None if all of them say nothing.
fn merged(places: &[PathBuf]) -> Result<Option<Kubeconfig>, ReachError> {
    let mut merged = Kubeconfig::default();
    for place in places {
        let next = match read(place) {
            Ok(next) => next,
            Err(ReachError::Kubeconfig(KubeconfigError::ReadConfig(error, _)))
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        merged = merged.merge(next).map_err(ReachError::Kubeconfig)?;
    }
    let says_nothing = merged.clusters.is_empty()
        && merged.contexts.is_empty()
        && merged.current_context.is_none();
    Ok((!says_nothing).then_some(merged))
}

/// The `proxy-url` of the cluster that is meant.
fn own_proxy(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(kubeconfig.current_context.as_deref())?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|named| named.name == context)?;
    let cluster = &context.context.as_ref()?.cluster;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|named| named.name == *cluster)?;
    let url = cluster.cluster.as_ref()?.proxy_url.clone();
    url.filter(|url| !url.is_empty())
}

/// The proxy on the way to `server`: the cluster's `own`, else the
/// environment's, unless that makes an exception of the server.
fn proxy(
    own: Option<&str>,
    server: &Uri,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, ReachError> {
    if let Some(own) = own {
        let of = "proxy-url of the kubeconfig's cluster";
        return proxy_url(own).map(Some).ok_or(ReachError::Proxy(of));
    }
    let either = |names: [&str; 2]| {
        let values = names.into_iter().filter_map(&env);
        values.into_iter().find(|value| !value.is_empty())
    };
    let Some(url) = either(["HTTPS_PROXY", "https_proxy"]) else {
        return Ok(None);
    };
    let exceptions = either(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if is_excepted(&exceptions, server) {
        return Ok(None);
    }
    let of = "HTTPS_PROXY of the environment";
    proxy_url(&url).map(Some).ok_or(ReachError::Proxy(of))
}

/// Takes empty entries out of the exceptions, such as a comma at the end leaves:
/// kube would refuse every kubeconfig over them, and nobody else minds them.
///
/// # Safety
/// The environment is written to: no other thread may have been started yet.
pub unsafe fn tidy_exceptions() {
    for name in ["NO_PROXY", "no_proxy"] {
        let Ok(list) = std::env::var(name) else {
            continue;
        };
        let entries = list.split(',').map(str::trim);
        let entries: Vec<&str> = entries.filter(|entry| !entry.is_empty()).collect();
        let tidy = entries.join(",");
        if tidy != list {
            // SAFETY: the caller says that this is the only thread.
            unsafe { std::env::set_var(name, tidy) };
        }
    }
}

fn proxy_url(text: &str) -> Option<Uri> {
    let url: Uri = match text.contains("://") {
        true => text.parse().ok()?,
        false => format!("http://{text}").parse().ok()?,
    };
    let known = matches!(url.scheme_str(), Some("http" | "https" | "socks5"));
    (known && url.host().is_some()).then_some(url)
}

/// Whether `server` is reached past the environment's proxy, by the rules that
/// kubectl goes by: this machine always is; else an entry is `*`, an address, a
/// network, or a domain with all below it, and may have a port.
fn is_excepted(exceptions: &str, server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().to_ascii_lowercase();
    let host = unbracketed(&host);
    let port = server.port_u16().unwrap_or(match server.scheme_str() {
        Some("http") => 80,
        _ => 443,
    });
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let exceptions = exceptions.to_ascii_lowercase();
    exceptions.split(',').map(str::trim).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some(within) = address.and_then(|address| is_within(address, entry)) {
            return within;
        }
        let (name, at) = match entry.rsplit_once(':') {
            // Not the last part of an IPv6 address.
            Some((name, at)) if !name.contains(':') || name.ends_with(']') => (name, Some(at)),
            _ => (entry, None),
        };
        if name.is_empty() || at.is_some_and(|at| at.parse() != Ok(port)) {
            return false;
        }
        let name = unbracketed(name);
        match (address, name.parse::<IpAddr>()) {
            (Some(address), Ok(entry)) => address == entry,
            (None, Err(_)) => {
                let name = name.strip_prefix('*').unwrap_or(name);
                let below = host.strip_suffix(name.trim_start_matches('.'));
                below.is_some_and(|below| {
                    below.ends_with('.') || (below.is_empty() && !name.starts_with('.'))
                })
            }
            _ => false,
        }
    })
}

fn unbracketed(host: &str) -> &str {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    inner.unwrap_or(host)
}

/// Whether an address is in a network such as 10.0.0.0/8; None if it is no network.
fn is_within(address: IpAddr, network: &str) -> Option<bool> {
    let (base, bits) = network.split_once('/')?;
    let (base, bits): (IpAddr, u32) = (base.parse().ok()?, bits.parse().ok()?);
    let (address, base, width) = match (address, base) {
        (IpAddr::V4(address), IpAddr::V4(base)) => {
            (address.to_bits().into(), base.to_bits().into(), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(base)) => (address.to_bits(), base.to_bits(), 128),
        _ => return Some(false),
    };
    let rest = u32::checked_sub(width, bits)?;
    let net = |address: u128| address.checked_shr(rest).unwrap_or(0);
    Some(net(address) == net(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excepted(exceptions: &str, server: &str) -> bool {
        is_excepted(exceptions, &server.parse().unwrap())
    }

    #[test]
    fn exceptions_are_read_as_kubectl_reads_them() {
        for (exceptions, server) in [
            ("", "https://localhost:6443"),
            ("", "https://127.0.0.1:6443"),
            ("", "https://[::1]:6443"),
            ("*", "https://api.example.org"),
            ("a.b, api.example.org,", "https://api.example.org:6443"),
            ("example.org", "https://API.example.org"),
            (".example.org", "https://api.example.org"),
            ("*.example.org", "https://api.example.org"),
            ("api.example.org:6443", "https://api.example.org:6443"),
            ("api.example.org:443", "https://api.example.org"),
            ("10.0.0.1", "https://10.0.0.1:6443"),
            ("10.0.0.0/8", "https://10.9.9.9"),
            ("0.0.0.0/0", "https://10.9.9.9"),
            ("fd00::/8", "https://[fd00::1]:6443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("[fd00::1]:6443", "https://[fd00::1]:6443"),
        ] {
            assert!(excepted(exceptions, server), "{exceptions} {server}");
        }
        for (exceptions, server) in [
            ("", "https://api.example.org"),
            (",", "https://api.example.org"),
            (".example.org", "https://example.org"),
            ("ample.org", "https://example.org"),
            ("api.example.org:443", "https://api.example.org:6443"),
            ("10.0.0.0/8", "https://11.0.0.1"),
            ("10.0.0.0/99", "https://10.0.0.1"),
            ("10.0.0.0/8", "https://[fd00::1]"),
            ("10.0.0.1", "https://10.0.0.2"),
            ("0.1", "https://10.0.0.1"),
            ("fd00::1", "https://[fd00::2]"),
        ] {
            assert!(!excepted(exceptions, server), "{exceptions} {server}");
        }
    }

    fn chosen(own: Option<&str>, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let server = "https://api.example.org".parse().unwrap();
        let env = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_string())
        };
        let chosen = proxy(own, &server, env).map_err(|error| error.to_string())?;
        Ok(chosen.map(|url| url.to_string()))
    }

    #[test]
    fn the_server_and_not_the_proxy_is_what_exceptions_are_of() {
        let http = ("HTTPS_PROXY", "http://proxy.corp:3128");
        let through = Ok(Some("http://proxy.corp:3128/".to_string()));
        assert_eq!(chosen(None, &[]), Ok(None));
        assert_eq!(chosen(None, &[http]), through);
        assert_eq!(chosen(None, &[http, ("NO_PROXY", "proxy.corp")]), through);
        assert_eq!(chosen(None, &[http, ("no_proxy", "example.org")]), Ok(None));
        assert_eq!(
            chosen(
                None,
                &[("HTTPS_PROXY", ""), ("https_proxy", "proxy.corp:3128")]
            ),
            through
        );
        // What is said of this cluster alone has no exceptions.
        let own = Some("http://proxy.corp:3128");
        assert_eq!(chosen(own, &[("NO_PROXY", "example.org")]), through);
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password() {
        for wrong in [
            "ftp://me:secret@proxy",
            "http://me:sec ret@proxy",
            "http://",
        ] {
            let said = chosen(None, &[("HTTPS_PROXY", wrong)]).unwrap_err();
            assert!(said.starts_with("HTTPS_PROXY"), "{said}");
            assert!(!said.contains("ret"), "{said}");
            let said = chosen(Some(wrong), &[]).unwrap_err();
            assert!(said.starts_with("proxy-url"), "{said}");
        }
    }

    fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn of_several_files_those_that_are_there_are_merged() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        assert!(merged(&[]).unwrap().is_none());
        assert!(merged(std::slice::from_ref(&none)).unwrap().is_none());
        let empty = file(folder.path(), "empty", "apiVersion: v1\nkind: Config\n");
        assert!(merged(&[empty, none.clone()]).unwrap().is_none());
        let one = file(folder.path(), "one", "current-context: c\n");
        let two = "contexts: [{name: c, context: {cluster: k}}]\n\
                   clusters: [{name: k, cluster: {server: 'https://s', proxy-url: 'http://p'}}]\n";
        let two = file(folder.path(), "two", two);
        let both = merged(&[one, none, two]).unwrap().unwrap();
        assert_eq!(both.current_context.as_deref(), Some("c"));
        assert_eq!(own_proxy(&both, None).as_deref(), Some("http://p"));
        assert_eq!(own_proxy(&both, Some("other")), None);
    }

    #[test]
    fn a_file_that_is_wrong_is_told_without_what_stands_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = "users:\n- name: me\n  user:\n    token: very-secret\n   bad: [\n";
        let wrong = file(folder.path(), "wrong", wrong);
        let said = merged(std::slice::from_ref(&wrong))
            .unwrap_err()
            .to_string();
        assert!(said.contains("wrong is no kubeconfig (line "), "{said}");
        assert!(!said.contains("secret"), "{said}");
        // Nor is a folder none.
        assert!(merged(&[folder.path().to_path_buf()]).is_err());
    }
}
