//! The workloads: what is run between the two containers of a bed, and which figures come out of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use vswitch_tests::{Background, Lab, Node};

use crate::machine::{self, this_program};
use crate::peer::{ADDRESSES, Bed, Build, Peer, Switch, caught, containers, rootless};
use crate::traffic::{
    Connects, Delivered, Flood, Reply, RoundTrips, Sourced, Started, Streams, parse,
};

/// Acceptors of the connection workload.
const ACCEPTORS: usize = 2;
/// What the containers' kernels say by themselves when a device comes up is over by then.
const SETTLE: Duration = Duration::from_secs(1);

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Memory and wake-ups of the switch while nothing happens.
    Idle,
    /// vswitchd from exec to ready and to the first frame forwarded.
    Start,
    /// TCP, 1 stream.
    Tcp1,
    /// TCP, 1 stream the other way: `a` opens it, `b` sends.
    Tcp1Down,
    /// TCP, 1 stream from `b` to `a` in writes of 200 bytes, each sent at once, as many as go.
    TcpSmall,
    /// The same, 20,000 writes a second.
    TcpTrickle,
    /// TCP, 8 streams.
    Tcp8,
    /// TCP, 8 streams the other way.
    Tcp8Down,
    /// UDP datagrams of 64 bytes, flooded.
    Udp64,
    /// UDP datagrams of 512 bytes, flooded.
    Udp512,
    /// UDP datagrams of 1472 bytes, flooded.
    Udp1472,
    /// Round trips in a closed loop.
    Rtt,
    /// Round trips of 64 bytes over a TCP stream, in a closed loop.
    RttTcp,
    /// Round trips in an open loop, 5,000 a second.
    RttLoad,
    /// TCP, 1 stream, and 1,000 round trips a second in an open loop beside it.
    Mixed,
    /// TCP connections opened and closed.
    Conn,
    /// TCP, 1 stream from outside into a published port.
    Published,
    /// TCP, 1 stream from the host's loopback into a published port.
    PublishedLocal,
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What is measured, and in what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Metric {
    pub(crate) workload: Workload,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// One measured value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// What one run brought.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: Vec<Figure>,
    /// Percentiles of round trips and their values in microseconds.
    pub(crate) curve: Vec<(f64, f64)>,
}

impl From<Vec<Figure>> for Sample {
    fn from(figures: Vec<Figure>) -> Self {
        Sample {
            figures,
            curve: vec![],
        }
    }
}

/// How long things take.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Times {
    pub(crate) seconds: f64,
    pub(crate) idle_seconds: f64,
    /// Each end on a processor of its own.
    pub(crate) pin: bool,
}

impl Workload {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Whether it means anything for a peer.
    pub(crate) fn applies(self, peer: Peer) -> bool {
        match self {
            Workload::Start => matches!(
                peer,
                Peer::VswitchTap | Peer::BeforeTap | Peer::Slirp4netns | Peer::VswitchSlirp4netns
            ),
            Workload::Idle => !matches!(
                peer,
                Peer::Veth | Peer::Bridge | Peer::RawTuntap | Peer::RawAfpacket | Peer::Nftables
            ),
            Workload::Published | Workload::PublishedLocal => peer.is_rootless(),
            _ => true,
        }
    }

    /// Whether it starts a switch of its own instead of using the bed.
    pub(crate) fn starts_its_own(self) -> bool {
        self == Workload::Start
    }

    fn figure(self, name: &'static str, unit: &'static str, better: Better, value: f64) -> Figure {
        let metric = Metric {
            workload: self,
            name,
            unit,
            better,
        };
        Figure { metric, value }
    }

    /// Runs it once over a bed.
    pub(crate) fn run(self, bed: &Bed, times: Times) -> anyhow::Result<Sample> {
        caught(|| match self {
            Workload::Idle | Workload::Start => Ok(Sample::default()),
            Workload::Tcp1
            | Workload::Tcp1Down
            | Workload::TcpSmall
            | Workload::TcpTrickle
            | Workload::Published
            | Workload::PublishedLocal => self.tcp(bed, times, 1).map(Sample::from),
            Workload::Tcp8 | Workload::Tcp8Down => self.tcp(bed, times, 8).map(Sample::from),
            Workload::Udp64 => self.udp(bed, times, 64).map(Sample::from),
            Workload::Udp512 => self.udp(bed, times, 512).map(Sample::from),
            Workload::Udp1472 => self.udp(bed, times, 1472).map(Sample::from),
            Workload::Rtt => self.rtt(bed, times, ["udp-echo", "udp-ping"]),
            Workload::RttTcp => self.rtt(bed, times, ["tcp-echo", "tcp-ping"]),
            Workload::RttLoad => self.rtt(bed, times, ["udp-echo", "udp-load"]),
            Workload::Mixed => self.mixed(bed, times),
            Workload::Conn => self.conn(bed, times).map(Sample::from),
        })
        .with_context(|| format!("running {}", self.name()))
    }

    /// Where the passive and the active end are, and the address of the former.
    fn ends(self, bed: &Bed) -> anyhow::Result<(&Node, &Node, &'static str)> {
        Ok(match self {
            Workload::Published => {
                let published = bed.published.context("nothing is published")?;
                (&bed.a, &bed.b, published)
            }
            Workload::PublishedLocal => {
                let host = bed.hosts.first().context("there is no host")?;
                (&bed.a, host, "127.0.0.1")
            }
            _ => (&bed.b, &bed.a, bed.far),
        })
    }

    /// All beds at once, since nothing happens on any.
    pub(crate) fn idle(self, beds: &[&Bed], times: Times) -> Vec<anyhow::Result<Sample>> {
        machine::rest(SETTLE);
        let before: Vec<_> = beds.iter().map(|b| machine::sleeps(&b.all())).collect();
        let start = Instant::now();
        machine::rest(Duration::from_secs_f64(times.idle_seconds));
        let of = |(bed, before): (&&Bed, anyhow::Result<u64>)| {
            let wakes = machine::sleeps(&bed.all())? - before?;
            let wakes = wakes as f64 / start.elapsed().as_secs_f64();
            let mut rss = 0;
            for pid in &bed.switch {
                rss += machine::resident(*pid)?;
            }
            Ok(vec![
                self.figure("resident", "MiB", Better::Lower, rss as f64 / 1024.0),
                self.figure("wake-ups", "1/s", Better::Lower, wakes),
            ]
            .into())
        };
        beds.iter().zip(before).map(of).collect()
    }

    fn tcp(self, bed: &Bed, times: Times, streams: usize) -> anyhow::Result<Vec<Figure>> {
        let is_small = matches!(self, Workload::TcpSmall | Workload::TcpTrickle);
        let cpu = machine::cpu_seconds(&bed.all());
        let run = Run {
            streams,
            down: is_small || matches!(self, Workload::Tcp1Down | Workload::Tcp8Down),
            size: if is_small { SMALL } else { 0 },
            rate: match self {
                Workload::TcpTrickle => TRICKLE,
                _ => 0,
            },
            ..Run::new(bed, self.ends(bed)?, times)
        };
        let (sourced, received): (Sourced, Streams) = if run.down {
            let source = run.server("tcp-source")?;
            let received = run.client("tcp-sink")?;
            (parse(&source.finish(LIMIT))?, received)
        } else {
            let sink = run.server("tcp-sink")?;
            let sourced = run.client("tcp-source")?;
            (sourced, parse(&sink.finish(LIMIT))?)
        };
        let cpu = machine::cpu_seconds(&bed.all()) - cpu;
        ensure!(received.bytes > 0, "nothing arrived");
        let gigabytes = received.total_bytes as f64 / 1e9;
        let rate = received.bytes as f64 * 8.0 / 1e9 / received.seconds;
        let mut figures = vec![match is_small {
            true => self.figure("rate", "Mbit/s", Better::Higher, rate * 1e3),
            false => self.figure("rate", "Gbit/s", Better::Higher, rate),
        }];
        if !bed.switch.is_empty() {
            figures.push(self.figure("switch CPU", "s/GB", Better::Lower, cpu / gigabytes));
        }
        let all = cpu + sourced.cpu_seconds + received.cpu_seconds;
        figures.push(self.figure("CPU with both ends", "s/GB", Better::Lower, all / gigabytes));
        Ok(figures)
    }

    fn udp(self, bed: &Bed, times: Times, size: usize) -> anyhow::Result<Vec<Figure>> {
        let cpu = machine::cpu_seconds(&bed.all());
        let run = Run {
            size,
            ..Run::new(bed, self.ends(bed)?, times)
        };
        let sink = run.server("udp-sink")?;
        let flood: Flood = run.client("udp-flood")?;
        let got: Delivered = parse(&sink.finish(LIMIT))?;
        let cpu = machine::cpu_seconds(&bed.all()) - cpu;
        ensure!(got.datagrams > 0 && flood.sent > 0, "nothing arrived");
        let lost = 1.0 - (got.total as f64 / flood.sent as f64).min(1.0);
        let mut figures = vec![
            self.figure(
                "delivered",
                "kpps",
                Better::Higher,
                got.datagrams as f64 / got.seconds / 1e3,
            ),
            self.figure("lost", "%", Better::Lower, lost * 100.0),
        ];
        if !bed.switch.is_empty() {
            let each = cpu * 1e6 / got.total as f64;
            figures.push(self.figure("switch CPU", "us/frame", Better::Lower, each));
        }
        Ok(figures)
    }

    fn rtt(self, bed: &Bed, times: Times, tools: [&str; 2]) -> anyhow::Result<Sample> {
        let run = Run {
            rate: LOAD,
            ..Run::new(bed, self.ends(bed)?, times)
        };
        let _echo = run.server(tools[0])?;
        self.trips(run.client(tools[1])?)
    }

    fn trips(self, trips: RoundTrips) -> anyhow::Result<Sample> {
        ensure!(trips.count > 0, "no answer came back");
        let figures = vec![
            self.figure("p50", "us", Better::Lower, trips.p50),
            self.figure("p99", "us", Better::Lower, trips.p99),
            self.figure("p99.9", "us", Better::Lower, trips.p999),
            self.figure("lost", "trips", Better::Lower, trips.lost as f64),
        ];
        Ok(Sample {
            figures,
            curve: trips.curve,
        })
    }

    /// Bulk and round trips at once.
    fn mixed(self, bed: &Bed, times: Times) -> anyhow::Result<Sample> {
        let run = Run {
            rate: LOAD_BESIDE,
            ..Run::new(bed, self.ends(bed)?, times)
        };
        let _echo = run.server("udp-echo")?;
        let sink = run.server("tcp-sink")?;
        let source = run.active("tcp-source")?;
        let mut sample = self.trips(run.client("udp-load")?)?;
        let received: Streams = parse(&sink.finish(LIMIT))?;
        let sourced = source.finish(LIMIT);
        ensure!(sourced.success(), "{sourced}");
        ensure!(received.bytes > 0, "nothing arrived");
        let rate = received.bytes as f64 * 8.0 / 1e9 / received.seconds;
        let rate = self.figure("rate", "Gbit/s", Better::Higher, rate);
        sample.figures.push(rate);
        Ok(sample)
    }

    fn conn(self, bed: &Bed, times: Times) -> anyhow::Result<Vec<Figure>> {
        let run = Run {
            streams: ACCEPTORS,
            ..Run::new(bed, self.ends(bed)?, times)
        };
        let _acceptor = run.server("tcp-accept")?;
        let made: Connects = run.client("tcp-connect")?;
        let rate = made.connections as f64 / made.seconds / 1e3;
        Ok(vec![self.figure(
            "connections",
            "k/s",
            Better::Higher,
            rate,
        )])
    }

    /// Starts what stands between a container and the host's sockets, until it says that it is ready.
    pub(crate) fn start_program(self, lab: &Lab, program: &str) -> anyhow::Result<Sample> {
        caught(move || {
            let (_a, host, argv) = rootless::to_start(lab, program)?;
            let this = this_program()?;
            let mut line = vec![this.as_str(), "tool", "start", "--"];
            line.extend(argv.iter().map(String::as_str));
            let mut starter = host.spawn(&line);
            starter.wait_for("}");
            let output = starter.output();
            let line = output.lines().find(|l| l.starts_with('{'));
            let line = line.with_context(|| format!("{program} wasn't ready: {output}"))?;
            let started: Started =
                serde_json::from_str(line).context("reading when it was started")?;
            let took = started.ready.saturating_sub(started.started) as f64 / 1e6;
            Ok(vec![self.figure("to ready", "ms", Better::Lower, took)].into())
        })
        .with_context(|| format!("running {}", self.name()))
    }

    /// Runs the workload that starts a switch of its own.
    pub(crate) fn start(self, lab: &Lab, build: Build) -> anyhow::Result<Sample> {
        caught(move || {
            let (a, b) = containers(lab);
            let switch = Switch::new(lab, build);
            let program = this_program()?;
            let address = format!("{}:{PORT}", ADDRESSES[0]);
            let mut echo = a.spawn(&[&program, "tool", "udp-echo", "0.0.0.0:7000"]);
            echo.wait_for("ready");
            // The container that is attached last asks; it waits at full speed, as somebody would who wants to know.
            let mut probe = b.spawn(&[&program, "tool", "first-reply", &address]);
            probe.wait_for("ready");
            let daemon = switch.argv_with_topology(&a, &b)?;
            let mut argv = vec![program.as_str(), "tool", "start", "--"];
            argv.extend(daemon.iter().map(String::as_str));
            let mut starter = switch.host.spawn(&argv);
            let reply = parse::<Reply>(&probe.finish(LIMIT));
            let reply = reply.with_context(|| format!("vswitchd said: {}", starter.output()))?;
            // The first reply may be there before the line that says when it was ready.
            starter.wait_for("}");
            let output = starter.output();
            let line = output
                .lines()
                .find(|l| l.starts_with('{'))
                .context("the daemon wasn't ready")?;
            let started: Started =
                serde_json::from_str(line).context("reading when the daemon was started")?;
            let since = |at: u64| at.saturating_sub(started.started) as f64 / 1e6;
            Ok(vec![
                self.figure("to ready", "ms", Better::Lower, since(started.ready)),
                self.figure("to first frame", "ms", Better::Lower, since(reply.at)),
            ]
            .into())
        })
        .with_context(|| format!("running {}", self.name()))
    }
}

/// The port of every workload.
pub(crate) const PORT: u16 = 7000;
/// Round trips a second of the open loops: alone, and beside bulk.
const LOAD: u32 = 5000;
const LOAD_BESIDE: u32 = 1000;
/// Bytes of a small write, and how many a second where they aren't as many as go.
const SMALL: usize = 200;
const TRICKLE: u32 = 20_000;
/// A tool that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(40);

/// One run of two tools.
struct Run<'a> {
    /// Where the passive end is, and the active one, and what that calls the former.
    ends: (&'a Node, &'a Node, &'static str),
    /// What starts the active end, if something has to.
    launcher: &'a [String],
    times: Times,
    streams: usize,
    /// The passive end is the one that sends.
    down: bool,
    size: usize,
    /// Datagrams a second of an open loop, or small writes to a stream.
    rate: u32,
}

impl<'a> Run<'a> {
    fn new(bed: &'a Bed, ends: (&'a Node, &'a Node, &'static str), times: Times) -> Self {
        let is_container = std::ptr::eq(ends.1, &raw const bed.a);
        Run {
            ends,
            launcher: if is_container { &bed.launcher } else { &[] },
            times,
            streams: 1,
            down: false,
            size: 0,
            rate: LOAD,
        }
    }

    fn spawn(
        &self,
        node: &Node,
        launcher: &[String],
        cpu: &str,
        tool: &str,
        address: &str,
    ) -> anyhow::Result<Background> {
        let (program, address) = (this_program()?, format!("{address}:{PORT}"));
        let (seconds, streams, size, rate) = (
            self.times.seconds.to_string(),
            self.streams.to_string(),
            self.size.to_string(),
            self.rate.to_string(),
        );
        let argv = [
            program.as_str(),
            "tool",
            tool,
            &address,
            "--seconds",
            &seconds,
            "--streams",
            &streams,
            "--size",
            &size,
            "--rate",
            &rate,
        ];
        let pin: &[&str] = if self.times.pin { &["--cpu", cpu] } else { &[] };
        let down: &[&str] = if self.down { &["--down"] } else { &[] };
        let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
        Ok(node.spawn(&[&launcher[..], &argv, down, pin].concat()))
    }

    /// Starts the passive end.
    fn server(&self, tool: &str) -> anyhow::Result<Background> {
        let mut server = self.spawn(self.ends.0, &[], "1", tool, "0.0.0.0")?;
        server.wait_for("ready");
        Ok(server)
    }

    /// Starts the active end.
    fn active(&self, tool: &str) -> anyhow::Result<Background> {
        self.spawn(self.ends.1, self.launcher, "0", tool, self.ends.2)
    }

    /// Runs the active end.
    fn client<T: for<'d> serde::Deserialize<'d>>(&self, tool: &str) -> anyhow::Result<T> {
        let output = self.active(tool)?.finish(LIMIT);
        ensure!(output.success(), "{output}");
        parse(&output)
    }
}
