//! Ten thousand flows of each kind, and what happens when there are more than descriptors.

use crate::rig::{FAR, Site, site};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use vswitch_tests::{Background, Daemon, Node, tap_lab};

const CROWD: &str = include_str!("crowd.py");
const TCP: usize = 10_000;
const FIRST: usize = 2_000;

fn crowd(node: &Node, args: &[&str]) -> Background {
    node.spawn(&[&["/usr/bin/python3", "-c", CROWD][..], args].concat())
}

/// Waits for a word of a client, longer than for most.
fn hear(client: &mut Background, text: &str) {
    let end = Instant::now() + Duration::from_secs(120);
    while !client.output().contains(text) && client.is_running() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = client.output();
    assert!(said.contains(text), "not {text:?}: {said}");
}

fn resident(d: &Daemon) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", d.pid())).expect("our daemon");
    let line = text.lines().find(|l| l.starts_with("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.expect("in KiB") * 1024
}

fn descriptors(d: &Daemon) -> usize {
    let dir = format!("/proc/{}/fd", d.pid());
    std::fs::read_dir(dir).expect("our daemon").count()
}

#[test]
fn ten_thousand_of_each_and_datagrams_make_room() {
    let lab = tap_lab!("slirp-scale");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("asked");
    let hard = usize::try_from(hard).unwrap_or(usize::MAX);
    if hard < 2 * TCP {
        vswitch_tests::skip!(
            "RLIMIT_NOFILE is {hard} here: 20,000 flows need more; raise it with `ulimit -Hn`"
        );
    }
    let Site { d, a, outside } = site(&lab, "1500");
    let mut server = crowd(&outside, &["serve", "7200"]);
    server.wait_for("serving");
    let fds = descriptors(&d);
    // The first bring memory in that all share.
    let mut first = crowd(&a, &["tcp", FAR[0], "7200", &FIRST.to_string()]);
    hear(&mut first, &format!("held {FIRST}"));
    let memory = resident(&d);
    let further = TCP - FIRST;
    let mut tcp = crowd(&a, &["tcp", FAR[0], "7200", &further.to_string()]);
    hear(&mut tcp, &format!("held {further}"));
    let taken = resident(&d).saturating_sub(memory);
    println!(
        "{further} connections beyond {FIRST}: {} bytes of memory each",
        taken / further
    );
    assert!(descriptors(&d) >= fds + TCP, "each has its socket");
    // As many datagram flows as there is room for, and in all more than that.
    let limit = hard - 256;
    let room = (limit - TCP).min(TCP) - 300;
    let memory = resident(&d);
    let mut udp = crowd(&a, &["udp", FAR[0], "7200", &room.to_string()]);
    hear(&mut udp, &format!("held {room}"));
    let taken = resident(&d).saturating_sub(memory);
    println!(
        "{room} datagram flows: {} bytes of memory each",
        taken / room
    );
    assert!(descriptors(&d) >= fds + TCP + room, "each has its socket");
    let mut more = crowd(&a, &["udp", FAR[0], "7200", "3000"]);
    hear(&mut more, "held 3000");
    assert!(descriptors(&d) <= hard, "within the limit");
    // Connections stay; datagrams have flows again when they are used.
    for (client, n) in [
        (&mut first, FIRST),
        (&mut tcp, further),
        (&mut udp, room),
        (&mut more, 3000),
    ] {
        client.signal(Signal::SIGUSR1);
        hear(client, &format!("again {n}"));
    }
    // Connections go with their ends. A flow of datagrams lives as long as its mapping.
    let held = descriptors(&d);
    first.kill();
    tcp.kill();
    vswitch_tests::wait_until("the connections' sockets to be closed", || {
        descriptors(&d) + TCP <= held
    });
    d.ctl(&["conntrack", "flush"]);
    vswitch_tests::wait_until("the mappings' sockets to be closed", || {
        descriptors(&d) <= fds + 2
    });
    d.assert_ledger();
}
