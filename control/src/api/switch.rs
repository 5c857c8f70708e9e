//! The switch as a whole: topology, counters, events, mirrors, documents.

use super::answer::{Answer, Body, ErrorBody, Fail, Query};
use super::{Shared, change, exists, lock};
use crate::events::Record;
use crate::model::{Change, Mirror, Topology, diff};
use crate::plane::{Info, MirrorView, Stats};
use crate::refusal::Refusal;
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::Sender;
use utoipa::{IntoParams, OpenApi};

/// The API's description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "vswitchd",
        description = "Control API of the vswitch daemon, on its unix socket."
    ),
    paths(
        info,
        events,
        mirrors,
        add_mirror,
        del_mirror,
        stats,
        topology,
        put_topology,
        document,
        metrics,
        super::gateway::connections,
        super::gateway::flush,
        super::gateway::count,
        super::gateway::events,
        super::gateway::neighbours,
        super::gateway::published,
        super::gateway::publish,
        super::gateway::unpublish,
        super::capture::capture,
        super::capture::list,
        super::capture::end,
        super::networks::list,
        super::networks::show,
        super::networks::add,
        super::networks::set,
        super::networks::del,
        super::networks::fdb,
        super::networks::fdb_add,
        super::networks::fdb_flush,
        super::networks::fdb_del,
        super::networks::mdb,
        super::policy::list,
        super::policy::show,
        super::policy::add,
        super::policy::set,
        super::policy::del,
        super::policy::explain,
        super::trace::trace,
        super::ports::list,
        super::ports::show,
        super::ports::add,
        super::ports::set,
        super::ports::del,
    ),
    components(schemas(Record))
)]
struct Description;

/// The API's description as OpenAPI 3.1 JSON.
#[must_use]
pub fn openapi() -> String {
    Description::openapi().to_pretty_json().unwrap_or_default()
}

/// Shows the daemon.
#[utoipa::path(get, path = "/v1/", responses((status = 200, body = Info)))]
pub(crate) async fn info(State(plane): State<Shared>) -> Json<Info> {
    Json(lock(&plane).info())
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

/// Counters of all ports and the ledger of the switch.
#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = Stats)))]
pub(crate) async fn stats(State(plane): State<Shared>) -> Json<Stats> {
    Json(lock(&plane).stats())
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Prometheus text", body = String)))]
pub(crate) async fn metrics(State(plane): State<Shared>) -> Response {
    let text = crate::metrics::text(&lock(&plane));
    ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response()
}

/// What the switch is asked to be, but for containers that rootless programs have attached for as long as they run.
#[utoipa::path(get, path = "/v1/topology", responses((status = 200, body = Topology)))]
pub(crate) async fn topology(State(plane): State<Shared>) -> Json<Topology> {
    Json(lock(&plane).lasting())
}

/// How to apply.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// Only tell what would change.
    #[serde(default)]
    dry_run: bool,
}

/// Makes the switch be so: all of it or nothing. Answers with what changed. Containers that rootless programs have attached stay.
#[utoipa::path(put, path = "/v1/topology", params(Apply), request_body = Topology,
    responses((status = 200, body = Vec<Change>), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody)))]
pub(crate) async fn put_topology(
    State(plane): State<Shared>,
    Query(how): Query<Apply>,
    Body(wanted): Body<Topology>,
) -> Answer<Vec<Change>> {
    let mut plane = lock(&plane);
    let wanted = plane.with_attached(wanted);
    if how.dry_run {
        wanted.check().map_err(|p| p.refusal("comparing"))?;
        return Ok(Json(diff(plane.desired(), &wanted)));
    }
    Ok(Json(plane.apply(wanted)?))
}

/// Lists mirror sessions.
#[utoipa::path(get, path = "/v1/mirrors", responses((status = 200, body = Vec<MirrorView>)))]
pub(crate) async fn mirrors(State(plane): State<Shared>) -> Json<Vec<MirrorView>> {
    Json(lock(&plane).mirror_views())
}

/// Adds a mirror session.
#[utoipa::path(post, path = "/v1/mirrors/{name}", params(("name" = String, Path)), request_body = Mirror,
    responses((status = 201, body = MirrorView), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn add_mirror(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(mirror): Body<Mirror>,
) -> Result<(StatusCode, Json<MirrorView>), Fail> {
    let config = mirror.clone();
    change(&plane, |t| {
        if t.mirrors.contains_key(&name) {
            return Err(exists("adding", "mirror", &name));
        }
        let named = mirror.ingress.iter().chain(&mirror.egress);
        for p in named.chain([&mirror.target]) {
            if !t.ports.contains_key(p) {
                return Err(Refusal::missing("mirroring", "port", p, t.ports.keys()));
            }
        }
        t.mirrors.insert(name.clone(), mirror);
        Ok(())
    })?;
    Ok((StatusCode::CREATED, Json(MirrorView { name, config })))
}

/// Deletes a mirror session.
#[utoipa::path(delete, path = "/v1/mirrors/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn del_mirror(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Fail> {
    change(&plane, |t| {
        if t.mirrors.remove(&name).is_none() {
            let mirrors = t.mirrors.keys();
            return Err(Refusal::missing("deleting", "mirror", &name, mirrors));
        }
        Ok(())
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Events as they happen, one JSON object a line, until the client closes.
#[utoipa::path(get, path = "/v1/events", responses((status = 200, body = Record, content_type = "application/x-ndjson")))]
pub(crate) async fn events(State(plane): State<Shared>) -> Response {
    let listener = lock(&plane).bus().subscribe();
    let (lines, body) = super::stream::channel();
    tokio::spawn(pass_on(listener, lines));
    let mime = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (mime, HttpBody::new(body)).into_response()
}

/// Writes events to a client until it closes or the daemon ends.
async fn pass_on(mut listener: Receiver<Record>, lines: Sender<Bytes>) {
    loop {
        let record = tokio::select! {
            r = listener.recv() => r,
            () = lines.closed() => return,
        };
        let record = match record {
            Ok(r) => r,
            Err(RecvError::Lagged(n)) => {
                let mut r = Record::now("lost");
                r.reason = Some(format!("the listener was too slow for {n} events"));
                r
            }
            Err(RecvError::Closed) => return,
        };
        let Ok(mut line) = serde_json::to_vec(&record) else {
            continue;
        };
        line.push(b'\n');
        if lines.send(line.into()).await.is_err() {
            return;
        }
    }
}
