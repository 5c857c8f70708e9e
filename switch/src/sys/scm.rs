//! File descriptors over unix sockets (SCM_RIGHTS, unix(7)), and taking up inherited ones.

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors taken with one message.
pub const MAX_FDS: usize = 8;

/// Receives bytes and the descriptors that come with them, close-on-exec. Errors: as recvmsg(2); EMSGSIZE when there were
/// more descriptors than [`MAX_FDS`].
pub fn recv(socket: impl AsFd, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([i32; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buf)];
    let fd = socket.as_fd().as_raw_fd();
    let got = recvmsg::<()>(fd, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    let cut = got.flags.contains(MsgFlags::MSG_CTRUNC);
    if let Ok(messages) = got.cmsgs() {
        for m in messages {
            if let ControlMessageOwned::ScmRights(raw) = m {
                // SAFETY: the kernel has just installed these for us, and nobody else knows them.
                fds.extend(raw.into_iter().map(|r| unsafe { OwnedFd::from_raw_fd(r) }));
            }
        }
    }
    if cut {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((got.bytes, fds))
}

/// Sends bytes with descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let iov = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(&raw)];
    let fd = socket.as_fd().as_raw_fd();
    Ok(sendmsg::<()>(
        fd,
        &iov,
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}

/// A duplicate, close-on-exec, of a descriptor known by its number only, such as one inherited. Errors: EBADF.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: duplicates by number and touches no memory of ours.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a non-negative answer is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_crosses_with_its_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        assert_eq!(send(&a, b"hello", &[near.as_fd()]).unwrap(), 5);
        drop(near);
        let mut buf = [0; 16];
        let (n, mut fds) = recv(&b, &mut buf).unwrap();
        assert_eq!((&buf[..n], fds.len()), (&b"hello"[..], 1));
        let mut got = UnixStream::from(fds.remove(0));
        got.write_all(b"x").unwrap();
        let mut one = [0];
        far.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"x");
        assert!(inherited(-1).is_err());
        assert!(inherited(a.as_raw_fd()).is_ok());
    }
}
