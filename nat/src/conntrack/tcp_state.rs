//! TCP as the middle sees it: states and windows.
//!
//! The states are those of RFC 9293, told from what both ends have sent and acknowledged. Which segments belong to the
//! connection is judged by the four bounds of "Real Stateful TCP Packet Filtering in IP Filter" (van Rooij, 2000). With *s* for
//! the sender's side and *r* for the receiver's:
//!
//! 1. seq <= the highest ack + window that r has sent: data that r has room for;
//! 2. end of data >= s's highest end - r's largest window: no older than a retransmission can be;
//! 3. ack <= r's highest end: nothing acknowledged that wasn't sent;
//! 4. ack >= r's highest end - the largest window of s (66,000 at least): no acknowledgement too old.
//!
//! They are loose where the middle knows too little: a side that hasn't been heard (asymmetric routes, connections taken up in
//! the middle) bounds nothing, and an unknown window scale counts as the largest.
//!
//! Against blind attacks, in the spirit of RFC 5961: the first acknowledgement of a side must cover the other's SYN exactly, so
//! that nobody makes a connection established without having seen it. A reset ends a connection only at exactly the sequence
//! number its receiver expects; elsewhere in the window it is passed on, for the receiver to challenge. A SYN in an established
//! connection changes nothing and is passed on, too: who has restarted learns from the challenge and resets, at the exact number.

use super::config::TcpOptions;
use super::conn::State;
use super::segment::{TcpSegment, flag};
use super::stats::Invalid;
use super::tuple::Dir;

/// What is known of the data one side sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Side {
    /// Highest sequence number after data it sent. SCTP: the tag it expects.
    pub end: u32,
    /// Highest sequence number it may send: the other's largest ack + window.
    pub max_end: u32,
    /// Largest window it offered, scaled; 0 until it is heard. SCTP: whether the tag is known.
    pub max_win: u32,
    /// Highest acknowledgement it sent. SCTP: the tag of a restart under way.
    pub max_ack: u32,
}

/// Window scale and flags of both sides, four bits each; the original side has the lower ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bits {
    /// Window scales.
    pub scales: u8,
    /// Flags.
    pub marks: u8,
}

/// Window scaling was offered.
const SCALES: u8 = 1;
/// It has acknowledged something.
const ACKED: u8 = 2;
/// It has sent FIN.
const FIN: u8 = 4;
/// Its FIN was acknowledged.
const FIN_ACKED: u8 = 8;

/// The largest window scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// Bound 4 is at least this, so that old acknowledgements of small windows pass.
const MIN_ACK_WINDOW: u32 = 66_000;

/// What a segment does to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It belongs to it; this is the state now.
    To(State),
    /// It opens the tuple's next connection: this one is over.
    Reopen,
}

/// Window tracking of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) sides: [Side; 2],
    pub(super) bits: Bits,
}

/// Whether sequence number `a` is after `b`.
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

fn later(a: u32, b: u32) -> u32 {
    if after(a, b) { a } else { b }
}

/// Flags that no honest stack combines, or none at all.
fn nonsense(seg: &TcpSegment) -> bool {
    match seg.flags & (flag::SYN | flag::FIN | flag::RST) {
        0 | flag::FIN => !seg.has(flag::ACK),
        flag::SYN | flag::RST => false,
        _ => true,
    }
}

impl Tcp {
    /// The first segment of a connection.
    pub(super) fn first(seg: &TcpSegment, options: TcpOptions) -> Result<(Tcp, State), Invalid> {
        if nonsense(seg) {
            return Err(Invalid::Flags);
        }
        let mut tcp = Tcp::default();
        if seg.has(flag::SYN) && !seg.has(flag::ACK) {
            tcp.open(Dir::Original, seg);
            return Ok((tcp, State::SynSent));
        }
        if !options.pickup || seg.has(flag::SYN | flag::FIN | flag::RST) {
            return Err(Invalid::NotSyn);
        }
        // In the middle of a connection whose history is lost. Its scales are unknown.
        for dir in [Dir::Original, Dir::Reply] {
            tcp.set_scale(dir, MAX_SCALE);
            tcp.set(dir, SCALES);
        }
        let window = tcp.window(Dir::Original, seg);
        tcp.sides[0].end = seg.end();
        tcp.sides[0].max_end = seg.end();
        tcp.sides[1].end = seg.ack;
        tcp.sides[1].max_end = seg.ack.wrapping_add(window);
        tcp.note(Dir::Original, seg, window);
        Ok((tcp, State::Established))
    }

    /// A segment of a connection in `state`. An error leaves everything as it was.
    pub(super) fn advance(
        &mut self,
        state: State,
        dir: Dir,
        seg: &TcpSegment,
        options: TcpOptions,
    ) -> Result<Next, Invalid> {
        if nonsense(seg) {
            return Err(Invalid::Flags);
        }
        if seg.has(flag::RST) {
            return self.reset(state, dir, seg);
        }
        if seg.has(flag::SYN) && !seg.has(flag::ACK) {
            return self.syn(state, dir, seg);
        }
        if seg.has(flag::SYN) {
            return self.syn_ack(state, dir, seg, options);
        }
        self.data(state, dir, seg, options)
    }

    /// SYN without ACK.
    fn syn(&mut self, state: State, dir: Dir, seg: &TcpSegment) -> Result<Next, Invalid> {
        match (state, dir) {
            // Sent again, perhaps with another number or without options.
            (State::SynSent, Dir::Original) => self.open(dir, seg),
            // Simultaneous open (RFC 9293 section 3.5).
            (State::SynSent, Dir::Reply) => {
                self.open(dir, seg);
                self.agree_on_scaling();
                return Ok(Next::To(State::SynSent2));
            }
            (State::TimeWait | State::Closed, _) => return Ok(Next::Reopen),
            // A repetition, or somebody who has restarted: the other end will say.
            _ => {}
        }
        Ok(Next::To(state))
    }

    fn syn_ack(
        &mut self,
        state: State,
        dir: Dir,
        seg: &TcpSegment,
        options: TcpOptions,
    ) -> Result<Next, Invalid> {
        match (state, dir) {
            (State::SynSent, Dir::Reply) => {
                if !self.covers_syn(dir, seg.ack) {
                    return Err(Invalid::Window);
                }
                self.open(dir, seg);
                self.agree_on_scaling();
                self.note(dir, seg, u32::from(seg.window).max(1));
                Ok(Next::To(State::SynRecv))
            }
            (State::SynSent, Dir::Original) | (State::TimeWait | State::Closed, _) => {
                Err(Invalid::State)
            }
            // Another number: made by a SYN cookie, or by who had forgotten the first.
            (State::SynRecv, Dir::Reply)
                if !self.has(Dir::Original, ACKED) && seg.ack == self.sides[1].max_ack =>
            {
                let scales = self.bits.scales;
                self.open(dir, seg);
                self.bits.scales = scales;
                self.note(dir, seg, u32::from(seg.window).max(1));
                Ok(Next::To(state))
            }
            (State::SynSent2 | State::SynRecv, _) => {
                if !self.fits(dir, seg) {
                    return refuse(state, options);
                }
                self.note(dir, seg, u32::from(seg.window).max(1));
                Ok(Next::To(self.opened()))
            }
            // Its acknowledgement got lost.
            _ => Ok(Next::To(state)),
        }
    }

    /// ACK, with data or FIN or neither.
    fn data(
        &mut self,
        state: State,
        dir: Dir,
        seg: &TcpSegment,
        options: TcpOptions,
    ) -> Result<Next, Invalid> {
        if state == State::SynSent {
            return match dir {
                // A challenge by who still has an older connection (RFC 5961 section 4); a reset will follow.
                Dir::Reply if seg.len == 0 && !seg.has(flag::FIN) => Ok(Next::To(state)),
                Dir::Reply => Err(Invalid::State),
                Dir::Original => self.one_way(seg, options),
            };
        }
        if !self.fits(dir, seg) {
            return refuse(state, options);
        }
        let window = self.window(dir, seg);
        self.note(dir, seg, window);
        if seg.has(flag::FIN) {
            self.set(dir, FIN);
        }
        let other = self.sides[dir.flip() as usize];
        if self.has(dir.flip(), FIN) && seg.ack == other.end {
            self.set(dir.flip(), FIN_ACKED);
        }
        Ok(Next::To(match state {
            State::Closed => State::Closed,
            State::SynSent2 | State::SynRecv => self.opened(),
            _ => self.established(),
        }))
    }

    /// The original side goes on although no answer was seen: it takes another way.
    fn one_way(&mut self, seg: &TcpSegment, options: TcpOptions) -> Result<Next, Invalid> {
        let us = self.sides[0];
        if !options.pickup || after(us.end, seg.end()) {
            return Err(Invalid::State);
        }
        if self.has(Dir::Original, SCALES) {
            self.set_scale(Dir::Reply, MAX_SCALE);
            self.set(Dir::Reply, SCALES);
        }
        let window = self.window(Dir::Original, seg);
        self.sides[1].end = seg.ack;
        self.sides[1].max_end = seg.ack.wrapping_add(window);
        self.note(Dir::Original, seg, window);
        if seg.has(flag::FIN) {
            self.set(Dir::Original, FIN);
        }
        Ok(Next::To(self.established()))
    }

    fn reset(&mut self, state: State, dir: Dir, seg: &TcpSegment) -> Result<Next, Invalid> {
        if state == State::SynSent {
            return match dir {
                // RFC 9293 section 3.10.7.3: in SYN-SENT a reset must acknowledge the SYN.
                Dir::Reply if seg.has(flag::ACK) && self.covers_syn(dir, seg.ack) => {
                    Ok(Next::To(State::Closed))
                }
                Dir::Reply => Err(Invalid::Reset),
                // The answer to a challenge; SYN will be sent again.
                Dir::Original => Ok(Next::To(state)),
            };
        }
        let (us, other) = (self.sides[dir as usize], self.sides[dir.flip() as usize]);
        let expected = self.has(dir.flip(), ACKED) && seg.seq == other.max_ack;
        if expected || (us.max_win != 0 && seg.seq == us.end) {
            return Ok(Next::To(State::Closed));
        }
        if other.max_win != 0 && self.in_room(dir, seg.seq, seg.seq) {
            return Ok(Next::To(state));
        }
        Err(Invalid::Reset)
    }

    /// A side's SYN, first or sent again.
    fn open(&mut self, dir: Dir, seg: &TcpSegment) {
        self.clear(dir);
        self.sides[dir as usize] = Side {
            end: seg.end(),
            // Until it is acknowledged, this is the number after SYN.
            max_end: seg.seq.wrapping_add(1),
            max_win: u32::from(seg.window).max(1),
            max_ack: 0,
        };
        if let Some(scale) = seg.scale {
            self.set(dir, SCALES);
            self.set_scale(dir, scale);
        }
    }

    /// Windows are scaled only if both have offered it (RFC 7323 section 2.2).
    fn agree_on_scaling(&mut self) {
        if !(self.has(Dir::Original, SCALES) && self.has(Dir::Reply, SCALES)) {
            self.bits.scales = 0;
        }
    }

    /// Whether `ack` by `dir` acknowledges the other's SYN, and nothing it hasn't sent.
    fn covers_syn(&self, dir: Dir, ack: u32) -> bool {
        let other = self.sides[dir.flip() as usize];
        !after(other.max_end, ack) && !after(ack, other.end)
    }

    /// Bounds 1 and 2.
    fn in_room(&self, dir: Dir, seq: u32, end: u32) -> bool {
        let (s, r) = (self.sides[dir as usize], self.sides[dir.flip() as usize]);
        if r.max_win == 0 {
            return true;
        }
        // Before the receiver's first acknowledgement its SYN alone has offered a window.
        let ahead = if self.has(dir.flip(), ACKED) {
            0
        } else {
            r.max_win
        };
        !after(seq, s.max_end.wrapping_add(ahead)) && !after(s.end.wrapping_sub(r.max_win), end)
    }

    /// Whether a segment with ACK is within all bounds.
    fn fits(&self, dir: Dir, seg: &TcpSegment) -> bool {
        let (s, r) = (self.sides[dir as usize], self.sides[dir.flip() as usize]);
        let acks = if r.max_win == 0 {
            true
        } else if self.has(dir, ACKED) {
            let oldest = r.end.wrapping_sub(s.max_win.max(MIN_ACK_WINDOW));
            !after(seg.ack, r.end) && !after(oldest, seg.ack)
        } else if s.max_win == 0 {
            // Its first segment that we see; what it has acknowledged isn't its first.
            !after(seg.ack, r.end)
        } else {
            self.covers_syn(dir, seg.ack)
        };
        acks && self.in_room(dir, seg.seq, seg.end())
    }

    /// Window of a segment after the handshake, scaled; at least 1, for probes of a closed window.
    fn window(&self, dir: Dir, seg: &TcpSegment) -> u32 {
        (u32::from(seg.window) << self.scale(dir)).max(1)
    }

    /// Takes in a segment that belongs to the connection and has ACK.
    fn note(&mut self, dir: Dir, seg: &TcpSegment, window: u32) {
        let acked = self.has(dir, ACKED);
        let [s, r] = match dir {
            Dir::Original => {
                let [a, b] = &mut self.sides;
                [a, b]
            }
            Dir::Reply => {
                let [a, b] = &mut self.sides;
                [b, a]
            }
        };
        let end = seg.end();
        if r.max_win != 0 && after(end, s.max_end) {
            // More than we thought there was room for: we have missed a window update.
            r.max_win = r
                .max_win
                .saturating_add(end.wrapping_sub(s.max_end))
                .min(1 << 30);
        }
        s.end = later(end, s.end);
        s.max_win = s.max_win.max(window);
        s.max_ack = if acked {
            later(seg.ack, s.max_ack)
        } else {
            seg.ack
        };
        if r.max_win == 0 {
            r.end = later(seg.ack, r.end);
        }
        r.max_end = later(seg.ack.wrapping_add(window), r.max_end);
        self.set(dir, ACKED);
    }

    /// The state while SYNs are being acknowledged.
    fn opened(&self) -> State {
        match (self.has(Dir::Original, ACKED), self.has(Dir::Reply, ACKED)) {
            (true, true) => self.established(),
            (false, false) => State::SynSent2,
            _ => State::SynRecv,
        }
    }

    /// The state after that.
    fn established(&self) -> State {
        let fin = |dir| (self.has(dir, FIN), self.has(dir, FIN_ACKED));
        match (fin(Dir::Original), fin(Dir::Reply)) {
            ((false, _), (false, _)) => State::Established,
            ((true, true), (true, true)) => State::TimeWait,
            ((true, _), (true, _)) => State::LastAck,
            ((true, true), _) | (_, (true, true)) => State::CloseWait,
            _ => State::FinWait,
        }
    }

    /// Whether data of `dir` that an ICMP error quotes may be under way (RFC 5927 section 4.1).
    pub(super) fn in_flight(&self, dir: Dir, seq: u32) -> bool {
        let side = self.sides[dir as usize];
        if side.max_win == 0 {
            return true;
        }
        let acked = self.has(dir.flip(), ACKED);
        !after(seq, side.end) && (!acked || !after(self.sides[dir.flip() as usize].max_ack, seq))
    }

    fn has(&self, dir: Dir, mark: u8) -> bool {
        self.bits.marks & mark << (4 * dir as u8) != 0
    }

    fn set(&mut self, dir: Dir, mark: u8) {
        self.bits.marks |= mark << (4 * dir as u8);
    }

    fn clear(&mut self, dir: Dir) {
        self.bits.marks &= !(15 << (4 * dir as u8));
        self.bits.scales &= !(15 << (4 * dir as u8));
    }

    fn scale(&self, dir: Dir) -> u8 {
        self.bits.scales >> (4 * dir as u8) & 15
    }

    fn set_scale(&mut self, dir: Dir, scale: u8) {
        let shift = 4 * dir as u8;
        self.bits.scales = self.bits.scales & !(15 << shift) | (scale & 15) << shift;
    }
}

/// Out of the window: refused, or passed on unnoted.
fn refuse(state: State, options: TcpOptions) -> Result<Next, Invalid> {
    if options.liberal && !matches!(state, State::SynSent2 | State::SynRecv) {
        Ok(Next::To(state))
    } else {
        Err(Invalid::Window)
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
