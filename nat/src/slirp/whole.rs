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

/// Datagrams under way, and fragments of one.
const DATAGRAMS: usize = 32;
const PIECES: usize = 64;
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

#[derive(Debug)]
struct Datagram {
    key: Key,
    until: Nanos,
    /// Bytes that have come, and of the whole.
    got: u32,
    all: Option<u32>,
    pieces: Vec<Piece>,
}

/// Datagrams that aren't whole yet.
#[derive(Debug, Default)]
pub(super) struct Incomplete(Vec<Datagram>);

impl Incomplete {
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
        let Some(d) = self.0.get_mut(at).filter(|d| d.pieces.len() < PIECES) else {
            return Err(BAD);
        };
        let to = e.meta.l3_end as usize;
        let from = to.checked_sub(h.len as usize).ok_or(BAD)?;
        d.got = d.got.saturating_add(h.len);
        if !h.more {
            d.all = Some(h.offset.saturating_add(h.len));
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
