//! The mirror between a container's end that behaves, or doesn't, and a host socket that takes and gives as it likes.

mod sack;

use super::segment::{Header, PSH, bare, filled};
use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use vswitch_core::wire::parse;

const ISS: u32 = 0xffff_f000;
const THEIRS: u32 = 0xffff_fff0;

/// A host socket: what it took, and what it has.
#[derive(Debug, Default)]
pub(super) struct Fake {
    took: Vec<u8>,
    /// Bytes it takes before it is full.
    pub(super) free: usize,
    pub(super) queue: VecDeque<u8>,
    offset: usize,
    pub(super) ended: bool,
    pub(super) shut: bool,
    pub(super) aborted: bool,
    broken: bool,
}

impl Fake {
    /// One that takes so many bytes.
    pub(super) fn taking(free: usize) -> Fake {
        Fake {
            free,
            ..Fake::default()
        }
    }
}

impl Stream for Fake {
    fn send(&mut self, parts: [&[u8]; 2], _: bool) -> io::Result<usize> {
        if self.broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        assert!(!self.shut, "nothing comes after the end");
        let all = parts.concat();
        let n = all.len().min(self.free);
        self.free -= n;
        self.took.extend_from_slice(&all[..n]);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(n)
    }

    fn room(&mut self) -> usize {
        self.free
    }

    fn seek(&mut self, offset: usize) -> io::Result<()> {
        assert!(offset <= self.queue.len(), "peeks what isn't there");
        self.offset = offset;
        Ok(())
    }

    fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize> {
        let mut n = 0;
        for buffer in into.iter_mut() {
            for place in buffer.iter_mut() {
                if let Some(byte) = self.queue.get(self.offset + n) {
                    *place = *byte;
                    n += 1;
                }
            }
        }
        self.offset += n;
        match n {
            0 if self.broken => Err(ErrorKind::ConnectionReset.into()),
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn discard(&mut self, n: usize) -> io::Result<()> {
        assert!(n <= self.queue.len(), "discards what never came");
        self.queue.drain(..n);
        self.offset = self.offset.saturating_sub(n);
        Ok(())
    }

    fn shut(&mut self) {
        self.shut = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}

fn ends() -> (SocketAddr, SocketAddr) {
    (
        "192.0.2.10:5000".parse().unwrap(),
        "198.51.100.1:80".parse().unwrap(),
    )
}

/// What the container's end sends, as a frame.
pub(super) fn segment(seq: u32, ack: u32, flags: u8, window: u16, payload: &[u8]) -> Frame {
    let (inside, outside) = ends();
    let h = Header {
        from: inside,
        to: outside,
        seq,
        ack,
        flags,
        window,
        says: match flags & SYN != 0 && payload.is_empty() {
            true => Says::Syn(1000, Some(4), true),
            false => Says::Nothing,
        },
    };
    if payload.is_empty() {
        return bare(&h).unwrap();
    }
    let made = filled(&h, u16::MAX, payload.len(), &mut |into| {
        let n = payload.len().min(into[0].len());
        into[0][..n].copy_from_slice(&payload[..n]);
        into[1][..payload.len() - n].copy_from_slice(&payload[n..]);
        Ok(payload.len())
    });
    made.unwrap().unwrap()
}

pub(super) struct Rig {
    pub(super) m: Mirror,
    pub(super) io: Fake,
    out: Vec<Frame>,
    pub(super) now: Nanos,
    fate: Fate,
    /// Whether frames may be kept.
    room: bool,
}

/// What the mirror sent: sequence number, acknowledgement, flags, window, payload.
pub(super) type Sent = (u32, u32, u8, u16, Vec<u8>);

impl Rig {
    fn new() -> Rig {
        let syn = segment(THEIRS, 0, SYN, 65_535, &[]);
        let meta = parse(syn.head(), syn.len()).unwrap();
        let s = Segment::read(&syn, &meta).unwrap();
        let (inside, outside) = ends();
        let io = Fake::taking(100_000);
        Rig {
            m: Mirror::new(inside, outside, &s, ISS),
            io,
            out: vec![],
            now: Nanos(1_000_000_000_000),
            fate: Fate::Lives,
            room: true,
        }
    }

    /// One whose handshake is over.
    pub(super) fn open() -> Rig {
        let mut r = Rig::new();
        r.m.connected(r.now);
        let sent = r.flush();
        assert_eq!(sent.len(), 1);
        assert_eq!(
            (sent[0].0, sent[0].1, sent[0].2),
            (ISS, THEIRS + 1, SYN | ACK)
        );
        assert!(
            r.give(THEIRS + 1, ISS.wrapping_add(1), ACK, 4000, &[])
                .is_empty()
        );
        r
    }

    pub(super) fn input(&mut self, frame: &Frame) {
        let mut frame = frame.duplicate();
        let meta = parse(frame.head(), frame.len()).unwrap();
        let s = Segment::read(&frame, &meta).unwrap();
        if self.fate == Fate::Lives {
            self.fate = self.m.input(self.now, &s, &mut self.io, &mut self.out);
        }
        if self.fate == Fate::Lives {
            self.m.keep(&mut frame, &meta, self.room);
        }
    }

    fn writable(&mut self) {
        if self.fate == Fate::Lives {
            self.fate = self.m.writable(&mut self.io, &mut self.out);
        }
    }

    pub(super) fn flush(&mut self) -> Vec<Sent> {
        if self.fate == Fate::Lives {
            self.fate = self
                .m
                .flush(self.now, &mut self.io, &mut self.out, 1 << 20)
                .0;
        }
        let sent = self.out.drain(..).map(|f| {
            let meta = parse(f.head(), f.len()).unwrap();
            let s = Segment::read(&f, &meta).unwrap();
            (s.seq, s.ack, s.flags, s.window, s.payload.concat())
        });
        sent.collect()
    }

    pub(super) fn give(
        &mut self,
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        payload: &[u8],
    ) -> Vec<Sent> {
        self.input(&segment(seq, ack, flags, window, payload));
        self.flush()
    }

    fn expire(&mut self) -> Vec<Sent> {
        assert_ne!(self.m.due, Nanos::MAX, "a timer runs");
        self.now = self.m.due;
        if self.fate == Fate::Lives {
            self.fate = self.m.expired(self.now, &mut self.io, &mut self.out);
        }
        self.flush()
    }
}

pub(super) const SEQ: u32 = THEIRS + 1;
pub(super) const OURS: u32 = ISS + 1;

#[test]
fn nothing_is_answered_before_the_host_has_connected() {
    let mut r = Rig::new();
    assert!(r.flush().is_empty());
    assert!(r.give(THEIRS, 0, SYN, 100, &[]).is_empty());
    r.m.connected(r.now);
    assert_eq!(r.flush().len(), 1);
    // Asked once more, it answers once more; unasked, by its timer; in the end it gives up.
    assert_eq!(r.give(THEIRS, 0, SYN, 100, &[])[0].2, SYN | ACK);
    for _ in 0..MAX_SYN_RETRIES {
        assert_eq!(r.expire()[0].2, SYN | ACK);
    }
    assert_eq!(r.expire()[0].2, RST | ACK);
    assert_eq!((r.fate, r.io.aborted), (Fate::Ends, true));
}

#[test]
fn a_long_segment_finds_room_whole() {
    // With an MTU of 65520 a sender that may send less than a segment sends nothing, and would wait for its timer.
    let mut r = Rig::open();
    r.m.mss = 60_000;
    r.io.free = 66_000;
    let sent = r.give(SEQ, OURS, ACK | PSH, 4000, &[0; 60_000]);
    assert!(u32::from(sent[0].3) << SCALE >= 60_000, "{sent:?}");
    // Told again as the socket takes more, long before it is half empty.
    r.io.free = 0;
    r.give(
        SEQ.wrapping_add(60_000),
        OURS,
        ACK | PSH,
        4000,
        &[0; 60_000],
    );
    assert_eq!(r.m.held(), 1);
    r.io.free = 70_000;
    r.writable();
    let sent = r.flush();
    assert_eq!(sent[0].1, SEQ.wrapping_add(120_000));
    assert!(u32::from(sent[0].3) << SCALE >= 60_000, "{sent:?}");
}

#[test]
fn only_what_the_host_took_is_acknowledged() {
    for room in [true, false] {
        let mut r = Rig::open();
        r.room = room;
        r.io.free = 10_000;
        let bytes: Vec<u8> = (0..30_000u32).map(|i| (i % 251) as u8).collect();
        let sent = r.give(SEQ, OURS, ACK | PSH, 4000, &bytes);
        assert_eq!(sent[0].1, SEQ.wrapping_add(10_000));
        // What is kept was promised to be taken; what isn't takes a window shut.
        assert_eq!(sent[0].3 == 0, !room);
        r.io.free = 64_000;
        r.writable();
        let sent = r.flush();
        assert_eq!(sent.len(), 1);
        if !room {
            assert_eq!(
                (sent[0].1, usize::from(sent[0].3) << SCALE),
                (SEQ.wrapping_add(10_000), 56_000 >> SCALE << SCALE)
            );
            r.give(SEQ.wrapping_add(10_000), OURS, ACK, 4000, &bytes[10_000..]);
        }
        assert_eq!(r.m.rcv_next, SEQ.wrapping_add(30_000));
        assert_eq!((&r.io.took, r.m.held()), (&bytes, 0));
    }
}

#[test]
fn what_comes_ahead_waits_and_each_segment_is_told() {
    for room in [true, false] {
        let mut r = Rig::open();
        r.room = room;
        for i in [3, 1, 2, 1] {
            r.input(&segment(
                SEQ.wrapping_add(i * 100),
                OURS,
                ACK,
                4000,
                &[i as u8; 100],
            ));
        }
        let sent = r.flush();
        assert_eq!(sent.len(), 4);
        assert!(sent.iter().all(|s| s.1 == SEQ));
        assert_eq!((r.io.took.len(), r.m.held()), (0, if room { 3 } else { 0 }));
        // The missing one, and the end: in order to the host.
        let sent = r.give(SEQ, OURS, ACK, 4000, &[0; 100]);
        let all = if room { 400 } else { 100 };
        assert_eq!(sent[0].1, SEQ.wrapping_add(all));
        let order: Vec<u8> = (0..4).flat_map(|i| [i; 100]).collect();
        assert_eq!(r.io.took, order[..all as usize]);
    }
}

#[test]
fn lost_segments_are_peeked_again() {
    let mut r = Rig::open();
    r.io.queue.extend((0..5000u32).map(|i| (i % 251) as u8));
    r.m.readable(false);
    let sent = r.flush();
    assert_eq!((sent.len(), sent[0].0, sent[0].4.len()), (1, OURS, 5000));
    // The first thousand arrived; three duplicates say that the next didn't.
    let at = OURS.wrapping_add(1000);
    assert!(r.give(SEQ, at, ACK, 4000, &[]).is_empty());
    assert_eq!(r.io.queue.len(), 4000, "acknowledged bytes are gone");
    for _ in 0..2 {
        assert!(r.give(SEQ, at, ACK, 4000, &[]).is_empty());
    }
    let again = r.give(SEQ, at, ACK, 4000, &[]);
    assert_eq!((again[0].0, &again[0].4[..]), (at, &sent[0].4[1000..]));
    // That is lost too: the timer.
    let again = r.expire();
    assert_eq!(
        (again[0].0, &again[0].4[..1000]),
        (at, &sent[0].4[1000..2000])
    );
    assert!(
        r.give(SEQ, OURS.wrapping_add(5000), ACK, 4000, &[])
            .is_empty()
    );
    assert!(r.io.queue.is_empty());
    assert_eq!(r.m.due, Nanos::MAX);
}

#[test]
fn a_shut_window_is_probed_and_opens() {
    let mut r = Rig::open();
    r.give(SEQ, OURS, ACK, 0, &[]);
    r.io.queue.extend([7; 3000]);
    r.m.readable(false);
    assert!(r.flush().is_empty());
    for _ in 0..40 {
        let probe = r.expire();
        assert_eq!((probe.len(), probe[0].0, probe[0].4.len()), (1, ISS, 0));
        // It is answered, so the container is there, however long.
        assert!(r.give(SEQ, OURS, ACK, 0, &[]).is_empty());
    }
    let sent = r.give(SEQ, OURS, ACK, 4000, &[]);
    assert_eq!(sent[0].4.len(), 3000);
    // Without an answer it is gone.
    for _ in 0..=MAX_RETRIES {
        r.expire();
    }
    assert_eq!((r.fate, r.io.aborted), (Fate::Ends, true));
}

#[test]
fn each_end_closes_its_half() {
    let mut r = Rig::open();
    let sent = r.give(SEQ, OURS, ACK | FIN, 4000, b"last");
    assert_eq!(sent[0].1, SEQ.wrapping_add(5));
    assert_eq!((&r.io.took[..], r.io.shut), (&b"last"[..], true));
    // The other half goes on.
    r.io.queue.extend(b"more");
    r.m.readable(false);
    assert_eq!(r.flush()[0].4, b"more");
    r.io.ended = true;
    r.m.readable(true);
    let sent = r.flush();
    assert_eq!((sent[0].0, sent[0].2), (OURS.wrapping_add(4), ACK | FIN));
    // The end is lost and sent again, data first.
    let again = r.expire();
    assert_eq!((&again[0].4[..], again[1].2 & FIN), (&b"more"[..], FIN));
    assert!(
        r.give(SEQ.wrapping_add(5), OURS.wrapping_add(5), ACK, 4000, &[])
            .is_empty()
    );
    assert_eq!((r.fate, r.io.aborted), (Fate::Ends, false));
    assert!(
        r.io.queue.is_empty(),
        "closing with something unread would reset"
    );
}

#[test]
fn an_end_with_data_is_seen_at_once() {
    let mut r = Rig::open();
    r.io.queue.extend(b"all");
    r.io.ended = true;
    // One event for both.
    r.m.readable(true);
    let sent = r.flush();
    assert_eq!((&sent[0].4[..], sent[1].2 & FIN), (&b"all"[..], FIN));
}

#[test]
fn resets_pass_and_guesses_are_challenged() {
    let mut r = Rig::open();
    let sent = r.give(SEQ.wrapping_add(50), 0, RST, 0, &[]);
    assert_eq!((sent.len(), sent[0].2, r.fate), (1, ACK, Fate::Lives));
    assert!(r.give(SEQ.wrapping_sub(9), 0, RST, 0, &[]).is_empty());
    let sent = r.give(SEQ.wrapping_add(7), 0, SYN, 0, &[]);
    assert_eq!((sent[0].2, r.fate), (ACK, Fate::Lives));
    r.give(SEQ, 0, RST, 0, &[]);
    assert_eq!((r.fate, r.io.aborted), (Fate::Ends, true));
    let mut r = Rig::open();
    r.io.broken = true;
    let sent = r.give(SEQ, OURS, ACK, 4000, b"x");
    assert_eq!(
        (sent[0].0, sent[0].2, r.fate),
        (OURS, RST | ACK, Fate::Ends)
    );
}

#[test]
fn a_keep_alive_is_answered() {
    let mut r = Rig::open();
    for payload in [&[][..], b"x"] {
        let sent = r.give(SEQ.wrapping_sub(1), OURS, ACK, 4000, payload);
        assert_eq!((sent.len(), sent[0].1), (1, SEQ));
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The container sends so much of its stream, from so far back.
    Send {
        back: u32,
        len: u16,
        fin: bool,
    },
    /// It acknowledges some of what came, with this window.
    Ack {
        share: u8,
        window: u16,
    },
    /// It sends a segment of any kind.
    Any {
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        len: u8,
    },
    HostGives(u16),
    HostTakes(u16),
    HostEnds,
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..3000, 0u16..9000, prop::bool::weighted(0.02)).prop_map(|(back, len, fin)| Step::Send { back, len, fin }),
        4 => (any::<u8>(), 0u16..5000).prop_map(|(share, window)| Step::Ack { share, window }),
        1 => (0u32..20_000, 0u32..20_000, any::<u8>(), any::<u16>(), any::<u8>())
            .prop_map(|(seq, ack, flags, window, len)| Step::Any { seq, ack, flags: flags & !RST, window, len }),
        3 => any::<u16>().prop_map(Step::HostGives),
        3 => any::<u16>().prop_map(Step::HostTakes),
        1 => Just(Step::HostEnds),
        2 => Just(Step::Expire),
    ]
}

fn pattern(i: u32) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 24) as u8
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    /// Whatever the container does, the host gets its stream in order and nothing else, is promised nothing that it hasn't taken, and
    /// the container is sent the host's stream, within what it has allowed.
    #[test]
    fn streams_survive_a_hostile_end(steps in prop::collection::vec(step(), 1..120)) {
        let mut r = Rig::open();
        r.io.free = 20_000;
        let (mut given, mut ended, mut fin_at) = (0u32, false, None::<u32>);
        // What the container has got of the host's stream, and how far it has been told.
        let (mut got, mut acked, mut edge) = (0u32, 0u32, 4000u32 << 4);
        let mut taken = 0;
        for s in steps {
            match s {
                Step::Send { back, len, fin } => {
                    let from = (taken as u32).saturating_sub(back);
                    let len = fin_at.map_or(len.into(), |f: u32| (f - from.min(f)).min(len.into()));
                    let end = from + len;
                    let fin = (fin && fin_at.is_none_or(|f| f == end)) || fin_at == Some(end);
                    if fin {
                        fin_at = Some(end);
                    }
                    let payload: Vec<u8> = (from..end).map(pattern).collect();
                    let flags = ACK | if fin { FIN } else { 0 };
                    r.input(&segment(SEQ.wrapping_add(from), OURS.wrapping_add(acked), flags, 4000, &payload));
                    edge = edge.max(acked + (4000 << 4));
                }
                Step::Ack { share, window } => {
                    acked += (got - acked) * u32::from(share) / 255;
                    edge = edge.max(acked + (u32::from(window) << 4));
                    r.input(&segment(SEQ.wrapping_add(taken as u32), OURS.wrapping_add(acked), ACK, window, &[]));
                }
                Step::Any { seq, ack, flags, window, len } => {
                    // Payload of the stream, so that it may be taken; flags and numbers as they come.
                    let from = (taken as u32).wrapping_add(seq).wrapping_sub(10_000);
                    let len = if fin_at.is_some() || from > 1 << 30 { 0 } else { u32::from(len) };
                    let payload: Vec<u8> = (from..from + len).map(pattern).collect();
                    let ack = acked.wrapping_add(ack).wrapping_sub(10_000);
                    if ack as i32 > acked as i32 && ack <= got {
                        acked = ack;
                    }
                    edge = edge.max(acked + (u32::from(window) << 4));
                    let flags = flags & !FIN;
                    r.input(&segment(SEQ.wrapping_add(from), OURS.wrapping_add(ack), flags, window, &payload));
                }
                Step::HostGives(n) => if !ended {
                    r.io.queue.extend((given..given + u32::from(n)).map(|i| pattern(!i)));
                    given += u32::from(n);
                    r.m.readable(false);
                },
                Step::HostTakes(n) => {
                    r.io.free += usize::from(n);
                    r.writable();
                }
                Step::HostEnds => {
                    ended = true;
                    r.io.ended = true;
                    r.m.readable(true);
                }
                Step::Expire => if r.m.due != Nanos::MAX && r.fate == Fate::Lives {
                    r.now = r.m.due;
                    r.fate = r.m.expired(r.now, &mut r.io, &mut r.out);
                },
            }
            for (seq, ack, flags, _, payload) in r.flush() {
                if flags & RST != 0 {
                    continue;
                }
                // Acknowledged is what was taken, and the end.
                let acked = ack.wrapping_sub(SEQ);
                let took = r.io.took.len() as u32;
                prop_assert!(acked <= took + u32::from(r.io.shut), "{acked} of {took}");
                let at = seq.wrapping_sub(OURS);
                for (i, b) in payload.iter().enumerate() {
                    prop_assert_eq!(*b, pattern(!(at + i as u32)));
                }
                if !payload.is_empty() {
                    let end = at + payload.len() as u32;
                    prop_assert!(end <= edge, "{end} is beyond {edge}");
                    if at <= got {
                        got = got.max(end);
                    }
                }
                if flags & FIN != 0 {
                    prop_assert!(ended);
                    prop_assert_eq!(at, given);
                }
            }
            taken = r.io.took.len();
            for (i, b) in r.io.took.iter().enumerate() {
                prop_assert_eq!(*b, pattern(i as u32));
            }
            if r.fate == Fate::Ends {
                break;
            }
        }
    }
}
