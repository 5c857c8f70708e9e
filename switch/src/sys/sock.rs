//! Sockets of the host for the rootless backend: TCP that is read by peeking, UDP with segmentation offload, ping sockets.
//!
//! Nothing here blocks. Payload is peeked at an offset that the kernel keeps (SO_PEEK_OFF, for TCP from Linux 6.9 on) and
//! discarded when the container has it; an older kernel copies what was peeked before into a buffer of ours once more.

use super::datagram::{set_ttl, tell_errors};
use super::source::Source;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{
    Ipv6V6Only, KeepAlive, Linger, OobInline, SocketError, TcpNoDelay, UdpGroSegment,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
    getsockopt, recvmsg, sendmsg, setsockopt, shutdown, socket,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// include/uapi/asm-generic/socket.h
const SO_PEEK_OFF: libc::c_int = 42;
const SO_MEMINFO: libc::c_int = 55;
/// include/uapi/linux/sock_diag.h: indices of SO_MEMINFO.
const MEMINFO_SNDBUF: usize = 3;
const MEMINFO_WMEM_QUEUED: usize = 5;
const MEMINFO_VARS: usize = 9;

/// The kind of a host socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
    /// ICMP echo, where `net.ipv4.ping_group_range` allows it.
    Ping,
}

/// Opens a socket that begins to connect to `to`, from `from` if that is given. Errors: as [`Source::bind`], socket(2) and connect(2),
/// but for EINPROGRESS.
pub fn open(kind: Kind, to: SocketAddr, from: Option<&Source>) -> io::Result<OwnedFd> {
    open_with(kind, to, from, None)
}

/// The same; what it sends has this TTL or hop limit, its SYN too, unless that is the host's own affair.
pub fn open_with(
    kind: Kind,
    to: SocketAddr,
    from: Option<&Source>,
    ttl: Option<u8>,
) -> io::Result<OwnedFd> {
    let fd = of_family(kind, to)?;
    if ttl.is_some() {
        set_ttl(&fd, to.is_ipv6(), ttl)?;
    }
    match kind {
        Kind::Tcp => {
            setsockopt(&fd, TcpNoDelay, &true)?;
            setsockopt(&fd, KeepAlive, &true)?;
            // Urgent data in its place (RFC 6093 6): taken out, it would be missing in what is peeked.
            setsockopt(&fd, OobInline, &true)?;
            // Until it is connected: why it isn't, and who says so.
            let _ = tell_errors(&fd, to.is_ipv6(), true);
        }
        Kind::Udp | Kind::Ping => tell_errors(&fd, to.is_ipv6(), true)?,
    }
    if let Some(from) = from {
        from.bind(&fd, to.ip())?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(e) => Err(e.into()),
    }
}

/// A socket of the address's family and no other, which doesn't block.
pub(super) fn of_family(kind: Kind, of: SocketAddr) -> io::Result<OwnedFd> {
    let family = if of.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let (ty, proto) = match kind {
        Kind::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Kind::Udp => (SockType::Datagram, SockProtocol::Udp),
        Kind::Ping if of.is_ipv4() => (SockType::Datagram, SockProtocol::Icmp),
        Kind::Ping => (SockType::Datagram, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, ty, flags, proto)?;
    if of.is_ipv6() {
        // ::ffff:127.0.0.1 is no way to the host's IPv4.
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    if kind == Kind::Udp {
        // Without it datagrams come one by one.
        let _ = setsockopt(&fd, UdpGroSegment, &true);
    }
    Ok(fd)
}

/// The error of a process that has no descriptor left.
pub const TOO_MANY: i32 = libc::EMFILE;

/// Descriptors that sockets may take up: as many as the process may have, which is raised as far as that goes, but for a quarter at most
/// 256 for everything else.
#[must_use]
pub fn descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    let most = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(1 << 20);
    most - (most / 4).min(256)
}

/// Takes the error that waits at a socket: of connecting, or of what the peer or a router said.
pub fn take_error(fd: impl AsFd) -> io::Result<()> {
    match getsockopt(&fd.as_fd(), SocketError)? {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e)),
    }
}

/// The local address.
pub fn local(fd: impl AsFd) -> io::Result<SocketAddr> {
    let s: SockaddrStorage = nix::sys::socket::getsockname(fd.as_fd().as_raw_fd())?;
    let v4 = s.as_sockaddr_in().map(|a| (a.ip(), a.port()).into());
    v4.or_else(|| s.as_sockaddr_in6().map(|a| (a.ip(), a.port()).into()))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// Whether the host has the address; also if the kernel can't be asked.
#[must_use]
pub fn is_own(ip: std::net::IpAddr) -> bool {
    let at = SocketAddr::new(ip, 0);
    let bound = of_family(Kind::Udp, at)
        .map(|fd| nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)));
    !matches!(bound, Ok(Err(Errno::EADDRNOTAVAIL)))
}

/// Sends; returns how many bytes the kernel took. Errors: EAGAIN, EPIPE, ECONNRESET and others of send(2).
pub fn send(fd: impl AsFd, parts: [&[u8]; 2]) -> io::Result<usize> {
    send_with(fd, parts, MsgFlags::empty())
}

/// The same for a stream to which more is sent at once: what doesn't fill a segment waits for that, 200 ms at most.
pub fn send_on(fd: impl AsFd, parts: [&[u8]; 2]) -> io::Result<usize> {
    send_with(fd, parts, MsgFlags::from_bits_retain(libc::MSG_MORE))
}

fn send_with(fd: impl AsFd, parts: [&[u8]; 2], more: MsgFlags) -> io::Result<usize> {
    let iov = [IoSlice::new(parts[0]), IoSlice::new(parts[1])];
    let iov = if parts[1].is_empty() { &iov[..1] } else { &iov };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | more;
    Ok(sendmsg::<()>(
        fd.as_fd().as_raw_fd(),
        iov,
        &[],
        flags,
        None,
    )?)
}

/// Bytes that the send buffer of a stream still takes, by the kernel's count. Where less than a third of it is free, the
/// descriptor becomes writable by an event when it is again, and the kernel may grow the buffer until then.
pub fn room(fd: impl AsFd) -> usize {
    let mut info = [0u32; MEMINFO_VARS];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let fd = fd.as_fd();
    // SAFETY: the kernel writes at most `len` bytes to the array.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if r != 0 {
        return 65_535;
    }
    let (size, used) = (info[MEMINFO_SNDBUF], info[MEMINFO_WMEM_QUEUED]);
    let free = size.saturating_sub(used);
    if free <= size / 2 {
        // Asking marks the socket as waiting for space (net/ipv4/tcp.c, `tcp_poll`).
        let mut one = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one pollfd, borrowed for the call, which doesn't wait.
        unsafe { libc::poll(&raw mut one, 1, 0) };
    }
    free as usize
}

/// A stream that is read by peeking.
#[derive(Debug)]
pub struct PeekStream {
    fd: OwnedFd,
    /// Where the next peek begins, if the kernel doesn't keep it.
    offset: Option<usize>,
}

/// Most bytes peeked past without the kernel's help; they are copied once more each time.
const MAX_SKIP: usize = 256 << 10;

thread_local! {
    static SKIPPED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl PeekStream {
    /// Of a socket that [`open`] made.
    #[must_use]
    pub fn new(fd: OwnedFd) -> PeekStream {
        let kept = set_int(fd.as_fd(), SO_PEEK_OFF, 0).is_ok();
        PeekStream {
            fd,
            offset: (!kept).then_some(0),
        }
    }

    /// The same, as on a kernel without SO_PEEK_OFF for TCP.
    #[must_use]
    pub fn without_offset(fd: OwnedFd) -> PeekStream {
        PeekStream {
            fd,
            offset: Some(0),
        }
    }

    /// Has the next peek begin `offset` bytes behind what was discarded.
    pub fn seek(&mut self, offset: usize) -> io::Result<()> {
        if let Some(at) = &mut self.offset {
            *at = offset;
            return Ok(());
        }
        let offset = libc::c_int::try_from(offset);
        let offset = offset.map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        set_int(self.fd.as_fd(), SO_PEEK_OFF, offset)
    }

    /// How far behind what was discarded peeking goes.
    #[must_use]
    pub fn reach(&self) -> usize {
        self.offset.map_or(usize::MAX, |_| MAX_SKIP)
    }

    /// Copies bytes and leaves them there; the next peek goes on behind them. 0: the peer has sent its last. Errors: EAGAIN,
    /// ECONNRESET and others of recv(2).
    pub fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        let raw = self.fd.as_raw_fd();
        let Some(offset) = self.offset else {
            return Ok(recvmsg::<()>(raw, into, None, flags)?.bytes);
        };
        if offset > MAX_SKIP {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let [a, b] = into;
        let n = SKIPPED.with_borrow_mut(|skipped| {
            skipped.resize(MAX_SKIP, 0);
            let skip = IoSliceMut::new(skipped.get_mut(..offset).unwrap_or_default());
            let mut iov = [skip, IoSliceMut::new(a), IoSliceMut::new(b)];
            recvmsg::<()>(raw, &mut iov, None, flags).map(|m| m.bytes)
        })?;
        // Nothing behind what is known: whether more comes isn't told by a peek, but by the descriptor.
        match n.checked_sub(offset) {
            Some(0) | None if !self.ended() => Err(io::ErrorKind::WouldBlock.into()),
            Some(n) => {
                self.offset = Some(offset + n);
                Ok(n)
            }
            None => Ok(0),
        }
    }

    fn ended(&self) -> bool {
        let mut one = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLRDHUP,
            revents: 0,
        };
        // SAFETY: one pollfd, borrowed for the call, which doesn't wait.
        unsafe { libc::poll(&raw mut one, 1, 0) };
        one.revents & libc::POLLRDHUP != 0
    }

    /// Takes bytes that were peeked away; offsets count from behind them.
    pub fn discard(&mut self, n: usize) -> io::Result<()> {
        let mut left = n;
        while left > 0 {
            let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
            // SAFETY: with MSG_TRUNC a stream discards without writing (tcp(7)), so there needs to be no buffer.
            let r = unsafe { libc::recv(self.fd.as_raw_fd(), std::ptr::null_mut(), left, flags) };
            match Errno::result(r) {
                Ok(0) => break,
                Ok(r) => left = left.saturating_sub(r as usize),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if let Some(at) = &mut self.offset {
            *at = at.saturating_sub(n);
        }
        Ok(())
    }

    /// Says that we have sent our last.
    pub fn shut(&self) {
        // It fails only if the connection is gone, which an event tells.
        let _ = shutdown(self.fd.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    }

    /// Has closing reset the connection.
    pub fn abort(&self) {
        let now = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.fd, Linger, &now);
    }
}

impl AsFd for PeekStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_int(fd: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, option, value)
}

/// Sets an option that is an int.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(r)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn pair(kept: bool) -> (PeekStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = open(Kind::Tcp, listener.local_addr().unwrap(), None).unwrap();
        let (far, _) = listener.accept().unwrap();
        let stream = if kept {
            PeekStream::new(fd)
        } else {
            PeekStream::without_offset(fd)
        };
        (stream, far)
    }

    /// Peeks until something else than "not yet" is said.
    fn peek(s: &mut PeekStream, n: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; n];
        let (a, b) = buf.split_at_mut(n / 2);
        loop {
            let mut iov = [IoSliceMut::new(a), IoSliceMut::new(b)];
            match s.peek(&mut iov) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Err(e) => return Err(e),
                Ok(n) => {
                    buf.truncate(n);
                    return Ok(buf);
                }
            }
        }
    }

    #[test]
    fn peeked_bytes_stay_until_they_are_discarded() {
        for kept in [true, false] {
            let (mut s, mut far) = pair(kept);
            far.write_all(b"abcdefgh").unwrap();
            assert_eq!(peek(&mut s, 4).unwrap(), b"abcd");
            assert_eq!(peek(&mut s, 9).unwrap(), b"efgh");
            s.seek(2).unwrap();
            assert_eq!(peek(&mut s, 2).unwrap(), b"cd");
            s.discard(3).unwrap();
            assert_eq!(peek(&mut s, 2).unwrap(), b"ef");
            s.seek(0).unwrap();
            assert_eq!(peek(&mut s, 2).unwrap(), b"de");
            drop(far);
            s.seek(5).unwrap();
            assert_eq!(peek(&mut s, 2).unwrap(), b"", "its last was sent");
        }
    }

    #[test]
    fn room_ends_when_nobody_reads_and_an_abort_resets() {
        let (s, mut far) = pair(true);
        let before = room(&s);
        assert!(before > 1000);
        let bytes = vec![7; 100_000];
        while send(&s, [&bytes, b"x"]).is_ok() {}
        assert!(room(&s) < before.max(10_000));
        s.abort();
        drop(s);
        let mut all = Vec::new();
        assert!(far.read_to_end(&mut all).is_err());
    }

    #[test]
    fn a_refused_connection_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        drop(listener);
        let r = open(Kind::Tcp, to, None).and_then(take_error);
        assert_eq!(r.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        let mapped = "[::ffff:127.0.0.1]:9".parse().unwrap();
        assert!(open(Kind::Udp, mapped, None).is_err());
    }
}
