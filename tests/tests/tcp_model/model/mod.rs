//! The TCP mirror between a model of both ends, over a wire that loses, doubles and reorders.
//!
//! # Theory of operation
//!
//! The container's end ([`container`]) is a correct TCP, but which of what it may do it does when, is read from a string of bytes, as is
//! what the wire and the host's socket ([`host`]) do. Checked in every step:
//!
//! - the host gets the container's stream in order, each byte once, and its end after the last;
//! - no more is acknowledged than the host has taken, ever further, and selectively only what has come;
//! - the container gets the host's stream, each byte in its place, its end behind the last, and nothing beyond the window that it has told;
//! - nothing is taken away from the host's socket before the container has it;
//! - few frames are made and held at once.
//!
//! Then wire and ends behave: all that was begun has to arrive and the flow to end, in a bounded time and number of segments. Or the
//! container is gone for good: the flow is given up, in a bounded time, and the host's end reset. In the end no frame is left.

pub(crate) mod container;
pub(crate) mod host;
pub(crate) mod wire;

use container::{Container, Pieces};
use host::{Events, Host};
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Frame, outstanding};
use vswitch_core::wire::parse;
use vswitch_nat::slirp::tcp::segment::Segment;
use vswitch_nat::slirp::tcp::{Fate, Mirror};
use wire::{ACK, Down, FIN, OURS, RST, SYN, THEIRS, Up};

/// Steps read at most, and segments on the wire one way.
const STEPS: usize = 400;
const ON_WIRE: usize = 64;
/// Rounds in which everything has to come to its end once nothing is in the way.
const ROUNDS: usize = 4000;
/// Longest that may take by the mirror's clock: a few timeouts of the longest.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest until an end that is gone is given up (Linux: 924 s by `tcp_retries2`).
const GONE: Duration = Duration::from_secs(1000);

/// The container's stream, and the host's.
pub(crate) fn pattern_up(i: u32) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 24) as u8
}

pub(crate) fn pattern_down(i: u32) -> u8 {
    pattern_up(!i)
}

/// What decides: bytes, and zeroes behind the last.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    /// Mostly small numbers, up to 30000.
    fn size(&mut self) -> u32 {
        let b = u32::from(self.byte());
        match b % 4 {
            0 => b / 4,
            1 => b * 6,
            2 => b * 40,
            _ => b * 118,
        }
    }

    fn yes(&mut self) -> bool {
        self.byte() & 1 != 0
    }
}

struct World {
    v6: bool,
    m: Mirror,
    host: Host,
    c: Container,
    now: Nanos,
    fate: Fate,
    out: Vec<Frame>,
    /// Segments on their way to the mirror, and to the container.
    ups: Vec<Up>,
    downs: Vec<Down>,
    /// What has come of the container's stream; the furthest acknowledgement sent; how far the host's stream may go.
    came: Pieces,
    acked: u32,
    allowed: u32,
    /// Of the host's stream, what the container has said to have.
    told: u32,
    /// Whether frames may be kept.
    keeps: bool,
    /// One end has cut the connection off.
    cut: bool,
}

/// Does what the bytes say, and checks it; the module's head says what.
pub(crate) fn run(bytes: &[u8]) {
    let before = outstanding();
    {
        let mut choices = Choices(bytes);
        if let Some(mut w) = World::new(&mut choices) {
            for _ in 0..STEPS {
                if choices.0.is_empty() || w.fate == Fate::Ends {
                    break;
                }
                w.step(&mut choices);
            }
            if choices.yes() {
                w.container_is_gone();
            } else {
                w.all_comes_to_its_end();
            }
        }
    }
    assert_eq!(outstanding(), before, "every frame came back");
}

impl World {
    /// Two ends that have shaken hands; `None`: they didn't.
    fn new(x: &mut Choices<'_>) -> Option<World> {
        let (v6, opens, scales, sacks) = (x.yes(), x.yes(), x.yes(), x.yes());
        let mss = 88 + x.size().min(8900) as u16;
        let scale = x.byte() % 15;
        let reach = if x.yes() { usize::MAX } else { 1 << 16 };
        // Linux gives 16 KiB or more, and grows it. What is smaller than this may be writable without room for what is told at least, so
        // that the container has to ask.
        let size = 12_288 + 16 * x.size() as usize;
        let mut options = vec![2, 4];
        options.extend(mss.to_be_bytes());
        if scales {
            options.extend([3, 3, scale]);
        }
        if sacks {
            options.extend([4, 2]);
        }
        let window = x.size() as u16;
        let syn = Up {
            seq: THEIRS,
            flags: SYN,
            window,
            options,
            ..Up::default()
        };
        let frame = syn.frame(v6);
        let meta = parse(frame.head(), frame.len()).expect("Ethernet");
        let s = Segment::read(&frame, &meta).expect("sound");
        let (inside, outside) = match v6 {
            true => ("[2020::1]:5000", "[2020::2]:80"),
            false => ("192.0.2.1:5000", "198.51.100.1:80"),
        };
        let ends = (inside.parse().unwrap(), outside.parse().unwrap());
        let now = Nanos(3_600_000_000_000);
        let m = match opens {
            true => Mirror::opening(ends.0, ends.1, OURS, now),
            false => Mirror::new(ends.0, ends.1, &s, OURS),
        };
        let mut w = World {
            v6,
            m,
            host: Host::new(size, x.below(9), reach),
            c: Container {
                scale: if scales { scale } else { 0 },
                sacks,
                window,
                ..Container::default()
            },
            now,
            fate: Fate::Lives,
            out: Vec::new(),
            ups: Vec::new(),
            downs: Vec::new(),
            came: Pieces::default(),
            acked: 0,
            allowed: window.into(),
            told: 0,
            keeps: x.yes(),
            cut: false,
        };
        w.host.events.readable = true;
        if !opens {
            w.flush();
            assert!(w.downs.is_empty(), "the container waits");
            w.m.connected(w.now);
        }
        // A SYN that is lost comes again.
        w.flush();
        if x.yes() {
            w.downs.clear();
            w.expire();
        }
        let answer = w.downs.pop().expect("a SYN");
        assert!(w.downs.is_empty() && answer.has(SYN) && answer.len == 0);
        assert_eq!((answer.seq, answer.has(ACK)), (OURS, !opens));
        // A host that begins offers all; one that answers, no more than it was offered.
        let both = (answer.scale.is_some(), answer.may_sack);
        assert_eq!(both, (scales || opens, sacks || opens));
        w.c.our_scale = if scales { answer.scale.unwrap_or(0) } else { 0 };
        w.c.edge = answer.window.into();
        if opens {
            let mut answer = syn;
            (answer.flags, answer.ack) = (SYN | ACK, OURS.wrapping_add(1));
            w.input(&answer);
            w.flush();
            w.deliver_all();
        } else {
            w.send_ack();
        }
        Some(w)
    }

    /// One of all that can happen.
    fn step(&mut self, x: &mut Choices<'_>) {
        let what = x.byte();
        match what & 31 {
            0 | 1 if !self.c.ends => self.c.len = (self.c.len + x.size()).min(1 << 20),
            0..=4 => {
                // Most of the time what is next, otherwise anything that isn't acknowledged.
                let open = self.c.max - self.c.una;
                let at = match x.below(4) {
                    0 => self.c.una + (open as usize * x.below(256) / 256) as u32,
                    _ => self.c.max,
                };
                let len = x.size();
                let up = self.c.segment(at, len.max(1), false);
                self.post(up);
            }
            5 if x.below(16) == 0 => self.c.ends = true,
            5 => {
                let up = self.c.segment(self.c.max, 1, true);
                self.post(up);
            }
            6..=9 if !self.ups.is_empty() => {
                let at = x.below(self.ups.len());
                let up = match x.below(8) {
                    0 => self.ups[at].clone(),
                    _ => self.ups.remove(at),
                };
                self.input(&up);
            }
            10 if !self.ups.is_empty() => drop(self.ups.remove(x.below(self.ups.len()))),
            11 | 12 if !self.downs.is_empty() => {
                let at = x.below(self.downs.len());
                let down = match x.below(8) {
                    0 => self.downs[at].clone(),
                    _ => self.downs.remove(at),
                };
                self.c.take(&down);
            }
            13 if !self.downs.is_empty() => drop(self.downs.remove(x.below(self.downs.len()))),
            14 | 15 => self.send_ack(),
            16 => {
                // Whoever has told a window may tell less of it (RFC 9293 3.8.6), though none should.
                self.c.window = x.size() as u16;
                self.send_ack();
            }
            17 | 18 => self.host.give(x.size(), x.below(8) == 0),
            19 if x.below(8) == 0 => self.host.end(),
            20 | 21 => self.host.drain(x.size() as usize * 4),
            22 | 23 => self.events(),
            24 if what >> 5 == 7 => self.trickle(),
            24 => self.now = self.now.after(Duration::from_millis(x.size().into())),
            25 => {
                self.expire();
                // It may come to its end by that, if nothing is let through.
                self.cut |= self.host.aborted;
            }
            26 => self.host.interrupted = x.byte() % 4,
            27 => self.host.takes = Some(x.size() as usize),
            28 if x.below(8) == 0 => {
                let exact = x.yes();
                let at = if exact { self.acked } else { x.size() };
                let up = self.c.reset(at);
                self.input(&up);
                self.cut |= self.fate == Fate::Ends;
            }
            29 if x.below(16) == 0 => {
                self.host.break_off();
                self.cut = true;
            }
            30 => {
                let up = self.c.probe();
                self.post(Some(up));
            }
            _ => {
                self.deliver_all();
                self.events();
            }
        }
        // Most of the time one at a time is answered, sometimes several at once.
        if what < 192 {
            self.flush();
        }
    }

    fn post(&mut self, up: Option<Up>) {
        self.ups.extend(up);
        if self.ups.len() > ON_WIRE {
            self.ups.remove(0);
        }
    }

    fn send_ack(&mut self) {
        let up = self.c.ack();
        self.post(Some(up));
    }

    /// A segment reaches the mirror.
    fn input(&mut self, up: &Up) {
        if self.fate == Fate::Ends {
            return;
        }
        let mut frame = up.frame(self.v6);
        let meta = parse(frame.head(), frame.len()).expect("Ethernet");
        let s = Segment::read(&frame, &meta).expect("a sound segment is read");
        if up.flags & (RST | SYN) == 0 {
            self.came.add(up.from, up.from.wrapping_add(up.len));
            let ack = up.ack.wrapping_sub(OURS.wrapping_add(1));
            self.told = self.told.max(ack);
            let window = u32::from(up.window) << self.c.scale;
            self.allowed = self.allowed.max(ack + window);
        }
        self.fate = self.m.input(self.now, &s, &mut self.host, &mut self.out);
        if self.fate == Fate::Lives {
            self.m.keep(&mut frame, &meta, self.keeps);
        }
        self.look();
    }

    /// The peer sends little at a time, and the container listens.
    fn trickle(&mut self) {
        for _ in 0..40 {
            self.host.give(10, false);
            self.events();
            self.deliver_all();
        }
    }

    /// The host's socket tells what has happened. One that trickles isn't heard but looked at.
    fn events(&mut self) {
        let told = self.host.events;
        let deaf = self.m.trickles();
        if deaf {
            (self.host.events.readable, self.host.events.closed) = (false, false);
            self.m.look();
        }
        let Events {
            readable,
            writable,
            closed,
            urgent,
            error,
        } = std::mem::take(&mut self.host.events);
        if deaf {
            (self.host.events.readable, self.host.events.closed) = (told.readable, told.closed);
        }
        if self.fate == Fate::Ends {
            return;
        }
        if error {
            self.fate = self.m.reset(&mut self.host, &mut self.out);
            return self.look();
        }
        if readable || closed {
            self.m.readable(closed);
        }
        if urgent {
            self.m.urgent();
        }
        if writable {
            self.fate = self.m.writable(&mut self.host, &mut self.out);
        }
        self.look();
    }

    fn flush(&mut self) {
        for _ in 0..100 {
            if self.fate == Fate::Ends {
                return;
            }
            let sent = self
                .m
                .flush(self.now, &mut self.host, &mut self.out, 1 << 16);
            self.fate = sent.0;
            self.look();
            if !sent.1 {
                return;
            }
        }
        panic!("there is always more");
    }

    /// The mirror's timer runs out.
    fn expire(&mut self) {
        if self.m.due == Nanos::MAX || self.fate == Fate::Ends {
            return;
        }
        self.now = self.now.max(self.m.due);
        self.fate = self.m.expired(self.now, &mut self.host, &mut self.out);
        self.look();
        self.flush();
    }

    /// Checks what was sent and is held, and puts it on the wire.
    fn look(&mut self) {
        assert!(self.m.held() <= 64);
        assert!(self.out.len() < 200, "{} frames at once", self.out.len());
        assert!(
            self.host.discarded <= self.told,
            "taken away before it was acknowledged"
        );
        for frame in self.out.drain(..) {
            let d = Down::read(&frame, self.v6);
            if !d.has(RST) && d.has(ACK) {
                let ack = d.ack.wrapping_sub(THEIRS.wrapping_add(1));
                let took = self.host.took + u32::from(self.host.shut);
                assert!(ack <= took, "acknowledges {ack}, the host took {took}");
                assert!(
                    ack >= self.acked,
                    "acknowledged {} before: {d:?}",
                    self.acked
                );
                self.acked = ack;
                for (from, to) in &d.blocks {
                    let [from, to] = [from, to].map(|e| e.wrapping_sub(THEIRS.wrapping_add(1)));
                    assert!(ack < from && from < to, "{d:?}");
                    // The end has a number of its own.
                    let end = self.c.ends && to == self.c.len + 1;
                    let to = to - u32::from(end);
                    assert!(from >= to || self.came.hold(from, to), "never came: {d:?}");
                }
            }
            if d.len > 0 {
                let end = d.at + d.len;
                assert!(end <= self.allowed, "{end} is beyond {}", self.allowed);
                assert!(end <= self.host.given);
            }
            if d.has(FIN) {
                assert!(
                    self.host.ended && d.at + d.len == self.host.given,
                    "ends early"
                );
            }
            if self.downs.len() >= 4 * ON_WIRE {
                self.downs.remove(0);
            }
            self.downs.push(d);
        }
    }

    /// All that is on its way arrives; true if there was anything.
    fn deliver_all(&mut self) -> bool {
        let moved = !self.ups.is_empty() || !self.downs.is_empty();
        for up in std::mem::take(&mut self.ups) {
            self.input(&up);
        }
        self.flush();
        for d in std::mem::take(&mut self.downs) {
            self.c.take(&d);
        }
        if std::mem::take(&mut self.c.owes) {
            self.send_ack();
        }
        moved
    }

    /// Both ends send their last, and nothing is in the way any more.
    fn all_comes_to_its_end(&mut self) {
        let since = self.now;
        self.c.ends = true;
        self.host.interrupted = 0;
        self.host.takes = None;
        if !self.host.ended {
            self.host.end();
        }
        self.c.window = self.c.window.max(4000);
        self.send_ack();
        for _ in 0..ROUNDS {
            self.host.drain(usize::MAX);
            self.events();
            let (una, next) = (self.c.una, self.c.next());
            self.deliver_all();
            if self.fate == Fate::Ends || self.c.was_reset {
                break;
            }
            let is_new = self.c.max < self.c.len || !self.c.fin_sent;
            let new = self.c.segment(self.c.max, 9000, false).filter(|_| is_new);
            let moves = new.is_some() || una != self.c.una || next != self.c.next();
            self.post(new);
            if !moves && self.ups.is_empty() {
                // Both ends' timers, the container's first.
                if !self.c.fin_acked {
                    // What was sent once is sent again also where the window has shrunk since (RFC 9293 3.8.6).
                    let again = match self.c.max - self.c.una {
                        0 => self.c.segment(self.c.una, 9000, false),
                        n => self.c.segment(self.c.una, n.min(9000), true),
                    };
                    let again = again.unwrap_or_else(|| self.c.probe());
                    self.post(Some(again));
                }
                self.expire();
            } else if self.m.due <= self.now {
                self.expire();
            }
        }
        self.deliver_all();
        assert_eq!(
            self.fate,
            Fate::Ends,
            "it never ends: {:?} {:?}",
            self.host,
            self.c
        );
        assert!(
            self.now.since(since) < PATIENCE,
            "took {:?}",
            self.now.since(since)
        );
        if self.cut {
            return;
        }
        assert!(
            !self.host.aborted && !self.c.was_reset,
            "cut off for nothing"
        );
        // The last acknowledgement may have been lost: who sends its end once more is answered as by a closed port, and has everything.
        assert!(self.host.shut && self.c.has_end());
        assert_eq!(
            (self.host.took, self.c.next() - 1),
            (self.c.len, self.host.given)
        );
        assert_eq!(
            self.host.discarded, self.host.given,
            "closing with something unread would reset"
        );
    }

    /// The container never answers again.
    fn container_is_gone(&mut self) {
        let since = self.now;
        self.host.interrupted = 0;
        if !self.host.ended {
            self.host.end();
        }
        self.events();
        self.flush();
        for _ in 0..20 {
            self.expire();
            self.events();
        }
        // Unless it has all that the host has sent, the end too: then the rest is up to it, and to connection tracking.
        let has_all = self.told == self.host.given + 1;
        assert!(
            self.fate == Fate::Ends || has_all,
            "it is never given up: {:?} {:?}",
            self.host,
            self.c
        );
        assert!(
            self.now.since(since) < GONE,
            "took {:?}",
            self.now.since(since)
        );
    }
}
