//! Programs that people use, as clients: HTTP by curl and wget, git, iperf3 each way and both ways at once.

use std::path::Path;
use std::time::Duration;
use vswitch_tests::{Background, Node, tap_lab, wait_until};

use crate::rig::{FAR, site};

/// Random bytes of a file that is fetched.
const SIZE: usize = 64 << 20;

/// A web server of Python's for a folder.
fn web(node: &Node, dir: &Path, address: &str) -> Background {
    let dir = dir.to_str().expect("a path of the lab");
    let module = ["/usr/bin/python3", "-u", "-m", "http.server"];
    let place = ["--bind", address, "--directory", dir, "8000"];
    let mut server = node.spawn(&[&module[..], &place].concat());
    server.wait_for("Serving");
    server
}

fn sum(node: &Node, file: &Path) -> String {
    let said = node.ok(&["sha256sum", file.to_str().expect("a path of the lab")]);
    said.split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn curl_wget_and_git_fetch_what_is_there() {
    let lab = tap_lab!("slirp-programs");
    let s = site(&lab, "1500");
    let outside = lab.dir().join("web");
    let (file, inside) = (outside.join("file"), lab.dir().join("fetched"));
    let (outside_dir, inside_dir) = (outside.to_str().unwrap(), inside.to_str().unwrap());
    s.outside.ok(&["mkdir", "-p", outside_dir, inside_dir]);
    let random = format!("head -c {SIZE} /dev/urandom >{}", file.display());
    s.outside.ok(&["sh", "-c", &random]);
    let identity = ["-c", "user.name=n", "-c", "user.email=n@example.net"];
    let git = |args: &[&str]| {
        let there = [&["git", "-C", outside_dir][..], &identity, args].concat();
        s.outside.ok(&there);
    };
    git(&["init", "-q", "repo"]);
    s.outside.ok(&[
        "sh",
        "-c",
        &format!("seq 200000 >{outside_dir}/repo/numbers"),
    ]);
    git(&["-C", "repo", "add", "numbers"]);
    git(&["-C", "repo", "commit", "-q", "-m", "numbers"]);
    git(&["-C", "repo", "update-server-info"]);
    for (address, host) in [
        (FAR[0], FAR[0].to_owned()),
        (FAR[1], format!("[{}]", FAR[1])),
    ] {
        let _web = web(&s.outside, &outside, address);
        let url = format!("http://{host}:8000/file");
        let got = inside.join("file");
        let to = got.to_str().unwrap();
        let fetch: [&[&str]; 2] = [
            &[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--globoff",
                "-o",
                to,
                &url,
            ],
            &["wget", "--quiet", "-O", to, &url],
        ];
        for argv in fetch {
            s.a.run_for(argv, Duration::from_secs(60)).expect_ok();
            assert_eq!(sum(&s.a, &got), sum(&s.outside, &file), "{argv:?}");
        }
        let (from, to) = (
            format!("http://{host}:8000/repo/.git"),
            format!("{inside_dir}/repo"),
        );
        s.a.ok(&["git", "clone", "-q", &from, &to]);
        s.a.ok(&[
            "cmp",
            &format!("{to}/numbers"),
            &format!("{outside_dir}/repo/numbers"),
        ]);
        s.a.ok(&["rm", "-rf", &to]);
        // What was begun is gone on with: a server that knows ranges.
        let at = format!("{host}:8001");
        let argv = ["busybox", "httpd", "-f", "-p", &at, "-h", outside_dir];
        let _ranges = s.outside.spawn(&argv);
        let ready = ["sh", "-c", "ss -Hltn 'sport = :8001' | grep -q ."];
        wait_until("the server to listen", || s.outside.run(&ready).success());
        let begin = format!("head -c 12345678 {} >{}", file.display(), got.display());
        s.a.ok(&["sh", "-c", &begin]);
        let url = format!("http://{at}/file");
        let resume = ["wget", "--continue", "-P", inside_dir, &url];
        let said = s.a.run_for(&resume, Duration::from_secs(60));
        assert!(said.success(), "{said}");
        assert!(said.stderr.contains("206 Partial Content"), "{said}");
        assert_eq!(sum(&s.a, &got), sum(&s.outside, &file), "resumed");
    }
    s.d.assert_ledger();
}

fn iperf3_goes_up_down_and_both_ways(mtu: &str) {
    let lab = tap_lab!("slirp-iperf3");
    let s = site(&lab, mtu);
    let _server = s.outside.iperf3_server();
    for args in [
        &["-t", "2"][..],
        &["-t", "2", "-R"],
        &["-t", "2", "--bidir"],
        &["-t", "2", "-P", "8"],
        &["-t", "2", "-u", "-b", "50M"],
    ] {
        let run = s.a.iperf3(FAR[0], args);
        let mbit = run.bits_per_second / 1e6;
        println!("MTU {mtu}, iperf3 {args:?}: {mbit:.0} Mbit/s");
        // What crawls from time-out to time-out gets nowhere near.
        assert!(mbit > 40.0, "MTU {mtu}, iperf3 {args:?}: {mbit} Mbit/s");
    }
    s.d.assert_ledger();
}

#[test]
fn iperf3_goes_up_down_and_both_ways_at_mtu_1500() {
    iperf3_goes_up_down_and_both_ways("1500");
}

#[test]
fn iperf3_goes_up_down_and_both_ways_at_mtu_65520() {
    iperf3_goes_up_down_and_both_ways("65520");
}
