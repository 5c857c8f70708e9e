//! A node: one namespace set, kept by a process that sleeps in it.
//!
//! A container's holder is `unshare --pid --fork`, whose child is process 1 inside. When that dies,
//! the kernel kills everything in the PID namespace, `unshare` ends, and the network namespace goes
//! with the last process. Commands enter with `nsenter`; its child gets a `PR_SET_PDEATHSIG` of its
//! own, since killing `nsenter` alone would leave it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lab::Ground;
use crate::process::{Background, COMMAND_TIMEOUT, Output};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Container,
    /// In a user namespace of its own, as rootless containers are.
    UserContainer,
    Host,
}

impl Kind {
    /// Whether it has a process 1 of its own.
    fn forks(self) -> bool {
        self != Kind::Host
    }
}

/// Private /proc, /sys and /run; a machine may refuse some of these mounts to a user namespace,
/// and nothing but comfort hangs on them.
const SET_UP: &str = "hostname \"$0\"; [ $$ != 1 ] || mount -t proc proc /proc; mount -t sysfs sysfs /sys; \
                      mount -t tmpfs -o mode=755 tmpfs /run; ip link set lo up && echo ready && exec sleep infinity";

/// A container or host of the lab. Drop kills everything in it.
#[derive(Debug)]
pub struct Node {
    name: String,
    kind: Kind,
    holder: Background,
    pid: i32,
    ground: Arc<Ground>,
}

impl Node {
    #[track_caller]
    pub(crate) fn start(ground: &Arc<Ground>, name: &str, kind: Kind) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        let user = ground.enter_user();
        if !user.is_empty() {
            command.arg("nsenter").args(user).arg("--");
        }
        command.args(["unshare", "--net", "--mount", "--uts"]);
        if kind == Kind::UserContainer {
            command.args(["--user", "--map-root-user"]);
        }
        if kind.forks() {
            command.args(["--ipc", "--pid", "--fork", "--kill-child=KILL"]);
        }
        command.args(["--", "sh", "-c", SET_UP, name]);
        let holder = format!("holder of {name}");
        let mut holder = Background::start(&holder, command, Stdio::null(), kind.forks())
            .unwrap_or_else(|error| {
                panic!("start {holder} with setpriv and unshare (package util-linux): {error}")
            });
        holder.wait_for("ready");
        let pid = holder.pid();
        Self {
            name: name.to_owned(),
            kind,
            holder,
            pid,
            ground: Arc::clone(ground),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id, as the machine sees it, of the process that holds the namespaces.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn lab_dir(&self) -> &Path {
        self.ground.dir()
    }

    /// `/proc/PID/ns/net`.
    pub fn netns_path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// Runs a command inside, at most 30 s.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> Output {
        self.run_for(argv, COMMAND_TIMEOUT)
    }

    /// Runs a command inside; it is killed after `limit`.
    #[track_caller]
    pub fn run_for(&self, argv: &[&str], limit: Duration) -> Output {
        self.spawn(argv).finish(limit)
    }

    /// Runs a command inside that must work, and returns its stdout.
    #[track_caller]
    pub fn ok(&self, argv: &[&str]) -> String {
        self.run(argv).expect_ok()
    }

    /// Runs a command inside with `input` on its stdin; it must work.
    #[track_caller]
    pub fn ok_with_input(&self, argv: &[&str], input: &[u8]) -> String {
        let mut child = self.spawn_with(argv, Stdio::piped());
        let mut stdin = child.child_stdin().expect("stdin is a pipe");
        // A command that ends before it has read all is judged by its exit code.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.finish(COMMAND_TIMEOUT).expect_ok()
    }

    /// Starts a command inside; it is killed when the value is dropped, or with the node.
    #[track_caller]
    pub fn spawn(&self, argv: &[&str]) -> Background {
        self.spawn_with(argv, Stdio::null())
    }

    #[track_caller]
    fn spawn_with(&self, argv: &[&str], stdin: Stdio) -> Background {
        let forks = self.kind.forks();
        let mut command = self.enter(&["--mount", "--uts", "--net"]);
        if forks {
            command.args(["--ipc", "--pid"]);
        }
        command
            .args(["--", "setpriv", "--pdeathsig", "KILL"])
            .args(argv);
        self.start_command(argv, command, stdin, forks)
    }

    /// Runs a command in the network namespace only, with the machine's files and process ids.
    #[track_caller]
    pub(crate) fn run_outside(&self, argv: &[&str]) -> Output {
        let mut command = self.enter(&["--net"]);
        command.arg("--").args(argv);
        self.start_command(argv, command, Stdio::null(), false)
            .finish(COMMAND_TIMEOUT)
    }

    /// `nsenter` into namespaces of the node; the user namespace comes along where there is one.
    fn enter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "nsenter",
            "--target",
            &self.pid.to_string(),
        ]);
        if self.kind == Kind::UserContainer || !self.ground.enter_user().is_empty() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(namespaces);
        command
    }

    #[track_caller]
    fn start_command(
        &self,
        argv: &[&str],
        command: Command,
        stdin: Stdio,
        wrapped: bool,
    ) -> Background {
        let name = format!("{}: {}", self.name, argv.join(" "));
        Background::start(&name, command, stdin, wrapped).unwrap_or_else(|error| {
            panic!("start `{name}` by setpriv and nsenter (package util-linux): {error}")
        })
    }

    /// Puts an address (`ADDRESS/LENGTH`, IPv4 or IPv6) on an interface and brings it up.
    #[track_caller]
    pub fn addr(&self, interface: &str, address: &str) {
        // Duplicate address detection would keep an IPv6 address unusable for a second.
        let dad: &[&str] = if address.contains(':') {
            &["nodad"]
        } else {
            &[]
        };
        self.ok(&[&["ip", "addr", "add", address, "dev", interface], dad].concat());
        self.ok(&["ip", "link", "set", interface, "up"]);
    }

    /// Adds a route: `route("default", "192.0.2.254")`, `route("2001:db8:1::/64", "2001:db8::1")`.
    #[track_caller]
    pub fn route(&self, destination: &str, via: &str) {
        let family = if via.contains(':') { "-6" } else { "-4" };
        self.ok(&["ip", family, "route", "add", destination, "via", via]);
    }

    /// MAC address of an interface, `xx:xx:xx:xx:xx:xx`.
    #[track_caller]
    pub fn mac(&self, interface: &str) -> String {
        let links: serde_json::Value =
            serde_json::from_str(&self.ok(&["ip", "-json", "link", "show", "dev", interface]))
                .expect("JSON of `ip`");
        links[0]["address"]
            .as_str()
            .unwrap_or_else(|| panic!("{interface} has no MAC address"))
            .to_owned()
    }

    /// Whether the holder lives.
    pub fn is_running(&mut self) -> bool {
        self.holder.is_running()
    }

    /// Kills everything inside at once, as a crash of the container would, and reaps it.
    pub fn kill(&mut self) {
        self.holder.kill();
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// After 20 s without it, with `what`.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited 20 s for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
