//! When a stream is looked at from time to time instead of with each segment.
//!
//! # Theory of operation
//!
//! A peer that writes little at a time, and often, has the worker wake for every segment, and each goes to the container as a frame of
//! its own, which is acknowledged. A lone writer at 20,000 times a second keeps a processor busy so, mostly with waking and looking. So after
//! [`ROW`] receives in a row that each brought little and followed each other closely, the stream *trickles*: who drives the
//! mirror listens no longer for its input, and has it look ([`Mirror::look`]) every [`PAUSE`]. What has come until then goes as one frame.
//!
//! Where an answer is waited for, none of this may happen: payload of the container ends it and begins the row anew, so a
//! request and its response never trickle. A look that finds nothing ends it too, and who listens again then hears of what comes behind it: the
//! last bytes wait for a pause at most. So does one that finds much (the pause would be bulk's bottleneck), and the stream's end.

use super::Mirror;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Bytes of a receive that is small: less than three segments of a network with an MTU of 1500.
const SMALL: u32 = 4 << 10;
/// Receives that follow each other this closely are worth waiting for.
const CLOSE: Duration = Duration::from_micros(200);
/// Small receives in a row before the stream trickles; a response in a few writes is over by then.
const ROW: u8 = 32;
/// Time between two looks: longer than [`CLOSE`], so that each finds something while the peer keeps the pace that began it, and short beside
/// the millisecond that timers of programs mostly have.
pub(crate) const PAUSE: Duration = Duration::from_micros(250);
/// Bytes of a look after which there is no more waiting: a frame at its longest.
const MUCH: u32 = 60 << 10;

/// A stream's recent past.
#[derive(Debug, Default)]
pub(super) struct Trickle {
    last: Nanos,
    row: u8,
    on: bool,
    /// The next receive is a look.
    looks: bool,
}

impl Trickle {
    /// So many bytes were received.
    pub(super) fn received(&mut self, now: Nanos, n: u32) {
        let looked = std::mem::take(&mut self.looks);
        if n == 0 {
            if looked {
                self.end();
            }
            return;
        }
        if self.on {
            if n >= MUCH {
                self.end();
            }
        } else if n < SMALL && now.since(self.last) < CLOSE {
            self.row = self.row.saturating_add(1);
            self.on = self.row >= ROW;
        } else {
            self.row = 0;
        }
        self.last = now;
    }

    /// It ends, or doesn't begin.
    pub(super) fn end(&mut self) {
        (self.row, self.on, self.looks) = (0, false, false);
    }
}

impl Mirror {
    /// Whether its stream is to be looked at every [`PAUSE`] instead of with each segment; it may change with each call of the mirror.
    #[must_use]
    pub fn trickles(&self) -> bool {
        self.trickle.on
    }

    /// The pause is over: the next flush looks.
    pub fn look(&mut self) {
        if self.trickle.on {
            self.trickle.looks = true;
            self.readable = true;
        }
    }

    /// It can't be done: as if the row had been interrupted.
    pub(crate) fn end_trickle(&mut self) {
        self.trickle.end();
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::{ACK, FIN};
    use super::super::tests::{OURS, Rig, SEQ, segment};
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn after(t: &mut Trickle, times: usize, every: Duration, bytes: u32) -> bool {
        for _ in 0..times {
            let now = t.last.after(every);
            t.received(now, bytes);
        }
        t.on
    }

    #[test]
    fn small_and_close_ones_in_a_row_trickle() {
        let often = usize::from(ROW) + 1;
        let new = || Trickle {
            last: Nanos(1 << 40),
            ..Trickle::default()
        };
        let mut t = new();
        assert!(!after(&mut t, often - 2, US * 50, 200), "too few");
        assert!(after(&mut t, 1, US * 50, 200));
        for (every, bytes) in [(US * 200, 200), (US * 50, SMALL)] {
            assert!(!after(&mut new(), 1000, every, bytes), "{every:?} {bytes}");
        }
        // One that is late or long begins the row anew.
        for (every, bytes) in [(US * 300, 200), (US * 50, SMALL)] {
            let mut t = new();
            after(&mut t, often - 2, US * 50, 200);
            assert!(!after(&mut t, 1, every, bytes));
            assert!(!after(&mut t, often - 2, US * 50, 200));
            assert!(after(&mut t, 1, US * 50, 200));
        }
    }

    #[test]
    fn it_ends_with_a_look_that_finds_nothing_or_much() {
        let on = || Trickle {
            on: true,
            looks: true,
            ..Trickle::default()
        };
        let mut t = on();
        t.received(Nanos(9), SMALL);
        assert!(t.on && !t.looks);
        t.received(Nanos(10), 0);
        assert!(t.on, "that was no look");
        for n in [0, MUCH] {
            let mut t = on();
            t.received(Nanos(9), n);
            assert!(!t.on, "{n}");
        }
    }

    /// A connection whose stream trickles.
    fn trickling() -> (Rig, u32) {
        let mut r = Rig::open();
        let mut got = 0;
        for _ in 0..100 {
            if r.m.trickles() {
                return (r, got);
            }
            arrives(&mut r, &mut got);
        }
        panic!("it never trickles");
    }

    /// Ten bytes that are told, sent and acknowledged.
    fn arrives(r: &mut Rig, got: &mut u32) {
        r.now = r.now.after(US * 50);
        r.io.queue.extend([7; 10]);
        r.m.readable(false);
        assert_eq!(r.flush().len(), 1);
        *got += 10;
        r.give(SEQ, OURS.wrapping_add(*got), ACK, 4000, &[]);
    }

    #[test]
    fn what_has_come_between_two_looks_goes_as_one_frame() {
        let (mut r, got) = trickling();
        r.io.queue.extend([7; 500]);
        // Nothing is read between them, whatever the container says.
        assert!(r.flush().is_empty());
        assert!(
            r.give(SEQ, OURS.wrapping_add(got), ACK, 4001, &[])
                .is_empty()
        );
        r.m.look();
        let sent = r.flush();
        assert_eq!((sent.len(), sent[0].4.len()), (1, 500));
        assert!(r.m.trickles());
        // Then nothing more.
        r.m.look();
        assert!(r.flush().is_empty());
        assert!(!r.m.trickles());
    }

    #[test]
    fn payload_of_the_container_ends_it_and_a_dialogue_never_trickles() {
        let (mut r, got) = trickling();
        r.give(SEQ, OURS.wrapping_add(got), ACK, 4000, b"next");
        assert!(!r.m.trickles());
        let mut r = Rig::open();
        let (mut seq, mut got) = (SEQ, 0u32);
        for _ in 0..1000 {
            r.now = r.now.after(US * 20);
            r.io.free = 1000;
            r.give(seq, OURS.wrapping_add(got), ACK, 4000, b"ask");
            seq = seq.wrapping_add(3);
            r.now = r.now.after(US * 20);
            r.io.queue.extend([7; 64]);
            r.m.readable(false);
            assert_eq!(r.flush().len(), 1);
            got += 64;
            assert!(!r.m.trickles());
        }
    }

    #[test]
    fn a_look_sees_the_end_behind_the_last_bytes() {
        let (mut r, got) = trickling();
        r.io.queue.extend([7; 20]);
        r.io.ended = true;
        r.m.look();
        assert_eq!(r.flush()[0].4.len(), 20);
        r.m.look();
        let sent = r.flush();
        assert_eq!(sent.len(), 1);
        assert_eq!(
            (sent[0].0, sent[0].2),
            (OURS.wrapping_add(got + 20), ACK | FIN)
        );
        assert!(!r.m.trickles());
    }

    #[test]
    fn a_shut_window_ends_it() {
        let (mut r, got) = trickling();
        r.input(&segment(SEQ, OURS.wrapping_add(got), ACK, 0, &[]));
        r.io.queue.extend([7; 20]);
        r.m.look();
        assert!(r.flush().is_empty());
        assert!(!r.m.trickles());
        // The rest goes once the window opens, without a word of the socket.
        let sent = r.give(SEQ, OURS.wrapping_add(got), ACK, 4000, &[]);
        assert_eq!((sent.len(), sent[0].4.len()), (1, 20));
    }
}
