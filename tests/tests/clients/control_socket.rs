//! Control sockets of the drop-ins: what is published changes while connections go on, and nothing of a socket stays.

use crate::podman::Podman;
use crate::site::{MACHINE, OUTSIDE, Site};
use crate::slirp4netns::{ASK_WHO, CONTAINER, WHO, script};
use crate::user_lab;
use vswitch_tests::{Background, Output, wait_until};

/// Inside: gives back what comes to a TCP port.
const ECHO: &str = r#"
import socket, sys
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind(("", int(sys.argv[1]))); t.listen()
print("echoing", flush=True)
c, _ = t.accept()
while True:
    b = c.recv(65536)
    if not b:
        break
    c.sendall(b)
"#;

/// Outside: sends pieces to `$1` `$2` and has each back, until there is a file `$3`.
const TRANSFER: &str = r#"
import os, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
n = 0
while not os.path.exists(sys.argv[3]):
    piece = os.urandom(50000)
    s.sendall(piece)
    back = b""
    while len(back) < len(piece):
        b = s.recv(65536)
        if not b:
            sys.exit("the connection has ended")
        back += b
    if back != piece:
        sys.exit("another piece came back")
    n += 1
    if n == 10:
        print("under way", flush=True)
print("undisturbed")
"#;

fn ctl(site: &Site, socket: &str, words: &str) -> Output {
    let words: Vec<&str> = words.split_whitespace().collect();
    let all = [&["vswitchctl", "--socket", socket], &words[..]].concat();
    site.run(&[], &all)
}

/// The only control socket that there is, as `vswitchctl instances` has it.
fn instance(site: &Site) -> serde_json::Value {
    let listed = site.run(&[], &["vswitchctl", "--json", "instances"]);
    let all: serde_json::Value = serde_json::from_str(&listed.expect_ok()).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    all[0].clone()
}

fn who(site: &Site, port: &str) -> String {
    let ask = ["python3", "-c", ASK_WHO, "SOCK_STREAM", MACHINE[0], port];
    site.outside.ok(&ask).trim().to_owned()
}

/// A forward comes and goes while another one carries a transfer. `start` has port 8140 lead to 80 of the container, which is at `inside`.
fn forwards_come_and_go(site: &Site, program: &str, start: &str, inside: &str) {
    let text = format!(
        "{CONTAINER}
         export VSWITCH_CONTROL=auto
         {start}
         inside python3 -c '{WHO}' 81 82 &
         inside python3 -c '{ECHO}' 80"
    );
    let mut container: Background = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    container.wait_for("echoing");
    let found = instance(site);
    assert_eq!(found["program"], program, "{found}");
    let socket = found["socket"].as_str().expect("a path").to_owned();
    let mode = site.machine.ok(&["stat", "-c", "%a %U", &socket]);
    assert_eq!(mode.trim(), "600 guest");
    let ok = |words: &str| ctl(site, &socket, words).expect_ok();
    assert!(ok("publish show").contains("8140"));
    let done = site.path(&format!("{program}.done"));
    let transfer = ["python3", "-c", TRANSFER, MACHINE[0], "8140", &done];
    let mut transfer = site.outside.spawn(&transfer);
    transfer.wait_for("under way");
    // Another one.
    assert_eq!(who(site, "8141"), "ConnectionRefusedError");
    ok(&format!("publish add more --ports 8141 --to {inside}:81"));
    assert_eq!(who(site, "8141"), OUTSIDE[0]);
    let all = ok("publish show");
    assert!(all.contains("more") && all.contains("8141"), "{all}");
    let taken = ctl(
        site,
        &socket,
        &format!("publish add again --ports 8140 --to {inside}:81"),
    );
    assert!(!taken.success() && taken.stderr.contains("8140"), "{taken}");
    // What else the API has.
    assert!(ok("port show").contains("container"));
    let known = ok("conntrack show");
    assert!(
        known.contains("8140") && known.contains(OUTSIDE[0]),
        "{known}"
    );
    assert!(ok("stats").contains("container"));
    ok("publish del more");
    assert_eq!(who(site, "8141"), "ConnectionRefusedError");
    assert!(!ok("publish show").contains("8141"));
    // What takes rights that were given up is refused, and nothing of it is left.
    let file = ctl(
        site,
        &socket,
        "port add vm --network x --kind stream --listen /tmp/vm.sock",
    );
    assert!(!file.success(), "{file}");
    assert!(transfer.is_running(), "{}", transfer.output());
    std::fs::write(&done, "").expect("write a file in the lab's directory");
    let whole = transfer.finish(std::time::Duration::from_secs(20));
    assert!(whole.expect_ok().contains("undisturbed"));
    // By a signal it ends in order: neither the socket nor its lock stays.
    let end = format!("kill $(pidof {program})");
    site.machine.ok(&["sh", "-c", &end]);
    wait_until("nothing of the socket stays", || {
        let left = site.machine.ok(&["ls", "-A", &site.path("run/vswitch")]);
        left.trim().is_empty()
    });
}

#[test]
fn pasta_s_forwards_change_as_it_runs() {
    let lab = user_lab!("pasta-control", "newuidmap");
    let start = "pasta --config-net -t 8140:80 -u none --no-map-gw $P";
    forwards_come_and_go(&Site::new(&lab), "pasta", start, MACHINE[0]);
}

#[test]
fn slirp4netns_s_forwards_change_as_it_runs() {
    let lab = user_lab!("slirp4netns-control", "newuidmap");
    let add =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8140,"guest_port":80}}"#;
    let start = format!(
        "slirp4netns -c --enable-sandbox --enable-seccomp --api-socket api $P &
         until inside ip -br addr | grep -q 10.0.2.100 && [ -S api ]; do sleep 0.01; done
         echo '{add}' | python3 -c 'import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(\"api\"); s.sendall(sys.stdin.buffer.read()); print(s.recv(999))'"
    );
    forwards_come_and_go(&Site::new(&lab), "slirp4netns", &start, "10.0.2.100");
}

#[test]
fn where_the_socket_is() {
    let lab = user_lab!("control-place", "newuidmap");
    let site = Site::new(&lab);
    std::fs::create_dir_all(site.path("home/.config/vswitch")).expect("make a directory");
    let dir = site.path("home/switches/");
    let file = format!("control = \"{dir}\"\n");
    site.write("home/.config/vswitch/attach.toml", &file);
    let pasta = "pasta --config-net -t none -u none --no-map-gw $P";
    // By the user's file; a fixed path, which one has at a time; not at all.
    let said = script(
        &site,
        &format!(
            "{pasta}; ls switches; kill $(pidof pasta); until ! pidof pasta; do sleep 0.01; done
             export VSWITCH_CONTROL=$HOME/one.sock
             {pasta}; vswitchctl --socket one.sock port show
             {pasta} -I eth7 || echo second $?
             kill $(pidof pasta); until ! pidof pasta; do sleep 0.01; done
             VSWITCH_CONTROL=none {pasta}; ls switches one.sock || echo none $?
             kill $(pidof pasta); until ! pidof pasta; do sleep 0.01; done
             VSWITCH_CONTROL=here.sock {pasta} || echo relative $?
             VSWITCH_CONTROL=/nowhere/ {pasta} || echo unwritable $?"
        ),
    );
    for what in [
        "pasta-",
        "container",
        "second 1",
        "another switch has it; have VSWITCH_CONTROL name a directory",
        "none 2",
        "`here.sock`",
        "relative 1",
        "unwritable 1",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(
        said.contains(".sock.lock") && !said.contains("vswitch.sock"),
        "{said}"
    );
}

#[test]
fn podman_s_containers_are_named() {
    let lab = user_lab!("podman-control", "podman", "runc", "newuidmap");
    let p = Podman::new(Site::new(&lab));
    let site = &p.site;
    let server = Site::server("web");
    let base = ["run", "-d", "--name", "web", "-p", "8084:80"];
    let more = ["--network", "slirp4netns:port_handler=slirp4netns", "bb:1"];
    let run = [&base[..], &more, &["sh", "-c", &server]].concat();
    p.run_with(&["VSWITCH_CONTROL=auto"], &run).expect_ok();
    let found = instance(site);
    assert_eq!(found["container"], "web", "{found}");
    let socket = found["socket"].as_str().expect("a path");
    let add = "publish add more --ports 8085 --to 10.0.2.100:80";
    ctl(site, socket, add).expect_ok();
    for port in ["8084", "8085"] {
        site.assert_published(MACHINE[0], port, "web");
    }
    p.run(&["rm", "-f", "-t", "0", "web"]).expect_ok();
    wait_until("nothing of the socket stays", || {
        let left = site.machine.ok(&["ls", "-A", &site.path("run/vswitch")]);
        left.trim().is_empty()
    });
}
