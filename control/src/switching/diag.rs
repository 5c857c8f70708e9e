//! What the kernel knows of a connection, whoever has its socket (sock_diag(7)). Asking takes no privilege.

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// include/uapi/linux/sock_diag.h, inet_diag.h, netlink.h
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
const INET_DIAG_INFO: u16 = 2;
/// Offsets in `struct tcp_info` (include/uapi/linux/tcp.h).
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const SEGS_OUT: usize = 136;
const SEGS_IN: usize = 140;

/// A connection as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// include/net/tcp_states.h
    pub(super) state: u8,
    /// Packets and bytes there and back.
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
}

#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

fn words(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(a) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&a.octets());
            all
        }
        IpAddr::V6(a) => a.octets(),
    }
}

fn request(what: u16, flags: u16, from: SocketAddr, to: SocketAddr, number: u64) -> Vec<u8> {
    let mut b = Vec::with_capacity(REQUEST);
    b.extend((REQUEST as u32).to_ne_bytes());
    b.extend(what.to_ne_bytes());
    b.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    b.extend([0; 8]);
    let family = if from.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    b.extend([
        family as u8,
        libc::IPPROTO_TCP as u8,
        1 << (INET_DIAG_INFO - 1),
        0,
    ]);
    b.extend(u32::MAX.to_ne_bytes());
    b.extend(from.port().to_be_bytes());
    b.extend(to.port().to_be_bytes());
    b.extend(words(from.ip()));
    b.extend(words(to.ip()));
    b.extend([0; 4]);
    b.extend((number as u32).to_ne_bytes());
    b.extend(((number >> 32) as u32).to_ne_bytes());
    b
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*b.get(at..)?.first_chunk()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*b.get(at..)?.first_chunk()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*b.get(at..)?.first_chunk()?))
}

/// An answer; `None` if it isn't one.
fn read(b: &[u8]) -> Option<Result<Known, Errno>> {
    if u16_at(b, 4)? == NLMSG_ERROR {
        let code = u32_at(b, HEADER)?.cast_signed();
        return Some(match code {
            0 => Ok(Known::default()),
            code => Err(Errno::from_raw(code.wrapping_neg())),
        });
    }
    let mut known = Known {
        state: *b.get(HEADER + 1)?,
        ..Known::default()
    };
    let mut at = HEADER + MESSAGE;
    while let (Some(len), Some(kind)) = (u16_at(b, at), u16_at(b, at + 2)) {
        if kind == INET_DIAG_INFO
            && let Some(info) = b.get(at + 4..at + usize::from(len).max(4))
        {
            known.bytes = [BYTES_ACKED, BYTES_RECEIVED].map(|o| u64_at(info, o).unwrap_or(0));
            known.packets = [SEGS_OUT, SEGS_IN].map(|o| u32_at(info, o).unwrap_or(0).into());
        }
        at += usize::from(len).next_multiple_of(4).max(4);
    }
    Some(Ok(known))
}

impl Diag {
    /// Errors: a kernel without it.
    pub(super) fn open() -> io::Result<Diag> {
        let fd = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Diag(fd))
    }

    fn ask(&self, request: &[u8]) -> io::Result<Known> {
        let fd = self.0.as_raw_fd();
        socket::send(fd, request, MsgFlags::MSG_DONTWAIT)?;
        let mut answer = [0; 4096];
        let n = socket::recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT)?;
        let read = read(answer.get(..n).unwrap_or_default());
        Ok(read.ok_or(io::ErrorKind::InvalidData)??)
    }

    /// A connection of this namespace. `None`: there is no such one, or not any more.
    pub(super) fn find(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        number: u64,
    ) -> io::Result<Option<Known>> {
        let found = self.ask(&request(BY_FAMILY, 0, from, to, number));
        match found.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::ENOENT | libc::ESTALE)) => Ok(None),
            _ => found.map(Some),
        }
    }

    /// Resets it. Errors: EPERM without CAP_NET_ADMIN, EOPNOTSUPP.
    pub(super) fn destroy(&self, from: SocketAddr, to: SocketAddr, number: u64) -> io::Result<()> {
        let asked = self.ask(&request(DESTROY, NLM_F_ACK, from, to, number));
        asked.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use vswitch_core::sys::twin;

    #[test]
    fn a_connection_is_known_by_its_ends_and_number() {
        let diag = Diag::open().unwrap();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let to = listener.local_addr().unwrap();
            let mut near = TcpStream::connect(to).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"hello").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
            far.write_all(b"and back").unwrap();
            near.read_exact(&mut [0; 8]).unwrap();
            let (from, number) = (near.local_addr().unwrap(), twin::number(&near).unwrap());
            let known = diag.find(from, to, number).unwrap().unwrap();
            assert_eq!((known.state, known.bytes[1]), (1, 8), "{known:?}");
            assert!(known.packets[0] > 0);
            assert_eq!(diag.find(from, to, number + 1).unwrap(), None);
            assert_eq!(
                diag.find(to, "192.0.2.1:9".parse().unwrap(), number)
                    .ok()
                    .flatten(),
                None
            );
        }
        assert_eq!(read(&[]), None);
    }
}
