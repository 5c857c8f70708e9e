//! slirp4netns by hand: what a caller of the real one relies on, descriptor by descriptor.

use crate::site::{MACHINE, OUTSIDE, Site};
use crate::user_lab;
use std::time::Duration;
use vswitch_tests::wait_until;

/// A container of the user: namespaces, and a process whose number `$P` is. What one before it has said doesn't count.
pub(crate) const CONTAINER: &str = "
rm -f up
unshare --user --map-root-user --net --mount sh -c 'echo up; exec sleep 60' >up & P=$!
until grep -q up up; do sleep 0.01; done
inside() { nsenter --user --preserve-credentials --net -t $P \"$@\"; }
";

pub(crate) fn script(site: &Site, text: &str) -> String {
    let text = format!("{CONTAINER}{text}");
    let out = site.run(&[], &["bash", "-ec", &text]);
    assert!(out.success(), "{out}");
    out.stdout + &out.stderr
}

#[test]
fn ready_and_exit_descriptors_addresses_and_the_end() {
    let lab = user_lab!("slirp4netns", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        "mkfifo ready exit
         exec 8<>ready 9<>exit
         slirp4netns -c -6 -m 9000 -e 7 -r 6 --macaddress 02:00:00:00:00:77 $P tap7 6>ready 7<exit 8<&- 9<&- & S=$!
         head -c 1 <&8; echo ' ready'
         inside ip -br addr; inside ip route; inside ip -6 route
         exec 9>&-
         wait $S; echo ended $?",
    );
    for what in [
        "1 ready",
        "10.0.2.100/24",
        "fd00::100/64",
        "default via 10.0.2.2 dev tap7",
        "default via fd00::2 dev tap7",
        "127.0.0.1/8",
        "ended 0",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    // The device goes with its container, as nothing else keeps the namespace.
    let said = script(
        &site,
        "slirp4netns -c $P & S=$!
         until inside ip -br addr | grep 10.0.2.100; do sleep 0.01; done
         kill -KILL $P; wait $S; echo ended $?",
    );
    assert!(said.contains("ended 0"), "{said}");
    // Another network, no DNS, a signal; loopback of the machine by the gateway's address only if allowed.
    let said = script(
        &site,
        "python3 -m http.server --bind 127.0.0.1 8200 >web 2>&1 & W=$!
         until curl -s -o page http://127.0.0.1:8200/; do sleep 0.05; done
         slirp4netns -c --cidr=10.9.0.0/16 --disable-dns $P & S=$!
         until inside ip -br addr | grep 10.9.0.100/16; do sleep 0.01; done
         inside curl -s -o page --max-time 5 http://10.9.0.2:8200/ && echo loopback
         inside dig +time=1 +tries=1 @10.9.0.3 www.example >answer || echo no names
         kill $S; wait $S; echo ended $?
         slirp4netns -c --disable-host-loopback $P tap1 & S=$!
         until inside ip -br addr | grep 10.0.2.100; do sleep 0.01; done
         inside curl -s -o page --max-time 5 http://10.0.2.2:8200/ || echo refused $?
         inside dig +short @10.0.2.3 www.example
         inside dig +short +tcp @10.0.2.3 www.example
         kill $W; kill -INT $S; wait $S; echo ended $?",
    );
    for what in [
        "loopback",
        "no names",
        "refused 7",
        "198.51.100.254\n198.51.100.254",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert_eq!(said.matches("ended 0").count(), 2, "{said}");
}

#[test]
fn the_address_outside_is_chosen() {
    let lab = user_lab!("slirp4netns-outbound", "newuidmap");
    let site = Site::new(&lab);
    site.machine.addr("out0", "198.51.100.9/24");
    site.machine.addr("out0", "2001:db8:2::9/64");
    let said = script(
        &site,
        "slirp4netns -c -6 --outbound-addr=198.51.100.9 --outbound-addr6=2001:db8:2::9 $P & S=$!
         until inside ip -br addr | grep -q 10.0.2.100; do sleep 0.01; done
         echo four $(inside curl -s http://198.51.100.254:8000/peer)
         echo six $(inside curl -gs http://[2001:db8:2::254]:8000/peer)
         kill $S; wait $S
         slirp4netns -c --outbound-addr=out0 $P tap1 & S=$!
         until inside ip -br addr | grep -q 10.0.2.100; do sleep 0.01; done
         echo by $(inside curl -s http://198.51.100.254:8000/peer)
         kill $S; wait $S",
    );
    for what in [
        "four 198.51.100.9\n",
        "six 2001:db8:2::9\n",
        "by 198.51.100.1\n",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn mistakes_are_told() {
    let lab = user_lab!("slirp4netns-mistakes", "newuidmap");
    let site = Site::new(&lab);
    let fails = |args: &[&str], code: i32, says: &[&str]| {
        let out = site.run(&[], &[&["slirp4netns"], args].concat());
        assert_eq!(out.code, Some(code), "{out}");
        for what in says {
            assert!(out.stderr.contains(what), "{what}: {out}");
        }
    };
    fails(
        &["--disable-host-lookback", "1"],
        2,
        &["--disable-host-loopback"],
    );
    fails(&["-c"], 2, &["PID|PATH"]);
    fails(&["-c", "tap0"], 2, &["isn't a process"]);
    fails(&["-c", "4000000"], 1, &["process 4000000 doesn't exist"]);
    fails(&["-c", "-r", "77", "1"], 1, &["--ready-fd 77", "open"]);
    fails(
        &["-c", "--netns-type=path", "/nowhere/net"],
        1,
        &["/nowhere/net", "name a namespace that exists"],
    );
    // Another's namespaces.
    fails(&["-c", "1"], 1, &["/proc/1/ns", "user's own"]);
    let said = script(
        &site,
        "slirp4netns --target-type=bess -c /tmp/s || echo code $?
         slirp4netns --target-type=bess /nowhere/s || echo code $?",
    );
    for what in ["leave out --configure", "code 2", "/nowhere/s", "code 1"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    let said = script(
        &site,
        "slirp4netns -c $P a-name-too-long-for-it || echo code $?",
    );
    assert!(
        said.contains("interface name") && said.contains("code 1"),
        "{said}"
    );
    let said = script(
        &site,
        "slirp4netns -c --api-socket /nowhere/s $P || echo code $?",
    );
    assert!(
        said.contains("/nowhere/s") && said.contains("code 1"),
        "{said}"
    );
    site.machine.ok(&["chmod", "600", "/dev/net/tun"]);
    let said = script(&site, "slirp4netns -c $P || echo code $?");
    assert!(
        said.contains("chmod 0666 /dev/net/tun") && said.contains("code 1"),
        "{said}"
    );
    let version = site.run(&[], &["slirp4netns", "--version"]).expect_ok();
    assert!(version.starts_with("slirp4netns version 1.2"), "{version}");
    assert!(!site.machine.run(&["pidof", "slirp4netns"]).success());
}

/// Asks the API socket `$1` each line of `$2`, a connection each.
pub(crate) const ASK: &str = r#"
import socket, sys
for line in sys.argv[2].splitlines():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.sendall(line.encode() + b"\n")
    answer = b""
    while True:
        b = s.recv(4096)
        if not b:
            break
        answer += b
    print(answer.decode())
"#;

#[test]
fn the_api_socket_answers_as_slirp4netns() {
    let lab = user_lab!("slirp4netns-api", "newuidmap");
    let site = Site::new(&lab);
    // As slirp4netns 1.2.0 of Debian 12 answers.
    let talk: &[(&str, &str)] = &[
        (r#"{"execute":"list_hostfwd"}"#, r#"{"entries":[]}"#),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18081,"guest_addr":"","guest_port":80}}"#,
            r#"{"return":{"id":1}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18081,"guest_port":81}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"udp","host_port":18081,"guest_addr":"10.0.2.77","guest_port":80}}"#,
            r#"{"return":{"id":2}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"sctp","host_port":18081,"guest_port":80}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.proto"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"x","host_port":1,"guest_port":80}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_addr"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":"1","guest_port":80}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":1,"guest_addr":"x","guest_port":80}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.guest_addr"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":1}}"#,
            r#"{"error":{"desc":"bad request: add_hostfwd: bad arguments.guest_port"}}"#,
        ),
        (
            r#"{"execute":"list_hostfwd","arguments":{}}"#,
            r#"{"entries":[{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":18081,"guest_addr":"10.0.2.100","guest_port":80},{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":18081,"guest_addr":"10.0.2.77","guest_port":80}]}"#,
        ),
        (
            r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#,
            r#"{"return":{}}"#,
        ),
        (
            r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#,
            r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#,
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18081,"guest_port":81}}"#,
            r#"{"return":{"id":3}}"#,
        ),
        (
            r#"{"execute":"frob"}"#,
            r#"{"error":{"desc":"bad request: unknown execute"}}"#,
        ),
        (
            r#"{"arguments":{}}"#,
            r#"{"error":{"desc":"bad request: no execute found"}}"#,
        ),
        (
            "[]",
            r#"{"error":{"desc":"bad request: json_object() failed"}}"#,
        ),
        (
            "nope",
            r#"{"error":{"desc":"bad request: cannot parse JSON"}}"#,
        ),
    ];
    let (asked, answers): (Vec<&str>, Vec<&str>) = talk.iter().copied().unzip();
    let text = format!(
        "{CONTAINER}
         slirp4netns -c --api-socket api $P & S=$!
         until [ -S api ]; do sleep 0.01; done
         python3 -c '{ASK}' api \"$0\"
         kill $S; wait $S; [ ! -e api ]"
    );
    let out = site.run(&[], &["bash", "-ec", &text, &asked.join("\n")]);
    let said = out.expect_ok();
    assert_eq!(said.lines().collect::<Vec<_>>(), answers);
    wait_until("nothing is left", || {
        std::thread::sleep(Duration::from_millis(10));
        !site.machine.run(&["pidof", "slirp4netns"]).success()
    });
}

/// Inside: a TCP server and a UDP server on `$1` and `$2` that answer with the client's address.
pub(crate) const WHO: &str = r#"
import socket, sys, threading
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind(("", int(sys.argv[1]))); t.listen()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("", int(sys.argv[2])))
def serve():
    while True:
        _, a = u.recvfrom(100)
        u.sendto(a[0].encode(), a)
threading.Thread(target=serve, daemon=True).start()
print("serving", flush=True)
while True:
    c, a = t.accept()
    c.sendall(a[0].encode())
    c.close()
"#;

/// Asks `$2` `$3` by `$1`; prints the answer or the fault.
pub(crate) const ASK_WHO: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, getattr(socket, sys.argv[1]))
s.settimeout(2)
try:
    s.connect((sys.argv[2], int(sys.argv[3])))
    s.send(b"who")
    print(s.recv(100).decode())
except OSError as e:
    print(type(e).__name__)
"#;

#[test]
fn forwards_keep_the_client_s_address_and_end_when_removed() {
    let lab = user_lab!("slirp4netns-forwards", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         slirp4netns -c --api-socket api $P &
         until inside ip -br addr | grep -q 10.0.2.100 && [ -S api ]; do sleep 0.01; done
         inside python3 -c '{WHO}' 80 81"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    let api = |request: &str| {
        let socket = site.path("home/api");
        let ask = ["python3", "-c", ASK, &socket, request];
        site.run(&[], &ask).expect_ok().trim().to_owned()
    };
    let add = |proto: &str, host: u16, guest: u16| {
        let arguments = format!(r#"{{"proto":"{proto}","host_port":{host},"guest_port":{guest}}}"#);
        api(&format!(
            r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#
        ))
    };
    let who = |kind: &str, port: &str| {
        let ask = ["python3", "-c", ASK_WHO, kind, MACHINE[0], port];
        site.outside.ok(&ask).trim().to_owned()
    };
    assert_eq!(add("tcp", 8100, 80), r#"{"return":{"id":1}}"#);
    assert_eq!(add("udp", 8100, 81), r#"{"return":{"id":2}}"#);
    assert_eq!(add("tcp", 8101, 80), r#"{"return":{"id":3}}"#);
    assert_eq!(who("SOCK_STREAM", "8100"), OUTSIDE[0]);
    assert_eq!(who("SOCK_STREAM", "8101"), OUTSIDE[0]);
    assert_eq!(who("SOCK_DGRAM", "8100"), OUTSIDE[0]);
    // A port that somebody has is refused, and nothing else is disturbed.
    let mut taken = site.spawn(&[], &["python3", "-c", WHO, "8102", "8102"]);
    taken.wait_for("serving");
    assert!(add("tcp", 8102, 80).contains("slirp_add_hostfwd failed"));
    container.wait_for("publishing port `tcp:8102`: TCP 0.0.0.0:8102 of the host is taken");
    let removed = api(r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#);
    assert_eq!(removed, r#"{"return":{}}"#);
    assert_eq!(who("SOCK_STREAM", "8100"), "ConnectionRefusedError");
    assert_eq!(who("SOCK_STREAM", "8101"), OUTSIDE[0]);
    assert_eq!(who("SOCK_DGRAM", "8100"), OUTSIDE[0]);
}

/// A machine's network by a socket, as User-Mode Linux has it: frames of a TAP device of its own, one a packet.
const MACHINE_BY_SOCKET: &str = r#"
import fcntl, os, socket, struct, subprocess, sys, threading
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"vec0", 0x1002))
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
def out():
    while True:
        s.send(os.read(tap, 65536))
threading.Thread(target=out, daemon=True).start()
for line in ("link set lo up", "addr add 10.0.2.100/24 dev vec0", "link set vec0 up mtu 1500", "route add default via 10.0.2.2"):
    subprocess.run(["ip"] + line.split(), check=True)
while True:
    frame = s.recv(65536)
    if not frame:
        break
    os.write(tap, frame)
"#;

#[test]
fn a_virtual_machine_connects_to_a_socket() {
    let lab = user_lab!("slirp4netns-bess", "newuidmap");
    let site = Site::new(&lab);
    for sandbox in ["", "--enable-sandbox --enable-seccomp"] {
        let said = script(
            &site,
            &format!(
                "mkfifo ready; exec 8<>ready
                 slirp4netns --target-type=bess {sandbox} --api-socket api -r 6 bess 6>ready 8<&- & S=$!
                 until [ -S bess ]; do sleep 0.01; done
                 nsenter --user --preserve-credentials --net -t $P python3 -c '{MACHINE_BY_SOCKET}' bess 8<&- & V=$!
                 head -c 1 <&8; echo ' ready'; rm ready; [ ! -e bess ]
                 until inside ip route | grep default; do sleep 0.01; done
                 inside dig +short @10.0.2.3 www.example
                 echo outside $(inside curl -s http://198.51.100.254:8000/peer)
                 inside curl -s http://198.51.100.254:8000/bytes/3000000 | wc -c
                 [ -S api ]; kill $V; wait $S; echo ended $?; [ ! -e api ]"
            ),
        );
        for what in [
            "1 ready",
            "198.51.100.254\n",
            "outside 198.51.100.1\n",
            "3000000\n",
            "ended 0",
        ] {
            assert!(said.contains(what), "{what}: {said}");
        }
    }
    // Nobody connects: a signal ends it all the same.
    let said = script(
        &site,
        "slirp4netns --target-type=bess bess & S=$!; until [ -S bess ]; do sleep 0.01; done
         kill $S; wait $S; echo ended $?; [ ! -e bess ]",
    );
    assert!(said.contains("ended 0"), "{said}");
}
