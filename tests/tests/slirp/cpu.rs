//! What transfers cost the host, where that can be counted.

use crate::rig::{FAR, Site, peer, serve, site};
use vswitch_tests::{Daemon, tap_lab};

/// Frames that were sent to container `a`.
fn delivered(d: &Daemon) -> u64 {
    let stats = d.ctl_json(&["stats"]);
    let ports = stats["ports"].as_array().expect("a list");
    let a = ports.iter().find(|p| p["name"] == "a").expect("shown");
    a["tx_frames"].as_u64().expect("a number")
}

/// A peer that writes little at a time, 16,000 times a second, had the daemon wake and the container get a frame for every write.
#[test]
fn small_writes_are_coalesced() {
    const WRITES: u64 = 10_000;
    let lab = tap_lab!("slirp-small");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    let writes = WRITES.to_string();
    // A machine that has more to do may not keep the pace; then it is tried again.
    let mut seen = Vec::new();
    let coalesced = (0..5).any(|i| {
        let before = delivered(&d);
        // Each byte comes, also the last without another behind it; and then one for one.
        let args = ["trickle", FAR[i % 2], "7000", &writes, "60", "answers"];
        assert_eq!(peer(&a, &args), "same ended 200");
        seen.push(delivered(&d) - before);
        seen.last().is_some_and(|frames| frames * 3 < WRITES)
    });
    println!("frames for {WRITES} writes: {seen:?}");
    assert!(coalesced, "frames for {WRITES} writes: {seen:?}");
    d.assert_ledger();
}

#[test]
fn connections_end_amid_small_writes_as_their_peer_ends_them() {
    let lab = tap_lab!("slirp-small-ends");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    for far in FAR {
        for (then, said) in [("ends", "same ended 0"), ("reset", "reset")] {
            let args = ["trickle", far, "7000", "4000", "50", then];
            assert_eq!(peer(&a, &args), said, "{far}");
        }
    }
    d.assert_ledger();
}
