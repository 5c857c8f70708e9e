//! Containers of podman at one switch of their user's, who runs it as an ordinary process.

use crate::podman::Podman;
use crate::site::{MACHINE, OUTSIDE, Site};
use crate::slirp4netns::{CONTAINER, script};
use crate::user_lab;
use vswitch_tests::{Background, wait_until};

/// Starts the user's switch, with a network that has addresses where engines look for them.
fn switch(site: &Site) -> Background {
    let daemon = site.spawn(&[], &["vswitchd", "run"]);
    wait_until("the user's switch answers", || {
        site.run(&[], &["vswitchctl", "network", "show"]).success()
    });
    daemon
}

#[track_caller]
fn ctl(site: &Site, words: &str) -> String {
    // A space within a word is written ~.
    let words: Vec<String> = words
        .split_whitespace()
        .map(|w| w.replace('~', " "))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    site.run(&[], &[&["vswitchctl"], &words[..]].concat())
        .expect_ok()
}

fn network(site: &Site) {
    ctl(site, "network add containers");
    ctl(
        site,
        "gateway set containers --addresses 10.0.2.2/24,10.0.2.3/32,fd00::2/64 --dns on --dns-at 10.0.2.3 --host-uplink on",
    );
}

#[test]
fn podman_containers_share_a_switch() {
    let lab = user_lab!("attach-podman", "podman", "runc", "newuidmap");
    let site = Site::new(&lab);
    let mut daemon = switch(&site);
    network(&site);
    std::fs::create_dir_all(site.path("home/.config/vswitch")).expect("make a directory");
    site.write(
        "home/.config/vswitch/attach.toml",
        "network = \"containers\"\nlabels = [\"shop\"]\n",
    );
    let p = Podman::new(site);
    let site = &p.site;
    let run = |name: &str, more: &[&str], script: &str| {
        let base = ["run", "-d", "--name", name];
        p.run(&[&base, more, &["bb:1", "sh", "-c", script]].concat())
            .expect_ok();
    };
    let by_api = [
        "-p",
        "8084:80",
        "--network",
        "slirp4netns:port_handler=slirp4netns",
    ];
    run("web", &by_api, &Site::server("web"));
    // Podman's own forwarder connects inside to where it takes the container to be.
    run("db", &["-p", "8085:80"], &Site::server("db"));
    // The default network of podman names no container: they know each other by the switch.
    let inside = |from: &str, script: &str| p.run(&["exec", from, "sh", "-c", script]);
    for (from, to) in [("web", "db"), ("db", "web")] {
        inside(from, &format!("ping -c 2 {to}")).expect_ok();
    }
    let transfers = Site::transfers(false);
    site.assert_transfers(&inside("web", &transfers).expect_ok(), false);
    site.assert_published(MACHINE[0], "8084", "web");
    site.assert_published(MACHINE[0], "8085", "db");
    let asked = p.run(&["logs", "web"]);
    let asked = format!("{}{}", asked.stdout, asked.stderr);
    assert!(
        asked.contains(OUTSIDE[0]),
        "the client's own address: {asked}"
    );
    // All of the switch's means are there for them.
    let ports = ctl(site, "port show web");
    assert!(
        ports.contains("slirp4netns") && ports.contains("shop"),
        "{ports}"
    );
    assert!(ctl(site, "publish show").contains("web-tcp:8084"));
    assert!(ctl(site, "stats web --json").contains("web"));
    ctl(
        site,
        "policy add closed --from port:db --to port:web --default drop --rule accept~proto~icmp,icmp6",
    );
    inside("db", "ping -c 2 web").expect_ok();
    let refused = inside("db", "timeout 3 wget -q -O - http://web/name");
    assert!(!refused.success(), "{refused}");
    inside("web", "wget -q -O - http://db/name").expect_ok();
    let policy = ctl(site, "policy show closed --json");
    let counted = policy.matches("\"judged\": 0").count();
    assert!(policy.contains("\"judged\"") && counted == 0, "{policy}");
    ctl(site, "policy del closed");
    // They aren't configuration.
    let exported = ctl(site, "export");
    assert!(
        !exported.contains("[ports") && !exported.contains("[publish"),
        "{exported}"
    );
    // A daemon that is started anew gets them back, as they were.
    let before = inside("db", "ip -4 addr show tap0").expect_ok();
    daemon.kill();
    let _daemon = switch(site);
    wait_until("both containers are attached again", || {
        let ports = ctl(site, "port show");
        ports.matches(" up").count() == 2
    });
    assert_eq!(inside("db", "ip -4 addr show tap0").expect_ok(), before);
    inside("db", "ping -c 2 web").expect_ok();
    site.assert_published(MACHINE[0], "8084", "web");
    // They go with their containers, also when ours is killed.
    p.run(&["rm", "-f", "-t", "0", "web"]).expect_ok();
    wait_until("the port goes with its container", || {
        !ctl(site, "port show").contains("web")
    });
    assert!(!ctl(site, "publish show").contains("tcp:8084"));
    site.machine
        .ok(&["sh", "-c", "kill -KILL $(pidof slirp4netns)"]);
    wait_until("the port goes with its program", || {
        !ctl(site, "port show").contains("db")
    });
    p.run(&["rm", "-f", "-t", "0", "db"]).expect_ok();
}

#[test]
fn pasta_by_hand() {
    let lab = user_lab!("attach-pasta", "newuidmap");
    let site = Site::new(&lab);
    let text = |attach: &str| {
        // What is left of one attempt has its port for a while.
        let port = if attach.contains("fallback") {
            8087
        } else {
            8086
        };
        format!(
            "export VSWITCH_ATTACH={attach}
             pasta --config-net -t {port}:80 -u none --dns-forward 10.0.2.3 --no-map-gw $P || echo code $?
             echo outside $(inside curl -s http://198.51.100.254:8000/peer)
             inside ip -br addr"
        )
    };
    // Nobody is there: told, or done without.
    let alone = script(&site, &text("containers"));
    assert!(
        alone.contains("code 1") && alone.contains("start it with"),
        "{alone}"
    );
    let alone = script(&site, &text("containers,fallback"));
    assert!(alone.contains("outside 198.51.100.1"), "{alone}");
    assert!(!alone.contains("code"), "{alone}");
    let wrong = script(&site, &text("containers,nam=web"));
    assert!(
        wrong.contains("code 1") && wrong.contains("`nam=web` isn't one of"),
        "{wrong}"
    );
    let _daemon = switch(&site);
    let missing = script(&site, &text("containers"));
    assert!(missing.contains("network `containers`"), "{missing}");
    ctl(&site, "network add containers");
    let bare = script(&site, &text("containers"));
    assert!(bare.contains("gateway set"), "{bare}");
    network_again(&site);
    let held = format!(
        "{CONTAINER}
         {}
         inside dig +short @10.0.2.3 one.containers.internal
         inside python3 -m http.server 80 >web 2>&1 & wait",
        text("containers,name=one,label=shop")
    );
    let one = site.spawn(&[], &["bash", "-ec", &held]);
    wait_until("the published port leads to the container", || {
        let url = format!("http://{}:8086/", MACHINE[0]);
        site.outside
            .run(&["curl", "-s", "-o", "/dev/null", "--max-time", "5", &url])
            .success()
    });
    let port = ctl(&site, "port show one");
    assert!(
        port.contains("pasta") && port.contains("shop") && port.contains("fd00::"),
        "{port}"
    );
    let printed = one.output();
    assert!(printed.contains("outside 198.51.100.1"), "{printed}");
    assert!(printed.matches("10.0.2.").count() > 1, "{printed}");
    site.machine.ok(&["sh", "-c", "kill -KILL $(pidof pasta)"]);
    wait_until("the port goes with its program", || {
        !ctl(&site, "port show").contains("one")
    });
}

#[test]
fn a_program_ends_whose_port_is_deleted() {
    let lab = user_lab!("attach-deleted", "newuidmap");
    let site = Site::new(&lab);
    let _daemon = switch(&site);
    network(&site);
    for start in ["slirp4netns -c $P", "pasta --config-net -f $P"] {
        let said = script(
            &site,
            &format!(
                "export VSWITCH_ATTACH=containers,name=web
                 {start} & S=$!
                 until vswitchctl port show web | grep -q up; do sleep 0.05; done
                 vswitchctl port del web
                 wait $S || echo ended $?
                 vswitchctl port show"
            ),
        );
        let why = "keeping container `web` attached: its port was deleted; start the container";
        assert!(said.contains(why) && said.contains("ended 1"), "{said}");
        assert_eq!(said.matches("web ").count(), 0, "{said}");
    }
}

fn network_again(site: &Site) {
    ctl(site, "network del containers");
    network(site);
}
