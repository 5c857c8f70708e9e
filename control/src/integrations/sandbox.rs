//! What a process of one container gives up once it has what it needs: files, privileges, system calls.
//!
//! # Theory of operation
//!
//! [`enter`] is for before there are threads, which inherit it, and for after namespaces were left ([`super::isolate`]): no program is run
//! with more rights (no_new_privs), no capability is kept but by who has that for ports below 1024 and may publish ports, and of the file
//! system only the places are left where resolvers are named, and the random source; where ports are followed, /proc too, in which Landlock
//! closes what belongs to other processes. Kernels without Landlock do without.
//!
//! [`enter_daemon`] is the same for `vswitchd` where that is asked for. It keeps its namespaces: in a user namespace of its own neither
//! containers' namespaces would be its to enter nor the users on its control socket be known, in a PID namespace containers' processes would
//! have no numbers. Landlock closes other processes' namespaces to it, too, so containers come to it by hand-over only, and attaching them by
//! process or path is refused.
//!
//! [`confine_calls`] is for when all threads run: a list of system calls that are made, found by tracing and by what the standard library
//! may fall back to. Others fail with EPERM, and sockets are of the families that are used.

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope,
};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use vswitch_core::sys::userns;

/// Rights that are taken away, as far as the kernel knows them.
const FILES: ABI = ABI::V5;
const SCOPES: ABI = ABI::V6;
/// Where lists of resolvers are.
pub(super) const RESOLVERS: [&str; 5] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/connman",
];

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// Capabilities.
    #[error("giving up capabilities: {0}")]
    Capabilities(String),
    /// The file system.
    #[error("giving up the file system (Landlock): {0}")]
    Files(String),
    /// System calls.
    #[error("giving up system calls (seccomp): {0}; does the kernel have CONFIG_SECCOMP_FILTER?")]
    Calls(String),
    /// no_new_privs.
    #[error("giving up new privileges: {0}")]
    Privileges(io::Error),
}

/// What is still needed of the file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// What this process of the container listens on is looked up.
    pub(crate) process: Option<i32>,
    /// What the host listens on is looked up.
    pub(crate) host: bool,
    /// A unix socket that is bound, and removed in the end.
    pub(crate) socket: Option<PathBuf>,
    /// The same of a control socket, which is this process's to remove.
    pub(crate) control: Option<PathBuf>,
    /// The socket of a daemon that may be connected to anew.
    pub(crate) daemon: Option<PathBuf>,
    /// Ports of the host may be published.
    pub(crate) ports: bool,
}

impl Reach {
    /// Whether the capability for ports below 1024 is kept: it is had, it counts, and there is a use for it.
    pub(super) fn keeps_bind(&self) -> bool {
        let has = || caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE);
        self.ports && has().unwrap_or(false) && userns::rules_own_network().unwrap_or(true)
    }
}

/// Gives up files and privileges, for this thread and those that it starts; `bind`: but for that of ports below 1024.
pub(super) fn enter(reach: &Reach, bind: bool) -> Result<(), SandboxError> {
    give_up_privileges(bind)?;
    give_up_files(reach, &[]).map_err(|e| SandboxError::Files(e.to_string()))
}

/// The same for a daemon, which keeps directories to write to.
pub(crate) fn enter_daemon(kept: &[PathBuf]) -> Result<(), SandboxError> {
    let reach = Reach {
        ports: true,
        // The sockets of any.
        process: Some(1),
        ..Reach::default()
    };
    let bind = reach.keeps_bind();
    // By who may leave them.
    let _ = unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS);
    crate::netns::give_up();
    give_up_privileges(bind)?;
    give_up_files(&reach, kept).map_err(|e| SandboxError::Files(e.to_string()))
}

/// Gives up what is beyond an ordinary user, but for the ports where `bind`.
pub(super) fn give_up_privileges(bind: bool) -> Result<(), SandboxError> {
    nix::sys::prctl::set_no_new_privs().map_err(|e| SandboxError::Privileges(e.into()))?;
    give_up_capabilities(bind).map_err(|e| SandboxError::Capabilities(e.to_string()))
}

fn give_up_capabilities(keeps: bool) -> Result<(), caps::errors::CapsError> {
    let bind = Capability::CAP_NET_BIND_SERVICE;
    for cap in caps::runtime::thread_all_supported() {
        if !(keeps && cap == bind) && caps::has_cap(None, CapSet::Bounding, cap)? {
            // Who may not has none to lose, and by no_new_privs gains none.
            let _ = caps::drop(None, CapSet::Bounding, cap);
        }
    }
    let kept: CapsHashSet = keeps.then_some(bind).into_iter().collect();
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)
}

/// Lets a place be reached, if it is there.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(rules),
    }
}

fn give_up_files(reach: &Reach, kept: &[PathBuf]) -> Result<(), landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(FILES))?
        .scope(Scope::from_all(SCOPES))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut places: Vec<PathBuf> = RESOLVERS.iter().map(PathBuf::from).collect();
    // Where the list is now, behind symbolic links.
    let list = std::fs::canonicalize(crate::follow::RESOLV_CONF).ok();
    places.extend(list.and_then(|l| l.parent().map(Path::to_owned)));
    if reach.process.is_some() || reach.host {
        places.push("/proc".into());
    }
    for place in &places {
        rules = allow(rules, place, read)?;
    }
    let one = BitFlags::from_flag(AccessFs::ReadFile);
    // The ports that the kernel gives out, and those that take a privilege.
    for file in ["/dev/urandom", "/proc/sys/net/ipv4"] {
        rules = allow(rules, Path::new(file), one)?;
    }
    let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::Refer;
    let make = AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::MakeDir;
    for dir in kept {
        rules = allow(rules, dir, read | write | make | AccessFs::RemoveFile)?;
    }
    if !kept.is_empty() {
        // Devices that were made for this user.
        let all = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = allow(rules, Path::new("/dev/net/tun"), all)?;
    }
    for socket in [&reach.socket, &reach.control].into_iter().flatten() {
        let dir = socket.parent().filter(|d| !d.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        rules = allow(rules, dir, AccessFs::MakeSock | AccessFs::RemoveFile)?;
    }
    rules.restrict_self().map(drop)
}

/// System calls that are made, beside socket(2).
const CALLS: &[libc::c_long] = &[
    // Sockets, and what their flows do.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_tee,
    // Descriptors: TAP queues, lists of resolvers.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, signals, the end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_wait4,
];

/// Those that only some machines have.
#[cfg(target_arch = "x86_64")]
const OF_MACHINE: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_unlink,
];

#[cfg(target_arch = "x86_64")]
const KEEPS_OF_MACHINE: &[libc::c_long] = &[libc::SYS_chmod, libc::SYS_mkdir, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const KEEPS_OF_MACHINE: &[libc::c_long] = &[];
#[cfg(not(target_arch = "x86_64"))]
const OF_MACHINE: &[libc::c_long] = &[];

/// Those that a daemon makes besides: its state is written.
const KEEPS: &[libc::c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_umask,
];

/// Those of a process that only waits for another's end, and removes a socket then.
const WAITS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_kill,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_unlinkat,
    libc::SYS_wait4,
    libc::SYS_write,
];

/// Those of a process that opens sockets where another one can't any more, and looks whether a namespace is there.
const OPENS: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
];

/// Sockets that are opened.
const FAMILIES: &[libc::c_int] = &[
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_UNIX,
    libc::AF_NETLINK,
];

fn program(
    calls: &[libc::c_long],
    families: &[libc::c_int],
) -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = calls.iter().chain(OF_MACHINE);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|c| (*c, Vec::new())).collect();
    let family = |f: libc::c_int| {
        let (op, value) = (SeccompCmpOp::Eq, f.unsigned_abs().into());
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value)?;
        SeccompRule::new(vec![is])
    };
    let sockets: Vec<_> = families
        .iter()
        .copied()
        .map(family)
        .collect::<Result<_, _>>()?;
    // None is for any family.
    if !sockets.is_empty() {
        rules.insert(libc::SYS_socket, sockets);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, machine)?.try_into()
}

/// Gives up system calls that aren't needed, for all threads.
pub(crate) fn confine_calls() -> Result<(), SandboxError> {
    confine(CALLS, FAMILIES)
}

/// The same for a daemon.
pub(crate) fn confine_daemon() -> Result<(), SandboxError> {
    confine(&[CALLS, KEEPS, KEEPS_OF_MACHINE].concat(), FAMILIES)
}

/// The same for a process that only waits.
pub(super) fn confine_waiting() -> Result<(), SandboxError> {
    confine(WAITS, &[])
}

/// The same for one that opens sockets, which may keep the capability for ports below 1024.
pub(super) fn confine_opening() -> Result<(), SandboxError> {
    let bind = caps::has_cap(None, CapSet::Permitted, Capability::CAP_NET_BIND_SERVICE);
    give_up_privileges(bind.unwrap_or(false))?;
    confine(OPENS, &[libc::AF_INET, libc::AF_INET6])
}

fn confine(calls: &[libc::c_long], families: &[libc::c_int]) -> Result<(), SandboxError> {
    nix::sys::prctl::set_no_new_privs().map_err(|e| SandboxError::Privileges(e.into()))?;
    let program = program(calls, families).map_err(|e| SandboxError::Calls(e.to_string()))?;
    let done = seccompiler::apply_filter_all_threads(&program);
    done.map_err(|e| SandboxError::Calls(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn files_are_out_of_reach_and_privileges_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("private");
        std::fs::write(&private, "secret").unwrap();
        let socket = dir.path().join("socket");
        // It holds for the thread alone, so the other tests go on.
        let inside = || {
            assert!(File::open(&private).is_ok());
            let reach = Reach {
                socket: Some(socket.clone()),
                ..Reach::default()
            };
            enter(&reach, true).unwrap();
            if std::fs::read_to_string("/sys/kernel/security/lsm")
                .is_ok_and(|l| !l.contains("landlock"))
            {
                return;
            }
            let denied = |r: io::Result<File>| {
                assert_eq!(
                    r.map(drop).map_err(|e| e.kind()),
                    Err(io::ErrorKind::PermissionDenied)
                );
            };
            denied(File::open(&private));
            denied(File::create(dir.path().join("new")));
            denied(File::open("/proc/self/environ"));
            assert!(File::open("/etc/resolv.conf").is_ok() && File::open("/dev/urandom").is_ok());
            assert!(std::os::unix::net::UnixListener::bind(&socket).is_ok());
            assert!(std::fs::remove_file(&socket).is_ok());
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());
            let kept = caps::read(None, CapSet::Permitted).unwrap();
            assert!(kept.iter().all(|c| *c == Capability::CAP_NET_BIND_SERVICE));
        };
        std::thread::scope(|s| s.spawn(inside).join().unwrap());
    }

    #[test]
    fn the_list_of_calls_makes_a_program() {
        assert!(program(CALLS, FAMILIES).unwrap().len() > CALLS.len());
        assert!(program(WAITS, &[]).unwrap().len() > WAITS.len());
        assert!(program(OPENS, FAMILIES).unwrap().len() > OPENS.len());
    }
}
