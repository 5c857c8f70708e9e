//! `/v1/policies` and `/v1/policy/explain`: the firewall.

use super::answer::{Answer, Body, ErrorBody, Fail, Query};
use super::{Shared, change, exists, lock, patched};
use crate::model::Policy;
use crate::plane::{ExplainQuery, ExplainView, PolicyView};
use crate::refusal::Refusal;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::Value;

/// Lists policies with the counters of their rules, in the order they are asked.
#[utoipa::path(get, path = "/v1/policies", responses((status = 200, body = Vec<PolicyView>)))]
pub(crate) async fn list(State(plane): State<Shared>) -> Json<Vec<PolicyView>> {
    Json(lock(&plane).policy_views())
}

/// Shows a policy.
#[utoipa::path(get, path = "/v1/policies/{name}", params(("name" = String, Path)),
    responses((status = 200, body = PolicyView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Answer<PolicyView> {
    Ok(Json(lock(&plane).policy(&name)?))
}

/// Adds a policy; connections that exist are judged again.
#[utoipa::path(post, path = "/v1/policies/{name}", params(("name" = String, Path)), request_body = Policy,
    responses((status = 201, body = PolicyView), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn add(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(policy): Body<Policy>,
) -> Result<(StatusCode, Json<PolicyView>), Fail> {
    change(&plane, |t| {
        if t.policies.contains_key(&name) {
            return Err(exists("adding", "policy", &name));
        }
        t.policies.insert(name.clone(), policy);
        Ok(())
    })?;
    Ok((StatusCode::CREATED, Json(lock(&plane).policy(&name)?)))
}

/// Changes a policy by JSON merge patch; connections that exist are judged again.
#[utoipa::path(patch, path = "/v1/policies/{name}", params(("name" = String, Path)), request_body = Object,
    responses((status = 200, body = PolicyView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn set(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    Body(patch): Body<Value>,
) -> Answer<PolicyView> {
    change(&plane, |t| {
        let Some(policy) = t.policies.get_mut(&name) else {
            let known = t.policies.keys();
            return Err(Refusal::missing("changing", "policy", &name, known));
        };
        *policy = patched(policy, &patch, &format!("policy `{name}`"))?;
        Ok(())
    })?;
    Ok(Json(lock(&plane).policy(&name)?))
}

/// Deletes a policy.
#[utoipa::path(delete, path = "/v1/policies/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn del(
    State(plane): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Fail> {
    change(&plane, |t| {
        if t.policies.remove(&name).is_none() {
            let known = t.policies.keys();
            return Err(Refusal::missing("deleting", "policy", &name, known));
        }
        Ok(())
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells which rule decides about a connection, and why.
#[utoipa::path(get, path = "/v1/policy/explain", params(ExplainQuery),
    responses((status = 200, body = ExplainView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn explain(
    State(plane): State<Shared>,
    Query(query): Query<ExplainQuery>,
) -> Answer<ExplainView> {
    Ok(Json(lock(&plane).explain(&query)?))
}
