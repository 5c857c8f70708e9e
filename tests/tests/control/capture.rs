//! `vswitchctl capture`: what tshark finds in our captures of real traffic, and how captures end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vswitch_tests::{Background, Daemon, Lab, Node, Output, tap_lab, tshark_fields, wait_until};

fn connect(d: &Daemon, node: &Node, address: &str, options: &[&str]) {
    let (netns, name) = (format!("pid:{}", node.pid()), node.name());
    let place = ["--netns", netns.as_str(), "--device", "eth0"];
    let add = ["port", "add", name, "--network", "lan"];
    d.ctl(&[&add[..], &place[..], options].concat());
    node.addr("eth0", address);
}

fn two(lab: &Lab) -> (Daemon, Node, Node) {
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    connect(&d, &a, "192.0.2.1/24", &[]);
    connect(&d, &b, "192.0.2.2/24", &[]);
    (d, a, b)
}

fn captures(d: &Daemon) -> u64 {
    let info = d.http("GET", "/v1/", None).json();
    info["captures"].as_u64().expect("a count of captures")
}

/// A capture that runs, writing a file.
struct Running {
    ctl: Background,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

/// Starts a capture and waits until it captures.
#[track_caller]
fn begin(d: &Daemon, args: &[&str]) -> Running {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("capture.pcapng");
    let before = captures(d);
    let path = file.to_str().expect("UTF-8");
    let ctl = d.spawn_ctl(&[&["capture", "-w", path], args].concat());
    wait_until("the capture to begin", || captures(d) > before);
    Running {
        ctl,
        file,
        _dir: dir,
    }
}

impl Running {
    /// Waits until the capture has counted so many frames; frames sent are counted after they have arrived.
    #[track_caller]
    fn wait_passed(&self, d: &Daemon, frames: u64) {
        wait_until("the frames to be captured", || {
            let all = d.http("GET", "/v1/captures", None).json();
            let passed = all.as_array().and_then(|a| a.last()?["passed"].as_u64());
            passed.is_some_and(|n| n >= frames)
        });
    }

    /// Ctrl-C; the file, and how many frames it was said to have.
    #[track_caller]
    fn stop(self, d: &Daemon) -> (Ended, u64) {
        let output = self.ctl.interrupt();
        assert!(output.success(), "{output}");
        assert_eq!(captures(d), 0);
        let frames = frames(&output);
        let ended = Ended {
            file: self.file,
            _dir: self._dir,
        };
        (ended, frames)
    }
}

struct Ended {
    file: PathBuf,
    _dir: tempfile::TempDir,
}

/// N of `N frames captured, 0 lost`.
#[track_caller]
fn frames(output: &Output) -> u64 {
    let n = output.stderr.strip_suffix(" frames captured, 0 lost\n");
    n.and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no count: {output}"))
}

#[test]
fn captures_are_listed_and_ended_from_outside() {
    let lab = tap_lab!("ctl-capture-list");
    let (d, _a, _b) = two(&lab);
    assert_eq!(d.ctl(&["capture", "--list"]).trim_end(), "no captures");
    let running = begin(&d, &["a", "-f", "icmp"]);
    let listed = d.ctl(&["capture", "--list"]);
    assert!(listed.contains("a      icmp"), "{listed}");
    let listed = d.ctl_json(&["capture", "--list"]);
    let id = listed[0]["id"].to_string();
    d.ctl(&["capture", "--end", &id]);
    let output = running.ctl.finish(Duration::from_secs(20));
    assert!(output.success(), "{output}");
    assert_eq!(captures(&d), 0);
}

#[test]
fn a_ping_is_seen_both_ways_with_names_and_sound_checksums() {
    let lab = tap_lab!("ctl-capture-ping");
    let (d, a, _b) = two(&lab);
    a.assert_ping("192.0.2.2");
    let running = begin(&d, &["a", "-f", "icmp and host 192.0.2.2"]);
    a.assert_ping("192.0.2.2");
    running.wait_passed(&d, 6);
    let (ended, n) = running.stop(&d);
    assert_eq!(n, 6);
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "icmp.type",
        "ip.checksum.status",
        "icmp.checksum.status",
        "frame.len",
    ];
    let seen = tshark_fields(&ended.file, "", &fields);
    // From the switch's view: the request comes in at a, the reply goes out.
    let (request, reply) = ("a\t0x00000001\t8\t1\t1\t98", "a\t0x00000002\t0\t1\t1\t98");
    assert_eq!(seen, [request, reply].repeat(3));
    let all = tshark_fields(&ended.file, "", &["frame.time_epoch"]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    for t in all {
        let age = now.as_secs_f64() - t.parse::<f64>().unwrap();
        assert!((0.0..120.0).contains(&age), "{age} s ago");
    }
    d.assert_ledger();
}

#[test]
fn several_workers_show_each_frame_once() {
    let lab = tap_lab!("ctl-capture-workers");
    let d = lab.daemon_with().args(&["--workers", "2"]).start();
    d.ctl(&["network", "add", "lan"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    connect(&d, &a, "192.0.2.1/24", &[]);
    connect(&d, &b, "192.0.2.2/24", &["--kind", "tap"]);
    a.assert_ping("192.0.2.2");
    let running = begin(&d, &["--drops", "-f", "icmp"]);
    a.assert_ping("192.0.2.2");
    running.wait_passed(&d, 12);
    let (ended, n) = running.stop(&d);
    assert_eq!(n, 12);
    let fields = [
        "frame.interface_name",
        "frame.packet_flags",
        "icmp.type",
        "icmp.seq",
    ];
    let mut seen = tshark_fields(&ended.file, "", &fields);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 12, "{seen:?}");
    d.assert_ledger();
}

#[test]
fn tags_are_those_of_each_side() {
    let lab = tap_lab!("ctl-capture-vlan");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan", "--vlan-aware", "on"]);
    let (access, trunk) = (lab.container("access"), lab.container("trunk"));
    let vlan = ["--pvid", "10", "--untagged", "10"];
    connect(&d, &access, "192.0.2.1/24", &vlan);
    let vlan = ["--pvid", "0", "--untagged", "", "--tagged", "10"];
    connect(&d, &trunk, "192.0.2.2/24", &vlan);
    let running = begin(&d, &["-f", "arp"]);
    access.run(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "192.0.2.99"]);
    running.wait_passed(&d, 2);
    let (ended, _) = running.stop(&d);
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "vlan.id",
    ];
    let seen = tshark_fields(&ended.file, "arp.dst.proto_ipv4 == 192.0.2.99", &fields);
    assert_eq!(
        seen[..2],
        ["access\t0x00000001\t", "trunk\t0x00000002\t10"],
        "{seen:?}"
    );
    d.assert_ledger();
}

#[test]
fn drops_carry_their_reason() {
    let lab = tap_lab!("ctl-capture-drops");
    let (d, a, b) = two(&lab);
    a.assert_ping("192.0.2.2");
    let both = begin(&d, &["--drops", "-f", "ether proto 0x88b5"]);
    let frame = |dst: &str, ethertype: &str| {
        let mac = b.mac("eth0").replace(':', "");
        let dst = if dst.is_empty() { mac } else { dst.into() };
        let hex = format!("{dst}020000000009{ethertype}{}", "00".repeat(46));
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect::<Vec<u8>>()
    };
    a.send_frames("eth0", &[frame("0180c2000003", "88b5"), frame("", "88b5")]);
    both.wait_passed(&d, 3);
    let (ended, n) = both.stop(&d);
    assert_eq!(n, 3);
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.comment",
    ];
    let seen = tshark_fields(&ended.file, "", &fields);
    assert_eq!(
        seen,
        [
            "a\t0x00000001\tdropped: link_local",
            "a\t0x00000001\t",
            "b\t0x00000002\t"
        ]
    );
    // Only drops, of what was to leave.
    let only = begin(&d, &["--drops=only", "b", "-f", "ether proto 0x88b5"]);
    d.ctl(&["port", "set", "b", "--mtu", "576"]);
    let mut long = frame("ffffffffffff", "88b5");
    a.send_frames("eth0", &[long.clone()]);
    long.resize(700, 0);
    a.send_frames("eth0", &[long]);
    only.wait_passed(&d, 1);
    let (ended, n) = only.stop(&d);
    assert_eq!(n, 1);
    let seen = tshark_fields(&ended.file, "", &[&fields[..], &["frame.len"]].concat());
    assert_eq!(seen, ["b\t0x00000002\tdropped: mtu\t700"]);
    d.assert_ledger();
}

#[test]
fn large_frames_are_whole_and_their_checksums_right() {
    let lab = tap_lab!("ctl-capture-tcp");
    let (d, a, b) = two(&lab);
    let _server = b.iperf3_server();
    let running = begin(&d, &["b", "-c", "300", "-f", "tcp port 5201"]);
    a.iperf3("192.0.2.2", &["-n", "32M"]);
    let output = running.ctl.finish(Duration::from_secs(60));
    assert!(output.success(), "{output}");
    assert!(output.stderr.starts_with("300 frames captured"), "{output}");
    wait_until("the capture to end", || captures(&d) == 0);
    let fields = [
        "frame.len",
        "tcp.checksum.status",
        "frame.packet_flags_direction",
    ];
    let seen = tshark_fields(&running.file, "tcp", &fields);
    assert_eq!(seen.len(), 300);
    let parts: Vec<Vec<&str>> = seen.iter().map(|l| l.split('\t').collect()).collect();
    let largest = parts.iter().map(|p| p[0].parse::<u32>().unwrap()).max();
    assert!(largest > Some(20_000), "{largest:?}");
    assert!(parts.iter().all(|p| p[1] == "1"), "{seen:?}");
    assert!(parts.iter().any(|p| p[2].ends_with('1')) && parts.iter().any(|p| p[2].ends_with('2')));
    b.assert_no_checksum_errors();
    // Cut short: the beginning is kept, and the length is told.
    let short = begin(&d, &["b", "-s", "60", "-c", "50", "-f", "greater 1000"]);
    a.iperf3("192.0.2.2", &["-n", "16M"]);
    let output = short.ctl.finish(Duration::from_secs(60));
    assert!(output.success(), "{output}");
    for line in tshark_fields(&short.file, "", &["frame.cap_len", "frame.len"]) {
        let (kept, len) = line.split_once('\t').unwrap();
        assert_eq!(kept, "60");
        assert!(len.parse::<u32>().unwrap() >= 1000);
    }
    d.assert_ledger();
}

#[test]
fn a_client_that_goes_away_ends_its_capture() {
    let lab = tap_lab!("ctl-capture-gone");
    let (d, a, _b) = two(&lab);
    let socket = d.socket();
    let curl = |query: &str| {
        let url = format!("http://vswitchd/v1/capture?{query}");
        let socket = socket.to_str().expect("UTF-8");
        d.host()
            .spawn(&["curl", "-sN", "--unix-socket", socket, &url])
    };
    // One that sees traffic, one that sees none and is only ever waiting.
    let mut clients = [curl("port=a&port=b&snaplen=0"), curl("filter=port%2012345")];
    wait_until("the captures to begin", || captures(&d) == 2);
    a.assert_ping("192.0.2.2");
    for c in &mut clients {
        c.kill();
    }
    wait_until("the captures to end", || captures(&d) == 0);
    // A reader that has enough.
    let ctl = d.ctl_command().join(" ");
    let script = format!("{ctl} capture -w - | head -c 28 | wc -c");
    let reader = d.host().spawn(&["bash", "-c", &script]);
    wait_until("frames to be refused", || {
        a.ping("192.0.2.2");
        captures(&d) == 0
    });
    let output = reader.finish(Duration::from_secs(20));
    assert_eq!(
        (output.stdout.trim(), output.stderr.as_str()),
        ("28", ""),
        "{output}"
    );
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

#[test]
fn captures_are_refused_before_anything_is_touched() {
    let lab = tap_lab!("ctl-capture-refused");
    let (d, _a, _b) = two(&lab);
    d.ctl(&["port", "add", "frontend", "--network", "lan"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("kept");
    std::fs::write(&file, "kept").expect("write a file");
    let path = file.to_str().expect("UTF-8");
    for (args, code, says) in [
        (&["fronted"][..], 4, "did you mean `frontend`?"),
        (&["a", "-f", "tcp and prot 80"], 1, "did you mean `port`?"),
        (
            &["a", "-f", "tcp and prot 80"],
            1,
            "at character 9: `prot` isn't known",
        ),
        (&["a", "-f", "tcp and"], 1, "at character 8"),
        (&["a", "--count", "0"], 2, "--count"),
        (&["a", "--direction", "up"], 2, "--direction"),
    ] {
        let output = d.run_ctl(&[&["capture", "-w", path], args].concat());
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(says), "{output}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }
    for query in [
        "direction=up",
        "count=0",
        "count=x",
        "drops=maybe",
        "prot=a",
    ] {
        let answer = d.http("GET", &format!("/v1/capture?{query}"), None);
        assert_eq!(answer.status, 400, "{query}: {}", answer.body);
    }
    let absent = Path::new("/no/such/directory/f");
    let output = d.run_ctl(&["capture", "-w", absent.to_str().unwrap()]);
    assert_eq!(output.code, Some(1), "{output}");
    wait_until("its capture to end", || captures(&d) == 0);
    let mut many: Vec<Running> = (0..16).map(|_| begin(&d, &["a"])).collect();
    let output = d.run_ctl(&["capture", "a", "-w", path]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("16 are running"), "{output}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    // Ended by somebody else: whole all the same.
    let list = d.http("GET", "/v1/captures", None).json();
    let id = list[0]["id"].as_u64().unwrap();
    let ended = d.http("DELETE", &format!("/v1/captures/{id}"), None);
    assert_eq!(ended.status, 204);
    let missing = d.http("DELETE", &format!("/v1/captures/{id}"), None);
    assert_eq!(missing.status, 404);
    let first = many.remove(0);
    let output = first.ctl.finish(Duration::from_secs(20));
    assert!(output.success(), "{output}");
    frames(&output);
    drop(many);
    wait_until("all captures to end", || captures(&d) == 0);
}

#[test]
fn a_capture_follows_its_ports_and_ends_by_itself() {
    let lab = tap_lab!("ctl-capture-follow");
    let (d, a, b) = two(&lab);
    let running = begin(&d, &["-f", "icmp"]);
    d.ctl(&["port", "del", "b"]);
    let c = lab.container("c");
    connect(&d, &c, "192.0.2.3/24", &[]);
    a.assert_ping("192.0.2.3");
    running.wait_passed(&d, 12);
    let (ended, n) = running.stop(&d);
    assert_eq!(n, 12, "each message at two ports");
    let seen = tshark_fields(&ended.file, "", &["frame.interface_name"]);
    assert!(seen.iter().all(|p| p == "a" || p == "c"), "{seen:?}");
    drop(b);
    // As JSON, and ended by its count.
    let ctl = d.spawn_ctl(&["capture", "a", "--json", "-c", "2", "-f", "icmp"]);
    wait_until("the capture to begin", || captures(&d) == 1);
    a.assert_ping("192.0.2.3");
    let output = ctl.finish(Duration::from_secs(20));
    assert_eq!(frames(&output), 2);
    let lines: Vec<serde_json::Value> = output
        .stdout
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(
        lines[0]["summary"],
        "192.0.2.1 > 192.0.2.3 icmp echo request"
    );
    assert_eq!(lines[1]["direction"], "egress");
    // By its time; and a terminal gets text.
    let ctl = d.ctl_command().join(" ");
    let command = format!("{ctl} capture a --seconds 4 -f icmp");
    let terminal = d.host().spawn(&["script", "-qec", &command, "/dev/null"]);
    wait_until("the capture to begin", || captures(&d) == 1);
    a.assert_ping("192.0.2.3");
    let output = terminal.finish(Duration::from_secs(30));
    assert!(output.success(), "{output}");
    let text = &output.stdout;
    assert!(
        text.contains(" a in  192.0.2.1 > 192.0.2.3 icmp echo request, 98 bytes"),
        "{text}"
    );
    assert!(text.contains("frames captured, 0 lost"), "{text}");
    assert_eq!(captures(&d), 0);
    // The deleted port's counters are in the totals.
    wait_until("the ledger to be in balance", || {
        let t = &d.ctl_json(&["stats"])["totals"];
        let sum = |names: &[&str]| -> u64 { names.iter().filter_map(|n| t[n].as_u64()).sum() };
        sum(&["received", "copied", "originated", "split"]) == sum(&["sent", "dropped", "held"])
    });
}
