//! Datagrams from the container's loopback to the host's, and back.
//!
//! Each client has a socket of the host, connected to the port that it asks, and is answered by the socket that it has asked, from the address that it
//! has sent to. A client that is silent for [`IDLE`] is forgotten; of too many, the one that has been silent for longest. That nobody listens
//! at the host isn't told: a socket that isn't connected sends no such error.

use super::{Port, token};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use vswitch_core::sys::listen;

/// Clients at most, and how long one may be silent (as pasta has it).
const MOST: usize = 512;
const IDLE: Duration = Duration::from_secs(180);
/// Datagrams before others have their turn.
const AT_ONCE: usize = 64;
/// Bytes of the longest, or of several that are joined.
const LONGEST: usize = 1 << 16;

/// A client of the container.
#[derive(Debug)]
struct Flow {
    /// To the host.
    socket: UdpSocket,
    port: usize,
    client: SocketAddr,
    /// What the client has sent to.
    own: IpAddr,
    used: Instant,
}

type Key = (usize, SocketAddr, IpAddr);

/// All clients.
#[derive(Debug)]
pub(super) struct Flows {
    all: Vec<Option<Flow>>,
    places: HashMap<Key, usize>,
    buffer: Vec<u8>,
}

impl Default for Flows {
    fn default() -> Flows {
        Flows {
            all: Vec::new(),
            places: HashMap::new(),
            buffer: vec![0; LONGEST],
        }
    }
}

impl Flow {
    fn key(&self) -> Key {
        (self.port, self.client, self.own)
    }
}

impl Flows {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn close(&mut self, epoll: &Epoll, place: usize) {
        if let Some(flow) = self.all.get_mut(place).and_then(Option::take) {
            let _ = epoll.delete(&flow.socket);
            self.places.remove(&flow.key());
        }
    }

    fn close_those(&mut self, epoll: &Epoll, over: impl Fn(&Flow) -> bool) {
        let all = self.all.iter().enumerate();
        let places: Vec<usize> = all
            .filter_map(|(place, f)| f.as_ref().filter(|f| over(f)).map(|_| place))
            .collect();
        for place in places {
            self.close(epoll, place);
        }
    }

    /// Forgets the clients of a port.
    pub(super) fn leave(&mut self, epoll: &Epoll, port: usize) {
        self.close_those(epoll, |f| f.port == port);
    }

    /// Forgets those that have been silent for long.
    pub(super) fn tick(&mut self, epoll: &Epoll, now: Instant) {
        self.close_those(epoll, |f| now.duration_since(f.used) >= IDLE);
    }

    /// Makes room; false if there is nothing to be closed.
    fn evict(&mut self, epoll: &Epoll) -> bool {
        let all = self.all.iter().enumerate();
        let all = all.filter_map(|(place, f)| Some((f.as_ref()?.used, place)));
        match all.min() {
            Some((_, place)) => {
                self.close(epoll, place);
                true
            }
            None => false,
        }
    }

    /// The client's place; it is taken up if it is new.
    fn place(&mut self, epoll: &Epoll, key: Key, to: SocketAddr) -> io::Result<usize> {
        if let Some(place) = self.places.get(&key) {
            return Ok(*place);
        }
        if self.places.len() >= MOST {
            self.evict(epoll);
        }
        let open = || {
            // From the same loopback.
            let socket = UdpSocket::bind((to.ip(), 0))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let socket = match open() {
            Err(_) if self.evict(epoll) => open()?,
            r => r?,
        };
        let free = self.all.iter().position(Option::is_none);
        let place = free.unwrap_or(self.all.len());
        epoll.add(
            &socket,
            EpollEvent::new(EpollFlags::EPOLLIN, token(true, place)),
        )?;
        let (port, client, own) = key;
        let flow = Some(Flow {
            socket,
            port,
            client,
            own,
            used: Instant::now(),
        });
        match self.all.get_mut(place) {
            Some(slot) => *slot = flow,
            None => self.all.push(flow),
        }
        self.places.insert(key, place);
        Ok(place)
    }

    /// Takes what clients have sent to a port, and gives it to the host.
    pub(super) fn ask(&mut self, epoll: &Epoll, place: usize, port: &Port) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..AT_ONCE {
            let (all, none) = buffer.split_at_mut(LONGEST);
            let got = listen::receive(&port.fd, &mut [IoSliceMut::new(all), IoSliceMut::new(none)]);
            let got = match got {
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => continue,
            };
            let own = got.to.unwrap_or(port.lead.from.at.ip());
            let Ok(place) = self.place(epoll, (place, got.from, own), port.lead.to) else {
                continue;
            };
            let Some(Some(flow)) = self.all.get_mut(place) else {
                continue;
            };
            flow.used = Instant::now();
            let bytes = buffer.get(..got.bytes).unwrap_or_default();
            let each = got.size.map_or(got.bytes, usize::from).max(1);
            // Also a datagram of nothing is one.
            let nothing = bytes.is_empty().then_some(bytes);
            for one in bytes.chunks(each).chain(nothing) {
                // An error may be that of the one before.
                if flow.socket.send(one).is_err() {
                    let _ = flow.socket.send(one);
                }
            }
        }
        self.buffer = buffer;
    }

    /// Takes what the host has answered, and gives it to the client.
    pub(super) fn answer(&mut self, epoll: &Epoll, place: usize, ports: &[Option<Port>]) {
        let Some(Some(flow)) = self.all.get_mut(place) else {
            return;
        };
        let Some(Some(port)) = ports.get(flow.port) else {
            return self.close(epoll, place);
        };
        flow.used = Instant::now();
        for _ in 0..AT_ONCE {
            match flow.socket.recv(&mut self.buffer) {
                Ok(n) => {
                    let bytes = self.buffer.get(..n).unwrap_or_default();
                    let _ = listen::send(&port.fd, [bytes, &[]], None, flow.own, flow.client);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // Nobody listens, or not any more; taken, it doesn't wake us again.
                Err(_) => {}
            }
        }
    }
}
