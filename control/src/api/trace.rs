//! `/v1/trace`: what would become of a frame.

use super::answer::{Answer, Body, ErrorBody};
use super::{Shared, lock};
use crate::plane::{TraceRequest, TraceView};
use axum::Json;
use axum::extract::State;

/// Tells what would become of a frame received by a port, and why: every stage's decision. Nothing changes by it.
#[utoipa::path(post, path = "/v1/trace", request_body = TraceRequest,
    responses((status = 200, body = TraceView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn trace(
    State(plane): State<Shared>,
    Body(request): Body<TraceRequest>,
) -> Answer<TraceView> {
    Ok(Json(lock(&plane).trace(&request)?))
}
