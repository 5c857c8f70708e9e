//! Ports whose TAP queue somebody else has opened: handed over on a socket of its own, beside the control socket.
//!
//! HTTP carries no file descriptors, so there is a second unix stream socket, `SOCKET.fds`, with the same access rules. One
//! request a connection: a line of JSON, `{"name": "web", "port": {"network": "lan", "kind": "fd"}}`, with one
//! descriptor (SCM_RIGHTS) attached to its first byte. The answer is a line of JSON: the port as `GET /v1/ports/web` shows
//! it, or `{"error": {...}}`.

use crate::api::{self, ErrorBody, Shared};
use crate::model::{Port, PortKind};
use crate::plane::PortView;
use crate::refusal::{Kind, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use vswitch_core::sys::scm;

/// Most bytes of a request.
const LIMIT: usize = 64 << 10;
/// A request must be here within this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Handover {
    pub(crate) name: String,
    pub(crate) port: Port,
}

/// Path of the hand-over socket of a control socket.
#[must_use]
pub fn path_beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".fds");
    PathBuf::from(path)
}

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new(
        Kind::Invalid,
        "handing over",
        "a TAP queue",
        reason,
        "send one line of JSON, {\"name\":..., \"port\":{...}}, with one descriptor",
    )
}

/// Answers one connection.
pub(crate) async fn connection(
    mut stream: UnixStream,
    admitted: Result<(), Refusal>,
    plane: &Shared,
) {
    let result = match admitted {
        Err(e) => Err(e),
        Ok(()) => match tokio::time::timeout(TIMEOUT, request(&stream)).await {
            Err(_) => Err(refused("the request didn't come in time")),
            Ok(Err(e)) => Err(e),
            Ok(Ok((h, fd))) => take_in(plane, h, fd),
        },
    };
    let answer = match result {
        Ok(view) => serde_json::to_vec(&view),
        Err(error) => serde_json::to_vec(&ErrorBody { error }),
    };
    let mut answer = answer.unwrap_or_default();
    answer.push(b'\n');
    // A peer that has gone doesn't want it.
    let _ = stream.write_all(&answer).await;
}

async fn request(stream: &UnixStream) -> Result<(Handover, OwnedFd), Refusal> {
    let (mut text, mut fds, mut buf) = (Vec::new(), Vec::new(), vec![0; 4096]);
    while !text.contains(&b'\n') {
        let got = stream
            .async_io(Interest::READABLE, || scm::recv(stream, &mut buf))
            .await;
        let (n, more) = got.map_err(|e| refused(e.to_string()))?;
        fds.extend(more);
        if n == 0 {
            break;
        }
        text.extend_from_slice(buf.get(..n).unwrap_or_default());
        if text.len() > LIMIT || fds.len() > 1 {
            return Err(refused("the request is too large"));
        }
    }
    let request = serde_json::from_slice(&text).map_err(|e| refused(e.to_string()))?;
    let fd = fds.pop();
    Ok((request, fd.ok_or_else(|| refused("no descriptor came"))?))
}

fn take_in(plane: &Shared, request: Handover, fd: OwnedFd) -> Result<PortView, Refusal> {
    let Handover { name, port } = request;
    if port.kind != PortKind::Fd {
        return Err(refused("the port isn't of kind fd"));
    }
    let mut plane = api::lock(plane);
    let mut wanted = plane.desired().clone();
    let known = wanted.ports.get(&name);
    // A port that lost its queue with the daemon before us is given a new one.
    if known.is_some_and(|p| *p != port) || (known.is_some() && plane.port(&name)?.state == "up") {
        return Err(api::exists("handing over", "port", &name));
    }
    wanted.ports.insert(name.clone(), port);
    plane.apply_with(wanted, &BTreeMap::from([(name.clone(), fd)]))?;
    plane.port(&name)
}

/// The client's side: hands a queue over and returns the daemon's answer.
pub(crate) async fn send(
    socket: &Path,
    request: &Handover,
    fd: &OwnedFd,
) -> io::Result<Result<PortView, Refusal>> {
    use std::os::fd::AsFd;
    use tokio::io::AsyncReadExt;
    let mut stream = UnixStream::connect(path_beside(socket)).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            scm::send(&stream, &line, &[fd.as_fd()])
        })
        .await?;
    stream
        .write_all(line.get(sent..).unwrap_or_default())
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if let Ok(e) = serde_json::from_slice::<ErrorBody>(&answer) {
        return Ok(Err(e.error));
    }
    Ok(Ok(serde_json::from_slice(&answer)?))
}
