//! `vswitchctl trace` of captured frames, and of frames that offloads of a sender leave whole.

use std::time::Duration;
use vswitch_tests::{tap_lab, wait_until};

use crate::nat::site;
use crate::trace::{FAR, assert_step, trace, warm};

#[test]
fn a_captured_frame_is_traced() {
    let lab = tap_lab!("trace-file");
    let s = site(&lab, &[]);
    let file = lab.dir().join("capture.pcapng");
    let file = file.to_str().unwrap();
    let capture = s.d.spawn_ctl(&[
        "capture",
        "a",
        "--direction",
        "ingress",
        "-f",
        "icmp",
        "-c",
        "2",
        "-w",
        file,
    ]);
    wait_until("the capture has begun", || std::fs::metadata(file).is_ok());
    s.a.ok(&["ping", "-c", "2", "-i", "0.2", "-W", "5", FAR]);
    assert!(capture.finish(Duration::from_secs(20)).success());
    let said = trace(&s, &["--file", file, "--packet", "2"]);
    assert_eq!(said["verdict"], "sent");
    assert_step(&said, "conntrack", "known", "icmp");
    let text = s.d.ctl(&["trace", "--file", file]);
    for part in [
        "STAGE",
        "port a: 192.0.2.10 > 203.0.113.7",
        "port up0: 198.51.100.1 > 203.0.113.7",
        "nat",
        "\nsent\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let err = s.d.ctl_fails(&["trace", "--file", file, "--packet", "3"]);
    assert!(err.contains("no packet 3"), "{err}");
    let err =
        s.d.ctl_fails(&["trace", "--from", "nobody", "--dst-ip", FAR]);
    assert!(err.contains("nobody"), "{err}");
    let err = s.d.ctl_fails(&["trace", "--from", "a", "--frame", "0g"]);
    assert!(err.contains("hexadecimal"), "{err}");
    let err =
        s.d.ctl_fails(&["trace", "--from", "a", "--dst-ip", "192.0.2.200"]);
    assert!(err.contains("--dst-mac"), "{err}");
    let err =
        s.d.ctl_fails(&["trace", "--from", "a", "--frame", "00", "--ttl", "9"]);
    assert!(err.contains("cannot be used"), "{err}");
}

#[test]
fn a_captured_frame_of_many_segments_is_traced() {
    let lab = tap_lab!("trace-gso");
    let s = site(&lab, &[]);
    warm(&s);
    // Made from fields: whole it would be too long, and says so.
    let long = [
        "--from",
        "a",
        "--dst-ip",
        FAR,
        "--proto",
        "udp",
        "--payload",
        "4000",
    ];
    let said = trace(&s, &long);
    assert_eq!(said["reason"], "mtu");
    let said = trace(&s, &[&long[..], &["--gso-size", "1000"]].concat());
    assert_eq!(said["verdict"], "sent");
    let err = s.d.ctl_fails(&[
        "trace",
        "--from",
        "a",
        "--dst-ip",
        FAR,
        "--icmp",
        "echo-request",
        "--gso-size",
        "9",
    ]);
    assert!(err.contains("only TCP and UDP"), "{err}");
    // One that a kernel sent.
    let file = lab.dir().join("segments.pcapng");
    let file = file.to_str().unwrap();
    let filter = "tcp and greater 4000";
    let capture = s.d.spawn_ctl(&[
        "capture",
        "a",
        "--direction",
        "ingress",
        "-f",
        filter,
        "-c",
        "1",
        "-w",
        file,
    ]);
    wait_until("the capture has begun", || std::fs::metadata(file).is_ok());
    let _server = s.outside.iperf3_server();
    let client = ["iperf3", "--client", "198.51.100.254"];
    let _client =
        s.a.spawn(&[&client[..], &["-t", "20", "-b", "1M", "-l", "20K"]].concat());
    assert!(capture.finish(Duration::from_secs(20)).success());
    let said = trace(&s, &["--file", file]);
    assert_eq!(said["verdict"], "sent", "{said:#}");
    assert_step(&said, "nat", "rewrite", "198.51.100.1");
    let said = trace(&s, &["--file", file, "--gso-size", "500"]);
    assert_eq!(said["verdict"], "sent", "{said:#}");
    let said = trace(&s, &["--file", file, "--gso-size", "2000"]);
    assert_eq!(said["reason"], "mtu", "{said:#}");
}
