//! What came out of a comparison: the values of every round, their medians, the terminal's table and the JSON file. The page is made
//! of it by [`crate::page`].

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use crate::peer::Peer;
use crate::scale::Curve;
use crate::stats::{Summary, ratios};
use crate::target::{Against, TARGETS};
use crate::workload::{Metric, Sample, Workload};

/// A peer or one of its workloads that couldn't run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) peer: Peer,
    pub(crate) workload: Option<Workload>,
    pub(crate) round: usize,
    pub(crate) reason: String,
}

#[derive(Debug)]
struct Series {
    metric: Metric,
    peer: Peer,
    /// By round.
    values: Vec<Option<f64>>,
}

/// What a peer had.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) peer: Peer,
    pub(crate) figure: Summary,
    pub(crate) ratio: Option<Summary>,
}

/// Percentiles and their values, in microseconds.
type Percentiles = Vec<(f64, f64)>;

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    series: Vec<Series>,
    /// Of every round.
    curves: Vec<(Workload, Peer, Percentiles)>,
    pub(crate) failures: Vec<Failure>,
    /// Names and values of what the machine and the programs are.
    versions: Vec<(String, String)>,
    command: String,
    /// Whose figures the ratios of the table are to; `None` is whom each is like ([`Peer::base`]).
    base: Option<Peer>,
    /// Cost against table size.
    pub(crate) scale: Vec<Curve>,
    /// Rounds that were begun.
    pub(crate) rounds: usize,
}

impl Report {
    /// Of nothing yet.
    pub(crate) fn new(
        command: String,
        base: Option<Peer>,
        versions: Vec<(String, String)>,
    ) -> Self {
        Self {
            series: vec![],
            curves: vec![],
            failures: vec![],
            versions,
            command,
            base,
            scale: vec![],
            rounds: 0,
        }
    }

    /// Adds something to know about the run.
    pub(crate) fn note(&mut self, name: &str, value: String) {
        self.versions.push((name.to_owned(), value));
    }

    /// Takes one sample.
    pub(crate) fn add(&mut self, workload: Workload, peer: Peer, round: usize, sample: Sample) {
        if !sample.curve.is_empty() {
            self.curves.push((workload, peer, sample.curve));
        }
        for figure in &sample.figures {
            let is = |s: &Series| s.metric == figure.metric && s.peer == peer;
            let at = self.series.iter().position(is).unwrap_or_else(|| {
                self.series.push(Series {
                    metric: figure.metric,
                    peer,
                    values: vec![],
                });
                self.series.len() - 1
            });
            let values = &mut self.series[at].values;
            if values.len() <= round {
                values.resize(round + 1, None);
            }
            values[round] = Some(figure.value);
        }
    }

    fn series(&self, workload: Workload, name: &str, peer: Peer) -> Option<&Series> {
        let is =
            |s: &&Series| s.metric.workload == workload && s.metric.name == name && s.peer == peer;
        self.series.iter().find(is)
    }

    fn ratio(&self, ours: &Series, to: Peer) -> Option<Summary> {
        // One datagram lost against none says nothing.
        if ours.metric.name == "lost" {
            return None;
        }
        let theirs = self.series(ours.metric.workload, ours.metric.name, to)?;
        ratios(&ours.values, &theirs.values)
    }

    /// Metrics in the order of the workloads, then of their first figure.
    fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<Metric> = vec![];
        for s in &self.series {
            if !metrics.contains(&s.metric) {
                metrics.push(s.metric);
            }
        }
        metrics.sort_by_key(|m| m.workload);
        metrics
    }

    /// Names and values of what the machine and the programs are, the command first.
    pub(crate) fn about(&self) -> Vec<(&str, &str)> {
        let all = self.versions.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        std::iter::once(("command", self.command.as_str()))
            .chain(all)
            .collect()
    }

    /// Whose figures a peer's ratios are to.
    pub(crate) fn base(&self, peer: Peer) -> Peer {
        self.base.unwrap_or_else(|| peer.base())
    }

    /// Every metric with what each peer had, and that against the base.
    pub(crate) fn rows(&self) -> Vec<(Metric, Vec<Row>)> {
        let row = |s: &Series| {
            let all = s.values.iter().flatten().copied();
            Some(Row {
                peer: s.peer,
                figure: Summary::of(all)?,
                ratio: self.ratio(s, self.base(s.peer)),
            })
        };
        let of = |metric: Metric| {
            let mut rows: Vec<Row> = self
                .series
                .iter()
                .filter(|s| s.metric == metric)
                .filter_map(row)
                .collect();
            rows.sort_by_key(|r| r.peer);
            (metric, rows)
        };
        self.metrics().into_iter().map(of).collect()
    }

    /// Medians of a workload's percentiles over the rounds.
    pub(crate) fn curves(&self, workload: Workload) -> Vec<(Peer, Percentiles)> {
        let mut peers: Vec<Peer> = vec![];
        for (w, peer, _) in &self.curves {
            if *w == workload && !peers.contains(peer) {
                peers.push(*peer);
            }
        }
        peers.sort_unstable();
        let median = |peer: Peer| {
            let of = |(w, p, c): &'_ (Workload, Peer, Percentiles)| {
                (*w == workload && *p == peer).then(|| c.clone())
            };
            let rounds: Vec<Percentiles> = self.curves.iter().filter_map(of).collect();
            let percents = rounds.first()?.iter().map(|(percent, _)| *percent);
            let points = percents.enumerate().filter_map(|(i, percent)| {
                let values = rounds.iter().filter_map(|c| c.get(i));
                Some((percent, Summary::of(values.map(|(_, v)| *v))?.median))
            });
            Some((peer, points.collect()))
        };
        peers.into_iter().filter_map(median).collect()
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.versions {
            let _ = writeln!(text, "{name:<14} {value}");
        }
        let _ = writeln!(text, "{:<14} {}", "rounds", self.rounds);
        for metric in self.metrics() {
            let title = format!(
                "{} {}, {}",
                metric.workload.name(),
                metric.name,
                metric.unit
            );
            let _ = writeln!(
                text,
                "\n{title:<30} {:>10} {:>10} {:>10}   {:>12}  {:>15}",
                "median", "min", "max", "ratio", "min-max"
            );
            let mut rows: Vec<&Series> =
                self.series.iter().filter(|s| s.metric == metric).collect();
            rows.sort_by_key(|s| s.peer);
            for row in rows {
                let _ = writeln!(text, "{}", self.row(row));
            }
        }
        for line in self.failed() {
            let _ = writeln!(text, "{line}");
        }
        text += &crate::scale::table(&self.scale);
        let targets = self.targets();
        if !targets.is_empty() {
            let _ = writeln!(text, "\nTargets (medians of ratios within a round)");
            for (line, _) in targets {
                let _ = writeln!(text, "  {line}");
            }
        }
        text
    }

    fn row(&self, row: &Series) -> String {
        let name = row.peer.name();
        let Some(s) = Summary::of(row.values.iter().flatten().copied()) else {
            return format!("  {name}");
        };
        let line = format!(
            "  {name:<28} {:>10} {:>10} {:>10}",
            show(s.median),
            show(s.min),
            show(s.max)
        );
        match self.ratio(row, self.base(row.peer)) {
            Some(r) => {
                let range = format!("{:.2}-{:.2}", r.min, r.max);
                format!(
                    "{line}   {:>12.2}  {range:>15} x {}",
                    r.median,
                    self.base(row.peer).name()
                )
            }
            None => line,
        }
    }

    /// One line per peer, workload and reason, with the number of rounds.
    pub(crate) fn failed(&self) -> Vec<String> {
        let mut lines: Vec<(String, usize)> = vec![];
        for f in &self.failures {
            let what = f.workload.map_or_else(|| "all".into(), Workload::name);
            let line = format!(
                "\n{} {what}: couldn't run: {}",
                f.peer.name(),
                f.reason.trim()
            );
            match lines.iter_mut().find(|(l, _)| *l == line) {
                Some((_, count)) => *count += 1,
                None => lines.push((line, 1)),
            }
        }
        lines
            .into_iter()
            .map(|(l, n)| format!("{l} ({n} of {} rounds)", self.rounds))
            .collect()
    }

    /// Each target of which there are figures, as a line and whether it is met.
    pub(crate) fn targets(&self) -> Vec<(String, bool)> {
        let mut lines = vec![];
        for target in TARGETS {
            let Some(ours) = self.series(target.workload, target.name, target.of) else {
                continue;
            };
            let (against, summary) = match target.against {
                Against::Peer(peer) => (format!("x {}", peer.name()), self.ratio(ours, peer)),
                Against::Itself => (
                    ours.metric.unit.to_owned(),
                    Summary::of(ours.values.iter().flatten().copied()),
                ),
            };
            let Some(Summary { median, .. }) = summary else {
                continue;
            };
            let met = target.met(median);
            let (word, sign) = (
                if met { "ok    " } else { "MISSED" },
                if target.at_least { ">=" } else { "<=" },
            );
            let (whose, what) = (
                target.of.name(),
                format!("{} {}", target.workload.name(), target.name),
            );
            lines.push((
                format!(
                    "{word} {whose:<11} {what:<22} {median:>8.2} {sign} {} {against}",
                    target.bound
                ),
                met,
            ));
        }
        lines
    }

    fn curve_json(&self) -> Vec<serde_json::Value> {
        let mut workloads: Vec<Workload> = self.curves.iter().map(|(w, ..)| *w).collect();
        workloads.sort_unstable();
        workloads.dedup();
        let of = |w: Workload| {
            let curves = self.curves(w).into_iter();
            curves.map(move |(peer, points)| {
                json!({"workload": w, "unit": "us", "peer": peer, "percentiles": points})
            })
        };
        workloads.into_iter().flat_map(of).collect()
    }

    /// For programs.
    pub(crate) fn json(&self) -> serde_json::Value {
        let series = self.series.iter().map(|s| {
            json!({
                "workload": s.metric.workload, "metric": s.metric.name, "unit": s.metric.unit, "better": s.metric.better,
                "peer": s.peer, "values": s.values,
                "summary": Summary::of(s.values.iter().flatten().copied()),
                "ratio": self.ratio(s, self.base(s.peer)), "ratio_to": self.base(s.peer),
            })
        });
        let targets = self
            .targets()
            .into_iter()
            .map(|(line, met)| json!({"target": line, "met": met}));
        json!({
            "command": self.command,
            "rounds": self.rounds,
            "versions": self.versions.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "figures": series.collect::<Vec<_>>(),
            "curves": self.curve_json(),
            "scale": self.scale.iter().map(Curve::json).collect::<Vec<_>>(),
            "failures": self.failures,
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}

/// Three digits that count.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Better, Figure};

    fn rate(value: f64) -> Sample {
        let metric = Metric {
            workload: Workload::Tcp1,
            name: "rate",
            unit: "Gbit/s",
            better: Better::Higher,
        };
        vec![Figure { metric, value }].into()
    }

    fn report(ours: [f64; 3]) -> Report {
        let mut r = Report::new("compare".into(), None, vec![]);
        r.rounds = 3;
        for (round, (ours, bridge)) in ours.into_iter().zip([10.0, 20.0, 10.0]).enumerate() {
            r.add(Workload::Tcp1, Peer::VswitchTap, round, rate(ours));
            r.add(Workload::Tcp1, Peer::Bridge, round, rate(bridge));
        }
        r
    }

    #[test]
    fn a_target_is_held_against_the_ratio_within_rounds() {
        assert_eq!(
            report([8.5, 17.0, 8.5]).targets().first().map(|t| t.1),
            Some(true)
        );
        let missed = report([7.0, 14.0, 12.0]);
        assert!(
            missed.table().contains("MISSED vswitch-tap tcp1 rate"),
            "{}",
            missed.table()
        );
    }

    #[test]
    fn a_round_without_a_value_keeps_its_place() {
        let mut r = report([8.0, 16.0, 8.0]);
        r.add(Workload::Tcp1, Peer::Ovs, 2, rate(5.0));
        let ovs = r.series(Workload::Tcp1, "rate", Peer::Ovs).unwrap();
        assert_eq!(ovs.values, [None, None, Some(5.0)]);
        assert_eq!(r.ratio(ovs, Peer::Bridge).unwrap().median, 0.5);
    }

    #[test]
    fn what_could_not_run_is_in_the_table_and_in_json() {
        let mut r = report([8.0; 3]);
        for round in 0..2 {
            let reason = "no such program".into();
            r.failures.push(Failure {
                peer: Peer::Vde,
                workload: None,
                round,
                reason,
            });
        }
        assert!(
            r.table()
                .contains("vde all: couldn't run: no such program (2 of 3 rounds)"),
            "{}",
            r.table()
        );
        assert_eq!(r.json()["failures"][1]["peer"], "vde");
        assert_eq!(r.json()["figures"][0]["summary"]["median"], 8.0);
    }
}
