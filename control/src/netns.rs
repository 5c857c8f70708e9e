//! Work inside another network namespace.
//!
//! A thread is the unit that enters a namespace, so what must happen in one happens on a short-lived thread of its own, and no
//! thread of ours is ever left in the wrong place.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is no such namespace.
    #[error("opening network namespace {}: {source}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It can't be entered.
    #[error("entering network namespace {}: {source}", path.display())]
    Enter {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// None can.
    #[error("entering network namespace {}: that was given up with --sandbox", .0.display())]
    GivenUp(PathBuf),
}

/// Whether this process enters no namespaces any more.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// From now on no namespace is entered, nor opened.
pub(crate) fn give_up() {
    GIVEN_UP.store(true, Ordering::Relaxed);
}

/// Opens a namespace.
pub(crate) fn open(spec: &str) -> Result<File, NetnsError> {
    let path = path_of(spec);
    if GIVEN_UP.load(Ordering::Relaxed) {
        return Err(NetnsError::GivenUp(path));
    }
    File::open(&path).map_err(|source| NetnsError::Open { path, source })
}

impl NetnsError {
    /// Whether it is there, but not for us.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        match self {
            NetnsError::Open { source, .. } | NetnsError::Enter { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            NetnsError::GivenUp(_) => true,
        }
    }
}

/// Path of a namespace named by `pid:NUMBER`, a path, or a name under /run/netns.
#[must_use]
pub fn path_of(spec: &str) -> PathBuf {
    if let Some(pid) = pid_of(spec) {
        PathBuf::from(format!("/proc/{pid}/ns/net"))
    } else if spec.contains('/') {
        PathBuf::from(spec)
    } else {
        Path::new("/run/netns").join(spec)
    }
}

/// The process that a namespace is named by, if it is.
#[must_use]
pub fn pid_of(spec: &str) -> Option<i32> {
    spec.strip_prefix("pid:")?.parse().ok().filter(|p| *p > 0)
}

/// Which namespace that is: device and inode.
#[must_use]
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino()))
}

/// Runs `f` on a thread inside the namespace.
pub fn within<T: Send>(spec: &str, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let path = path_of(spec);
    let ns = open(spec)?;
    let enter = |source: io::Error| NetnsError::Enter {
        path: path.clone(),
        source,
    };
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(s, move || {
                setns(&ns, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::errno::Errno>(f())
            });
        match thread.map_err(enter)?.join() {
            Ok(Ok(v)) => Ok(v),
            Ok(Err(errno)) => Err(enter(io::Error::from(errno))),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(path_of("pid:12"), Path::new("/proc/12/ns/net"));
        assert_eq!(path_of("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
        assert_eq!(path_of("blue"), Path::new("/run/netns/blue"));
        assert_eq!(pid_of("pid:-3"), None);
    }
}
