//! Sockets that are opened in a container's network when the process that wants them can't enter it any more.
//!
//! # Theory of operation
//!
//! The child that has made the container's interface stays there ([`stay`]). It opens sockets that listen, as it is asked to by a stream, hands them
//! over ([`Opener`]), and can do nothing else. It ends with who asks. Such sockets keep the network namespace. So where that isn't known
//! by a process, whose end tells, the child looks whether it is still there under its name, and ends if it isn't: then the stream hangs up.

use super::sandbox;
use crate::netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use vswitch_core::sys::listen::{self, Interface};
use vswitch_core::sys::scm;
use vswitch_core::sys::sock::Kind;

/// A request: protocol, family, port in network order, address, name of the interface.
const REQUEST: usize = 4 + 16 + 16;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// An answer comes at once, unless the machine is very busy.
const ANSWER: Duration = Duration::from_secs(10);
/// How often is looked whether the namespace is there, in milliseconds.
const LOOK: u16 = 1000;

/// A socket of TCP that listens, or one of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) kind: Kind,
    pub(crate) at: SocketAddr,
    /// The interface that clients come by, if by one only.
    pub(crate) on: Option<Interface>,
}

impl Listen {
    /// Opens it here.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        listen::open_on(self.kind, self.at, self.on)
    }

    fn to_bytes(self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        let proto = if self.kind == Kind::Udp { UDP } else { TCP };
        let [p0, p1] = self.at.port().to_be_bytes();
        let (family, ip) = match self.at.ip() {
            IpAddr::V4(ip) => (4, ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => (6, ip),
        };
        let name = self.on.as_ref().map_or("", Interface::name);
        let parts: [&[u8]; 3] = [&[proto, family, p0, p1], &ip.octets(), name.as_bytes()];
        let all = parts.into_iter().flatten();
        bytes.iter_mut().zip(all).for_each(|(to, b)| *to = *b);
        bytes
    }

    fn from_bytes(bytes: &[u8; REQUEST]) -> Option<Listen> {
        let ([proto, family, p0, p1], rest) = bytes.split_first_chunk()?;
        let (ip, name) = rest.split_first_chunk::<16>()?;
        let ip = Ipv6Addr::from(*ip);
        let ip = match family {
            4 => ip.to_ipv4_mapped().map(|ip: Ipv4Addr| ip.into())?,
            _ => IpAddr::V6(ip),
        };
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let name = std::str::from_utf8(name.get(..end)?).ok()?;
        Some(Listen {
            kind: if *proto == UDP { Kind::Udp } else { Kind::Tcp },
            at: SocketAddr::new(ip, u16::from_be_bytes([*p0, *p1])),
            on: Interface::new(name),
        })
    }
}

/// Who asks for sockets.
#[derive(Debug)]
pub(crate) struct Opener(UnixStream);

impl Opener {
    pub(super) fn new(stream: UnixStream) -> io::Result<Opener> {
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Opener(stream))
    }

    /// It hangs up when the namespace has gone that was known by its name.
    pub(crate) fn watch(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// Has a socket opened. Errors: as [`listen::open_on`]; `UnexpectedEof`: there is nobody to ask any more.
    pub(crate) fn open(&mut self, wanted: &Listen) -> io::Result<OwnedFd> {
        let gone = |_| io::ErrorKind::UnexpectedEof;
        self.0.write_all(&wanted.to_bytes()).map_err(gone)?;
        let mut errno = [0; 4];
        let (n, mut fds) = scm::recv(&self.0, &mut errno).map_err(gone)?;
        match fds.pop() {
            Some(fd) => Ok(fd),
            None if n == errno.len() => {
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A namespace as it is known by its name: device and inode.
pub(super) type Named = (PathBuf, (u64, u64));

/// In the child: opens what is asked for, until nobody asks any more or the namespace has gone.
pub(super) fn stay(mut stream: UnixStream, named: Option<&Named>) -> io::Result<()> {
    // Who waits for the end of what it says doesn't wait for this process, and what a terminal says isn't for it.
    let nowhere = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&nowhere)?;
    nix::unistd::dup2_stdout(&nowhere)?;
    nix::unistd::dup2_stderr(&nowhere)?;
    drop(nowhere);
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    // The container's processes may be of the same user.
    nix::sys::prctl::set_dumpable(false)?;
    sandbox::confine_opening().map_err(io::Error::other)?;
    let timeout = match named {
        Some(_) => PollTimeout::from(LOOK),
        None => PollTimeout::NONE,
    };
    loop {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, timeout)? > 0;
        if named.is_some_and(|(path, id)| netns::identity(path) != Some(*id)) {
            return Ok(());
        }
        if !ready {
            continue;
        }
        let mut request = [0; REQUEST];
        stream.read_exact(&mut request)?;
        let opened = match Listen::from_bytes(&request) {
            Some(wanted) => wanted.open(),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        match opened {
            Ok(fd) => scm::send(&stream, &[0; 4], &[fd.as_fd()])?,
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(libc::EINVAL);
                scm::send(&stream, &errno.to_ne_bytes(), &[])?
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back() {
        for (at, on) in [
            ("127.0.0.1:80", None),
            ("[2001:db8::1]:65535", Some("eth0")),
        ] {
            let wanted = Listen {
                kind: Kind::Udp,
                at: at.parse().unwrap(),
                on: on.and_then(Interface::new),
            };
            assert_eq!(Listen::from_bytes(&wanted.to_bytes()), Some(wanted));
        }
    }
}
