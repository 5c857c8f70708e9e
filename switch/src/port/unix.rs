//! What the unix socket ports (stream, dgram) share: addresses, making sockets, stale files, back-off.
//!
//! A socket file we make is for our user alone (mode 0600) and is removed with the port. A file left by a process that
//! died is replaced; one that somebody still serves is not.

use crate::clock::Nanos;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a unix socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A file; at most 107 bytes.
    Path(PathBuf),
    /// A name in the abstract namespace of the network namespace, without the leading zero byte. Anybody in that
    /// namespace may connect: use it with a user check.
    Abstract(Vec<u8>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(p) => write!(f, "{}", p.display()),
            Address::Abstract(n) => write!(f, "@{}", String::from_utf8_lossy(n)),
        }
    }
}

/// What went wrong with a unix socket.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// The address can't be one.
    #[error("`{0}` can't be a unix socket address: use a path of 1 to 107 bytes")]
    Address(Address),
    /// A file is in the way.
    #[error("`{0}` exists and is not a socket: choose another path or remove it")]
    NotSocket(PathBuf),
    /// Somebody serves it.
    #[error("socket `{0}` is served by another process: stop it or choose another path")]
    InUse(Address),
    /// A system call failed.
    #[error(
        "{act} unix socket `{address}` failed: {source}; check that its directory exists and may be written"
    )]
    Socket {
        /// What was tried.
        act: &'static str,
        /// On which socket.
        address: Address,
        /// Kernel's answer.
        source: Errno,
    },
}

impl Address {
    pub(super) fn to_nix(&self) -> Result<UnixAddr, UnixError> {
        match self {
            Address::Path(p) if !p.as_os_str().is_empty() => UnixAddr::new(p.as_path()),
            Address::Path(_) => Err(Errno::EINVAL),
            Address::Abstract(n) => UnixAddr::new_abstract(n),
        }
        .map_err(|_| UnixError::Address(self.clone()))
    }

    fn err(&self, act: &'static str) -> impl FnOnce(Errno) -> UnixError {
        let address = self.clone();
        move |source| UnixError::Socket {
            act,
            address,
            source,
        }
    }

    fn socket(&self, kind: SockType) -> Result<OwnedFd, UnixError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        socket::socket(AddressFamily::Unix, kind, flags, None).map_err(self.err("making"))
    }
}

/// A socket file of ours: removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFile(Option<PathBuf>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(p) = &self.0 {
            let _ = fs::remove_file(p);
        }
    }
}

/// Makes a socket bound to `at`, replacing a stale file.
pub(super) fn bind(at: &Address, kind: SockType) -> Result<(OwnedFd, SocketFile), UnixError> {
    let addr = at.to_nix()?;
    let fd = at.socket(kind)?;
    if let Address::Path(p) = at {
        remove_stale(at, p, kind)?;
    }
    socket::bind(fd.as_raw_fd(), &addr).map_err(|e| match e {
        Errno::EADDRINUSE => UnixError::InUse(at.clone()),
        e => at.err("binding")(e),
    })?;
    let mut file = SocketFile(None);
    if let Address::Path(p) = at {
        file.0 = Some(p.clone());
        // Nobody can connect before `listen`; a datagram sent in between would only be a frame.
        fs::set_permissions(p, fs::Permissions::from_mode(0o600)).map_err(|e| {
            at.err("setting the mode of")(Errno::from_raw(e.raw_os_error().unwrap_or(0)))
        })?;
    }
    Ok((fd, file))
}

fn remove_stale(at: &Address, path: &Path, kind: SockType) -> Result<(), UnixError> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(UnixError::NotSocket(path.to_owned()));
    }
    match connect(at, kind) {
        Err(UnixError::Socket {
            source: Errno::ECONNREFUSED,
            ..
        }) => {
            let _ = fs::remove_file(path);
            Ok(())
        }
        _ => Err(UnixError::InUse(at.clone())),
    }
}

/// Makes a socket connected to `to`; doesn't block.
pub(super) fn connect(to: &Address, kind: SockType) -> Result<OwnedFd, UnixError> {
    let addr = to.to_nix()?;
    let fd = to.socket(kind)?;
    connect_fd(&fd, to, &addr)?;
    Ok(fd)
}

/// Connects a socket; doesn't block.
pub(super) fn connect_fd(fd: &OwnedFd, to: &Address, addr: &UnixAddr) -> Result<(), UnixError> {
    socket::connect(fd.as_raw_fd(), addr).map_err(to.err("connecting to"))
}

pub(super) fn listen(fd: &OwnedFd, at: &Address) -> Result<(), UnixError> {
    let backlog = Backlog::new(1).map_err(at.err("listening on"))?;
    socket::listen(fd, backlog).map_err(at.err("listening on"))
}

/// Whether the process at the other end runs as root or as one of `users`; an empty list allows anybody.
pub(super) fn peer_allowed(fd: impl AsFd, users: &[u32]) -> bool {
    users.is_empty()
        || socket::getsockopt(&fd, socket::sockopt::PeerCredentials)
            .is_ok_and(|c| c.uid() == 0 || users.contains(&c.uid()))
}

/// When to try again: 100 ms at first, doubled up to 5 s.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
    due: Nanos,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Backoff {
        Backoff {
            pause: Backoff::FIRST,
            due: Nanos(0),
        }
    }

    /// When it is due, if that isn't now.
    pub(super) fn wait(&self, now: Nanos) -> Option<Nanos> {
        (now < self.due).then_some(self.due)
    }

    pub(super) fn failed(&mut self, now: Nanos) -> Nanos {
        self.due = now.after(self.pause);
        self.pause = (self.pause * 2).min(Backoff::LONGEST);
        self.due
    }
}
