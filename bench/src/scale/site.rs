//! One point of a curve: a daemon with its topology, and the containers that its ports are in.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vswitch_tests::{Background, Lab, Node};

use super::Axis;
use crate::machine::{self, this_program};
use crate::peer::{Build, Switch, containers};
use crate::traffic::{Sent, parse};

/// MACs at each port where something else grows.
const MACS: u32 = 50;
/// Flows where something else grows.
const FLOWS: u32 = 1000;
/// Most connections of the daemon's table by default.
const TABLE: u32 = 262_144;
/// A tool that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(40);
/// Of a sample's frames at least so many reach the other side: a switch that drops is cheap.
const DELIVERED: f64 = 0.99;

pub(super) struct Site {
    axis: Axis,
    size: u32,
    daemon: Background,
    _switch: Switch,
    a: Node,
    b: Node,
    /// First flow that no sample has used.
    next: u32,
    pub(super) start_ms: f64,
}

/// How many pairs of ports send.
fn pairs(axis: Axis) -> u32 {
    if axis == Axis::Workers { 2 } else { 1 }
}

impl Site {
    pub(super) fn start(
        lab: &Lab,
        axis: Axis,
        size: u32,
        mut build: Build,
    ) -> anyhow::Result<Self> {
        let (a, b) = containers(lab);
        if axis == Axis::Workers {
            build.args.push(format!("--workers={size}"));
        }
        let switch = Switch::new(lab, build);
        let start = Instant::now();
        let daemon = switch.start_with(&topology(axis, size, &a, &b))?;
        let start_ms = start.elapsed().as_secs_f64() * 1e3;
        let site = Self {
            axis,
            size,
            daemon,
            _switch: switch,
            a,
            b,
            next: 0,
            start_ms,
        };
        site.introduce()?;
        Ok(site)
    }

    pub(super) fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Every end speaks once, so that nothing is flooded.
    fn introduce(&self) -> anyhow::Result<()> {
        let macs = self.macs().to_string();
        for pair in 0..pairs(self.axis) {
            let device = format!("eth{pair}");
            for (node, side) in [(&self.a, 2 * pair), (&self.b, 2 * pair + 1)] {
                // MACs of many ports are in the topology.
                if self.axis == Axis::Ports && side == 1 {
                    continue;
                }
                let side = side.to_string();
                let args = [
                    "--kind", "macs", "--side", &side, "--count", &macs, "--once",
                ];
                self.tool(node, &device, &args)?;
            }
        }
        Ok(())
    }

    /// MACs at each port of a pair.
    fn macs(&self) -> u32 {
        match self.axis {
            Axis::Macs => self.size / 2,
            _ => MACS,
        }
    }

    fn spawn(&self, node: &Node, device: &str, args: &[&str]) -> anyhow::Result<Background> {
        let program = this_program()?;
        Ok(node.spawn(&[&[program.as_str(), "tool", "frames", device], args].concat()))
    }

    fn tool(&self, node: &Node, device: &str, args: &[&str]) -> anyhow::Result<Sent> {
        parse(&self.spawn(node, device, args)?.finish(LIMIT))
    }

    /// Frames that `b`'s devices have received.
    fn received(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", self.b.pid()))
            .context("reading the counters of b's devices")?;
        let packets = |line: &str| -> Option<u64> {
            let (name, counters) = line.split_once(':')?;
            let second = counters.split_whitespace().nth(1)?.parse().ok()?;
            (name.trim() != "lo").then_some(second)
        };
        Ok(text.lines().filter_map(packets).sum())
    }

    /// Nanoseconds per frame or connection, and thousands of frames a second.
    pub(super) fn sample(&mut self, seconds: f64) -> anyhow::Result<(f64, f64)> {
        // Connections made before the clock starts, and time out between rounds.
        let flows = match self.axis {
            Axis::Flows => self.size,
            Axis::Rules => FLOWS,
            _ => 0,
        };
        if flows > 0 {
            let count = flows.to_string();
            let args = ["--kind", "flows", "--count", &count, "--once"];
            self.tool(&self.a, "eth0", &args)?;
        }
        let (cpu, before) = (machine::cpu_seconds(&[self.pid()]), self.received()?);
        let seconds = seconds.to_string();
        let mut sent = vec![];
        for (pair, running) in self.senders(&seconds)?.into_iter().enumerate() {
            let result: Sent =
                parse(&running.finish(LIMIT)).with_context(|| format!("sending into eth{pair}"))?;
            sent.push(result);
        }
        let cpu = machine::cpu_seconds(&[self.pid()]) - cpu;
        let frames: u64 = sent.iter().map(|s| s.frames).sum();
        ensure!(frames > 0, "nothing was sent");
        let delivered = (self.received()? - before) as f64 / frames as f64;
        ensure!(
            delivered >= DELIVERED,
            "of {frames} frames {:.1} % arrived",
            delivered * 100.0
        );
        if self.axis == Axis::Setup {
            self.next += frames as u32;
        }
        let rate: f64 = sent.iter().map(|s| s.frames as f64 / s.seconds).sum();
        Ok((cpu * 1e9 / frames as f64, rate / 1e3))
    }

    fn senders(&self, seconds: &str) -> anyhow::Result<Vec<Background>> {
        let (macs, far) = (
            self.macs().to_string(),
            self.size.saturating_sub(1).max(1).to_string(),
        );
        let (first, flows) = (self.next.to_string(), self.size.to_string());
        let established = FLOWS.to_string();
        let time = ["--seconds", seconds];
        // A new flow each: more than are sent in the time. They are numbered, so none comes twice.
        let (kind, side_0): (&str, Vec<&str>) = match self.axis {
            Axis::Ports => ("macs", vec!["--count", &macs, "--far", &far]),
            Axis::Macs | Axis::Workers => ("macs", vec!["--count", &macs]),
            Axis::Flows => ("flows", vec!["--count", &flows]),
            Axis::Rules => ("flows", vec!["--count", &established]),
            Axis::Setup => ("flows", vec!["--count", NEW, "--once", "--first", &first]),
        };
        let start = |pair: u32| {
            let (device, side) = (format!("eth{pair}"), (2 * pair).to_string());
            let head = ["--kind", kind, "--side", &side];
            self.spawn(&self.a, &device, &[&head[..], &side_0, &time].concat())
        };
        (0..pairs(self.axis)).map(start).collect()
    }
}

/// Connections that a sample of the set-up cost makes.
const NEW: &str = "60000";

fn topology(axis: Axis, size: u32, a: &Node, b: &Node) -> String {
    let mut text = String::from("[networks.lan]\nageing = \"0s\"\n");
    let ports = if axis == Axis::Ports { size - 1 } else { 1 };
    if axis == Axis::Ports {
        let entry = |n: u32| {
            let [.., x, y, z] = n.to_be_bytes();
            format!("{{ mac = \"02:00:01:{x:02x}:{y:02x}:{z:02x}\", port = \"b{n}\" }}")
        };
        let all: Vec<String> = (0..ports).map(entry).collect();
        let _ = writeln!(text, "fdb = [{}]", all.join(", "));
    }
    let table = if axis == Axis::Flows {
        TABLE.max(size + size / 2)
    } else {
        TABLE
    };
    let _ = writeln!(text, "[conntrack]\nmax = {table}\nper_source = 0");
    let mut port = |name: String, device: String, node: &Node| {
        let pid = node.pid();
        let _ = writeln!(
            text,
            "[ports.{name}]\nnetwork = \"lan\"\ndevice = \"{device}\"\nnetns = \"pid:{pid}\""
        );
    };
    let pairs = pairs(axis);
    for n in 0..pairs {
        port(format!("a{n}"), format!("eth{n}"), a);
    }
    for n in 0..ports.max(pairs) {
        port(format!("b{n}"), format!("eth{n}"), b);
    }
    let rules = match axis {
        Axis::Setup | Axis::Rules => size,
        Axis::Flows => 1,
        _ => 0,
    };
    if rules > 0 {
        text += "[policies.bench]\nto = \"network:lan\"\ndefault = \"drop\"\nrules = [\n";
        // As an orchestrator writes them: who may talk to a service; all but the last are of others.
        for n in 1..rules {
            let (x, y, port) = (n >> 8 & 255, n & 255, 1024 + n);
            let _ = writeln!(
                text,
                "{{ action = \"accept\", from = \"203.0.113.{}/32\", to = \"198.19.{x}.{y}/32\", proto = \"tcp\", ports = \"{port}\" }},",
                n % 256
            );
        }
        text += "{ action = \"accept\", from = \"192.0.2.0/24\", proto = \"udp\" },\n]\n";
    }
    text
}
