//! Namespaces of its own for the process that serves a container.
//!
//! # Theory of operation
//!
//! [`leave`] has this process enter a user namespace in which it is itself and nobody else exists, and its next child be the first of a PID
//! namespace; both at once or neither. [`settle`] is that child's: mounts, System V IPC, host name and cgroup are its own, and its root is an
//! empty file system in memory, in which only the directories are mounted, for reading, that hold the list of resolvers, and, as far as
//! they are needed, the tables of sockets of the container's process and the directory of a daemon's socket, beside the random source. Directories and not files, so
//! that what is renamed over a file in them is seen. Then it gives up the rest ([`sandbox`]).
//!
//! Somebody outside has to wait for the child ([`run`]), by whose number callers know it: that process passes on signals, ends with the
//! child's code, removes its socket, and can do nothing else. If it is killed, the child is (PR_SET_PDEATHSIG). A process that goes to the
//! background needs none.
//!
//! Where a right counts that a user namespace would take away, the one for ports below 1024 of a real root, the user namespace is kept, and
//! only that right in it. Where the kernel forbids namespaces, it goes on without; and a process with a control socket does ([`Left::stays`]).

use super::sandbox::{self, RESOLVERS, Reach, SandboxError};
use super::single::{Ends, SingleError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, getegid, geteuid, pivot_root};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use vswitch_core::sys::{child, pidfd};

/// Where the new root is mounted before it is the root: it is there, since the TAP device came from there, and nothing is needed of it.
const BASE: &str = "/dev";
/// The new root has room for mount points.
const ROOM: &str = "mode=755,size=256k,nr_inodes=512";
/// Settings of the host's network that are read.
const SETTINGS: &str = "/proc/sys/net/ipv4";
/// Where random numbers come from; no directory.
const RANDOM: &str = "/dev/urandom";

const PRIVATE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// How far this process has left its namespaces, or what forbade it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// None that forbade it: it wasn't wanted.
    apart: Result<(), Option<Errno>>,
    /// The capability for ports below 1024 is kept.
    bind: bool,
}

/// Leaves the user namespace, and has the next child be in a PID namespace of its own. To be called before there are threads.
pub(super) fn leave(reach: &Reach) -> Left {
    let bind = reach.keeps_bind();
    let apart = match bind {
        true => unshare(CloneFlags::CLONE_NEWPID),
        false => unshare_user().or_else(|e| {
            // Who is privileged needs no user namespace for it.
            unshare(CloneFlags::CLONE_NEWPID).map_err(|_| e)
        }),
    };
    let apart = apart.map_err(Some);
    Left { apart, bind }
}

fn unshare_user() -> nix::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    let written = fs::write("/proc/self/uid_map", format!("{user} {user} 1"))
        .and_then(|()| fs::write("/proc/self/setgroups", "deny"))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")));
    if let Err(e) = written {
        // Then it is nobody there, which is enough for all but a root of its own.
        tracing::debug!("naming the user in a user namespace: {e}");
    }
    Ok(())
}

impl Left {
    /// Where the process stays in its namespaces: its control socket is known by its number, and is its own to remove.
    pub(super) fn stays(reach: &Reach) -> Left {
        Left {
            apart: Err(None),
            bind: reach.keeps_bind(),
        }
    }

    /// Tells what was forbidden to who has asked for it.
    pub(super) fn tell(&self, option: &str) {
        if let Err(Some(e)) = self.apart {
            tracing::warn!(
                "{option}: it goes on without namespaces of its own ({e}), with all else given up: are user namespaces forbidden \
                 (`sysctl user.max_user_namespaces kernel.unprivileged_userns_clone`)?"
            );
        }
    }

    /// In the process that serves: gives up what there is to give up.
    pub(super) fn settle(&self, reach: &Reach) -> Result<(), SandboxError> {
        if self.apart.is_err() {
            return sandbox::enter(reach, self.bind);
        }
        if let Err((act, e)) = settle(reach) {
            tracing::warn!("{act}: {e}: the host's files are kept away by other means");
        }
        // Who waits outside removes the socket.
        let reach = Reach {
            socket: None,
            ..reach.clone()
        };
        sandbox::enter(&reach, self.bind)
    }
}

/// Runs `serve` in namespaces of its own, and waits for its end; the code it ends with. `calls`: system calls are given up too. Where that is
/// forbidden it runs here.
pub(super) fn run(
    left: Left,
    reach: &Reach,
    calls: bool,
    serve: impl FnOnce() -> u8,
) -> Result<u8, SingleError> {
    let remove = || reach.socket.as_ref().map(fs::remove_file);
    if left.apart.is_err() {
        let served = left.settle(reach).map(|()| serve());
        let _ = remove();
        return Ok(served?);
    }
    let failed = |act| move |source| SingleError::System { act, source };
    // Its signals are blocked in the child, too, until somebody reads them.
    let ends = Ends::new()?;
    let own = pidfd::open(std::process::id().cast_signed());
    let own = own.map_err(failed("opening the process itself"))?;
    let inner = move || {
        if !stays_with(&own) {
            return 1;
        }
        match left.settle(reach) {
            Ok(()) => serve(),
            Err(e) => {
                tracing::error!("{e}");
                1
            }
        }
    };
    let served = child::run(inner).map_err(failed("starting a process of its own namespaces"))?;
    let process = pidfd::open(served.as_raw()).map_err(failed("watching the process"))?;
    sandbox::give_up_privileges(false)?;
    if calls {
        sandbox::confine_waiting()?;
    }
    let code = wait(served, &process, &ends).map_err(failed("waiting for the process"))?;
    let _ = remove();
    Ok(code)
}

/// The child ends when its parent does; false if that has ended.
fn stays_with(parent: &OwnedFd) -> bool {
    let set = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    set.is_ok() && poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}

/// Passes on signals until the process has ended.
fn wait(pid: Pid, process: &OwnedFd, ends: &Ends) -> io::Result<u8> {
    loop {
        let mut fds = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(ends.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ended = fds[0].any() == Some(true);
        if let Some(signal) = ends.come() {
            // It isn't waited for yet, so the number is its own.
            let _ = kill(pid, signal);
        }
        if ended {
            return match waitpid(pid, None)? {
                WaitStatus::Exited(_, code) => Ok(u8::try_from(code).unwrap_or(1)),
                WaitStatus::Signaled(_, signal, _) => {
                    tracing::error!("the process that serves was ended by {signal}");
                    Ok(1)
                }
                _ => Ok(1),
            };
        }
    }
}

/// What couldn't be done, and why.
type Failed = (&'static str, Errno);

/// In the first process of a PID namespace: the other namespaces, and a root of its own.
fn settle(reach: &Reach) -> Result<(), Failed> {
    let failed = |act: &'static str| move |e: Errno| (act, e);
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(own).map_err(failed("leaving namespaces"))?;
    // Kernels without cgroups have none to leave.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    let none: Option<&Path> = None;
    // Nothing that is done here is seen outside; what is mounted there, here.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(failed("leaving shared mounts"))?;
    // Held before the new root covers any of them.
    let kept: Vec<_> = places(reach)
        .into_iter()
        .filter_map(|p| Some((held(&p).ok()?, p)))
        .collect();
    mount(Some("tmpfs"), BASE, Some("tmpfs"), PRIVATE, Some(ROOM))
        .map_err(failed("mounting a root of its own"))?;
    for (held, place) in kept {
        if let Err(e) = keep(&held, &place) {
            tracing::debug!("keeping {}: {e}", place.display());
        }
    }
    // The old root comes to lie upon the new one, and is taken off.
    chdir(BASE).map_err(failed("entering a root of its own"))?;
    pivot_root(".", ".").map_err(failed("changing the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leaving the old root"))?;
    chdir("/").map_err(failed("entering a root of its own"))?;
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | PRIVATE;
    mount(none, "/", none, remount, none).map_err(failed("closing a root of its own"))
}

/// What is kept of the file system, none of it in another.
fn places(reach: &Reach) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = RESOLVERS.iter().map(PathBuf::from).collect();
    all.extend(crate::follow::resolver_directories());
    let list = fs::canonicalize(crate::follow::RESOLV_CONF).ok();
    all.extend(list.and_then(|l| l.parent().map(Path::to_owned)));
    all.extend([SETTINGS, RANDOM].map(PathBuf::from));
    all.extend(reach.process.map(|p| format!("/proc/{p}/net").into()));
    all.extend(reach.host.then(|| crate::listening::OF_HOST.into()));
    let daemon = reach.daemon.as_ref().and_then(|s| s.parent());
    all.extend(daemon.map(Path::to_owned));
    // The root isn't kept, and what comes first in this order holds what follows.
    all.retain(|p| p.exists() && p.parent().is_some());
    all.sort();
    all.dedup_by(|next, before| next.starts_with(before));
    all
}

fn held(place: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open(place, flags, Mode::empty())
}

/// Mounts a directory at its place in the new root, for reading, or a device.
fn keep(held: &OwnedFd, place: &Path) -> io::Result<()> {
    let to = Path::new(BASE).join(place.strip_prefix("/").unwrap_or(place));
    let is_directory = place.is_dir();
    match to.parent() {
        Some(parent) if !is_directory => {
            fs::create_dir_all(parent)?;
            fs::File::create(&to)?;
        }
        _ => fs::create_dir_all(&to)?,
    }
    let from = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let none: Option<&Path> = None;
    // With what is mounted in it: a list of resolvers may be.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&from), &to, none, bind, none)?;
    if !is_directory {
        return Ok(());
    }
    // A user namespace may take no flag away, and has to name those that there are, by the same bits.
    let flags = statvfs(&to)?.flags().bits();
    let mut all = MsFlags::from_bits_truncate(flags);
    if all.intersects(MsFlags::MS_NOATIME) {
        all.remove(MsFlags::MS_RELATIME);
    } else {
        all.insert(MsFlags::MS_RELATIME);
    }
    let all = all | PRIVATE | MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    if let Err(e) = mount(none, &to, none, all, none) {
        // It isn't this user's to write to, and Landlock forbids that besides.
        tracing::debug!("mounting {} for reading: {e}", place.display());
    }
    Ok(())
}
