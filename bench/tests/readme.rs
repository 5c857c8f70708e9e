//! Figures of the documents are those of the report that is checked in. `cargo run -p vswitch-bench -- readme --write` makes them so.

use std::process::Command;

const BENCH: &str = env!("CARGO_BIN_EXE_vswitch-bench");

#[test]
fn the_tables_of_the_documents_are_the_checked_in_reports() {
    let output = Command::new(BENCH).arg("readme").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_figure_changed_by_hand_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let document = dir.path().join("README.md");
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    // The first is in a table of the report; those further down are of other runs.
    let line = "| TCP 1 stream, Gbit/s | ";
    let changed = text.replacen(line, &format!("{line}9"), 1);
    assert!(changed != text, "there is a figure to change");
    std::fs::write(&document, changed).unwrap();
    let mut check = Command::new(BENCH);
    let output = check.arg("readme").arg(&document).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("--write"),
        "{said}"
    );
    let mut write = Command::new(BENCH);
    write.args(["readme", "--write"]).arg(&document);
    assert!(write.output().unwrap().status.success());
    let written = std::fs::read_to_string(&document).unwrap();
    assert!(written == text, "written as it was");
}
