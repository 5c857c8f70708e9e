//! Stand-ins for programs that container engines start: the same command lines, descriptors and answers, with this switch behind them.
//!
//! # Theory of operation
//!
//! Each such process is a switch for one container ([`single`]): one TAP port, one network, a gateway whose way out is the host's
//! sockets. The TAP is made where the container's network is ([`inside`]), by a child process that enters its namespaces and hands the
//! queue back; where sockets are to be opened there later, one stays ([`opener`]). The process itself stays where it was started, for its sockets are the host's. There is a thread that waits for the
//! end, a worker, who asks resolvers, and who follows the host as it changes. All that is in namespaces of its own ([`isolate`]), with
//! what isn't needed given up ([`sandbox`]). Where the user asks for it, it has a control socket ([`control`]), or the container is
//! attached to the user's `vswitchd` instead ([`attach`]).

mod attach;
pub(crate) mod control;
mod inside;
mod isolate;
mod opener;
pub mod pasta;
pub(crate) mod sandbox;
mod single;
pub mod slirp4netns;

use std::path::Path;
use std::process::ExitCode;

/// Runs a drop-in with the API in it, if that is the name that this process was started under.
pub(crate) fn under_its_name() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    match Path::new(&name).file_name()?.to_str()? {
        "pasta" => Some(pasta::start_with(Some(control::serve))),
        "slirp4netns" => Some(slirp4netns::start_with(Some(control::serve))),
        _ => None,
    }
}
