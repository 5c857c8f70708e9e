//! File descriptors of processes (pidfd_open(2), Linux 5.3): readable once the process has ended. By one, descriptors of the process
//! can be taken (pidfd_getfd(2), Linux 5.6), and what they are can be compared with our own (kcmp(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// include/uapi/linux/kcmp.h
const KCMP_FILE: libc::c_int = 0;
const KCMP_EPOLL_TFD: libc::c_int = 7;

/// Opens the process; close-on-exec and non-blocking. Errors: ESRCH when there is no such process.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    opened(pid, libc::O_NONBLOCK)
}

/// Opens one thread, whose descriptors may be others than those of its process (PIDFD_THREAD). Errors: ESRCH; EINVAL before Linux 6.9.
pub fn open_thread(tid: i32) -> io::Result<OwnedFd> {
    opened(tid, libc::O_NONBLOCK | libc::O_EXCL)
}

fn opened(pid: i32, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
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

/// The number of this thread.
fn own() -> i32 {
    thread_local! {
        static OWN: i32 = nix::unistd::gettid().as_raw();
    }
    OWN.with(|own| *own)
}

/// What a comparison says: equal, another, or an error.
fn compared(r: libc::c_long) -> io::Result<bool> {
    match r {
        0.. => Ok(r == 0),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a descriptor of a thread is a duplicate of ours. Errors: EBADF where it has none; EPERM where ptrace(2) isn't
/// allowed; ESRCH; ENOSYS.
pub fn is_duplicate(ours: impl AsFd, thread: i32, number: i32) -> io::Result<bool> {
    let (own, fd) = (own(), ours.as_fd().as_raw_fd());
    // SAFETY: takes five integers and touches no memory of ours.
    compared(unsafe { libc::syscall(libc::SYS_kcmp, own, thread, KCMP_FILE, fd, number) })
}

/// Whether a thread has an epoll set as `epoll` in which `number` is registered for what we have as `ours`. Errors: EINVAL where it is
/// no epoll set; as [`is_duplicate`].
pub fn is_registered(ours: impl AsFd, thread: i32, epoll: i32, number: i32) -> io::Result<bool> {
    /// `struct kcmp_epoll_slot`
    #[repr(C)]
    struct Slot {
        epoll: u32,
        number: u32,
        offset: u32,
    }
    let bad = |_| io::Error::from_raw_os_error(libc::EBADF);
    let slot = Slot {
        epoll: u32::try_from(epoll).map_err(bad)?,
        number: u32::try_from(number).map_err(bad)?,
        offset: 0,
    };
    let (own, fd) = (own(), ours.as_fd().as_raw_fd());
    // SAFETY: the kernel reads one slot.
    let r = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            own,
            thread,
            KCMP_EPOLL_TFD,
            fd,
            &raw const slot,
        )
    };
    match compared(r) {
        // Nothing is registered by that number.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other,
    }
}

/// Reads memory of a thread (process_vm_readv(2)), all that there is room for. Errors: EFAULT; EPERM where ptrace(2) isn't allowed; ESRCH.
pub fn read_memory(thread: i32, at: u64, into: &mut [u8]) -> io::Result<()> {
    let bad = |_| io::Error::from_raw_os_error(libc::EFAULT);
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(usize::try_from(at).map_err(bad)?),
        iov_len: into.len(),
    };
    // SAFETY: the kernel writes at most as many bytes as the slice has; the other address isn't one of ours.
    let n = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(n) {
        Ok(n) if n == into.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::net::TcpListener;

    #[test]
    fn descriptors_are_compared_where_they_are() {
        let own = nix::unistd::gettid().as_raw();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (copy, other) = (
            socket.try_clone().unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let number = socket.as_raw_fd();
        assert!(is_duplicate(&socket, own, copy.as_raw_fd()).unwrap());
        assert!(!is_duplicate(&socket, own, other.as_raw_fd()).unwrap());
        assert!(is_duplicate(&socket, own, i32::MAX).is_err());
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let at = set.0.as_raw_fd();
        assert!(!is_registered(&socket, own, at, number).unwrap());
        set.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 7))
            .unwrap();
        assert!(is_registered(&socket, own, at, number).unwrap());
        assert!(!is_registered(&other, own, at, number).unwrap());
        let none = is_registered(&socket, own, other.as_raw_fd(), number).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
        let (secret, mut read) = (*b"what lies here", [0; 14]);
        read_memory(own, secret.as_ptr().addr() as u64, &mut read).unwrap();
        assert_eq!(read, secret);
        assert!(read_memory(own, 1, &mut read).is_err());
    }

    #[test]
    fn our_own_process_opens_and_no_process_does_not() {
        assert!(super::open(std::process::id() as i32).is_ok());
        assert!(super::open(i32::MAX).is_err());
        let own = super::open(std::process::id() as i32).unwrap();
        assert!(super::take(&own, 0).is_ok());
        assert!(super::take(&own, -1).is_err());
    }
}
