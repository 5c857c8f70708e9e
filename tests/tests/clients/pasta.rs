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
    fails(
        &["--", "no-such-program"],
        127,
        &["running `no-such-program`", "PATH"],
    );
    fails(&["--netns-only", "true"], 2, &["--netns-only"]);
    fails(&["-U", "1-300", "4000000"], 2, &["512 ports at most"]);
    fails(
        &["-t", "%no way/80", "4000000"],
        2,
        &["can't be the name of an interface"],
    );
    fails(&["-t", "80,~80", "4000000"], 2, &["excludes all"]);
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

#[test]
fn a_command_has_a_network_of_its_own() {
    let lab = user_lab!("pasta-command", "newuidmap");
    let site = Site::new(&lab);
    let pasta = |args: &[&str]| {
        site.run(
            &[],
            &[&["pasta", "-t", "none", "-u", "none"], args].concat(),
        )
    };
    let ask = "id -u; ip -br addr show out0; echo peer $(curl -s http://198.51.100.254:8000/peer); exit 7";
    let out = pasta(&["--no-map-gw", "--", "sh", "-c", ask]);
    assert_eq!(out.code, Some(7), "{out}");
    assert!(out.stdout.starts_with("0\n"), "{out}");
    assert!(out.stdout.contains("198.51.100.1/24"), "{out}");
    assert!(out.stdout.contains("peer 198.51.100.1\n"), "{out}");
    assert_eq!(pasta(&["sh", "-c", "kill -TERM $$"]).code, Some(128 + 15));
    // Without one it is the shell, which ends with its input.
    assert_eq!(pasta(&[]).code, Some(0));
    // What it listens on is published as it comes, but for what is excluded.
    let serve = format!("python3 -c '{WHO}' 8150 8150 & exec python3 -c '{WHO}' 8151 8151");
    let argv = [
        "pasta", "-t", "~8151", "-u", "none", "--", "sh", "-c", &serve,
    ];
    let mut served = site.spawn(&[], &argv);
    served.wait_for("serving\nserving");
    let who = |port: &str| {
        let ask = ["python3", "-c", ASK_WHO, "SOCK_STREAM", MACHINE[0], port];
        site.outside.ok(&ask).trim().to_owned()
    };
    wait_until("what is listened on is published", || {
        who("8150") == OUTSIDE[0]
    });
    assert_eq!(who("8151"), "ConnectionRefusedError");
    // It ends with its command, also when that is killed.
    site.machine
        .ok(&["sh", "-c", "kill -KILL $(pidof python3)"]);
    wait_until("pasta ends with its command", || {
        !site.machine.run(&["pidof", "pasta"]).success()
    });
}

#[test]
fn ports_of_the_container_s_loopback_lead_to_the_host_s() {
    let lab = user_lab!("pasta-loopback", "newuidmap");
    let site = Site::new(&lab);
    let large = "head -c 30000000 /dev/urandom >large; sha256sum <large >digest";
    let said = script(
        &site,
        &format!(
            "{large}
             python3 -m http.server --bind 127.0.0.1 8160 >web 2>&1 &
             python3 -m http.server --bind ::1 8161 >web2 2>&1 &
             until curl -s -o page http://127.0.0.1:8160/ && curl -gs -o page http://[::1]:8161/; do sleep 0.05; done
             pasta --config-net -t none -u none --no-map-gw -T 80:8160,81-82:8161-8162 $P
             inside curl -s http://127.0.0.1:80/large | sha256sum | cmp - digest && echo four
             inside curl -gs http://[::1]:81/large | sha256sum | cmp - digest && echo six
             inside curl -s -o page --max-time 5 http://127.0.0.1:81/ || echo nobody at 4 $?
             inside curl -s -o page --max-time 5 http://127.0.0.1:82/ || echo nobody $?
             inside curl -s -o page --max-time 5 http://127.0.0.1:8160/ || echo not listed $?
             inside curl -s -o page --max-time 5 http://198.51.100.1:80/ || echo loopback only $?
             curl -s -o page --max-time 5 http://127.0.0.1:80/ || echo not of the host $?
             pasta --config-net -t none -u none --no-map-gw -I eth7 -T 80:8160 $P || echo taken $?",
        ),
    );
    for what in [
        "four\n",
        "six\n",
        "nobody at 4 ",
        "nobody ",
        "not listed 7",
        "loopback only 7",
        "not of the host 7",
        "taken 1",
        "listening on 127.0.0.1:80 in the container",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}
