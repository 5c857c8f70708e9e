//! RootlessKit with ours as its slirp4netns, publishing by its own port driver and by our API socket.

use crate::site::{MACHINE, Site, debian13};
use crate::user_lab;
use std::time::Duration;
use vswitch_tests::wait_until;

/// Runs a script in a copy of the image, with the names that RootlessKit has written down.
const IN_IMAGE: &str =
    r#"cp -r "$0" "$1"; cp /etc/resolv.conf "$1/etc/"; exec chroot "$1" /bin/sh -c "$2""#;

/// RootlessKit with these options of its network and ports.
fn argv(site: &Site, name: &str, options: &[&str], script: &str) -> Vec<String> {
    let kit = [
        "rootlesskit",
        &format!("--state-dir={}", site.path(&format!("run/{name}"))),
        "--disable-host-loopback",
        "--mtu=65520",
        "--copy-up=/etc",
        "--copy-up=/run",
    ]
    .map(str::to_owned);
    let (image, copy) = (site.path("image"), site.path(&format!("home/{name}")));
    let inside = ["sh", "-ec", IN_IMAGE, &image, &copy, script];
    let rest = options.iter().chain(&inside).map(ToString::to_string);
    kit.into_iter().chain(rest).collect()
}

#[test]
fn both_port_drivers() {
    let lab = user_lab!("rootlesskit", "rootlesskit", "newuidmap");
    let site = Site::new(&lab);
    let binary = format!("--slirp4netns-binary={}", site.path("bin/slirp4netns"));
    let run = |name: &str, cidr: &str, driver: &[&str], script: &str| {
        let cidr = format!("--cidr={cidr}");
        let net = [
            "--net=slirp4netns",
            &binary,
            "--slirp4netns-sandbox=auto",
            "--slirp4netns-seccomp=auto",
            "--ipv6",
            &cidr,
        ];
        let argv = argv(&site, name, &[&net, driver].concat(), script);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        site.spawn(&["PATH=/usr/bin:/bin:/usr/sbin:/sbin"], &argv)
    };
    let transfers = Site::transfers(true);
    let both = ["10.0.3.0/24", "10.0.4.0/24"].map(|cidr| {
        let name = format!("t{}", cidr.replace(['.', '/'], "-"));
        run(&name, cidr, &["--port-driver=none"], &transfers)
    });
    for c in both {
        let printed = c.finish(Duration::from_secs(60)).expect_ok();
        site.assert_transfers(&printed, true);
    }
    for (driver, port) in [("builtin", "8095"), ("slirp4netns", "8096")] {
        let publish = format!("-p=0.0.0.0:{port}:80/tcp");
        let options = [&format!("--port-driver={driver}"), publish.as_str()];
        let mut server = run(driver, "10.0.3.0/24", &options, &Site::server(driver));
        server.wait_for("up");
        site.assert_published(MACHINE[0], port, driver);
        let ended = server.interrupt();
        assert!(!ended.timed_out, "{ended}");
        wait_until("our program ends with it", || {
            !site.machine.run(&["pidof", "slirp4netns"]).success()
        });
    }
}

/// RootlessKit 2 of Debian 13; its port driver `implicit` is pasta's own following of ports.
#[test]
fn with_pasta() {
    let lab = user_lab!("rootlesskit2", "busybox");
    let Some(root) = debian13() else {
        vswitch_tests::skip!("no Debian 13 below target/trixie: `tests/run` makes one");
    };
    let site = Site::on(&lab, Some(&root));
    let run = |name: &str, options: &[&str], script: &str| {
        let binary = format!("--pasta-binary={}", site.path("bin/pasta"));
        let net = ["--net=pasta", binary.as_str()];
        let argv = argv(&site, name, &[&net[..], options].concat(), script);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        site.spawn(&[], &argv)
    };
    let transfers = Site::transfers(false);
    let both = ["one", "two"].map(|name| run(name, &["--port-driver=none"], &transfers));
    for c in both {
        let printed = c.finish(Duration::from_secs(60)).expect_ok();
        site.assert_transfers(&printed, false);
    }
    // It listens on port 80 of the machine, which takes a privilege: another one.
    let script = Site::server("kit").replace("-p 80", "-p 8094");
    let mut server = run("ports", &["--port-driver=implicit"], &script);
    server.wait_for("up");
    site.assert_published(MACHINE[0], "8094", "kit");
    let ended = server.interrupt();
    assert!(!ended.timed_out, "{ended}");
    wait_until("our program ends with it", || {
        !site.machine.run(&["pidof", "pasta"]).success()
    });
}
