//! A socket towards one resolver, for one question.
//!
//! A datagram socket is connected, so the kernel takes answers of the resolver's address only, and is bound anew each time, so
//! its port is the kernel's random choice: together with the id that is what somebody who guesses has to hit (RFC 5452).

use super::tcp::{self, Framing};
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use vswitch_core::sys::sock::{self, Kind};
use vswitch_core::sys::source::Source;

/// Datagrams that one question may get; more is an attack.
const MAX_DATAGRAMS: u16 = 256;

#[derive(Debug)]
pub(super) enum Socket {
    Udp(UdpSocket, u16),
    Tcp(Connection),
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    framing: Framing,
}

/// What a ready socket gave.
#[derive(Debug)]
pub(super) enum Progress {
    Message(Vec<u8>),
    Wait,
    Failed,
}

impl Socket {
    /// Opens a socket, registers it and sends the message (by TCP: when connected).
    pub(super) fn open(
        server: SocketAddr,
        tcp: bool,
        message: &[u8],
        source: &Source,
        (registry, token): (&Registry, Token),
    ) -> io::Result<Socket> {
        if tcp {
            let fd = sock::open(Kind::Tcp, server, Some(source))?;
            let mut stream = TcpStream::from_std(fd.into());
            registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            let out = tcp::frame(message).ok_or(ErrorKind::InvalidInput)?;
            return Ok(Socket::Tcp(Connection {
                stream,
                out,
                written: 0,
                framing: Framing::default(),
            }));
        }
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let from = source.towards(server.ip()).unwrap_or(any);
        let mut socket = UdpSocket::bind((from, 0).into())?;
        source.bind_interface(&socket, server.ip())?;
        socket.connect(server)?;
        registry.register(&mut socket, token, Interest::READABLE)?;
        socket.send(message)?;
        Ok(Socket::Udp(socket, 0))
    }

    /// Whether it is bound to another address than a new one would be.
    pub(super) fn is_stale(&self, server: SocketAddr, source: &Source) -> bool {
        let own = match self {
            Socket::Udp(socket, _) => socket.local_addr(),
            Socket::Tcp(connection) => connection.stream.local_addr(),
        };
        let own = own.map(|a| a.ip()).ok();
        source.chosen(server).ok().is_some_and(|a| Some(a) != own)
    }

    /// Goes on after an event; to be called until it doesn't give a message.
    pub(super) fn ready(&mut self, buffer: &mut [u8]) -> Progress {
        match self {
            Socket::Udp(socket, seen) => loop {
                *seen += 1;
                if *seen > MAX_DATAGRAMS {
                    return Progress::Failed;
                }
                return match socket.recv(buffer) {
                    Ok(n) => Progress::Message(buffer.get(..n).unwrap_or_default().to_vec()),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => Progress::Wait,
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => Progress::Failed,
                };
            },
            Socket::Tcp(connection) => connection.ready(buffer),
        }
    }
}

impl Connection {
    fn ready(&mut self, buffer: &mut [u8]) -> Progress {
        match self.exchange(buffer) {
            Ok(Some(message)) => Progress::Message(message),
            Ok(None) => Progress::Failed,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Progress::Wait
            }
            Err(_) => Progress::Failed,
        }
    }

    /// Writes, then reads; `None` at the end of the stream.
    fn exchange(&mut self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        if let Some(e) = self.stream.take_error()? {
            return Err(e);
        }
        while let Some(rest) = self.out.get(self.written..).filter(|r| !r.is_empty()) {
            self.written += self.stream.write(rest)?;
        }
        loop {
            if let Some(message) = self.framing.next_message() {
                return Ok(Some(message.to_vec()));
            }
            let n = self.stream.read(buffer)?;
            let Some(got) = buffer.get(..n).filter(|g| !g.is_empty()) else {
                return Ok(None);
            };
            self.framing.push(got).map_err(io::Error::other)?;
        }
    }
}
