//! Figures, printed and judged by nobody: `cargo test -p vswitch-tests --test slirp measure -- --ignored --nocapture`, with a release build in
//! VSWITCH_BIN_DIR that has `vswitch-bench` too.

use crate::rig::{FAR, Site, site};
use std::time::Duration;
use vswitch_tests::{Node, program, tap_lab};

const ROUNDS: usize = 5;

/// Datagrams of 64 bytes that arrive per second, in thousands, from inside to outside and the other way.
fn small_datagrams(a: &Node, outside: &Node, far: &str) -> [u64; 2] {
    let tool = program("vswitch-bench");
    let at = format!("{far}:7300");
    let argv = ["tool", "udp-sink", &at, "--size", "64", "--seconds", "2"];
    let mut sink = outside.spawn(&[&[tool.as_str()], &argv[..]].concat());
    sink.wait_for("ready");
    let argv = ["tool", "udp-flood", &at, "--size", "64", "--seconds", "2"];
    a.ok(&[&[tool.as_str()], &argv[..]].concat());
    let said = sink.finish(Duration::from_secs(30));
    let line = said.stdout.lines().find(|l| l.starts_with('{'));
    // Without one nothing arrived after the first moment.
    let up = line.map_or(0.0, |line| {
        let v: serde_json::Value = serde_json::from_str(line).expect("JSON");
        v["datagrams"].as_f64().expect("a count") / v["seconds"].as_f64().expect("a time")
    });
    let _server = outside.iperf3_server();
    let down = a.iperf3(far, &["-u", "-b", "0", "-l", "64", "-t", "2", "-R"]);
    let down = down.received_bytes as f64 / 64.0 / 2.0;
    let both = [(up / 1e3) as u64, (down / 1e3) as u64];
    println!("  {}: {both:?}", a.name());
    both
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of[of.len() / 2]
}

fn print(name: &str, rounds: &[[u64; 2]]) {
    let way = |i: usize| median(rounds.iter().map(|r| r[i]).collect());
    println!(
        "{name}: up {} kpps, down {} kpps; {rounds:?}",
        way(0),
        way(1)
    );
}

#[test]
#[ignore = "prints figures, which a release build on a quiet machine is for"]
fn small_datagrams_per_second() {
    let lab = tap_lab!("slirp-measure");
    let Site { d: _d, a, outside } = site(&lab, "1500");
    let rounds = [(); ROUNDS].map(|()| small_datagrams(&a, &outside, FAR[0]));
    print("vswitch", &rounds);
}
