//! `slirp4netns`: the command line of slirp4netns 1.2.
//!
//! # Theory of operation
//!
//! The container's namespaces are named by a process or a path. A TAP is made there, and with `--configure` set up; the network is that of
//! `--cidr`, with the gateway at .2, DNS at .3 and the container at .100, and fd00::/64 with `--enable-ipv6`. That it is ready is told by
//! `1` on `--ready-fd`. With `--target-type=bess` frames are those of a virtual machine that connects to a socket instead. Requests for forwards come by the socket of `--api-socket` ([`api`]). It ends when `--exit-fd` hangs up, by SIGTERM
//! or SIGINT, and when the namespace is gone. With `--enable-sandbox` a child serves, and this process waits for it ([`isolate`]). The container may be at the user's switch instead ([`super::attach`]).

mod api;
mod network;
mod options;

use super::attach::{AttachError, Publisher, Session, Wish, named_by_parent};
use super::control::{self, Control, ControlError, Serve};
use super::inside::{InsideError, Tap};
use super::isolate::{self, Left};
use super::sandbox::{self, Reach};
use super::single::{Ended, Ends, Other, Single, SingleError};
use crate::logging::{self, LogFormat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use options::Options;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use vswitch_core::port::seqpacket::Listener;
use vswitch_core::port::unix::UnixError;
use vswitch_core::sys::scm;

pub use options::command;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum SlirpError {
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error(transparent)]
    Single(#[from] SingleError),
    #[error(transparent)]
    Api(#[from] api::ApiError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Socket(#[from] UnixError),
    #[error("waiting for a virtual machine to connect: {0}; raise the limit of open files")]
    Accept(io::Error),
    #[error("--{option} {number}: {source}; hand over a descriptor that is open")]
    Descriptor {
        option: &'static str,
        number: i32,
        source: io::Error,
    },
}

/// Runs it with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    start_with(None)
}

/// The same, with what serves a control socket.
pub(super) fn start_with(serve: Option<Serve>) -> ExitCode {
    let options = match options::read() {
        Ok(options) => options,
        Err(code) => return code,
    };
    logging::start_at(LogFormat::Text, "warn");
    let _ = nix::sys::prctl::set_name(c"slirp4netns");
    let begun = control::become_server("slirp4netns", serve).map_err(SlirpError::from);
    match begun.and_then(|()| run(&options, serve)) {
        Ok(code) => code.into(),
        Err(e) => failed(&e),
    }
}

fn failed(e: &SlirpError) -> ExitCode {
    eprintln!("slirp4netns: {e}");
    ExitCode::FAILURE
}

/// A descriptor that the caller hands over by its number; ours alone from now on.
fn handed(option: &'static str, number: Option<i32>) -> Result<Option<OwnedFd>, SlirpError> {
    let take = |number| {
        let fd = scm::inherited(number).map_err(|source| SlirpError::Descriptor {
            option,
            number,
            source,
        })?;
        // A reader sees the end when the last one is closed.
        let _ = nix::unistd::close(number);
        Ok(fd)
    };
    number.map(take).transpose()
}

/// Runs it; the code it ends with. `by`: what serves a control socket.
fn run(options: &Options, by: Option<Serve>) -> Result<u8, SlirpError> {
    let exit = handed("exit-fd", options.exit_fd)?;
    let ready = handed("ready-fd", options.ready_fd)?;
    let ends = Ends::new()?;
    // A virtual machine has a switch of its own.
    let wish = match options.socket() {
        Some(_) => None,
        None => Wish::read()?,
    };
    let begun = wish.map(|w| Session::begin(&w, network::begin(options, &w)));
    let session = begun.transpose()?.flatten().map(Arc::new);
    let inside = match &session {
        Some(s) => network::attached(options, &s.given),
        None => network::inside(options),
    };
    let tap = match options.socket() {
        Some(socket) => match connected(socket, &ends, exit.as_ref())? {
            Some(queue) => Tap {
                opener: None,
                queue,
                process: None,
                listeners: Vec::new(),
            },
            None => return Ok(0),
        },
        None => options.place()?.tap(&inside)?,
    };
    let wanted = match &session {
        // That switch has its own.
        Some(_) => None,
        None => control::wished("slirp4netns", named_by_parent().as_deref(), by)?,
    };
    let control = wanted.map(|w| w.bind()).transpose()?;
    let api = options.api_socket.as_deref().map(api::bind).transpose()?;
    let reach = Reach {
        host: false,
        process: None,
        socket: options.api_socket.clone(),
        control: control.as_ref().map(|c| c.socket.path().to_owned()),
        daemon: session.as_ref().map(|s| s.socket().to_owned()),
        // Those of a container at the user's switch are that one's.
        ports: (api.is_some() || control.is_some()) && session.is_none(),
    };
    // All of it is the serving process's alone: who holds a descriptor too would keep its end from being seen.
    drop(ends);
    let serve = move || -> Result<(), SlirpError> {
        let ends = Ends::new()?;
        let process = tap.process.as_ref().map(AsFd::as_fd);
        let exit = exit.as_ref().map(AsFd::as_fd).map(Other::HangUp);
        let other = exit.or(process.map(Other::Process));
        let ended = match session {
            Some(session) => attached(options, ready, &ends, other, api, &session, &tap.queue)?,
            None => alone(options, ready, &ends, other, api, tap.queue, control)?,
        };
        tracing::info!(?ended, "ending");
        Ok(())
    };
    if !options.enable_sandbox {
        let served = serve();
        if let Some(socket) = &reach.socket {
            let _ = std::fs::remove_file(socket);
        }
        return served.map(|()| 0);
    }
    let left = match &reach.control {
        Some(_) => Left::stays(&reach),
        None => isolate::leave(&reach),
    };
    left.tell("--enable-sandbox");
    let told = || match serve() {
        Ok(()) => 0,
        Err(e) => {
            failed(&e);
            1
        }
    };
    Ok(isolate::run(left, &reach, options.enable_seccomp, told)?)
}

/// The virtual machine that connects to the socket; none if the end comes before.
fn connected(
    path: PathBuf,
    ends: &Ends,
    exit: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, SlirpError> {
    let listener = Listener::bind(path)?;
    loop {
        let mut fds = vec![
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(ends.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(exit.map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())));
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds.iter().skip(1).any(|f| f.any() == Some(true)) {
            return Ok(None);
        }
        match listener.accept() {
            Ok(queue) => return Ok(Some(queue)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(SlirpError::Accept(e)),
        }
    }
}

/// Tells that the network is there. Who has asked to be told and doesn't listen is gone; that is told by the exit descriptor.
fn tell(ready: Option<OwnedFd>) {
    if let Some(ready) = ready {
        let _ = File::from(ready).write_all(b"1");
    }
}

/// What isn't given is left out.
fn answer(
    api: Option<UnixListener>,
    publisher: Publisher,
    o: &Options,
) -> Result<(), api::ApiError> {
    api.map_or(Ok(()), |l| api::serve(l, publisher, o))
}

fn confine(o: &Options) -> Result<(), SingleError> {
    if o.enable_seccomp {
        sandbox::confine_calls()?;
    }
    Ok(())
}

/// The container is at the user's switch.
fn attached(
    o: &Options,
    ready: Option<OwnedFd>,
    ends: &Ends,
    other: Option<Other<'_>>,
    api: Option<UnixListener>,
    session: &Arc<Session>,
    queue: &OwnedFd,
) -> Result<Ended, SlirpError> {
    session.attach(queue)?;
    if let Some(resolver) = network::resolver(o) {
        session.mind_resolver(resolver);
    }
    answer(api, Publisher::Users(session.clone()), o)?;
    tell(ready);
    confine(o)?;
    Ok(session.wait(ends, other, queue)?)
}

/// The container has a switch of its own.
fn alone(
    o: &Options,
    ready: Option<OwnedFd>,
    ends: &Ends,
    other: Option<Other<'_>>,
    api: Option<UnixListener>,
    queue: OwnedFd,
    control: Option<Control>,
) -> Result<Ended, SlirpError> {
    let taps = BTreeMap::from([(network::PORT.to_owned(), queue)]);
    let mut single = Single::start(network::topology(o), &taps, control)?;
    drop(taps);
    answer(api, Publisher::Own(single.plane().clone()), o)?;
    tell(ready);
    single.follow_host()?;
    confine(o)?;
    Ok(single.wait(ends, other)?)
}
