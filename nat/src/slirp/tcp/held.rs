//! Segments that the host socket is to take yet: what it refused, and what came ahead of something lost.

use super::segment::{BLOCKS, FIN, Says, Segment};
use super::{Fate, Mirror, Phase, Stream, before};
use vswitch_core::frame::Frame;
use vswitch_core::wire::Meta;

/// Frames that wait for one connection.
const FRAMES: usize = 64;

#[derive(Debug)]
struct Waiting {
    seq: u32,
    end: u32,
    frame: Frame,
    meta: Meta,
}

/// In order of their sequence numbers, and where the newest begins.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<Waiting>, u32);

impl Held {
    /// What is kept behind `next`, as selective acknowledgement says it: what came last first (RFC 2018 4).
    pub(super) fn blocks(&self, next: u32) -> Says {
        let (mut blocks, mut n) = ([(0, 0); BLOCKS], 0u8);
        let mut add = |block: (u32, u32), is_newest: bool| {
            if is_newest {
                blocks.rotate_right(1);
                blocks[0] = block;
            } else if let Some(place) = blocks.get_mut(usize::from(n)) {
                *place = block;
            }
            n = (n + 1).min(BLOCKS as u8);
        };
        let mut ahead = self.0.iter().filter(|w| before(next, w.seq)).peekable();
        while let Some(first) = ahead.next() {
            let (from, mut to) = (first.seq, first.end);
            while let Some(w) = ahead.next_if(|w| !before(to, w.seq)) {
                if before(to, w.end) {
                    to = w.end;
                }
            }
            add((from, to), !before(self.1, from) && before(self.1, to));
        }
        Says::Blocks(n, blocks)
    }
}

impl Mirror {
    /// Frames that wait.
    pub fn held(&self) -> usize {
        self.held.0.len()
    }

    /// Keeps a segment that [`Mirror::input`] has seen, if there is something in it that is to be taken yet, and room. Otherwise the
    /// container has to send it once more.
    pub fn keep(&mut self, frame: &mut Frame, meta: &Meta, room: bool) {
        if self.phase != Phase::Open || self.rcv_fin {
            return;
        }
        let Some(s) = Segment::read(frame, meta) else {
            return;
        };
        let (seq, fin) = (s.seq, s.has(FIN));
        let end = seq.wrapping_add(s.len()).wrapping_add(u32::from(fin));
        // An acknowledgement from behind something lost has nothing to be taken.
        let wanted = seq != end && before(self.rcv_next, end) && before(seq, self.rcv_edge);
        if !wanted || s.flags & (super::RST | super::SYN) != 0 {
            return;
        }
        let is_ahead = before(self.rcv_next, seq);
        if !room || self.held.0.len() >= FRAMES {
            self.refused |= !is_ahead;
            return;
        }
        let at = self.held.0.partition_point(|w| before(w.seq, seq));
        let known = |w: &Waiting| !before(seq, w.seq) && !before(w.end, end);
        if self.held.0.iter().any(known) {
            return;
        }
        let waiting = Waiting {
            seq,
            end,
            frame: std::mem::take(frame),
            meta: *meta,
        };
        self.held.0.insert(at, waiting);
        self.held.1 = seq;
    }

    /// Gives the host socket what waits, as far as it is next and as it takes it.
    pub(super) fn take_held(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) -> Fate {
        while let Some(first) = self.held.0.first() {
            if before(self.rcv_next, first.seq) {
                break;
            }
            let first = self.held.0.remove(0);
            if self.rcv_fin || !before(self.rcv_next, first.end) {
                continue;
            }
            let Some(s) = Segment::read(&first.frame, &first.meta) else {
                continue;
            };
            if self.take(&s, io, out) == Fate::Ends {
                return Fate::Ends;
            }
            if !self.rcv_fin && before(self.rcv_next, first.end) {
                self.held.0.insert(0, first);
                break;
            }
        }
        Fate::Lives
    }
}
