//! `vswitch-bench`: runs vswitch and its peers side by side and reports what each does.
//!
//! # Theory of operation
//! `compare` makes two containers per peer with the peer between them, and then goes round: every workload is run over every
//! peer before the next round begins. The ends of a workload are processes of this same program (`tool`) in the containers.
//! A comparison says more than a figure: ratios are taken within a round, medians over rounds.
#![forbid(unsafe_code)]

mod baseline;
mod compare;
mod machine;
mod page;
mod peer;
mod plot;
mod readme;
mod report;
mod scale;
mod stats;
mod stop;
mod target;
mod traffic;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs vswitch and its peers side by side.
#[derive(Debug, Parser)]
#[command(name = "vswitch-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run workloads over peers in turn and print the figures.
    Compare(compare::Compare),
    /// Measure what a frame costs against the number of ports, MACs, flows, rules and workers.
    Scale(scale::Scale),
    /// Hold the tables of README.md and bench/README.md against a report, or write them.
    Readme(readme::Readme),
    /// One end of a workload.
    #[command(hide = true)]
    Tool {
        #[command(subcommand)]
        tool: traffic::Tool,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Compare(compare) => compare.run(),
        Command::Scale(scale) => scale.run(),
        Command::Readme(readme) => readme.run(),
        Command::Tool { tool } => tool.run(),
    };
    match done {
        Ok(()) if stop::asked() => ExitCode::from(stop::CODE),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vswitch-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
