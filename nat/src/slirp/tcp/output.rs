//! What a mirror sends to the container: acknowledgements with the window, data, its end, and all that timers ask for.

use super::segment::{self, ACK, FIN, PSH, SYN, Says};
use super::{Fate, MAX_RETRIES, MAX_SYN_RETRIES, MAX_WINDOW, Mirror, Phase, SCALE, Stream, before};
use std::io::{self, ErrorKind};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;

/// A window smaller than this isn't told: it would bring tiny segments (RFC 9293 3.8.6.2.2).
const LEAST_ROOM: usize = 4096;
/// What we announce: as much as a packet takes; the gateway lowers it to what the container's network does.
const MSS: u16 = 65_495;

impl Mirror {
    /// Sends what is due and what may be, `budget` bytes at most; whether there was more. Once it has ended, no more of it.
    pub fn flush(
        &mut self,
        now: Nanos,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
        budget: usize,
    ) -> (Fate, bool) {
        let known = self.max;
        let sent = self.send(now, io, out, budget);
        if self.hung_up || self.urgent || self.eof {
            self.trickle.end();
        } else if self.phase == Phase::Open {
            self.trickle.received(now, self.max.wrapping_sub(known));
        }
        let Ok(more) = sent else {
            return (self.reset(io, out), false);
        };
        if self.ack_due || self.repeats > 0 {
            self.acknowledge(io, out);
        }
        self.arm(now);
        (self.fate(), more)
    }

    fn send(
        &mut self,
        now: Nanos,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
        budget: usize,
    ) -> io::Result<bool> {
        match self.phase {
            Phase::Connecting => return Ok(false),
            Phase::Answered => {
                if std::mem::take(&mut self.ack_due) {
                    out.extend(self.syn_ack(io));
                }
                return Ok(false);
            }
            Phase::Opening => {
                if std::mem::take(&mut self.ack_due) {
                    out.extend(self.syn_out(io));
                }
                return Ok(false);
            }
            Phase::Open => {}
        }
        self.discard(io)?;
        let mut left = budget;
        loop {
            if self.fin.is_some_and(|f| before(f, self.next)) {
                return Ok(false);
            }
            let known = self.fin.unwrap_or(self.max).wrapping_sub(self.next);
            if known == 0 && (self.fin.is_some() || self.eof) {
                self.send_fin(now, io, out);
                return Ok(false);
            }
            if known == 0 && !self.readable {
                return Ok(false);
            }
            // What isn't discarded yet is `base` to `next`.
            let ahead = self.next.wrapping_sub(self.base) as usize;
            let reach = io.reach().saturating_sub(ahead).min(MAX_WINDOW) as u32;
            let space = self.space().min(reach);
            let mss = u32::from(self.mss);
            // Sender's silly window avoidance (RFC 9293 3.8.6.2.1).
            if space == 0 || space < mss && self.flight() > 0 && (known == 0 || space < known) {
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
            let most = segment::most(self.inside.is_ipv6(), self.mss).min(space as usize);
            let most = if known > 0 {
                most.min(known as usize)
            } else {
                most
            };
            let Some(n) = self.peek(io, out, self.next, most, known == 0)? else {
                continue;
            };
            if self.flight() == 0 {
                self.since = now;
            }
            self.next = self.next.wrapping_add(n);
            if before(self.max, self.next) {
                self.max = self.next;
                self.timed.get_or_insert((self.next, now));
                // The kernel has no more for now; it tells when it has. An end that was told already isn't told again.
                self.readable = (n as usize) == most || self.hung_up || self.urgent;
            }
            left = left.saturating_sub(n as usize);
        }
    }

    /// Takes what the container has acknowledged out of the host socket's queue.
    fn discard(&mut self, io: &mut impl Stream) -> io::Result<()> {
        let to = match self.fin {
            Some(f) if before(f, self.una) => f,
            _ => self.una,
        };
        let n = to.wrapping_sub(self.base);
        if n > 0 {
            io.discard(n as usize)?;
            self.base = to;
            if before(self.peek_at, to) {
                self.peek_at = to;
            }
        }
        Ok(())
    }

    /// Bytes that may be sent.
    pub(super) fn space(&self) -> u32 {
        let edge = self.una.wrapping_add(self.window.min(self.cwnd));
        let space = edge.wrapping_sub(self.next);
        if space as i32 > 0 { space } else { 0 }
    }

    /// Makes a frame of up to `most` bytes from `seq` on; `None` if there are none, which is noted.
    fn peek(
        &mut self,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
        seq: u32,
        most: usize,
        fresh: bool,
    ) -> io::Result<Option<u32>> {
        if self.peek_at != seq {
            io.seek(seq.wrapping_sub(self.base) as usize)?;
            self.peek_at = seq;
        }
        let window = self.window(io);
        let header = self.header(ACK | PSH, seq, self.rcv_next, window);
        let mut n = 0;
        let made = segment::filled(&header, self.mss, most, &mut |into| {
            n = io.peek(into)?.min(most);
            Ok(n)
        });
        match made {
            Ok(Some(frame)) => {
                out.push(frame);
                // It doesn't say what is kept of those ahead.
                self.ack_due &= self.held() > 0;
                self.peek_at = seq.wrapping_add(n as u32);
                Ok(Some(n as u32))
            }
            Ok(None) if fresh => {
                self.eof = true;
                self.readable = false;
                Ok(None)
            }
            Err(e) if fresh && e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(None),
            // What was there once must be.
            Ok(None) => Err(ErrorKind::UnexpectedEof.into()),
            Err(e) => Err(e),
        }
    }

    fn send_fin(&mut self, now: Nanos, io: &mut impl Stream, out: &mut Vec<Frame>) {
        if self.flight() == 0 {
            self.since = now;
        }
        let seq = self.next;
        self.fin = Some(seq);
        self.next = seq.wrapping_add(1);
        if before(self.max, self.next) {
            self.max = self.next;
        }
        let window = self.window(io);
        let header = self.header(ACK | FIN, seq, self.rcv_next, window);
        out.extend(segment::bare(&header));
        self.ack_due = false;
    }

    /// Sends the first frame that isn't acknowledged once more, or what is missing of it.
    pub(super) fn resend(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) {
        self.timed = None;
        let end = match self.fin {
            Some(f) if before(f, self.max) => f,
            _ => self.max,
        };
        let mut known = end.wrapping_sub(self.una);
        if let Some(edge) = self.sacked.filter(|e| before(self.una, *e)) {
            known = known.min(edge.wrapping_sub(self.una));
        }
        if known == 0 {
            // Only the FIN is missing.
            self.next = self.una;
            return;
        }
        if self.discard(io).is_err() {
            return;
        }
        let most = segment::most(self.inside.is_ipv6(), self.mss).min(known as usize);
        // An error shows again with the next flush.
        let _ = self.peek(io, out, self.una, most, false);
    }

    /// The window to tell, in the header's unit.
    fn window(&mut self, io: &mut impl Stream) -> u16 {
        let scale = if self.scales { SCALE } else { 0 };
        if self.rcv_fin {
            return 0;
        }
        let mss = u32::from(self.mss);
        let few = (self.room / 2).max(LEAST_ROOM as u32).max(2 * mss);
        if self.refused || self.left() <= few {
            // The kernel counts what it keeps beside the payload too.
            let room = io.room();
            let room = (room - room / 8).min(MAX_WINDOW);
            // Less than a whole segment wouldn't be used: where that is long, the rest of it waits in its frame.
            let room = if room < LEAST_ROOM {
                0
            } else {
                (room as u32).max(mss.next_multiple_of(1 << SCALE))
            };
            self.room = room;
            // What was promised stays so, unless it was in vain.
            if self.refused || self.left() < room && self.held() == 0 {
                self.promise(self.rcv_next.wrapping_add(room));
            }
        }
        (self.left() >> scale).min(0xffff) as u16
    }

    fn acknowledge(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) {
        let window = self.window(io);
        let seq = self.next;
        let mut header = self.header(ACK, seq, self.rcv_next, window);
        if self.sacks {
            header.says = self.held.blocks(self.rcv_next);
        }
        let times = std::mem::take(&mut self.repeats) + u8::from(std::mem::take(&mut self.ack_due));
        for _ in 0..times {
            out.extend(segment::bare(&header));
        }
    }

    fn syn_ack(&mut self, io: &mut impl Stream) -> Option<Frame> {
        let room = (io.room() as u32).min(65_535);
        self.room = room;
        self.promise(self.rcv_next.wrapping_add(room));
        let seq = self.next.wrapping_sub(1);
        let mut header = self.header(SYN | ACK, seq, self.rcv_next, room as u16);
        header.says = Says::Syn(MSS, self.scales.then_some(SCALE), self.sacks);
        segment::bare(&header)
    }

    /// Whether something waits for the container's window to open.
    fn is_shut_out(&self) -> bool {
        let waits = self.readable && self.fin.is_none() || self.next != self.max;
        self.phase == Phase::Open && self.flight() == 0 && waits && self.space() < self.mss.into()
    }

    fn arm(&mut self, now: Nanos) {
        if self.phase == Phase::Connecting || self.flight() == 0 && !self.is_shut_out() {
            self.due = Nanos::MAX;
            return;
        }
        // A probe's time begins with the last word of the container.
        self.due = self.since.after(self.rto());
        if self.due <= now {
            self.since = now;
            self.due = now.after(self.rto());
        }
    }

    /// The timer of a connection has run out; [`Mirror::flush`] is to follow.
    pub fn expired(&mut self, now: Nanos, io: &mut impl Stream, out: &mut Vec<Frame>) -> Fate {
        if now < self.due {
            return Fate::Lives;
        }
        self.due = Nanos::MAX;
        self.since = now;
        self.unanswered += 1;
        self.backoff = self.backoff.saturating_add(1);
        let most = if self.phase == Phase::Open {
            MAX_RETRIES
        } else {
            MAX_SYN_RETRIES
        };
        if self.unanswered > most {
            return self.reset(io, out);
        }
        if matches!(self.phase, Phase::Answered | Phase::Opening) {
            self.ack_due = true;
        } else if self.flight() > 0 {
            // RFC 5681 3.1: from the start, slowly.
            let mss = u32::from(self.mss);
            self.ssthresh = (self.flight() / 2).max(2 * mss);
            self.cwnd = mss;
            (self.recover, self.timed, self.duplicates) = (None, None, 0);
            self.next = self.una;
        } else if self.is_shut_out() {
            // A sequence number already acknowledged: the container answers with its window.
            let window = self.window(io);
            let seq = self.una.wrapping_sub(1);
            out.extend(segment::bare(&self.header(ACK, seq, self.rcv_next, window)));
        }
        Fate::Lives
    }
}
