//! Datagrams of the host's sockets: many by one call, segmentation offload, and what became of those sent.
//!
//! Nothing here blocks. Datagrams of one size go to the kernel as one (UDP_SEGMENT), others several by one call (sendmmsg). What has come is
//! taken by recvmmsg into an [`Inbox`], joined ones as they are (UDP_GRO). What ICMP says of a datagram is in the error queue (IP_RECVERR).

use super::listen::{Received, address};
use super::mmsg;
use super::sock::set_option;
use arrayvec::ArrayVec;
use nix::cmsg_space;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg, sendmsg,
    setsockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// Most datagrams, or joined ones, received by one call.
pub const AT_ONCE: usize = 32;
/// Bytes of the longest; the memory of a place that nothing long comes to is never touched.
const LONGEST: usize = 1 << 16;
/// Room for two control messages: an int, and the address that a datagram was sent to (`struct in6_pktinfo`).
const CONTROL: usize = 64;
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
    /// Whom each came from and which address of ours it was sent to, if that was asked for.
    ends: ArrayVec<Ends, AT_ONCE>,
}

/// None: whom it came from isn't known.
type Ends = Option<(SocketAddr, Option<IpAddr>)>;

impl Inbox {
    /// Receives what has come, [`AT_ONCE`] at most; true if it were as many, so that there may be more. Errors: EAGAIN when there is
    /// nothing, and what ICMP said.
    pub fn receive(&mut self, fd: impl AsFd) -> io::Result<bool> {
        self.fill(fd, false)
    }

    /// The same of a socket that isn't connected, for [`Inbox::iter_from`].
    pub fn receive_from(&mut self, fd: impl AsFd) -> io::Result<bool> {
        self.fill(fd, true)
    }

    fn fill(&mut self, fd: impl AsFd, ends: bool) -> io::Result<bool> {
        self.got.clear();
        self.ends.clear();
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
        let mut names = ArrayVec::<libc::sockaddr_storage, AT_ONCE>::new();
        for _ in 0..if ends { AT_ONCE } else { 0 } {
            // SAFETY: sockaddr_storage is plain old data; all zero is a valid value.
            names.push(unsafe { zeroed() });
        }
        let mut msgs = ArrayVec::<libc::mmsghdr, AT_ONCE>::new();
        for (i, (place, c)) in places.iter_mut().zip(&mut control).enumerate() {
            // SAFETY: mmsghdr is plain old data; all zero is a valid value.
            let mut m: libc::mmsghdr = unsafe { zeroed() };
            m.msg_hdr.msg_iov = place;
            m.msg_hdr.msg_iovlen = 1;
            m.msg_hdr.msg_control = c.0.as_mut_ptr().cast();
            m.msg_hdr.msg_controllen = CONTROL as _;
            if let Some(name) = names.get_mut(i) {
                m.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
                m.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            }
            msgs.push(m);
        }
        // SAFETY: every header points at a vector, its place, a name and a control buffer that live and aren't read during the call.
        let n = unsafe { mmsg::receive(fd.as_fd(), &mut msgs) }?;
        for (i, m) in msgs.iter().take(n).enumerate() {
            let len = (m.msg_len as usize).min(LONGEST);
            // SAFETY: the header's control buffer is alive, and the kernel set its length.
            let size: Option<libc::c_int> =
                unsafe { mmsg::control(&m.msg_hdr, libc::SOL_UDP, libc::UDP_GRO) };
            let several = size.and_then(joined).filter(|s| usize::from(*s) < len);
            self.got.push((len, several));
            if let Some(name) = names.get(i) {
                self.ends.push(ends_of(name, &m.msg_hdr));
            }
        }
        Ok(n == AT_ONCE)
    }

    /// What came: the bytes, and of how many each is if several were joined.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<u16>)> {
        let places = self.bytes.chunks_exact(LONGEST).zip(&self.got);
        places.map(|(place, (len, several))| (place.get(..*len).unwrap_or_default(), *several))
    }

    /// The same with whom each came from, after [`Inbox::receive_from`].
    pub fn iter_from(&self) -> impl Iterator<Item = (&[u8], Received)> {
        self.iter()
            .zip(&self.ends)
            .filter_map(|((bytes, size), ends)| {
                let (from, to) = (*ends)?;
                let got = Received {
                    bytes: bytes.len(),
                    size,
                    from,
                    to,
                };
                Some((bytes, got))
            })
    }
}

/// Whom a datagram came from, and to which address of ours. Not where it was sent to but where an answer comes from: another if it
/// was broadcast.
fn ends_of(name: &libc::sockaddr_storage, header: &libc::msghdr) -> Ends {
    let len = Some(header.msg_namelen);
    // SAFETY: the kernel has written a name of this length, within the storage.
    let from = unsafe { SockaddrStorage::from_raw(std::ptr::from_ref(name).cast(), len) };
    // SAFETY: the header's control buffer is alive, and the kernel set its length; the structs are of integers.
    let v4: Option<libc::in_pktinfo> =
        unsafe { mmsg::control(header, libc::IPPROTO_IP, libc::IP_PKTINFO) };
    // SAFETY: as before.
    let v6: Option<libc::in6_pktinfo> =
        unsafe { mmsg::control(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) };
    let v4 = v4.map(|i| IpAddr::from(i.ipi_spec_dst.s_addr.to_ne_bytes()));
    let v6 = v6.map(|i| IpAddr::from(i.ipi6_addr.s6_addr));
    Some((address(&from?)?, v4.or(v6)))
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
    fn whom_each_came_from_is_told() {
        let fd = super::super::listen::open(Kind::Udp, "0.0.0.0:0".parse().unwrap()).unwrap();
        let port = super::super::sock::local(&fd).unwrap().port();
        let far = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        far[0].send_to(b"one", ("127.0.0.1", port)).unwrap();
        far[1].send_to(b"three", ("127.9.9.9", port)).unwrap();
        let mut inbox = Inbox::default();
        assert!(!inbox.receive_from(&fd).unwrap());
        let got: Vec<_> = inbox.iter_from().map(|(b, r)| (b.to_vec(), r)).collect();
        let ip = |s: &str| Some(s.parse::<IpAddr>().unwrap());
        let own = far.map(|f| f.local_addr().unwrap());
        assert_eq!((got[0].0.as_slice(), got[0].1.bytes), (&b"one"[..], 3));
        assert_eq!((got[0].1.from, got[0].1.to), (own[0], ip("127.0.0.1")));
        assert_eq!((got[1].1.from, got[1].1.to), (own[1], ip("127.9.9.9")));
        assert_eq!((got[1].0.as_slice(), got.len()), (&b"three"[..], 2));
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
