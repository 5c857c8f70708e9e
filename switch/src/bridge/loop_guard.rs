//! Loop guard: a probe of ours that comes back shuts a port.
//!
//! # Theory of operation
//!
//! Every guarded port sends a probe when it comes up, when an address moves from or to it, and every few seconds: an untagged frame to a
//! group address that other bridges forward, of the local experimental EtherType 0x88b5 (IEEE 802, annex B). A probe
//! that comes back proves a loop between the port it was sent from and the port it came by (or a far end that reflects,
//! if they are the same). Of the two the one with the higher number is shut, whichever way the probe took, so that two probes that
//! cross shut one port, not both. A shut port receives and sends nothing but probes. After its hold time it opens,
//! unless probes still come back; the hold time doubles, up to sixteenfold, when the loop returns soon.
//!
//! Containers see probes, so a probe carries a keyed tag (SipHash) of the port and the number of the probe: with the
//! probes it was sent, a container can shut its own port and no other. Probes of other switches are forwarded like any
//! frame.
//!
//! Layout after the Ethernet header, big-endian: version (1 byte, 1), zero (1), switch (8, random), port (2), number (4),
//! tag (8), zeros up to 46.

use super::LoopGuard;
use crate::clock::Nanos;
use crate::frame::Frame;
use crate::port::PortId;
use crate::wire::{EtherType, MacAddr};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// EtherType of probes.
pub(super) const ETHERTYPE: EtherType = EtherType(0x88b5);
/// Where probes go: a locally administered group address ("vsw").
pub(super) const GROUP: MacAddr = MacAddr([0x03, 0x76, 0x73, 0x77, 0x00, 0x01]);

const VERSION: u8 = 1;
/// Shortest frame on a wire, without FCS.
const PROBE_LEN: usize = 60;
const BODY_LEN: usize = 24;
/// A probe that comes back later than this many further probes isn't believed.
const FRESH: u32 = 4;
/// Bound of the back-off, as a power of two.
const MAX_LEVEL: u32 = 4;

/// Makes and knows the switch's probes.
#[derive(Debug)]
pub(super) struct ProbeKey {
    switch: u64,
    key: RandomState,
}

impl Default for ProbeKey {
    fn default() -> Self {
        let key = RandomState::new();
        ProbeKey {
            switch: RandomState::new().hash_one("switch"),
            key,
        }
    }
}

impl ProbeKey {
    fn tag(&self, port: PortId, number: u32) -> u64 {
        self.key.hash_one((port.0, number))
    }

    /// The next probe of a port.
    pub(super) fn probe(&self, port: PortId, state: &LoopState) -> Option<Frame> {
        let number = state.number.fetch_add(1, Relaxed).wrapping_add(1);
        let mut bytes = [0u8; PROBE_LEN];
        let (eth, body) = bytes.split_at_mut(14);
        eth[..6].copy_from_slice(&GROUP.0);
        // A source of its own, unicast and locally administered, so that nobody's table is misled.
        let [a, b, c, ..] = self.switch.to_be_bytes();
        let [p, q] = port.0.to_be_bytes();
        eth[6..12].copy_from_slice(&[0x06, a, b, c, p, q]);
        eth[12..].copy_from_slice(&ETHERTYPE.0.to_be_bytes());
        body[0] = VERSION;
        body[2..10].copy_from_slice(&self.switch.to_be_bytes());
        body[10..12].copy_from_slice(&port.0.to_be_bytes());
        body[12..16].copy_from_slice(&number.to_be_bytes());
        body[16..24].copy_from_slice(&self.tag(port, number).to_be_bytes());
        Frame::from_bytes(&bytes)
    }

    /// The port and number of a probe of ours; `None` for anything else. `body` begins after the EtherType.
    pub(super) fn read(&self, body: &[u8]) -> Option<(PortId, u32)> {
        let body: &[u8; BODY_LEN] = body.first_chunk()?;
        let (&[version, _], rest) = body.split_first_chunk()?;
        let (switch, rest) = rest.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (number, tag) = rest.split_first_chunk()?;
        let port = PortId(u16::from_be_bytes(*port));
        let number = u32::from_be_bytes(*number);
        let ours = version == VERSION
            && u64::from_be_bytes(*switch) == self.switch
            && tag == self.tag(port, number).to_be_bytes();
        ours.then_some((port, number))
    }
}

/// One bit per port: it is shut. Small, for every frame sent looks here.
#[derive(Debug)]
pub(super) struct ShutPorts(Box<[AtomicU64]>);

impl Default for ShutPorts {
    fn default() -> Self {
        ShutPorts((0..=u16::MAX / 64).map(|_| AtomicU64::new(0)).collect())
    }
}

impl ShutPorts {
    pub(super) fn contains(&self, port: PortId) -> bool {
        self.0
            .get(port.index() / 64)
            .is_some_and(|w| w.load(Relaxed) & (1 << (port.0 % 64)) != 0)
    }

    fn set(&self, port: PortId, shut: bool) {
        let bit = 1 << (port.0 % 64);
        if let Some(w) = self.0.get(port.index() / 64) {
            if shut {
                w.fetch_or(bit, Relaxed);
            } else {
                w.fetch_and(!bit, Relaxed);
            }
        }
    }
}

/// Loop guard state of a port, shared by workers.
#[derive(Debug)]
pub(super) struct LoopState {
    port: PortId,
    shut: Arc<ShutPorts>,
    /// When the hold time is over; 0: the port is open.
    shut_until: AtomicU64,
    /// When a probe last proved the loop.
    proved: AtomicU64,
    /// When the port was opened last.
    opened: AtomicU64,
    level: AtomicU32,
    number: AtomicU32,
}

impl LoopState {
    /// An open port.
    pub(super) fn new(port: PortId, shut: Arc<ShutPorts>) -> LoopState {
        // The number may have been another port's.
        shut.set(port, false);
        LoopState {
            port,
            shut,
            shut_until: AtomicU64::new(0),
            proved: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            level: AtomicU32::new(0),
            number: AtomicU32::new(0),
        }
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut_until.load(Relaxed) != 0
    }

    /// Whether a probe of this number was sent just now.
    pub(super) fn is_fresh(&self, number: u32) -> bool {
        self.number.load(Relaxed).wrapping_sub(number) < FRESH
    }

    /// A probe proved a loop at this port. True if that shuts it.
    pub(super) fn prove(&self, now: Nanos, timing: &LoopGuard) -> bool {
        self.proved.store(now.0, Relaxed);
        if self.is_shut() {
            return false;
        }
        let open_for = now.since(Nanos(self.opened.load(Relaxed)));
        let soon = self.opened.load(Relaxed) != 0 && open_for < timing.hold * (1 << MAX_LEVEL);
        let level = if soon {
            (self.level.load(Relaxed) + 1).min(MAX_LEVEL)
        } else {
            0
        };
        self.level.store(level, Relaxed);
        let until = now.after(timing.hold * (1 << level)).0.max(1);
        let newly = self
            .shut_until
            .compare_exchange(0, until, Relaxed, Relaxed)
            .is_ok();
        if newly {
            self.shut.set(self.port, true);
        }
        newly
    }

    /// Opens the port if its hold time is over and no probe came back lately. True if that opens it.
    pub(super) fn recover(&self, now: Nanos, timing: &LoopGuard) -> bool {
        let until = self.shut_until.load(Relaxed);
        if until == 0 || now.0 < until {
            return false;
        }
        let quiet = now.since(Nanos(self.proved.load(Relaxed)));
        if quiet < timing.interval * 2 {
            return false;
        }
        self.opened.store(now.0, Relaxed);
        self.open();
        true
    }

    /// How much longer the port is shut, at least; `None` if it is open.
    pub(super) fn remaining(&self, now: Nanos) -> Option<Duration> {
        let until = self.shut_until.load(Relaxed);
        (until != 0).then(|| Nanos(until).since(now))
    }

    /// Opens the port at once.
    pub(super) fn reset(&self) {
        self.opened.store(0, Relaxed);
        self.open();
    }

    fn open(&self) {
        self.shut_until.store(0, Relaxed);
        self.shut.set(self.port, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_probes_are_known() {
        let (ours, others) = (ProbeKey::default(), ProbeKey::default());
        let state = LoopState::new(PortId(7), Arc::default());
        let probe = ours.probe(PortId(7), &state).expect("fits");
        let body = &probe.head()[14..];
        assert_eq!(ours.read(body), Some((PortId(7), 1)));
        assert_eq!(others.read(body), None);
        for i in (0..BODY_LEN).filter(|i| *i != 1) {
            let mut forged = body.to_vec();
            forged[i] ^= 1;
            assert_eq!(ours.read(&forged), None, "byte {i}");
        }
        assert_eq!(ours.read(&body[..BODY_LEN - 1]), None);
        assert!(state.is_fresh(1));
        for _ in 0..FRESH {
            ours.probe(PortId(7), &state);
        }
        assert!(!state.is_fresh(1));
    }

    #[test]
    fn holds_backs_off_and_opens() {
        let timing = LoopGuard {
            interval: Duration::from_secs(1),
            hold: Duration::from_secs(10),
        };
        let at = |s: u64| Nanos(s * 1_000_000_000);
        let shut: Arc<ShutPorts> = Arc::default();
        let s = LoopState::new(PortId(65), shut.clone());
        assert!(s.prove(at(100), &timing));
        assert!(!s.prove(at(101), &timing), "is shut");
        assert!(shut.contains(PortId(65)) && !shut.contains(PortId(1)));
        assert!(!s.recover(at(109), &timing));
        s.prove(at(109), &timing);
        assert!(!s.recover(at(110), &timing), "the loop is still there");
        assert!(s.recover(at(111), &timing));
        assert!(!s.is_shut() && !shut.contains(PortId(65)));
        assert!(s.prove(at(112), &timing));
        assert!(!s.recover(at(131), &timing), "twice as long");
        assert!(s.recover(at(132), &timing));
        assert!(s.prove(at(132 + 160), &timing));
        assert_eq!(s.remaining(at(292)), Some(Duration::from_secs(10)));
    }
}
