//! System calls that another process answers (seccomp_unotify(2), Linux 5.9).
//!
//! A process installs a filter and gets a listener ([`listen`]); who holds that receives each call that the filter names
//! ([`receive`]) while its thread waits in the kernel, and says what becomes of it: it is answered ([`answer`]), or goes on as if
//! nothing had been ([`go_on`]). A descriptor can be put into the process meanwhile ([`put`]). What is read of the process in between
//! may be another's by then: [`is_valid`] tells, afterwards.

use super::filter::{AT_LEAST, EQUAL, LOAD, RETURN, with_program};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// include/uapi/linux/audit.h: the ABI that calls are numbered by.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCH: u32 = 0xc000_00f3;
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
const ARCH: u32 = 0;
/// Numbers from here on are of the x32 ABI (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;

/// A call that waits to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number at this listener.
    pub id: u64,
    /// The thread that made it, as we number it; 0 if we can't see it.
    pub thread: i32,
    /// The system call; `None` if it is of another ABI than ours.
    pub call: Option<i64>,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Has these system calls of this process, and of all that it will start, wait to be answered by who has the listener. Other ABIs
/// than ours are left alone. Takes no_new_privs, or CAP_SYS_ADMIN. Errors: EACCES without either, EBUSY where a filter
/// has a listener already, EINVAL and ENOSYS without the kernel's support.
pub fn listen(calls: &[libc::c_long]) -> io::Result<OwnedFd> {
    let mut program = vec![
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, ARCH),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        (LOAD, 0, 0, NR_AT),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    for call in calls {
        program.push((EQUAL, 0, 1, *call as u32));
        program.push((RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push((RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let fd = with_program(&program, |program| {
        // SAFETY: the kernel reads the program, which outlives the call, and touches nothing else.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                std::ptr::from_ref(program),
            )
        }
    });
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a non-negative answer is a new fd that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has who waits and who answers wake each other in turn, on one processor (Linux 6.6): one always sleeps while the other works.
pub fn wake_in_turn(listener: impl AsFd) -> io::Result<()> {
    /// include/uapi/linux/seccomp.h
    const SYNC_WAKE_UP: libc::c_ulong = 1;
    // SAFETY: takes a number and touches no memory of ours.
    let r = unsafe {
        libc::ioctl(
            listener.as_fd().as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SYNC_WAKE_UP,
        )
    };
    Errno::result(r)?;
    Ok(())
}

/// The next call. Waits for one: ask poll(2) first. Errors: ENOENT when it has been given up meanwhile, EINTR.
pub fn receive(listener: impl AsFd) -> io::Result<Waiting> {
    // A kernel of later may have more to say than the struct takes (seccomp(2), SECCOMP_GET_NOTIF_SIZES).
    #[repr(C)]
    struct Room {
        notif: libc::seccomp_notif,
        more: [u64; 16],
    }
    // SAFETY: all fields are integers. The kernel wants it zeroed.
    let mut room: Room = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one seccomp_notif, for which there is more than room.
    let r = unsafe {
        libc::ioctl(
            listener.as_fd().as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut room,
        )
    };
    Errno::result(r)?;
    let n = room.notif;
    Ok(Waiting {
        id: n.id,
        thread: i32::try_from(n.pid).unwrap_or(0),
        call: (n.data.arch == ARCH).then_some(n.data.nr.into()),
        args: n.data.args,
    })
}

/// Whether the call still waits: what was learned of its thread before is its own then.
pub fn is_valid(listener: impl AsFd, id: u64) -> bool {
    // SAFETY: the kernel reads one u64.
    let r = unsafe {
        libc::ioctl(
            listener.as_fd().as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            &raw const id,
        )
    };
    r == 0
}

/// Puts a descriptor in the place of number `at` in the process that waits. Errors: ENOENT when the call was given up, EBADF, EMFILE.
pub fn put(
    listener: impl AsFd,
    id: u64,
    fd: BorrowedFd<'_>,
    at: i32,
    cloexec: bool,
) -> io::Result<()> {
    let wrong = |_| io::Error::from_raw_os_error(libc::EBADF);
    let request = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: u32::try_from(fd.as_raw_fd()).map_err(wrong)?,
        newfd: u32::try_from(at).map_err(wrong)?,
        newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the kernel reads one seccomp_notif_addfd.
    let r = unsafe {
        libc::ioctl(
            listener.as_fd().as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ADDFD,
            &raw const request,
        )
    };
    Errno::result(r)?;
    Ok(())
}

fn send(listener: BorrowedFd<'_>, id: u64, error: i32, flags: u32) -> io::Result<()> {
    let response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: -error,
        flags,
    };
    // SAFETY: the kernel reads one seccomp_notif_resp.
    let r = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw const response,
        )
    };
    Errno::result(r)?;
    Ok(())
}

/// Answers a call: with 0, or an error number. Errors: ENOENT when it was given up.
pub fn answer(listener: impl AsFd, id: u64, error: i32) -> io::Result<()> {
    send(listener.as_fd(), id, error, 0)
}

/// Lets a call go on as its thread made it; what it points to may be something else by now. Errors: ENOENT when it was given up.
pub fn go_on(listener: impl AsFd, id: u64) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    send(listener.as_fd(), id, 0, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_listener_says_so() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(receive(&null).is_err() && wake_in_turn(&null).is_err());
        assert!(!is_valid(&null, 1));
        assert!(answer(&null, 1, 0).is_err() && go_on(&null, 1).is_err());
        assert!(put(&null, 1, null.as_fd(), 9, true).is_err());
    }
}
