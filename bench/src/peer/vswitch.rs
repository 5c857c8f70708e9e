//! vswitchd as a person runs it: started, a network added, both containers attached by vswitchctl.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vswitch_tests::{Background, Lab, Node};

use super::{ADDRESSES, Bed, checked, containers};

/// Names of the ports.
const PORTS: [&str; 2] = ["a", "b"];

/// A daemon with 1,000 ports on a busy machine takes seconds.
const READY: Duration = Duration::from_secs(60);

/// A build of vswitch, and how its daemon is started.
#[derive(Debug)]
pub(crate) struct Build {
    pub(super) dir: PathBuf,
    pub(crate) args: Vec<String>,
}

impl Build {
    /// What is beside this program, without further arguments.
    pub(crate) fn of_this_tree() -> Self {
        Self {
            dir: crate::machine::bin_dir(),
            args: vec![],
        }
    }

    /// Path of a program of it.
    pub(super) fn program(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

/// Where a daemon of a lab is, of which there can be several.
#[derive(Debug)]
pub(crate) struct Switch {
    pub(crate) host: Node,
    build: Build,
    socket: PathBuf,
    topology: PathBuf,
}

impl Switch {
    pub(crate) fn new(lab: &Lab, build: Build) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            host: lab.host("vswitchd"),
            build,
            socket: lab.dir().join(format!("vswitchd-{number}.sock")),
            topology: lab.dir().join(format!("topology-{number}.toml")),
        }
    }

    /// Its command line.
    pub(crate) fn argv(&self) -> anyhow::Result<Vec<String>> {
        let daemon = self.build.program("vswitchd");
        ensure!(
            std::path::Path::new(&daemon).exists(),
            "{daemon} isn't there: run `cargo build --release -p vswitch-control --bins`, or name another folder by VSWITCH_BIN_DIR or --before"
        );
        let socket = self.socket.to_string_lossy().into_owned();
        let mut argv = vec![
            daemon,
            "run".into(),
            "--no-state".into(),
            "--socket".into(),
            socket,
        ];
        argv.extend(self.build.args.iter().cloned());
        Ok(argv)
    }

    /// Its command line with both containers, by TAP, in a topology file.
    pub(crate) fn argv_with_topology(&self, a: &Node, b: &Node) -> anyhow::Result<Vec<String>> {
        let mut text = "[networks.lan]\n".to_owned();
        for ((node, address), name) in [a, b].iter().zip(ADDRESSES).zip(PORTS) {
            let pid = node.pid();
            text += &format!(
                "[ports.{name}]\nnetwork = \"lan\"\ndevice = \"eth0\"\nnetns = \"pid:{pid}\"\naddresses = [\"{address}/24\"]\n"
            );
        }
        self.argv_of(&text)
    }

    fn argv_of(&self, topology: &str) -> anyhow::Result<Vec<String>> {
        std::fs::write(&self.topology, topology)
            .with_context(|| format!("writing {}", self.topology.display()))?;
        let mut argv = self.argv()?;
        argv.extend([
            "--topology".into(),
            self.topology.to_string_lossy().into_owned(),
        ]);
        Ok(argv)
    }

    /// Runs vswitchctl.
    pub(crate) fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let (program, socket) = (
            self.build.program("vswitchctl"),
            self.socket.to_string_lossy(),
        );
        checked(
            self.host
                .run(&[&[program.as_str(), "--socket", &socket], args].concat()),
        )
    }

    /// `vswitchctl` pointed at it.
    pub(super) fn command(&self, args: &[&str]) -> Vec<String> {
        let socket = self.socket.to_string_lossy().into_owned();
        let mut all = vec![self.build.program("vswitchctl"), "--socket".into(), socket];
        all.extend(args.iter().map(ToString::to_string));
        all
    }

    /// Starts the daemon and waits until it answers.
    pub(super) fn start(&self) -> anyhow::Result<Background> {
        let argv = self.argv()?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut daemon = self.host.spawn(&argv);
        self.wait(&mut daemon)?;
        Ok(daemon)
    }

    /// Starts the daemon with a topology and waits until all its ports are there.
    pub(crate) fn start_with(&self, topology: &str) -> anyhow::Result<Background> {
        let mut argv = self.argv_of(topology)?;
        argv.extend(["--ready-fd".into(), "1".into()]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut daemon = self.host.spawn(&argv);
        let end = Instant::now() + READY;
        while !daemon.output().lines().any(|l| l.trim() == "ready") {
            let up = daemon.is_running() && Instant::now() < end;
            ensure!(up, "vswitchd isn't ready: {}", daemon.output());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(daemon)
    }

    fn wait(&self, daemon: &mut Background) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            let up = daemon.is_running() && Instant::now() < end;
            ensure!(up, "vswitchd isn't ready: {}", daemon.output());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

pub(super) fn bed(lab: &Lab, build: Build, kind: &str, mtu: u32) -> anyhow::Result<Bed> {
    attached(lab, build, kind, mtu, &[], &[])
}

/// Veth ports on the kernel's fast path.
pub(super) fn accelerated(lab: &Lab, mut build: Build, mtu: u32) -> anyhow::Result<Bed> {
    build.args.push("--accelerate=ebpf".into());
    attached(lab, build, "veth", mtu, &[], &[])
}

/// Veth ports in a network where a rule lets everything pass, on the kernel's fast path or not.
pub(super) fn judged(lab: &Lab, mut build: Build, mtu: u32, fast: bool) -> anyhow::Result<Bed> {
    if fast {
        build.args.push("--accelerate=ebpf".into());
    }
    let policy = [
        "--to",
        "network:lan",
        "--default",
        "drop",
        "--rule",
        "accept",
    ];
    attached(lab, build, "veth", mtu, &[], &policy)
}

/// Veth ports that receive by the ring.
pub(super) fn ring(lab: &Lab, build: Build, mtu: u32) -> anyhow::Result<Bed> {
    attached(lab, build, "veth", mtu, &["--receive", "ring"], &[])
}

/// Both containers attached, `options` of their ports set then, and a policy, if it says anything.
fn attached(
    lab: &Lab,
    build: Build,
    kind: &str,
    mtu: u32,
    options: &[&str],
    policy: &[&str],
) -> anyhow::Result<Bed> {
    let mtu = mtu.to_string();
    let (a, b) = containers(lab);
    let switch = Switch::new(lab, build);
    let daemon = switch.start()?;
    switch.ctl(&["network", "add", "lan"])?;
    if !policy.is_empty() {
        switch.ctl(&[&["policy", "add", "all"], policy].concat())?;
    }
    for ((node, address), name) in [&a, &b].into_iter().zip(ADDRESSES).zip(PORTS) {
        let (pid, address) = (node.pid().to_string(), format!("{address}/24"));
        switch.ctl(&[
            "attach", "--pid", &pid, "--ip", &address, "--type", kind, "--mtu", &mtu, "--name",
            name, "lan",
        ])?;
        if !options.is_empty() {
            switch.ctl(&[&["port", "set", name], options].concat())?;
        }
    }
    Ok(Bed::of_processes(a, b, vec![switch.host], vec![daemon]))
}
