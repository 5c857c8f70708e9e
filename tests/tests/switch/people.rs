//! What a person or a monitoring system sees: access, metrics, `top`, broken pipes, odd arguments.

use nix::unistd::geteuid;
use vswitch_tests::{Daemon, skip, tap_lab, wait_until};

use crate::rig::{PYTHON, container, counter, program, switch};

/// A metric's value, by port.
fn metric(text: &str, name: &str, port: &str) -> u64 {
    let label = format!("port=\"{port}\"");
    let line = text
        .lines()
        .find(|l| l.starts_with(&format!("{name}{{")) && l.contains(&label));
    let value = line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok());
    value.unwrap_or_else(|| panic!("no {name} of {port} in {text}")) as u64
}

#[test]
fn metrics_are_what_stats_says() {
    let lab = tap_lab!("sw-metrics");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--loop-guard", "off"]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &["--loop-guard", "off"]);
    a.assert_ping("192.0.2.2");
    // Link-local IPv6 still makes noise for a while, so the two are read until nothing came between.
    wait_until("metrics and stats to agree", || {
        let before = d.ctl_json(&["stats"]);
        let text = d.http("GET", "/metrics", None).body;
        if d.ctl_json(&["stats"]) != before {
            return false;
        }
        for (i, port) in ["a", "b"].iter().enumerate() {
            let stats = &before["ports"][i];
            for (metric_name, counter) in [
                ("vswitch_port_rx_frames_total", "rx_frames"),
                ("vswitch_port_tx_frames_total", "tx_frames"),
                ("vswitch_port_rx_bytes_total", "rx_bytes"),
                ("vswitch_port_tx_bytes_total", "tx_bytes"),
                ("vswitch_port_copied_frames_total", "copied"),
            ] {
                let value = metric(&text, metric_name, port);
                assert_eq!(stats[counter].as_u64(), Some(value), "{counter} of {port}");
            }
            assert_eq!(metric(&text, "vswitch_port_up", port), 1);
        }
        true
    });
    assert!(counter(&d, "a", "rx_frames") >= 3);
    d.ctl(&["port", "set", "b", "--up", "off"]);
    let text = d.http("GET", "/metrics", None).body;
    assert_eq!(metric(&text, "vswitch_port_up", "b"), 0);
    d.assert_ledger();
}

/// Runs vswitchctl on a pseudo-terminal: types `q` once the given text is on the screen, prints what was drawn.
const PTY: &str = "\
import fcntl, os, pty, select, struct, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'xterm'
    os.execv(sys.argv[2], sys.argv[2:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 120, 0, 0))
seen, typed, end = b'', False, time.time() + 20
while time.time() < end:
    if select.select([fd], [], [], 0.1)[0]:
        try:
            part = os.read(fd, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    if not typed and sys.argv[1].encode() in seen:
        os.write(fd, b'nq')
        typed = True
sys.stdout.write(seen.decode(errors='replace'))
status = os.waitpid(pid, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status) if typed else 99)
";

#[test]
fn top_draws_on_a_terminal_and_ends_by_q() {
    let lab = tap_lab!("sw-top");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a-port", "192.0.2.1/24", &[]);
    let _b = container(&d, &lab, "b-port", "192.0.2.2/24", &[]);
    a.assert_ping("192.0.2.2");
    let (ctl, socket) = (program("vswitchctl"), d.socket());
    let socket = socket.to_str().expect("UTF-8");
    let argv = [
        PYTHON,
        "-c",
        PTY,
        "b-port",
        &ctl,
        "--socket",
        socket,
        "top",
        "--interval",
        "0.2",
    ];
    let screen = d.host().ok(&argv);
    for text in ["ports,", "a-port", "RX RATE", "received"] {
        assert!(screen.contains(text), "no `{text}` in {screen:?}");
    }
    // The alternate screen is entered and left (DECSET 1049).
    assert!(screen.contains("\x1b[?1049h") && screen.contains("\x1b[?1049l"));
    let refused = d.ctl_fails(&["top"]);
    assert!(refused.contains("stats --json"), "{refused}");
    d.assert_ledger();
}

#[test]
fn readers_that_go_and_odd_arguments_are_no_crash() {
    let lab = tap_lab!("sw-pipe");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let (ctl, socket) = (program("vswitchctl"), d.socket());
    let ctl = format!("{ctl} --socket {}", socket.display());
    let shell = |script: &str| d.host().run(&["bash", "-c", script]);
    for command in [
        "completions zsh",
        "port show",
        "stats --json",
        "fdb show lan",
        "--help",
    ] {
        let out = shell(&format!(
            "set -o pipefail; {ctl} {command} | true; echo \"${{PIPESTATUS[0]}}\""
        ));
        assert_eq!(out.stdout, "0\n", "{command}: {out}");
        assert_eq!(out.stderr, "", "{command}");
    }
    let full = shell(&format!("{ctl} port show > /dev/full"));
    assert_eq!(full.code, Some(1), "{full}");
    assert!(full.stderr.contains("standard output"), "{full}");
    for args in [
        "port show $'\\xff'",
        "network add $'a\\xffb'",
        "port add x --network $'\\xfe'",
        "fdb add lan $'\\xff' a",
        "port add s --network lan --kind stream --listen $'/tmp/\\xff'",
    ] {
        let out = shell(&format!("{ctl} {args}"));
        assert_eq!(out.code, Some(2), "{args}: {out}");
        assert!(out.stderr.contains("UTF-8"), "{args}: {out}");
    }
    // Paths may be of any bytes.
    let path = shell(&format!("{ctl} apply $'/tmp/\\xff.toml'"));
    assert_eq!(path.code, Some(1), "{path}");
    assert!(path.stderr.contains("topology file"), "{path}");
    a.run(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "192.0.2.77"]);
    d.assert_ledger();
}

/// Runs vswitchctl as this user and group, with these further groups.
fn as_user(d: &Daemon, user: &str, groups: &[&str]) -> vswitch_tests::Output {
    let (ctl, socket) = (program("vswitchctl"), d.socket());
    let socket = socket.to_str().expect("UTF-8");
    let become_user = ["setpriv", "--reuid", user, "--regid", user];
    let ctl = [
        ctl.as_str(),
        "--socket",
        socket,
        "network",
        "show",
        "--json",
    ];
    d.host().run(&[&become_user[..], groups, &ctl].concat())
}

#[test]
fn a_group_may_use_the_socket_and_others_are_told() {
    let lab = tap_lab!("sw-group");
    if !geteuid().is_root() {
        skip!("only root can become another user");
    }
    let builder = lab.daemon_with().config("group = \"users\"\n");
    // A user database of our own, in the daemon's namespace.
    let dir = lab.dir();
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0::/:/bin/sh\nmember:x:4001:4001::/:/bin/sh\nother:x:4002:4002::/:/bin/sh\n",
        ),
        ("group", "root:x:0:\nusers:x:100:member\n"),
    ] {
        let file = dir.join(name);
        std::fs::write(&file, text).expect("write a user database");
        let file = file.to_str().expect("UTF-8");
        builder
            .host()
            .ok(&["mount", "--bind", file, &format!("/etc/{name}")]);
    }
    builder
        .host()
        .ok(&["chmod", "755", dir.to_str().expect("UTF-8")]);
    let d = builder.start();
    d.ctl(&["network", "add", "lan"]);
    let allowed = as_user(&d, "4001", &["--groups", "100"]);
    assert!(
        allowed.success() && allowed.stdout.contains("lan"),
        "{allowed}"
    );
    // The mode keeps out whoever isn't in the group.
    let refused = as_user(&d, "4002", &["--clear-groups"]);
    assert_eq!(refused.code, Some(3), "{refused}");
    assert!(refused.stderr.contains("group"), "{refused}");
    // Past the mode the peer's own identity counts.
    let socket = d.socket();
    d.host()
        .ok(&["chmod", "666", socket.to_str().expect("UTF-8")]);
    let refused = as_user(&d, "4002", &["--clear-groups"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(
        refused.stderr.contains("uid 4002") && refused.stderr.contains("group"),
        "{refused}"
    );
}
