//! Bodies in and out.

use crate::refusal::{Kind, Refusal};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of a refused request.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What happened.
    pub error: Refusal,
}

/// A refusal as an answer.
#[derive(Debug)]
pub(crate) struct Fail(pub(crate) Refusal);

impl From<Refusal> for Fail {
    fn from(r: Refusal) -> Fail {
        Fail(r)
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(ErrorBody { error: self.0 })).into_response()
    }
}

pub(super) type Answer<T> = Result<axum::Json<T>, Fail>;

/// A JSON body, whatever the content type says: curl sets another by itself.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Fail;

    async fn from_request(req: Request, state: &S) -> Result<Self, Fail> {
        let bytes = Bytes::from_request(req, state)
            .await
            .map_err(|e| too_large(&e))?;
        // No body is an empty object.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Body).map_err(|e| {
            Fail(Refusal::new(
                Kind::Invalid,
                "reading",
                "the request's body",
                e.to_string(),
                "GET /v1/openapi.json describes it",
            ))
        })
    }
}

fn too_large(rejection: &BytesRejection) -> Fail {
    let kind = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Kind::TooLarge
    } else {
        Kind::Invalid
    };
    Fail(Refusal::new(
        kind,
        "reading",
        "the request's body",
        rejection.body_text(),
        format!("send at most {} MiB", super::BODY_LIMIT >> 20),
    ))
}

/// A query string, refused as bodies are.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = Fail;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, Fail> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|q| Query(q.0))
            .map_err(|e| {
                Fail(Refusal::new(
                    Kind::Invalid,
                    "reading",
                    "the request's query",
                    e.body_text(),
                    "GET /v1/openapi.json describes it",
                ))
            })
    }
}
