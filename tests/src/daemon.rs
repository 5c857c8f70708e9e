//! A `vswitchd` in a namespace of its own, and `vswitchctl` pointed at it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::http::{self, Response};
use crate::lab::Lab;
use crate::node::Node;
use crate::process::{Background, Output};

/// A daemon may take this long to answer, or to end after SIGTERM.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(15);

/// Options of a daemon that isn't started yet.
#[derive(Debug)]
pub struct DaemonBuilder {
    host: Node,
    dir: PathBuf,
    under: Vec<String>,
    args: Vec<String>,
    config: String,
}

impl DaemonBuilder {
    #[track_caller]
    pub(crate) fn new(lab: &Lab) -> Self {
        Self {
            host: lab.host("vswitchd"),
            dir: lab.dir(),
            under: vec![],
            args: vec![],
            config: String::new(),
        }
    }

    /// Has a command start it, which takes it as its last arguments.
    #[must_use]
    pub fn under(mut self, argv: &[&str]) -> Self {
        self.under = argv.iter().map(ToString::to_string).collect();
        self
    }

    /// Adds arguments after `vswitchd run`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// TOML that goes in front of the lab's own settings in the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }

    /// The namespace the daemon will run in, to put links and addresses there before.
    pub fn host(&self) -> &Node {
        &self.host
    }

    /// Starts it and waits until it answers on its control socket.
    ///
    /// # Panics
    /// When it doesn't, with its log.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = self.launch();
        daemon.wait_ready();
        daemon
    }

    /// Starts it without waiting: for a configuration it has to refuse.
    #[track_caller]
    pub fn launch(self) -> Daemon {
        let process = spawn(
            &self.host,
            &self.dir,
            [&self.under, &self.args],
            &self.config,
        );
        Daemon {
            host: self.host,
            dir: self.dir,
            under: self.under,
            args: self.args,
            config: self.config,
            process,
            may_end: false,
        }
    }
}

#[track_caller]
fn spawn(host: &Node, dir: &Path, [under, args]: [&[String]; 2], config: &str) -> Background {
    let program = program("vswitchd");
    let socket = socket_of(dir);
    let state = dir.join("state.json");
    let mut argv: Vec<&str> = under.iter().map(String::as_str).collect();
    argv.extend([program.as_str(), "run"]);
    let (socket, state) = (
        socket.to_str().expect("UTF-8"),
        state.to_str().expect("UTF-8"),
    );
    argv.extend(["--socket", socket, "--state", state]);
    let file = dir.join("vswitchd.toml");
    if !config.is_empty() {
        std::fs::write(&file, config).expect("write vswitchd.toml in the lab's directory");
        argv.extend(["--config", file.to_str().expect("UTF-8")]);
    }
    argv.extend(args.iter().map(String::as_str));
    host.spawn(&argv)
}

fn socket_of(dir: &Path) -> PathBuf {
    dir.join("vswitchd.sock")
}

/// A running daemon. Drop sends SIGTERM and reaps it; in a test that panics its log is printed.
#[derive(Debug)]
pub struct Daemon {
    host: Node,
    dir: PathBuf,
    under: Vec<String>,
    args: Vec<String>,
    config: String,
    process: Background,
    /// The test has ended it, or expects it to end.
    may_end: bool,
}

impl Daemon {
    /// The namespace the daemon runs in.
    pub fn host(&self) -> &Node {
        &self.host
    }

    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub fn socket(&self) -> PathBuf {
        socket_of(&self.dir)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Waits until the control socket answers.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let end = Instant::now() + DAEMON_TIMEOUT;
        while http::request(&self.socket(), "GET", "/v1/", None).is_err() {
            assert!(
                self.process.is_running(),
                "vswitchd ended before it was ready; log:\n{}",
                self.log()
            );
            assert!(
                Instant::now() < end,
                "vswitchd doesn't answer on {}",
                self.socket().display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `vswitchctl --socket SOCKET`, the beginning of a command line.
    #[track_caller]
    pub fn ctl_command(&self) -> [String; 3] {
        let socket = self.socket().to_str().expect("UTF-8").to_owned();
        [program("vswitchctl"), "--socket".into(), socket]
    }

    /// Starts `vswitchctl ARGS` in the daemon's namespace, for commands that go on until they are ended.
    #[track_caller]
    pub fn spawn_ctl(&self, args: &[&str]) -> Background {
        let command = self.ctl_command();
        let mut argv: Vec<&str> = command.iter().map(String::as_str).collect();
        argv.extend(args);
        self.host.spawn(&argv)
    }

    /// Runs `vswitchctl --socket SOCKET ARGS` in the daemon's namespace.
    #[track_caller]
    pub fn run_ctl(&self, args: &[&str]) -> Output {
        let command = self.ctl_command();
        let mut argv: Vec<&str> = command.iter().map(String::as_str).collect();
        argv.extend(args);
        self.host.run(&argv)
    }

    /// As [`Self::run_ctl`]; it must work. Returns its stdout.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        self.run_ctl(args).expect_ok()
    }

    /// Attaches a container to a network under the node's name, with these addresses and options (`--gw`, `--mtu`).
    #[track_caller]
    pub fn attach(&self, node: &Node, network: &str, ip: &str, options: &[&str]) {
        let pid = node.pid().to_string();
        let place = ["attach", network, "--name", node.name(), "--pid", &pid];
        self.ctl(&[&place[..], &["--ip", ip], options].concat());
    }

    /// As [`Self::ctl`] with `--json`, parsed.
    #[track_caller]
    pub fn ctl_json(&self, args: &[&str]) -> Value {
        let text = self.ctl(&[args, &["--json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`vswitchctl {}`: {error}: {text}", args.join(" ")))
    }

    /// As [`Self::run_ctl`] for a command that must be refused; returns its stderr.
    #[track_caller]
    pub fn ctl_fails(&self, args: &[&str]) -> String {
        let output = self.run_ctl(args);
        assert!(
            output.code.is_some_and(|code| code != 0),
            "it should have been refused: {output}"
        );
        output.stderr
    }

    /// One request to the control API, by a client that shares no code with it.
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        http::request(&self.socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// SIGTERM; waits until it has ended, which must be with code 0. Returns its log.
    #[track_caller]
    pub fn stop(&mut self) -> String {
        self.may_end = true;
        self.process.signal(Signal::SIGTERM);
        assert!(
            self.process.wait_end(DAEMON_TIMEOUT),
            "vswitchd doesn't end on SIGTERM"
        );
        let status = self.process.exit_status().expect("it has ended");
        assert!(
            status.success(),
            "vswitchd ended with {status} after SIGTERM"
        );
        self.log()
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        self.may_end = true;
        self.process.kill();
    }

    /// Starts it again in the same namespace with the same socket, state and options, and waits
    /// until it is ready; stops it before if it runs.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.process.is_running() {
            self.stop();
        }
        self.process = spawn(
            &self.host,
            &self.dir,
            [&self.under, &self.args],
            &self.config,
        );
        self.may_end = false;
        self.wait_ready();
    }

    /// Waits until it ends by itself, as a daemon does that refuses its configuration.
    #[track_caller]
    pub fn wait_end(&mut self) -> (Option<i32>, String) {
        self.may_end = true;
        assert!(
            self.process.wait_end(DAEMON_TIMEOUT),
            "vswitchd should have ended by itself"
        );
        (
            self.process.exit_status().and_then(|status| status.code()),
            self.log(),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let died = !self.may_end && !self.process.is_running();
        self.process.signal(Signal::SIGTERM);
        let ended = self.process.wait_end(DAEMON_TIMEOUT);
        self.process.kill();
        if std::thread::panicking() {
            eprintln!("--- log of vswitchd\n{}--- end of log", self.log());
            return;
        }
        assert!(
            !died,
            "vswitchd ended during the test; log:\n{}",
            self.log()
        );
        assert!(
            ended,
            "vswitchd doesn't end on SIGTERM; log:\n{}",
            self.log()
        );
    }
}

/// Path of a program of ours: in `VSWITCH_BIN_DIR`, else beside the directory of the test binary.
///
/// # Panics
/// When it isn't built.
#[track_caller]
pub fn program(name: &str) -> String {
    let dir = std::env::var_os("VSWITCH_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("path of the test binary");
            // target/debug/deps/TEST -> target/debug
            test.parent()
                .and_then(Path::parent)
                .expect("cargo's target directory")
                .to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} isn't built: run `cargo build --bins`, or set VSWITCH_BIN_DIR",
        path.display()
    );
    path.to_str().expect("a UTF-8 path").to_owned()
}
