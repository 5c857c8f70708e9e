//! The daemon's life: state, a second daemon, a crash, readiness.

use vswitch_tests::{lab, tap_lab};

#[test]
fn state_survives_a_restart_and_a_crash() {
    let lab = tap_lab!("ctl-state");
    let mut d = lab.daemon();
    d.ctl(&["network", "add", "lan", "--ageing", "60s"]);
    d.ctl(&["port", "add", "stays", "--network", "lan", "--mtu", "9000"]);
    let gone = lab.container("gone");
    let netns = format!("pid:{}", gone.pid());
    d.ctl(&["port", "add", "gone", "--network", "lan", "--netns", &netns]);
    let before = d.ctl(&["export"]);
    drop(gone);
    d.kill();
    d.restart();
    assert_eq!(d.ctl(&["export"]), before, "nothing is lost");
    let port = d.ctl_json(&["port", "show", "stays"]);
    assert_eq!(port[0]["state"], "up", "{port}");
    let port = d.ctl_json(&["port", "show", "gone"]);
    assert_eq!(port[0]["state"], "down", "{port}");
    assert!(
        port[0]["reason"].as_str().unwrap().contains("process"),
        "{port}"
    );
    d.stop();
    let beside = d.socket().parent().unwrap().to_owned();
    let left = std::fs::read_dir(&beside).unwrap();
    let left = left.map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left
        .filter(|n| n.contains(".sock") || n.ends_with(".lock"))
        .collect();
    assert!(left.is_empty(), "sockets and locks go with it: {left:?}");
    let devices = d.host().ok(&["ip", "-o", "link"]);
    assert!(
        !devices.contains("stays"),
        "its devices go with it: {devices}"
    );
}

#[test]
fn a_second_daemon_is_kept_out() {
    let lab = lab!("ctl-second");
    let d = lab.daemon();
    let mut second = lab.daemon_with().launch();
    let (code, log) = second.wait_end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("another vswitchd has it"), "{log}");
    // With another socket it would still make the same ports, and overwrite what the first one saves.
    let elsewhere = tempfile::tempdir().unwrap();
    let socket = elsewhere.path().join("other.sock");
    let socket = socket.to_str().unwrap();
    let state = elsewhere.path().join("state.json");
    let state = state.to_str().unwrap();
    let program = vswitch_tests::program("vswitchd");
    let kept = d.socket().with_file_name("state.json");
    let args = |state| [&program, "run", "--socket", socket, "--state", state];
    let out = d.host().run(&args(kept.to_str().unwrap()));
    assert_eq!(out.code, Some(1), "{out}");
    assert!(out.stderr.contains("another vswitchd keeps its"), "{out}");
    assert!(out.stderr.contains("--state"), "{out}");
    let third = d.host().spawn(&args(state));
    let asked = [
        &vswitch_tests::program("vswitchctl"),
        "--socket",
        socket,
        "network",
        "show",
    ];
    vswitch_tests::wait_until("the one with its own state", || {
        d.host().run(&asked).success()
    });
    drop(third);
    d.ctl(&["network", "add", "lan"]);
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let lab = lab!("ctl-config");
    let mut d = lab
        .daemon_with()
        .config("workers = 1\nwrkers = 2\n")
        .launch();
    let (code, log) = d.wait_end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("vswitchd.toml:2:1"), "{log}");
}

#[test]
fn readiness_is_told_on_a_descriptor() {
    let lab = lab!("ctl-ready");
    let host = lab.host("h");
    let dir = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("vswitchd");
    let (program, dir) = (program.display(), dir.path().display());
    let script = format!(
        "mkfifo {dir}/ready; {program} run --no-state --socket {dir}/s --ready-fd 3 3<>{dir}/ready & \
         head -1 <{dir}/ready; kill $!; wait $!; echo ended $?"
    );
    let out = host.ok(&["bash", "-c", &script]);
    assert_eq!(out, "ready\nended 0\n");
}

/// systemd's protocol (sd_notify(3)): a datagram when it is ready and one when it ends.
const NOTIFIED: &str = "\
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1] + '/notify')
s.settimeout(20)
p = subprocess.Popen([sys.argv[2], 'run', '--no-state', '--socket', sys.argv[1] + '/s'],
                     env={**os.environ, 'NOTIFY_SOCKET': sys.argv[1] + '/notify'})
print(s.recv(100).decode().strip())
p.terminate()
print(s.recv(100).decode().strip(), p.wait())
";

#[test]
fn readiness_is_told_to_systemd() {
    let lab = lab!("ctl-notify");
    let host = lab.host("h");
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("vswitchd");
    let dir = lab.dir();
    let argv = [
        "python3",
        "-c",
        NOTIFIED,
        dir.to_str().unwrap(),
        program.to_str().unwrap(),
    ];
    assert_eq!(host.ok(&argv), "READY=1\nSTOPPING=1 0\n");
}
