//! `/v1/gateway`, `/v1/conntrack` and `/v1/publish`: what the router knows and does.

use super::answer::{Answer, Body, ErrorBody, Fail, Query};
use super::networks::Removed;
use super::{Shared, lock};
use crate::model::PublishedPort;
use crate::plane::{
    ConnectionCount, ConnectionFilter, ConnectionView, LeaseView, NeighbourView, PublishedView,
};
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use utoipa::ToSchema;

/// How often new and ended connections are fetched for who watches.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// Lists the neighbours that the gateways know or ask for.
#[utoipa::path(get, path = "/v1/gateway/neighbours", responses((status = 200, body = Vec<NeighbourView>)))]
pub(crate) async fn neighbours(State(plane): State<Shared>) -> Json<Vec<NeighbourView>> {
    Json(lock(&plane).neighbour_views())
}

/// Lists the leases of the gateways' DHCP servers.
#[utoipa::path(get, path = "/v1/gateway/leases", responses((status = 200, body = Vec<LeaseView>)))]
pub(crate) async fn leases(State(plane): State<Shared>) -> Json<Vec<LeaseView>> {
    Json(lock(&plane).leases())
}

/// Lists connections.
#[utoipa::path(get, path = "/v1/conntrack", params(ConnectionFilter),
    responses((status = 200, body = Vec<ConnectionView>), (status = 400, body = ErrorBody)))]
pub(crate) async fn connections(
    State(plane): State<Shared>,
    Query(filter): Query<ConnectionFilter>,
) -> Answer<Vec<ConnectionView>> {
    Ok(Json(lock(&plane).connections(&filter)?))
}

/// Ends connections.
#[utoipa::path(delete, path = "/v1/conntrack", params(ConnectionFilter),
    responses((status = 200, body = Removed), (status = 400, body = ErrorBody)))]
pub(crate) async fn flush(
    State(plane): State<Shared>,
    Query(filter): Query<ConnectionFilter>,
) -> Answer<Removed> {
    let removed = lock(&plane).flush_connections(&filter)?;
    Ok(Json(Removed { removed }))
}

/// How many connections there are, and counters.
#[utoipa::path(get, path = "/v1/conntrack/count", responses((status = 200, body = ConnectionCount)))]
pub(crate) async fn count(State(plane): State<Shared>) -> Json<ConnectionCount> {
    Json(lock(&plane).connection_count())
}

/// A connection that began or ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConnectionEvent {
    /// `new`, or why it ended: `expired`, `evicted`, `reopened`, `flushed`, `removed`.
    pub event: String,
    /// The connection.
    pub connection: ConnectionView,
}

/// Connections as they begin and end, one JSON object a line, until the client closes. One client gets them.
#[utoipa::path(get, path = "/v1/conntrack/events",
    responses((status = 200, body = ConnectionEvent, content_type = "application/x-ndjson")))]
pub(crate) async fn events(State(plane): State<Shared>) -> Response {
    // What was kept before isn't news.
    drop(lock(&plane).connection_events());
    let (lines, body) = super::stream::channel();
    tokio::spawn(pass_on(plane, lines));
    let mime = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (mime, HttpBody::new(body)).into_response()
}

async fn pass_on(plane: Shared, lines: Sender<Bytes>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVENT_INTERVAL) => {}
            () = lines.closed() => return,
        }
        let events = lock(&plane).connection_events();
        for (event, connection) in events {
            let record = ConnectionEvent { event, connection };
            let Ok(mut line) = serde_json::to_vec(&record) else {
                continue;
            };
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                return;
            }
        }
    }
}

/// Lists published ports.
#[utoipa::path(get, path = "/v1/publish", responses((status = 200, body = Vec<PublishedView>)))]
pub(crate) async fn published(State(plane): State<Shared>) -> Json<Vec<PublishedView>> {
    Json(lock(&plane).published_views())
}

/// Publishes a port.
#[utoipa::path(post, path = "/v1/publish/{name}", params(("name" = String, Path)), request_body = PublishedPort,
    responses((status = 201, body = PublishedView), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(crate) async fn publish(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(port): Body<PublishedPort>,
) -> Result<(StatusCode, Json<PublishedView>), Fail> {
    let made = lock(&plane).publish(&name, port)?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Ends the publishing of a port; connections that exist go on.
#[utoipa::path(delete, path = "/v1/publish/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn unpublish(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Fail> {
    lock(&plane).unpublish(&name)?;
    Ok(StatusCode::NO_CONTENT)
}
