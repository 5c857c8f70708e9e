//! `vswitchd demo`: a switch and three containers in namespaces of their own, shown at work.
//!
//! # Theory of operation
//!
//! Four sorts of process take part, all of them this program. The demo itself enters new namespaces ([`place`]) while it has
//! one thread. For each container it starts a *holder* ([`inside`]), which makes the container's namespaces and starts an
//! *agent* as process 1 in them. The demo then runs the switch as a library, ports and addresses described by an ordinary
//! topology, and asks the agents over a socket pair ([`talk`]) to ping, send and measure ([`probe`]) through their real
//! kernel stacks. No other program is run.
//!
//! Nothing outlives the demo, even if it is killed: holders end when its pipe to them closes, agents die with their holders,
//! devices go with their namespaces, and the directory of the control socket is removed by [`place::Place`] and the holders.
//! Signals are read from a descriptor wherever the demo waits, so that Ctrl-C takes the same way out as the end.

mod container;
mod inside;
mod place;
mod probe;
mod screen;
mod show;
mod signals;
mod talk;

pub(crate) use inside::{Inside, agent, hold};

use crate::daemon::{Daemon, Options};
use crate::model::{Network, Port, Topology};
use crate::units::{Cidr, Mac};
use container::Container;
use nix::sys::signal::Signal;
use place::Place;
use screen::Screen;
use show::Show;
use signals::Signals;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use vswitch_core::wire::MacAddr;

/// The containers, in order of their addresses.
const NAMES: [&str; 3] = ["web", "db", "cache"];
/// The network they are in.
const NETWORK: &str = "demo";
/// Their interface.
const DEVICE: &str = "eth0";

/// Options of the demo.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It needs no privileges but access to /dev/net/tun and permission to make user namespaces, and ends within 15 seconds.

Exit codes:
  0    everything was shown, or --keep was ended by Ctrl-C
  1    it couldn't start, or a container couldn't be reached
  130  Ctrl-C in the middle")]
pub(crate) struct Demo {
    /// Leave it all up until Ctrl-C, and print commands to play with.
    #[arg(long)]
    keep: bool,
}

/// What ends the demo early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("{act}: {reason}; {remedy}")]
    Failed {
        act: String,
        reason: String,
        remedy: String,
    },
    #[error(transparent)]
    Tun(#[from] vswitch_core::sys::tun::TunError),
    #[error(transparent)]
    Start(#[from] crate::daemon::StartError),
    #[error("stopped by {0}; everything is cleaned up")]
    Stopped(Signal),
    /// Our reader has gone: no fault.
    #[error("standard output was closed")]
    Closed,
}

impl DemoError {
    #[expect(clippy::needless_pass_by_value, reason = "errors are mapped by it")]
    fn failed(act: impl Into<String>, reason: impl ToString, remedy: &str) -> DemoError {
        DemoError::Failed {
            act: act.into(),
            reason: reason.to_string(),
            remedy: remedy.to_owned(),
        }
    }

    /// A plain system call that hardly ever fails.
    fn system(act: impl Into<String>) -> impl FnOnce(io::Error) -> DemoError {
        let act = act.into();
        move |e| DemoError::failed(act, e, "raise the limits of processes and open files")
    }
}

/// Runs the demo.
pub(crate) fn main(demo: &Demo) -> ExitCode {
    match run(demo) {
        Ok(()) | Err(DemoError::Closed) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vswitchd: {e}");
            match e {
                DemoError::Stopped(signal) => ExitCode::from(128 + signal as u8),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn address6(number: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into()
}

fn run(demo: &Demo) -> Result<(), DemoError> {
    vswitch_core::sys::tun::check()?;
    let signals = Signals::take()?;
    let screen = Screen::new();
    let place = Place::enter(&NAMES)?;
    let mut containers = Vec::new();
    for name in NAMES {
        containers.push(Container::start(name, place.dir(), &signals)?);
    }
    let with_v6 = place::has_ipv6();
    let daemon = Daemon::start(Options {
        socket: Some(place.socket()),
        topology: Some(topology(&containers, with_v6)),
        ..Options::default()
    })?;
    let mut show = Show {
        screen: &screen,
        signals: &signals,
        containers: &mut containers,
        daemon: &daemon,
        with_v6,
    };
    show.run()?;
    if demo.keep {
        show::commands(&screen, &place, &containers)?;
        signals.wait();
    }
    drop(daemon);
    drop(containers);
    drop(place);
    screen.say("\nEverything it made is gone again.\n")
}

/// One network, and a TAP port in each container.
fn topology(containers: &[Container], with_v6: bool) -> Topology {
    let mut topology = Topology::default();
    topology.networks.insert(NETWORK.into(), Network::default());
    for (number, container) in (1..).zip(containers) {
        let mut addresses = vec![Cidr((address(number), 24))];
        if with_v6 {
            addresses.push(Cidr((address6(number), 64)));
        }
        let port = Port {
            device: Some(DEVICE.into()),
            netns: Some(format!("pid:{}", container.pid())),
            mac: Some(Mac(MacAddr([2, 0, 0, 0, 0, number]))),
            addresses,
            ..Port::new(NETWORK)
        };
        topology.ports.insert(container.name().into(), port);
    }
    topology
}
