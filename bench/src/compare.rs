//! The comparison: round by round, and in a round workload by workload, every peer gets its turn, so that two figures that
//! are set against each other were taken within seconds. Peers are started anew each round.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use vswitch_tests::Lab;

use crate::peer::{Bed, Peer, Setup};
use crate::report::{Failure, Report};
use crate::scale::{self, Axis, Extent};
use crate::workload::{Times, Workload};
use crate::{machine, stop};

/// A load above which other programs decide the figures.
const BUSY: f64 = 0.5;

const PEERS: [Peer; 18] = [
    Peer::Veth,
    Peer::Bridge,
    Peer::Ovs,
    Peer::Vde,
    Peer::VswitchTap,
    Peer::VswitchVeth,
    Peer::VswitchVethEbpf,
    Peer::Nftables,
    Peer::VswitchNat,
    Peer::Slirp4netns,
    Peer::Pasta,
    Peer::PastaDebian13,
    Peer::VswitchRootless,
    Peer::VswitchRootless1500,
    Peer::VswitchSwitched,
    Peer::VswitchSlirp4netns,
    Peer::RawTuntap,
    Peer::RawAfpacket,
];

/// Options of a comparison.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// What to run, several times or comma-separated [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Whom to compare, several times or comma-separated [default: all but vswitch-ring, before-* and other programs' -1500].
    #[arg(long, value_enum, value_delimiter = ',')]
    peer: Vec<Peer>,
    /// Turns everybody gets.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Time measured per sample, 0.05 to 60.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Time idle wake-ups are counted in.
    #[arg(long, default_value_t = 5.0)]
    idle_seconds: f64,
    /// Whose figures the ratios are to [default: bridge; nftables for who translates, pasta for who goes by sockets].
    #[arg(long, value_enum)]
    base: Option<Peer>,
    /// MTU of the containers of veth, bridge, ovs, vde, vswitch-tap, vswitch-veth and the raw ones.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=65_520))]
    mtu: u32,
    /// The curves of `scale` as well, as is done where neither workloads nor peers are named.
    #[arg(long)]
    scale: bool,
    /// Root of a Debian 13, of which pasta-debian13 is [default: target/trixie, which tests/run makes].
    #[arg(long, value_name = "DIR")]
    debian13: Option<PathBuf>,
    /// Another build to compare with: folder of its vswitchd and vswitchctl, which peers before-tap, before-veth and before-nat run.
    #[arg(long, value_name = "DIR")]
    before: Option<PathBuf>,
    /// A further argument of `vswitchd run`, such as --daemon-arg=--workers=2.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    daemon_arg: Vec<String>,
    /// Keep the two ends of a workload on processors 0 and 1, instead of where the kernel puts them.
    #[arg(long)]
    pin: bool,
    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with tables and plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What was given, or the default, in order and each once.
pub(crate) fn unique<T: Ord + Copy>(given: &[T], default: &[T]) -> Vec<T> {
    let mut list = if given.is_empty() {
        default.to_vec()
    } else {
        given.to_vec()
    };
    list.sort_unstable();
    list.dedup();
    list
}

/// The bar on a terminal.
pub(crate) fn progress(steps: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(steps);
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {msg}");
    bar.set_style(style.context("laying out the progress bar")?);
    bar.enable_steady_tick(Duration::from_millis(250));
    Ok(bar)
}

/// Figures of a debug build are for nobody.
pub(crate) fn warn_of_debug() {
    if cfg!(debug_assertions) {
        eprintln!(
            "vswitch-bench: a debug build; its figures mean nothing: cargo run --release -p vswitch-bench"
        );
    }
}

/// How the bench was started, by cargo as people do.
pub(crate) fn command_line() -> String {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let release = if cfg!(debug_assertions) {
        ""
    } else {
        "--release "
    };
    format!("cargo run {release}-p vswitch-bench -- {}", args.join(" "))
}

/// The load before a run, and what it means.
pub(crate) fn load_note(load: f64) -> String {
    let busy = if load > BUSY {
        ", a busy machine: no judge of targets"
    } else {
        ""
    };
    format!("{load:.2} before{busy}")
}

/// JSON with a line for each element of the lists at its top: half the size of the pretty form, and a difference shows what differs.
fn lines(json: &serde_json::Value) -> serde_json::Result<String> {
    let mut members = vec![];
    for (name, value) in json.as_object().into_iter().flatten() {
        let text = match value.as_array() {
            Some(list) if !list.is_empty() => {
                let all: Result<Vec<String>, _> = list.iter().map(serde_json::to_string).collect();
                format!("[\n{}\n]", all?.join(",\n"))
            }
            _ => serde_json::to_string(value)?,
        };
        members.push(format!("{}: {text}", serde_json::to_string(name)?));
    }
    Ok(format!("{{\n{}\n}}\n", members.join(",\n")))
}

/// Writes a file that was asked for.
pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

impl Compare {
    /// Runs it all and prints the table.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let range = 0.05..=60.0;
        ensure!(
            range.contains(&self.seconds) && range.contains(&self.idle_seconds),
            "--seconds and --idle-seconds are 0.05 to 60"
        );
        let (workloads, peers) = (
            unique(&self.workload, Workload::value_variants()),
            unique(&self.peer, &PEERS),
        );
        ensure!(
            self.before.is_some() || !peers.iter().any(|p| p.is_another_build()),
            "peers before-tap, before-veth and before-nat run another build: name its folder by --before"
        );
        let setup = Setup {
            before: self.before.clone().unwrap_or_default(),
            daemon_args: self.daemon_arg.clone(),
            mtu: self.mtu,
            debian13: self.debian13.clone().unwrap_or_else(|| {
                let target = machine::bin_dir().parent().map(Path::to_owned);
                target.unwrap_or_default().join("trixie")
            }),
        };
        let curves = if self.scale || (self.workload.is_empty() && self.peer.is_empty()) {
            scale::axes(&[])
        } else {
            vec![]
        };
        stop::listen()?;
        if !curves.is_empty() || peers.iter().any(|p| p.is_ours()) {
            machine::build()?;
        }
        let names: Vec<String> = peers.iter().map(|p| p.name()).collect();
        if let Err(error) = machine::install(&names) {
            // Whoever needs them will fail with its own reason.
            eprintln!("vswitch-bench: {error:#}");
        }
        warn_of_debug();
        let command = command_line();
        let mut report = Report::new(command, self.base, versions(&peers, &setup));
        let load = machine::load();
        self.rounds(&workloads, &peers, &curves, &setup, &mut report)?;
        report.note("load", load_note(load));
        print!("{}", report.table());
        if let Some(file) = &self.json {
            let text = lines(&report.json()).context("writing the report as JSON")?;
            write(file, &text)?;
        }
        if let Some(file) = &self.html {
            write(file, &crate::page::page(&report)?)?;
        }
        Ok(())
    }

    fn rounds(
        &self,
        workloads: &[Workload],
        peers: &[Peer],
        curves: &[Axis],
        setup: &Setup,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let lab = Lab::new("compare")?;
        stop::removes(lab.dir());
        let times = Times {
            seconds: self.seconds,
            idle_seconds: self.idle_seconds,
            pin: self.pin,
        };
        let steps = usize::from(self.rounds) * peers.len() * (workloads.len() + 1);
        let extent = Extent {
            rounds: self.rounds,
            seconds: self.seconds,
            most: u32::MAX,
        };
        let bar = progress(steps as u64 + scale::steps(curves, extent))?;
        for round in 0..usize::from(self.rounds) {
            if stop::asked() {
                break;
            }
            report.rounds = round + 1;
            let say = |what: &str, peer: Peer| {
                bar.set_message(format!(
                    "round {} of {}: {what} {}",
                    round + 1,
                    self.rounds,
                    peer.name()
                ));
            };
            let mut beds: Vec<(Peer, Option<Bed>)> = vec![];
            for peer in peers {
                say("start", *peer);
                let bed = peer
                    .start(&lab, setup)
                    .map_err(|e| report.fail(*peer, None, round, &e));
                beds.push((*peer, bed.ok()));
                bar.inc(1);
            }
            for workload in workloads {
                if *workload == Workload::Idle {
                    bar.set_message(format!("round {} of {}: idle", round + 1, self.rounds));
                    idle(&beds, times, round, report);
                    bar.inc(beds.len() as u64);
                    continue;
                }
                for (peer, bed) in &beds {
                    say(&workload.name(), *peer);
                    let (Some(bed), true, false) = (bed, workload.applies(*peer), stop::asked())
                    else {
                        bar.inc(1);
                        continue;
                    };
                    let sample = if workload.starts_its_own() {
                        match peer.slirp4netns(setup) {
                            Some(program) => workload.start_program(&lab, &program),
                            None => workload.start(&lab, setup.build(*peer)),
                        }
                    } else {
                        workload.run(bed, times)
                    };
                    match sample {
                        Ok(sample) => report.add(*workload, *peer, round, sample),
                        Err(error) => report.fail(*peer, Some(*workload), round, &error),
                    }
                    bar.inc(1);
                }
            }
        }
        // Nobody else is there any more.
        let build = || setup.build(Peer::VswitchTap);
        report.scale = scale::measure(&lab, curves, extent, &build, &bar);
        bar.finish_and_clear();
        Ok(())
    }
}

/// What those who have a process need while nothing happens.
fn idle(beds: &[(Peer, Option<Bed>)], times: Times, round: usize, report: &mut Report) {
    let beds: Vec<(Peer, &Bed)> = beds
        .iter()
        .filter(|(peer, _)| Workload::Idle.applies(*peer))
        .filter_map(|(peer, bed)| Some((*peer, bed.as_ref()?)))
        .collect();
    if beds.is_empty() || stop::asked() {
        return;
    }
    let switches: Vec<&Bed> = beds.iter().map(|(_, bed)| *bed).collect();
    for ((peer, _), sample) in beds.iter().zip(Workload::Idle.idle(&switches, times)) {
        match sample {
            Ok(sample) => report.add(Workload::Idle, *peer, round, sample),
            Err(error) => report.fail(*peer, Some(Workload::Idle), round, &error),
        }
    }
}

impl Report {
    fn fail(
        &mut self,
        peer: Peer,
        workload: Option<Workload>,
        round: usize,
        error: &anyhow::Error,
    ) {
        self.failures.push(Failure {
            peer,
            workload,
            round,
            reason: format!("{error:#}"),
        });
    }
}

fn versions(peers: &[Peer], setup: &Setup) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = vec![];
    for (name, value) in machine::description() {
        all.push((name.to_owned(), value));
    }
    for peer in peers {
        if let Some(version) = peer
            .version_command(setup)
            .and_then(|argv| machine::version(&argv))
        {
            all.push((peer.name(), version));
        }
    }
    all
}
