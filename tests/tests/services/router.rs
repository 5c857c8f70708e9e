//! Router advertisements and stateless DHCPv6: ndisc6's rdisc6, the kernel's autoconfiguration, ISC's dhclient.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use vswitch_nat::service::dhcp4;
use vswitch_nat::service::ra::{Config, Prefix};
use vswitch_tests::wait_until;

use crate::gateway::Gateway;
use crate::own_lab;

fn config() -> Config {
    Config {
        prefixes: vec![Prefix::new(
            "2001:db8:0:1::".parse().expect("an address"),
            64,
        )],
        other: true,
        mtu: Some(1400),
        dns: vec!["2001:db8:0:1::1".parse().expect("an address")],
        search: vec!["net1.example".into()],
        ..Config::default()
    }
}

fn dhcp() -> dhcp4::Config {
    dhcp4::Config::new(Ipv4Addr::new(192, 0, 2, 1), 24)
}

#[test]
fn rdisc6_and_the_kernel_hear_the_router() {
    let lab = own_lab!("router");
    let mut gateway = Gateway::new(&lab);
    let a = lab.container("a");
    gateway.join(&lab, &a);
    // Without duplicate address detection there is a link-local address at once.
    a.ok(&["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra"]);
    a.ok(&["ip", "link", "set", "eth0", "down"]);
    a.ok(&["ip", "link", "set", "eth0", "up"]);
    gateway.serve(&[&a], dhcp(), config());
    let addresses = || a.ok(&["ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"]);
    let routes = || a.ok(&["ip", "-6", "route", "show", "default"]);
    wait_until("an address of the prefix", || {
        addresses().contains("2001:db8:0:1:")
    });
    wait_until("the default route", || {
        routes().contains("via fe80::ff:fe00:1")
    });
    let mtu = a.ok(&["cat", "/proc/sys/net/ipv6/conf/eth0/mtu"]);
    assert_eq!(mtu.trim(), "1400");
    a.assert_ping("2001:db8:0:1::1");
    let text = a.ok(&["rdisc6", "-1", "-w", "5000", "eth0"]);
    for expected in [
        "Stateful other conf.      :          Yes",
        "Stateful address conf.    :           No",
        "Router lifetime           :         1800",
        "Prefix                   : 2001:db8:0:1::/64",
        "MTU                      :         1400",
        "Recursive DNS server     : 2001:db8:0:1::1",
        "DNS search list          : net1.example",
    ] {
        let squeeze = |s: &str| s.split_whitespace().collect::<String>();
        assert!(
            text.lines()
                .any(|l| squeeze(l).starts_with(&squeeze(expected))),
            "{expected} in {text}"
        );
    }
    // The router goes: no default route any more.
    let goodbye = gateway.services().router.goodbye();
    gateway.multicast(goodbye);
    wait_until("the end of the default route", || routes().is_empty());
    assert!(addresses().contains("deprecated"), "{}", addresses());
}

#[test]
fn dhclient_asks_for_information() {
    let lab = own_lab!("dhcp6");
    let mut gateway = Gateway::new(&lab);
    let a = lab.container("a");
    gateway.join(&lab, &a);
    a.ok(&[
        "sh",
        "-c",
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad",
    ]);
    a.ok(&["ip", "link", "set", "eth0", "down"]);
    a.ok(&["ip", "link", "set", "eth0", "up"]);
    gateway.serve(&[&a], dhcp(), Config::default());
    let file = |name: &str| lab.dir().join(name).display().to_string();
    let script = format!(
        "#!/bin/sh\n{{ echo \"event=$reason\"; env; }} >>{}\nexit 0\n",
        file("log")
    );
    fs::write(file("script"), script).expect("write the script");
    fs::set_permissions(file("script"), fs::Permissions::from_mode(0o755)).expect("executable");
    fs::write(
        file("conf"),
        "also request dhcp6.name-servers, dhcp6.domain-search;\n",
    )
    .expect("write the configuration");
    let output = a.run_for(
        &[
            "dhclient",
            "-6",
            "-S",
            "-1",
            "-sf",
            &file("script"),
            "-cf",
            &file("conf"),
            "-lf",
            &file("leases"),
            "-pf",
            &file("pid"),
            "eth0",
        ],
        Duration::from_secs(60),
    );
    assert!(output.success(), "{output}");
    let text = fs::read_to_string(file("log")).unwrap_or_default();
    assert!(
        text.contains("new_dhcp6_name_servers=2001:db8:0:1::1"),
        "{text}"
    );
    assert!(
        text.contains("new_dhcp6_domain_search=net1.example."),
        "{text}"
    );
}
