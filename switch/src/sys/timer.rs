//! Timers finer than epoll's millisecond (timerfd_create(2)): readable once the time has come.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A timer that runs out once for each time it is set.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// One that isn't set; close-on-exec and non-blocking. Errors: EMFILE and others of timerfd_create(2).
    pub fn new() -> io::Result<Timer> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: takes two integers and touches no memory of ours.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a non-negative answer is a new fd that nobody else owns.
        Ok(Timer(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has it run out so long from now, and not before. It needn't have been read since it did: what was is forgotten, and an
    /// edge-triggered epoll tells the next time all the same. Errors: as timerfd_settime(2).
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would turn it off.
        let after = after.max(Duration::from_nanos(1));
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: after.subsec_nanos() as _,
            },
        };
        // SAFETY: the kernel reads one itimerspec, and writes none.
        let r = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, std::ptr::null_mut())
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};

    #[test]
    fn each_time_is_told_once_and_none_needs_to_be_read() {
        let timer = Timer::new().unwrap();
        let mut poll = Poll::new().unwrap();
        let raw = timer.0.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&raw), Token(7), Interest::READABLE)
            .unwrap();
        let mut events = Events::with_capacity(4);
        let mut told = |wait| {
            poll.poll(&mut events, Some(wait)).unwrap();
            events.iter().count()
        };
        for after in [Duration::from_micros(200), Duration::ZERO] {
            timer.set(after).unwrap();
            assert_eq!(told(Duration::from_secs(10)), 1);
            assert_eq!(told(Duration::ZERO), 0);
        }
    }
}
