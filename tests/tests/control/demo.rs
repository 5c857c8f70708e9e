//! `vswitchd demo`: what it shows, and that nothing of it is left however it ends.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use vswitch_tests::{Background, Lab, Node, Output, program, skip, tap_lab, wait_until};

/// The demo says that it takes 15 s; a machine with other work may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory of the lab for the demo's own.
fn temp(lab: &Lab) -> PathBuf {
    let temp = lab.dir().join("tmp");
    std::fs::create_dir(&temp).unwrap();
    temp
}

fn start(host: &Node, temp: &Path, options: &[&str]) -> Background {
    let (program, temp) = (program("vswitchd"), format!("TMPDIR={}", temp.display()));
    host.spawn(&[&["env", &temp, &program, "demo"], options].concat())
}

/// Command lines of processes that name the demo's directory.
fn processes(temp: &Path) -> Vec<String> {
    let temp = temp.to_str().unwrap();
    let dirs = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = dirs.filter_map(|d| std::fs::read_to_string(d.path().join("cmdline")).ok());
    let lines = lines.map(|l| l.replace('\0', " "));
    lines
        .filter(|l| l.contains("demo-") && l.contains(temp))
        .collect()
}

/// Nothing is left of a demo.
fn assert_gone(temp: &Path) {
    wait_until("the demo's processes to be gone", || {
        processes(temp).is_empty()
    });
    let left: Vec<_> = std::fs::read_dir(temp).unwrap().flatten().collect();
    assert!(left.is_empty(), "left in TMPDIR: {left:?}");
}

/// What a demo that went well has printed.
fn assert_shown(out: &Output) {
    assert_eq!(out.code, Some(0), "{out}");
    let text = &out.stdout;
    assert!(!text.contains('\x1b'), "plain, for it's no terminal: {out}");
    let after = |title: &str, n: usize| -> Vec<Vec<&str>> {
        let lines = text.lines().skip_while(|l| !l.starts_with(title));
        let words = lines.skip(1).take(n);
        words.map(|l| l.split_whitespace().collect()).collect()
    };
    let names = ["web", "db", "cache"];
    let matrix = after("Ping ", 4);
    assert_eq!(matrix[0], [&["to"][..], &names].concat(), "{out}");
    for (row, name) in matrix[1..].iter().zip(names) {
        assert_eq!((row.len(), row[0]), (7, name), "{out}");
        assert!(row[1..].chunks(2).all(|c| c[1] == "us"), "{out}");
        for cell in row[1..].chunks(2) {
            assert!(cell[0].parse::<f64>().unwrap() > 0.0, "{out}");
        }
    }
    let mut learned: Vec<&str> = after("FDB ", 4)[1..].iter().map(|row| row[2]).collect();
    learned.sort_unstable();
    assert_eq!(learned, ["cache", "db", "web"], "{out}");
    let tcp = after("TCP ", 1);
    assert!(tcp[0][0].parse::<f64>().unwrap() > 0.0, "{out}");
    assert_eq!(tcp[0][1], "Gbit/s", "{out}");
    let bars = after("Latency ", 11);
    let bars = bars
        .iter()
        .filter(|row| row.iter().any(|w| w.starts_with('#')));
    assert!(bars.count() >= 2, "{out}");
    assert!(text.contains("p99"), "{out}");
    assert!(text.contains("9 of 9 answered"), "{out}");
}

#[test]
fn it_shows_everything_and_leaves_nothing() {
    let lab = tap_lab!("demo");
    let (host, temp) = (lab.host("h"), temp(&lab));
    let out = start(&host, &temp, &[]).finish(LIMIT);
    assert_shown(&out);
    assert_gone(&temp);
    let links = host.ok(&["ip", "-o", "link"]);
    assert_eq!(
        links.lines().count(),
        1,
        "the host has its lo only: {links}"
    );
}

#[test]
fn an_ordinary_user_needs_nothing_but_the_device() {
    let lab = tap_lab!("demo-user");
    if !geteuid().is_root() {
        skip!("only root can become another user");
    }
    let (host, temp) = (lab.host("h"), temp(&lab));
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(&lab.dir());
    // Where the programs were built, others may not enter.
    let copy = lab.dir().join("vswitchd");
    std::fs::copy(program("vswitchd"), &copy).unwrap();
    open(&copy);
    nix::unistd::chown(&temp, Some(12345.into()), Some(12345.into())).unwrap();
    let user = format!(
        "exec setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps=-all --bounding-set=-all \
         env TMPDIR={} {} demo",
        temp.display(),
        copy.display()
    );
    let dir = lab.dir();
    let with = |device: &str, mode: &str| {
        let script = format!(
            "cd {}; rm -f T; {device}; chmod {mode} T; mount --bind T /dev/net/tun; {user}",
            dir.display()
        );
        host.run_for(&["unshare", "--mount", "sh", "-c", &script], LIMIT)
    };
    assert_shown(&with("mknod T c 10 200", "666"));
    assert_gone(&temp);
    // Where the device can't be opened, it is said at once with what to do.
    for (device, mode, remedy) in [
        ("mknod T c 10 200", "600", "chmod 0666 /dev/net/tun"),
        ("touch T", "000", "chmod 0666 /dev/net/tun"),
        ("touch T", "666", "mknod /dev/net/tun c 10 200"),
    ] {
        let out = with(device, mode);
        assert_eq!(out.code, Some(1), "{device} {mode}: {out}");
        assert!(out.stdout.is_empty(), "{device} {mode}: {out}");
        let said = out.stderr.contains("/dev/net/tun") && out.stderr.contains(remedy);
        assert!(said, "{device} {mode}: {out}");
        assert_gone(&temp);
    }
}

#[test]
fn signals_in_the_middle_clean_up() {
    let lab = tap_lab!("demo-signals");
    let (host, temp) = (lab.host("h"), temp(&lab));
    for (signal, code, part) in [
        (Signal::SIGINT, Some(130), "TCP "),
        (Signal::SIGTERM, Some(143), "Latency "),
        (Signal::SIGKILL, None, "TCP "),
    ] {
        let mut demo = start(&host, &temp, &[]);
        demo.wait_for(part);
        assert!(!processes(&temp).is_empty(), "containers run");
        demo.signal(signal);
        let out = demo.finish(LIMIT);
        assert_eq!((out.code, out.timed_out), (code, false), "{signal}: {out}");
        if signal == Signal::SIGKILL {
            wait_until("the holders to have cleaned up", || {
                std::fs::read_dir(&temp).unwrap().next().is_none()
            });
        }
        assert_gone(&temp);
    }
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let lab = tap_lab!("demo-pipe");
    let (host, temp) = (lab.host("h"), temp(&lab));
    let script = format!(
        "TMPDIR={} {} demo | head -1; echo ${{PIPESTATUS[0]}}",
        temp.display(),
        program("vswitchd")
    );
    let started = Instant::now();
    let out = host.run_for(&["bash", "-c", &script], LIMIT);
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!((lines.len(), lines[1]), (2, "0"), "{out}");
    assert!(out.stderr.is_empty(), "{out}");
    assert!(started.elapsed() < LIMIT);
    assert_gone(&temp);
}

#[test]
fn kept_up_its_commands_work_as_printed() {
    let lab = tap_lab!("demo-keep");
    let (host, temp) = (lab.host("h"), temp(&lab));
    let mut demo = start(&host, &temp, &["--keep"]);
    demo.wait_for("Ctrl-C here ends it");
    let text = demo.output();
    let commands: Vec<&str> = text
        .lines()
        .skip_while(|l| !l.starts_with("It stays up"))
        .filter_map(|l| l.strip_prefix("  "))
        .collect();
    let mut seen = Vec::new();
    for command in commands {
        let name = command.split_whitespace().last().unwrap();
        // `top` asks for a terminal, which `script` (package bsdutils) is.
        let command = if name == "top" {
            format!(
                "(sleep 1; printf q) | TERM=xterm script -qec 'stty rows 24 cols 100; {command}' /dev/null"
            )
        } else {
            command.to_owned()
        };
        let out = host.run(&["sh", "-c", &command]);
        assert_eq!(out.code, Some(0), "{out}");
        seen.push((command, out.stdout));
    }
    let of = |part: &str| {
        let found = seen.iter().find(|(c, _)| c.contains(part));
        &found.unwrap_or_else(|| panic!("no {part} in {text}")).1
    };
    assert!(of("port show").contains("cache"), "{text}");
    assert!(of("fdb show").contains("02:00:00:00:00:01"));
    assert!(of("ping").contains(" 0% packet loss"));
    assert!(of("ip address").contains("192.0.2.1/24"));
    // What is blank anyway isn't drawn, so words stand alone.
    let drawn = of(" top");
    assert!(
        drawn.contains("cache") && drawn.contains("entries"),
        "{drawn:?}"
    );
    demo.signal(Signal::SIGINT);
    let out = demo.finish(LIMIT);
    assert_eq!(out.code, Some(0), "{out}");
    assert!(out.stdout.ends_with("is gone again.\n"), "{out}");
    assert_gone(&temp);
}
