//! The lab: finds out how namespaces can be made here, then makes nodes and the links between them.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::daemon::{Daemon, DaemonBuilder};
use crate::node::{Kind, Node};
use crate::process::{Background, COMMAND_TIMEOUT, Output, run_here};

/// Why no lab can be made on this machine, and what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "no network namespaces for the lab `{lab}`: {reasons}; run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, or allow \
     user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
     kernel.apparmor_restrict_unprivileged_userns=0)"
)]
pub struct Unavailable {
    lab: String,
    reasons: String,
}

/// MTU of a link in bytes (IP packet, without the Ethernet header).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu(pub u32);

/// The lab's user namespace, when it is needed.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Sleeps in the user namespace all nodes belong to; `None` as root.
    user: Option<Background>,
    dir: TempDir,
}

impl Ground {
    /// Arguments that make `nsenter` enter the lab's user namespace first.
    pub(crate) fn enter_user(&self) -> Vec<String> {
        match &self.user {
            None => vec![],
            Some(holder) => {
                vec![
                    "--target".into(),
                    holder.pid().to_string(),
                    "--user".into(),
                    "--preserve-credentials".into(),
                ]
            }
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A set of nodes that see each other only.
#[derive(Debug)]
pub struct Lab {
    name: String,
    ground: Arc<Ground>,
    _turn: Turn,
}

/// Labs of one test binary take turns: there are as many at once as there are processors. Most of the time they wait, for timers and for
/// the kernel that takes namespaces down.
#[derive(Debug)]
struct Turn;

/// Labs that there are, and what tells that one has gone.
static TAKEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());
static ONE: AtomicBool = AtomicBool::new(false);

thread_local!(static IN_LAB: Cell<bool> = const { Cell::new(false) });

/// From now on this test binary has one lab at a time: for tests that know processes of the machine by their names.
pub fn one_lab_at_a_time() {
    ONE.store(true, Ordering::Relaxed);
}

impl Turn {
    fn take() -> Self {
        assert!(
            !IN_LAB.get(),
            "a test has one lab at a time: drop the first one, or make more nodes in it"
        );
        let most = match ONE.load(Ordering::Relaxed) {
            true => 1,
            false => std::thread::available_parallelism().map_or(1, usize::from),
        };
        // A test that panicked has dropped its nodes all the same.
        let taken = TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = TAKEN
            .1
            .wait_while(taken, |taken| *taken >= most)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        IN_LAB.set(true);
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IN_LAB.set(false);
        *TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        TAKEN.1.notify_one();
    }
}

impl Lab {
    /// Waits for its turn and finds the way to make namespaces.
    ///
    /// # Errors
    /// When neither root nor a user namespace can make network namespaces here.
    pub fn new(name: &str) -> Result<Self, Unavailable> {
        let turn = Turn::take();
        let mut reasons = vec![];
        if geteuid().is_root() {
            match run_here(
                &["unshare", "--net", "--mount", "--pid", "--fork", "true"],
                COMMAND_TIMEOUT,
            ) {
                Ok(output) if output.success() => return Ok(Self::on(name, None, turn)),
                Ok(output) => reasons.push(format!("as root: {}", one_line(&output))),
                Err(error) => reasons.push(format!("run unshare (package util-linux): {error}")),
            }
        }
        match user_namespace() {
            Ok(holder) => return Ok(Self::on(name, Some(holder), turn)),
            Err(reason) => reasons.push(format!("with a user namespace: {reason}")),
        }
        Err(Unavailable {
            lab: name.to_owned(),
            reasons: reasons.join("; "),
        })
    }

    fn on(name: &str, user: Option<Background>, turn: Turn) -> Self {
        // /run is covered in the nodes, and a unix socket path has 107 bytes at most.
        let dir = tempfile::Builder::new()
            .prefix("vswitch-")
            .tempdir_in("/tmp")
            .expect("make a directory in /tmp");
        Self {
            name: name.to_owned(),
            ground: Arc::new(Ground { user, dir }),
            _turn: turn,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// True when all nodes live in a user namespace (the test runs as an ordinary user).
    pub fn is_rootless(&self) -> bool {
        self.ground.user.is_some()
    }

    /// The lab's own directory, removed with it; the same path in every node.
    pub fn dir(&self) -> PathBuf {
        self.ground.dir().to_owned()
    }

    /// A container: network, mount, UTS, IPC and PID namespaces of its own, `lo` up.
    #[track_caller]
    pub fn container(&self, name: &str) -> Node {
        Node::start(&self.ground, name, Kind::Container)
    }

    /// A container in a user namespace of its own, as rootless ones are.
    #[track_caller]
    pub fn user_container(&self, name: &str) -> Node {
        Node::start(&self.ground, name, Kind::UserContainer)
    }

    /// A host outside: network, mount and UTS namespaces of its own, the machine's process ids.
    #[track_caller]
    pub fn host(&self, name: &str) -> Node {
        Node::start(&self.ground, name, Kind::Host)
    }

    /// Joins two nodes by a veth pair, both ends up.
    #[track_caller]
    pub fn link(&self, a: &Node, a_interface: &str, b: &Node, b_interface: &str, mtu: Mtu) {
        let (mtu, peer) = (mtu.0.to_string(), b.pid().to_string());
        // Runs with the machine's /proc: inside a container the other one's process id means nothing.
        a.run_outside(&[
            "ip",
            "link",
            "add",
            a_interface,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            b_interface,
            "mtu",
            &mtu,
            "netns",
            &peer,
        ])
        .expect_ok();
        a.ok(&["ip", "link", "set", a_interface, "up"]);
        b.ok(&["ip", "link", "set", b_interface, "up"]);
    }

    /// Whether a TAP device can be opened here, by the lab's own root.
    ///
    /// # Errors
    /// The reason and the remedy.
    pub fn tap_allowed(&self) -> Result<(), String> {
        let enter = self.ground.enter_user();
        let mut argv = vec!["nsenter"];
        argv.extend(enter.iter().map(String::as_str));
        argv.extend(["sh", "-c", ": <>/dev/net/tun"]);
        let output = run_here(
            if enter.is_empty() { &argv[1..] } else { &argv },
            COMMAND_TIMEOUT,
        )
        .map_err(|error| format!("run nsenter (package util-linux): {error}"))?;
        if output.success() {
            return Ok(());
        }
        Err(format!(
            "/dev/net/tun can't be opened: {}; run as root, or chmod 666 /dev/net/tun",
            one_line(&output)
        ))
    }

    /// A `vswitchd` of default options in a namespace of its own, ready.
    #[track_caller]
    pub fn daemon(&self) -> Daemon {
        self.daemon_with().start()
    }

    /// A `vswitchd` with options.
    #[track_caller]
    pub fn daemon_with(&self) -> DaemonBuilder {
        DaemonBuilder::new(self)
    }
}

fn one_line(output: &Output) -> String {
    let text = output.stderr.trim().replace('\n', " ");
    if text.is_empty() {
        output.to_string()
    } else {
        text
    }
}

/// A process that sleeps in a new user namespace in which it is root.
fn user_namespace() -> Result<Background, String> {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--user",
        "--map-root-user",
        "--",
    ]);
    // A network namespace in it is the real question, so ask it at once.
    command.args([
        "sh",
        "-c",
        "unshare --net true && echo ready && exec sleep infinity",
    ]);
    let mut holder = Background::start("unshare --user", command, Stdio::null(), false)
        .map_err(|error| format!("run setpriv and unshare (package util-linux): {error}"))?;
    while holder.is_running() {
        if holder.output().contains("ready") {
            return Ok(holder);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Err(holder.output().trim().replace('\n', " "))
}
