//! `vswitchctl run`: a command whose connections to the outside are made by sockets of the host.
//!
//! The command is a child, in the network namespace of the port's container. It installs a seccomp filter and gives us its
//! listener; we hand that to the daemon, and keep it as well. While there is no daemon, we answer in its place that each call goes
//! on by the network, and hand the listener to the next one. We end with the command, and with its exit code.

use super::{CtlError, Done, Session};
use crate::client::{ClientError, escape};
use crate::handover;
use crate::netns;
use crate::plane::PortView;
use crate::switching::{CALLS, open_routes};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vswitch_core::sys::{child, scm, seccomp};

/// How often another daemon is looked for.
const AGAIN: Duration = Duration::from_millis(500);
/// Exit codes of commands that can't be run, as shells have them.
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

const AFTER_HELP: &str = "\
Examples:
  vswitchctl gateway set lan --host-uplink on --socket-switching on
  vswitchctl run web -- curl http://www.example/
  nsenter --target 4711 --all vswitchctl run web -- iperf3 -c 198.51.100.1";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, next_display_order = None)]
pub(super) struct Run {
    /// The port of the container.
    port: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn failed(act: &'static str, thing: &str, remedy: &'static str) -> impl Fn(io::Error) -> CtlError {
    let thing = thing.to_owned();
    move |source| CtlError::Io {
        act,
        thing: thing.clone(),
        source,
        remedy,
    }
}

pub(super) async fn run(s: &Session, c: Run) -> Done {
    let path = format!("/v1/ports/{}", escape(&c.port));
    let port: PortView = s.client.get(&path).await?;
    let what = format!("a command in the container of port `{}`", port.name);
    let started = failed(
        "running",
        &what,
        "raise the limits of processes and open files",
    );
    // Before the child is there, so that its end isn't missed; the child takes it back.
    let mut signals = SigSet::empty();
    for s in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        signals.add(s);
    }
    let before = signals.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    let before = before.map_err(io::Error::from).map_err(&started)?;
    let (ours, theirs) = UnixStream::pair().map_err(&started)?;
    let pid = child::run(|| inside(&port, &c.command, &theirs, &before)).map_err(&started)?;
    drop(theirs);
    let watched = match taken(ours, pid, &port.name, &s.socket, &what) {
        Ok(watched) => watched,
        Err(e) => {
            let _ = waitpid(pid, None);
            return Err(e);
        }
    };
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    let signals = signals.map_err(io::Error::from).map_err(&started)?;
    let code = watched.watch(&signals, pid).map_err(&started)?;
    match code {
        0 => Ok(()),
        code => Err(CtlError::Ended(code)),
    }
}

/// Takes the listener from the child, hands it over, and lets the child go on.
fn taken<'a>(
    mut ours: UnixStream,
    pid: Pid,
    port: &'a str,
    socket: &'a Path,
    what: &str,
) -> Result<Watched<'a>, CtlError> {
    let told = failed("running", what, "see what it says above");
    let mut buf = [0; 1024];
    let (n, fds) = scm::recv(&ours, &mut buf).map_err(&told)?;
    let Ok(fds) = <[OwnedFd; 2]>::try_from(fds) else {
        let reason = String::from_utf8_lossy(buf.get(..n).unwrap_or_default()).into_owned();
        return Err(CtlError::Usage {
            act: "running",
            thing: what.to_owned(),
            reason,
            remedy: "run it within the container's namespaces, as with nsenter, or with the rights to enter them",
        });
    };
    let handed = handover::send_listener(socket, port, &fds);
    let handed = handed.map_err(|source| ClientError::Unreachable {
        path: handover::path_beside(socket),
        source,
    });
    let end = |e: ClientError| {
        let _ = kill(pid, Signal::SIGKILL);
        CtlError::Client(e)
    };
    let daemon = handed
        .map_err(end)?
        .map_err(ClientError::Refused)
        .map_err(end)?;
    ours.write_all(b"!").map_err(&told)?;
    Ok(Watched {
        port,
        socket,
        fds,
        daemon: Some(daemon),
        tried: Instant::now(),
    })
}

/// What is kept while the command runs.
struct Watched<'a> {
    port: &'a str,
    socket: &'a Path,
    fds: [OwnedFd; 2],
    /// The connection to who answers.
    daemon: Option<UnixStream>,
    /// When one was last looked for.
    tried: Instant,
}

impl Watched<'_> {
    /// Until the command ends; its exit code.
    fn watch(mut self, signals: &SignalFd, pid: Pid) -> io::Result<u8> {
        loop {
            let [listener, _] = &self.fds;
            let other = self.daemon.as_ref().map_or(listener.as_fd(), AsFd::as_fd);
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(other, PollFlags::POLLIN),
            ];
            let wait = match self.daemon {
                Some(_) => PollTimeout::NONE,
                None => PollTimeout::try_from(AGAIN).unwrap_or(PollTimeout::MAX),
            };
            match poll(&mut fds, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let said = |i: usize| fds.get(i).and_then(PollFd::revents);
            let [signalled, other] = [0, 1].map(|i| said(i).unwrap_or(PollFlags::empty()));
            if !signalled.is_empty()
                && let Some(code) = signalled_code(signals, pid)
            {
                return Ok(code);
            }
            match &mut self.daemon {
                // It says nothing more: this is its end.
                Some(daemon) if !other.is_empty() => {
                    if !matches!(daemon.read(&mut [0; 64]), Ok(n) if n > 0) {
                        self.daemon = None;
                    }
                }
                Some(_) => {}
                None => {
                    if other.contains(PollFlags::POLLIN)
                        && let Ok(call) = seccomp::receive(listener)
                    {
                        let _ = seccomp::go_on(listener, call.id);
                    }
                    if self.tried.elapsed() >= AGAIN {
                        self.tried = Instant::now();
                        let handed = handover::send_listener(self.socket, self.port, &self.fds);
                        self.daemon = handed.ok().and_then(Result::ok);
                    }
                }
            }
        }
    }
}

/// Passes signals on; the exit code if the command has ended.
fn signalled_code(signals: &SignalFd, pid: Pid) -> Option<u8> {
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = Signal::try_from(info.ssi_signo.cast_signed());
        match signal {
            Ok(Signal::SIGCHLD) => match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Some(code as u8),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Some(128 + signal as u8),
                _ => {}
            },
            // A terminal has told it already.
            Ok(Signal::SIGINT | Signal::SIGQUIT) => {}
            Ok(signal) => {
                let _ = kill(pid, signal);
            }
            Err(_) => {}
        }
    }
    None
}

/// The child: enters the container, installs the filter, hands its listener over, and becomes the command.
fn inside(port: &PortView, command: &[OsString], parent: &UnixStream, before: &SigSet) -> u8 {
    let told = |reason: String| {
        let mut parent = parent;
        let _ = parent.write_all(reason.as_bytes());
        NOT_RUN
    };
    let fds = match filtered(port) {
        Ok(fds) => fds,
        Err(reason) => return told(reason),
    };
    let [listener, routes] = &fds;
    if let Err(e) = scm::send(parent, b"!", &[listener.as_fd(), routes.as_fd()]) {
        return told(e.to_string());
    }
    drop(fds);
    let mut go = [0];
    let mut from = parent;
    if from.read_exact(&mut go).is_err() {
        return NOT_RUN;
    }
    let _ = before.thread_set_mask();
    let Some((program, args)) = command.split_first() else {
        return NOT_RUN;
    };
    let error = Command::new(program).args(args).exec();
    eprintln!(
        "vswitchctl: running {}: {error}; name a program that is in the container",
        program.display()
    );
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_RUN,
    }
}

fn filtered(port: &PortView) -> Result<[OwnedFd; 2], String> {
    let act = |act: &'static str| move |e: io::Error| format!("{act}: {e}");
    // Who is killed takes the command along.
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(|e| e.to_string())?;
    if let Some(spec) = &port.config.netns {
        enter(&netns::path_of(spec)).map_err(act("entering its network namespace"))?;
    }
    let routes = open_routes().map_err(act("opening a netlink socket"))?;
    let listener = match seccomp::listen(&CALLS) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            prctl::set_no_new_privs().map_err(|e| e.to_string())?;
            seccomp::listen(&CALLS)
        }
        other => other,
    };
    let listener = listener.map_err(act("installing a seccomp filter"))?;
    Ok([listener, routes])
}

/// Enters a network namespace, unless we are there.
fn enter(path: &Path) -> io::Result<()> {
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    let here = std::fs::metadata("/proc/self/ns/net").map(identity)?;
    let there = std::fs::metadata(path).map(identity);
    // A process is known by another number within the container; then we are there, as who starts us sees to.
    if there.is_err() || there.is_ok_and(|there| there == here) {
        return Ok(());
    }
    Ok(setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}
