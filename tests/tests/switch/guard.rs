//! Isolation, MAC and IP source guard, ARP and ND inspection, against senders that lie.

use vswitch_tests::tap_lab;

use crate::rig::{container, dropped, switch, wait_dropped};

#[test]
fn isolated_containers_reach_the_router_only() {
    let lab = tap_lab!("sw-isolated");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--isolated", "on"]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &["--isolated", "on"]);
    let router = container(&d, &lab, "router", "192.0.2.3/24", &[]);
    a.assert_ping("192.0.2.3");
    b.assert_ping("192.0.2.3");
    router.assert_ping("192.0.2.1");
    // Even with the address known.
    let mac = b.mac("eth0");
    a.ok(&[
        "ip",
        "neigh",
        "replace",
        "192.0.2.2",
        "lladdr",
        &mac,
        "dev",
        "eth0",
    ]);
    a.assert_no_ping("192.0.2.2");
    assert!(dropped(&d, "a", "isolated") >= 3);
    d.ctl(&["port", "set", "b", "--isolated", "off"]);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

const MAC: &str = "02:00:00:00:00:0c";

#[test]
fn a_container_speaks_under_its_own_names_only() {
    let lab = tap_lab!("sw-guard");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    a.addr("eth0", "2001:db8::1/64");
    let options = [
        "--mac",
        MAC,
        "--allowed-macs",
        MAC,
        "--allowed-ips",
        "192.0.2.3,2001:db8::3",
        "--arp-inspection",
        "on",
    ];
    let liar = container(&d, &lab, "liar", "192.0.2.3/24", &options);
    liar.addr("eth0", "2001:db8::3/64");
    liar.assert_ping("192.0.2.1");
    liar.assert_ping("2001:db8::1");
    a.assert_ping("192.0.2.3");
    let lies = [
        (
            "mac_guard",
            "Ether(src='02:66:66:66:66:66', dst='ff:ff:ff:ff:ff:ff') / ARP(pdst='192.0.2.1')",
        ),
        (
            "ip_guard",
            "Ether(src=me, dst='ff:ff:ff:ff:ff:ff') / IP(src='192.0.2.2', dst='192.0.2.1') / ICMP()",
        ),
        (
            "ip_guard",
            "Ether(src=me, dst='33:33:00:00:00:01') / IPv6(src='2001:db8::2', dst='ff02::1') / ICMPv6EchoRequest()",
        ),
        (
            "arp_inspection",
            "Ether(src=me, dst='ff:ff:ff:ff:ff:ff') / ARP(op=2, hwsrc=me, psrc='192.0.2.2', pdst='192.0.2.1')",
        ),
        (
            "arp_inspection",
            "Ether(src=me, dst='33:33:00:00:00:01') / IPv6(src='2001:db8::3', dst='ff02::1') / ICMPv6ND_NA(tgt='2001:db8::2', O=1) / ICMPv6NDOptDstLLAddr(lladdr=me)",
        ),
    ];
    let frames = lies.map(|(_, frame)| frame).join(", ");
    liar.scapy(&format!(
        "me='{MAC}'\nsendp([{frames}], iface='eth0', count=3)"
    ));
    for reason in ["mac_guard", "ip_guard", "arp_inspection"] {
        let sorts = lies.iter().filter(|l| l.0 == reason).count() as u64;
        wait_dropped(&d, "liar", reason, 3 * sorts);
    }
    let known = a.ok(&["ip", "neigh", "show", "192.0.2.2"]);
    assert!(!known.contains(MAC), "the lie arrived: {known}");
    // Without the guard the kernel believes it, so the frames were good ones.
    let unset = "allowed_macs,allowed_ips,arp_inspection";
    d.ctl(&["port", "set", "liar", "--unset", unset]);
    a.assert_ping("192.0.2.2");
    let lie = format!("me='{MAC}'\nsendp({}, iface='eth0')", lies[3].1);
    // A kernel doesn't believe a change within a second of the last one (neigh/locktime).
    vswitch_tests::wait_until("the lie to be believed", || {
        liar.scapy(&lie);
        a.ok(&["ip", "neigh", "show", "192.0.2.2"]).contains(MAC)
    });
    d.assert_ledger();
}
