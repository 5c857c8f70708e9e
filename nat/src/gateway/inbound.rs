//! Published ports at sockets of the host: what clients of the host send comes in from the network of the host's sockets
//! ([`super::host`]), to the address that they sent it to, and is published, judged and tracked as what comes by an uplink.
//!
//! The container sees the client's own address, unless it couldn't answer that by way of the gateway: an address of the host's loopback,
//! or of the container's own network. For these the gateway's address stands, with the port kept if it is free.

use super::Gateway;
use super::host::HOST;
use crate::Endpoint;
use crate::slirp::{HostPort, HostPortCounters, SplicePath};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vswitch_core::bridge::NetworkId;
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::wire::L4;
use vswitch_core::worker::Cx;

/// A listening socket that is handed over.
#[derive(Debug)]
pub struct HostListener {
    /// What it is known by.
    pub port: HostPort,
    /// The socket; it doesn't block.
    pub fd: OwnedFd,
    /// What came to it.
    pub counters: Arc<HostPortCounters>,
}

/// Protocol and ends, the container's first, of a packet from outside that may begin a flow.
pub(super) type Begins = Option<(u8, SocketAddr, SocketAddr)>;

pub(super) fn begins(e: &Entry) -> Begins {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let at = usize::from(e.meta.l4_off);
    let l4 = e.frame.head().get(at..)?;
    let &[s0, s1, d0, d1] = l4.first_chunk()?;
    let may = match e.meta.l4 {
        L4::Udp => true,
        L4::Tcp => l4.get(13).is_some_and(|f| f & (SYN | ACK) == SYN),
        _ => false,
    };
    let (src, dst) = e.meta.addresses(e.frame.head()).filter(|_| may)?;
    let inside = (dst, u16::from_be_bytes([d0, d1])).into();
    let outside = (src, u16::from_be_bytes([s0, s1])).into();
    Some((e.meta.proto, inside, outside))
}

impl Gateway {
    /// Takes up listening sockets and closes others. Without a host uplink, they are closed too. Errors: one can't be watched.
    pub fn host_listen(
        &mut self,
        cx: &mut Cx,
        gone: &[HostPort],
        new: Vec<HostListener>,
    ) -> io::Result<()> {
        let Some(uplink) = self.host.uplink.as_deref_mut() else {
            return Ok(());
        };
        for port in gone {
            uplink.slirp.unlisten(*port);
        }
        let mut done = Ok(());
        for l in new {
            done = done.and(uplink.slirp.listen(l.port, l.fd, l.counters));
        }
        self.host.given = true;
        cx.again();
        done
    }

    /// Has connections from the host's loopback to some ports go straight into the container's namespace, or no longer. Each
    /// is judged as it begins, and again when policy changes ([`super::straight`]).
    pub fn host_splice(&mut self, paths: Vec<(HostPort, Option<SplicePath>)>) {
        if let Some(uplink) = self.host.uplink.as_deref_mut() {
            for (port, path) in paths {
                uplink.slirp.set_splice(port, path);
            }
        }
    }

    /// Whether what comes from a network is for a published port at a socket of the host.
    pub(super) fn is_host_published(&self, network: NetworkId, proto: u8, to: Endpoint) -> bool {
        network == HOST && self.published.find(proto, network, to).is_some()
    }

    /// Whether a client of the host is one that the containers of a network couldn't answer.
    pub(super) fn needs_our_address(&self, from: NetworkId, client: IpAddr) -> bool {
        let near = || self.interfaces.iter().flatten().any(|i| i.on_link(client));
        from == HOST && (client.is_loopback() || near())
    }

    /// What was to begin a flow was refused. While a neighbour is being asked for, not all that is for it can be kept; a SYN is sent
    /// again.
    pub(super) fn refused_inbound(&mut self, begins: Begins, why: DropReason) {
        if why == DropReason::NoNeighbour {
            return;
        }
        if let (Some((proto, inside, outside)), Some(uplink)) =
            (begins, self.host.uplink.as_deref_mut())
        {
            uplink.slirp.refused_inside(proto, inside, outside);
            self.host.given = true;
        }
    }
}
