//! 802.1Q: access, trunk and hybrid ports, service tags carried whole, VLANs changed while traffic runs.

use vswitch_tests::tap_lab;

use crate::rig::{at, attach, bare, container, dropped, switch, wait_dropped};

#[test]
fn access_trunk_and_hybrid_ports() {
    let lab = tap_lab!("sw-vlan");
    let d = switch(&lab, &["--vlan-aware", "on"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--vlan", "10"]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &["--vlan", "10"]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &["--vlan", "20"]);
    let trunk = lab.container("trunk");
    bare(
        &d,
        &trunk,
        "trunk",
        "eth0",
        &["--pvid", "0", "--tagged", "10,20-21"],
    );
    // Untagged frames are VLAN 10, frames of VLAN 20 have tags.
    let hybrid = lab.container("hybrid");
    attach(
        &d,
        &hybrid,
        "192.0.2.4/24",
        &["--vlan", "10", "--tagged", "20"],
    );
    a.assert_ping("192.0.2.2");
    hybrid.assert_ping("192.0.2.1");
    a.assert_no_ping("192.0.2.3");
    // One question in each VLAN that has tags here, answered with its tag.
    let ask = |node: &vswitch_tests::Node, vlans: &str| {
        node.scapy(&format!(
            "for vid, ip in {vlans}:\n r = srp1(Ether(src='02:00:00:00:00:99', dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan=vid) / \
             ARP(hwsrc='02:00:00:00:00:99', psrc='192.0.2.99', pdst=ip), iface='eth0', timeout=5)\n \
             print(r[Dot1Q].vlan, r[ARP].psrc)"
        ))
    };
    let both = "[(10, '192.0.2.1'), (20, '192.0.2.3')]";
    assert_eq!(ask(&trunk, both), "10 192.0.2.1\n20 192.0.2.3\n");
    assert_eq!(ask(&hybrid, "[(20, '192.0.2.3')]"), "20 192.0.2.3\n");
    assert_eq!(at(&d, &a.mac("eth0")).expect("learned")["vlan"], 10);
    assert_eq!(at(&d, &c.mac("eth0")).expect("learned")["vlan"], 20);
    // What isn't a member doesn't get in: an untagged frame at the trunk, a VLAN it doesn't have.
    let before = dropped(&d, "trunk", "vlan_ingress");
    trunk.scapy(
        "sendp([Ether(dst='ff:ff:ff:ff:ff:ff') / ARP(pdst='192.0.2.1'), \
         Ether(dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan=30) / ARP(pdst='192.0.2.1')], iface='eth0')",
    );
    wait_dropped(&d, "trunk", "vlan_ingress", before + 2);
    // A container changes its VLAN, its traffic with it.
    d.ctl(&["port", "set", "c", "--pvid", "10"]);
    a.assert_ping("192.0.2.3");
    assert_eq!(at(&d, &b.mac("eth0")).expect("learned")["vlan"], 10);
    d.assert_ledger();
}

#[test]
fn service_tags_pass_whole() {
    let lab = tap_lab!("sw-qinq");
    let d = switch(&lab, &["--vlan-aware", "on"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--vlan", "10"]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &["--vlan", "10"]);
    let trunk = lab.container("trunk");
    bare(
        &d,
        &trunk,
        "trunk",
        "eth0",
        &["--pvid", "0", "--tagged", "10"],
    );
    let (at_b, at_trunk) = (b.capture("eth0", ""), trunk.capture("eth0", ""));
    a.scapy(
        "sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / Dot1AD(vlan=77) / Dot1Q(vlan=20) / \
         IP(src='192.0.2.1', dst='192.0.2.2') / ICMP(), iface='eth0')",
    );
    a.assert_ping("192.0.2.2");
    let fields = ["ieee8021ad.id", "vlan.id"];
    assert_eq!(at_b.fields("ieee8021ad", &fields), ["77\t20"]);
    // The trunk's own tag is outside; inside is what the container sent.
    assert_eq!(at_trunk.fields("ieee8021ad", &fields), ["77\t10,20"]);
    d.assert_ledger();
}
