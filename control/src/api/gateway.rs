//! `/v1/gateway`: what the router knows.

use super::{Shared, lock};
use crate::plane::NeighbourView;
use axum::Json;
use axum::extract::State;

/// Lists the neighbours that the gateways know or ask for.
#[utoipa::path(get, path = "/v1/gateway/neighbours", responses((status = 200, body = Vec<NeighbourView>)))]
pub(crate) async fn neighbours(State(plane): State<Shared>) -> Json<Vec<NeighbourView>> {
    Json(lock(&plane).neighbour_views())
}
