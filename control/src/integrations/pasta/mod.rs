//! `pasta`: the command line of pasta, for what podman 5 and RootlessKit pass.
//!
//! # Theory of operation
//!
//! The container gets the address, prefix and router of the host ([`host`], [`network`]); the gateway answers ARP and neighbour discovery
//! for everything else, and sends it out by sockets of the host. Addresses that stand for the host or its loopback are the gateway's own.
//! Ports are published as listed, or as they are listened on. It goes to the background, and that the first process ends with
//! 0 tells that the network is there. It ends by SIGTERM or SIGINT, and when the namespace is gone. What serves is in namespaces of its
//! own ([`isolate`]). The container may be at the user's switch instead ([`super::attach`]).

mod host;
mod network;
mod options;
mod ports;

use super::attach::{AttachError, Session, Wish};
use super::inside::{InsideError, Tap};
use super::isolate;
use super::sandbox::{self, Reach};
use super::single::{Ends, Other, Single, SingleError};
use crate::logging::{self, LogFormat};
use host::Host;
use network::Plan;
use options::Options;
use ports::Forward;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vswitch_core::sys::child;

pub use options::command;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum PastaError {
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error(transparent)]
    Single(#[from] SingleError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("keeping the container's queue: {0}; raise the limit of open files")]
    Queue(io::Error),
    #[error(
        "reading the host's addresses and routes: {0}; is there an interface named as with --interface?"
    )]
    Host(io::Error),
    #[error("{}: {source}; name a file that can be written", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("going to the background: {0}; raise the limit of processes, or use --foreground")]
    Background(io::Error),
}

/// Runs it with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = match options::read() {
        Ok(options) => options,
        Err(code) => return code,
    };
    let level = match (options.debug, options.quiet) {
        (true, _) => "debug",
        (false, true) => "error",
        _ => "warn",
    };
    logging::start_at(LogFormat::Text, level);
    match start(options) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

fn failed(e: &PastaError) -> ExitCode {
    eprintln!("pasta: {e}");
    ExitCode::FAILURE
}

fn file(path: &Path) -> Result<File, PastaError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|source| PastaError::File {
        path: path.to_owned(),
        source,
    })
}

fn fresh(path: &Path) -> Result<File, PastaError> {
    File::create(path).map_err(|source| PastaError::File {
        path: path.to_owned(),
        source,
    })
}

fn start(mut o: Options) -> Result<ExitCode, PastaError> {
    let host = Host::look(o.interface.as_deref()).map_err(PastaError::Host)?;
    let mut plan = Plan::new(&o, &host);
    let wish = Wish::read()?;
    let begun = wish.map(|w| Session::begin(&w, plan.begin(&o, &w)));
    let session = begun.transpose()?.flatten();
    if let Some(s) = &session {
        plan = plan.attached(&mut o, &s.given);
    }
    let o = &o;
    if o.foreground {
        Ends::hold()?;
    }
    let log = o.log_file.as_deref().map(file).transpose()?;
    let tap = o.place()?.tap(&plan.inside(o))?;
    let number = o.pid.as_deref().map(fresh).transpose()?;
    let reach = Reach {
        process: o.process().filter(|_| session.is_none()),
        socket: None,
        daemon: session.as_ref().map(|s| s.socket().to_owned()),
        ports: session.is_none() && o.forwards().iter().flatten().any(|f| *f != Forward::None),
    };
    if o.foreground {
        if let Some(log) = &log {
            let _ = nix::unistd::dup2_stderr(log);
        }
        // Callers know the one that waits.
        let own = std::process::id().cast_signed();
        let serve = move || {
            code(run(o, &plan, session.as_ref(), tap, || {
                note(o, number, own)
            }))
        };
        let left = isolate::leave(&reach);
        return Ok(isolate::run(left, &reach, true, serve)
            .map_err(PastaError::from)?
            .into());
    }
    // Out of reach later.
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null");
    let nowhere = nowhere.map_err(PastaError::Background)?;
    let (mut reader, mut writer) = io::pipe().map_err(PastaError::Background)?;
    let left = isolate::leave(&reach);
    let background = move || {
        let _ = nix::unistd::setsid();
        if let Err(e) = left.settle(&reach) {
            let _ = failed(&SingleError::from(e).into());
            return 1;
        }
        // Who has started it waits for the end of the pipe, too, which mustn't come before an error is told.
        let _until_told = writer.try_clone();
        let ready = move || {
            leave(o, log.as_ref(), &nowhere);
            // Who has started it may be gone.
            let _ = writer.write_all(b"1");
            Ok(())
        };
        code(run(o, &plan, session.as_ref(), tap, ready))
    };
    let process = child::run(background).map_err(PastaError::Background)?;
    // Its word that it is ready; without, it has said why.
    if !matches!(reader.read(&mut [0]), Ok(1)) {
        return Ok(ExitCode::FAILURE);
    }
    // In its own PID namespace it has another number.
    note(o, number, process.as_raw())?;
    Ok(ExitCode::SUCCESS)
}

/// What a process ends with; why, it tells.
fn code(done: Result<(), PastaError>) -> u8 {
    match done {
        Ok(()) => 0,
        Err(e) => {
            let _ = failed(&e);
            1
        }
    }
}

/// Writes the number of the process to end.
fn note(o: &Options, number: Option<File>, pid: i32) -> Result<(), PastaError> {
    if let (Some(mut file), Some(path)) = (number, &o.pid) {
        writeln!(file, "{pid}").map_err(|source| PastaError::File {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Leaves where it was started: nobody waits for the end of what it says, no directory is kept.
fn leave(o: &Options, log: Option<&File>, nowhere: &File) {
    let _ = nix::unistd::chdir("/");
    let _ = nix::unistd::dup2_stdin(nowhere);
    let _ = nix::unistd::dup2_stdout(nowhere);
    if !o.stderr {
        let _ = nix::unistd::dup2_stderr(log.unwrap_or(nowhere));
    }
}

fn run(
    o: &Options,
    plan: &Plan,
    session: Option<&Session>,
    tap: Tap,
    ready: impl FnOnce() -> Result<(), PastaError>,
) -> Result<(), PastaError> {
    let ends = Ends::new()?;
    let process = tap.process.as_ref().map(AsFd::as_fd).map(Other::Process);
    let single = match session {
        Some(session) => {
            session.attach(&tap.queue)?;
            session.change(|all| *all = plan.publish(o))?;
            for resolver in plan.resolvers() {
                session.mind_resolver(*resolver);
            }
            None
        }
        None => {
            let queue = tap.queue.try_clone().map_err(PastaError::Queue)?;
            let taps = BTreeMap::from([(network::PORT.to_owned(), queue)]);
            Some(Single::start(plan.topology(o), &taps)?)
        }
    };
    if o.process().is_none() && o.forwards().iter().flatten().any(|f| *f == Forward::Auto) {
        tracing::warn!("ports are followed of a PID only: name those to forward");
    }
    if !o.config_net {
        tracing::warn!(
            "without --config-net the interface is to be configured inside: DHCP isn't served"
        );
    }
    ready()?;
    if let Some(single) = &single {
        single.follow_host()?;
    }
    sandbox::confine_calls().map_err(SingleError::from)?;
    let ended = match (&single, session) {
        (Some(single), _) => {
            // The worker has it.
            drop(tap.queue);
            single.wait(&ends, process)?
        }
        (None, Some(session)) => session.wait(&ends, process, &tap.queue)?,
        (None, None) => return Ok(()),
    };
    tracing::info!(?ended, "ending");
    Ok(())
}
