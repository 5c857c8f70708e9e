//! Several workers: a TAP with a queue for each, a veth pair whose packets are fanned out; one that helps only under load.

use vswitch_tests::{Daemon, Node, tap_lab, wait_until};

use crate::rig::container;

/// Processor time that each worker has used, in clock ticks (10 ms).
fn ticks(d: &Daemon) -> Vec<u64> {
    let mut found = vec![];
    for task in std::fs::read_dir(format!("/proc/{}/task", d.pid())).expect("its threads") {
        let dir = task.expect("a thread").path();
        let stat = std::fs::read_to_string(dir.join("stat")).unwrap_or_default();
        // proc(5): user and system time are the 14th and 15th fields, the name is the second.
        let fields: Vec<&str> = stat.split(' ').collect();
        if stat.contains("(worker-") {
            let number = |i: usize| fields[i].parse::<u64>().expect("a number");
            found.push(number(13) + number(14));
        }
    }
    found
}

/// How often each worker has gone to sleep or been sent there.
fn switches(d: &Daemon) -> Vec<u64> {
    let mut found = vec![];
    for task in std::fs::read_dir(format!("/proc/{}/task", d.pid())).expect("its threads") {
        let dir = task.expect("a thread").path();
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        if read("comm").starts_with("worker-") {
            let status = read("status");
            let lines = status.lines().filter(|l| l.contains("ctxt_switches"));
            let counts = lines.filter_map(|l| l.split('\t').nth(1)?.trim().parse::<u64>().ok());
            found.push(counts.sum());
        }
    }
    found
}

#[test]
fn two_workers_share_the_flows_of_taps_and_veths() {
    let lab = tap_lab!("sw-workers");
    let d = lab.daemon_with().args(&["--workers", "2"]).start();
    d.ctl(&["network", "add", "lan"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &["--type", "veth"]);
    let e = container(&d, &lab, "e", "192.0.2.4/24", &["--type", "veth"]);
    let queues = a.ok(&["ls", "/sys/class/net/eth0/queues"]);
    assert_eq!(
        queues.matches("rx-").count(),
        2,
        "IFF_MULTI_QUEUE: {queues}"
    );
    // Type, protocol and interface of packet sockets, one line each.
    let sockets = d.host().ok(&["cat", "/proc/net/packet"]);
    assert_eq!(
        sockets.lines().count(),
        1 + 2 * 2,
        "PACKET_FANOUT: {sockets}"
    );
    // The near ends are the switch's alone: the host has no address there that a container could reach.
    assert_eq!(
        d.host()
            .ok(&["ip", "-6", "address", "show"])
            .matches("fe80:")
            .count(),
        0
    );
    let _servers = [b.iperf3_server(), c.iperf3_server(), e.iperf3_server()];
    let before = switches(&d);
    assert_eq!(before.len(), 2);
    for (from, to) in [(&a, "192.0.2.2"), (&a, "192.0.2.3"), (&c, "192.0.2.4")] {
        for way in [&["-t", "1", "-P", "8"][..], &["-t", "1", "-P", "8", "-R"]] {
            let run = from.iperf3(to, way);
            println!(
                "{} to {to} {way:?}: {:.0} Mbit/s",
                from.name(),
                run.bits_per_second / 1e6
            );
            assert!(run.received_bytes > 1 << 20, "{to} {way:?}");
        }
        from.assert_ping(to);
    }
    for (worker, (then, now)) in before.iter().zip(switches(&d)).enumerate() {
        assert!(
            now > then + 20,
            "worker {worker} did nothing: {then}, {now}"
        );
    }
    for node in [&a, &b, &c, &e] {
        node.assert_no_checksum_errors();
    }
    // An address that its worker doesn't hear is known to the other all the same: nothing is flooded.
    let fdb = d.ctl_json(&["fdb", "show", "lan"]);
    assert_eq!(fdb.as_array().map(Vec::len), Some(4), "{fdb}");
    d.assert_ledger();
}

/// The queues of a container's device that the kernel hands frames to.
fn queues(node: &Node) -> usize {
    node.ok(&["ls", "/sys/class/net/eth0/queues"])
        .matches("rx-")
        .count()
}

#[test]
fn a_second_worker_helps_under_load_only() {
    let lab = tap_lab!("sw-help");
    let d = lab.daemon_with().start();
    d.ctl(&["network", "add", "lan"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let still = container(&d, &lab, "still", "192.0.2.3/24", &[]);
    a.assert_ping("192.0.2.2");
    assert_eq!([&a, &b, &still].map(queues), [1, 1, 1]);
    let _server = b.iperf3_server();
    let before = ticks(&d);
    let load = ["iperf3", "--client", "192.0.2.2", "-t", "6", "-P", "16"];
    let mut run = a.spawn(&load);
    wait_until("both busy ports have two queues", || {
        (queues(&a), queues(&b)) == (2, 2)
    });
    assert_eq!(queues(&still), 1, "it has no part in the load");
    run.wait_for("iperf Done");
    let used: Vec<u64> = ticks(&d).iter().zip(&before).map(|(n, b)| n - b).collect();
    println!("ticks of the workers: {used:?}");
    // Flows that were there before the second worker have to move to it.
    assert!(used.len() == 2 && used.iter().all(|u| *u > 20), "{used:?}");
    wait_until("the queues are given back", || {
        (queues(&a), queues(&b)) == (1, 1)
    });
    // Whatever the kernel had noted of flows and queues, nothing is lost after.
    for from in [&a, &b, &still] {
        for to in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            from.assert_ping(to);
        }
    }
    // The same with packet sockets.
    let c = container(&d, &lab, "c", "192.0.2.4/24", &["--type", "veth"]);
    let e = container(&d, &lab, "e", "192.0.2.5/24", &["--type", "veth"]);
    let _other = e.iperf3_server();
    let before = ticks(&d);
    let run = c.iperf3("192.0.2.5", &["-t", "4", "-P", "16"]);
    assert!(run.received_bytes > 1 << 24);
    let used: Vec<u64> = ticks(&d).iter().zip(&before).map(|(n, b)| n - b).collect();
    println!("veth: ticks of the workers: {used:?}");
    assert!(used.iter().all(|u| *u > 20), "{used:?}");
    wait_until("the second worker to be still", || {
        let before = ticks(&d)[1];
        for _ in 0..3 {
            c.assert_ping("192.0.2.5");
        }
        ticks(&d)[1] <= before + 1
    });
    // A port that goes while it is helped with, and comes again.
    let run = a.spawn(&load);
    wait_until("help again", || queues(&b) == 2);
    d.ctl(&["port", "del", "b"]);
    drop(run);
    wait_until("the queue is given back", || queues(&a) == 1);
    d.assert_ledger();
}
