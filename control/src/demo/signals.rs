//! Signals that end the demo, read from a descriptor (signalfd(2)) beside whatever else it waits for.

use super::DemoError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks them for all threads and children to come, so that only this descriptor tells of them.
    pub(super) fn take() -> Result<Signals, DemoError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = set
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&set, flags));
        let fd = fd.map_err(|e| DemoError::system("taking signals")(e.into()))?;
        Ok(Signals { fd })
    }

    fn pending(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|n| Signal::try_from(n).ok())
    }

    /// Waits until `fd` is readable; false after `limit` without it.
    pub(super) fn readable(&self, fd: BorrowedFd<'_>, limit: Duration) -> Result<bool, DemoError> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [
                PollFd::new(self.fd.as_fd(), PollFlags::POLLIN),
                PollFd::new(fd, PollFlags::POLLIN),
            ];
            match poll(&mut fds, left) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(DemoError::system("waiting")(io::Error::from(e))),
            }
            let other = fds[1].any().unwrap_or(false);
            if let Some(signal) = self.pending() {
                return Err(DemoError::Stopped(signal));
            }
            if other {
                return Ok(true);
            }
        }
    }

    /// Waits for a signal.
    pub(super) fn wait(&self) -> Option<Signal> {
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return None,
            }
            if let Some(signal) = self.pending() {
                return Some(signal);
            }
        }
    }
}
