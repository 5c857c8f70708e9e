//! Open vSwitch: database and daemon with directories of their own, a bridge of datapath type netdev, userspace TSO on.

use std::time::{Duration, Instant};

use anyhow::ensure;
use vswitch_tests::{Background, Lab, Node};

use super::kernel::{NEAR, star};
use super::{Bed, checked};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

pub(super) fn start(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b, middle) = star(lab, mtu)?;
    let dir = lab.dir().join("ovs");
    let dir = dir.to_string_lossy();
    checked(middle.run(&["rm", "-rf", &dir]))?;
    checked(middle.run(&["mkdir", "-p", &dir]))?;
    let ovs = Ovs {
        node: &middle,
        dir: &dir,
    };
    let (db, sock) = (format!("{dir}/conf.db"), format!("{dir}/db.sock"));
    ovs.run(&["ovsdb-tool", "create", &db, SCHEMA])?;
    let remote = format!("--remote=punix:{sock}");
    let database = ovs.spawn(&["ovsdb-server", &db, &remote, "--pidfile"]);
    ovs.vsctl(&["--no-wait", "init"])?;
    ovs.vsctl(&[
        "--no-wait",
        "set",
        "Open_vSwitch",
        ".",
        "other_config:userspace-tso-enable=true",
    ])?;
    let daemon = ovs.spawn(&["ovs-vswitchd", &format!("unix:{sock}"), "--pidfile"]);
    ovs.vsctl(&[
        "add-br",
        "br0",
        "--",
        "set",
        "bridge",
        "br0",
        "datapath_type=netdev",
    ])?;
    for near in NEAR {
        ovs.vsctl(&["add-port", "br0", near])?;
    }
    let switch = vec![daemon.pid()];
    let mut bed = Bed::of_processes(a, b, vec![middle], vec![daemon, database]);
    // The database is idle while frames pass.
    bed.switch = switch;
    Ok(bed)
}

struct Ovs<'a> {
    node: &'a Node,
    dir: &'a str,
}

impl Ovs<'_> {
    fn argv<'a>(dirs: &'a [String; 4], argv: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["env"];
        all.extend(dirs.iter().map(String::as_str));
        all.extend(argv);
        all
    }

    fn dirs(&self) -> [String; 4] {
        ["RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR"].map(|name| format!("OVS_{name}={}", self.dir))
    }

    fn run(&self, argv: &[&str]) -> anyhow::Result<String> {
        checked(self.node.run(&Self::argv(&self.dirs(), argv)))
    }

    fn spawn(&self, argv: &[&str]) -> Background {
        self.node.spawn(&Self::argv(&self.dirs(), argv))
    }

    /// Tries again while the database's socket isn't there.
    fn vsctl(&self, args: &[&str]) -> anyhow::Result<()> {
        let argv = [&["ovs-vsctl", "--timeout=10"], args].concat();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let output = self.node.run(&Self::argv(&self.dirs(), &argv));
            if output.success() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end && output.stderr.contains("connect"),
                "{output}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
