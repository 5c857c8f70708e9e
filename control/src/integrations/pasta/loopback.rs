//! Ports of the container's loopback that lead to the host's (`--tcp-ns`).
//!
//! # Theory of operation
//!
//! The sockets listen in the container's namespace, at its loopback, and were opened there with the interface ([`super::super::inside`]). A thread
//! accepts; each connection is joined to one to the host's loopback, within the kernel ([`Splicer`]). None of it crosses the switch.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::sys::{listen, sock};
use vswitch_nat::{HostPortCounters, SplicePath, Splicer};

const STACK: usize = 256 << 10;

/// A socket of the container's, and where its connections lead.
#[derive(Debug)]
struct Port {
    listener: OwnedFd,
    path: SplicePath,
}

/// The threads that accept and relay; the relaying one ends when this is dropped.
#[derive(Debug)]
pub(super) struct Loopback {
    _splicer: Splicer,
}

impl Loopback {
    /// Starts; `ports` are sockets that listen and addresses of the host's loopback.
    pub(super) fn start(
        ports: impl Iterator<Item = (OwnedFd, SocketAddr)>,
    ) -> io::Result<Loopback> {
        let splicer = Splicer::start()?;
        let open = Arc::new(|to: &[SocketAddr]| {
            let open = |to: &SocketAddr| sock::open(sock::Kind::Tcp, *to, None);
            to.iter().map(open).collect()
        });
        let port = |(listener, to)| Port {
            listener,
            path: splicer.path(to, open.clone()),
        };
        let ports: Vec<Port> = ports.map(port).collect();
        let thread = std::thread::Builder::new().name("loopback".into());
        thread.stack_size(STACK).spawn(move || accept(&ports))?;
        Ok(Loopback { _splicer: splicer })
    }
}

fn accept(ports: &[Port]) {
    let counters = Arc::new(HostPortCounters::default());
    loop {
        let watched = ports.iter();
        let watched = watched.map(|p| PollFd::new(p.listener.as_fd(), PollFlags::POLLIN));
        let mut watched: Vec<PollFd<'_>> = watched.collect();
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready = ports.iter().zip(&watched);
        for (port, _) in ready.filter(|(_, w)| w.any().unwrap_or(true)) {
            match listen::accept(&port.listener) {
                // One too many is closed, and its client told so.
                Ok((client, peer)) => drop(port.path.hand_over(client, peer, &counters)),
                Err(e) if e.raw_os_error() == Some(sock::TOO_MANY) => {
                    // Others must end first.
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => {}
            }
        }
    }
}
