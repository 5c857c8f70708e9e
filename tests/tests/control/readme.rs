//! README.md is true: its commands are run as they are written, its files are there, its table of packages is complete.
//!
//! Blocks marked `sh` make one script, run from top to bottom; blocks marked `toml` are the files that their first line
//! names. Blocks marked `console` need a whole machine or a terminal and are run by people.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vswitch_tests::{program, tap_lab};

/// The whole tour, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

struct Block {
    language: String,
    line: usize,
    text: String,
}

/// The fenced blocks.
fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        match line.strip_prefix("```") {
            Some(language) if !inside => {
                assert!(
                    !language.is_empty(),
                    "line {number}: a block of no language"
                );
                found.push(Block {
                    language: language.to_owned(),
                    line: number,
                    text: String::new(),
                });
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => writeln!(found.last_mut().unwrap().text, "{line}").unwrap(),
            None => {}
        }
    }
    assert!(!inside, "the last block isn't closed");
    found
}

#[test]
fn its_commands_work_as_they_are_written() {
    let lab = tap_lab!("readme");
    let host = lab.host("h");
    let dir = lab.dir().join("tour");
    std::fs::create_dir(&dir).unwrap();
    let programs = PathBuf::from(program("vswitchctl"));
    let mut script = format!(
        "set -euo pipefail\n\
         trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n\
         mount -t tmpfs tmpfs /var/lib\n\
         cd {}\nexport PATH={}:$PATH\n\
         timeout --preserve-status 1 vswitchd run --config vswitchd.toml\n",
        dir.display(),
        programs.parent().unwrap().display()
    );
    let mut steps = 0;
    for block in blocks(&readme()) {
        match block.language.as_str() {
            "sh" => {
                let line = block.line;
                write!(script, "echo '== line {line}'\n{}", block.text).unwrap();
                steps += 1;
            }
            "toml" => {
                let name = block.text.lines().next().and_then(|l| l.strip_prefix("# "));
                let name = name.unwrap_or_else(|| panic!("line {}: no file name", block.line));
                std::fs::write(dir.join(name), &block.text).unwrap();
            }
            "console" | "text" => {}
            other => panic!("line {}: what is `{other}`?", block.line),
        }
    }
    assert!(steps >= 10, "only {steps} blocks to run");
    script.push_str(
        "echo '== left behind'\n\
         [ -z \"$(jobs -pr)\" ]\n\
         [ -z \"$(ip netns list)\" ]\n\
         [ -z \"$(ip -o link show type veth)$(ip -o link show type tun)\" ]\n\
         [ ! -e /var/lib/vswitch ]\n",
    );
    let file = dir.join("tour.bash");
    std::fs::write(&file, script).unwrap();
    let out = host.run_for(&["bash", file.to_str().unwrap()], LIMIT);
    assert_eq!(out.code, Some(0), "{out}");
    assert!(out.stdout.contains("0% packet loss"), "{out}");
}

#[test]
fn what_it_links_to_is_there() {
    let text = readme();
    let links: Vec<&str> = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect();
    assert!(links.len() > 5, "{links:?}");
    let slug = |title: &str| title.to_lowercase().replace(' ', "-");
    let headings = text.lines().filter(|l| l.starts_with('#'));
    let titles: Vec<String> = headings
        .map(|l| slug(l.trim_start_matches('#').trim()))
        .collect();
    for link in links {
        if let Some(title) = link.strip_prefix('#') {
            assert!(titles.iter().any(|t| t == title), "no heading {link}");
            continue;
        }
        assert!(root().join(link).exists(), "{link} isn't there");
    }
}

#[test]
fn every_package_is_explained() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let table = manifest["workspace"]["dependencies"].as_table().unwrap();
    let text = readme();
    let (_, rows) = text.split_once("### Dependencies").unwrap();
    let rows = rows.lines().filter_map(|l| l.strip_prefix("| "));
    let named: Vec<&str> = rows
        .filter_map(|l| l.split(" |").next())
        .flat_map(|names| names.split(", "))
        .collect();
    for name in table.keys().filter(|n| !n.starts_with("vswitch-")) {
        assert!(named.contains(&name.as_str()), "{name} isn't in README.md");
    }
    for name in named.iter().skip(1).filter(|n| !n.starts_with('-')) {
        assert!(table.contains_key(*name), "README.md explains {name}");
    }
}
