//! What stalls elsewhere, and mustn't here.

use crate::rig::{FAR, Site, peer, serve, site};
use vswitch_tests::tap_lab;

/// podman#4537, #20465: with slirp4netns at MTU 65520 the first input hung for 5 s.
#[test]
fn the_first_input_is_answered_at_once_at_mtu_65520() {
    let lab = tap_lab!("slirp-typed");
    let Site { d, a, outside } = site(&lab, "65520");
    let _server = serve(&outside, "serve", "7000");
    for far in FAR {
        assert_eq!(
            peer(&a, &["typed", far, "7000", "60"]),
            "echoed 60 True",
            "{far}"
        );
    }
    d.assert_ledger();
}

/// podman#28219: bulk transfers through pasta stood still for seconds.
#[test]
fn bulk_transfers_never_stand_still() {
    for mtu in ["1500", "65520"] {
        let lab = tap_lab!("slirp-bulk");
        let Site { d, a, outside } = site(&lab, mtu);
        let _server = serve(&outside, "serve", "7000");
        for way in ["up", "down"] {
            let said = peer(&a, &["unbroken", FAR[0], "7000", "209715200", way]);
            println!("MTU {mtu}, {way}: {said}");
            assert!(said.starts_with("same "), "{mtu} {way}: {said}");
        }
        d.assert_ledger();
    }
}

/// podman#18237: without window scaling a connection has 64 KiB under way. Both ends' kernels are asked how much they may send.
#[test]
fn windows_are_longer_than_64_kib() {
    let lab = tap_lab!("slirp-windows");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    assert_eq!(peer(&a, &["download", FAR[0], "7000", "60000000"]), "same");
    let seen = a.capture("eth0", "tcp port 7000 and greater 0");
    for way in ["upload", "download"] {
        assert_eq!(peer(&a, &[way, FAR[0], "7000", "60000000"]), "same");
    }
    // As the receiver of each way told them, scaled.
    let told = seen.fields("tcp.flags.syn == 0", &["tcp.srcport", "tcp.window_size"]);
    let most = |server: bool| {
        let of = told.iter().filter_map(|l| {
            let (port, window) = l.split_once('\t')?;
            ((port == "7000") == server).then(|| window.parse::<u64>().ok())?
        });
        of.max().unwrap_or(0)
    };
    assert!(most(true) > 200_000, "ours: {}", most(true));
    assert!(most(false) > 200_000, "the container's: {}", most(false));
    d.assert_ledger();
}
