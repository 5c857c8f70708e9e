//! The lab itself: its nodes talk, and nothing of it outlives a container, a command or the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use vswitch_tests::{Lab, Mtu, lab, skip, wait_until};

/// Set in the copy of this test binary that a test kills.
const VICTIM: &str = "VSWITCH_LAB_VICTIM";

fn alive(pid: i32) -> bool {
    // A zombie that somebody else has to reap holds nothing.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
}

#[test]
fn two_containers_joined_by_veth_ping_each_other() {
    let lab = lab!("pair");
    println!("rootless: {}", lab.is_rootless());
    let (a, b) = (lab.container("a"), lab.container("b"));
    assert_eq!(a.ok(&["hostname"]).trim(), "a");
    a.assert_no_ping("192.0.2.2");
    lab.link(&a, "eth0", &b, "eth0", Mtu(9000));
    a.addr("eth0", "192.0.2.1/24");
    b.addr("eth0", "192.0.2.2/24");
    a.addr("eth0", "2001:db8::1/64");
    b.addr("eth0", "2001:db8::2/64");
    a.assert_ping("192.0.2.2");
    b.assert_ping("2001:db8::1");
    let jumbo = ["-c", "1", "-W", "5", "-M", "do", "-s", "8972"];
    assert!(a.ping_with("192.0.2.2", &jumbo).success());
    assert_ne!(a.mac("eth0"), b.mac("eth0"));
}

#[test]
fn nodes_see_nothing_of_the_machine() {
    let lab = lab!("apart");
    let (container, host) = (lab.container("a"), lab.host("out"));
    let machine = fs::read_link("/proc/self/ns/net").unwrap();
    for node in [&container, &host] {
        assert_ne!(fs::read_link(node.netns_path()).unwrap(), machine);
        assert_eq!(node.ok(&["ip", "route", "show"]), "");
        assert_eq!(node.ok(&["ls", "/run"]), "");
    }
    assert_eq!(
        container
            .ok(&["sh", "-c", "echo /proc/[0-9]*/ns"])
            .split_whitespace()
            .count(),
        2,
        "sleep and sh"
    );
    assert!(
        host.ok(&[
            "sh",
            "-c",
            &format!("readlink /proc/{}/ns/net", container.pid())
        ])
        .starts_with("net:[")
    );
}

#[test]
fn traffic_tools_see_what_is_sent() {
    let lab = lab!("tools");
    let (a, b) = (lab.container("a"), lab.host("b"));
    lab.link(&a, "eth0", &b, "eth0", Mtu(1500));
    a.addr("eth0", "192.0.2.1/24");
    b.addr("eth0", "192.0.2.2/24");

    let capture = b.capture("eth0", "ether proto 0x88b5");
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    a.send_frames("eth0", &[frame.clone(), frame]);
    a.scapy("sendp(Ether(src='02:00:00:00:00:02', dst='ff:ff:ff:ff:ff:ff', type=0x88b5) / (b'z' * 46), iface='eth0')");
    let sources = capture.fields("", &["eth.src", "frame.len"]);
    assert_eq!(
        sources,
        [
            "02:00:00:00:00:01\t64",
            "02:00:00:00:00:01\t64",
            "02:00:00:00:00:02\t60"
        ]
    );

    let _server = b.iperf3_server();
    let tcp = a.iperf3("192.0.2.2", &["-n", "1M"]);
    // The client ends the run when it has sent all, so the receiver may have counted less.
    assert!(
        tcp.received_bytes > 0 && tcp.received_bytes <= 1 << 20,
        "{tcp:?}"
    );
    let udp = a.iperf3("192.0.2.2", &["-u", "-b", "1M", "-n", "100K", "-l", "1000"]);
    assert!(udp.datagrams >= 100 && udp.received_bytes > 0, "{udp:?}");
    b.assert_no_checksum_errors();
    assert!(b.kernel_counter("TcpInSegs") > 0);
}

#[test]
fn a_killed_container_leaves_no_process() {
    let lab = lab!("kill");
    let (mut a, b) = (lab.container("a"), lab.container("b"));
    lab.link(&a, "eth0", &b, "eth0", Mtu(1500));
    let mut inside = a.spawn(&["sh", "-c", "sleep 1000 & echo started; wait"]);
    inside.wait_for("started");
    let pids = [a.pid(), inside.pid()];
    assert!(pids.iter().all(|pid| alive(*pid)));
    a.kill();
    wait_until("the processes of the container to be gone", || {
        !pids.iter().any(|pid| alive(*pid))
    });
    wait_until("its end of the link to vanish with it", || {
        !b.run(&["ip", "link", "show", "eth0"]).success()
    });
    assert!(!inside.is_running() && !a.is_running());
    b.ok(&["true"]);
}

#[test]
fn a_command_is_killed_when_its_time_is_over() {
    let lab = lab!("late");
    // A host sees all processes of the machine: nobody else sleeps that long.
    let sleep = format!("sleep {}", 1_000_000 + std::process::id());
    for node in [lab.container("a"), lab.host("b")] {
        let output = node.run_for(
            &["sh", "-c", &format!("echo $$; {sleep}; true")],
            Duration::from_millis(500),
        );
        assert!(output.timed_out && !output.success(), "{output}");
        assert!(!output.stdout.is_empty());
        let left = node.ok(&[
            "sh",
            "-c",
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '",
        ]);
        assert!(!left.contains(&format!("{sleep} ")), "{left}");
    }
}

#[test]
fn a_signal_reaches_the_command_and_its_output_is_kept() {
    let lab = lab!("signal");
    for node in [lab.container("a"), lab.host("b")] {
        let mut command = node.spawn(&[
            "sh",
            "-c",
            "trap 'echo got it; exit 7' TERM; echo up; while :; do sleep 0.05; done",
        ]);
        command.wait_for("up");
        command.signal(Signal::SIGTERM);
        let output = command.finish(Duration::from_secs(20));
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (Some(7), "up\ngot it\n"),
            "{output}"
        );
    }
}

#[test]
fn a_killed_test_binary_leaves_nothing() {
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::new("victim").unwrap();
        let (a, b) = (lab.container("a"), lab.host("b"));
        let commands = [a.spawn(&["sleep", "1000"]), b.spawn(&["sleep", "1000"])];
        commands
            .iter()
            .for_each(|command| wait_until("the command to run", || alive(command.pid())));
        std::thread::sleep(Duration::from_millis(200));
        println!(
            "victim {} {} {} {}",
            a.pid(),
            b.pid(),
            commands[0].pid(),
            commands[1].pid()
        );
        std::thread::sleep(Duration::from_secs(100));
        unreachable!("it is killed before");
    }
    let lab = lab!("killed");
    let log = lab.dir().join("victim.log");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "a_killed_test_binary_leaves_nothing",
        ])
        .env(VICTIM, "1")
        .stdout(fs::File::create(&log).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pids = vec![];
    wait_until("the victim to have its lab", || {
        let text = fs::read_to_string(&log).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.split_once("victim ").map(|(_, pids)| pids.to_owned()));
        pids = line
            .unwrap_or_default()
            .split(' ')
            .filter_map(|pid| pid.parse::<i32>().ok())
            .collect();
        pids.len() == 4
    });
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("everything of the victim to be gone", || {
        !pids.iter().any(|pid| alive(*pid))
    });
}

/// As root, runs the ping test of this binary once more as an ordinary user.
#[test]
fn an_ordinary_user_has_a_lab_too() {
    let lab = lab!("user");
    if lab.is_rootless() {
        return; // Then every test of this file has shown it.
    }
    let copy = lab.dir().join("lab-test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for path in [lab.dir().as_path(), Path::new(&copy)] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args([
            "--exact",
            "--nocapture",
            "two_containers_joined_by_veth_ping_each_other",
        ])
        .current_dir("/")
        .env_remove("VSWITCH_SKIPS")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if let Some(why) = text.split("SKIPPED ").nth(1) {
        skip!(
            "an ordinary user can't make a lab: {}",
            why.lines().next().unwrap_or("")
        );
    }
    assert!(
        output.status.success() && text.contains("rootless: true") && text.contains("1 passed"),
        "{text}"
    );
}
