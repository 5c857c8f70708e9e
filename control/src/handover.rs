//! Ports whose TAP queue somebody else has opened: handed over on a socket of its own, beside the control socket.
//!
//! HTTP carries no file descriptors, so there is a second unix stream socket, `SOCKET.fds`, with the same access rules. One
//! request a connection: a line of JSON, `{"name": "web", "port": {"network": "lan", "kind": "fd"}}`, with one
//! descriptor (SCM_RIGHTS) attached to its first byte. The answer is a line of JSON: the port as `GET /v1/ports/web` shows
//! it, or `{"error": {...}}`.
//!
//! `slirp4netns` and `pasta` attach their container for as long as they run: `{"attach": {...}}` asks for a place, and the connection
//! stays. Further lines, each answered by one, are `{"queue": true}` with the descriptor, and `{"publish": {...}}` with all ports that are
//! to be published. When the connection ends, the port goes; when the port is deleted, that is said, and the connection ends.

use crate::api::{self, ErrorBody, Shared};
use crate::model::{Port, PortKind, PublishedPort};
use crate::plane::{Begin, Given, PortView};
use crate::refusal::{Kind, Refusal};
use crate::switching::{self, Listener, Routes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
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

/// What a connection begins with.
enum First {
    Attach { attach: Begin },
    Handover(Box<Handover>),
    Switch(Switch),
}

/// A container's calls are to be answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switch {
    pub(crate) port: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchLine {
    switch: Switch,
}

/// A line of a session.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    /// A place for a container is asked for.
    Attach(Begin),
    /// The container's queue comes along.
    Queue(bool),
    /// All that is to be published for it, by names of its own.
    Publish(BTreeMap<String, PublishedPort>),
}

/// What is said to a line of a session.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Said {
    /// The place.
    Given(Given),
    /// It is so.
    Done(bool),
    /// The name is another's.
    Taken(Refusal),
    /// It can't be, or isn't so any more.
    Error(Refusal),
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

/// Answers one connection. `place` is one of those that there are for requests, which a session gives back.
pub(crate) async fn connection(
    mut stream: UnixStream,
    admitted: Result<(), Refusal>,
    plane: &Shared,
    place: OwnedSemaphorePermit,
) {
    let mut heard = Vec::new();
    let first = match admitted {
        Err(e) => Err(e),
        Ok(()) => match tokio::time::timeout(TIMEOUT, line(&stream, &mut heard)).await {
            Err(_) => Err(refused("the request didn't come in time")),
            Ok(Err(e)) => Err(e),
            Ok(Ok((text, fds))) => first(&text).map(|f| (f, fds)),
        },
    };
    let result = match first {
        Ok((First::Attach { attach }, _)) => {
            drop(place);
            return session(stream, heard, attach, plane).await;
        }
        Ok((First::Switch(s), fds)) => {
            drop(place);
            let done = switch(plane, s, fds);
            let goes_on = done.is_ok();
            let said = done.map_or_else(Said::Error, |()| Said::Done(true));
            if say(&mut stream, &said).await && goes_on {
                // Nothing more is said.
                let _ = line(&stream, &mut heard).await;
            }
            return;
        }
        Ok((First::Handover(h), fds)) => match one(fds) {
            Some(fd) => take_in(plane, *h, fd),
            None => Err(refused("no descriptor came")),
        },
        Err(e) => Err(e),
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

fn first(text: &[u8]) -> Result<First, Refusal> {
    // Of several forms none says what is wrong with another.
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| refused(e.to_string()))?;
    let form = if value.get("attach").is_some() {
        serde_json::from_value(value).map(|l| match l {
            Line::Attach(attach) => Some(First::Attach { attach }),
            _ => None,
        })
    } else if value.get("switch").is_some() {
        serde_json::from_value(value).map(|l: SwitchLine| Some(First::Switch(l.switch)))
    } else {
        serde_json::from_value(value).map(|h| Some(First::Handover(Box::new(h))))
    };
    let form = form.map_err(|e| refused(e.to_string()))?;
    form.ok_or_else(|| refused("a session begins with `attach`"))
}

/// The descriptor, where there is to be one.
fn one(mut fds: Vec<OwnedFd>) -> Option<OwnedFd> {
    fds.pop().filter(|_| fds.is_empty())
}

/// Takes up a listener.
fn switch(plane: &Shared, s: Switch, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    let Switch { port } = s;
    let wrong = |reason: String| {
        let remedy = "use `vswitchctl run`";
        let thing = format!("port `{port}`");
        Refusal::new(Kind::Invalid, "switching sockets of", thing, reason, remedy)
    };
    let [fd, routes] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|all| wrong(format!("two descriptors are to come, {} did", all.len())))?;
    api::lock(plane).may_listen(&port)?;
    let routes = Routes::of(routes)
        .map_err(|e| wrong(format!("its namespace can't be asked for routes: {e}")))?;
    let listener = Listener {
        port,
        fd,
        routes: Some(routes),
    };
    switching::take_up(plane, listener)
}

/// A line, and the descriptors that came with it. Of what is heard the rest stays in `heard`. An empty line is the end.
async fn line(
    stream: &UnixStream,
    heard: &mut Vec<u8>,
) -> Result<(Vec<u8>, Vec<OwnedFd>), Refusal> {
    let (mut fds, mut buf) = (Vec::new(), vec![0; 4096]);
    loop {
        if let Some(at) = heard.iter().position(|b| *b == b'\n') {
            let text = heard.drain(..=at).collect();
            return Ok((text, fds));
        }
        let got = stream
            .async_io(Interest::READABLE, || scm::recv(stream, &mut buf))
            .await;
        let (n, more) = got.map_err(|e| refused(e.to_string()))?;
        fds.extend(more);
        if n == 0 {
            return Ok((std::mem::take(heard), fds));
        }
        heard.extend_from_slice(buf.get(..n).unwrap_or_default());
        if heard.len() > LIMIT || fds.len() > 2 {
            return Err(refused("the request is too large"));
        }
    }
}

async fn say(stream: &mut UnixStream, said: &Said) -> bool {
    let mut text = serde_json::to_vec(said).unwrap_or_default();
    text.push(b'\n');
    stream.write_all(&text).await.is_ok()
}

/// What a container's program is told that has nothing more to wait for.
fn port_deleted(name: &str) -> Refusal {
    Refusal::new(
        Kind::NotFound,
        "keeping",
        format!("container `{name}` attached"),
        "its port was deleted",
        "start the container anew to attach it again",
    )
}

/// A container is attached for as long as the connection lasts, and its port isn't deleted.
async fn session(mut stream: UnixStream, mut heard: Vec<u8>, begin: Begin, plane: &Shared) {
    let begun = api::lock(plane).begin_session(&begin);
    let (id, given, deleted) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            let said = match e.kind {
                Kind::Exists => Said::Taken(e),
                _ => Said::Error(e),
            };
            say(&mut stream, &said).await;
            return;
        }
    };
    let name = begin.name;
    let mut goes_on = say(&mut stream, &Said::Given(given)).await;
    while goes_on {
        let heard = tokio::select! {
            heard = line(&stream, &mut heard) => heard,
            () = deleted.notified() => {
                let said = Said::Error(port_deleted(&name));
                say(&mut stream, &said).await;
                break;
            }
        };
        let (text, fds) = match heard {
            Ok((text, _)) if text.is_empty() => break,
            Ok(got) => got,
            Err(e) => {
                tracing::warn!(port = name, "the session of a container ends: {e}");
                break;
            }
        };
        let done = match (serde_json::from_slice(&text), one(fds)) {
            (Ok(Line::Queue(_)), Some(fd)) => api::lock(plane).attach(&name, id, fd),
            (Ok(Line::Queue(_)), None) => Err(refused("no descriptor came")),
            (Ok(Line::Publish(list)), _) => api::lock(plane).publish_for(&name, id, list),
            (Ok(Line::Attach(_)), _) => Err(refused("a container is attached by this connection")),
            (Err(e), _) => Err(refused(e.to_string())),
        };
        let said = done.map_or_else(Said::Error, |()| Said::Done(true));
        goes_on = say(&mut stream, &said).await;
    }
    api::lock(plane).end_session(&name, id);
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

/// The client's side: hands a listener over, with a socket of the container's namespace. Waits for the answer, but not for long: it is asked
/// between two calls that are to be answered. The connection ends with the daemon.
pub(crate) fn send_listener(
    socket: &Path,
    port: &str,
    fds: &[OwnedFd; 2],
) -> io::Result<Result<std::os::unix::net::UnixStream, Refusal>> {
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsFd;
    let mut stream = std::os::unix::net::UnixStream::connect(path_beside(socket))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let switch = Switch { port: port.into() };
    let mut text = serde_json::to_vec(&SwitchLine { switch })?;
    text.push(b'\n');
    let [listener, routes] = fds;
    let sent = scm::send(&stream, &text, &[listener.as_fd(), routes.as_fd()])?;
    stream.write_all(text.get(sent..).unwrap_or_default())?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    if let Ok(e) = serde_json::from_str::<ErrorBody>(&answer) {
        return Ok(Err(e.error));
    }
    match serde_json::from_str(&answer)? {
        Said::Done(_) => Ok(Ok(stream)),
        Said::Error(e) | Said::Taken(e) => Ok(Err(e)),
        Said::Given(_) => Err(io::ErrorKind::InvalidData.into()),
    }
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
