//! Child processes that can't outlive the test: started by one thread, bounded in time, reaped.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process. So all children are
//! forked by one thread which lives until the test binary ends; then even SIGKILL of the test binary
//! takes everything with it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Longest wait for a command of which nothing else is known.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

struct Job {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

/// Starts `command` from the long-lived thread.
pub(crate) fn start(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        thread::Builder::new()
            .name("starter".into())
            .spawn(move || {
                for mut job in queue {
                    let _ = job.reply.send(job.command.spawn());
                }
            })
            .expect("start the thread that forks");
        jobs
    });
    let (reply, answer) = channel();
    starter
        .send(Job { command, reply })
        .expect("the starter thread lives as long as the process");
    answer.recv().expect("the starter thread answers every job")
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command as typed, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// True when it was killed because its time was over.
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Stdout of a command that must have worked.
    ///
    /// # Panics
    /// With command, code and output when it hasn't.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.success(), "{self}");
        self.stdout
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match (self.timed_out, self.code) {
            (true, _) => "was killed because its time was over".into(),
            (false, Some(code)) => format!("ended with code {code}"),
            (false, None) => "was ended by a signal".to_owned(),
        };
        write!(
            f,
            "`{}` {end}\nstdout: {}\nstderr: {}",
            self.command, self.stdout, self.stderr
        )
    }
}

/// A running child with its output in unnamed temporary files. Drop kills and reaps it.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
    status: Option<ExitStatus>,
    /// The command runs as the child of an `nsenter` in another PID namespace.
    wrapped: bool,
}

impl Background {
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        stdin: Stdio,
        wrapped: bool,
    ) -> io::Result<Self> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.process_group(0);
        command
            .stdin(stdin)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        let child = start(command)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
            status: None,
            wrapped,
        })
    }

    pub(crate) fn child_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Process id as the machine sees it: of the command itself once it runs, else of its wrapper.
    pub fn pid(&self) -> i32 {
        let outer = self.child.id().cast_signed();
        if self.wrapped {
            first_child(outer).unwrap_or(outer)
        } else {
            outer
        }
    }

    /// Everything printed so far: stdout, then stderr.
    pub fn output(&self) -> String {
        format!("{}{}", contents(&self.stdout), contents(&self.stderr))
    }

    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child of ours");
        }
        self.status.is_none()
    }

    /// Waits until the output holds `text`.
    ///
    /// # Panics
    /// When it doesn't come within 20 s, or the command ends before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let running = self.is_running();
            let output = self.output();
            if output.contains(text) {
                return;
            }
            assert!(
                running,
                "`{}` ended before it printed {text:?}; output: {output}",
                self.name
            );
            assert!(
                Instant::now() < end,
                "`{}` didn't print {text:?}; output: {output}",
                self.name
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            // It may have ended in between, which is what the signal was for.
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Waits until it ends by itself, at most `limit`; then it is killed.
    pub fn finish(mut self, limit: Duration) -> Output {
        let timed_out = !self.wait_end(limit);
        if timed_out {
            self.kill();
        }
        Output {
            command: self.name.clone(),
            code: self.status.and_then(|status| status.code()),
            timed_out,
            stdout: contents(&self.stdout),
            stderr: contents(&self.stderr),
        }
    }

    /// SIGINT, then [`Self::finish`].
    pub fn interrupt(mut self) -> Output {
        self.signal(Signal::SIGINT);
        self.finish(COMMAND_TIMEOUT)
    }

    /// True when the child ended within `limit`.
    pub(crate) fn wait_end(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        while self.is_running() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        true
    }

    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.is_running();
        self.status
    }

    /// Kills and reaps.
    pub fn kill(&mut self) {
        if self.is_running() {
            let outer = Pid::from_raw(self.child.id().cast_signed());
            if self.wrapped {
                // The wrapper reaps the command and ends by itself.
                self.signal(Signal::SIGKILL);
                self.wait_end(Duration::from_secs(2));
            }
            // What the command forked and left is in its process group.
            let _ = killpg(outer, Signal::SIGKILL);
            if self.is_running() {
                let _ = self.child.kill();
                self.status = self.child.wait().ok();
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Contents of an output file so far, read by position: the writer shares the offset.
fn contents(file: &File) -> String {
    let length = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; usize::try_from(length).expect("output fits memory")];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// The first child of process `pid`, if it has forked one.
pub(crate) fn first_child(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Runs a program on the machine itself (only to make and ask for namespaces), at most `limit`.
pub(crate) fn run_here(argv: &[&str], limit: Duration) -> io::Result<Output> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]);
    Ok(Background::start(&argv.join(" "), command, Stdio::null(), false)?.finish(limit))
}
