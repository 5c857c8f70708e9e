//! A connection that the host's side has begun: the mirror is the active opener towards the container.
//!
//! The host socket was accepted already, so the client takes the connection for made. If the container refuses it, or doesn't
//! answer, the client is reset.

use super::segment::{self, ACK, RST, SYN, Says, Segment};
use super::{DEFAULT_MSS, Fate, MIN_MSS, Mirror, Phase, SCALE, Stream};
use std::net::SocketAddr;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;

/// What we announce; the gateway lowers it to what the container's network does.
const MSS: u16 = 65_495;

impl Mirror {
    /// Of a connection that was accepted for the container, with our initial sequence number: the next flush sends the SYN.
    pub fn opening(inside: SocketAddr, outside: SocketAddr, iss: u32, now: Nanos) -> Mirror {
        let nothing = Segment {
            seq: 0,
            ack: 0,
            flags: 0,
            window: 0,
            mss: None,
            scale: None,
            sack: false,
            sacked: None,
            payload: [&[], &[]],
        };
        let mut m = Mirror::new(inside, outside, &nothing, iss);
        m.phase = Phase::Opening;
        m.next = iss.wrapping_add(1);
        m.max = m.next;
        m.since = now;
        m.ack_due = true;
        m.readable = true;
        m
    }

    /// Whether the container hasn't answered the SYN.
    pub(crate) fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// The SYN, with the window that holds for what comes with the answer.
    pub(super) fn syn_out(&mut self, io: &mut impl Stream) -> Option<Frame> {
        self.room = (io.room() as u32).min(65_535);
        let mut header = self.header(SYN, self.una, 0, self.room as u16);
        header.says = Says::Syn(MSS, Some(SCALE), true);
        segment::bare(&header)
    }

    /// What answers the SYN (RFC 9293 3.10.7.3).
    pub(super) fn answered(
        &mut self,
        now: Nanos,
        s: &Segment<'_>,
        io: &mut impl Stream,
        out: &mut Vec<Frame>,
    ) -> Fate {
        if s.has(ACK) && s.ack != self.next {
            // Of a connection of before that the container hasn't forgotten: it does by this, and the SYN comes again.
            if !s.has(RST) {
                out.extend(self.bare(RST, s.ack, 0));
            }
            return Fate::Lives;
        }
        if s.has(RST) && s.has(ACK) {
            io.abort();
            return Fate::Ends;
        }
        if !s.has(SYN) || !s.has(ACK) || s.has(RST) {
            return Fate::Lives;
        }
        self.mss = s.mss.unwrap_or(DEFAULT_MSS).max(MIN_MSS);
        self.cwnd = self.cwnd.max(u32::from(self.mss) * 2);
        self.scales = s.scale.is_some();
        self.peer_scale = s.scale.unwrap_or(0);
        self.sacks = s.sack;
        self.rcv_next = s.seq.wrapping_add(1);
        self.rcv_told = self.rcv_next;
        self.promise(self.rcv_next.wrapping_add(self.room));
        // The window was told without a scale: all of it is told with the acknowledgement.
        self.room = u32::MAX;
        if self.backoff == 0 {
            self.sample(now.since(self.since));
        }
        self.open(now, s);
        // Not scaled in a SYN (RFC 7323 2.2).
        self.window = s.window.into();
        self.unanswered = 0;
        self.ack_due = true;
        Fate::Lives
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fake;
    use super::*;
    use crate::slirp::tcp::segment::{FIN, Header, bare};
    use std::time::Duration;
    use vswitch_core::wire::parse;

    const ISS: u32 = u32::MAX;
    const THEIRS: u32 = 0xffff_fff0;

    struct Rig {
        m: Mirror,
        io: Fake,
        now: Nanos,
    }

    impl Rig {
        fn new() -> Rig {
            let now = Nanos(1_000_000_000_000);
            let (inside, outside) = ends();
            Rig {
                m: Mirror::opening(inside, outside, ISS, now),
                io: Fake::taking(100_000),
                now,
            }
        }

        /// Sequence number, acknowledgement and flags of what is sent.
        fn flush(&mut self) -> Vec<(u32, u32, u8)> {
            let mut out = Vec::new();
            self.m.flush(self.now, &mut self.io, &mut out, 1 << 20);
            out.iter().map(read).collect()
        }

        fn input(&mut self, seq: u32, ack: u32, flags: u8) -> (Fate, Vec<(u32, u32, u8)>) {
            let (inside, outside) = ends();
            let frame = bare(&Header {
                from: inside,
                to: outside,
                seq,
                ack,
                flags,
                window: 500,
                says: match flags & SYN != 0 {
                    true => Says::Syn(1000, Some(4), true),
                    false => Says::Nothing,
                },
            });
            let frame = frame.unwrap();
            let meta = parse(frame.head(), frame.len()).unwrap();
            let s = Segment::read(&frame, &meta).unwrap();
            let mut out = Vec::new();
            let fate = self.m.input(self.now, &s, &mut self.io, &mut out);
            (fate, out.iter().map(read).collect())
        }
    }

    fn ends() -> (SocketAddr, SocketAddr) {
        let (a, b) = ("198.51.100.1:8080", "203.0.113.9:5000");
        (a.parse().unwrap(), b.parse().unwrap())
    }

    fn read(frame: &Frame) -> (u32, u32, u8) {
        let meta = parse(frame.head(), frame.len()).unwrap();
        let s = Segment::read(frame, &meta).unwrap();
        (s.seq, s.ack, s.flags)
    }

    #[test]
    fn the_syn_is_answered_and_data_follows_both_ways() {
        let mut r = Rig::new();
        r.io.queue.extend(b"hello");
        assert_eq!(r.flush(), [(ISS, 0, SYN)]);
        assert_eq!(r.flush(), []);
        let (fate, out) = r.input(THEIRS, 0, SYN | ACK);
        assert_eq!((fate, r.m.is_opening()), (Fate::Lives, false));
        assert_eq!(out, []);
        let sent = r.flush();
        assert_eq!(sent, [(0, THEIRS + 1, segment::PSH | ACK)]);
        let (fate, _) = r.input(THEIRS + 1, 5, FIN | ACK);
        assert_eq!((fate, r.io.shut), (Fate::Lives, true));
        r.io.ended = true;
        r.m.readable(true);
        assert_eq!(r.flush(), [(5, THEIRS + 2, FIN | ACK)]);
        r.input(THEIRS + 2, 6, ACK);
        let ended = r.m.flush(r.now, &mut r.io, &mut Vec::new(), 1);
        assert_eq!((ended.0, r.io.aborted), (Fate::Ends, false));
    }

    #[test]
    fn who_refuses_has_the_client_reset() {
        let mut r = Rig::new();
        r.flush();
        assert_eq!(r.input(0, 7, RST | ACK).0, Fate::Lives, "not of our SYN");
        assert!(!r.io.aborted);
        assert_eq!(r.input(0, 0, RST | ACK).0, Fate::Ends);
        assert!(r.io.aborted);
    }

    #[test]
    fn a_connection_of_before_is_reset_and_the_syn_sent_again() {
        let mut r = Rig::new();
        r.flush();
        let (fate, out) = r.input(77, 88, ACK);
        assert_eq!((fate, out), (Fate::Lives, vec![(88, 0, RST)]));
        r.now = r.m.due;
        assert_eq!(r.m.expired(r.now, &mut r.io, &mut Vec::new()), Fate::Lives);
        assert_eq!(r.flush(), [(ISS, 0, SYN)]);
    }

    #[test]
    fn who_never_answers_has_the_client_reset() {
        let mut r = Rig::new();
        let began = r.now;
        let mut syns = r.flush().len();
        let mut out = Vec::new();
        loop {
            r.now = r.m.due;
            if r.m.expired(r.now, &mut r.io, &mut out) == Fate::Ends {
                break;
            }
            syns += r.flush().len();
        }
        assert_eq!((syns, r.io.aborted, out.len()), (6, true, 0));
        assert!(r.now.since(began) < Duration::from_secs(60));
    }
}
