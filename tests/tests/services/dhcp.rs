//! DHCPv4: BusyBox' udhcpc and ISC's dhclient take, renew, decline and give back leases.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use vswitch_nat::service::dhcp4::{Change, Config, StaticFor, StaticLease};
use vswitch_nat::service::ra;
use vswitch_tests::{Lab, Node, wait_until};

use crate::gateway::Gateway;
use crate::own_lab;

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn config() -> Config {
    Config {
        pools: vec![(ip(100), ip(109))],
        domain: Some("net1.example".into()),
        search: vec!["net1.example".into(), "example".into()],
        mtu: Some(1400),
        ..Config::new(ip(1), 24)
    }
}

/// A client's script: appends what it was told to a file and sets the address.
fn script(lab: &Lab, node: &Node) -> (String, String) {
    let log = lab.dir().join(format!("{}.log", node.name()));
    let path = lab.dir().join(format!("{}.sh", node.name()));
    let text = format!(
        "#!/bin/sh\n\
         all=$(echo \"event=${{1:-$reason}}\"; env)\nprintf '%s\\n' \"$all\" >>{}\n\
         case $1 in\n\
         deconfig) ip addr flush dev \"$interface\"; ip link set \"$interface\" up;;\n\
         bound|renew) ip addr replace \"$ip/$mask\" dev \"$interface\"\n\
         \tip route replace default via \"$router\";;\n\
         esac\n\
         exit 0\n",
        log.display()
    );
    fs::write(&path, text).expect("write the script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    (path.display().to_string(), log.display().to_string())
}

fn log(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn udhcpc_takes_renews_and_gives_back() {
    let lab = own_lab!("dhcp-udhcpc");
    let mut gateway = Gateway::new(&lab);
    let a = lab.container("a");
    gateway.join(&lab, &a);
    gateway.serve(&[&a], config(), ra::Config::default());
    let (script, seen) = script(&lab, &a);
    let mut client = a.spawn(&[
        "udhcpc",
        "-f",
        "-R",
        "-i",
        "eth0",
        "-s",
        &script,
        "-O",
        "search",
        "-O",
        "mtu",
        "-x",
        "hostname:Box",
        "-t",
        "20",
        "-T",
        "1",
    ]);
    wait_until("the lease", || log(&seen).contains("event=bound"));
    let text = log(&seen);
    for expected in [
        "subnet=255.255.255.0",
        "router=192.0.2.1",
        "dns=192.0.2.1",
        "domain=net1.example",
        "search=net1.example example",
        "mtu=1400",
        "lease=3600",
        "serverid=192.0.2.1",
        "broadcast=192.0.2.255",
    ] {
        assert!(text.lines().any(|l| l == expected), "{expected} in {text}");
    }
    let now = vswitch_core::clock::Clock::default().now();
    let leases = gateway.services().dhcp4.leases(now);
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].host_name.as_deref(), Some("box"));
    assert_eq!(
        (leases[0].port.as_str(), leases[0].mac.to_string()),
        ("a", a.mac("eth0"))
    );
    assert!(text.contains(&format!("ip={}\n", leases[0].address)));
    a.assert_ping("192.0.2.1");
    // Renewed by unicast, then given back.
    client.signal(Signal::SIGUSR1);
    wait_until("the renewal", || log(&seen).contains("event=renew"));
    client.signal(Signal::SIGUSR2);
    wait_until("the release", || {
        let s = gateway.services();
        matches!(s.changes.last(), Some(Change::Ended(l)) if l.address == leases[0].address)
    });
}

#[test]
fn udhcpc_declines_an_address_that_somebody_has() {
    let lab = own_lab!("dhcp-decline");
    let mut gateway = Gateway::new(&lab);
    let (a, b) = (lab.container("a"), lab.container("b"));
    gateway.join(&lab, &a);
    gateway.join(&lab, &b);
    b.addr("eth0", "192.0.2.100/24");
    let two = Config {
        pools: vec![(ip(100), ip(101))],
        ..config()
    };
    gateway.serve(&[&a], two, ra::Config::default());
    let (script, seen) = script(&lab, &a);
    let _client = a.spawn(&[
        "udhcpc",
        "-f",
        "-a",
        "-r",
        "192.0.2.100",
        "-i",
        "eth0",
        "-s",
        &script,
        "-t",
        "20",
        "-T",
        "1",
        "-A",
        "1",
    ]);
    wait_until("the lease", || log(&seen).contains("event=bound"));
    assert!(log(&seen).contains("ip=192.0.2.101\n"), "{}", log(&seen));
    assert_eq!(gateway.services().dhcp4.stats().declines, 1);
}

#[test]
fn dhclient_gets_its_static_address_beside_another_client() {
    let lab = own_lab!("dhcp-dhclient");
    let mut gateway = Gateway::new(&lab);
    let (a, b) = (lab.container("a"), lab.container("b"));
    gateway.join(&lab, &a);
    gateway.join(&lab, &b);
    let fixed = StaticLease {
        to: StaticFor::Port("b".into()),
        address: ip(50),
        host_name: Some("db".into()),
    };
    let config = Config {
        statics: vec![fixed],
        ..config()
    };
    gateway.serve(&[&a, &b], config, ra::Config::default());
    let (script_a, _) = script(&lab, &a);
    a.ok(&[
        "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", &script_a, "-t", "20", "-T", "1",
    ]);
    let (script_b, seen) = script(&lab, &b);
    // Its own files: nothing of the machine's is read or written.
    let file = |name: &str| lab.dir().join(name).display().to_string();
    fs::write(
        file("dhclient.conf"),
        "send host-name \"mydb\";\nrequest subnet-mask, routers, domain-name, domain-search, host-name;\n",
    )
    .expect("write the configuration");
    b.ok(&[
        "dhclient",
        "-4",
        "-1",
        "-sf",
        &script_b,
        "-cf",
        &file("dhclient.conf"),
        "-lf",
        &file("leases"),
        "-pf",
        &file("pid"),
        "eth0",
    ]);
    let text = log(&seen);
    for expected in [
        "event=BOUND",
        "new_ip_address=192.0.2.50",
        "new_subnet_mask=255.255.255.0",
        "new_routers=192.0.2.1",
        "new_domain_name=net1.example",
        "new_host_name=db",
        "new_dhcp_lease_time=3600",
    ] {
        assert!(text.lines().any(|l| l == expected), "{expected} in {text}");
    }
    assert!(
        text.contains("new_domain_search=net1.example. example."),
        "{text}"
    );
    let now = vswitch_core::clock::Clock::default().now();
    let leases = gateway.services().dhcp4.leases(now);
    let at_b = leases.iter().find(|l| l.port == "b").expect("a lease");
    assert_eq!(
        (at_b.address, at_b.host_name.as_deref()),
        (ip(50), Some("db"))
    );
    assert_eq!(leases.len(), 2);
}
