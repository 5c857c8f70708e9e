//! Ports of the container's loopback that lead to the host's (`--tcp-ns`, `--udp-ns`).
//!
//! # Theory of operation
//!
//! The sockets are the container's, at its loopback: those of a list were opened there with the interface ([`super::super::inside`]), others are
//! opened as the host begins to listen ([`follow`]). One thread watches them all. It accepts connections, each of which is joined to one to the
//! host's loopback, within the kernel ([`Splicer`]), and carries datagrams, with a socket of the host for each of their clients
//! ([`datagrams`]). None of it crosses the switch.

mod datagrams;
mod follow;

use super::ports::Lead;
use datagrams::Flows;
pub(super) use follow::Followed;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vswitch_core::sys::{listen, sock};
use vswitch_nat::{HostPortCounters, SpliceOpen, SplicePath, Splicer};

const STACK: usize = 256 << 10;
/// Events taken at once, and connections accepted before others have their turn.
const EVENTS: usize = 64;
const ACCEPTS: usize = 64;
/// How often is looked what the host listens on, and which clients are idle.
const TICK: Duration = Duration::from_secs(1);

/// What an event is of: its place, times two; flows of datagrams are the odd ones.
fn token(of_flow: bool, place: usize) -> u64 {
    (place as u64) << 1 | u64::from(of_flow)
}

/// A socket of the container's, and where its connections lead; those of datagrams have no path.
#[derive(Debug)]
struct Port {
    fd: OwnedFd,
    lead: Lead,
    path: Option<SplicePath>,
}

/// The thread's.
struct Relay {
    epoll: Epoll,
    ports: Vec<Option<Port>>,
    flows: Flows,
    splicer: Splicer,
    open: Arc<SpliceOpen>,
    counters: Arc<HostPortCounters>,
    followed: Option<Followed>,
}

/// Starts the threads; `ports` are sockets of the container and where they lead.
pub(super) fn start(
    ports: impl Iterator<Item = (OwnedFd, Lead)>,
    followed: Option<Followed>,
) -> io::Result<()> {
    let open = |to: &[SocketAddr]| {
        let open = |to: &SocketAddr| sock::open(sock::Kind::Tcp, *to, None);
        to.iter().map(open).collect()
    };
    let mut relay = Relay {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        ports: Vec::new(),
        flows: Flows::default(),
        splicer: Splicer::start()?,
        open: Arc::new(open),
        counters: Arc::default(),
        followed,
    };
    for (fd, lead) in ports {
        relay.enter(fd, lead)?;
    }
    // What the host listens on already is there when the container begins.
    relay.follow();
    let thread = std::thread::Builder::new().name("loopback".into());
    let thread = thread.stack_size(STACK).spawn(move || relay.run());
    thread.map(drop)
}

impl Relay {
    /// Takes up a socket of the container's; its place.
    fn enter(&mut self, fd: OwnedFd, lead: Lead) -> io::Result<usize> {
        let free = self.ports.iter().position(Option::is_none);
        let place = free.unwrap_or(self.ports.len());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token(false, place));
        self.epoll.add(&fd, event)?;
        let streams = lead.from.kind == sock::Kind::Tcp;
        let path = streams.then(|| self.splicer.path(lead.to, self.open.clone()));
        if place == self.ports.len() {
            self.ports.push(None);
        }
        if let Some(slot) = self.ports.get_mut(place) {
            *slot = Some(Port { fd, lead, path });
        }
        Ok(place)
    }

    /// Closes one. Its connections go on, datagrams don't.
    fn leave(&mut self, place: usize) {
        if let Some(port) = self.ports.get_mut(place).and_then(Option::take) {
            // Another process may have it still, so that closing wouldn't be enough.
            let _ = self.epoll.delete(&port.fd);
            self.flows.leave(&self.epoll, place);
        }
    }

    /// Looks what the host listens on, where that is followed.
    fn follow(&mut self) {
        let Some(mut followed) = self.followed.take() else {
            return;
        };
        let change = followed.look();
        for place in change.gone {
            self.leave(place);
        }
        let mut lives = true;
        for lead in change.new {
            match followed.open(&lead) {
                Ok(fd) => {
                    if let Ok(place) = self.enter(fd, lead) {
                        followed.entered(lead, place);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    lives = false;
                    break;
                }
                // The container has it itself, or may not have it: with the next look.
                Err(_) => {}
            }
        }
        self.followed = lives.then_some(followed);
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut ticked = Instant::now();
        loop {
            let ticks = self.followed.is_some() || !self.flows.is_empty();
            let left = TICK.saturating_sub(ticked.elapsed());
            let timeout = match ticks {
                // Rounded up, or the last millisecond would be spent awake.
                true => EpollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX)),
                false => EpollTimeout::NONE,
            };
            let n = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(e) => {
                    tracing::error!("watching the container's loopback: {e}");
                    return;
                }
            };
            for event in events.iter().take(n) {
                let data = event.data();
                let place = usize::try_from(data >> 1).unwrap_or(usize::MAX);
                match data & 1 {
                    0 => self.serve(place),
                    _ => self.flows.answer(&self.epoll, place, &self.ports),
                }
            }
            if ticks && ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.flows.tick(&self.epoll, ticked);
                self.follow();
            }
        }
    }

    /// A socket of the container's has something.
    fn serve(&mut self, place: usize) {
        let Some(port) = self.ports.get(place).and_then(Option::as_ref) else {
            return;
        };
        let Some(path) = &port.path else {
            return self.flows.ask(&self.epoll, place, port);
        };
        for _ in 0..ACCEPTS {
            match listen::accept(&port.fd) {
                // One too many is closed, and its client told so.
                Ok((client, peer)) => drop(path.hand_over(client, peer, &self.counters)),
                Err(e) if e.raw_os_error() == Some(sock::TOO_MANY) => {
                    // Others must end first.
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Of one connection.
                Err(_) => {}
            }
        }
    }
}
