//! File descriptors of processes (pidfd_open(2), Linux 5.3): readable once the process has ended. By one, descriptors of the process
//! can be taken (pidfd_getfd(2), Linux 5.6).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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

/// Takes a duplicate, close-on-exec, of a descriptor of the process. Errors: EBADF; EPERM where ptrace(2) isn't allowed; ESRCH.
pub fn take(process: impl AsFd, number: i32) -> io::Result<OwnedFd> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: takes three integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
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
        let own = super::open(std::process::id() as i32).unwrap();
        assert!(super::take(&own, 0).is_ok());
        assert!(super::take(&own, -1).is_err());
    }
}
