//! pasta: ports of the container's loopback that lead to the host's, and clients on the host itself.

use crate::site::{MACHINE, Site};
use crate::slirp4netns::{CONTAINER, script};
use crate::user_lab;
use vswitch_tests::wait_until;

/// Sends every datagram back, in both families of loopback, at the ports of `$@`.
const ECHO: &str = r#"
import select, socket, sys
all = []
for port in sys.argv[1:]:
    for family, at in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.bind((at, int(port)))
        all.append(s)
print("serving", flush=True)
while True:
    for s in select.select(all, [], [])[0]:
        b, a = s.recvfrom(65536)
        s.sendto(b, a)
"#;

/// Two clients in turn send datagrams of many sizes to `$1` `$2`, each of which has to come back to its own.
const ASK: &str = r#"
import os, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
both = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
for s in both:
    s.settimeout(5)
    s.connect((sys.argv[1], int(sys.argv[2])))
try:
    for n in [1, 0, 64, 1200, 1472, 9000, 60000, 65507 if family == socket.AF_INET else 65487] * 20:
        sent = [os.urandom(n) for _ in both]
        for s, b in zip(both, sent):
            s.send(b)
        for s, b in zip(both, sent):
            if s.recv(65536) != b:
                sys.exit(f"another of {n}")
    # Several under way: the kernel joins them.
    burst = [os.urandom(700) for _ in range(20)]
    for b in burst:
        both[0].send(b)
    if [both[0].recv(65536) for _ in burst] != burst:
        sys.exit("another burst")
    print("all came back")
except OSError as e:
    print(type(e).__name__)
"#;

#[test]
fn datagrams_of_the_container_s_loopback_come_to_the_host_s() {
    let lab = user_lab!("pasta-loopback-udp", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        &format!(
            "python3 -c '{ECHO}' 8170 8171 >echo & until grep -q serving echo; do sleep 0.05; done
             pasta --config-net -t none -u none --no-map-gw -U 53:8170,8171 -U 198.51.100.1%out0/8172:8170 $P
             ask() {{ inside python3 -c '{ASK}' \"$@\"; }}
             echo four $(ask 127.0.0.1 53)
             echo six $(ask ::1 53)
             echo same $(ask 127.0.0.1 8171)
             echo at $(ask 198.51.100.1 8172)
             echo not listed $(ask 127.0.0.1 8170)
             echo loopback only $(ask 198.51.100.1 53)"
        ),
    );
    for what in [
        "four all came back\n",
        "six all came back\n",
        "same all came back\n",
        "at all came back\n",
        "not listed ConnectionRefusedError\n",
        "loopback only ConnectionRefusedError\n",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn what_the_host_listens_on_is_at_the_container_s_loopback_as_it_comes_and_goes() {
    let lab = user_lab!("pasta-loopback-auto", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        &format!(
            "echo this is it >page
             serve() {{ python3 -m http.server --bind \"$@\" >>web 2>&1 & }}
             get() {{ inside curl -gs --max-time 5 http://$1/page || echo none $?; }}
             serve 127.0.0.1 8180; first=$!
             serve :: 8181
             python3 -c '{ECHO}' 8183 >echo & until grep -q serving echo; do sleep 0.05; done
             until curl -gs -o got http://127.0.0.1:8180/ && curl -gs -o got http://[::1]:8181/; do sleep 0.05; done
             inside python3 -m http.server --bind 127.0.0.1 8185 >web3 2>&1 &
             pasta --config-net -t 8182:80 -u none --no-map-gw -T auto -U auto,~8184 $P
             echo first $(get 127.0.0.1:8180)
             echo not there $(get [::1]:8180)
             echo both $(get 127.0.0.1:8181) $(get [::1]:8181)
             echo udp $(inside python3 -c '{ASK}' 127.0.0.1 8183)
             echo excluded $(inside python3 -c '{ASK}' 127.0.0.1 8184)
             echo published $(get 127.0.0.1:8182)
             serve 127.0.0.1 8186
             until inside curl -s -o got --max-time 5 http://127.0.0.1:8186/; do sleep 0.05; done; echo later
             serve 127.0.0.1 8185
             until curl -s -o got http://127.0.0.1:8185/; do sleep 0.05; done
             kill $first
             until [ \"$(get 127.0.0.1:8180)\" = 'none 7' ]; do sleep 0.05; done; echo gone
             grep -q . web3 || echo its own
             kill -KILL $P; until ! pidof pasta; do sleep 0.01; done; echo gone with it"
        ),
    );
    for what in [
        "first this is it\n",
        "not there none 7\n",
        "both this is it this is it\n",
        "udp all came back\n",
        "excluded ConnectionRefusedError\n",
        "published none 7\n",
        "later\n",
        "gone\n",
        "gone with it\n",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn a_namespace_that_is_known_by_its_name_ends_it() {
    let lab = user_lab!("pasta-loopback-name", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        "python3 -m http.server --bind 127.0.0.1 8190 >web 2>&1 &
         until curl -s -o page http://127.0.0.1:8190/; do sleep 0.05; done
         pasta --config-net -t none -u none --no-map-gw -T 80:8190 --netns /proc/$P/ns/net --userns /proc/$P/ns/user
         inside curl -s -o page http://127.0.0.1/ && echo reached
         pidof pasta | wc -w
         kill -KILL $P; until ! pidof pasta; do sleep 0.01; done; echo gone with it
         until ! curl -s -o page http://198.51.100.1:80/; do sleep 0.01; done",
    );
    for what in ["reached\n", "gone with it\n"] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

/// Tells who has come, by streams and datagrams, in both families.
const WHO: &str = r#"
import socket, sys, threading
port = int(sys.argv[1])
t = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
u.bind(("::", port))
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

const ASK_WHO: &str = r#"
import socket, sys
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, kind)
    s.settimeout(5)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        s.send(b"who")
        print(s.recv(100).decode())
    except OSError as e:
        print(type(e).__name__)
"#;

#[test]
fn a_client_on_the_host_is_answered_though_the_container_has_its_address() {
    let lab = user_lab!("pasta-own", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         pasta --config-net -t 8200,8201:8200 -u 8200,8201:8200 --no-map-gw $P
         inside python3 -c '{WHO}' 8200"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    let who = |node: &vswitch_tests::Node, at: &str, port: &str| {
        let said = node.ok(&["python3", "-c", ASK_WHO, at, port]);
        said.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // As if from an address that is nobody's; on the container's own port too.
    let nobody = [
        (MACHINE[0], "::ffff:192.0.0.8"),
        ("127.0.0.1", "::ffff:192.0.0.8"),
        (MACHINE[1], "100::8"),
        ("::1", "100::8"),
    ];
    for port in ["8200", "8201"] {
        for (at, seen) in nobody {
            let said = who(&site.machine, at, port);
            assert_eq!(said, [seen, seen], "{at} {port}");
        }
        for (at, seen) in [
            (MACHINE[0], "::ffff:198.51.100.254"),
            (MACHINE[1], "2001:db8:2::254"),
        ] {
            let said = who(&site.outside, at, port);
            assert_eq!(said, [seen, seen], "{at} {port}");
        }
    }
}

#[test]
fn forwards_are_of_one_interface() {
    let lab = user_lab!("pasta-interface", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         pasta --config-net -t %out0/8210:8200 -u 198.51.100.1%out0/8210:8200 -t 127.0.0.1%lo/8211:8200 -t %lo/auto $P
         inside python3 -c '{WHO}' 8200"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    let who = |node: &vswitch_tests::Node, at: &str, port: &str| {
        node.ok(&["python3", "-c", ASK_WHO, at, port])
    };
    let refused = "ConnectionRefusedError\n";
    let far = "::ffff:198.51.100.254\n";
    let said = who(&site.outside, MACHINE[0], "8210");
    assert_eq!(said, far.to_owned() + far);
    // UDP was listed of IPv4 alone.
    let said = who(&site.outside, MACHINE[1], "8210");
    assert_eq!(said, "2001:db8:2::254\n".to_owned() + refused);
    // A client on the host comes by the interface whose address it asks.
    let near = "::ffff:192.0.0.8\n";
    let said = who(&site.machine, MACHINE[0], "8210");
    assert_eq!(said, near.to_owned() + near);
    let said = who(&site.machine, "127.0.0.1", "8210");
    assert_eq!(said, refused.to_owned() + refused);
    let said = who(&site.machine, "127.0.0.1", "8211");
    assert_eq!(said, near.to_owned() + refused);
    wait_until("what is listened on is published", || {
        who(&site.machine, "127.0.0.1", "8200") == near.to_owned() + refused
    });
    let said = who(&site.outside, MACHINE[0], "8200");
    assert_eq!(said, refused.to_owned() + refused);
    let said = script(
        &site,
        "pasta --config-net -t %gone0/8212:80 -u none -I eth7 $P || echo code $?",
    );
    assert!(said.contains("code 1"), "{said}");
    assert!(said.contains("has no interface gone0"), "{said}");
}
