//! The API's listener: a unix socket, and for metrics a TCP address of loopback when asked.
//!
//! Who may connect is decided by SO_PEERCRED: root, the daemon's own user, and members of the group given by
//! configuration. The socket's mode lets the group in, or nobody else. Connections, the head of a request and the time it may take
//! are bounded. A lock file beside the socket keeps a second daemon out; a socket left behind by a crash is replaced.

use crate::api::{self, Shared};
use crate::handover;
use crate::lockfile::{LockError, LockFile};
use crate::refusal::{Kind, Refusal};
use axum::Router;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 128;
/// The head of a request must come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request must be answered within this time; a stream of events only has to begin.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 16 << 10;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon has the socket.
    #[error("listening on {}: another vswitchd has it; stop it, or choose another with --socket", .0.display())]
    Taken(PathBuf),
    /// The system refused.
    #[error("listening on {thing}: {act}: {source}; choose another with {option}")]
    Listen {
        /// The socket or address.
        thing: String,
        /// What failed.
        act: &'static str,
        /// Why.
        source: io::Error,
        /// The option that chooses it.
        option: &'static str,
    },
    /// No such group.
    #[error("looking up group `{0}`: there is none; name one of /etc/group")]
    NoGroup(String),
    /// Metrics are for loopback only.
    #[error(
        "listening on {0} for metrics: it isn't a loopback address; use 127.0.0.1:PORT or [::1]:PORT"
    )]
    NotLoopback(SocketAddr),
}

/// A bound control socket; unlinked when dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
    admitted: Admitted,
    lock: LockFile,
}

/// Who may connect besides root. It is told beforehand, as the process may have given up asking who it is.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    user: u32,
    group: Option<u32>,
}

/// What is served: who connects, and who may.
#[derive(Debug)]
pub(crate) struct Door {
    listener: std::os::unix::net::UnixListener,
    admitted: Admitted,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(name) = self.path.file_name() {
            self.lock.remove_beside(name);
        }
    }
}

impl Socket {
    /// Binds the path; `group` may connect besides root and our own user.
    pub(crate) fn bind(path: &Path, group: Option<&str>) -> Result<Socket, ServerError> {
        let fail = |act: &'static str| {
            let thing = path.display().to_string();
            move |source: io::Error| ServerError::Listen {
                thing,
                act,
                source,
                option: "--socket",
            }
        };
        let group = match group {
            None => None,
            Some(name) => match nix::unistd::Group::from_name(name) {
                Ok(Some(g)) => Some(g.gid),
                _ => return Err(ServerError::NoGroup(name.to_owned())),
            },
        };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(fail("making its directory"))?;
        }
        let lock = LockFile::take(path).map_err(|e| match e {
            LockError::Taken => ServerError::Taken(path.to_owned()),
            LockError::Open(e) => fail("opening its lock file")(e),
        })?;
        match fs::symlink_metadata(path) {
            Ok(m) if std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()) => {
                fs::remove_file(path).map_err(fail("removing a stale socket"))?;
            }
            Ok(_) => {
                let it = io::Error::other("there is a file that isn't a socket");
                return Err(fail("binding")(it));
            }
            Err(_) => {}
        }
        // Nobody may connect between bind and chmod.
        let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let listener = std::os::unix::net::UnixListener::bind(path);
        nix::sys::stat::umask(mask);
        let listener = listener.map_err(fail("binding"))?;
        if let Some(gid) = group {
            nix::unistd::chown(path, None, Some(gid))
                .map_err(|e| fail("giving it to the group")(e.into()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))
                .map_err(fail("setting its mode"))?;
        }
        listener
            .set_nonblocking(true)
            .map_err(fail("making it non-blocking"))?;
        Ok(Socket {
            path: path.to_owned(),
            listener,
            admitted: Admitted {
                user: nix::unistd::geteuid().as_raw(),
                group: group.map(nix::unistd::Gid::as_raw),
            },
            lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To be served, as long as the socket is there.
    pub(crate) fn door(&self) -> io::Result<Door> {
        Ok(Door {
            listener: self.listener.try_clone()?,
            admitted: self.admitted,
        })
    }
}

/// Binds the metrics' address.
pub(crate) fn bind_metrics(address: SocketAddr) -> Result<std::net::TcpListener, ServerError> {
    if !address.ip().is_loopback() {
        return Err(ServerError::NotLoopback(address));
    }
    let listener = std::net::TcpListener::bind(address).and_then(|l| {
        l.set_nonblocking(true)?;
        Ok(l)
    });
    listener.map_err(|source| ServerError::Listen {
        thing: address.to_string(),
        act: "binding",
        source,
        option: "--metrics",
    })
}

/// Accepts connections until the future is dropped. `answer` gets each, with whether its peer may come in and its place among those that
/// there are at once, which is free again once that is dropped.
async fn accept<F>(
    door: Door,
    answer: impl Fn(UnixStream, Result<(), Refusal>, OwnedSemaphorePermit) -> F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = UnixListener::from_std(door.listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admitted = admit(&stream, door.admitted);
                tokio::spawn(answer(stream, admitted, place));
            }
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                // Out of file descriptors: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves the API until the future is dropped.
pub(crate) async fn serve(door: Door, plane: Shared) -> io::Result<()> {
    let router = api::router(plane);
    let answer = |stream, admitted: Result<(), Refusal>, place| {
        let router = match admitted {
            Ok(()) => router.clone(),
            Err(refusal) => refusing(refusal),
        };
        async move {
            connection(stream, router).await;
            drop(place);
        }
    };
    accept(door, answer).await
}

/// Serves `/metrics` alone on TCP until the future is dropped.
pub(crate) async fn serve_metrics(
    listener: std::net::TcpListener,
    plane: Shared,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let router = api::metrics_router(plane);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Serves the hand-over socket until the future is dropped.
pub(crate) async fn serve_handover(door: Door, plane: Shared) -> io::Result<()> {
    let answer = |stream, admitted, place| {
        let plane = plane.clone();
        async move { handover::connection(stream, admitted, &plane, place).await }
    };
    accept(door, answer).await
}

/// Serves the socket for runtimes until the future is dropped.
pub(crate) async fn serve_runtimes(door: Door, plane: Shared) -> io::Result<()> {
    let answer = |stream, admitted, place| {
        let plane = plane.clone();
        async move {
            crate::switching::oci::connection(stream, admitted, &plane).await;
            drop(place);
        }
    };
    accept(door, answer).await
}

/// Whether the peer may use the API.
fn admit(stream: &UnixStream, may: Admitted) -> Result<(), Refusal> {
    let reason = match stream.peer_cred() {
        Ok(peer) => {
            let grouped = |g| peer.gid() == g || is_member(peer.uid(), g);
            if peer.uid() == 0 || peer.uid() == may.user || may.group.is_some_and(grouped) {
                return Ok(());
            }
            format!("uid {} gid {} isn't allowed", peer.uid(), peer.gid())
        }
        Err(e) => format!("the peer isn't known: {e}"),
    };
    tracing::warn!(reason, "connection refused");
    Err(Refusal::new(
        Kind::Denied,
        "using",
        "the control socket",
        reason,
        "ask as root or as the daemon's user, or set `group` in its configuration",
    ))
}

/// Whether /etc/group has the user as a further member: SO_PEERCRED tells the primary group only.
fn is_member(uid: u32, gid: u32) -> bool {
    use nix::unistd::{Gid, Group, Uid, User};
    let group = Group::from_gid(Gid::from_raw(gid));
    let user = User::from_uid(Uid::from_raw(uid));
    matches!((group, user), (Ok(Some(g)), Ok(Some(u))) if g.mem.contains(&u.name))
}

/// Answers everything with a refusal.
fn refusing(refusal: Refusal) -> Router {
    Router::new().fallback(move || {
        let answer = api::refused(refusal.clone());
        async move { answer }
    })
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, router: Router) {
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |req: hyper::Request<Incoming>| {
        let answer = routes.call(req);
        async move {
            let answer: Result<Response, std::convert::Infallible> =
                match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
                    Ok(r) => r,
                    Err(_) => Ok(api::refused(Refusal::new(
                        Kind::Timeout,
                        "answering",
                        "the request",
                        format!("it took more than {} s", REQUEST_TIMEOUT.as_secs()),
                        "send the body at once, or try again",
                    ))
                    .into_response()),
                };
            answer
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT);
    // A client that goes away is no fault.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}
