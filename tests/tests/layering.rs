//! House rules that a compiler doesn't check, read from the sources: imports go one way, `unsafe`
//! stays in its corner, files are short and open with their theory of operation, names say
//! something, and the top level is fixed.
//!
//! Sources are read as text with comments, strings and characters blanked out, so a rule can't be
//! tripped by prose; paths are found anywhere in code, not only in `use` lines.

use std::fs;
use std::path::{Path, PathBuf};

/// A package, its folder, and the packages of ours it may import.
const PACKAGES: [(&str, &str, &[&str]); 5] = [
    ("vswitch-core", "switch", &[]),
    ("vswitch-nat", "nat", &["vswitch-core"]),
    (
        "vswitch-control",
        "control",
        &["vswitch-core", "vswitch-nat"],
    ),
    (
        "vswitch-tests",
        "tests",
        &["vswitch-core", "vswitch-nat", "vswitch-control"],
    ),
    (
        "vswitch-bench",
        "bench",
        &[
            "vswitch-core",
            "vswitch-nat",
            "vswitch-control",
            "vswitch-tests",
        ],
    ),
];

/// Where `unsafe` may be written: system calls.
const UNSAFE_CORNERS: [&str; 1] = ["switch/src/sys/"];

const MAX_LINES: usize = 600;

/// Words that say nothing about what a type does.
const EMPTY_WORDS: [&str; 4] = ["Manager", "Helper", "Util", "Utils"];

/// What may lie beside the packages' folders; dotfiles may too.
const TOP_LEVEL: [&str; 5] = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "target"];

/// Every breach of a rule below `root`, as `file:line: what`.
fn breaches(root: &Path) -> Vec<String> {
    let mut found = vec![];
    check_top_level(root, &mut found);
    for (package, folder, allowed) in PACKAGES {
        let dir = root.join(folder);
        check_manifest(
            &dir.join("Cargo.toml"),
            folder,
            package,
            allowed,
            &mut found,
        );
        let mut files = vec![];
        rust_files(&dir, &mut files);
        files.sort();
        for file in files {
            let name = file
                .strip_prefix(root)
                .expect("it is below root")
                .to_str()
                .expect("UTF-8")
                .to_owned();
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {name}: {error}"));
            check_source(&name, &text, package, allowed, &mut found);
        }
    }
    found
}

fn check_top_level(root: &Path, found: &mut Vec<String>) {
    for entry in
        fs::read_dir(root).unwrap_or_else(|error| panic!("read {}: {error}", root.display()))
    {
        let name = entry.expect("a directory entry").file_name();
        let name = name.to_str().expect("UTF-8");
        let package = PACKAGES.iter().any(|(_, folder, _)| *folder == name);
        if !package && !name.starts_with('.') && !TOP_LEVEL.contains(&name) {
            found.push(format!(
                "{name}: the top level is fixed, it doesn't belong there"
            ));
        }
    }
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("read {}: {error}", dir.display()))
    {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The dependency tables name no package of ours but the allowed ones.
fn check_manifest(
    path: &Path,
    folder: &str,
    package: &str,
    allowed: &[&str],
    found: &mut Vec<String>,
) {
    let text = fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("read {folder}/Cargo.toml: {error}"));
    let manifest: toml::Table = text
        .parse()
        .unwrap_or_else(|error| panic!("{folder}/Cargo.toml: {error}"));
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for name in manifest
            .get(table)
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(toml::Table::keys)
        {
            if name.starts_with("vswitch-") && !allowed.contains(&name.as_str()) {
                found.push(format!(
                    "{folder}/Cargo.toml: {package} mustn't depend on {name}"
                ));
            }
        }
    }
}

fn check_source(name: &str, text: &str, package: &str, allowed: &[&str], found: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{name}: {lines} lines, {MAX_LINES} at most"));
    }
    let head = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("#!["));
    if !head.is_some_and(|line| line.starts_with("//!")) {
        found.push(format!("{name}: doesn't open with a `//!` head"));
    }
    if let Some(stem) = Path::new(name).file_stem().and_then(|stem| stem.to_str())
        && EMPTY_WORDS.iter().any(|word| {
            stem.eq_ignore_ascii_case(word) || stem == format!("{}s", word.to_lowercase())
        })
    {
        found.push(format!("{name}: the name says nothing about what is in it"));
    }
    for (number, line) in code_of(text).lines().enumerate() {
        let number = number + 1;
        let words: Vec<&str> = words(line).collect();
        for (other, ..) in PACKAGES {
            let path = other.replace('-', "_");
            if other != package && !allowed.contains(&other) && words.contains(&path.as_str()) {
                found.push(format!("{name}:{number}: {package} mustn't import {other}"));
            }
        }
        if words.contains(&"unsafe")
            && !UNSAFE_CORNERS.iter().any(|corner| name.starts_with(corner))
        {
            found.push(format!(
                "{name}:{number}: `unsafe` outside {}",
                UNSAFE_CORNERS.join(" and ")
            ));
        }
        for pair in words.windows(2) {
            let type_word = matches!(pair[0], "struct" | "enum" | "trait" | "type" | "union");
            if type_word && camel_words(pair[1]).any(|word| EMPTY_WORDS.contains(&word)) {
                found.push(format!(
                    "{name}:{number}: the name {} says nothing about what it does",
                    pair[1]
                ));
            }
        }
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// `PortManager` -> `Port`, `Manager`.
fn camel_words(name: &str) -> impl Iterator<Item = &str> {
    let mut starts: Vec<usize> = name
        .match_indices(char::is_uppercase)
        .map(|(at, _)| at)
        .collect();
    starts.push(name.len());
    (0..starts.len() - 1)
        .map(move |i| &name[starts[i]..starts[i + 1]])
        .collect::<Vec<_>>()
        .into_iter()
}

/// The text with comments, strings and character literals blanked out, line for line.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + token_to_blank(text, at);
        if end == at {
            let c = text[at..].chars().next().expect("at is inside the text");
            code.push(c);
            at += c.len_utf8();
        } else {
            code.extend(
                text[at..end]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    code
}

/// Length of the comment, string or character literal that starts at byte `at`, else 0.
fn token_to_blank(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let before = text[..at].strip_suffix('b').unwrap_or(&text[..at]); // br"..."
    let word_before = before
        .chars()
        .next_back()
        .is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !word_before) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = &raw[hashes + 1..];
            return 1
                + hashes
                + 1
                + body
                    .find(&close)
                    .map_or(body.len(), |found| found + close.len());
        }
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if let Some(body) = rest.strip_prefix('\'') {
        let mut inside = body.chars();
        // 'x' and '\n' are characters, 'a in `&'a str` is a lifetime.
        let first = inside.next();
        if first == Some('\\') || inside.next() == Some('\'') {
            return quoted(rest, '\'');
        }
    }
    0
}

fn quoted(rest: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == mark => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[test]
fn the_workspace_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent");
    let found = breaches(root);
    assert!(
        found.is_empty(),
        "{} breaches:\n{}",
        found.len(),
        found.join("\n")
    );
}

/// A workspace that keeps all rules, to break one by one.
fn clean_tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("Cargo.toml"), "[workspace]\n").unwrap();
    for (package, folder, allowed) in PACKAGES {
        fs::create_dir_all(root.path().join(folder).join("src/sys")).unwrap();
        let dependencies: String = allowed
            .iter()
            .map(|name| format!("{name}.workspace = true\n"))
            .collect();
        let manifest = format!("[package]\nname = \"{package}\"\n[dependencies]\n{dependencies}");
        fs::write(root.path().join(folder).join("Cargo.toml"), manifest).unwrap();
        let uses: String = allowed
            .iter()
            .map(|name| format!("use {};\n", name.replace('-', "_")))
            .collect();
        fs::write(
            root.path().join(folder).join("src/lib.rs"),
            format!("//! A head.\n{uses}"),
        )
        .unwrap();
    }
    root
}

#[test]
fn each_rule_can_fail() {
    let cases = [
        (
            "switch/src/a.rs",
            "//! Head.\nuse vswitch_nat::Stage;\n",
            "vswitch-core mustn't import vswitch-nat",
        ),
        (
            "nat/src/a.rs",
            "//! Head.\nfn f() -> vswitch_control::Api {}\n",
            "mustn't import vswitch-control",
        ),
        (
            "control/src/a.rs",
            "//! Head.\nuse {vswitch_tests as t};\n",
            "mustn't import vswitch-tests",
        ),
        (
            "tests/tests/a.rs",
            "//! Head.\nuse vswitch_bench::X;\n",
            "mustn't import vswitch-bench",
        ),
        (
            "nat/Cargo.toml",
            "[dev-dependencies]\nvswitch-control = \"1\"\n",
            "mustn't depend on vswitch-control",
        ),
        (
            "control/src/a.rs",
            "//! Head.\nfn f() { unsafe { g() } }\n",
            "a.rs:2: `unsafe` outside",
        ),
        (
            "nat/src/sys/a.rs",
            "//! Head.\nunsafe fn f() {}\n",
            "`unsafe` outside",
        ),
        (
            "switch/src/a.rs",
            &format!("//! Head.\n{}", "\n".repeat(600)),
            "601 lines",
        ),
        ("switch/src/a.rs", "use std::fs;\n", "doesn't open with"),
        (
            "switch/src/a.rs",
            "// Not a module comment.\n//! Late.\n",
            "doesn't open with",
        ),
        ("switch/src/a.rs", "", "doesn't open with"),
        (
            "bench/src/a.rs",
            "//! Head.\npub struct PortManager;\n",
            "PortManager says nothing",
        ),
        (
            "bench/src/a.rs",
            "//! Head.\npub(crate) trait HelperOf {}\n",
            "HelperOf says nothing",
        ),
        (
            "bench/src/utils.rs",
            "//! Head.\n",
            "utils.rs: the name says nothing",
        ),
        ("docs", "", "docs: the top level is fixed"),
    ];
    for (file, text, expected) in cases {
        let root = clean_tree();
        assert_eq!(breaches(root.path()), [] as [String; 0]);
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let found = breaches(root.path());
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{file} with {text:?}: {found:?}"
        );
    }
}

#[test]
fn prose_and_permitted_code_are_no_breach() {
    let root = clean_tree();
    let text = r##"#![no_main]
//! unsafe, vswitch_nat, struct FooManager: only words.
/* unsafe /* nested unsafe */ vswitch_nat */
const A: &str = "unsafe \" vswitch_nat";
const B: &str = r#"unsafe " vswitch_nat"#;
const D: &[u8] = br"unsafe \"; const E: &[u8] = b"unsafe \" vswitch_nat";
const C: [char; 3] = ['"', '\'', 'u'];
fn f<'a>(x: &'a str) -> &'a str { x } // unsafe
#![allow(unsafe_code)]
struct Management; struct Utility; fn helper() {}
"##;
    fs::write(root.path().join("switch/src/a.rs"), text).unwrap();
    fs::write(
        root.path().join("switch/src/sys/b.rs"),
        "//! Head.\nunsafe fn f() {}\n",
    )
    .unwrap();
    fs::create_dir(root.path().join(".ci")).unwrap();
    assert_eq!(breaches(root.path()), [] as [String; 0]);
}
