//! `/v1/networks`: networks, their FDB and multicast table.

use super::answer::{Answer, Body, ErrorBody, Query};
use super::{Shared, change, exists, lock, patched};
use crate::model::{Network, StaticEntry};
use crate::plane::{FdbView, MdbView, NetworkView};
use crate::refusal::{Kind, Refusal};
use crate::units::Mac;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::answer::Fail;

/// Lists networks.
#[utoipa::path(get, path = "/v1/networks", responses((status = 200, body = Vec<NetworkView>)))]
pub(crate) async fn list(State(plane): State<Shared>) -> Json<Vec<NetworkView>> {
    Json(lock(&plane).network_views())
}

/// Shows a network.
#[utoipa::path(get, path = "/v1/networks/{name}", params(("name" = String, Path)),
    responses((status = 200, body = NetworkView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Answer<NetworkView> {
    Ok(Json(lock(&plane).network(&name)?))
}

/// Adds a network.
#[utoipa::path(post, path = "/v1/networks/{name}", params(("name" = String, Path)), request_body = Network,
    responses((status = 201, body = NetworkView), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn add(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(network): Body<Network>,
) -> Result<(StatusCode, Json<NetworkView>), Fail> {
    change(&plane, |t| {
        if t.networks.contains_key(&name) {
            return Err(exists("adding", "network", &name));
        }
        t.networks.insert(name.clone(), network);
        Ok(())
    })?;
    Ok((StatusCode::CREATED, Json(lock(&plane).network(&name)?)))
}

/// Changes a network by JSON merge patch.
#[utoipa::path(patch, path = "/v1/networks/{name}", params(("name" = String, Path)), request_body = Object,
    responses((status = 200, body = NetworkView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn set(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(patch): Body<Value>,
) -> Answer<NetworkView> {
    change(&plane, |t| {
        let Some(network) = t.networks.get_mut(&name) else {
            return Err(Refusal::missing(
                "changing",
                "network",
                &name,
                t.networks.keys(),
            ));
        };
        *network = patched(network, &patch, &format!("network `{name}`"))?;
        Ok(())
    })?;
    Ok(Json(lock(&plane).network(&name)?))
}

/// How to delete a network.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeleteNetwork {
    /// Its ports and what refers to them as well.
    #[serde(default)]
    force: bool,
}

/// Deletes a network.
#[utoipa::path(delete, path = "/v1/networks/{name}", params(("name" = String, Path), DeleteNetwork),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn del(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Query(how): Query<DeleteNetwork>,
) -> Result<StatusCode, Fail> {
    change(&plane, |t| {
        super::ports::unnamed_by_policies(t, "network", &name)?;
        if t.networks.remove(&name).is_none() {
            return Err(Refusal::missing(
                "deleting",
                "network",
                &name,
                t.networks.keys(),
            ));
        }
        let inside = t.ports.iter().filter(|(_, p)| p.network == name);
        let ports: Vec<String> = inside.map(|(n, _)| n.clone()).collect();
        if !ports.is_empty() && !how.force {
            return Err(Refusal::new(
                Kind::Conflict,
                "deleting",
                format!("network `{name}`"),
                format!("it has {} ports: {}", ports.len(), some(&ports)),
                "delete them first, or add --force",
            ));
        }
        for p in &ports {
            super::ports::unnamed_by_policies(t, "port", p)?;
            super::ports::take_out(t, p);
        }
        t.mirrors
            .retain(|_, m| m.vlans.iter().all(|v| v.network != name));
        Ok(())
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// The first few names.
fn some(names: &[String]) -> String {
    let mut text = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        text.push_str(", ...");
    }
    text
}

/// Lists FDB entries.
#[utoipa::path(get, path = "/v1/networks/{name}/fdb", params(("name" = String, Path)),
    responses((status = 200, body = Vec<FdbView>), (status = 404, body = ErrorBody)))]
pub(crate) async fn fdb(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Vec<FdbView>> {
    Ok(Json(lock(&plane).fdb(&name)?))
}

/// Lists multicast memberships and router ports.
#[utoipa::path(get, path = "/v1/networks/{name}/mdb", params(("name" = String, Path)),
    responses((status = 200, body = Vec<MdbView>), (status = 404, body = ErrorBody)))]
pub(crate) async fn mdb(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Vec<MdbView>> {
    Ok(Json(lock(&plane).mdb(&name)?))
}

/// Pins a MAC to a port; replaces an entry of the same MAC and VLAN.
#[utoipa::path(post, path = "/v1/networks/{name}/fdb", params(("name" = String, Path)), request_body = StaticEntry,
    responses((status = 201), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn fdb_add(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(entry): Body<StaticEntry>,
) -> Result<StatusCode, Fail> {
    change(&plane, |t| {
        if !t.ports.contains_key(&entry.port) {
            let ports = t.ports.keys();
            return Err(Refusal::missing("pinning to", "port", &entry.port, ports));
        }
        let Some(network) = t.networks.get_mut(&name) else {
            let networks = t.networks.keys();
            return Err(Refusal::missing("pinning in", "network", &name, networks));
        };
        network
            .fdb
            .retain(|e| e.mac != entry.mac || e.vlan != entry.vlan);
        network.fdb.push(entry);
        Ok(())
    })?;
    Ok(StatusCode::CREATED)
}

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Only at this port.
    port: Option<String>,
    /// Only in this VLAN.
    vlan: Option<u16>,
}

/// How many were removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Removed {
    /// Entries removed.
    pub(super) removed: usize,
}

/// Removes learned entries.
#[utoipa::path(delete, path = "/v1/networks/{name}/fdb", params(("name" = String, Path), Which),
    responses((status = 200, body = Removed), (status = 404, body = ErrorBody)))]
pub(crate) async fn fdb_flush(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Answer<Removed> {
    let removed = lock(&plane).flush(&name, which.port.as_deref(), which.vlan, None)?;
    Ok(Json(Removed { removed }))
}

/// Removes one address, static or learned.
#[utoipa::path(delete, path = "/v1/networks/{name}/fdb/{mac}",
    params(("name" = String, Path), ("mac" = String, Path), Which),
    responses((status = 200, body = Removed), (status = 404, body = ErrorBody)))]
pub(crate) async fn fdb_del(
    State(plane): State<Shared>,
    Path((name, mac)): Path<(String, String)>,
    Query(which): Query<Which>,
) -> Answer<Removed> {
    let mac: Mac = mac.parse().map_err(|e: crate::units::UnitError| {
        Refusal::new(
            Kind::Invalid,
            "deleting",
            format!("FDB entry `{mac}`"),
            e.to_string(),
            "correct the address",
        )
    })?;
    let matches = |e: &StaticEntry| {
        e.mac == mac
            && which.vlan.is_none_or(|v| v == e.vlan)
            && which.port.as_ref().is_none_or(|p| *p == e.port)
    };
    let mut removed = 0;
    change(&plane, |t| {
        let Some(network) = t.networks.get_mut(&name) else {
            let networks = t.networks.keys();
            return Err(Refusal::missing("deleting in", "network", &name, networks));
        };
        let before = network.fdb.len();
        network.fdb.retain(|e| !matches(e));
        removed = before - network.fdb.len();
        Ok(())
    })?;
    removed += lock(&plane).flush(&name, which.port.as_deref(), which.vlan, Some(&mac))?;
    if removed == 0 {
        return Err(Fail(Refusal::new(
            Kind::NotFound,
            "deleting",
            format!("FDB entry {mac}"),
            format!("it isn't in network `{name}`"),
            "`vswitchctl fdb show` lists what there is",
        )));
    }
    Ok(Json(Removed { removed }))
}
