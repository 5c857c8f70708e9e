//! `/v1/ports`.

use super::answer::{Answer, Body, ErrorBody, Fail};
use super::{Shared, change, exists, lock, patched};
use crate::model::{Port, Topology};
use crate::plane::PortView;
use crate::refusal::{Kind, Refusal};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::Value;

/// Lists ports.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = Vec<PortView>)))]
pub(crate) async fn list(State(plane): State<Shared>) -> Json<Vec<PortView>> {
    Json(lock(&plane).port_views())
}

/// Shows a port.
#[utoipa::path(get, path = "/v1/ports/{name}", params(("name" = String, Path)),
    responses((status = 200, body = PortView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Answer<PortView> {
    Ok(Json(lock(&plane).port(&name)?))
}

/// Adds a port.
#[utoipa::path(post, path = "/v1/ports/{name}", params(("name" = String, Path)), request_body = Port,
    responses((status = 201, body = PortView), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(crate) async fn add(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(port): Body<Port>,
) -> Result<(StatusCode, Json<PortView>), Fail> {
    change(&plane, |t| {
        if t.ports.contains_key(&name) {
            return Err(exists("adding", "port", &name));
        }
        if !t.networks.contains_key(&port.network) {
            let (act, networks) = (format!("adding port `{name}` to"), t.networks.keys());
            return Err(Refusal::missing(&act, "network", &port.network, networks));
        }
        t.ports.insert(name.clone(), port);
        Ok(())
    })?;
    Ok((StatusCode::CREATED, Json(lock(&plane).port(&name)?)))
}

/// Changes a port by JSON merge patch.
#[utoipa::path(patch, path = "/v1/ports/{name}", params(("name" = String, Path)), request_body = Object,
    responses((status = 200, body = PortView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn set(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(patch): Body<Value>,
) -> Answer<PortView> {
    change(&plane, |t| {
        let Some(port) = t.ports.get_mut(&name) else {
            return Err(Refusal::missing("changing", "port", &name, t.ports.keys()));
        };
        *port = patched(port, &patch, &format!("port `{name}`"))?;
        Ok(())
    })?;
    Ok(Json(lock(&plane).port(&name)?))
}

/// Takes a port out of a topology with all that refers to it.
pub(super) fn take_out(t: &mut Topology, name: &str) -> bool {
    let was = t.ports.remove(name).is_some();
    for n in t.networks.values_mut() {
        n.fdb.retain(|e| e.port != name);
    }
    for m in t.mirrors.values_mut() {
        m.ingress.retain(|p| p != name);
        m.egress.retain(|p| p != name);
    }
    t.mirrors.retain(|_, m| {
        m.target != name && !(m.ingress.is_empty() && m.egress.is_empty() && m.vlans.is_empty())
    });
    was
}

/// Refuses to delete what a policy names: a rule without it would say something else.
pub(super) fn unnamed_by_policies(t: &Topology, what: &str, name: &str) -> Result<(), Refusal> {
    let Some(policy) = t.policy_naming(what, name) else {
        return Ok(());
    };
    Err(Refusal::new(
        Kind::Conflict,
        "deleting",
        format!("{what} `{name}`"),
        format!("policy `{policy}` names it"),
        "change the policy first, or let it speak of a label",
    ))
}

/// Deletes a port, and the static entries and mirror sources that refer to it.
#[utoipa::path(delete, path = "/v1/ports/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn del(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Fail> {
    change(&plane, |t| {
        unnamed_by_policies(t, "port", &name)?;
        if !take_out(t, &name) {
            return Err(Refusal::missing("deleting", "port", &name, t.ports.keys()));
        }
        Ok(())
    })?;
    Ok(StatusCode::NO_CONTENT)
}
