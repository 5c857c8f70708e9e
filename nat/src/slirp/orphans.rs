//! Established connections whose address the host has lost.
//!
//! # Theory of operation
//!
//! An address may come back: a lease is renewed, a laptop wakes up, an interface is set up anew. Until then the host's kernel sends nothing
//! for a connection by it, and one that is idle would never end. So when the host's addresses change ([`super::moved`]), connections by one
//! that is gone are noted with the time, and forgotten if it is there again. After [`PATIENCE`] they are reset, at both ends, unless the
//! kernel says that the address is its own all the same, as one of a local route is.

use super::{Flow, Key, Slirp};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::sys::sock;

/// How long an address may be away: longer than a lease takes to be renewed, or a network to be switched, and far shorter than the 15 minutes
/// after which the kernel gives up what it has to send (`net.ipv4.tcp_retries2`).
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// By their places in the table: since when.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashMap<u32, (Key, Nanos), RandomState>);

impl Orphans {
    /// Notes of a connection whether the host has its address.
    pub(super) fn note(&mut self, now: Nanos, i: u32, key: Key, has: bool) {
        if has {
            self.forget(i);
            return;
        }
        let noted = self.0.entry(i).or_insert((key, now));
        if noted.0 != key {
            *noted = (key, now);
        }
    }

    /// It has ended.
    pub(super) fn forget(&mut self, i: u32) {
        if !self.0.is_empty() {
            self.0.remove(&i);
        }
    }

    /// When the first of them is given up.
    pub(super) fn next(&self) -> Nanos {
        let first = self.0.values().map(|(_, since)| *since).min();
        first.map_or(Nanos::MAX, |since| since.after(PATIENCE))
    }
}

impl Slirp {
    /// Whether the host has the address of an established connection, as far as its interfaces tell.
    pub(super) fn note_orphan(&mut self, now: Nanos, i: u32, has: impl Fn(IpAddr) -> bool) {
        let Some(slot) = self.table.get(i) else {
            return;
        };
        let Flow::Tcp(t) = &slot.flow else { return };
        if let Ok(own) = sock::local(t.1.as_fd()) {
            let has = own.ip().is_loopback() || has(own.ip());
            self.orphans.note(now, i, slot.key, has);
        }
    }

    /// Resets those whose address has been gone for too long, and isn't the host's in another way.
    pub(super) fn end_orphans(&mut self, now: Nanos, is_own: impl Fn(IpAddr) -> bool) {
        if self.orphans.next() > now {
            return;
        }
        let is_over = |since: Nanos| since.after(PATIENCE) <= now;
        let all = self.orphans.0.iter();
        let over: Vec<(u32, Key)> = all
            .filter(|(_, (_, since))| is_over(*since))
            .map(|(i, (key, _))| (*i, *key))
            .collect();
        for (i, key) in over {
            self.orphans.forget(i);
            let Some(slot) = self.table.get(i).filter(|s| s.key == key) else {
                continue;
            };
            let Flow::Tcp(t) = &slot.flow else { continue };
            let own = sock::local(t.1.as_fd()).map(|a| a.ip());
            if own.is_ok_and(|own| !is_own(own)) {
                self.counters.rx_errors.add(1);
                self.close(i, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tcp::segment::{ACK, RST, SYN, Segment};
    use super::super::{HostConfig, Out};
    use super::*;
    use crate::slirp::HostAddresses;
    use crate::slirp::tcp::segment::{Header, Says, bare};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;
    use vswitch_core::frame::{Entry, Frame, Verdict};
    use vswitch_core::wire::parse;

    const INSIDE: &str = "192.0.2.10:5000";

    fn entry(frame: Frame) -> Entry {
        let meta = parse(frame.head(), frame.len()).unwrap();
        Entry {
            frame,
            meta,
            verdict: Verdict::Next,
        }
    }

    /// Flags of what is sent.
    fn sent(slirp: &mut Slirp) -> Vec<(u32, u8)> {
        let mut all = Vec::new();
        for out in slirp.take() {
            if let Out::Packet(frame) = out {
                let meta = parse(frame.head(), frame.len()).unwrap();
                let s = Segment::read(&frame, &meta).unwrap();
                all.push((s.seq, s.flags));
            }
        }
        all
    }

    /// A connection to `to`, established.
    fn connected(to: SocketAddr, now: Nanos) -> Slirp {
        let config = HostConfig {
            loopback: true,
            ..HostConfig::default()
        };
        let mut slirp = Slirp::new(config, None, 1, Arc::default());
        let mut header = Header {
            from: INSIDE.parse().unwrap(),
            to,
            seq: 100,
            ack: 0,
            flags: SYN,
            window: 1000,
            says: Says::Syn(1460, Some(7), true),
        };
        slirp
            .input(now, &mut entry(bare(&header).unwrap()))
            .unwrap();
        let event = vswitch_core::worker::Ready {
            key: 0,
            readable: false,
            writable: true,
            closed: false,
            error: false,
            urgent: false,
        };
        slirp.ready(now, &[event]);
        slirp.flush(now);
        let answer = sent(&mut slirp);
        assert_eq!(answer[0].1, SYN | ACK);
        (header.seq, header.ack) = (101, answer[0].0.wrapping_add(1));
        (header.flags, header.says) = (ACK, Says::Nothing);
        slirp
            .input(now, &mut entry(bare(&header).unwrap()))
            .unwrap();
        slirp.flush(now);
        slirp
    }

    #[test]
    fn who_has_lost_his_address_for_good_is_reset_and_others_live_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let now = Nanos(1_000_000_000_000);
        let mut slirp = connected(to, now);
        let addresses = |list: &[&str]| -> Arc<HostAddresses> {
            let one = |a: &&str| (a.parse().unwrap(), "eth0".to_owned());
            Arc::new(list.iter().map(one).collect())
        };
        // The loopback is never gone, whatever is told.
        slirp.host_changed(addresses(&["198.51.100.1"]));
        assert!(!slirp.follow_host(now));
        assert_eq!(slirp.orphans.next(), Nanos::MAX);
        // One that is away and comes back.
        slirp
            .orphans
            .note(now, 0, slirp.table.get(0).unwrap().key, false);
        let due = now.after(PATIENCE);
        assert_eq!(slirp.orphans.next(), due);
        slirp.host_changed(addresses(&["198.51.100.1"]));
        slirp.follow_host(now);
        assert_eq!(slirp.orphans.next(), Nanos::MAX, "it is there");
        // One that the kernel has all the same.
        slirp
            .orphans
            .note(now, 0, slirp.table.get(0).unwrap().key, false);
        slirp.tick(due);
        assert_eq!((slirp.counts()[0], slirp.orphans.0.len()), (1, 0));
        assert_eq!(sent(&mut slirp), []);
        // One that stays away.
        slirp
            .orphans
            .note(now, 0, slirp.table.get(0).unwrap().key, false);
        slirp.end_orphans(Nanos(due.0 - 1), |_| false);
        assert_eq!(slirp.counts()[0], 1);
        slirp.end_orphans(due, |_| false);
        assert_eq!((slirp.counts()[0], slirp.counters.rx_errors.get()), (0, 1));
        assert_eq!(sent(&mut slirp)[0].1, RST | ACK);
    }

    #[test]
    fn of_an_address_that_nobody_has_the_kernel_says_so() {
        assert!(sock::is_own("127.0.0.1".parse().unwrap()));
        assert!(!sock::is_own("203.0.113.77".parse().unwrap()));
        assert!(!sock::is_own("2001:db8:77::1".parse().unwrap()));
    }
}
