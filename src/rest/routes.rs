//! The route table: every operation of the REST API, and what it asks of the
//! caller.
//!
//! This one list is what the router is built from, what says which Kubernetes
//! permission each request needs, and what the OpenAPI document is held
//! against. A route that is not in it is not served. (`/livez`, `/readyz` and
//! `/metrics` have a listener of their own and ask nothing of anybody.)

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::{Api, describe, jobs, openapi, refresh};

/// One operation.
pub struct Operation {
    /// Its `operationId` in the OpenAPI document. Unique.
    pub id: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path, without a trailing slash; with one it is served too.
    pub path: &'static str,
    /// What the caller must be allowed. None: nothing, anybody may ask.
    pub asks: Option<Permission>,
    handler: fn(MethodFilter) -> MethodRouter<Arc<Api>>,
}

/// What a caller must be allowed by Kubernetes RBAC, in relance's own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The verb on `materializedviewrefreshes`.
    pub verb: Verb,
    /// Whether `use` of the RefreshCluster that the request names (or of the
    /// default one) is asked too.
    pub uses_cluster: bool,
}

/// A verb of Kubernetes RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To make a refresh.
    Create,
    /// To look at one.
    Get,
    /// To look at many.
    List,
    /// To hold, let go or end one.
    Patch,
}

impl Verb {
    /// As RBAC spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
        }
    }
}

const fn may(verb: Verb) -> Option<Permission> {
    Some(Permission {
        verb,
        uses_cluster: false,
    })
}

/// Who starts a refresh runs pods on a cluster.
const MAY_REFRESH: Option<Permission> = Some(Permission {
    verb: Verb::Create,
    uses_cluster: true,
});

/// Views and tables are no Kubernetes resources, and stock clients describe
/// them just before and after a refresh: who may look at refreshes, which name
/// views and tell their versions, may look at what they refresh.
const MAY_LOOK: Option<Permission> = may(Verb::Get);

/// All operations.
pub static OPERATIONS: &[Operation] = &[
    Operation {
        id: "RefreshMaterializedView",
        method: Method::POST,
        path: "/v1/materialized_view/{id}/refresh",
        asks: MAY_REFRESH,
        handler: |method| on(method, refresh::refresh),
    },
    // The path that the reference REST adapter answers too.
    Operation {
        id: "RefreshTable",
        method: Method::POST,
        path: "/v1/table/{id}/refresh",
        asks: MAY_REFRESH,
        handler: |method| on(method, refresh::refresh),
    },
    Operation {
        id: "DescribeMaterializedView",
        method: Method::POST,
        path: "/v1/materialized_view/{id}/describe",
        asks: MAY_LOOK,
        handler: |method| on(method, describe::view),
    },
    Operation {
        id: "DescribeTable",
        method: Method::POST,
        path: "/v1/table/{id}/describe",
        asks: MAY_LOOK,
        handler: |method| on(method, describe::table),
    },
    Operation {
        id: "DescribeJob",
        method: Method::POST,
        path: "/v1/jobs/describe",
        asks: may(Verb::Get),
        handler: |method| on(method, jobs::describe),
    },
    Operation {
        id: "ListJobs",
        method: Method::POST,
        path: "/v1/jobs/list",
        asks: may(Verb::List),
        handler: |method| on(method, jobs::list),
    },
    Operation {
        id: "CancelJob",
        method: Method::POST,
        path: "/v1/jobs/cancel",
        asks: may(Verb::Patch),
        handler: |method| on(method, jobs::cancel),
    },
    Operation {
        id: "PauseJob",
        method: Method::POST,
        path: "/v1/jobs/pause",
        asks: may(Verb::Patch),
        handler: |method| on(method, jobs::pause),
    },
    Operation {
        id: "ResumeJob",
        method: Method::POST,
        path: "/v1/jobs/resume",
        asks: may(Verb::Patch),
        handler: |method| on(method, jobs::resume),
    },
    Operation {
        id: "QueryJobEvents",
        method: Method::POST,
        path: "/v1/jobs/query_events",
        asks: may(Verb::Get),
        handler: |method| on(method, jobs::query_events),
    },
    // What the API is, is no secret.
    Operation {
        id: "GetOpenApi",
        method: Method::GET,
        path: "/openapi.yaml",
        asks: None,
        handler: |method| on(method, openapi::document),
    },
];

/// What the specification or stock clients know beside the operations about views,
/// and relance does not do; with what to do instead.
const UNSUPPORTED: &[(Method, &str, &str)] = &[
    (
        Method::POST,
        "/v1/materialized_view/{id}/create",
        "relance refreshes views and creates none; create it beside its tables, with lancedb",
    ),
    (
        Method::POST,
        "/v1/materialized_view/{id}/drop",
        "relance refreshes views and drops none; drop it as a table of its catalog",
    ),
    (
        Method::GET,
        "/v1/namespace/{id}/materialized_view/list",
        "relance does not list views over REST; 'relance views' lists those of a catalog",
    ),
];

/// What to say of an operation that is known, and that relance does not do. None:
/// there is no such operation.
pub(super) fn unsupported(method: &Method, path: &str) -> Option<&'static str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_it = |template: &str| {
        let (mut parts, mut known) = (path.split('/'), template.split('/'));
        loop {
            match (parts.next(), known.next()) {
                (None, None) => return true,
                (Some(part), Some("{id}")) if !part.is_empty() => {}
                (Some(part), Some(known)) if part == known => {}
                _ => return false,
            }
        }
    };
    let known = UNSUPPORTED
        .iter()
        .find(|(of, template, _)| of == method && is_it(template));
    known.map(|(_, _, sentence)| *sentence)
}

/// The operation that a request is for, once the router has matched its path:
/// for middleware that is a layer of the router. None: no such path, or not
/// for this method.
pub fn operation(request: &Request) -> Option<&'static Operation> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    // What is there for GET answers HEAD too.
    let method = match request.method() {
        &Method::HEAD => &Method::GET,
        method => method,
    };
    let path = path.strip_suffix('/').unwrap_or(path);
    OPERATIONS
        .iter()
        .find(|operation| operation.path == path && operation.method == method)
}

/// A router with all operations. Stock clients disagree on trailing slashes, so
/// both forms are there.
pub(super) fn router() -> Router<Arc<Api>> {
    OPERATIONS.iter().fold(Router::new(), |router, operation| {
        let path = operation.path;
        let handler = (operation.handler)(filter(&operation.method));
        router
            .route(path, handler.clone())
            .route(&format!("{path}/"), handler)
    })
}

/// axum's word for a method; the table has no others.
fn filter(method: &Method) -> MethodFilter {
    if method == Method::GET {
        MethodFilter::GET
    } else {
        MethodFilter::POST
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_paths_bare_and_methods_get_or_post() {
        let ids: BTreeSet<&str> = OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), OPERATIONS.len());
        for Operation {
            id, method, path, ..
        } in OPERATIONS
        {
            assert!(path.starts_with('/') && !path.ends_with('/'), "{id}");
            assert!([Method::GET, Method::POST].contains(method), "{id}");
        }
    }

    #[test]
    fn what_is_known_and_not_done_is_told_from_what_is_misspelt() {
        for (method, path, known) in [
            (Method::POST, "/v1/materialized_view/a%24b/create", true),
            (Method::POST, "/v1/materialized_view/v/create/", true),
            (Method::POST, "/v1/materialized_view/v/drop", true),
            (Method::GET, "/v1/namespace/$/materialized_view/list", true),
            (Method::GET, "/v1/materialized_view/v/create", false),
            (Method::POST, "/v1/materialized_view//create", false),
            (Method::POST, "/v1/materialized_view/v/creat", false),
            (Method::POST, "/v1/materialized_view/v/create/more", false),
            (Method::POST, "/v1/materialized_view/create", false),
        ] {
            let told = unsupported(&method, path);
            assert_eq!(told.is_some(), known, "{method} {path}");
        }
        for (method, path, _) in UNSUPPORTED {
            let served = |o: &Operation| o.path == *path && o.method == *method;
            assert!(!OPERATIONS.iter().any(served), "{path}");
        }
    }

    #[test]
    fn whoever_starts_a_refresh_needs_a_cluster_and_nobody_else_does() {
        for operation in OPERATIONS {
            let starts = operation.path.ends_with("/refresh");
            let asks = operation.asks;
            assert_eq!(asks == MAY_REFRESH, starts, "{}", operation.id);
            assert_eq!(
                asks.is_some_and(|asks| asks.uses_cluster),
                starts,
                "{}",
                operation.id
            );
        }
    }
}
