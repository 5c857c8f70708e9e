//! Podman 4, rootless, with `network_cmd_path` set to ours, and podman 5 with ours as its pasta.

use crate::site::debian13;
use crate::site::{MACHINE, OUTSIDE, Site};
use crate::user_lab;
use vswitch_tests::{Background, Output, wait_until};

pub(crate) struct Podman {
    pub(crate) site: Site,
    conf: String,
}

impl Podman {
    pub(crate) fn new(site: Site) -> Podman {
        let path = site.path("bin/slirp4netns");
        Podman::with(site, &format!("network_cmd_path = \"{path}\""), "")
    }

    /// With further lines of the configuration's parts `engine` and `network`.
    fn with(site: Site, engine: &str, network: &str) -> Podman {
        let conf = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             log_driver = \"k8s-file\"\n\
             [engine]\n\
             {engine}\n\
             runtime = \"runc\"\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             [network]\n\
             {network}\n"
        );
        site.write("containers.conf", &conf);
        let conf = format!("CONTAINERS_CONF={}", site.path("containers.conf"));
        let podman = Podman { site, conf };
        let image = podman.site.path("image.tar");
        podman
            .run(&["import", "-c", "ENV PATH=/bin", &image, "bb:1"])
            .expect_ok();
        podman
    }

    fn argv<'a>(args: &[&'a str]) -> Vec<&'a str> {
        [&["podman", "--storage-driver", "vfs"], args].concat()
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.site.run(&[&self.conf], &Podman::argv(args))
    }

    /// With variables of the environment.
    #[track_caller]
    pub(crate) fn run_with(&self, env: &[&str], args: &[&str]) -> Output {
        let env = [&[self.conf.as_str()], env].concat();
        self.site.run(&env, &Podman::argv(args))
    }

    /// So many processes of the name run, and they are ours.
    #[track_caller]
    fn assert_ours(&self, name: &str, count: usize) {
        let script = format!("for p in $(pidof {name}); do readlink /proc/$p/exe; done");
        let found = self.site.machine.ok(&["sh", "-c", &script]);
        let ours = self.site.path(&format!("bin/{name}"));
        assert_eq!(found.lines().collect::<Vec<_>>(), vec![ours; count]);
        // All of their threads have given up what they don't need: at most CAP_NET_BIND_SERVICE is left.
        let script = format!(
            "for p in $(pidof {name}); do cat /proc/$p/task/*/status; done | grep -E '^(Seccomp|NoNewPrivs|Cap(Eff|Prm)):' | sort -u"
        );
        let status = self.site.machine.ok(&["sh", "-c", &script]);
        for line in status.lines() {
            let sound = match line.split_once(":\t") {
                Some(("Seccomp", mode)) => mode == "2",
                Some(("NoNewPrivs", on)) => on == "1",
                Some((_, set)) => ["0000000000000000", "0000000000000400"].contains(&set),
                None => false,
            };
            assert!(sound, "{status}");
        }
        assert!(status.lines().count() >= 4, "{status}");
    }

    #[track_caller]
    fn spawn(&self, args: &[&str]) -> Background {
        self.site.spawn(&[&self.conf], &Podman::argv(args))
    }
}

#[test]
fn containers_reach_outside_and_are_reached() {
    let lab = user_lab!("podman", "podman", "runc", "newuidmap");
    let p = Podman::new(Site::new(&lab));
    // Two at once, each with a switch of its own.
    let script = Site::transfers(true);
    let both = ["one", "two"].map(|_| p.spawn(&["run", "--rm", "bb:1", "sh", "-c", &script]));
    for c in both {
        let printed = c.finish(std::time::Duration::from_secs(60)).expect_ok();
        p.site.assert_transfers(&printed, true);
    }
    // Publishing by podman's own rootlessport, and by our API socket.
    let by = [("a", "8081", "rootlesskit"), ("b", "8082", "slirp4netns")];
    for (name, port, handler) in by {
        let published = format!("{port}:80");
        let network = format!("slirp4netns:port_handler={handler}");
        p.run(&[
            "run",
            "-d",
            "--name",
            name,
            "-p",
            &published,
            "--network",
            &network,
            "bb:1",
            "sh",
            "-c",
            &Site::server(name),
        ])
        .expect_ok();
    }
    for (name, port, _) in by {
        p.site.assert_published(MACHINE[0], port, name);
    }
    // One that serves each, and one that waits for it.
    p.assert_ours("slirp4netns", 4);
    // What our API socket publishes keeps the client's address.
    let asked = p.run(&["logs", "b"]);
    let asked = format!("{}{}", asked.stdout, asked.stderr);
    assert!(asked.contains(OUTSIDE[0]), "{asked}");
    p.run(&["rm", "-f", "-t", "0", "a", "b"]).expect_ok();
    wait_until("our programs end with their containers", || {
        !p.site.machine.run(&["pidof", "slirp4netns"]).success()
    });
}

#[test]
fn a_network_of_podman_s_own() {
    let lab = user_lab!("podman-net", "podman", "runc", "newuidmap", "iptables");
    a_network(&Podman::new(Site::new(&lab)));
}

fn a_network(p: &Podman) {
    p.run(&["network", "create", "own"]).expect_ok();
    let server = Site::server("a");
    let ours = ["run", "-d", "--network", "own"];
    let a = [
        &ours[..],
        &["--name", "a", "-p", "8083:80", "bb:1", "sh", "-c", &server],
    ]
    .concat();
    p.run(&a).expect_ok();
    p.site.assert_published(MACHINE[0], "8083", "a");
    let script = format!(
        "set -e; wget -q -O - http://a/name; {}",
        Site::transfers(false)
    );
    let out = p.run(&[
        "run",
        "--rm",
        "--network",
        "own",
        "bb:1",
        "sh",
        "-c",
        &script,
    ]);
    let printed = out.expect_ok();
    assert!(printed.starts_with("a\n"), "{printed}");
    p.site.assert_transfers(&printed, false);
}

/// Podman 5 of Debian 13, whose own root takes the place of the machine's.
fn podman5(lab: &vswitch_tests::Lab, root: &str) -> Podman {
    let site = Site::on(lab, Some(root));
    let dirs = format!(
        "helper_binaries_dir = [\"{}\", \"/usr/lib/podman\", \"/usr/libexec/podman\"]",
        site.path("bin")
    );
    Podman::with(site, &dirs, "firewall_driver = \"iptables\"")
}

#[test]
fn podman_5_with_pasta() {
    let lab = user_lab!("podman5", "busybox");
    let Some(root) = debian13() else {
        vswitch_tests::skip!("no Debian 13 below target/trixie: `tests/run` makes one");
    };
    let p = podman5(&lab, &root);
    let script = Site::transfers(true);
    let both = ["one", "two"].map(|_| p.spawn(&["run", "--rm", "bb:1", "sh", "-c", &script]));
    for c in both {
        let printed = c.finish(std::time::Duration::from_secs(60)).expect_ok();
        p.site.assert_transfers(&printed, true);
    }
    for (name, port) in [("a", "8081"), ("b", "8082")] {
        let published = format!("{port}:80");
        let base = ["run", "-d", "--name", name, "-p", &published, "bb:1"];
        let server = Site::server(name);
        let run = [&base[..], &["sh", "-c", &server]].concat();
        p.run_with(&["VSWITCH_CONTROL=auto"], &run).expect_ok();
        p.site.assert_published(MACHINE[0], port, name);
        let asked = p.run(&["logs", name]);
        let asked = format!("{}{}", asked.stdout, asked.stderr);
        assert!(asked.contains(OUTSIDE[0]), "{asked}");
    }
    p.site
        .assert_published(&format!("[{}]", MACHINE[1]), "8081", "a");
    // Both have a control socket, by which forwards are added and removed.
    let ctl = |words: &[&str]| p.site.run(&[], &[&["vswitchctl"], words].concat());
    let listed = ctl(&["--json", "instances"]).expect_ok();
    let all: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let of_a = all.as_array().expect("a list").iter();
    let of_a = of_a.filter(|i| i["container"] == "a");
    let socket = of_a.filter_map(|i| i["socket"].as_str()).next();
    let socket = socket.unwrap_or_else(|| panic!("{all}"));
    let to = format!("{}:80", MACHINE[0]);
    let publish = ["--socket", socket, "publish"];
    let add = ["add", "more", "--ports", "8083", "--to", &to];
    ctl(&[&publish[..], &add].concat()).expect_ok();
    p.site.assert_published(MACHINE[0], "8083", "a");
    ctl(&[&publish[..], &["del", "more"]].concat()).expect_ok();
    let url = format!("http://{}:8083/name", MACHINE[0]);
    assert!(!p.site.outside.run(&["curl", "-s", &url]).success());
    p.site.assert_published(MACHINE[0], "8081", "a");
    p.run(&["rm", "-f", "-t", "0", "a", "b"]).expect_ok();
    wait_until("our programs end with their containers", || {
        !p.site.machine.run(&["pidof", "pasta"]).success()
    });
}

#[test]
fn podman_5_with_a_network_of_its_own() {
    let lab = user_lab!("podman5-net", "busybox");
    let Some(root) = debian13() else {
        vswitch_tests::skip!("no Debian 13 below target/trixie: `tests/run` makes one");
    };
    a_network(&podman5(&lab, &root));
}
