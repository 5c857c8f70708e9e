//! The comparison itself, small: kernel peers and vswitchd, every workload once. Figures of a debug build say nothing, but
//! they are there.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_vswitch-bench");

/// Runs a comparison of one round; programs of ours are beside the bench where nobody says otherwise.
fn compare(json: &Path, args: &[&str]) -> (String, Value) {
    let mut command = Command::new(BENCH);
    command.args([
        "compare",
        "--rounds",
        "1",
        "--seconds",
        "0.3",
        "--idle-seconds",
        "0.3",
        "--json",
    ]);
    command.arg(json).args(args);
    if std::env::var_os("VSWITCH_BIN_DIR").is_none() {
        command.env("VSWITCH_BIN_DIR", Path::new(BENCH).parent().unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let report = std::fs::read_to_string(json).unwrap();
    (text, serde_json::from_str(&report).unwrap())
}

/// Median of a figure, if it is there.
fn median(report: &Value, workload: &str, metric: &str, peer: &str) -> Option<f64> {
    let figures = report["figures"].as_array()?;
    let is = |f: &&Value| f["workload"] == workload && f["metric"] == metric && f["peer"] == peer;
    figures.iter().find(is)?["summary"]["median"].as_f64()
}

#[test]
fn every_workload_gives_figures_over_every_peer() {
    let lab = vswitch_tests::tap_lab!("bench-compare");
    let json = lab.dir().join("report.json");
    let (text, report) = compare(&json, &["--peer", "veth,bridge,vswitch-tap"]);
    assert_eq!(report["failures"], serde_json::json!([]), "{text}");
    for peer in ["veth", "bridge", "vswitch-tap"] {
        for (workload, metric) in [
            ("tcp1", "rate"),
            ("tcp8", "rate"),
            ("udp64", "delivered"),
            ("rtt", "p50"),
            ("rtt", "p99"),
            ("conn", "connections"),
        ] {
            let value = median(&report, workload, metric, peer);
            assert!(
                value.is_some_and(|v| v > 0.0),
                "{workload} {metric} {peer}: {value:?}\n{text}"
            );
        }
    }
    for (workload, metric) in [
        ("idle", "resident"),
        ("start", "to ready"),
        ("start", "to first frame"),
        ("tcp1", "switch CPU"),
    ] {
        let value = median(&report, workload, metric, "vswitch-tap");
        assert!(
            value.is_some_and(|v| v > 0.0),
            "{workload} {metric}: {value:?}\n{text}"
        );
    }
    assert!(text.contains("vswitch-tap tcp1 rate"), "{text}");
}

#[test]
fn translation_is_compared_with_the_kernels() {
    let lab = vswitch_tests::tap_lab!("bench-nat");
    let json = lab.dir().join("report.json");
    let (text, report) = compare(
        &json,
        &[
            "--peer",
            "nftables,vswitch-nat",
            "--base",
            "nftables",
            "--workload",
            "tcp1,tcp1-down,udp64,rtt,conn",
        ],
    );
    assert_eq!(report["failures"], serde_json::json!([]), "{text}");
    let targets = report["targets"].as_array().unwrap();
    for (workload, metric) in [
        ("tcp1", "rate"),
        ("tcp1-down", "rate"),
        ("udp64", "delivered"),
        ("rtt", "p50"),
        ("conn", "connections"),
    ] {
        for peer in ["nftables", "vswitch-nat"] {
            let value = median(&report, workload, metric, peer);
            assert!(
                value.is_some_and(|v| v > 0.0),
                "{workload} {metric} {peer}: {value:?}\n{text}"
            );
        }
        let line = format!("vswitch-nat {workload} {metric}");
        assert!(
            targets
                .iter()
                .any(|t| t["target"].as_str().unwrap().contains(&line)),
            "{line}\n{text}"
        );
    }
}

#[test]
fn a_peer_that_cannot_run_is_in_the_report_with_the_reason() {
    let lab = vswitch_tests::lab!("bench-failure");
    let json = lab.dir().join("report.json");
    let args = [
        "--peer",
        "veth,before-tap",
        "--before",
        "/nonexistent",
        "--workload",
        "rtt",
    ];
    let (text, report) = compare(&json, &args);
    assert_eq!(report["failures"][0]["peer"], "before-tap", "{text}");
    assert!(text.contains("/nonexistent/vswitchd isn't there"), "{text}");
    assert!(median(&report, "rtt", "p50", "veth").is_some(), "{text}");
}
