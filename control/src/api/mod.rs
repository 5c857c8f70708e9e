//! The API, version 1: HTTP/1.1 and JSON.
//!
//! Paths name things, bodies are the model's types. `POST` makes, `PATCH` changes by JSON merge patch (RFC 7396: fields left
//! out stay, `null` takes back to the default), `DELETE` removes, `PUT /v1/topology` makes the whole be so. A request
//! that is refused answers with its status and `{"error":{"act","thing","reason","remedy"}}`.

mod answer;
mod capture;
mod gateway;
mod networks;
mod policy;
mod ports;
mod stream;
mod switch;
mod trace;

pub use answer::ErrorBody;
pub(crate) use capture::ID_HEADER;
pub use gateway::ConnectionEvent;
pub use switch::openapi;

use crate::model::{Change, Topology};
use crate::plane::Plane;
use crate::refusal::{self, Kind, Refusal};
use answer::Fail;
use axum::Router;
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of a request's body.
pub const BODY_LIMIT: usize = 4 << 20;

/// The switch, shared by all connections.
pub type Shared = Arc<Mutex<Plane>>;

pub(crate) fn lock(plane: &Shared) -> MutexGuard<'_, Plane> {
    // A panic in a handler leaves a consistent switch: the workers have their own state.
    plane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All routes.
pub(crate) fn router(plane: Shared) -> Router {
    Router::new()
        .route("/metrics", get(switch::metrics))
        .route("/v1", get(switch::info))
        .route("/v1/", get(switch::info))
        .route("/v1/capture", get(capture::capture))
        .route("/v1/captures", get(capture::list))
        .route("/v1/captures/{id}", axum::routing::delete(capture::end))
        .route("/v1/events", get(switch::events))
        .route(
            "/v1/conntrack",
            get(gateway::connections).delete(gateway::flush),
        )
        .route("/v1/conntrack/count", get(gateway::count))
        .route("/v1/conntrack/events", get(gateway::events))
        .route("/v1/gateway/leases", get(gateway::leases))
        .route("/v1/gateway/neighbours", get(gateway::neighbours))
        .route("/v1/mirrors", get(switch::mirrors))
        .route(
            "/v1/mirrors/{name}",
            post(switch::add_mirror).delete(switch::del_mirror),
        )
        .route("/v1/networks", get(networks::list))
        .route(
            "/v1/networks/{name}",
            get(networks::show)
                .post(networks::add)
                .patch(networks::set)
                .delete(networks::del),
        )
        .route(
            "/v1/networks/{name}/fdb",
            get(networks::fdb)
                .post(networks::fdb_add)
                .delete(networks::fdb_flush),
        )
        .route(
            "/v1/networks/{name}/fdb/{mac}",
            axum::routing::delete(networks::fdb_del),
        )
        .route("/v1/networks/{name}/mdb", get(networks::mdb))
        .route("/v1/openapi.json", get(switch::document))
        .route("/v1/policies", get(policy::list))
        .route(
            "/v1/policies/{name}",
            get(policy::show)
                .post(policy::add)
                .patch(policy::set)
                .delete(policy::del),
        )
        .route("/v1/policy/explain", get(policy::explain))
        .route("/v1/ports", get(ports::list))
        .route(
            "/v1/ports/{name}",
            get(ports::show)
                .post(ports::add)
                .patch(ports::set)
                .delete(ports::del),
        )
        .route("/v1/publish", get(gateway::published))
        .route(
            "/v1/publish/{name}",
            post(gateway::publish).delete(gateway::unpublish),
        )
        .route("/v1/stats", get(switch::stats))
        .route("/v1/trace", post(trace::trace))
        .route(
            "/v1/topology",
            get(switch::topology).put(switch::put_topology),
        )
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(plane)
}

/// Metrics alone, for TCP: whoever reaches loopback may read counters, and nothing else.
pub(crate) fn metrics_router(plane: Shared) -> Router {
    Router::new()
        .route("/metrics", get(switch::metrics))
        .fallback(unknown_path)
        .with_state(plane)
}

/// A refusal as an answer.
pub(crate) fn refused(refusal: Refusal) -> axum::response::Response {
    axum::response::IntoResponse::into_response(Fail(refusal))
}

async fn unknown_path(uri: axum::http::Uri) -> Fail {
    Fail(Refusal::new(
        Kind::NotFound,
        "answering",
        format!("`{}`", uri.path()),
        "no such path",
        "GET /v1/openapi.json describes all there are",
    ))
}

async fn unknown_method(method: axum::http::Method, uri: axum::http::Uri) -> Fail {
    Fail(Refusal::new(
        Kind::Invalid,
        "answering",
        format!("{method} `{}`", uri.path()),
        "this path has no such method",
        "GET /v1/openapi.json describes all there are",
    ))
}

/// Changes the desired state by `edit` and applies it.
fn change(
    plane: &Shared,
    edit: impl FnOnce(&mut Topology) -> Result<(), Refusal>,
) -> Result<Vec<Change>, Refusal> {
    let mut plane = lock(plane);
    let mut wanted = plane.desired().clone();
    edit(&mut wanted)?;
    plane.apply(wanted)
}

pub(crate) fn exists(act: &str, what: &str, name: &str) -> Refusal {
    let command = refusal::command(what);
    let remedy = match what {
        "mirror" | "published port" => format!("delete it first with `vswitchctl {command} del`"),
        "port" => "change it with `vswitchctl port set`, delete it with `port del` if its container has gone".into(),
        _ => format!("change it with `vswitchctl {command} set`"),
    };
    Refusal::new(
        Kind::Exists,
        act,
        format!("{what} `{name}`"),
        "it exists already",
        format!("{remedy}, or take another name"),
    )
}

/// The value with a JSON merge patch (RFC 7396) laid over it.
pub fn patched<T: Serialize + DeserializeOwned>(
    value: &T,
    patch: &Value,
    thing: &str,
) -> Result<T, Refusal> {
    let bad = |e: serde_json::Error| {
        Refusal::new(
            Kind::Invalid,
            "changing",
            thing,
            e.to_string(),
            "GET /v1/openapi.json describes the fields",
        )
    };
    let mut json = serde_json::to_value(value).map_err(bad)?;
    // Taking away what can't be there would go unnoticed.
    for alone in nulls(patch) {
        if let Err(e) = serde_json::from_value::<T>(alone)
            && e.to_string().starts_with("unknown field")
        {
            return Err(bad(e));
        }
    }
    merge(&mut json, patch);
    serde_json::from_value(json).map_err(bad)
}

/// Each null of a patch by itself, where it is.
fn nulls(patch: &Value) -> Vec<Value> {
    let Value::Object(patch) = patch else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (field, v) in patch {
        let inner = if v.is_null() {
            vec![Value::Null]
        } else {
            nulls(v)
        };
        found.extend(inner.into_iter().map(|v| serde_json::json!({ field: v })));
    }
    found
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    let Value::Object(into) = into else { return };
    for (k, v) in patch {
        if v.is_null() {
            into.remove(k);
        } else {
            merge(into.entry(k.clone()).or_insert(Value::Null), v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;
    use serde_json::json;

    #[test]
    fn a_patch_changes_what_it_names_and_null_takes_back() {
        let port = Port::new("lan");
        let patch = json!({"mtu": 9000, "egress_rate": "1mbit", "storm": {"broadcast": "10pps"}});
        let p = patched(&port, &patch, "port").unwrap();
        assert_eq!((p.mtu, p.network.as_str()), (9000, "lan"));
        let back = json!({"mtu": null, "egress_rate": null, "storm": null});
        assert_eq!(patched(&p, &back, "port").unwrap(), port);
        let wrong = patched(&port, &json!({"mtuu": 9000}), "port").unwrap_err();
        assert!(wrong.reason.contains("mtuu"), "{wrong}");
        let wrong = patched(&port, &json!({"mtuu": null}), "port").unwrap_err();
        assert!(wrong.reason.contains("mtuu"), "{wrong}");
    }
}
