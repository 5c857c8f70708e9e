//! The tables of README.md, made of a report that is checked in: figures in documents are those of a run, not of somebody's hand.
//!
//! A document may have places between `<!-- bench:NAME -->` and `<!-- bench:end -->` that hold a table of [`TABLES`]; all else is left alone.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::report::show;

/// Options.
#[derive(Debug, Args)]
pub(crate) struct Readme {
    /// The report, as `compare --json` has written it [default: bench/report.json of the sources].
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the tables into the documents, instead of telling whether they are there.
    #[arg(long)]
    write: bool,
    /// Documents [default: README.md and bench/README.md of the sources].
    document: Vec<PathBuf>,
}

/// A row: what it says, workload and metric.
type Line = (&'static str, &'static str, &'static str);

/// A table by name: peers, as columns with their titles, and rows. Ratios are to the first column.
struct Table {
    name: &'static str,
    peers: &'static [(&'static str, &'static str)],
    lines: &'static [Line],
}

const TABLES: [Table; 3] = [
    Table {
        name: "switches",
        peers: &[
            ("bridge", "Linux bridge"),
            ("veth", "veth pair"),
            ("ovs", "Open vSwitch, netdev"),
            ("vde", "VDE2"),
            ("vswitch-tap", "vswitch, TAP"),
            ("vswitch-veth", "vswitch, veth"),
        ],
        lines: &[
            ("TCP 1 stream, Gbit/s", "tcp1", "rate"),
            ("TCP 8 streams, Gbit/s", "tcp8", "rate"),
            (
                "CPU, ends and switch, TCP 1 stream, s/GB",
                "tcp1",
                "CPU with both ends",
            ),
            ("UDP 64 B delivered, kpps", "udp64", "delivered"),
            ("UDP 1472 B delivered, kpps", "udp1472", "delivered"),
            ("round trip p50, us", "rtt", "p50"),
            ("round trip p99, us", "rtt", "p99"),
            ("5,000 round trips a second, p99, us", "rtt-load", "p99"),
            ("round trip p99 beside a TCP stream, us", "mixed", "p99"),
            ("connections per second, k", "conn", "connections"),
            ("resident memory, idle, MiB", "idle", "resident"),
            ("wake-ups per second, idle", "idle", "wake-ups"),
        ],
    },
    Table {
        name: "outside",
        peers: &[
            ("pasta", "pasta"),
            ("pasta-debian13", "pasta of Debian 13"),
            ("slirp4netns", "slirp4netns"),
            ("vswitch-rootless", "vswitch, host uplink"),
            ("vswitch-rootless-1500", "the same, MTU 1500"),
            ("vswitch-slirp4netns", "vswitch's slirp4netns"),
        ],
        lines: &[
            ("TCP up, Gbit/s", "tcp1", "rate"),
            ("TCP down, Gbit/s", "tcp1-down", "rate"),
            (
                "CPU of the switch, TCP down, s/GB",
                "tcp1-down",
                "switch CPU",
            ),
            ("published port, from outside, Gbit/s", "published", "rate"),
            (
                "published port, from the host, Gbit/s",
                "published-local",
                "rate",
            ),
            ("UDP 64 B delivered, kpps", "udp64", "delivered"),
            ("round trip p50, us", "rtt", "p50"),
            ("round trip p99, us", "rtt", "p99"),
            ("connections per second, k", "conn", "connections"),
            ("resident memory, idle, MiB", "idle", "resident"),
        ],
    },
    Table {
        name: "translation",
        peers: &[
            ("nftables", "nftables masquerade"),
            ("vswitch-nat", "vswitch, gateway"),
        ],
        lines: &[
            ("TCP up, Gbit/s", "tcp1", "rate"),
            ("TCP down, Gbit/s", "tcp1-down", "rate"),
            ("UDP 64 B delivered, kpps", "udp64", "delivered"),
            ("round trip p50, us", "rtt", "p50"),
            ("round trip p99, us", "rtt", "p99"),
            ("connections per second, k", "conn", "connections"),
        ],
    },
];

/// Every name that a document may use.
const SCALE: &str = "scale";
const RUN: &str = "run";

fn median(report: &Value, peer: &str, line: &Line) -> Option<(f64, Option<f64>, String)> {
    let is = |f: &&Value| f["workload"] == line.1 && f["metric"] == line.2 && f["peer"] == peer;
    let figure = report["figures"].as_array()?.iter().find(is)?;
    let ratio = figure["ratio"]["median"].as_f64();
    let to = figure["ratio_to"].as_str().unwrap_or_default();
    Some((figure["summary"]["median"].as_f64()?, ratio, to.to_owned()))
}

fn table(report: &Value, table: &Table) -> String {
    let mut text = String::from("|");
    for (_, title) in table.peers {
        let _ = write!(text, " | {title}");
    }
    text += " |\n|---";
    text += &"|---".repeat(table.peers.len());
    text += "|\n";
    let base = table.peers.first().map_or("", |p| p.0);
    for line in table.lines {
        let _ = write!(text, "| {}", line.0);
        for (peer, _) in table.peers {
            text += " | ";
            match median(report, peer, line) {
                Some((value, Some(ratio), to)) if to == base && *peer != base => {
                    let _ = write!(text, "{} ({ratio:.2})", show(value));
                }
                Some((value, ..)) => text += &show(value),
                None => {}
            }
        }
        text += " |\n";
    }
    text
}

/// First, last and growth of each curve.
fn scale(report: &Value) -> Option<String> {
    let mut text = String::from(
        "| what grows | from | to | cost at first | cost at last | growth |\n|---|---|---|---|---|---|\n",
    );
    for curve in report["scale"].as_array()? {
        let points = curve["points"].as_array()?;
        let measured = |p: &&Value| p["summary"].is_object();
        let (first, last) = (
            points.iter().find(measured)?,
            points.iter().rfind(measured)?,
        );
        let cost = |p: &Value| p["summary"]["cost_ns"]["median"].as_f64().map(show);
        let growth = last["summary"]["growth"]["median"].as_f64();
        let _ = writeln!(
            text,
            "| {} (`{}`) | {} | {} | {} {unit} | {} {unit} | {} |",
            curve["of"].as_str()?,
            curve["curve"].as_str()?,
            first["size"],
            last["size"],
            cost(first)?,
            cost(last)?,
            growth.map_or_else(String::new, |g| format!("x {g:.2}")),
            unit = curve["unit"].as_str()?,
        );
    }
    Some(text)
}

/// What was run, on what.
fn run(report: &Value) -> Option<String> {
    let about = |name: &str| report["versions"][name].as_str();
    let mut text = format!(
        "`{}`, medians of {} rounds; Linux {}, {} processors ({}), load {}.",
        report["command"].as_str()?,
        report["rounds"],
        about("kernel")?,
        about("cpus")?,
        about("processor")?,
        about("load")?,
    );
    let peers = [
        "ovs",
        "vde",
        "nftables",
        "slirp4netns",
        "pasta",
        "pasta-debian13",
        "vswitch-tap",
    ];
    let versions: Vec<&str> = peers.iter().filter_map(|p| about(p)).collect();
    if !versions.is_empty() {
        let _ = write!(text, " {}.", versions.join(", "));
    }
    text.push('\n');
    Some(text)
}

fn content(report: &Value, name: &str) -> anyhow::Result<String> {
    let made = match name {
        SCALE => scale(report),
        RUN => run(report),
        _ => TABLES
            .iter()
            .find(|t| t.name == name)
            .map(|t| table(report, t)),
    };
    made.with_context(|| format!("the report has nothing for `{name}`"))
}

/// The document with its tables as they are in the report.
fn filled(document: &str, report: &Value) -> anyhow::Result<String> {
    let (mut out, mut rest) = (String::new(), document);
    while let Some((before, after)) = rest.split_once("<!-- bench:") {
        let (name, after) = after
            .split_once(" -->\n")
            .context("a mark `<!-- bench:` doesn't end its line with `-->`")?;
        let (_, after) = after
            .split_once("<!-- bench:end -->")
            .with_context(|| format!("`{name}` has no `<!-- bench:end -->`"))?;
        let _ = write!(
            out,
            "{before}<!-- bench:{name} -->\n\n{}\n<!-- bench:end -->",
            content(report, name)?
        );
        rest = after;
    }
    Ok(out + rest)
}

impl Readme {
    /// Writes the documents, or fails where one isn't as the report says.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = self
            .report
            .clone()
            .unwrap_or_else(|| here.join("report.json"));
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        let report: Value = serde_json::from_str(&text)
            .with_context(|| format!("reading {} as JSON", file.display()))?;
        let documents = if self.document.is_empty() {
            vec![here.join("../README.md"), here.join("README.md")]
        } else {
            self.document.clone()
        };
        let mut old = vec![];
        for document in documents {
            let is = std::fs::read_to_string(&document)
                .with_context(|| format!("reading {}", document.display()))?;
            ensure!(
                is.contains("<!-- bench:") || self.document.is_empty(),
                "{} has no place for figures: add `<!-- bench:switches -->` and `<!-- bench:end -->`",
                document.display()
            );
            let should =
                filled(&is, &report).with_context(|| format!("filling {}", document.display()))?;
            if is == should {
                continue;
            }
            if self.write {
                std::fs::write(&document, should)
                    .with_context(|| format!("writing {}", document.display()))?;
            } else {
                old.push(document.display().to_string());
            }
        }
        if !old.is_empty() {
            bail!(
                "{}: figures aren't those of {}: run `cargo run -p vswitch-bench -- readme --write`",
                old.join(", "),
                file.display()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        let figure = |peer: &str, median: f64, ratio: f64| {
            serde_json::json!({"workload": "tcp1", "metric": "rate", "peer": peer, "summary": {"median": median},
                               "ratio": {"median": ratio}, "ratio_to": "bridge"})
        };
        serde_json::json!({"figures": [figure("bridge", 20.0, 1.0), figure("vswitch-tap", 18.0, 0.9)]})
    }

    #[test]
    fn only_what_is_between_the_marks_changes_and_only_once() {
        let before = "a\n<!-- bench:switches -->\nold\n<!-- bench:end -->\nb\n";
        let after = filled(before, &report()).unwrap();
        assert!(after.starts_with("a\n<!-- bench:switches -->\n") && after.ends_with("\nb\n"));
        assert!(
            after.contains("| TCP 1 stream, Gbit/s | 20.0 |  |  |  | 18.0 (0.90) |"),
            "{after}"
        );
        assert_eq!(filled(&after, &report()).unwrap(), after);
    }

    #[test]
    fn a_mark_without_end_or_of_nothing_is_refused() {
        assert!(filled("<!-- bench:switches -->\n", &report()).is_err());
        assert!(filled("<!-- bench:what -->\n<!-- bench:end -->", &report()).is_err());
    }
}
