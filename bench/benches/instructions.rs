//! Instructions per frame, counted by callgrind: unlike times they are the same on a busy machine, so a change that costs is seen.
//!
//! `cargo bench --profile count -p vswitch-bench --bench instructions` counts each case, and fails where one takes over 5 % more than
//! `bench/instructions.json` says; `-- --write` writes that file. A case is run twice, with few and with many frames, in a process of its own
//! below valgrind: the difference is the frames'. The data path is compiled without link-time optimisation here, for the time that
//! takes, so these are not the release's numbers, but move with them.

mod common;
#[path = "common/packet.rs"]
mod packet;

use common::Draw;
use common::gateway::{batch, clock, forwarded, gateway, of};
use packet::packet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use vswitch_core::frame::{BATCH_SIZE, GsoType, Offloads, gso};
use vswitch_core::port::PortId;
use vswitch_core::wire;
use vswitch_core::worker::Stage;

/// What is more than this over the noted number has become slower.
const TOLERANCE: f64 = 0.05;
/// Batches of the two runs.
const BATCHES: [u32; 2] = [16, 272];
/// Connections that known datagrams are of.
const FLOWS: u32 = 1000;

/// What was counted, and by which compiler.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    rustc: String,
    /// By case, for each frame.
    instructions: BTreeMap<String, f64>,
}

/// Name, what it does so many times over a batch of 64, and the frames that counts as.
type Case = (&'static str, fn(u32), u32);

const CASES: [Case; 5] = [
    ("parse", parse, BATCH_SIZE as u32),
    (
        "known datagram through the gateway",
        known,
        BATCH_SIZE as u32,
    ),
    ("first datagram of a connection", new, BATCH_SIZE as u32),
    ("segment of 1448 bytes cut and summed", segment, 45),
    ("checksum of 1500 bytes", checksum, 1),
];

/// A datagram's headers.
fn parse(batches: u32) {
    let frame = of(1, false);
    for _ in 0..batches * BATCH_SIZE as u32 {
        black_box(wire::parse(black_box(frame.head()), frame.len()));
    }
}

/// Both ways, bridge, tracking and translation included.
fn known(batches: u32) {
    let mut cx = clock();
    let mut p = gateway(&mut cx);
    for back in [false, true] {
        for n in (0..FLOWS).step_by(40) {
            let port = PortId(u16::from(back));
            p.run(&mut cx, &mut batch(port, (n..n + 40).map(|n| of(n, back))));
        }
    }
    let mut draw = Draw(1);
    for i in 0..batches {
        let back = i % 2 == 1;
        let frames = (0..BATCH_SIZE).map(|_| of(draw.below(FLOWS), back));
        let mut b = batch(PortId(u16::from(back)), frames);
        p.run(&mut cx, black_box(&mut b));
        assert_eq!(forwarded(&b), BATCH_SIZE, "every frame is sent on");
    }
}

/// Judged, given a port and entered.
fn new(batches: u32) {
    let mut cx = clock();
    let mut p = gateway(&mut cx);
    for i in 0..batches {
        let n = i * BATCH_SIZE as u32;
        let mut b = batch(PortId(0), (n..n + BATCH_SIZE as u32).map(|n| of(n, false)));
        p.run(&mut cx, black_box(&mut b));
        assert_eq!(forwarded(&b), BATCH_SIZE, "every frame is sent on");
    }
}

fn segment(batches: u32) {
    for _ in 0..batches {
        let mut frame = packet(1448 * 45);
        frame.vnet.gso = GsoType::Tcp4;
        frame.vnet.gso_size = 1448;
        let mut n = 0;
        gso::finish(frame, Offloads::default(), 1500, &mut |f| {
            black_box(f);
            n += 1;
        })
        .expect("segments");
        assert_eq!(n, 45);
    }
}

fn checksum(batches: u32) {
    for _ in 0..batches {
        let mut frame = packet(1460);
        gso::complete(&mut frame).expect("a checksum");
        black_box(frame);
    }
}

/// Instructions of this program with so many batches of a case.
fn run(case: &str, batches: u32) -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--case", case, &batches.to_string()])
        .output()
        .map_err(|e| format!("running valgrind (package valgrind): {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.lines().find_map(|l| l.split("Collected : ").nth(1));
    counted
        .filter(|_| output.status.success())
        .and_then(|n| n.trim().parse().ok())
        .ok_or_else(|| format!("counting `{case}`: {said}"))
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}

fn count() -> Result<Noted, String> {
    let mut noted = Noted {
        rustc: rustc(),
        ..Noted::default()
    };
    for (name, _, frames) in CASES {
        let few = run(name, BATCHES[0])?;
        let many = run(name, BATCHES[1])?;
        let each = (many - few) / f64::from(BATCHES[1] - BATCHES[0]) / f64::from(frames);
        noted.instructions.insert(name.to_owned(), each.round());
    }
    Ok(noted)
}

/// Compares with what is noted; prints both, and returns how many cases have become slower.
fn compare(file: &Path, now: &Noted) -> Result<usize, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| format!("reading {}: {e}; write it by --write", file.display()))?;
    let noted: Noted = serde_json::from_str(&text)
        .map_err(|e| format!("reading {}: {e}; write it by --write", file.display()))?;
    if noted.rustc != now.rustc {
        println!("noted by {}, counted by {}", noted.rustc, now.rustc);
    }
    let mut slower = 0;
    for (case, count) in &now.instructions {
        let Some(before) = noted.instructions.get(case) else {
            println!("{case:<40} {count:>8} instructions, not noted: write it by --write");
            slower += 1;
            continue;
        };
        let change = count / before - 1.0;
        let word = if change > TOLERANCE { "SLOWER" } else { "" };
        slower += usize::from(change > TOLERANCE);
        let percent = change * 100.0;
        println!("{case:<40} {count:>8} instructions, {percent:+.1} % {word}");
    }
    Ok(slower)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [option, case, batches] = &args[..]
        && option == "--case"
    {
        let batches = batches.parse().expect("a number of batches");
        let case = CASES.iter().find(|(name, ..)| name == case);
        (case.expect("a case").1)(batches);
        return ExitCode::SUCCESS;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let done = count().and_then(|now| {
        if !args.iter().any(|a| a == "--write") {
            return compare(&file, &now);
        }
        let text = serde_json::to_string_pretty(&now).map_err(|e| e.to_string())?;
        let written = std::fs::write(&file, text + "\n");
        written.map_err(|e| format!("writing {}: {e}", file.display()))?;
        compare(&file, &now)
    });
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(n) => {
            eprintln!(
                "{n} cases take more instructions than noted: mend that, or say why and note it by --write"
            );
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
