//! Putting datagrams of containers together again: a socket takes them whole only.
//!
//! The gateway has seen to it that fragments don't overlap and that their first one was judged. Here they wait for each other, few
//! datagrams at a time and not for long; the oldest makes room.

use super::errors::ttl_of;
use super::packet::ip_header;
use crate::frag::FragmentHeader;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, Verdict};
use vswitch_core::wire;

/// Datagrams under way, fragments of one, and of all: 2 MiB of memory, as each is in a frame. The longest datagram in fragments of a
/// packet of 576 bytes has 119.
const DATAGRAMS: usize = 32;
const PIECES: usize = 128;
const ALL_PIECES: usize = 1024;
/// Longest payload of a packet.
const LONGEST: u32 = 65_535;
/// How long one waits; Linux' `ipfrag_time`.
const PATIENCE: Duration = Duration::from_secs(30);
const ETH: usize = 14;

type Key = (IpAddr, IpAddr, u32, u8);

#[derive(Debug)]
struct Piece {
    offset: u32,
    /// Where its bytes are in the frame.
    from: usize,
    to: usize,
    frame: Frame,
}

impl Piece {
    fn end(&self) -> u32 {
        self.offset + (self.to - self.from) as u32
    }
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    until: Nanos,
    /// Bytes that have come, and of the whole.
    got: u32,
    all: Option<u32>,
    pieces: Vec<Piece>,
}

/// Datagrams that aren't whole yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Incomplete(Vec<Datagram>);

impl Incomplete {
    fn pieces(&self) -> usize {
        self.0.iter().map(|d| d.pieces.len()).sum()
    }

    /// Takes a fragment; gives the datagram when it is whole.
    pub(super) fn add(&mut self, now: Nanos, e: &mut Entry) -> Result<Option<Entry>, DropReason> {
        const BAD: DropReason = DropReason::Fragment;
        self.0.retain(|d| now < d.until);
        let (src, dst) = e.meta.addresses(e.frame.head()).ok_or(BAD)?;
        let Some(h) = FragmentHeader::of(&e.frame, &e.meta) else {
            return Err(BAD);
        };
        let key = (src, dst, h.id, e.meta.proto);
        let ttl = ttl_of(e);
        let at = match self.0.iter().position(|d| d.key == key) {
            Some(at) => at,
            None => {
                if self.0.len() >= DATAGRAMS {
                    self.0.remove(0);
                }
                self.0.push(Datagram {
                    key,
                    until: now.after(PATIENCE),
                    got: 0,
                    all: None,
                    pieces: Vec::new(),
                });
                self.0.len() - 1
            }
        };
        let end = h.offset.saturating_add(h.len);
        let Some(d) = self.0.get_mut(at).filter(|d| d.takes(end, h.more)) else {
            return Err(BAD);
        };
        let to = e.meta.l3_end as usize;
        let from = to.checked_sub(h.len as usize).ok_or(BAD)?;
        d.got = d.got.saturating_add(h.len);
        if !h.more {
            d.all = Some(end);
        }
        let place = d.pieces.partition_point(|p| p.offset < h.offset);
        let piece = Piece {
            offset: h.offset,
            from,
            to,
            frame: std::mem::take(&mut e.frame),
        };
        d.pieces.insert(place, piece);
        if d.all.is_none_or(|all| d.got < all) {
            // Its own datagram is the last to make room.
            while self.0.len() > 1 && self.pieces() > ALL_PIECES {
                self.0.remove(usize::from(at == 0));
            }
            return Ok(None);
        }
        let whole = self.0.remove(at);
        let frame = whole.join(ttl).ok_or(BAD)?;
        let meta = wire::parse(frame.head(), frame.len()).ok_or(BAD)?;
        Ok(Some(Entry {
            frame,
            meta,
            verdict: Verdict::Next,
        }))
    }
}

impl Datagram {
    /// Whether a fragment that ends there fits what has come.
    fn takes(&self, end: u32, more: bool) -> bool {
        let known = self.pieces.last().map_or(0, Piece::end);
        let last_fits = match self.all {
            Some(all) => more && end < all,
            None => more || known <= end,
        };
        self.pieces.len() < PIECES && end <= LONGEST && last_fits
    }

    fn join(&self, ttl: u8) -> Option<Frame> {
        let (src, dst, _, proto) = self.key;
        let len = ETH + if src.is_ipv4() { 20 } else { 40 };
        let mut frame = Frame::from_bytes([0; ETH + 40].get(..len)?)?;
        ip_header(frame.head_mut(), src, dst, proto, ttl, self.all? as usize)?;
        let mut next = 0;
        for p in &self.pieces {
            if p.offset != next {
                return None;
            }
            next += (p.to - p.from) as u32;
            let (head, tail) = (p.frame.head(), p.frame.tail());
            let split = head.len();
            let first = head.get(p.from.min(split)..p.to.min(split))?;
            let rest = tail.get(p.from.saturating_sub(split)..p.to.saturating_sub(split))?;
            if !frame.append(first) || !frame.append(rest) {
                return None;
            }
        }
        (Some(next) == self.all).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::port::PortId;

    fn fragment(id: u16, from: usize, len: usize, more: bool) -> Entry {
        let mut b = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        b.extend(((20 + len) as u16).to_be_bytes());
        b.extend(id.to_be_bytes());
        let field = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        b.extend(field.to_be_bytes());
        b.extend([9, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
        b.extend((from..from + len).map(|i| (i % 251) as u8));
        let frame = Frame::from_bytes(&b).unwrap();
        let meta = wire::parse(frame.head(), frame.len()).unwrap();
        Entry {
            frame,
            meta,
            verdict: Verdict::Forward(PortId(1)),
        }
    }

    #[test]
    fn the_longest_datagram_joins_from_the_shortest_usual_fragments() {
        let mut all = Incomplete::default();
        let (size, whole) = (552, 65_515);
        let mut at: Vec<usize> = (0..whole).step_by(size).collect();
        // The last and the first first.
        at.rotate_right(1);
        let mut joined = None;
        for from in at {
            let len = size.min(whole - from);
            let mut e = fragment(7, from, len, from + len < whole);
            joined = all.add(Nanos(1), &mut e).unwrap();
        }
        let joined = joined.unwrap();
        assert_eq!((joined.frame.len(), ttl_of(&joined)), (14 + 20 + whole, 9));
        let bytes = joined.frame.to_vec();
        assert!((0..).zip(&bytes[34..]).all(|(i, b)| *b == (i % 251) as u8));
        assert_eq!(all.pieces(), 0);
    }

    #[test]
    fn memory_has_its_bounds_and_the_oldest_makes_room() {
        let mut all = Incomplete::default();
        for id in 0..40 {
            for i in 0..100 {
                let _ = all.add(Nanos(id), &mut fragment(id as u16, 8 + i * 8, 8, true));
                assert!(all.pieces() <= ALL_PIECES && all.0.len() <= DATAGRAMS);
            }
        }
        assert_eq!(all.0.last().unwrap().key.2, 39);
        assert_eq!(all.0.last().unwrap().pieces.len(), 100);
        // Nothing behind the end, no second end, nothing beyond what a packet holds.
        let mut all = Incomplete::default();
        let add = |all: &mut Incomplete, from, more| {
            all.add(Nanos(1), &mut fragment(1, from, 8, more)).is_ok()
        };
        assert!(add(&mut all, 80, false));
        assert!(!add(&mut all, 80, true));
        assert!(!add(&mut all, 96, false));
        assert!(!add(&mut all, 65_528, true));
        assert!(add(&mut all, 16, true));
        // In the end all is forgotten.
        assert!(
            all.add(Nanos(60_000_000_000), &mut fragment(2, 8, 8, true))
                .is_ok()
        );
        assert_eq!(all.pieces(), 1);
    }
}
