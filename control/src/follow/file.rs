//! A file that others replace: written in place, renamed over, behind symbolic links that are turned elsewhere, or not there yet.
//!
//! # Theory of operation
//!
//! Watched (inotify(7)) are directories, for the names in them that matter: that of the file and of each symbolic link on the way, and
//! where a directory is missing, its own name in the nearest one that is there. After each change of such a name the way is
//! walked anew. The watches are set before a change is told, so who reads the file then misses nothing. A file that is mounted
//! over the name isn't told of.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Component, Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// Symbolic links followed (Linux: 40 of a path).
const LINKS: usize = 40;

/// An inotify descriptor as tokio wants it.
#[derive(Debug)]
struct Watcher(Inotify);

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells of changes.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    watcher: AsyncFd<Watcher>,
    /// Names that matter, by directory.
    watched: BTreeMap<WatchDescriptor, Vec<OsString>>,
}

impl Follower {
    /// `path` is absolute.
    pub(super) fn open(path: &Path) -> io::Result<Follower> {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the descriptor is owned by what is given away"
        )]
        let watcher = AsyncFd::new(Watcher(Inotify::init(flags)?))?;
        let mut follower = Follower {
            path: path.to_owned(),
            watcher,
            watched: BTreeMap::new(),
        };
        follower.watch();
        Ok(follower)
    }

    /// Waits for a change.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.watcher.readable().await?;
            let events = match ready.get_inner().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            if events.iter().any(|e| self.matters(e)) {
                self.watch();
                return Ok(());
            }
        }
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        let name = event.name.as_ref();
        let names = self.watched.get(&event.wd);
        match name {
            Some(name) => names.is_some_and(|n| n.contains(name)),
            // The directory itself has gone, or events were lost. A watch that we have taken away says so too.
            None => names.is_some() || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW),
        }
    }

    /// Watches the way to the file as it is.
    fn watch(&mut self) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let inotify = &self.watcher.get_ref().0;
        let mut watched: BTreeMap<WatchDescriptor, Vec<OsString>> = BTreeMap::new();
        walk(&self.path, |directory, name| {
            // One that may not be watched is found by who looks now and then.
            if let Ok(wd) = inotify.add_watch(&directory, flags) {
                watched.entry(wd).or_default().push(name);
            }
        });
        for gone in self.watched.keys().filter(|wd| !watched.contains_key(wd)) {
            // It may have gone by itself.
            let _ = inotify.rm_watch(*gone);
        }
        self.watched = watched;
    }
}

/// Goes the way to a file, by the symbolic links on it. Each directory is told, with the name in it that leads on, before that is looked at.
fn walk(path: &Path, mut told: impl FnMut(PathBuf, OsString)) {
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let Some((directory, name)) = nearest(&at) else {
            return;
        };
        told(directory, name);
        let Ok(target) = std::fs::read_link(&at) else {
            return;
        };
        // Relative to where the link is, by whatever way that was reached.
        at = match at.parent() {
            Some(parent) => normal(&parent.join(target)),
            None => target,
        };
    }
}

/// The directories on the way to a file.
pub(super) fn directories(path: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    walk(path, |directory, _| all.push(directory));
    all
}

/// The nearest directory above a path that is there, and the name in it that leads on.
fn nearest(path: &Path) -> Option<(PathBuf, OsString)> {
    let mut at = path;
    loop {
        let (parent, name) = (at.parent()?, at.file_name()?);
        if parent.is_dir() {
            // inotify watches what a link leads to.
            return Some((parent.to_owned(), name.to_owned()));
        }
        at = parent;
    }
}

/// Without `..`: a directory that isn't there yet can't be gone through.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                // `..` of a symbolic link is above where it leads.
                if let Ok(real) = out.canonicalize() {
                    out = real;
                }
                out.pop();
            }
            Component::CurDir => {}
            _ => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    /// Waits for changes until the file reads `wanted`.
    async fn reads(follower: &mut Follower, wanted: &str) {
        let limit = Duration::from_secs(20);
        loop {
            let change = tokio::time::timeout(limit, follower.changed()).await;
            change.expect("a change is told").expect("inotify");
            if fs::read_to_string(&follower.path).is_ok_and(|t| t == wanted) {
                return;
            }
        }
    }

    async fn is_quiet(follower: &mut Follower) {
        let pause = Duration::from_millis(100);
        while tokio::time::timeout(pause, follower.changed())
            .await
            .is_ok()
        {}
    }

    #[tokio::test]
    async fn a_file_is_followed_wherever_it_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("etc")).expect("made");
        let path = at("etc/resolv.conf");
        // It isn't there yet.
        let mut f = Follower::open(&path).expect("inotify");
        fs::write(&path, "1").expect("written");
        reads(&mut f, "1").await;
        fs::write(&path, "2").expect("written");
        reads(&mut f, "2").await;
        let over = |text: &str| {
            fs::write(at("etc/new"), text).expect("written");
            fs::rename(at("etc/new"), &path).expect("renamed");
        };
        over("3");
        reads(&mut f, "3").await;
        // Others in the directory are nothing to us.
        is_quiet(&mut f).await;
        fs::write(at("etc/other"), "x").expect("written");
        let told = tokio::time::timeout(Duration::from_millis(200), f.changed()).await;
        assert!(told.is_err(), "another file is told of");
        // A link whose target's directories come later, replaced as systemd does.
        symlink("../run/resolve/stub.conf", at("etc/new")).expect("made");
        fs::rename(at("etc/new"), &path).expect("renamed");
        fs::create_dir_all(at("run/resolve")).expect("made");
        fs::write(at("run/resolve/.stub"), "4").expect("written");
        fs::rename(at("run/resolve/.stub"), at("run/resolve/stub.conf")).expect("renamed");
        reads(&mut f, "4").await;
        fs::write(at("run/resolve/.stub"), "5").expect("written");
        fs::rename(at("run/resolve/.stub"), at("run/resolve/stub.conf")).expect("renamed");
        reads(&mut f, "5").await;
        // Its directory goes and comes.
        fs::remove_dir_all(at("run/resolve")).expect("removed");
        is_quiet(&mut f).await;
        fs::create_dir(at("run/resolve")).expect("made");
        fs::write(at("run/resolve/stub.conf"), "6").expect("written");
        reads(&mut f, "6").await;
        // And a file again.
        over("7");
        reads(&mut f, "7").await;
        fs::write(at("run/resolve/stub.conf"), "8").expect("written");
        over("9");
        reads(&mut f, "9").await;
    }
}
