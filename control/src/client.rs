//! A client of the API, for vswitchctl and whoever wants one in Rust.

use crate::api::ErrorBody;
use crate::refusal::Refusal;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("connecting to vswitchd at {}: {source}; {}", path.display(), reach(source))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A name in the request is empty.
    #[error("naming what is meant: the name is empty; write one")]
    Nameless,
    /// The daemon said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer was cut off or isn't the API's.
    #[error("reading vswitchd's answer: {0}; is it of the same version?")]
    Broken(String),
}

/// What to do about a socket that can't be connected to.
fn reach(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        "ask as root or as the daemon's user, or be a member of the `group` in its configuration"
    } else {
        "start it with `vswitchd run`, or name its socket with --socket"
    }
}

#[expect(clippy::needless_pass_by_value, reason = "errors are mapped by it")]
fn broken(e: impl ToString) -> ClientError {
    ClientError::Broken(e.to_string())
}

/// Reaches a daemon; one connection per request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Client {
        Client {
            socket: socket.to_owned(),
        }
    }

    /// Sends a request; the answer's body is still to be read.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        if nameless(path) {
            return Err(ClientError::Nameless);
        }
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::Unreachable {
            path: self.socket.clone(),
            source,
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "vswitchd")
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.into_body().collect().await.map_err(broken)?;
        match serde_json::from_slice::<ErrorBody>(&text.to_bytes()) {
            Ok(mut e) => {
                e.error.kind = Refusal::kind_of(status.as_u16());
                Err(ClientError::Refused(e.error))
            }
            Err(_) => Err(broken(format!("status {status}"))),
        }
    }

    /// Sends a request and reads the answer: JSON, or null if it is empty.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let answer = self.open(method, path, body).await?;
        let body = answer.into_body().collect().await.map_err(broken)?;
        let bytes = body.to_bytes();
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(broken)
    }

    /// As [`Client::call`] with a body, read as `T`.
    pub async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<T, ClientError> {
        let value = self.call(method, path, Some(body)).await?;
        serde_json::from_value(value).map_err(broken)
    }

    /// As [`Client::call`] with GET, read as `T`.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let value = self.call("GET", path, None).await?;
        serde_json::from_value(value).map_err(broken)
    }
}

/// Whether a name in the path is empty.
fn nameless(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path);
    path.contains("//") || (path.ends_with('/') && path != "/v1/")
}

/// A name as part of a path (RFC 3986 2.1).
#[must_use]
pub fn escape(name: &str) -> String {
    let mut out = String::new();
    for b in name.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~:@".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}
