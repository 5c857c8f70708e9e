//! `vswitchd`: the command line of the daemon, and its life as a process.
//!
//! Readiness is told to systemd (sd_notify) and on a file descriptor; SIGTERM and SIGINT end it in order.

use crate::config::{Accelerate, Config, default_socket, default_state};
use crate::daemon::{Daemon, Options};
use crate::demo::{self, Demo, Inside};
use crate::logging::{self, LogFormat};
use crate::model::from_toml;
use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vswitch_core::sys::mem;

/// How long a worker looks for more work before it sleeps, by default, microseconds; see `worker::pace` of the data path for when.
const SPIN_US: u32 = 60;

const AFTER_HELP: &str = "\
Exit codes:
  0  ended by SIGTERM or SIGINT
  1  it couldn't start
  2  wrong usage

Examples:
  vswitchd demo
  vswitchd run
  vswitchd run --config /etc/vswitch/vswitchd.toml --workers 2";

/// The userspace switch for containers.
#[derive(Debug, Parser)]
#[command(name = "vswitchd", version, after_help = AFTER_HELP, next_display_order = None)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
enum Command {
    /// Show a switch and three containers at work, in namespaces of their own.
    Demo(Demo),
    /// Process 1 of a container of the demo.
    #[command(hide = true)]
    DemoAgent(Inside),
    /// Makes a container of the demo.
    #[command(hide = true)]
    DemoContainer(Inside),
    /// Opens a socket in a container's namespaces, for the daemon.
    #[command(hide = true)]
    RoutesOf {
        /// A process of the container.
        pid: i32,
    },
    /// Run the switch until SIGTERM or SIGINT.
    Run(Box<Run>),
}

#[derive(Debug, Args)]
struct Run {
    /// Have the kernel forward between veth ports what the switch has approved: faster, and as true in all counters. Needs the
    /// machine's CAP_BPF and CAP_NET_ADMIN and Linux 6.6; without, it goes on as ever and says so [default: none].
    #[arg(long, value_enum, value_name = "HOW")]
    accelerate: Option<Accelerate>,
    /// Configuration file (TOML); options given here win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Group that may use the control socket.
    #[arg(long)]
    group: Option<String>,
    /// How logs are written [default: text].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Serve /metrics on this loopback address, such as 127.0.0.1:9100.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Keep no state.
    #[arg(long, conflicts_with = "state")]
    no_state: bool,
    /// Write a line to this file descriptor once ready, and close it.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,
    /// Give up what isn't needed where containers come by slirp4netns or pasta (VSWITCH_ATTACH) and ports are of kind fd, stream or dgram:
    /// capabilities, files but for the directories of socket and state, system calls, and containers' namespaces.
    #[arg(long, conflicts_with = "accelerate")]
    sandbox: bool,
    /// Control socket [default: /run/vswitch/vswitch.sock for root, below XDG_RUNTIME_DIR for others].
    #[arg(long, env = "VSWITCH_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where state is kept [default: below XDG_STATE_HOME, or /var/lib/vswitch/state.json].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Topology to apply at start; then what was saved isn't restored.
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Log more; twice for most.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Workers of the data path, 1 to 64, all of them always in use [default: one, and on two or more processors another
    /// that helps while the first is at its limit].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
}

/// Two where they can run side by side: more take part by being asked for.
fn default_workers() -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(2) as u16
}

/// The command line's definition, for documents.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs vswitchd with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = crate::integrations::under_its_name() {
        return code;
    }
    let run = match Cli::parse().command {
        Command::Demo(demo) => return demo::main(&demo),
        Command::DemoAgent(_) => return demo::agent(),
        Command::DemoContainer(inside) => return demo::hold(&inside),
        Command::RoutesOf { pid } => return crate::switching::routes_of(pid),
        Command::Run(run) => run,
    };
    match serve(&run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vswitchd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file)
        .with_context(|| format!("reading {}: name a file that can be read", file.display()))
}

fn serve(run: &Run) -> anyhow::Result<()> {
    let config = match &run.config {
        Some(file) => Config::from_toml(file, &read(file)?)?,
        None => Config::default(),
    };
    logging::start(
        run.log_format.or(config.log_format).unwrap_or_default(),
        run.verbose,
    );
    let options = options(run, config)?;
    let ready = run.ready_fd.map(ready_pipe).transpose()?;
    // Before any thread, so that all inherit it and only `wait` below sees the signals.
    let mut ends = SigSet::empty();
    for s in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ends.add(s);
    }
    ends.thread_block().context("blocking signals")?;
    let daemon = Daemon::start(options.clone())?;
    tracing::info!(
        socket = options.socket.as_deref().map(|p| p.display().to_string()),
        workers = options.workers,
        "ready"
    );
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Some(mut pipe) = ready {
        let _ = pipe.write_all(b"ready\n");
    }
    mem::forget_start();
    loop {
        match ends.wait().context("waiting for signals")? {
            Signal::SIGHUP => tracing::info!("SIGHUP ignored: `vswitchctl apply` changes things"),
            signal => {
                tracing::info!(%signal, "ending");
                break;
            }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.shutdown();
    Ok(())
}

fn options(run: &Run, config: Config) -> anyhow::Result<Options> {
    let topology = match run.topology.clone().or(config.topology) {
        Some(file) => Some(from_toml(&file, &read(&file)?)?),
        None => None,
    };
    let keeps = !run.no_state && config.keep_state.unwrap_or(true);
    let state = run.state.clone().or(config.state);
    let fixed = run.workers.or(config.workers);
    Ok(Options {
        socket: Some(
            run.socket
                .clone()
                .or(config.socket)
                .unwrap_or_else(default_socket),
        ),
        group: run.group.clone().or(config.group),
        workers: fixed.unwrap_or_else(default_workers),
        shared: fixed.is_none(),
        accelerate: run.accelerate.or(config.accelerate) == Some(Accelerate::Ebpf),
        sandbox: run.sandbox,
        spin: Duration::from_micros(config.spin_us.unwrap_or(SPIN_US).into()),
        state: keeps.then(|| state.unwrap_or_else(default_state)),
        topology,
        metrics: run.metrics.or(config.metrics),
    })
}

/// The fd to tell readiness on, opened anew so that it is ours to close.
fn ready_pipe(fd: i32) -> anyhow::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))
        .with_context(|| format!("opening --ready-fd {fd}: hand over an open pipe or file"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_sound() {
        super::command().debug_assert();
    }
}
