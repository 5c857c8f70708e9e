//! Cost per frame against table size: ports, MACs, tracked flows, policy rules, workers.
//!
//! # Theory of operation
//! Every point of a curve is a vswitchd of its own with real TAP ports, started with a topology file as a person would. A tool in container
//! `a` sends frames made by hand ([`crate::traffic`]) into its TAP device, just ahead of what the switch reads; those for `b` are for MACs
//! that no stack has, so nobody answers. The cost is the daemon's processor time, system calls included, over the frames that it has read; a
//! sample counts only if `b`'s devices have received them. All points of a curve stand side by side and take turns (A B C, A B C), so
//! what slows the machine down slows them all, and the growth of a curve is the median of the ratios within a round.
//!
//! Nothing here is a model: 1,000 ports are 1,000 TAP devices, a million flows are a million connections of the daemon's table.

mod draw;
mod site;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;
use vswitch_tests::Lab;

use crate::peer::{Build, caught};
use crate::stats::{Summary, ratios};
use crate::{compare, machine, stop};

pub(crate) use draw::{section, table};

/// What grows along a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Axis {
    /// Ports of a network; one sends to all others in no order.
    Ports,
    /// MACs in the FDB, half of them at each of two ports; every frame from one to another in no order.
    Macs,
    /// Tracked flows between two ports; every datagram is of one in no order.
    Flows,
    /// Policy rules, of which the last matches; every datagram is the first of its connection.
    Setup,
    /// Policy rules; every datagram is of one of 1,000 established flows.
    Rules,
    /// Workers, with two pairs of ports that send at once.
    Workers,
}

impl Axis {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// What is counted along it, and what a unit of the cost is.
    pub(crate) fn title(self) -> (&'static str, &'static str) {
        match self {
            Axis::Ports => ("ports", "frame"),
            Axis::Macs => ("MACs", "frame"),
            Axis::Flows => ("tracked flows", "frame"),
            Axis::Setup => ("policy rules", "new connection"),
            Axis::Rules => ("policy rules", "frame"),
            Axis::Workers => ("workers", "frame"),
        }
    }

    fn points(self) -> &'static [u32] {
        match self {
            Axis::Ports => &[2, 10, 100, 300, 1000],
            Axis::Macs => &[100, 1000, 4000, 16_000, 64_000],
            Axis::Flows => &[1000, 10_000, 100_000, 1_000_000],
            Axis::Setup | Axis::Rules => &[10, 100, 1000, 10_000],
            Axis::Workers => &[1, 2],
        }
    }
}

/// A point of a curve: values by round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Point {
    pub(crate) size: u32,
    /// Nanoseconds of the daemon's processor time per frame or connection.
    pub(crate) cost: Vec<Option<f64>>,
    /// Frames switched per second, thousands.
    pub(crate) rate: Vec<Option<f64>>,
    /// Resident memory of the daemon once its tables were full.
    pub(crate) resident_mib: f64,
    /// From fork until the daemon with this topology answered.
    pub(crate) start_ms: f64,
}

/// One curve.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Curve {
    pub(crate) axis: Axis,
    pub(crate) points: Vec<Point>,
    /// Points that couldn't be measured, with the reason.
    pub(crate) failures: Vec<String>,
}

impl Curve {
    /// Cost of a point in nanoseconds, thousands of frames a second, and cost over that of the first point.
    pub(crate) fn summary(&self, point: &Point) -> Option<(Summary, Summary, Option<Summary>)> {
        let cost = Summary::of(point.cost.iter().flatten().copied())?;
        let rate = Summary::of(point.rate.iter().flatten().copied())?;
        let growth = ratios(&point.cost, &self.points.first()?.cost);
        Some((cost, rate, growth))
    }

    /// For programs: every round's values and what the table shows.
    pub(crate) fn json(&self) -> serde_json::Value {
        let point = |p: &Point| {
            let summary = self.summary(p);
            serde_json::json!({
                "size": p.size, "cost": p.cost, "rate": p.rate, "resident_mib": p.resident_mib, "start_ms": p.start_ms,
                "summary": summary.map(|(cost, rate, growth)|
                    serde_json::json!({"cost_ns": cost, "rate_kfps": rate, "growth": growth})),
            })
        };
        let (of, per) = self.axis.title();
        serde_json::json!({
            "curve": self.axis, "of": of, "unit": format!("ns/{per}"),
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) rounds: u16,
    pub(crate) seconds: f64,
    /// Points beyond this are left out.
    pub(crate) most: u32,
}

/// Measures curves, saying where it is.
pub(crate) fn measure(
    lab: &Lab,
    axes: &[Axis],
    extent: Extent,
    build: &dyn Fn() -> Build,
    bar: &ProgressBar,
) -> Vec<Curve> {
    axes.iter()
        .take_while(|_| !stop::asked())
        .map(|axis| curve(lab, *axis, extent, build, bar))
        .collect()
}

/// Steps of the progress bar.
pub(crate) fn steps(axes: &[Axis], extent: Extent) -> u64 {
    let points = |a: &Axis| a.points().iter().filter(|n| **n <= extent.most).count();
    axes.iter().map(points).sum::<usize>() as u64 * (1 + u64::from(extent.rounds))
}

fn curve(
    lab: &Lab,
    axis: Axis,
    extent: Extent,
    build: &dyn Fn() -> Build,
    bar: &ProgressBar,
) -> Curve {
    let mut failures = vec![];
    let mut fail = |size: u32, e: &anyhow::Error| failures.push(format!("{size}: {e:#}"));
    let mut sites = vec![];
    let sizes = axis.points().iter().filter(|n| **n <= extent.most);
    for size in sizes {
        bar.set_message(format!("scale: start {} {size}", axis.name()));
        let site = caught(|| site::Site::start(lab, axis, *size, build()));
        match site {
            Ok(site) => {
                let point = Point {
                    size: *size,
                    cost: vec![],
                    rate: vec![],
                    resident_mib: 0.0,
                    start_ms: site.start_ms,
                };
                sites.push((site, point));
            }
            Err(e) => fail(*size, &e),
        }
        bar.inc(1);
    }
    for round in 0..extent.rounds {
        for (site, point) in &mut sites {
            if stop::asked() {
                break;
            }
            bar.set_message(format!(
                "scale: round {} of {}: {} {}",
                round + 1,
                extent.rounds,
                axis.name(),
                point.size
            ));
            let sample = caught(std::panic::AssertUnwindSafe(|| site.sample(extent.seconds)));
            let (cost, rate) = match sample {
                Ok((cost, rate)) => (Some(cost), Some(rate)),
                Err(e) => {
                    fail(point.size, &e);
                    (None, None)
                }
            };
            point.cost.push(cost);
            point.rate.push(rate);
            point.resident_mib = machine::status(site.pid(), "VmRSS").unwrap_or(0) as f64 / 1024.0;
            bar.inc(1);
        }
    }
    Curve {
        axis,
        points: sites.into_iter().map(|(_, point)| point).collect(),
        failures,
    }
}

/// Options of the curves.
#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Which curves, several times or comma-separated [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    curve: Vec<Axis>,
    /// Turns every point gets.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Time measured per sample, 0.05 to 10.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Leave out points beyond this size.
    #[arg(long, default_value_t = u32::MAX)]
    most: u32,
    /// Write the curves to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with the curves to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// All curves, or those named.
pub(crate) fn axes(named: &[Axis]) -> Vec<Axis> {
    compare::unique(named, Axis::value_variants())
}

impl Scale {
    /// Measures and prints the table.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            (0.05..=10.0).contains(&self.seconds),
            "--seconds is 0.05 to 10"
        );
        stop::listen()?;
        machine::build()?;
        compare::warn_of_debug();
        let axes = axes(&self.curve);
        let extent = Extent {
            rounds: self.rounds,
            seconds: self.seconds,
            most: self.most,
        };
        let load = machine::load();
        let lab = Lab::new("scale")?;
        stop::removes(lab.dir());
        let bar = compare::progress(steps(&axes, extent))?;
        let curves = measure(&lab, &axes, extent, &Build::of_this_tree, &bar);
        bar.finish_and_clear();
        let mut about = vec![("command".to_owned(), compare::command_line())];
        about.extend(
            machine::description()
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v)),
        );
        about.push(("load".into(), compare::load_note(load)));
        for (name, value) in &about {
            println!("{name:<14} {value}");
        }
        print!("{}", table(&curves));
        if let Some(file) = &self.json {
            let about: std::collections::BTreeMap<_, _> = about.iter().cloned().collect();
            let all: Vec<_> = curves.iter().map(Curve::json).collect();
            let json = serde_json::json!({"about": about, "scale": all});
            let text = serde_json::to_string_pretty(&json).context("writing the curves as JSON")?;
            compare::write(file, &(text + "\n"))?;
        }
        if let Some(file) = &self.html {
            compare::write(file, &crate::page::scale_page(&about, &curves)?)?;
        }
        Ok(())
    }
}
