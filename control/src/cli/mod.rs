//! `vswitchctl`: the command line of the switch.
//!
//! One file per group of commands. Every read takes `--json`; errors go to stderr as one line that names the act, the thing
//! and the remedy; the exit code tells programs which sort it was.

mod attach;
mod capture;
mod conntrack;
mod docs;
mod fdb;
mod gateway;
mod instances;
mod mirror;
mod network;
mod options;
mod policy;
mod port;
mod publish;
mod run;
mod services;
mod show;
mod stats;
mod top;
mod topology;
mod trace;
mod watch;

pub(crate) use show::aligned as table;

use crate::client::{Client, ClientError};
use crate::config::default_socket;
use crate::refusal::Kind;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed
  2  wrong usage
  3  vswitchd isn't reachable
  4  what was named doesn't exist

Examples:
  vswitchctl network add lan
  vswitchctl port add web --network lan --netns pid:4711 --device eth0
  vswitchctl fdb show lan
  vswitchctl stats --json
  vswitchctl apply topology.toml";

/// Controls vswitchd, the userspace switch for containers.
#[derive(Debug, Parser)]
#[command(name = "vswitchctl", version, after_help = AFTER_HELP, next_display_order = None, propagate_version = true)]
pub struct Cli {
    /// Control socket of vswitchd [default: /run/vswitch/vswitch.sock for root, below XDG_RUNTIME_DIR for others].
    #[arg(long, global = true, env = "VSWITCH_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
enum Command {
    /// Make the switch be as a topology file says: all of it or nothing.
    Apply(topology::Apply),
    /// Connect a container: makes its interface with addresses and adds it as a port.
    Attach(attach::Attach),
    /// Capture frames at ports: to a file, to Wireshark, or as text.
    Capture(capture::Capture),
    /// Print a completion script for a shell.
    Completions(docs::Completions),
    /// Connections that the gateways track.
    #[command(subcommand)]
    Conntrack(conntrack::Conntrack),
    /// Show what `apply` would change.
    Diff(topology::File),
    /// Watch events as they happen.
    Events(watch::Events),
    /// Print the desired state as a topology file.
    Export,
    /// Forwarding database: which MAC is where.
    #[command(subcommand)]
    Fdb(fdb::Fdb),
    /// Gateways: the router's ports in networks.
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// List the switches of single containers (slirp4netns, pasta) that have a control socket.
    Instances,
    /// Write the man pages.
    Man(docs::Man),
    /// Mirror sessions: copies of frames to a port.
    #[command(subcommand)]
    Mirror(mirror::Mirror),
    /// Networks.
    #[command(subcommand)]
    Network(network::Network),
    /// Policies: the firewall.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Ports.
    #[command(subcommand)]
    Port(port::Port),
    /// Published ports: a gateway's port stands for a container's.
    #[command(subcommand)]
    Publish(publish::Publish),
    /// Run a command in a port's container, with its connections to the outside made by sockets of the host.
    Run(run::Run),
    /// Counters of ports, drops by reason, and the ledger.
    Stats(stats::Stats),
    /// Live view of ports and their rates.
    Top(top::Top),
    /// Tell what would become of a frame, and why: every stage's decision.
    Trace(Box<trace::Trace>),
}

/// What ends a command early.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Topology(#[from] crate::model::TopologyError),
    #[error("{act} {thing}: {source}; {remedy}")]
    Io {
        act: &'static str,
        thing: String,
        source: std::io::Error,
        remedy: &'static str,
    },
    #[error("{act} {thing}: {reason}; {remedy}")]
    Usage {
        act: &'static str,
        thing: String,
        reason: String,
        remedy: &'static str,
    },
    /// A command that was run has ended with this code.
    #[error("")]
    Ended(u8),
    /// Our reader has gone: no fault.
    #[error("")]
    Closed,
}

impl CtlError {
    fn code(&self) -> u8 {
        match self {
            CtlError::Closed => 0,
            CtlError::Ended(code) => *code,
            CtlError::Client(ClientError::Unreachable { .. }) => 3,
            CtlError::Client(ClientError::Refused(r)) if r.kind == Kind::NotFound => 4,
            CtlError::Usage { .. } | CtlError::Client(ClientError::Nameless) => 2,
            _ => 1,
        }
    }
}

type Done = Result<(), CtlError>;

/// What a command works with.
#[derive(Debug)]
struct Session {
    client: Client,
    socket: PathBuf,
    json: bool,
}

/// The command line's definition, for documents.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs vswitchctl with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let socket = cli.socket.unwrap_or_else(default_socket);
    let session = Session {
        client: Client::new(&socket),
        socket,
        json: cli.json,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(r) => r.block_on(run(&session, cli.command)),
        Err(source) => Err(CtlError::Io {
            act: "starting",
            thing: "vswitchctl".into(),
            source,
            remedy: "raise the limit of open files",
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let text = e.to_string();
            if !text.is_empty() {
                eprintln!("vswitchctl: {text}");
            }
            ExitCode::from(e.code())
        }
    }
}

async fn run(s: &Session, command: Command) -> Done {
    match command {
        Command::Apply(c) => topology::apply(s, &c).await,
        Command::Attach(c) => attach::run(s, c).await,
        Command::Capture(c) => capture::run(s, c).await,
        Command::Completions(c) => docs::completions(&c),
        Command::Conntrack(c) => conntrack::run(s, c).await,
        Command::Diff(c) => topology::show_diff(s, &c).await,
        Command::Events(c) => watch::run(s, &c).await,
        Command::Export => topology::export(s).await,
        Command::Fdb(c) => fdb::run(s, c).await,
        Command::Gateway(c) => gateway::run(s, c).await,
        Command::Instances => instances::run(s).await,
        Command::Man(c) => docs::man(&c),
        Command::Mirror(c) => mirror::run(s, c).await,
        Command::Network(c) => network::run(s, c).await,
        Command::Policy(c) => policy::run(s, c).await,
        Command::Port(c) => port::run(s, c).await,
        Command::Publish(c) => publish::run(s, c).await,
        Command::Run(c) => run::run(s, c).await,
        Command::Stats(c) => stats::run(s, &c).await,
        Command::Top(c) => top::run(s, &c).await,
        Command::Trace(c) => trace::run(s, *c).await,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_sound() {
        super::command().debug_assert();
    }
}
