//! Datagrams of the host's sockets: many by one call, segmentation offload, and what became of those sent.
//!
//! Nothing here blocks. Datagrams of one size go to the kernel as one (UDP_SEGMENT), others several by one call (sendmmsg). What has come is
//! taken by recvmmsg into an [`Inbox`], joined ones as they are (UDP_GRO). What ICMP says of a datagram is in the error queue (IP_RECVERR).

use super::mmsg;
use super::sock::set_option;
use arrayvec::ArrayVec;
use nix::cmsg_space;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::zeroed;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

/// Most datagrams, or joined ones, received by one call.
pub const AT_ONCE: usize = 32;
/// Bytes of the longest; the memory of a place that nothing long comes to is never touched.
const LONGEST: usize = 1 << 16;
/// Room for one control message, an int.
const CONTROL: usize = 32;
/// What a receive buffer is asked to be once a burst has come; the kernel gives what `net.core.rmem_max` allows.
const BURST: usize = 4 << 20;
/// Bytes of an erroneous datagram that are told.
const QUOTE: usize = 64;

/// The error of a datagram that is longer than the way takes, and of a way without segmentation.
pub const TOO_LONG: i32 = libc::EMSGSIZE;
pub const NO_SEGMENTATION: i32 = libc::EIO;

/// Sends datagrams of `size` bytes each, the last one as long as is left. Errors: as sendmsg(2); EIO and EINVAL where the way
/// out or the kernel has no segmentation.
pub fn send_segments(fd: impl AsFd, parts: &[IoSlice<'_>], size: u16) -> io::Result<usize> {
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let fd = fd.as_fd().as_raw_fd();
    Ok(sendmsg::<()>(fd, parts, &control, flags, None)?)
}

/// Receives one datagram, or several of one size joined (UDP_GRO): bytes in all, and bytes of each if there are several. Errors:
/// EAGAIN, and what ICMP said.
pub fn recv_segments(
    fd: impl AsFd,
    into: &mut [IoSliceMut<'_>; 2],
) -> io::Result<(usize, Option<u16>)> {
    let mut space = cmsg_space!(libc::c_int);
    let raw = fd.as_fd().as_raw_fd();
    let got = recvmsg::<()>(raw, into, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let mut size = None;
    if let Ok(messages) = got.cmsgs() {
        for m in messages {
            if let ControlMessageOwned::UdpGroSegments(n) = m {
                size = joined(n);
            }
        }
    }
    let several = size.filter(|s| usize::from(*s) < got.bytes);
    Ok((got.bytes, several))
}

#[derive(Debug)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

/// Where datagrams of one call are put: 2 MiB of addresses, of which as much is memory as was ever written.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Length of each, and of each that was joined to it.
    got: ArrayVec<(usize, Option<u16>), AT_ONCE>,
}

impl Inbox {
    /// Receives what has come, [`AT_ONCE`] at most; true if it were as many, so that there may be more. Errors: EAGAIN when there is
    /// nothing, and what ICMP said.
    pub fn receive(&mut self, fd: impl AsFd) -> io::Result<bool> {
        self.got.clear();
        if self.bytes.is_empty() {
            // Fresh pages of zeroes, which the kernel gives when they are written.
            self.bytes = vec![0; AT_ONCE * LONGEST];
        }
        let mut control = [const { Control([0; CONTROL]) }; AT_ONCE];
        let mut places = ArrayVec::<libc::iovec, AT_ONCE>::new();
        for place in self.bytes.chunks_exact_mut(LONGEST).take(AT_ONCE) {
            places.push(libc::iovec {
                iov_base: place.as_mut_ptr().cast(),
                iov_len: place.len(),
            });
        }
        let mut msgs = ArrayVec::<libc::mmsghdr, AT_ONCE>::new();
        for (place, c) in places.iter_mut().zip(&mut control) {
            // SAFETY: mmsghdr is plain old data; all zero is a valid value.
            let mut m: libc::mmsghdr = unsafe { zeroed() };
            m.msg_hdr.msg_iov = place;
            m.msg_hdr.msg_iovlen = 1;
            m.msg_hdr.msg_control = c.0.as_mut_ptr().cast();
            m.msg_hdr.msg_controllen = CONTROL as _;
            msgs.push(m);
        }
        // SAFETY: every header points at a vector, its place and a control buffer that live and aren't read during the call.
        let n = unsafe { mmsg::receive(fd.as_fd(), &mut msgs) }?;
        for m in msgs.iter().take(n) {
            let len = (m.msg_len as usize).min(LONGEST);
            // SAFETY: the header's control buffer is alive, and the kernel set its length.
            let size: Option<libc::c_int> =
                unsafe { mmsg::control(&m.msg_hdr, libc::SOL_UDP, libc::UDP_GRO) };
            let several = size.and_then(joined).filter(|s| usize::from(*s) < len);
            self.got.push((len, several));
        }
        Ok(n == AT_ONCE)
    }

    /// What came: the bytes, and of how many each is if several were joined.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<u16>)> {
        let places = self.bytes.chunks_exact(LONGEST).zip(&self.got);
        places.map(|(place, (len, several))| (place.get(..*len).unwrap_or_default(), *several))
    }
}

/// The size that the kernel says it joined datagrams of.
pub(super) fn joined(size: libc::c_int) -> Option<u16> {
    u16::try_from(size).ok().filter(|n| *n > 0)
}

/// Has the kernel keep more of a burst, as far as it lets us.
pub fn expect_bursts(fd: impl AsFd) {
    let _ = setsockopt(&fd.as_fd(), RcvBuf, &BURST);
}

/// Who cuts a datagram that is longer than the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nobody: it is refused, by EMSGSIZE or in the error queue, with the MTU.
    Never,
    /// The host's kernel, as far as it knows the path, as it does for a process that says nothing.
    Host,
    /// The host's kernel and routers.
    Anyone,
}

/// Says so (IP_MTU_DISCOVER).
pub fn set_cut(fd: impl AsFd, v6: bool, cut: Cut) -> io::Result<()> {
    let value = match cut {
        Cut::Never => libc::IP_PMTUDISC_DO,
        Cut::Host => libc::IP_PMTUDISC_WANT,
        Cut::Anyone => libc::IP_PMTUDISC_DONT,
    };
    let names = [libc::IP_MTU_DISCOVER, libc::IPV6_MTU_DISCOVER];
    set_for_family(fd, v6, names, value)
}

/// Sets the TTL or hop limit of what a socket sends; `None`: the host's own.
pub fn set_ttl(fd: impl AsFd, v6: bool, ttl: Option<u8>) -> io::Result<()> {
    let names = [libc::IP_TTL, libc::IPV6_UNICAST_HOPS];
    set_for_family(fd, v6, names, ttl.map_or(-1, libc::c_int::from))
}

/// Whether what ICMP says of a socket's packets is queued.
pub fn tell_errors(fd: impl AsFd, v6: bool, on: bool) -> io::Result<()> {
    set_for_family(fd, v6, [libc::IP_RECVERR, libc::IPV6_RECVERR], on.into())
}

/// Sets an option that has one name in IPv4 and another in IPv6.
fn set_for_family(
    fd: impl AsFd,
    v6: bool,
    [four, six]: [libc::c_int; 2],
    value: libc::c_int,
) -> io::Result<()> {
    let (level, name) = match v6 {
        true => (libc::IPPROTO_IPV6, six),
        false => (libc::IPPROTO_IP, four),
    };
    set_option(fd.as_fd(), level, name, value)
}

/// What a socket's error queue says of a packet sent (ip(7), `struct sock_extended_err`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// The errno.
    pub errno: i32,
    /// Type and code of the ICMP message, if it is from one.
    pub icmp: Option<(u8, u8)>,
    /// Next hop's MTU of EMSGSIZE.
    pub info: u32,
    /// The router or host that sent the message.
    pub from: Option<IpAddr>,
    /// What the message quotes, or its beginning: behind the UDP header, or from the ICMP header on.
    pub quote: ArrayVec<u8, QUOTE>,
}

/// Takes the next error. Errors: EAGAIN when there is none.
pub fn next_error(fd: impl AsFd) -> io::Result<QueuedError> {
    let mut space = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut found = QueuedError {
        errno: 0,
        icmp: None,
        info: 0,
        from: None,
        quote: ArrayVec::from([0; QUOTE]),
    };
    let bytes = {
        let mut iov = [IoSliceMut::new(&mut found.quote)];
        let raw = fd.as_fd().as_raw_fd();
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<SockaddrStorage>(raw, &mut iov, Some(&mut space), flags)?;
        for m in got.cmsgs().map_err(io::Error::from)? {
            let (e, from) = match m {
                ControlMessageOwned::Ipv4RecvErr(e, from) => (
                    e,
                    from.map(|a| IpAddr::from(a.sin_addr.s_addr.to_ne_bytes())),
                ),
                ControlMessageOwned::Ipv6RecvErr(e, from) => {
                    (e, from.map(|a| IpAddr::from(a.sin6_addr.s6_addr)))
                }
                _ => continue,
            };
            let from_icmp =
                e.ee_origin == libc::SO_EE_ORIGIN_ICMP || e.ee_origin == libc::SO_EE_ORIGIN_ICMP6;
            found.errno = e.ee_errno as i32;
            found.icmp = from_icmp.then_some((e.ee_type, e.ee_code));
            found.info = e.ee_info;
            found.from = from.filter(|_| from_icmp);
        }
        got.bytes
    };
    found.quote.truncate(bytes);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::sock::{Kind, open, send};
    use super::*;

    #[test]
    fn datagrams_go_in_segments_and_their_errors_come_back() {
        let far = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = far.local_addr().unwrap();
        let fd = open(Kind::Udp, to, None).unwrap();
        let bytes = [5; 2500];
        let sent = send_segments(&fd, &[IoSlice::new(&bytes)], 1000).unwrap();
        assert_eq!(sent, 2500);
        let mut buf = [0; 4000];
        let sizes = [(); 3].map(|()| far.recv(&mut buf).unwrap());
        assert_eq!(sizes, [1000, 1000, 500]);
        drop(far);
        send(&fd, [b"x", b""]).unwrap();
        let e = loop {
            match next_error(&fd) {
                Ok(e) => break e,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!((e.errno, e.icmp), (libc::ECONNREFUSED, Some((3, 3))));
    }

    #[test]
    fn what_has_come_is_taken_by_one_call() {
        let far = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let fd = open(Kind::Udp, far.local_addr().unwrap(), None).unwrap();
        let to = super::super::sock::local(&fd).unwrap();
        let mut inbox = Inbox::default();
        assert_eq!(
            inbox.receive(&fd).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let sent: Vec<Vec<u8>> = [0, 9, 9, 60_000, 3]
            .iter()
            .map(|n| vec![*n as u8; *n])
            .collect();
        for b in &sent {
            far.send_to(b, to).unwrap();
        }
        assert!(!inbox.receive(&fd).unwrap());
        let got: Vec<_> = inbox.iter().map(|(b, s)| (b.to_vec(), s)).collect();
        assert_eq!(got, sent.into_iter().map(|b| (b, None)).collect::<Vec<_>>());
        // Joined ones stay so.
        far.connect(to).unwrap();
        send_segments(&far, &[IoSlice::new(&[1; 250])], 100).unwrap();
        assert!(!inbox.receive(&fd).unwrap());
        let got: Vec<_> = inbox.iter().map(|(b, s)| (b.len(), s)).collect();
        assert_eq!(got, [(250, Some(100))]);
        for _ in 0..AT_ONCE {
            far.send(b"x").unwrap();
        }
        assert!(inbox.receive(&fd).unwrap(), "there may be more");
    }

    #[test]
    fn how_datagrams_travel_can_be_said() {
        for to in ["127.0.0.1:9", "[::1]:9"] {
            let to: std::net::SocketAddr = to.parse().unwrap();
            let fd = open(Kind::Udp, to, None).unwrap();
            for cut in [Cut::Never, Cut::Host, Cut::Anyone] {
                set_cut(&fd, to.is_ipv6(), cut).unwrap();
            }
            for ttl in [Some(3), None] {
                set_ttl(&fd, to.is_ipv6(), ttl).unwrap();
            }
            for on in [false, true] {
                tell_errors(&fd, to.is_ipv6(), on).unwrap();
            }
        }
    }
}
