//! Containers whose runtime hands the listener over: `linux.seccomp.listenerPath` of the OCI runtime specification.
//!
//! The runtime (runc, crun) connects to the unix stream socket `SOCKET.seccomp`, sends the state of the container's process as JSON
//! with the descriptors that its `fds` names, and closes. `listenerMetadata` is the name of the port; without it, the port is the one
//! whose container is in the same network namespace. It isn't answered, and the container runs on whatever becomes of it: so whoever we can do
//! nothing for is told to go on by the network with each call.

use super::{Listener, Routes, take_up};
use crate::api::{self, Shared};
use crate::netns;
use crate::refusal::Refusal;
use serde::Deserialize;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use vswitch_core::sys::scm;

/// Most bytes of a state, which has the annotations of the container.
const LIMIT: usize = 1 << 20;
/// It must be here within this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The listener among the descriptors.
const LISTENER: &str = "seccompFd";

/// `ContainerProcessState`, as far as it matters.
#[derive(Debug, Deserialize)]
struct ProcessState {
    #[serde(default)]
    fds: Vec<String>,
    pid: i32,
    #[serde(default)]
    metadata: String,
}

/// Path of this socket beside a control socket.
#[must_use]
pub(crate) fn path_beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".seccomp");
    PathBuf::from(path)
}

/// Takes up what a runtime sends.
pub(crate) async fn connection(stream: UnixStream, admitted: Result<(), Refusal>, plane: &Shared) {
    let got = tokio::time::timeout(TIMEOUT, message(&stream)).await;
    let got = got.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (state, fd) = match got {
        Ok(got) => got,
        Err(e) => return tracing::warn!("a runtime hands over a seccomp listener: {e}"),
    };
    let mut listener = Listener {
        port: String::new(),
        fd,
        routes: None,
    };
    let pid = state.pid;
    match admitted
        .map_err(|e| e.to_string())
        .and_then(|()| place(plane, &state))
    {
        Ok((port, routes)) => {
            tracing::info!(port, pid, "sockets are switched for a container");
            (listener.port, listener.routes) = (port, Some(routes));
        }
        Err(why) => tracing::warn!(pid, "sockets aren't switched for a container: {why}"),
    }
    if let Err(e) = take_up(plane, listener) {
        tracing::error!("{e}");
    }
}

async fn message(stream: &UnixStream) -> io::Result<(ProcessState, OwnedFd)> {
    let (mut text, mut fds, mut buf) = (Vec::new(), Vec::new(), vec![0; 16 << 10]);
    loop {
        let got = stream
            .async_io(Interest::READABLE, || scm::recv(stream, &mut buf))
            .await;
        let (n, more) = got?;
        fds.extend(more);
        text.extend_from_slice(buf.get(..n).unwrap_or_default());
        if text.len() > LIMIT || fds.len() > scm::MAX_FDS {
            return Err(io::Error::other("it is too long"));
        }
        // It is one message, whose end is that of the JSON.
        match serde_json::from_slice::<ProcessState>(&text) {
            Ok(state) => {
                let at = state.fds.iter().position(|n| n == LISTENER);
                let at = at.filter(|at| *at < fds.len());
                let at = at.ok_or_else(|| io::Error::other("it has no seccompFd"))?;
                return Ok((state, fds.swap_remove(at)));
            }
            Err(e) if n == 0 || !e.is_eof() => return Err(e.into()),
            Err(_) => {}
        }
    }
}

/// The port of a container, and its routes.
fn place(plane: &Shared, state: &ProcessState) -> Result<(String, Routes), String> {
    let port = match &state.metadata {
        name if !name.is_empty() => name.clone(),
        _ => {
            let path = netns::path_of(&format!("pid:{}", state.pid));
            let namespace = netns::identity(&path).ok_or("its process has ended")?;
            let plane = api::lock(plane);
            let port = plane.port_in(namespace);
            let none = "no port is in its network namespace; name one in listenerMetadata";
            port.ok_or(none)?.to_owned()
        }
    };
    api::lock(plane)
        .may_listen(&port)
        .map_err(|e| e.to_string())?;
    let opened = super::routes::open_at(state.pid)?;
    let routes = Routes::of(opened).map_err(|e| e.to_string())?;
    Ok((port, routes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say_is_read() {
        let runc = r#"{"ociVersion":"0.2.0","fds":["seccompFd"],"pid":4422,"pidFd":-1,"metadata":"web",
            "state":{"ociVersion":"0.2.0","id":"c","status":"creating","pid":4422,"bundle":"/b"}}"#;
        let state: ProcessState = serde_json::from_str(runc).unwrap();
        assert_eq!((state.pid, state.metadata.as_str()), (4422, "web"));
        assert_eq!(state.fds, [LISTENER]);
        let half = serde_json::from_str::<ProcessState>(&runc[..40]).unwrap_err();
        assert!(half.is_eof());
    }
}
