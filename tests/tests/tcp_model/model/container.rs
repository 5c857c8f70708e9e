//! The container's TCP: a correct end that is free in when it sends what, how often and in which pieces.

use super::wire::{ACK, Down, FIN, OURS, PSH, RST, SYN, THEIRS, Up};

/// Sorted pieces of a stream that don't touch each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces(pub(crate) Vec<(u32, u32)>);

impl Pieces {
    pub(crate) fn add(&mut self, from: u32, to: u32) {
        if from >= to {
            return;
        }
        self.0.push((from, to));
        self.0.sort_unstable();
        let mut all: Vec<(u32, u32)> = Vec::new();
        for (from, to) in self.0.drain(..) {
            match all.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => all.push((from, to)),
            }
        }
        self.0 = all;
    }

    pub(crate) fn hold(&self, from: u32, to: u32) -> bool {
        self.0.iter().any(|p| p.0 <= from && to <= p.1)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Container {
    /// Its stream: what is acknowledged, what was ever sent, what there is, and whether that is all.
    pub(crate) una: u32,
    pub(crate) max: u32,
    pub(crate) len: u32,
    pub(crate) ends: bool,
    pub(crate) fin_acked: bool,
    pub(crate) fin_sent: bool,
    /// How far it may send.
    pub(crate) edge: u32,
    pub(crate) our_scale: u8,
    /// Of its own windows; whether it takes selective acknowledgement.
    pub(crate) scale: u8,
    pub(crate) sacks: bool,
    /// What it has of the host's stream, and the end of that.
    pub(crate) got: Pieces,
    pub(crate) end: Option<u32>,
    /// The window it tells, as in the header.
    pub(crate) window: u16,
    /// Something has come that is to be acknowledged.
    pub(crate) owes: bool,
    pub(crate) was_reset: bool,
}

impl Container {
    /// How far it has the host's stream, the end included.
    pub(crate) fn next(&self) -> u32 {
        let next = self.got.0.first().filter(|p| p.0 == 0).map_or(0, |p| p.1);
        next + u32::from(self.end == Some(next))
    }

    fn header(&self, at: u32) -> Up {
        let mut options = Vec::new();
        let next = self.next();
        let ahead: Vec<_> = self.got.0.iter().filter(|p| p.0 > next).take(3).collect();
        if self.sacks && !ahead.is_empty() {
            options.extend([1, 1, 5, 2 + 8 * ahead.len() as u8]);
            for edge in ahead.iter().flat_map(|p| [p.0, p.1]) {
                options.extend(OURS.wrapping_add(1).wrapping_add(edge).to_be_bytes());
            }
        }
        Up {
            seq: THEIRS.wrapping_add(1).wrapping_add(at),
            ack: OURS.wrapping_add(1).wrapping_add(next),
            flags: ACK,
            window: self.window,
            options,
            from: at,
            len: 0,
        }
    }

    /// An acknowledgement.
    pub(crate) fn ack(&mut self) -> Up {
        self.owes = false;
        let last = self.max + u32::from(self.fin_sent);
        // No further than the window's edge (net/ipv4/tcp_output.c, `tcp_acceptable_seq`).
        self.header(last.min(self.edge.max(self.una)))
    }

    /// A segment from `at` on, with the end if it reaches that; within the window, or `beyond` it.
    pub(crate) fn segment(&mut self, at: u32, len: u32, beyond: bool) -> Option<Up> {
        let at = at.min(self.max);
        let edge = if beyond { u32::MAX } else { self.edge };
        let len = len.min(self.len - at).min(edge.saturating_sub(at));
        let end = at + len;
        let fin = self.ends && end == self.len && end < edge;
        if len == 0 && !fin {
            return None;
        }
        let mut up = self.header(at);
        up.len = len;
        up.flags |= PSH | if fin { FIN } else { 0 };
        self.max = self.max.max(end);
        self.fin_sent |= fin;
        self.owes = false;
        Some(up)
    }

    /// A window probe, or keep-alive.
    pub(crate) fn probe(&mut self) -> Up {
        self.header(self.una.wrapping_sub(1))
    }

    /// A reset at a place of its stream.
    pub(crate) fn reset(&self, at: u32) -> Up {
        let mut up = self.header(at);
        up.flags = RST;
        up
    }

    /// Whether it has all of the host's stream.
    pub(crate) fn has_end(&self) -> bool {
        self.end.is_some_and(|e| self.next() == e + 1)
    }

    /// Takes what comes.
    pub(crate) fn take(&mut self, d: &Down) {
        if d.has(RST) {
            self.was_reset = true;
            return;
        }
        if d.has(SYN) {
            // Once more.
            self.owes = true;
            return;
        }
        self.got.add(d.at, d.at.wrapping_add(d.len));
        if d.has(FIN) {
            self.end = Some(d.at.wrapping_add(d.len));
        }
        self.owes |= d.len > 0 || d.has(FIN) || (d.at as i32) < self.next() as i32;
        let ack = d.ack.wrapping_sub(THEIRS.wrapping_add(1));
        assert!(
            ack <= self.max + u32::from(self.fin_sent),
            "acknowledges {ack} of {}: it never came",
            self.max
        );
        self.una = self.una.max(ack.min(self.len));
        self.fin_acked |= self.fin_sent && ack == self.len + 1;
        self.edge = self.edge.max(ack + (u32::from(d.window) << self.our_scale));
    }
}
