//! The host's addresses or routes have changed: which flows have to be moved.
//!
//! # Theory of operation
//!
//! A socket keeps the address it was bound to by connecting. A connection that is established lives on, if the address does or comes
//! back, and is left to the host's kernel, for a while ([`super::orphans`]). What would be bound to another address now may not hear answers any more: a datagram flow
//! is forgotten, so that its next datagram opens a new socket; a connection that has no answer yet is begun anew. But an address that
//! the interface still has beside the one that is preferred now, as with temporary addresses of IPv6, is as good as before. What no
//! route leads to at the moment is left alone too. All flows are looked at, some in each turn.

use super::{Flow, Key, Slirp, tcp};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use vswitch_core::clock::Nanos;
use vswitch_core::sys::sock::{self, Kind};

/// Places of the table looked at in one turn, and flows of these whose way is asked for.
const PLACES: u32 = 4096;
const ASKED: usize = 64;

/// The host's addresses and the interfaces that have them.
pub type HostAddresses = Vec<(IpAddr, String)>;

/// What there is to do since the host's network has changed.
#[derive(Debug)]
pub(super) struct Moved {
    addresses: Arc<HostAddresses>,
    /// Place of the table to look on at.
    at: u32,
}

impl Moved {
    /// Whether an interface has the address; nobody knows if none has any.
    fn has(&self, own: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|(a, _)| *a == own)
    }

    /// Whether a flow that is bound to `own` has to be bound to `now` instead.
    fn must_move(&self, own: IpAddr, now: IpAddr) -> bool {
        let has = |a: IpAddr| self.addresses.iter().filter(move |(b, _)| *b == a);
        // An address that isn't known yet has come since; what became of the other is told with it.
        let is_told = has(now).next().is_some();
        // Without an address but the loopback's and the link's the kernel chooses these, while the host is being renumbered.
        let is_inner = |a: IpAddr| match a {
            IpAddr::V4(a) => a.is_loopback() || a.is_link_local(),
            IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local(),
        };
        let leads_on = is_told && (!is_inner(now) || is_inner(own));
        own != now && leads_on && !has(own).any(|(_, i)| has(now).any(|(_, j)| i == j))
    }
}

impl Slirp {
    /// Has all flows looked at, by [`Slirp::follow_host`].
    pub(crate) fn host_changed(&mut self, addresses: Arc<HostAddresses>) {
        self.moved = Some(Moved { addresses, at: 0 });
    }

    /// Looks at some of the flows; true if there are more.
    pub(crate) fn follow_host(&mut self, now: Nanos) -> bool {
        let Some(mut moved) = self.moved.take() else {
            return false;
        };
        // Datagrams that wait name their flows.
        self.send_datagrams(now);
        let first = moved.at;
        let places = self.table.places();
        let mut asked = 0;
        while moved.at < places && moved.at - first < PLACES && asked < ASKED {
            asked += usize::from(self.follow_one(now, moved.at, &moved));
            moved.at += 1;
        }
        if moved.at < places {
            self.moved = Some(moved);
        }
        self.moved.is_some()
    }

    /// Looks at the flow in a place; whether its way had to be asked for.
    fn follow_one(&mut self, now: Nanos, i: u32, moved: &Moved) -> bool {
        let Some(slot) = self.table.get(i) else {
            return false;
        };
        let (key, fd) = (
            slot.key,
            match &slot.flow {
                Flow::Tcp(t) if t.0.is_connecting() => t.1.as_fd(),
                Flow::Tcp(_) => {
                    let has = |own| moved.has(own);
                    self.note_orphan(now, i, has);
                    return true;
                }
                // Who came to a published port has chosen its address.
                Flow::Served(_) => return false,
                Flow::Udp(u) => u.as_fd(),
                Flow::Ping(p) => p.as_fd(),
            },
        );
        let own = sock::local(fd).map(|a| a.ip());
        let chosen = self.outbound.chosen(&key);
        match own.ok().zip(chosen.ok()) {
            Some((own, chosen)) if moved.must_move(own, chosen) => {}
            _ => return true,
        }
        match &slot.flow {
            Flow::Tcp(_) => self.begin_anew(now, i, key),
            Flow::Udp(_) | Flow::Ping(_) | Flow::Served(_) => self.close(i, false),
        }
        true
    }

    fn begin_anew(&mut self, now: Nanos, i: u32, key: Key) {
        // What can't be opened now stays, and fails by itself.
        let Ok(fd) = self.open(now, Kind::Tcp, key, None) else {
            return;
        };
        let host = tcp::Host::new(fd);
        if let (Some(slot), Some(watch)) = (self.table.get(i), &self.watch)
            && let Flow::Tcp(t) = &mut slot.flow
            && watch.add(host.as_fd(), i as usize, true).is_ok()
        {
            t.1 = host;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_the_interface_still_has_is_kept() {
        let ip = |a: &str| a.parse::<IpAddr>().expect("an address");
        let has = |a: &str, i: &str| (ip(a), i.to_owned());
        let moved = Moved {
            addresses: Arc::new(vec![
                has("2001:db8::1", "eth0"),
                has("2001:db8::2", "eth0"),
                has("2001:db8:f::1", "tun0"),
                has("fe80::1", "eth0"),
                has("::1", "lo"),
            ]),
            at: 0,
        };
        let must = |own: &str, now: &str| moved.must_move(ip(own), ip(now));
        assert!(!must("2001:db8::1", "2001:db8::1"));
        assert!(!must("2001:db8::1", "2001:db8::2"), "temporary");
        assert!(must("2001:db8::9", "2001:db8::2"), "gone");
        assert!(must("2001:db8::1", "2001:db8:f::1"), "a VPN came up");
        for inner in ["fe80::1", "::1"] {
            assert!(!must("2001:db8::9", inner), "nothing in its place yet");
        }
        assert!(!must("2001:db8::9", "2001:db8::5"), "not known yet");
    }
}
