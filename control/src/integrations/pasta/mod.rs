//! `pasta`: the command line of pasta, for what podman 5 and RootlessKit pass.
//!
//! # Theory of operation
//!
//! The container gets the address, prefix and router of the host ([`host`], [`network`]); the gateway answers ARP and neighbour discovery
//! for everything else, and sends it out by sockets of the host. Addresses that stand for the host or its loopback are the gateway's own.
//! Ports are published as listed, or as they are listened on; those of the container's loopback may lead to the host's ([`loopback`]). A
//! command may be run in namespaces made for it ([`command`]). Otherwise it goes to the background, and that the first process ends with
//! 0 tells that the network is there. It ends by SIGTERM or SIGINT, and when the namespace is gone. What serves is in namespaces of its
//! own ([`isolate`]). The container may be at the user's switch instead ([`super::attach`]).

mod command;
mod host;
mod loopback;
mod network;
mod options;
mod ports;

use super::attach::{AttachError, Session, Wish, named_by_parent};
use super::control::{self, Control, ControlError, Serve, Wanted};
use super::inside::{InsideError, Tap};
use super::isolate::{self, Left};
use super::opener::Opener;
use super::sandbox::{self, Reach};
use super::single::{Ends, Other, Single, SingleError};
use crate::api::lock;
use crate::logging::{self, LogFormat};
use crate::model::Protocol;
use command::{CommandError, Started};
use host::Host;
use loopback::Followed;
use network::Plan;
use options::Options;
use ports::Forward;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
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
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("keeping the container's queue: {0}; raise the limit of open files")]
    Queue(io::Error),
    #[error(
        "reading the host's addresses and routes: {0}; is there an interface named as with --interface?"
    )]
    Host(io::Error),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "starting the threads of --tcp-ns and --udp-ns: {0}; raise the limits of processes and open files"
    )]
    Loopback(io::Error),
    #[error("{}: {source}; name a file that can be written", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("going to the background: {0}; raise the limit of processes, or use --foreground")]
    Background(io::Error),
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
    let level = match (options.debug, options.quiet) {
        (true, _) => "debug",
        (false, true) => "error",
        _ => "warn",
    };
    logging::start_at(LogFormat::Text, level);
    let _ = nix::sys::prctl::set_name(c"pasta");
    let begun = control::become_server("pasta", serve).map_err(PastaError::from);
    match begun.and_then(|()| start(options, serve)) {
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

fn start(mut o: Options, serve: Option<Serve>) -> Result<ExitCode, PastaError> {
    let host = Host::look(o.interface.as_deref()).map_err(PastaError::Host)?;
    let started = o.to_run().map(command::start).transpose()?;
    o.started = started.as_ref().map(Started::pid);
    let mut plan = Plan::new(&o, &host);
    let wish = Wish::read()?;
    let begun = wish.map(|w| Session::begin(&w, plan.begin(&o, &w)));
    let session = begun.transpose()?.flatten();
    if let Some(s) = &session {
        plan = plan.attached(&mut o, &s.given);
    }
    let (o, session) = (&o, session.as_ref());
    let wanted = match session {
        // That switch has its own.
        Some(_) => None,
        None => control::wished("pasta", named_by_parent().as_deref(), serve)?,
    };
    if o.foreground || started.is_some() {
        Ends::hold()?;
    }
    let log = o.log_file.as_deref().map(file).transpose()?;
    let tap = o.place()?.tap(&plan.inside(o))?;
    let number = o.pid.as_deref().map(fresh).transpose()?;
    let mut reach = Reach {
        process: o.process().filter(|_| session.is_none()),
        daemon: session.map(|s| s.socket().to_owned()),
        host: !o.followed_to_host().is_empty(),
        ports: session.is_none()
            && (wanted.is_some() || o.forwards().iter().flatten().any(|f| *f != Forward::None)),
        ..Reach::default()
    };
    let left = match &wanted {
        Some(_) => Left::stays(&reach),
        None => isolate::leave(&reach),
    };
    if o.foreground || started.is_some() {
        if let Some(log) = log.filter(|_| started.is_none()) {
            let _ = nix::unistd::dup2_stderr(log);
        }
        let control = wanted.as_ref().map(Wanted::bind).transpose()?;
        reach.control = control.as_ref().map(|c| c.socket.path().to_owned());
        // Callers know the one that waits.
        let own = std::process::id().cast_signed();
        let ready = || {
            note(o, number, own)?;
            if let Some(started) = &started {
                started.go();
            }
            Ok(())
        };
        let watch = started.as_ref().map(Started::watch);
        let serve = || code(run(o, &plan, session, control, tap, watch, ready));
        let served = isolate::run(left, &reach, true, serve).map_err(PastaError::from)?;
        return Ok(match &started {
            Some(started) if served == 0 => started.code(),
            _ => served.into(),
        });
    }
    // Out of reach later.
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null");
    let nowhere = nowhere.map_err(PastaError::Background)?;
    let (mut reader, mut writer) = io::pipe().map_err(PastaError::Background)?;
    let background = move || {
        let _ = nix::unistd::setsid();
        // By the name of the process that serves.
        let control = match wanted.as_ref().map(Wanted::bind).transpose() {
            Ok(control) => control,
            Err(e) => {
                let _ = failed(&e.into());
                return 1;
            }
        };
        reach.control = control.as_ref().map(|c| c.socket.path().to_owned());
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
        code(run(o, &plan, session, control, tap, None, ready))
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

/// What of the host's ports is followed for the container's loopback; its own leave out those that lead to the container.
fn followed(o: &Options, plan: &Plan, single: Option<&Single>, opener: Opener) -> Option<Followed> {
    let wanted = o.followed_to_host();
    if wanted.is_empty() {
        return None;
    }
    let listed = plan.publish(o);
    let plane = single.map(|s| s.plane().clone());
    let own = move |udp: bool| -> BTreeSet<u16> {
        if let Some(plane) = &plane {
            return lock(plane).own_host_ports(udp);
        }
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let of = listed
            .values()
            .filter(|p| p.protocol == protocol && !p.auto);
        of.flat_map(|p| p.ports.0.0..=p.ports.0.1).collect()
    };
    Some(Followed::new(wanted, opener, Box::new(own)))
}

fn run(
    o: &Options,
    plan: &Plan,
    session: Option<&Session>,
    control: Option<Control>,
    tap: Tap,
    command: Option<&OwnedFd>,
    ready: impl FnOnce() -> Result<(), PastaError>,
) -> Result<(), PastaError> {
    let ends = Ends::new()?;
    let process = command.or(tap.process.as_ref());
    let process = process.map(AsFd::as_fd).map(Other::Process);
    // Sockets keep the namespace: where that has a name, who has stayed there tells of its end.
    let watch = tap.opener.as_ref().map(Opener::watch).transpose();
    let watch = watch.map_err(PastaError::Loopback)?;
    let process = process.or(watch.as_ref().map(|w| Other::HangUp(w.as_fd())));
    let mut single = match session {
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
            Some(Single::start(plan.topology(o), &taps, control)?)
        }
    };
    let to_host = tap.listeners.into_iter().filter_map(|(fd, from)| {
        let lead = o.to_host().into_iter().find(|l| l.from == from);
        lead.map(|lead| (fd, lead))
    });
    if let Some(opener) = tap.opener {
        let followed = followed(o, plan, single.as_ref(), opener);
        loopback::start(to_host, followed).map_err(PastaError::Loopback)?;
    }
    let is_followed = |f: &Forward| matches!(f, Forward::Followed(..));
    if o.process().is_none() && o.forwards().iter().flatten().any(is_followed) {
        tracing::warn!("ports are followed of a PID only: name those to forward");
    }
    if !o.config_net {
        tracing::warn!(
            "without --config-net the interface is to be configured inside: DHCP isn't served"
        );
    }
    ready()?;
    if let Some(single) = &mut single {
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
