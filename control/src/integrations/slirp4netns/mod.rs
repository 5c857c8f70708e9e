//! `slirp4netns`: the command line of slirp4netns 1.2.
//!
//! # Theory of operation
//!
//! The container's namespaces are named by a process or a path. A TAP is made there, and with `--configure` set up; the network is that of
//! `--cidr`, with the gateway at .2, DNS at .3 and the container at .100, and fd00::/64 with `--enable-ipv6`. That it is ready is told by
//! `1` on `--ready-fd`. Requests for forwards come by the socket of `--api-socket` ([`api`]). It ends when `--exit-fd` hangs up, by SIGTERM
//! or SIGINT, and when the namespace is gone. The container may be at the user's switch instead ([`super::attach`]).

mod api;
mod network;
mod options;

use super::attach::{AttachError, Publisher, Session, Wish, named_by_parent};
use super::control::{self, Control, ControlError, Serve};
use super::inside::InsideError;
use super::sandbox::{self, Reach};
use super::single::{Ended, Ends, Other, Single, SingleError};
use crate::logging::{self, LogFormat};
use options::Options;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
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
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("slirp4netns: {e}");
            ExitCode::FAILURE
        }
    }
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

fn run(options: &Options, api: Option<Serve>) -> Result<(), SlirpError> {
    let exit = handed("exit-fd", options.exit_fd)?;
    let ready = handed("ready-fd", options.ready_fd)?;
    let ends = Ends::new()?;
    let wish = Wish::read()?;
    let begun = wish.map(|w| Session::begin(&w, network::begin(options, &w)));
    let session = begun.transpose()?.flatten().map(Arc::new);
    let inside = match &session {
        Some(s) => network::attached(options, &s.given),
        None => network::inside(options),
    };
    let tap = options.place()?.tap(&inside)?;
    let wanted = match &session {
        // That switch has its own.
        Some(_) => None,
        None => control::wished("slirp4netns", named_by_parent().as_deref(), api)?,
    };
    let control = wanted.map(|w| w.bind()).transpose()?;
    if options.enable_sandbox {
        let reach = Reach {
            process: false,
            sockets: [
                options.api_socket.as_deref(),
                control.as_ref().map(|c| c.socket.path()),
            ],
        };
        sandbox::enter(&reach).map_err(SingleError::from)?;
    }
    let process = tap.process.as_ref().map(AsFd::as_fd);
    let exit = exit.as_ref().map(AsFd::as_fd).map(Other::HangUp);
    let other = exit.or(process.map(Other::Process));
    let ended = match session {
        Some(session) => attached(options, ready, &ends, other, &session, &tap.queue)?,
        None => alone(options, ready, &ends, other, tap.queue, control)?,
    };
    tracing::info!(?ended, "ending");
    Ok(())
}

/// Tells that the network is there. Who has asked to be told and doesn't listen is gone; that is told by the exit descriptor.
fn tell(ready: Option<OwnedFd>) {
    if let Some(ready) = ready {
        let _ = File::from(ready).write_all(b"1");
    }
}

fn serve(o: &Options, publisher: Publisher) -> Result<Option<api::Api>, SlirpError> {
    let path = o.api_socket.as_deref();
    Ok(path.map(|p| api::serve(p, publisher, o)).transpose()?)
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
    session: &Arc<Session>,
    queue: &OwnedFd,
) -> Result<Ended, SlirpError> {
    session.attach(queue)?;
    if let Some(resolver) = network::resolver(o) {
        session.mind_resolver(resolver);
    }
    let _api = serve(o, Publisher::Users(session.clone()))?;
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
    queue: OwnedFd,
    control: Option<Control>,
) -> Result<Ended, SlirpError> {
    let taps = BTreeMap::from([(network::PORT.to_owned(), queue)]);
    let mut single = Single::start(network::topology(o), &taps, control)?;
    drop(taps);
    let _api = serve(o, Publisher::Own(single.plane().clone()))?;
    tell(ready);
    single.follow_host()?;
    confine(o)?;
    Ok(single.wait(ends, other)?)
}
