//! The curves, small: every kind of table is filled, and frames of it are switched. Costs of a debug build say nothing, but they are
//! there.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_vswitch-bench");

#[test]
fn every_curve_has_its_points() {
    let lab = vswitch_tests::tap_lab!("bench-scale");
    let (json, html) = (lab.dir().join("scale.json"), lab.dir().join("scale.html"));
    let mut command = Command::new(BENCH);
    command.args([
        "scale",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--most",
        "1000",
    ]);
    // Hundreds of ports take a debug build a while.
    command.args(["--curve", "macs,flows,setup,rules,workers"]);
    command.arg("--json").arg(&json).arg("--html").arg(&html);
    if std::env::var_os("VSWITCH_BIN_DIR").is_none() {
        command.env("VSWITCH_BIN_DIR", Path::new(BENCH).parent().unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let report = std::fs::read_to_string(&json).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    for (curve, sizes) in [
        ("macs", &[100, 1000][..]),
        ("flows", &[1000]),
        ("setup", &[10, 100, 1000]),
        ("rules", &[10, 100, 1000]),
        ("workers", &[1, 2]),
    ] {
        let curves = report["scale"].as_array().unwrap();
        let of = curves.iter().find(|c| c["curve"] == curve).expect(curve);
        assert_eq!(of["failures"], serde_json::json!([]), "{text}");
        let points = of["points"].as_array().unwrap();
        let found: Vec<u64> = points.iter().filter_map(|p| p["size"].as_u64()).collect();
        assert_eq!(found, sizes, "{text}");
        for point in points {
            let cost = point["summary"]["cost_ns"]["median"].as_f64();
            assert!(cost.is_some_and(|c| c > 0.0), "{curve} {point}\n{text}");
        }
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<svg").count(), 5, "a plot for each curve");
}
