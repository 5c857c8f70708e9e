//! Traffic tools: the two ends of a workload, each a process of its own in its container.
//!
//! # Theory of operation
//! A tool is a hidden subcommand of this program. The passive end prints `ready` once it listens, the active end prints
//! nothing before it is done; both end with one line of JSON. Where a rate is measured the receiver has the clock: it lets a
//! warm-up pass after the first byte, counts for the given time and so ends the run. Every tool ends by SIGALRM if nothing
//! else ends it.

mod conn;
mod frames;
mod probe;
mod rtt;
mod tcp;
mod udp;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub(crate) use conn::Connects;
pub(crate) use frames::Sent;
pub(crate) use probe::{Reply, Started};
pub(crate) use rtt::RoundTrips;
pub(crate) use tcp::{Sourced, Streams};
pub(crate) use udp::{Delivered, Flood};

/// Nothing takes longer beyond its measuring time.
const SLACK_SECONDS: u32 = 20;

#[derive(Debug, Clone, Args)]
pub(crate) struct Ends {
    /// Where to listen, or to send to.
    address: SocketAddr,
    /// Time measured.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// TCP streams, or threads that accept.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Bytes of UDP payload, or of each write to a TCP stream: 0 for as many as go.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Datagrams a second of an open loop, or writes of `size` to a TCP stream: 0 for as many as go.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// TCP: the source listens and the sink connects.
    #[arg(long)]
    down: bool,
    /// Processor to run on.
    #[arg(long)]
    cpu: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Receives TCP streams and counts.
    TcpSink(Ends),
    /// Writes TCP streams until the sink ends them.
    TcpSource(Ends),
    /// Receives datagrams and counts.
    UdpSink(Ends),
    /// Sends datagrams as fast as it can.
    UdpFlood(Ends),
    /// Sends datagrams back.
    UdpEcho(Ends),
    /// Sends a datagram once the last has come back.
    UdpPing(Ends),
    /// Sends datagrams at a rate, whatever comes back.
    UdpLoad(Ends),
    /// Sends back what comes by a TCP stream.
    TcpEcho(Ends),
    /// Writes to a TCP stream once the last has come back.
    TcpPing(Ends),
    /// Accepts TCP connections and closes them.
    TcpAccept(Ends),
    /// Opens TCP connections one after the other.
    TcpConnect(Ends),
    /// Waits for the first answer of an echo that can't be reached yet.
    FirstReply(Ends),
    /// Sends frames of many MACs or flows into a TAP device.
    Frames(frames::Frames),
    /// Starts a program and tells when it was ready.
    Start {
        /// Program and arguments; `--ready-fd FD` is added.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
    /// Forwards frames between two TAP devices by plain reads and writes of crate tun-tap.
    ForwardTap(crate::baseline::Between),
    /// Forwards frames between two interfaces by plain reads and writes of crate afpacket.
    ForwardPacket(crate::baseline::Between),
}

impl Tool {
    /// Runs one end until it is done.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Tool::TcpSink(e) => print(&tcp::sink(&e.bounded()?)?),
            Tool::TcpSource(e) => print(&tcp::source(&e.bounded()?)?),
            Tool::UdpSink(e) => print(&udp::sink(&e.bounded()?)?),
            Tool::UdpFlood(e) => print(&udp::flood(&e.bounded()?)?),
            Tool::UdpEcho(e) => rtt::echo(&e.bounded()?),
            Tool::UdpPing(e) => print(&rtt::ping(&e.bounded()?)?),
            Tool::UdpLoad(e) => print(&rtt::load(&e.bounded()?)?),
            Tool::TcpEcho(e) => rtt::tcp_echo(&e.bounded()?),
            Tool::TcpPing(e) => print(&rtt::tcp_ping(&e.bounded()?)?),
            Tool::TcpAccept(e) => conn::accept(&e.bounded()?),
            Tool::TcpConnect(e) => print(&conn::connect(&e.bounded()?)?),
            Tool::FirstReply(e) => print(&probe::first_reply(&e.bounded()?)?),
            Tool::Frames(f) => print(&frames::send(&f)?),
            Tool::Start { argv } => probe::start(&argv),
            Tool::ForwardTap(b) => crate::baseline::tap::forward(&b),
            Tool::ForwardPacket(b) => crate::baseline::packet::forward(&b),
        }
    }
}

impl Ends {
    /// Sets the alarm and goes to its processor.
    fn bounded(self) -> anyhow::Result<Self> {
        nix::unistd::alarm::set(self.seconds.ceil() as u32 + SLACK_SECONDS);
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            let pinned = set
                .set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
            pinned.with_context(|| format!("running on processor {cpu}"))?;
        }
        Ok(self)
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Time that passes between the first byte and the first that counts.
    fn warm_up(&self) -> Duration {
        (self.time() / 5).min(Duration::from_millis(300))
    }
}

/// Tells the other side that it may begin.
fn ready() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")
        .and_then(|()| out.flush())
        .context("writing to stdout")
}

fn print(result: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(result).context("writing the result as JSON")?;
    writeln!(std::io::stdout(), "{line}").context("writing to stdout")
}

/// CPU seconds this process has used.
fn cpu_seconds() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return 0.0;
    };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6)
        .sum()
}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of the machine share.
fn monotonic() -> u64 {
    let now = nix::time::ClockId::CLOCK_MONOTONIC.now();
    now.map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}

/// Reads the JSON line a tool ended with.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(
    output: &vswitch_tests::Output,
) -> anyhow::Result<T> {
    let line = output.stdout.lines().rfind(|l| l.starts_with('{'));
    let line = line.with_context(|| format!("no result: {output}"))?;
    serde_json::from_str(line)
        .with_context(|| format!("reading the result of `{}`", output.command))
}
