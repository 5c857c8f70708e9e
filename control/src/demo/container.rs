//! A container as the demo sees it: its holder process, and the line to its agent.

use super::DemoError;
use super::signals::Signals;
use super::talk::{Reply, Request, line};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A container has to run within this time.
const START: Duration = Duration::from_secs(5);
/// A holder ends within this time once its pipe is closed, or is killed.
const END: Duration = Duration::from_secs(2);

/// A running container; everything in it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Container {
    name: &'static str,
    holder: Child,
    agent: UnixStream,
    heard: Vec<u8>,
    pid: i32,
    names: bool,
}

impl Container {
    /// Starts it; must be called on the main thread, for children die with the thread that started them.
    pub(super) fn start(
        name: &'static str,
        dir: &Path,
        signals: &Signals,
    ) -> Result<Container, DemoError> {
        let fail = || DemoError::system(format!("starting container {name}"));
        let (ours, theirs) = UnixStream::pair().map_err(fail())?;
        let holder = Command::new("/proc/self/exe")
            .arg0("vswitchd")
            .args(["demo-container", name])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(fail())?;
        let mut container = Container {
            name,
            holder,
            agent: ours,
            heard: Vec::new(),
            pid: 0,
            names: false,
        };
        match container.hear(signals, START)? {
            Reply::Started { pid, names } => {
                container.pid = pid;
                container.names = names;
                Ok(container)
            }
            other => Err(container.unexpected(other)),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Process 1 of the container, as the machine numbers it.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the other containers can be named inside.
    pub(super) fn knows_names(&self) -> bool {
        self.names
    }

    /// Has the agent do something that takes at most `limit`.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        signals: &Signals,
        limit: Duration,
    ) -> Result<Reply, DemoError> {
        self.agent
            .write_all(&line(request))
            .map_err(|e| self.fault(e))?;
        self.hear(signals, limit)
    }

    fn hear(&mut self, signals: &Signals, limit: Duration) -> Result<Reply, DemoError> {
        let end = Instant::now() + limit;
        let mut some = [0; 16 << 10];
        while !self.heard.ends_with(b"\n") {
            let left = end.saturating_duration_since(Instant::now());
            if !signals.readable(self.agent.as_fd(), left)? {
                return Err(self.fault(format!("no answer within {} s", limit.as_secs())));
            }
            match self.agent.read(&mut some) {
                Ok(0) => return Err(self.fault("its process has ended")),
                Ok(n) => self
                    .heard
                    .extend_from_slice(some.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.fault(e)),
            }
        }
        let heard = std::mem::take(&mut self.heard);
        serde_json::from_slice(&heard).map_err(|e| self.fault(e))
    }

    fn fault(&self, reason: impl ToString) -> DemoError {
        DemoError::failed(
            format!("using container {}", self.name),
            reason,
            "try again; the demo needs a Linux kernel with user, network, mount and PID namespaces",
        )
    }

    /// The error for a reply that isn't the one asked for.
    pub(super) fn unexpected(&self, reply: Reply) -> DemoError {
        match reply {
            Reply::Failed { reason } => self.fault(reason),
            other => self.fault(format!("an answer to another question: {other:?}")),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let end = Instant::now() + END;
        while Instant::now() < end {
            if !matches!(self.holder.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Its agent dies with it.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
