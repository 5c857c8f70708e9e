//! File descriptors of processes (pidfd_open(2), Linux 5.3): readable once the process has ended.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Opens the process; close-on-exec and non-blocking. Errors: ESRCH when there is no such process.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a non-negative answer is a new fd that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_process_opens_and_no_process_does_not() {
        assert!(super::open(std::process::id() as i32).is_ok());
        assert!(super::open(i32::MAX).is_err());
    }
}
