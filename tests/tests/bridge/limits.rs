//! Storm control and rates.

use vswitch_core::bridge::{NetworkConfig, Rate, StormLimits};
use vswitch_core::frame::DropReason;
use vswitch_tests::wait_until;

use vswitch_core::frame::{Frame, Offloads};
use vswitch_core::port::mem;

use crate::own_lab;
use crate::rig::Switch;

#[test]
fn a_broadcast_storm_is_cut() {
    let lab = own_lab!("storm");
    let mut s = Switch::new(1, NetworkConfig::default());
    let (a, b) = (lab.container("a"), lab.container("b"));
    let limit = Rate {
        per_second: 1,
        burst: 100,
    };
    let pa = s.tap(&a, "eth0", &["192.0.2.1/24"], |c| {
        c.storm = StormLimits {
            broadcast: Some(limit),
            ..StormLimits::default()
        };
    });
    s.tap(&b, "eth0", &["192.0.2.2/24"], |_| {});
    a.assert_ping("192.0.2.2");
    let seen = b.capture("eth0", "ether proto 0x88b6");
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb6]);
    frame.resize(60, 0);
    // Not more at once than the queue of the interface holds.
    let storm = vec![frame; 200];
    wait_until("the storm to be cut", || {
        a.send_frames("eth0", &storm);
        s.dropped(pa, DropReason::StormControl) > 1000
    });
    a.assert_ping("192.0.2.2");
    let passed = seen.fields("", &["frame.len"]).len();
    // The burst, and one more each second.
    assert!((80..=130).contains(&passed), "{passed} frames passed");
    s.assert_ledger();
}

#[test]
fn tcp_reaches_a_rate_limit_and_not_more() {
    let lab = own_lab!("rate");
    let mut s = Switch::new(1, NetworkConfig::default());
    let (a, b) = (lab.container("a"), lab.container("b"));
    let pa = s.tap(&a, "eth0", &["192.0.2.1/24"], |_| {});
    let pb = s.tap(&b, "eth0", &["192.0.2.2/24"], |_| {});
    let _server = b.iperf3_server();
    let free = a.iperf3("192.0.2.2", &["-t", "1"]).bits_per_second;
    let rate = Some(Rate::bytes(100_000_000 / 8));
    for (port, ingress) in [(pa, true), (pb, false)] {
        let mut config = vswitch_core::bridge::PortConfig::new(crate::rig::NET);
        config.loop_guard = false;
        if ingress {
            config.ingress_rate = rate;
        } else {
            config.egress_rate = rate;
        }
        s.set(port, &config);
        for streams in ["1", "4"] {
            let run = a.iperf3("192.0.2.2", &["-t", "5", "-P", streams]);
            let mbit = run.bits_per_second / 1e6;
            println!(
                "limit 100 Mbit/s, ingress {ingress}, {streams} streams: {mbit:.1} Mbit/s, {} retransmits (unlimited: {:.0})",
                run.retransmits,
                free / 1e6
            );
            // The burst counts on top, and headers below.
            assert!((60.0..=112.0).contains(&mbit), "{mbit} Mbit/s");
        }
        let why = if ingress {
            DropReason::IngressRate
        } else {
            DropReason::EgressRate
        };
        assert!(s.dropped(port, why) > 0);
        config.ingress_rate = None;
        config.egress_rate = None;
        s.set(port, &config);
    }
    s.assert_ledger();
}

/// How often the workers of this process have gone to sleep.
fn sleeps() -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("our threads") {
        let dir = task.expect("a thread").path();
        // A thread may end meanwhile.
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        if read("comm").starts_with("worker-") {
            sum += read("status")
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))
                .and_then(|n| n.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    sum
}

#[test]
fn an_idle_switch_sleeps() {
    // Holds the turn, so that no other test's workers are counted.
    let _lab = vswitch_tests::lab!("idle");
    let mut s = Switch::new(2, NetworkConfig::default());
    let mut ends = Vec::new();
    for _ in 0..8 {
        let (ours, theirs) = mem::pair(64, Offloads::ALL).expect("an eventfd");
        s.add(Box::new(ours), |_| {});
        ends.push(theirs);
    }
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb6]);
    frame.resize(60, 0);
    let frame = Frame::from_bytes(&frame).expect("fits");
    ends[0].push(frame).expect("room");
    wait_until("the frame to be flooded", || ends[7].pop().is_some());
    // What one frame leaves behind (an address, memory to give back) is done with in six seconds.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let before = sleeps();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let woken = sleeps() - before;
    assert!(before > 0 && woken == 0, "woken {woken} times in 3 s");
    s.assert_ledger();
}
