//! The TCP mirror: a container's connection held against a stream of the host.
//!
//! # Theory of operation
//!
//! There is no TCP stack in the middle, and no buffer. What the container sends goes from its frame into the host socket's send
//! buffer; only what the kernel took is acknowledged, and the window is the room left there. What the host socket
//! receives stays in its receive queue: it is *peeked* into frames as far as the container's window allows, taken away
//! when the container has acknowledged it, and peeked once more when something was lost on the way. So the window of
//! one side closes that of the other, and each side's end of data (FIN) and reset pass in their place.
//!
//! The kernel's count of its room isn't in bytes of payload, so now and then it doesn't take all that it seemed to. The rest, and
//! what came ahead of something lost, waits in its frames, few of them, and isn't acknowledged meanwhile.
//!
//! A [`Mirror`] is the state of one connection, a few hundred bytes. It does no I/O itself: the socket is a [`Stream`],
//! time is passed in, frames for the container are appended to a list. `input` takes what the container sends; what is
//! to be sent for it waits for [`Mirror::flush`], once per batch, so that many segments are answered by one.
//!
//! The container's end is as hostile as any frame. A segment is judged by RFC 9293 3.10.7 with the challenge acknowledgements of
//! RFC 5961. Towards the container loss is repaired as RFC 5681 and RFC 6582
//! (NewReno) say, timers are RFC 6298's. What is kept of the container's segments is acknowledged selectively (RFC 2018): without, Linux
//! takes what was lost for late where segments have overtaken each other, and waits for its timer. Timestamps aren't offered: nothing on
//! the way is far enough to repay their bytes.

mod active;
mod held;
mod host;
mod output;
pub mod segment;
#[cfg(test)]
mod tests;
mod trickle;

pub(crate) use host::Host;
use segment::{ACK, FIN, Header, PSH, RST, SYN, Says, Segment};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;
pub(crate) use trickle::PAUSE;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;

/// Our window scale: windows of up to 8 MiB.
const SCALE: u8 = 7;
const MAX_WINDOW: usize = 65_535 << SCALE;
/// Least MSS believed, as Linux' `TCP_MIN_MSS`; what a SYN without the option means (RFC 9293 3.7.1).
const MIN_MSS: u16 = 88;
const DEFAULT_MSS: u16 = 536;
/// The first congestion window: the way is a virtual link of this machine, so one long frame.
const FIRST_CWND: u32 = 64 << 10;
const MAX_CWND: u32 = 16 << 20;
/// Bounds of the retransmission timeout; the lower is Linux'.
const MIN_RTO: Duration = Duration::from_millis(200);
const FIRST_RTO: Duration = Duration::from_millis(500);
const MAX_RTO: Duration = Duration::from_secs(60);
/// A segment this long without PSH is from the middle of what a kernel has to send (net/ipv4/tcp.c, `tcp_mark_push`).
const BULK: usize = 16 << 10;
/// Retransmissions without an answer before the container's end counts as gone (Linux' `tcp_retries2` gives up after as long).
const MAX_RETRIES: u8 = 12;
const MAX_SYN_RETRIES: u8 = 5;

/// A stream of the host.
pub trait Stream {
    /// Sends; returns how many bytes were taken. `more` follows at once, so a rest that doesn't fill a segment may wait for it.
    fn send(&mut self, parts: [&[u8]; 2], more: bool) -> io::Result<usize>;
    /// Bytes that it would take now.
    fn room(&mut self) -> usize;
    /// Has the next peek begin so far behind what was discarded.
    fn seek(&mut self, offset: usize) -> io::Result<()>;
    /// How far behind what was discarded peeking goes.
    fn reach(&self) -> usize {
        usize::MAX
    }
    /// Copies bytes without taking them away, and goes on behind them. 0: there will be no more.
    fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize>;
    /// Takes bytes away that were peeked.
    fn discard(&mut self, n: usize) -> io::Result<()>;
    /// No more will be sent.
    fn shut(&mut self);
    /// Has closing reset it.
    fn abort(&mut self);
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// Both ends are done with it, or it was reset: close the stream.
    Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host socket connects; the container waits.
    Connecting,
    /// The container's SYN was answered.
    Answered,
    /// We have begun: the container is to answer our SYN.
    Opening,
    Open,
}

/// Whether `a` comes before `b` (RFC 9293 3.4).
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// One connection. Sequence numbers named `rcv` are the container's, the others ours.
#[derive(Debug)]
pub struct Mirror {
    inside: SocketAddr,
    outside: SocketAddr,
    phase: Phase,
    /// Expected next, the right edge of the window told, and the furthest ever told.
    rcv_next: u32,
    rcv_edge: u32,
    rcv_told: u32,
    /// Room of the host socket when it was last looked at.
    room: u32,
    /// Whether windows are scaled, and how the container's are.
    scales: bool,
    peer_scale: u8,
    /// The container takes selective acknowledgements.
    sacks: bool,
    /// The container has sent its last, and the host socket knows.
    rcv_fin: bool,
    /// The host socket hasn't taken all that came, and the rest is lost.
    refused: bool,
    /// What it is to take yet.
    held: held::Held,
    /// An acknowledgement is due, and how many repeated ones beside it.
    ack_due: bool,
    repeats: u8,
    mss: u16,
    /// First byte in the host socket's queue; where the next peek begins; first unacknowledged; next to be sent; most ever sent.
    base: u32,
    peek_at: u32,
    una: u32,
    next: u32,
    max: u32,
    /// The container's window, and the segment that it is from.
    window: u32,
    wl: (u32, u32),
    cwnd: u32,
    ssthresh: u32,
    /// Loss is being repaired until this is acknowledged.
    recover: Option<u32>,
    duplicates: u8,
    /// What the container has behind the first hole, if it says so.
    sacked: Option<u32>,
    /// There may be bytes to peek; the host's peer has sent its last; that was seen by a peek; the FIN sent for it.
    readable: bool,
    hung_up: bool,
    eof: bool,
    fin: Option<u32>,
    /// There has been urgent data: a peek that finds less than it asked for may have ended there only.
    urgent: bool,
    trickle: trickle::Trickle,
    /// Round trip: smoothed, its variation, and what is being timed.
    srtt: Option<Duration>,
    rttvar: Duration,
    timed: Option<(u32, Nanos)>,
    /// Times the timer has run out: in a row without a word of the container, and since it last let us go on.
    unanswered: u8,
    backoff: u8,
    /// Since when the timer runs.
    since: Nanos,
    /// When [`Mirror::expired`] is to be called.
    pub due: Nanos,
}

impl Mirror {
    /// Of a container's SYN, with our initial sequence number; the host socket connects.
    pub fn new(inside: SocketAddr, outside: SocketAddr, syn: &Segment<'_>, iss: u32) -> Mirror {
        let mss = syn.mss.unwrap_or(DEFAULT_MSS).max(MIN_MSS);
        let next = syn.seq.wrapping_add(1);
        let first = iss.wrapping_add(1);
        Mirror {
            inside,
            outside,
            phase: Phase::Connecting,
            rcv_next: next,
            rcv_edge: next,
            rcv_told: next,
            room: 0,
            scales: syn.scale.is_some(),
            peer_scale: syn.scale.unwrap_or(0),
            sacks: syn.sack,
            rcv_fin: false,
            refused: false,
            held: held::Held::default(),
            ack_due: false,
            repeats: 0,
            mss,
            base: first,
            peek_at: first,
            una: iss,
            next: iss,
            max: iss,
            window: syn.window.into(),
            wl: (syn.seq, iss),
            cwnd: FIRST_CWND.max(u32::from(mss) * 2),
            ssthresh: MAX_CWND,
            recover: None,
            duplicates: 0,
            sacked: None,
            readable: false,
            hung_up: false,
            eof: false,
            fin: None,
            urgent: false,
            trickle: trickle::Trickle::default(),
            srtt: None,
            rttvar: Duration::ZERO,
            timed: None,
            unanswered: 0,
            backoff: 0,
            since: Nanos(0),
            due: Nanos::MAX,
        }
    }

    /// Whether the container waits for the host socket to connect.
    pub fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// Whether one of the ends has sent its last: such a connection goes first when room is needed.
    pub(crate) fn is_ending(&self) -> bool {
        self.rcv_fin || self.fin.is_some()
    }

    /// The host socket has connected: the SYN is answered by the next flush.
    pub fn connected(&mut self, now: Nanos) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Answered;
            self.next = self.una.wrapping_add(1);
            self.max = self.next;
            self.since = now;
            self.ack_due = true;
            self.readable = true;
        }
    }

    /// The host socket has something to read; `hung_up`: its peer's last.
    pub fn readable(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// The host socket has urgent data, which is in its place as other data is.
    pub fn urgent(&mut self) {
        self.urgent = true;
    }

    /// The host socket takes bytes again: gives it what waits, and tells the container, if its window was all but closed.
    pub fn writable(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) -> Fate {
        if self.phase != Phase::Open || self.rcv_fin {
            return Fate::Lives;
        }
        if self.take_held(io, out) == Fate::Ends {
            return Fate::Ends;
        }
        let left = self.left();
        if self.refused || left < self.room / 2 || left < u32::from(self.mss) * 2 {
            self.ack_due = true;
            if std::mem::take(&mut self.refused) {
                // Whatever it was thought to be.
                self.room = u32::MAX;
            }
        }
        Fate::Lives
    }

    /// The right edge of the window that is told from now on.
    fn promise(&mut self, edge: u32) {
        self.rcv_edge = edge;
        if before(self.rcv_told, edge) {
            self.rcv_told = edge;
        }
    }

    /// Bytes of the window told that haven't come.
    fn left(&self) -> u32 {
        let left = self.rcv_edge.wrapping_sub(self.rcv_next);
        if left as i32 > 0 { left } else { 0 }
    }

    fn flight(&self) -> u32 {
        self.next.wrapping_sub(self.una)
    }

    /// A segment of the container.
    pub fn input(
        &mut self,
        now: Nanos,
        s: &Segment<'_>,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
    ) -> Fate {
        if self.phase == Phase::Opening {
            return self.answered(now, s, io, out);
        }
        let end = s
            .seq
            .wrapping_add(s.len())
            .wrapping_add(u32::from(s.has(FIN)));
        let is_old = before(s.seq, self.rcv_next);
        let is_ahead = before(self.rcv_next, s.seq);
        // At its very edge is where an acknowledgement comes from once the window is used up, and the window may have shrunk since.
        let outside_window = is_ahead && before(self.rcv_told, s.seq);
        if s.has(RST) {
            // RFC 5961 3.2.
            if s.seq == self.rcv_next || self.phase == Phase::Connecting {
                io.abort();
                return Fate::Ends;
            }
            self.ack_due |= !is_old && !outside_window;
            return Fate::Lives;
        }
        if self.phase == Phase::Connecting {
            return Fate::Lives;
        }
        if s.has(SYN) {
            // The same once more: answered once more. Another: RFC 5961 4.2.
            self.ack_due = true;
            return Fate::Lives;
        }
        if !s.has(ACK) {
            return Fate::Lives;
        }
        if self.phase == Phase::Answered {
            if s.ack != self.next {
                out.extend(self.bare(RST, s.ack, 0));
                return Fate::Lives;
            }
            self.open(now, s);
        }
        if is_old && (s.len() == 0 && !s.has(FIN) || !before(self.rcv_next, end)) {
            // Nothing new: a keep-alive or window probe, or something whose acknowledgement was lost. One that acknowledges
            // news counts all the same.
            self.ack_due = true;
        }
        if is_ahead {
            // Something before it was lost. Each such segment is told (RFC 5681 3.2).
            self.repeats = self.repeats.saturating_add(u8::from(self.ack_due)).min(8);
            self.ack_due = true;
        }
        if outside_window {
            return Fate::Lives;
        }
        if !self.acknowledged(now, s, io, out) {
            return Fate::Lives;
        }
        if is_ahead || self.rcv_fin || !before(self.rcv_next, end) {
            return Fate::Lives;
        }
        if self.take(s, io, out) == Fate::Ends {
            return Fate::Ends;
        }
        self.take_held(io, out)
    }

    /// The handshake is over.
    fn open(&mut self, now: Nanos, s: &Segment<'_>) {
        self.phase = Phase::Open;
        self.una = s.ack;
        self.window = u32::from(s.window) << self.peer_scale;
        self.wl = (s.seq, s.ack);
        self.backoff = 0;
        self.since = now;
    }

    /// Hands new payload to the host socket.
    fn take(&mut self, s: &Segment<'_>, io: &mut impl Stream, out: &mut Vec<Frame>) -> Fate {
        let skip = self.rcv_next.wrapping_sub(s.seq) as usize;
        let [a, b] = s.payload;
        let in_b = skip.saturating_sub(a.len());
        let parts = [
            a.get(skip..).unwrap_or_default(),
            b.get(in_b..).unwrap_or_default(),
        ];
        let len = parts[0].len() + parts[1].len();
        let mut taken = 0;
        if len > 0 {
            self.trickle.end();
            let parts = if parts[0].is_empty() {
                [parts[1], &[]]
            } else {
                parts
            };
            let more = len >= BULK && !s.has(PSH) && !s.has(FIN);
            taken = match io.send(parts, more) {
                Ok(n) => n.min(len),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(_) => return self.reset(io, out),
            };
            self.rcv_next = self.rcv_next.wrapping_add(taken as u32);
            self.ack_due = true;
        }
        if s.has(FIN) && taken == len {
            self.rcv_next = self.rcv_next.wrapping_add(1);
            self.rcv_fin = true;
            self.refused = false;
            self.ack_due = true;
            io.shut();
        }
        Fate::Lives
    }

    /// What a segment acknowledges and the window it tells; false if it is about what was never sent.
    fn acknowledged(
        &mut self,
        now: Nanos,
        s: &Segment<'_>,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
    ) -> bool {
        if before(self.max, s.ack) {
            self.ack_due = true;
            return false;
        }
        let window = u32::from(s.window) << self.peer_scale;
        self.sacked = s.sacked;
        let is_news = before(self.una, s.ack);
        if is_news {
            self.advance(now, s.ack, io, out);
        } else if s.ack == self.una
            && s.len() == 0
            && !s.has(FIN)
            && window == self.window
            && self.flight() > 0
        {
            self.duplicate(io, out);
        }
        // From the newest segment only (RFC 9293 3.10.7.4), which one is that acknowledges news (Linux' `tcp_may_update_window`).
        let (seq, ack) = self.wl;
        if is_news || before(seq, s.seq) || seq == s.seq && !before(s.ack, ack) {
            self.window = window;
            self.wl = (s.seq, s.ack);
        }
        self.unanswered = 0;
        if self.space() >= self.mss.into() && self.flight() == 0 {
            self.backoff = 0;
        }
        true
    }

    /// Bytes were acknowledged for the first time.
    fn advance(&mut self, now: Nanos, ack: u32, io: &mut impl Stream, out: &mut Vec<Frame>) {
        let acked = ack.wrapping_sub(self.una);
        self.una = ack;
        if before(self.next, ack) {
            self.next = ack;
        }
        self.duplicates = 0;
        self.backoff = 0;
        self.since = now;
        if let Some((end, sent)) = self.timed
            && !before(ack, end)
        {
            self.timed = None;
            self.sample(now.since(sent));
        }
        match self.recover {
            Some(end) if before(ack, end) => {
                // RFC 6582 3.2: something more is missing.
                self.cwnd = self.cwnd.saturating_sub(acked).max(u32::from(self.mss));
                self.resend(io, out);
            }
            Some(_) => {
                self.recover = None;
                self.cwnd = self.ssthresh;
            }
            None if self.cwnd < self.ssthresh => {
                self.cwnd = self.cwnd.saturating_add(acked).min(MAX_CWND);
            }
            None => {
                let more = u64::from(self.mss) * u64::from(acked) / u64::from(self.cwnd.max(1));
                self.cwnd = self.cwnd.saturating_add(more as u32).min(MAX_CWND);
            }
        }
    }

    /// A duplicate acknowledgement (RFC 5681 3.2).
    fn duplicate(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) {
        self.duplicates = self.duplicates.saturating_add(1);
        let mss = u32::from(self.mss);
        if self.recover.is_some() {
            self.cwnd = self.cwnd.saturating_add(mss).min(MAX_CWND);
        } else if self.duplicates == 3 {
            self.ssthresh = (self.flight() / 2).max(2 * mss);
            self.cwnd = self.ssthresh + 3 * mss;
            self.recover = Some(self.max);
            self.resend(io, out);
        }
    }

    /// A measured round trip (RFC 6298 2).
    fn sample(&mut self, r: Duration) {
        match self.srtt {
            None => (self.srtt, self.rttvar) = (Some(r), r / 2),
            Some(srtt) => {
                self.rttvar = self.rttvar * 3 / 4 + srtt.abs_diff(r) / 4;
                self.srtt = Some(srtt * 7 / 8 + r / 8);
            }
        }
    }

    fn rto(&self) -> Duration {
        let rto = self.srtt.map_or(FIRST_RTO, |s| s + self.rttvar * 4);
        let rto = rto.clamp(MIN_RTO, MAX_RTO);
        (rto * (1 << self.backoff.min(10))).min(MAX_RTO)
    }

    /// The stream is gone: resets the container's end too.
    pub fn reset(&mut self, io: &mut impl Stream, out: &mut Vec<Frame>) -> Fate {
        io.abort();
        if self.phase == Phase::Connecting {
            out.extend(self.refusal());
        } else if self.phase != Phase::Opening {
            // In the middle of what the container expects, so that it is believed.
            let seq = if self.flight() > 0 {
                self.una
            } else {
                self.next
            };
            out.extend(self.bare(RST | ACK, seq, self.rcv_next));
        }
        Fate::Ends
    }

    fn fate(&self) -> Fate {
        let all = self.fin.is_some_and(|f| before(f, self.una));
        if self.rcv_fin && all && !self.ack_due {
            Fate::Ends
        } else {
            Fate::Lives
        }
    }

    fn header(&self, flags: u8, seq: u32, ack: u32, window: u16) -> Header {
        Header {
            from: self.outside,
            to: self.inside,
            seq,
            ack,
            flags,
            window,
            says: Says::Nothing,
        }
    }

    fn bare(&self, flags: u8, seq: u32, ack: u32) -> Option<Frame> {
        segment::bare(&self.header(flags, seq, ack, 0))
    }

    /// What a closed port answers to the SYN (RFC 9293 3.10.7.1).
    pub(crate) fn refusal(&self) -> Option<Frame> {
        self.bare(RST | ACK, 0, self.rcv_next)
    }

    /// The SYN as the container sent it, for who quotes it.
    pub(crate) fn syn(&self) -> Option<Frame> {
        segment::bare(&Header {
            from: self.inside,
            to: self.outside,
            seq: self.rcv_next.wrapping_sub(1),
            ack: 0,
            flags: SYN,
            window: 0,
            says: Says::Nothing,
        })
    }
}

/// The reset that answers a segment of no connection (RFC 9293 3.10.7.1).
pub(crate) fn refusal(inside: SocketAddr, outside: SocketAddr, s: &Segment<'_>) -> Option<Frame> {
    let (flags, seq, ack) = if s.has(ACK) {
        (RST, s.ack, 0)
    } else {
        let flags = u32::from(s.has(SYN)) + u32::from(s.has(FIN));
        let end = s.seq.wrapping_add(s.len()).wrapping_add(flags);
        (RST | ACK, 0, end)
    };
    segment::bare(&Header {
        from: outside,
        to: inside,
        seq,
        ack,
        flags,
        window: 0,
        says: Says::Nothing,
    })
}
