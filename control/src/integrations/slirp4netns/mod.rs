//! `slirp4netns`: the command line of slirp4netns 1.2.
//!
//! # Theory of operation
//!
//! The container's namespaces are named by a process or a path. A TAP is made there, and with `--configure` set up; the network is that of
//! `--cidr`, with the gateway at .2, DNS at .3 and the container at .100, and fd00::/64 with `--enable-ipv6`. That it is ready is told by
//! `1` on `--ready-fd`. Requests for forwards come by the socket of `--api-socket` ([`api`]). It ends when `--exit-fd` hangs up, by SIGTERM
//! or SIGINT, and when the namespace is gone.

mod api;
mod network;
mod options;

use super::inside::InsideError;
use super::sandbox::{self, Reach};
use super::single::{Ends, Other, Single, SingleError};
use crate::logging::{self, LogFormat};
use options::Options;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
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
    let options = match options::read() {
        Ok(options) => options,
        Err(code) => return code,
    };
    logging::start_at(LogFormat::Text, "warn");
    match run(&options) {
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

fn run(options: &Options) -> Result<(), SlirpError> {
    let exit = handed("exit-fd", options.exit_fd)?;
    let ready = handed("ready-fd", options.ready_fd)?;
    let ends = Ends::new()?;
    let tap = options.place()?.tap(&network::inside(options))?;
    if options.enable_sandbox {
        let reach = Reach {
            process: false,
            socket: options.api_socket.as_deref(),
        };
        sandbox::enter(&reach).map_err(SingleError::from)?;
    }
    let taps = BTreeMap::from([(network::PORT.to_owned(), tap.queue)]);
    let single = Single::start(network::topology(options), &taps)?;
    drop(taps);
    let _api = match &options.api_socket {
        Some(path) => Some(api::serve(path, single.plane().clone(), options)?),
        None => None,
    };
    if let Some(ready) = ready {
        // Who has asked to be told and doesn't listen is gone; that is told by the exit descriptor.
        let _ = File::from(ready).write_all(b"1");
    }
    single.follow_host()?;
    if options.enable_seccomp {
        sandbox::confine_calls().map_err(SingleError::from)?;
    }
    let process = tap.process.as_ref().map(AsFd::as_fd);
    let exit = exit.as_ref().map(AsFd::as_fd).map(Other::HangUp);
    let ended = single.wait(&ends, exit.or(process.map(Other::Process)))?;
    tracing::info!(?ended, "ending");
    Ok(())
}
