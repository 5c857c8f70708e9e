//! What a process that serves a container can still see and do, read from /proc, and that its two halves end together.

use crate::site::{MACHINE, OUTSIDE, Site};
use crate::slirp4netns::{ASK, ASK_WHO, CONTAINER, WHO, script};
use crate::user_lab;
use vswitch_tests::{Node, wait_until};

/// A list of resolvers that can be renamed over, on a machine whose /etc is its own.
const OWN_ETC: &str = "cd \"$0\"; cp -a /etc etc; rm etc/resolv.conf
echo nameserver 198.51.100.254 >etc/resolv.conf; mount --bind etc /etc";

/// The processes of this name, by age.
fn processes(machine: &Node, name: &str) -> Vec<String> {
    let out = machine.run(&[
        "sh",
        "-c",
        &format!("pidof {name} | tr ' ' '\\n' | sort -n"),
    ]);
    out.stdout.split_whitespace().map(str::to_owned).collect()
}

/// The processes of this name, once there are so many and all have given up their last, which is system calls.
#[track_caller]
fn settled(machine: &Node, name: &str, count: usize) -> Vec<String> {
    let open = format!(
        "cat /dev/null $(pidof {name} | sed 's#[0-9]*#/proc/&/task/*/status#g') | grep 'Seccomp:.[01]'"
    );
    wait_until("all is given up", || {
        processes(machine, name).len() == count && !machine.run(&["sh", "-c", &open]).success()
    });
    processes(machine, name)
}

#[track_caller]
fn none_is_left(site: &Site, name: &str) {
    wait_until("nothing is left", || {
        processes(&site.machine, name).is_empty()
    });
}

/// The namespaces of a process that aren't those of the machine.
fn own(machine: &Node, pid: &str) -> Vec<String> {
    let script = "for n in cgroup ipc mnt net pid user uts; do
        [ \"$(readlink /proc/$0/ns/$n)\" = \"$(readlink /proc/self/ns/$n)\" ] || echo $n; done";
    let found = machine.ok(&["sh", "-c", script, pid]);
    found.lines().map(str::to_owned).collect()
}

const ALL: [&str; 6] = ["cgroup", "ipc", "mnt", "pid", "user", "uts"];

/// What is left to all threads of a process; `bind`: the capability for ports below 1024.
#[track_caller]
fn assert_confined(machine: &Node, pid: &str, bind: bool) {
    let script = "cat /proc/$0/task/*/status | grep -E '^(Seccomp|NoNewPrivs|Cap(Inh|Eff|Prm|Bnd|Amb)):' | sort -u";
    let status = machine.ok(&["sh", "-c", script, pid]);
    let set = |kept: bool| {
        if kept {
            "0000000000000400"
        } else {
            "0000000000000000"
        }
    };
    let sets = [
        ("Amb", false),
        ("Bnd", bind),
        ("Eff", bind),
        ("Inh", false),
        ("Prm", bind),
    ];
    let sets = sets.map(|(name, kept)| format!("Cap{name}:\t{}\n", set(kept && bind)));
    assert_eq!(status, sets.concat() + "NoNewPrivs:\t1\nSeccomp:\t2\n");
}

/// Of the host's files it has those that name resolvers.
#[track_caller]
fn assert_rootless(site: &Site, pid: &str) {
    let root = format!("/proc/{pid}/root");
    let there = site.machine.ok(&["ls", &root]);
    for name in there.lines() {
        assert!(["dev", "etc", "proc", "run"].contains(&name), "{there}");
    }
    let devices = site.machine.ok(&["ls", &format!("{root}/dev")]);
    assert_eq!(devices, "urandom\n");
    let mounts = site
        .machine
        .ok(&["cut", "-d ", "-f5", &format!("/proc/{pid}/mountinfo")]);
    for at in mounts
        .lines()
        .filter(|at| *at != "/" && *at != "/dev/urandom")
    {
        let known = ["/etc", "/run/", "/proc/sys/net/ipv4"]
            .iter()
            .any(|k| at.starts_with(k));
        // The sockets of the container's process, where ports are followed.
        assert!(
            known || (at.starts_with("/proc/") && at.ends_with("/net")),
            "{mounts}"
        );
    }
    let write = format!("! touch {root}/x && ! touch {root}/etc/x");
    site.machine.ok(&["sh", "-c", &write]);
}

fn etc(site: &Site) {
    site.machine.ok(&["sh", "-ec", OWN_ETC, &site.path("")]);
}

fn who(site: &Site, kind: &str, port: &str) -> String {
    let ask = ["python3", "-c", ASK_WHO, kind, MACHINE[0], port];
    site.outside.ok(&ask).trim().to_owned()
}

#[test]
fn slirp4netns_is_by_itself_and_serves() {
    let lab = user_lab!("isolation", "newuidmap");
    let site = Site::new(&lab);
    etc(&site);
    let text = format!(
        "{CONTAINER}
         mkfifo exit; exec 9<>exit
         slirp4netns -c --enable-sandbox --enable-seccomp -e 7 --api-socket api $P 7<exit 9<&- &
         until inside ip -br addr | grep -q 10.0.2.100 && [ -S api ]; do sleep 0.01; done
         inside python3 -c '{WHO}' 80 81 9<&- &
         echo container $P; until [ -e asked ]; do sleep 0.1; done
         inside dig +short @10.0.2.3 www.example
         until inside dig +short +tries=1 +time=1 @10.0.2.3 www.example | grep 203.0.113.7; do sleep 0.1; done
         exec 9>&-; wait %1; sleep 60"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("container");
    container.wait_for("serving");
    // One that waits and one that serves.
    let both = settled(&site.machine, "slirp4netns", 2);
    let (outer, inner) = (&both[0], &both[1]);
    assert_eq!(own(&site.machine, outer), ["user"]);
    assert_eq!(own(&site.machine, inner), ALL);
    assert_confined(&site.machine, outer, false);
    assert_confined(&site.machine, inner, false);
    assert_rootless(&site, inner);
    // Ports are published, and the list of resolvers is followed when another is renamed over it.
    let socket = site.path("home/api");
    let request =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8100,"guest_port":80}}"#;
    let answer = site
        .run(&[], &["python3", "-c", ASK, &socket, request])
        .expect_ok();
    assert_eq!(answer.trim(), r#"{"return":{"id":1}}"#);
    assert_eq!(who(&site, "SOCK_STREAM", "8100"), OUTSIDE[0]);
    let mut names = site.machine.spawn(&[
        "dnsmasq",
        "-k",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--listen-address=127.0.0.53",
        "--bind-interfaces",
        "--host-record=www.example,203.0.113.7",
        "--log-facility=-",
    ]);
    names.wait_for("started");
    site.write("home/asked", "");
    container.wait_for("198.51.100.254");
    let replace = "echo nameserver 127.0.0.53 >/etc/new; mv /etc/new /etc/resolv.conf";
    site.machine.ok(&["sh", "-ec", replace]);
    container.wait_for("203.0.113.7");
    // The descriptor hangs up.
    none_is_left(&site, "slirp4netns");
    assert!(!std::path::Path::new(&socket).exists());
}

#[test]
fn both_halves_end_together() {
    let lab = user_lab!("isolation-ends", "newuidmap");
    let site = Site::new(&lab);
    let start = "slirp4netns -c --enable-sandbox --enable-seccomp --api-socket api $P & S=$!
         until inside ip -br addr | grep -q 10.0.2.100 && [ -S api ]; do sleep 0.01; done
         C=; until [ -n \"$C\" ]; do C=$(cat /proc/$S/task/$S/children); done\n";
    let end = "\nwait $S && echo ended 0 || echo ended $?; until ! pidof slirp4netns; do sleep 0.01; done; ls\n";
    for (how, code, removed) in [
        ("kill -TERM $S", 0, true),
        ("kill -INT $S", 0, true),
        ("kill -TERM $C", 0, true),
        // The container's end.
        ("kill -KILL $P", 0, true),
        ("kill -KILL $C", 1, true),
        // As it was before: nobody is left to remove it.
        ("kill -KILL $S", 137, false),
    ] {
        let said = script(&site, &format!("{start}{how}{end}"));
        assert!(said.contains(&format!("ended {code}")), "{how}: {said}");
        assert_eq!(said.lines().all(|l| l != "api"), removed, "{how}: {said}");
    }
    // Who has started it asks the kernel for the same, as RootlessKit does.
    let said = script(
        &site,
        "bash -c 'setpriv --pdeathsig KILL slirp4netns -c --enable-sandbox --enable-seccomp $0 & sleep 60' $P & B=$!
         until inside ip -br addr | grep -q 10.0.2.100; do sleep 0.01; done
         until [ $(pidof slirp4netns | wc -w) = 2 ]; do sleep 0.01; done; kill -KILL $B; until ! pidof slirp4netns; do sleep 0.01; done; echo gone with it",
    );
    assert!(said.contains("gone with it"), "{said}");
}

#[test]
fn pasta_is_by_itself_and_follows_ports() {
    let lab = user_lab!("isolation-pasta", "newuidmap");
    let site = Site::new(&lab);
    etc(&site);
    let text = format!(
        "{CONTAINER}
         pasta --config-net -t auto -u none --dns-forward 169.254.1.1 --no-map-gw --pid number $P
         [ $(cat number) = $(pidof pasta) ]; echo container $P
         inside python3 -c '{WHO}' 8120 8120"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    // In the background there is one.
    let pid = &settled(&site.machine, "pasta", 1)[0];
    assert_eq!(own(&site.machine, pid), ALL);
    assert_confined(&site.machine, pid, false);
    assert_rootless(&site, pid);
    wait_until("what is listened on is published", || {
        who(&site, "SOCK_STREAM", "8120") == OUTSIDE[0]
    });
    site.run(&[], &["kill", pid]).expect_ok();
    none_is_left(&site, "pasta");
    // In the foreground the one that is known waits, and passes on.
    let said = script(
        &site,
        "rm number; pasta --config-net -f -t none -u none --pid number $P & S=$!
         until inside ip -br addr | grep -q 198.51.100.1 && [ -s number ]; do sleep 0.01; done
         [ $(cat number) = $S ]; until [ $(pidof pasta | wc -w) = 2 ]; do sleep 0.01; done
         kill $S; wait $S; echo ended $?; ! pidof pasta
         pasta --config-net -f -t none -u none -I eth7 $P & S=$!
         until inside ip -br addr | grep -q eth7.*198.51.100.1; do sleep 0.01; done
         kill -KILL $S; until ! pidof pasta; do sleep 0.01; done; echo gone with it",
    );
    assert!(
        said.contains("ended 0") && said.contains("gone with it"),
        "{said}"
    );
}

#[test]
fn who_opens_sockets_in_the_container_can_do_nothing_else() {
    let lab = user_lab!("isolation-opener", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         pasta --config-net -t none -u none --no-map-gw -T auto --pid number $P
         [ $(cat number) = $(pidof pasta | tr ' ' '\\n' | sort -n | tail -1) ]
         exec python3 -c '{WHO}' 8130 8130"
    );
    let mut host = site.spawn(&[], &["bash", "-ec", &text]);
    host.wait_for("serving");
    let both = settled(&site.machine, "pasta", 2);
    let (opener, server) = (&both[0], &both[1]);
    // In the container's namespaces, with its right to ports below 1024.
    assert_eq!(own(&site.machine, opener), ["net", "user"]);
    assert_confined(&site.machine, opener, true);
    assert_eq!(own(&site.machine, server), ALL);
    assert_confined(&site.machine, server, false);
    assert_rootless(&site, server);
    // What the host listens on is found from there.
    let ask = ["python3", "-c", ASK_WHO, "SOCK_STREAM", "127.0.0.1", "8130"];
    let inside = ["nsenter", "--user", "--net", "-t", opener];
    wait_until("the host's port to be the container's", || {
        site.machine.run(&[&inside[..], &ask].concat()).stdout == "127.0.0.1\n"
    });
    site.machine.ok(&["kill", "-KILL", server]);
    none_is_left(&site, "pasta");
}

/// A container of root's, and one of ours for it with these options; its processes.
fn of_root(site: &Site, options: &str) -> (vswitch_tests::Background, Vec<String>) {
    let text = format!(
        "cd \"$0\"; rm -f up; unshare --net sh -c 'echo up; exec sleep 60' >up & P=$!
         until grep -q up up; do sleep 0.01; done
         bin/slirp4netns -c --enable-sandbox --enable-seccomp {options} $P tap0 &
         until nsenter --net -t $P ip -br addr | grep -q 10.0.2.100; do sleep 0.01; done
         nsenter --net -t $P python3 -c '{WHO}' 80 81"
    );
    let mut container = site.machine.spawn(&["bash", "-ec", &text, &site.path("")]);
    container.wait_for("serving");
    let found = settled(&site.machine, "slirp4netns", 2);
    (container, found)
}

#[test]
fn a_real_root_keeps_what_publishing_takes() {
    let lab = user_lab!("isolation-root", "newuidmap");
    let site = Site::new(&lab);
    let (container, found) = of_root(&site, "");
    assert_eq!(own(&site.machine, &found[1]), ALL);
    assert_confined(&site.machine, &found[1], false);
    assert_rootless(&site, &found[1]);
    site.machine.ok(&["kill", &found[0]]);
    none_is_left(&site, "slirp4netns");
    drop(container);
    let api = site.path("root.api");
    let (_container, found) = of_root(&site, &format!("--api-socket {api}"));
    assert_eq!(
        own(&site.machine, &found[1]),
        ["cgroup", "ipc", "mnt", "pid", "uts"]
    );
    assert_confined(&site.machine, &found[0], false);
    assert_confined(&site.machine, &found[1], true);
    assert_rootless(&site, &found[1]);
    let request =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":88,"guest_port":80}}"#;
    let answer = site.machine.ok(&["python3", "-c", ASK, &api, request]);
    assert_eq!(answer.trim(), r#"{"return":{"id":1}}"#);
    assert_eq!(who(&site, "SOCK_STREAM", "88"), OUTSIDE[0]);
    site.machine.ok(&["kill", &found[0]]);
    none_is_left(&site, "slirp4netns");
    assert!(!std::path::Path::new(&api).exists());
}

#[test]
fn where_namespaces_are_forbidden_it_says_so_and_serves() {
    let lab = user_lab!("isolation-forbidden", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}
         for n in user pid; do echo 0 >/proc/sys/user/max_${{n}}_namespaces; done
         slirp4netns -c --enable-sandbox --enable-seccomp --api-socket api $P & S=$!
         until inside ip -br addr | grep -q 10.0.2.100 && [ -S api ]; do sleep 0.01; done
         inside dig +short @10.0.2.3 www.example; pidof slirp4netns | wc -w
         grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/$S/status
         kill $S; wait $S; [ ! -e api ]; echo ended
         pasta --config-net -f -q -t none -u none $P & S=$!
         until inside ip -br addr | grep -q 198.51.100.1; do sleep 0.01; done
         kill $S; wait $S; echo ended too"
    );
    let out = site.run(
        &[],
        &["unshare", "--user", "--map-root-user", "bash", "-ec", &text],
    );
    let said = out.expect_ok();
    let wanted = "198.51.100.254\n1\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nended\nended too\n";
    assert_eq!(said, wanted);
}

/// A user's switch that has given up what it can.
const SWITCH: &str = "
begin() { vswitchd run --sandbox 2>>log & D=$!; until vswitchctl network show; do sleep 0.05; done; }
begin
vswitchctl network add containers
vswitchctl gateway set containers --addresses 10.0.2.2/24,10.0.2.3/32 --dns on --dns-at 10.0.2.3 --host-uplink on
slirp() { VSWITCH_ATTACH=containers,name=one slirp4netns -c --enable-sandbox --enable-seccomp --api-socket api $P & S=$!; }
";

#[test]
fn a_sandboxed_vswitchd_serves_containers_that_are_handed_over() {
    let lab = user_lab!("isolation-vswitchd", "newuidmap");
    let site = Site::new(&lab);
    let text = format!(
        "{CONTAINER}{SWITCH}
         slirp; until inside ip -br addr | grep -q 10.0.2. && [ -S api ]; do sleep 0.01; done
         inside dig +short @10.0.2.3 www.example
         echo outside $(inside curl -s http://198.51.100.254:8000/peer)
         vswitchctl attach --pid $P --ip 10.0.2.9/24 --name two containers || echo refused $?
         vswitchctl port add away --network containers --kind stream --listen /tmp/away || echo no such place $?
         vswitchctl port add near --network containers --kind stream --listen $XDG_RUNTIME_DIR/near && echo near
         kill $D; wait $D; begin
         until vswitchctl port show one | grep -q up; do sleep 0.05; done; vswitchctl gateway show containers
         inside python3 -c '{WHO}' 80 81"
    );
    let mut container = site.spawn(&[], &["bash", "-ec", &text]);
    container.wait_for("serving");
    let said = container.output();
    for what in [
        "198.51.100.254\n",
        "outside 198.51.100.1\n",
        "given up with --sandbox; have slirp4netns or pasta",
        "refused 1",
        "no such place 1",
        "near\n",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    let daemon = settled(&site.machine, "vswitchd", 1);
    let script = "cat /proc/$0/task/*/status | grep -E '^(Seccomp|NoNewPrivs|CapEff):' | sort -u";
    let status = site.machine.ok(&["sh", "-c", script, &daemon[0]]);
    assert_eq!(
        status,
        "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    // The one that hands over sees nothing but the daemon's directory besides.
    let both = settled(&site.machine, "slirp4netns", 2);
    assert_eq!(own(&site.machine, &both[1]), ALL);
    assert_confined(&site.machine, &both[1], false);
    let request =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8100,"guest_port":80}}"#;
    let api = site.path("home/api");
    let answer = site.run(&[], &["python3", "-c", ASK, &api, request]);
    assert_eq!(answer.expect_ok().trim(), r#"{"return":{"id":1}}"#);
    assert_eq!(who(&site, "SOCK_STREAM", "8100"), OUTSIDE[0]);
}
