//! dockerd without root, which finds ours in its path.

use crate::site::{MACHINE, Site};
use crate::user_lab;
use std::time::Duration;
use vswitch_tests::{Background, Output, wait_until};

const SCRIPT: &str = "/usr/share/docker.io/contrib/dockerd-rootless.sh";

struct Docker<'a> {
    site: &'a Site,
    host: String,
    _daemon: Background,
}

impl Docker<'_> {
    fn start<'a>(site: &'a Site, driver: &str) -> Docker<'a> {
        let host = format!("unix://{}/docker.sock", site.path("run"));
        let root = site.path("home/docker");
        let env = [
            "DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--ipv6",
            &format!("DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER={driver}"),
        ];
        let argv = [
            "sh",
            SCRIPT,
            "--storage-driver",
            "vfs",
            "-H",
            &host,
            "--data-root",
            &root,
        ];
        let mut daemon = site.spawn(&env, &argv);
        daemon.wait_for("API listen on");
        Docker {
            site,
            host,
            _daemon: daemon,
        }
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Output {
        self.site.run(&[], &self.argv(args))
    }

    fn argv<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["docker", "-H", &self.host], args].concat()
    }
}

fn works_with(site: &Site, driver: &str, port: &str) {
    let docker = Docker::start(site, driver);
    let image = site.path("image.tar");
    docker
        .run(&["import", "-c", "ENV PATH=/bin", &image, "bb:1"])
        .expect_ok();
    let (v4, v6) = (Site::transfers(false), Site::transfers(true));
    // One behind Docker's bridge, one beside it: its default bridge has no IPv6.
    let both = [
        (vec!["run", "--rm", "bb:1", "sh", "-c", &v4], false),
        (
            vec!["run", "--rm", "--net", "host", "bb:1", "sh", "-c", &v6],
            true,
        ),
    ];
    let both = both.map(|(args, six)| (site.spawn(&[], &docker.argv(&args)), six));
    for (c, six) in both {
        let printed = c.finish(Duration::from_secs(60)).expect_ok();
        site.assert_transfers(&printed, six);
    }
    let published = format!("{port}:80");
    let server = Site::server(driver);
    docker
        .run(&[
            "run", "-d", "--name", driver, "-p", &published, "bb:1", "sh", "-c", &server,
        ])
        .expect_ok();
    site.assert_published(MACHINE[0], port, driver);
    docker.run(&["rm", "-f", driver]).expect_ok();
}

#[test]
fn its_own_port_driver() {
    let lab = user_lab!(
        "docker",
        "dockerd",
        "rootlesskit",
        "dockerd-rootless.sh",
        "newuidmap",
        "iptables"
    );
    let site = Site::new(&lab);
    works_with(&site, "builtin", "8097");
    wait_until("our program ends with it", || {
        !site.machine.run(&["pidof", "slirp4netns"]).success()
    });
}

#[test]
fn our_api_socket() {
    let lab = user_lab!(
        "docker-api",
        "dockerd",
        "rootlesskit",
        "dockerd-rootless.sh",
        "newuidmap",
        "iptables"
    );
    works_with(&Site::new(&lab), "slirp4netns", "8098");
}
