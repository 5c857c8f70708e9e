//! A command in namespaces of its own: user, mount and network.
//!
//! # Theory of operation
//!
//! A child makes the namespaces, where it is root, says so, and waits until the network is there. Then it becomes the command. The network
//! ends with the command, and this process with the command's code. Should this process end first, the command is sent SIGHUP, as a shell's
//! terminal would.

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use vswitch_core::sys::{child, pidfd};

/// Longest text of a fault that comes from the child.
const TEXT: u64 = 1024;
/// What a shell ends with if there is no such command (POSIX 2.8.2), and adds to the number of a signal.
const NOT_FOUND: u8 = 127;
const BY_SIGNAL: i32 = 128;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("starting a command: {0}; raise the limit of processes")]
    Start(io::Error),
    #[error(
        "making a user and a network namespace: {0}; does the machine allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)?"
    )]
    Namespaces(String),
}

/// A command that waits for its network.
#[derive(Debug)]
pub(super) struct Started {
    pid: Pid,
    watch: OwnedFd,
    go: PipeWriter,
}

/// Starts it; without words it is the user's shell.
pub(super) fn start(words: &[String]) -> Result<Started, CommandError> {
    let mut words = words.to_vec();
    if words.is_empty() {
        let shell = std::env::var("SHELL").ok().filter(|s| !s.is_empty());
        words.push(shell.unwrap_or_else(|| "/bin/sh".to_owned()));
    }
    let (mut told, tell) = io::pipe().map_err(CommandError::Start)?;
    let (wait, go) = io::pipe().map_err(CommandError::Start)?;
    let mut ends = Some((tell, wait, go));
    let pid = child::run(|| match ends.take() {
        Some((tell, wait, go)) => {
            // Who waits for the end of a pipe mustn't hold it open.
            drop(go);
            become_it(&words, tell, wait)
        }
        None => NOT_FOUND,
    });
    let pid = pid.map_err(CommandError::Start)?;
    // The child has taken its own copies of them.
    let Some((tell, wait, go)) = ends else {
        return Err(CommandError::Start(io::ErrorKind::BrokenPipe.into()));
    };
    drop((tell, wait));
    let mut text = String::new();
    let heard = told.by_ref().take(TEXT).read_to_string(&mut text);
    heard.map_err(CommandError::Start)?;
    if !text.is_empty() {
        let _ = waitpid(pid, None);
        return Err(CommandError::Namespaces(text));
    }
    let watch = pidfd::open(pid.as_raw()).map_err(CommandError::Start)?;
    Ok(Started { pid, watch, go })
}

/// In the child.
fn become_it(words: &[String], mut tell: PipeWriter, mut wait: PipeReader) -> u8 {
    if let Err(e) = make_namespaces() {
        let _ = tell.write_all(e.to_string().as_bytes());
        return NOT_FOUND;
    }
    let _ = set_pdeathsig(Signal::SIGHUP);
    drop(tell);
    if !matches!(wait.read(&mut [0]), Ok(1)) {
        // What there is to be said our parent has.
        return NOT_FOUND;
    }
    let Some((name, rest)) = words.split_first() else {
        return NOT_FOUND;
    };
    let why = Command::new(name).args(rest).exec();
    eprintln!("pasta: running `{name}`: {why}; name a program by its path, or one of PATH");
    NOT_FOUND
}

fn make_namespaces() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // Without it an ordinary user may map no group (user_namespaces(7)).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

impl Started {
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Readable once it has ended.
    pub(super) fn watch(&self) -> &OwnedFd {
        &self.watch
    }

    /// The network is there.
    pub(super) fn go(&self) {
        // One that has been killed is told of by its end.
        let _ = (&self.go).write_all(b"1");
    }

    /// With what it has ended, as a shell tells it.
    pub(super) fn code(&self) -> ExitCode {
        let code = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => BY_SIGNAL + signal as i32,
            _ => 0,
        };
        ExitCode::from(code as u8)
    }
}
