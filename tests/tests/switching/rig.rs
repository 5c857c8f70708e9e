//! A container whose connections may be made by sockets of the host, which stands between it and a machine outside.

use serde_json::Value;
use std::time::Duration;
use vswitch_tests::{Background, Daemon, Lab, Node, attached, ground};
pub(crate) use vswitch_tests::{FAR, HOST};

const PEER: &str = include_str!("../slirp/peer.py");
pub(crate) const CLIENT: &str = include_str!("client.py");
pub(crate) struct Site {
    pub(crate) d: Daemon,
    pub(crate) a: Node,
    pub(crate) outside: Node,
}

/// Inside 192.0.2.0/24 and 2001:db8:1::/64, outside 198.51.100.0/24 and 2001:db8:2::/64.
pub(crate) fn site(lab: &Lab) -> Site {
    let (d, outside) = ground(lab, &["--socket-switching", "on"], |_| {});
    let a = attached(lab, &d, &[]);
    Site { d, a, outside }
}

/// Starts a server of peer.py.
pub(crate) fn serve(node: &Node, port: &str) -> Background {
    let mut server = node.spawn(&["/usr/bin/python3", "-c", PEER, "serve", port]);
    server.wait_for("serving");
    server
}

impl Site {
    /// The beginning of a command line that has sockets switched.
    fn run(&self) -> Vec<String> {
        let mut all = self.d.ctl_command().to_vec();
        all.extend(["run", "a", "--"].map(String::from));
        all
    }

    /// Starts a command in the container.
    pub(crate) fn start(&self, argv: &[&str]) -> Background {
        let run = self.run();
        let all: Vec<&str> = run
            .iter()
            .map(String::as_str)
            .chain(argv.iter().copied())
            .collect();
        self.a.spawn(&all)
    }

    fn python(&self, program: &str, args: &[&str]) -> String {
        let argv = [&["/usr/bin/python3", "-c", program], args].concat();
        let out = self.start(&argv).finish(Duration::from_secs(120));
        out.expect_ok().trim().to_owned()
    }

    /// Runs peer.py in the container; what it printed.
    pub(crate) fn peer(&self, args: &[&str]) -> String {
        self.python(PEER, args)
    }

    /// Runs client.py in the container; what it printed.
    pub(crate) fn client(&self, args: &[&str]) -> String {
        self.python(CLIENT, args)
    }

    pub(crate) fn start_client(&self, args: &[&str]) -> Background {
        self.start(&[&["/usr/bin/python3", "-c", CLIENT], args].concat())
    }

    /// The same, without a filter.
    pub(crate) fn start_plain(&self, args: &[&str]) -> Background {
        self.a
            .spawn(&[&["/usr/bin/python3", "-c", CLIENT], args].concat())
    }

    /// What the daemon has counted.
    pub(crate) fn counts(&self) -> Value {
        self.d.ctl_json(&["port", "show", "a"])[0]["switching"].clone()
    }

    pub(crate) fn switched(&self) -> u64 {
        self.counts()["switched"].as_u64().unwrap_or(0)
    }

    /// Connections that went by the network for this reason.
    pub(crate) fn by_network(&self, why: &str) -> u64 {
        self.counts()["network"][why].as_u64().unwrap_or(0)
    }

    /// Bytes that the port has received and sent.
    pub(crate) fn port_bytes(&self) -> u64 {
        let all = self.d.ctl_json(&["stats", "a"]);
        let port = &all["ports"][0];
        let of = |field: &str| port[field].as_u64().expect("a count");
        of("rx_bytes") + of("tx_bytes")
    }

    /// Connections by sockets of the host, as shown.
    pub(crate) fn connections(&self) -> Vec<Value> {
        let all = self.d.ctl_json(&["conntrack", "show"]);
        let all = all.as_array().expect("a list").iter();
        all.filter(|c| c["switched"] == true).cloned().collect()
    }
}
