//! The two processes of a container: the holder, which makes its namespaces, and the agent, process 1 in them.
//!
//! A process stays in its PID namespace, only its children are in the new one; hence two. The holder's standard input is a pipe
//! from the demo, whose end is the container's end; its standard output is the agents' line to the demo.

use super::place::hosts_of;
use super::probe;
use super::talk::{Reply, Request, line};
use crate::interface;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// A container, for its holder and agent.
#[derive(Debug, clap::Args)]
pub(crate) struct Inside {
    /// Its name.
    name: String,
    /// The demo's directory.
    dir: PathBuf,
}

/// A reason as it is told to the demo.
fn told<E: Into<io::Error>>(act: &'static str) -> impl FnOnce(E) -> String {
    move |e| format!("{act}: {}", e.into())
}

/// The holder.
pub(crate) fn hold(inside: &Inside) -> ExitCode {
    let mut to_demo = io::stdout();
    let (reply, agent) = match start_agent(inside) {
        Ok((agent, names)) => {
            let pid = agent.id().cast_signed();
            (Reply::Started { pid, names }, Some(agent))
        }
        Err(reason) => (Reply::Failed { reason }, None),
    };
    let said = to_demo
        .write_all(&line(&reply))
        .and_then(|()| to_demo.flush());
    let Some(mut agent) = agent else {
        return ExitCode::FAILURE;
    };
    if said.is_ok() {
        // Nothing is ever written: this is the wait for the demo's end.
        let _ = io::stdin().read(&mut [0]);
    }
    let _ = agent.kill();
    let _ = agent.wait();
    // The demo does it as well, unless it was killed.
    let _ = std::fs::remove_dir_all(&inside.dir);
    ExitCode::SUCCESS
}

/// Makes the namespaces and starts the agent in them. Also tells whether /etc/hosts has the names.
fn start_agent(inside: &Inside) -> Result<(Child, bool), String> {
    let all = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(all).map_err(told("making the container's namespaces"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let none = None::<&str>;
    mount(none, "/", none, private, none).map_err(told("making mounts private"))?;
    nix::unistd::sethostname(&inside.name).map_err(told("setting the host name"))?;
    let hosts = hosts_of(&inside.dir);
    let names = mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).is_ok();
    let to_demo = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(told("handing on the line to the demo"))?;
    let agent = Command::new("/proc/self/exe")
        .arg0("vswitchd")
        .arg("demo-agent")
        .arg(&inside.name)
        .arg(&inside.dir)
        .stdin(Stdio::from(to_demo))
        .stdout(Stdio::null())
        .spawn()
        .map_err(told("starting the agent"))?;
    Ok((agent, names))
}

/// The agent: answers the demo's requests until its line closes.
pub(crate) fn agent() -> ExitCode {
    let line_to_demo = io::stdin().as_fd().try_clone_to_owned();
    let Ok(mut to_demo) = line_to_demo.map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let Ok(from_demo) = to_demo.try_clone() else {
        return ExitCode::FAILURE;
    };
    let mut fault = set_up().err();
    for request in BufReader::new(from_demo).lines() {
        let Ok(request) = request else { break };
        let reply = match (fault.take(), serde_json::from_str(&request)) {
            (Some(reason), _) => Reply::Failed { reason },
            (None, Err(e)) => Reply::Failed {
                reason: e.to_string(),
            },
            (None, Ok(request)) => answer(&request),
        };
        if to_demo.write_all(&line(&reply)).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

fn set_up() -> Result<(), String> {
    set_pdeathsig(Signal::SIGKILL).map_err(told("asking to die with the holder"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Where the machine's own /proc has parts covered, the kernel refuses a new one; nothing here needs it.
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>);
    let loopback = interface::Setup {
        name: "lo",
        mtu: 65_536,
        mac: None,
        addresses: &[],
        gateways: &[],
        onlink: false,
    };
    interface::configure(&loopback).map_err(|e| e.to_string())?;
    probe::serve().map_err(told("starting the container's services"))
}

fn answer(request: &Request) -> Reply {
    let done = match *request {
        Request::Ping { to, count } => probe::ping(to, count).map(|trips| Reply::Pinged { trips }),
        Request::Send { to, millis } => probe::send(to, Duration::from_millis(millis)),
        Request::Measure { to, millis } => probe::measure(to, Duration::from_millis(millis)),
    };
    done.unwrap_or_else(|e| Reply::Failed {
        reason: e.to_string(),
    })
}
