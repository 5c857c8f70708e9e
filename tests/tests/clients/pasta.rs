//! pasta by hand: the host's own addresses inside, names, forwards, and its life as a process.

use crate::site::{MACHINE, OUTSIDE, Site};
use crate::slirp4netns::{ASK_WHO, CONTAINER, WHO, script};
use crate::user_lab;
use vswitch_tests::wait_until;

#[test]
fn the_container_has_the_host_s_addresses() {
    let lab = user_lab!("pasta", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        "python3 -m http.server --bind 127.0.0.1 8200 >web 2>&1 &
         python3 -m http.server --bind 198.51.100.1 8300 >web2 2>&1 &
         until curl -s -o page http://127.0.0.1:8200/ && curl -s -o page http://198.51.100.1:8300/; do sleep 0.05; done
         start() { pasta --config-net -t none -u none -T none -U none --quiet \"$@\"; echo started $?; }
         start --dns-forward 169.254.1.1 --no-map-gw --map-guest-addr 169.254.1.2 --pid number $P
         inside ip -br addr; inside ip route; inside ip -6 route; inside ip link show out0
         echo four $(inside curl -s http://198.51.100.254:8000/peer)
         echo six $(inside curl -gs http://[2001:db8:2::254]:8000/peer)
         inside dig +short @169.254.1.1 www.example
         inside dig +short +tcp @169.254.1.1 www.example
         inside curl -s -o page --max-time 5 http://169.254.1.2:8300/ && echo host
         inside curl -s -o page --max-time 5 http://169.254.1.2:8200/ || echo no loopback $?
         inside curl -s -o page --max-time 1 http://198.51.100.254:8200/ || echo nor by the router $?
         kill $(cat number); until ! pidof pasta; do sleep 0.01; done
         start -4 -I eth7 -m 1400 -a 10.95.0.2 -n 24 -g 10.95.0.1 $P
         inside ip -br addr; inside ip link show eth7
         inside curl -s -o page --max-time 5 http://10.95.0.1:8200/ && echo loopback
         echo again $(inside curl -s http://198.51.100.254:8000/peer)
         kill -KILL $P; until ! pidof pasta; do sleep 0.01; done; echo gone with it",
    );
    for what in [
        "started 0",
        "198.51.100.1/24",
        "2001:db8:2::1/64",
        "default via 198.51.100.254 dev out0",
        "default via 2001:db8:2::254 dev out0",
        "mtu 65520",
        "four 198.51.100.1\n",
        "six 2001:db8:2::1\n",
        "198.51.100.254\n198.51.100.254\n",
        "host\n",
        "no loopback 7",
        "nor by the router",
        "10.95.0.2/24",
        "mtu 1400",
        "\nloopback\n",
        "again 198.51.100.1",
        "gone with it",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn forwards_listed_and_by_themselves() {
    let lab = user_lab!("pasta-forwards", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         pasta --config-net -t auto -t 8110:80,8111:80 -u 8110:81 --no-map-gw $P
         inside python3 -c '{WHO}' 80 81 &
         inside python3 -c '{WHO}' 8120 8120"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving\nserving");
    let who = |kind: &str, at: &str, port: &str| {
        let ask = ["python3", "-c", ASK_WHO, kind, at, port];
        site.outside.ok(&ask).trim().to_owned()
    };
    assert_eq!(who("SOCK_STREAM", MACHINE[0], "8110"), OUTSIDE[0]);
    assert_eq!(who("SOCK_STREAM", MACHINE[0], "8111"), OUTSIDE[0]);
    assert_eq!(who("SOCK_DGRAM", MACHINE[0], "8110"), OUTSIDE[0]);
    wait_until("what is listened on is published", || {
        who("SOCK_STREAM", MACHINE[0], "8120") == OUTSIDE[0]
    });
    // UDP was listed, so it isn't followed.
    assert_ne!(who("SOCK_DGRAM", MACHINE[0], "8120"), OUTSIDE[0]);
}

#[test]
fn mistakes_are_told() {
    let lab = user_lab!("pasta-mistakes", "newuidmap");
    let site = Site::new(&lab);
    let fails = |args: &[&str], code: i32, says: &[&str]| {
        let out = site.run(&[], &[&["pasta"], args].concat());
        assert_eq!(out.code, Some(code), "{out}");
        for what in says {
            assert!(out.stderr.contains(what), "{what}: {out}");
        }
    };
    fails(&["--no-map-gv", "1"], 2, &["--no-map-gw"]);
    fails(&["-t", "80:x", "1"], 2, &["`80:x` isn't a port or range"]);
    fails(&["sh"], 2, &["isn't a process", "unshare"]);
    fails(&["-T", "80", "4000000"], 2, &["aren't offered"]);
    fails(&["-i", "nowhere0", "4000000"], 1, &["--interface"]);
    fails(&["4000000"], 1, &["process 4000000 doesn't exist"]);
    fails(
        &["--netns", "/nowhere/net"],
        1,
        &["name a namespace that exists"],
    );
    // A port that somebody has.
    let said = script(
        &site,
        "python3 -m http.server 8130 >web 2>&1 &
         until curl -s -o page http://127.0.0.1:8130/; do sleep 0.05; done
         pasta --config-net -t 8130:80 -u none $P || echo code $?",
    );
    assert!(said.contains("code 1") && said.contains("8130"), "{said}");
    let version = site.run(&[], &["pasta", "--version"]).expect_ok();
    assert!(version.starts_with("pasta "), "{version}");
    assert!(!site.machine.run(&["pidof", "pasta"]).success());
}
