//! Fragments: later ones follow the verdict on the first, without reassembly.
//!
//! Only the first fragment has ports. What was decided on it is remembered for the datagram, keyed by (zone, source, destination,
//! protocol, identification), and later fragments follow. A fragment that comes before the first is *held*; held frames are few, for
//! a short time, the oldest making room, and they go on in the order they came once the first is judged.
//!
//! Which bytes have come is known, so a datagram whose fragments overlap is dropped whole, with all that still comes of it (RFC 5722,
//! here for IPv4 as well: RFC 3128 shows why); an exact duplicate alone is dropped alone (RFC 8200 4.5). A complete datagram is
//! forgotten at once, for an IPv4 identification comes again soon.
//!
//! Datagrams are bounded in number, in all and per source, live a fixed time, and the oldest is evicted. What a caller has to
//! count as dropped is handed back to it by `out`.
//!
//! Use: [`Fragments::track`] each fragment; on [`Tracked::First`] judge it, then [`Fragments::decide`]; on [`Tracked::Hold`] give it to
//! [`Fragments::hold`]; and [`Fragments::tick`] when due.

mod header;
mod ranges;
mod slots;

pub use header::FragmentHeader;

use ranges::Ranges;
use slots::Slots;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;
use vswitch_core::wire::{L3, L4, Meta};

/// What names a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    /// Network or router the addresses belong to.
    pub zone: u16,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Protocol; 0 for IPv6, where only the first fragment tells (RFC 8200 4.5).
    pub proto: u8,
    /// Identification.
    pub id: u32,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct FragConfig {
    /// Datagrams in all.
    pub datagrams: usize,
    /// Datagrams of one source; sources share 256 counters by hash.
    pub per_source: u16,
    /// How long a datagram is remembered (RFC 791 recommends 15 s).
    pub age: Duration,
    /// Frames held in all.
    pub held_frames: usize,
    /// Frames held of one source.
    pub held_per_source: usize,
    /// Bytes held in all.
    pub held_bytes: usize,
    /// How long a frame is held.
    pub hold: Duration,
}

impl Default for FragConfig {
    fn default() -> Self {
        FragConfig {
            datagrams: 4096,
            per_source: 1024,
            age: Duration::from_secs(15),
            held_frames: 64,
            held_per_source: 48,
            held_bytes: 256 * 1024,
            hold: Duration::from_secs(2),
        }
    }
}

/// Why a fragment is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragDrop {
    /// Its length or place is impossible.
    #[error("track a fragment: its length or offset is impossible")]
    Malformed,
    /// The first fragment doesn't hold the L4 header (RFC 1858, RFC 7112).
    #[error("track a fragment: the first doesn't hold the L4 header")]
    Tiny,
    /// Fragments of the datagram overlap or contradict each other.
    #[error("track a fragment: the datagram's fragments overlap")]
    Overlap,
    /// It came already.
    #[error("track a fragment: it came already")]
    Duplicate,
    /// The datagram has more fragments than are followed.
    #[error("track a fragment: the datagram has too many")]
    TooMany,
    /// The source has as many datagrams on their way, or frames held, as it may.
    #[error("track a fragment: its source has too many on their way")]
    SourceLimit,
    /// It was held, and newer ones needed the room.
    #[error("hold a fragment: newer ones needed its room")]
    Evicted,
    /// It was held, and the first fragment didn't come in time.
    #[error("hold a fragment: the first didn't come in time")]
    Timeout,
}

/// What to do with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Tracked<V> {
    /// It is a whole packet.
    Whole,
    /// It is the first: judge it, then call [`Fragments::decide`] with this key.
    First(DatagramKey),
    /// The first fragment's verdict is its.
    Follow(V),
    /// It came before the first: give it to [`Fragments::hold`] with this key.
    Hold(DatagramKey),
    /// Drop it.
    Drop(FragDrop),
}

#[derive(Debug)]
struct Held {
    key: DatagramKey,
    until: Nanos,
    frame: Frame,
    meta: Meta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State<V> {
    /// The first hasn't come, or isn't judged yet.
    Open,
    Decided(V),
    /// Overlapping: everything is dropped until it ages.
    Dead,
}

#[derive(Debug)]
struct Datagram<V> {
    state: State<V>,
    ranges: Ranges,
    held: u16,
}

impl<V> Default for Datagram<V> {
    fn default() -> Self {
        Datagram {
            state: State::Open,
            ranges: Ranges::default(),
            held: 0,
        }
    }
}

/// Datagrams on their way. `V` is a verdict.
#[derive(Debug)]
pub struct Fragments<V> {
    config: FragConfig,
    slots: Slots<Datagram<V>>,
    /// In order of arrival.
    held: VecDeque<Held>,
    held_bytes: usize,
}

impl<V: Copy> Fragments<V> {
    /// An empty table.
    #[must_use]
    pub fn new(config: FragConfig) -> Fragments<V> {
        Fragments {
            config,
            slots: Slots::new(),
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    /// Frames held now: the ledger's "held".
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Bytes of them.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Datagrams known now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Judges a packet by what is known of its datagram. Held frames that are to be dropped for it go to `out`.
    pub fn track(
        &mut self,
        now: Nanos,
        zone: u16,
        frame: &Frame,
        meta: &Meta,
        out: &mut dyn FnMut(Frame, FragDrop),
    ) -> Tracked<V> {
        let (h, key) = match checked(zone, frame, meta) {
            Ok(Some(fragment)) => fragment,
            Ok(None) => return Tracked::Whole,
            Err(drop) => return Tracked::Drop(drop),
        };
        let slot = match self.slot(now, &key, out) {
            Ok(slot) => slot,
            Err(drop) => return Tracked::Drop(drop),
        };
        let datagram = self.slots.get_mut(slot);
        if matches!(datagram.state, State::Dead) {
            return Tracked::Drop(FragDrop::Overlap);
        }
        match datagram
            .ranges
            .add(h.offset as u16, (h.offset + h.len) as u16, h.more)
        {
            Ok(()) => {}
            Err(FragDrop::Overlap) => {
                datagram.state = State::Dead;
                self.drop_held(slot, &key, FragDrop::Overlap, out);
                return Tracked::Drop(FragDrop::Overlap);
            }
            Err(drop) => return Tracked::Drop(drop),
        }
        match datagram.state {
            State::Decided(verdict) => {
                if datagram.ranges.is_complete() {
                    self.slots.remove(slot);
                }
                Tracked::Follow(verdict)
            }
            _ if h.offset == 0 => Tracked::First(key),
            _ => Tracked::Hold(key),
        }
    }

    /// What [`Fragments::track`] would tell. Changes nothing.
    pub fn rehearse(&self, now: Nanos, zone: u16, frame: &Frame, meta: &Meta) -> Tracked<V> {
        let (h, key) = match checked(zone, frame, meta) {
            Ok(Some(fragment)) => fragment,
            Ok(None) => return Tracked::Whole,
            Err(drop) => return Tracked::Drop(drop),
        };
        let known = self.slots.find(&key);
        let datagram = match known.filter(|slot| self.slots.until(*slot) > now) {
            Some(slot) => self.slots.get(slot),
            None if self.slots.of_source(&key) >= self.config.per_source => {
                return Tracked::Drop(FragDrop::SourceLimit);
            }
            None => None,
        };
        if let Some(datagram) = datagram {
            if matches!(datagram.state, State::Dead) {
                return Tracked::Drop(FragDrop::Overlap);
            }
            let mut ranges = datagram.ranges.clone();
            let added = ranges.add(h.offset as u16, (h.offset + h.len) as u16, h.more);
            if let Err(drop) = added {
                return Tracked::Drop(drop);
            }
            if let State::Decided(verdict) = datagram.state {
                return Tracked::Follow(verdict);
            }
        }
        if h.offset == 0 {
            Tracked::First(key)
        } else {
            Tracked::Hold(key)
        }
    }

    /// The datagram's slot; a new one, if need be in the place of the oldest.
    fn slot(
        &mut self,
        now: Nanos,
        key: &DatagramKey,
        out: &mut dyn FnMut(Frame, FragDrop),
    ) -> Result<u32, FragDrop> {
        if let Some(slot) = self.slots.find(key) {
            if self.slots.until(slot) > now {
                return Ok(slot);
            }
            self.forget(slot, FragDrop::Timeout, out);
        }
        if self.slots.of_source(key) >= self.config.per_source {
            return Err(FragDrop::SourceLimit);
        }
        if self.slots.len() >= self.config.datagrams.max(1)
            && let Some(oldest) = self.slots.oldest()
        {
            self.forget(oldest, FragDrop::Evicted, out);
        }
        let until = now.after(self.config.age);
        let slot = self.slots.insert(*key, until);
        let datagram = self.slots.get_mut(slot);
        datagram.state = State::Open;
        datagram.held = 0;
        // Keeps its memory.
        datagram.ranges.clear();
        Ok(slot)
    }

    /// Keeps a fragment until the first is judged; the oldest held make room.
    pub fn hold(
        &mut self,
        now: Nanos,
        key: &DatagramKey,
        frame: Frame,
        meta: &Meta,
        out: &mut dyn FnMut(Frame, FragDrop),
    ) {
        let Some(slot) = self.slots.find(key) else {
            return out(frame, FragDrop::Evicted);
        };
        if matches!(self.slots.get_mut(slot).state, State::Dead) {
            return out(frame, FragDrop::Overlap);
        }
        let source = |k: &DatagramKey| (k.zone, k.src);
        let same = self.held.iter().filter(|h| source(&h.key) == source(key));
        if frame.len() > self.config.held_bytes
            || self.config.held_frames == 0
            || same.count() >= self.config.held_per_source
        {
            return out(frame, FragDrop::SourceLimit);
        }
        while self.held.len() >= self.config.held_frames
            || self.held_bytes + frame.len() > self.config.held_bytes
        {
            match self.pop_held() {
                Some(h) => out(h.frame, FragDrop::Evicted),
                None => break,
            }
        }
        self.held_bytes += frame.len();
        self.slots.get_mut(slot).held += 1;
        self.held.push_back(Held {
            key: *key,
            until: now.after(self.config.hold),
            frame,
            meta: *meta,
        });
    }

    /// The first fragment was judged: later ones follow. Those held go to `released`, in the order they came; the verdict is
    /// theirs.
    pub fn decide(
        &mut self,
        key: &DatagramKey,
        verdict: V,
        released: &mut dyn FnMut(Frame, &Meta),
    ) {
        let Some(slot) = self.slots.find(key) else {
            return;
        };
        let datagram = self.slots.get_mut(slot);
        if matches!(datagram.state, State::Dead) {
            return;
        }
        datagram.state = State::Decided(verdict);
        let complete = datagram.ranges.is_complete();
        self.take_held(slot, key, &mut |h| released(h.frame, &h.meta));
        if complete {
            self.slots.remove(slot);
        }
    }

    /// Lets go of at most `budget` frames or datagrams whose time is over; returns when to be called again.
    pub fn tick(
        &mut self,
        now: Nanos,
        budget: usize,
        out: &mut dyn FnMut(Frame, FragDrop),
    ) -> Nanos {
        for _ in 0..budget {
            if self.held.front().is_some_and(|h| h.until <= now) {
                if let Some(h) = self.pop_held() {
                    out(h.frame, FragDrop::Timeout);
                }
            } else if let Some(slot) = self.slots.oldest().filter(|s| self.slots.until(*s) <= now) {
                self.forget(slot, FragDrop::Timeout, out);
            } else {
                break;
            }
        }
        let held = self.held.front().map_or(Nanos::MAX, |h| h.until);
        let datagram = self
            .slots
            .oldest()
            .map_or(Nanos::MAX, |s| self.slots.until(s));
        held.min(datagram)
    }

    fn pop_held(&mut self) -> Option<Held> {
        let h = self.held.pop_front()?;
        self.held_bytes -= h.frame.len();
        if let Some(slot) = self.slots.find(&h.key) {
            self.slots.get_mut(slot).held -= 1;
        }
        Some(h)
    }

    /// The list is short, so walking it is.
    fn take_held(&mut self, slot: u32, key: &DatagramKey, each: &mut dyn FnMut(Held)) {
        if std::mem::take(&mut self.slots.get_mut(slot).held) == 0 {
            return;
        }
        for _ in 0..self.held.len() {
            match self.held.pop_front() {
                Some(h) if h.key == *key => {
                    self.held_bytes -= h.frame.len();
                    each(h);
                }
                Some(h) => self.held.push_back(h),
                None => break,
            }
        }
    }

    fn drop_held(
        &mut self,
        slot: u32,
        key: &DatagramKey,
        why: FragDrop,
        out: &mut dyn FnMut(Frame, FragDrop),
    ) {
        self.take_held(slot, key, &mut |h| out(h.frame, why));
    }

    fn forget(&mut self, slot: u32, why: FragDrop, out: &mut dyn FnMut(Frame, FragDrop)) {
        let key = self.slots.key(slot);
        self.drop_held(slot, &key, why, out);
        self.slots.remove(slot);
    }
}

/// A fragment with the key of its datagram, if it is one that can be.
fn checked(
    zone: u16,
    frame: &Frame,
    meta: &Meta,
) -> Result<Option<(FragmentHeader, DatagramKey)>, FragDrop> {
    let Some(h) = FragmentHeader::of(frame, meta) else {
        return Ok(None);
    };
    if h.len == 0 || (h.more && h.len % 8 != 0) || h.offset + h.len > 0xffff {
        return Err(FragDrop::Malformed);
    }
    let known = matches!(meta.proto, 1 | 6 | 17 | 58 | 132);
    if h.offset == 0 && known && meta.l4 == L4::Other {
        return Err(FragDrop::Tiny);
    }
    let key = key_of(zone, frame, meta, h.id).ok_or(FragDrop::Malformed)?;
    Ok(Some((h, key)))
}

fn key_of(zone: u16, frame: &Frame, meta: &Meta, id: u32) -> Option<DatagramKey> {
    let ip = frame.head().get(usize::from(meta.l3_off)..)?;
    let (src, dst, proto) = if meta.l3 == L3::V4 {
        let at = |i: usize| ip.get(i..).and_then(|b| b.first_chunk::<4>());
        ((*at(12)?).into(), (*at(16)?).into(), meta.proto)
    } else {
        let at = |i: usize| ip.get(i..).and_then(|b| b.first_chunk::<16>());
        ((*at(8)?).into(), (*at(24)?).into(), 0)
    };
    Some(DatagramKey {
        zone,
        src,
        dst,
        proto,
        id,
    })
}

#[cfg(test)]
mod tests;
