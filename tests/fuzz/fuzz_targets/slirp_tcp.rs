#![no_main]
//! A container that breaks every rule of TCP against a host socket that takes and gives as it likes: no panic, nothing is peeked or
//! discarded that isn't there, nothing sent after the end, bounded frames per step, and every frame slot comes back.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::io::{self, ErrorKind, IoSliceMut};
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Frame, outstanding};
use vswitch_core::wire::parse;
use vswitch_nat::slirp::tcp::segment::Segment;
use vswitch_nat::slirp::tcp::{Fate, Mirror, Stream};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A segment whose numbers are near those that are right.
    Near {
        seq: i16,
        ack: i16,
        flags: u8,
        window: u16,
        len: u16,
    },
    /// Any header, options included.
    Raw(Vec<u8>),
    Gives(u16),
    Takes(u16),
    Ends,
    Breaks,
    Wait(u16),
    Expire,
}

#[derive(Arbitrary, Debug)]
struct Input {
    v6: bool,
    /// The host's side has begun.
    opens: bool,
    options: Vec<u8>,
    room: bool,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Fake {
    free: usize,
    took: u32,
    has: usize,
    offset: usize,
    ended: bool,
    shut: bool,
    broken: bool,
}

impl Stream for Fake {
    fn send(&mut self, parts: [&[u8]; 2], _: bool) -> io::Result<usize> {
        assert!(!self.shut, "nothing comes after the end");
        if self.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let n = (parts[0].len() + parts[1].len()).min(self.free);
        self.free -= n;
        self.took = self.took.wrapping_add(n as u32);
        if n == 0 {
            Err(ErrorKind::WouldBlock.into())
        } else {
            Ok(n)
        }
    }

    fn room(&mut self) -> usize {
        self.free
    }

    fn seek(&mut self, offset: usize) -> io::Result<()> {
        assert!(offset <= self.has, "peeks what isn't there");
        self.offset = offset;
        Ok(())
    }

    fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize> {
        let n = (into[0].len() + into[1].len()).min(self.has - self.offset);
        self.offset += n;
        match n {
            0 if self.broken => Err(ErrorKind::ConnectionReset.into()),
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn discard(&mut self, n: usize) -> io::Result<()> {
        assert!(n <= self.has, "discards what never came");
        self.has -= n;
        self.offset = self.offset.saturating_sub(n);
        Ok(())
    }

    fn shut(&mut self) {
        self.shut = true;
    }

    fn abort(&mut self) {}
}

fn packet(v6: bool, tcp: &[u8], payload: usize) -> Frame {
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let len = (tcp.len() + payload) as u16;
    if v6 {
        b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        b.extend(len.to_be_bytes());
        b.extend([6, 64]);
        b.extend([0x20; 32]);
    } else {
        b.extend([8, 0, 0x45, 0]);
        b.extend((20 + len).to_be_bytes());
        b.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
    }
    b.extend(tcp);
    b.resize(b.len() + payload, 7);
    let mut frame = Frame::from_bytes(&b).expect("short");
    // Sums are another fuzz target's.
    frame.vnet.data_valid = true;
    frame
}

fn header(seq: u32, ack: u32, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
    let options = &options[..options.len().min(40) / 4 * 4];
    let mut tcp = vec![0x13, 0x88, 0, 80];
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([((5 + options.len() / 4) as u8) << 4, flags]);
    tcp.extend(window.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(options);
    tcp
}

const ISS: u32 = 0xffff_ff00;
const THEIRS: u32 = 0xffff_fff0;

fuzz_target!(|input: Input| {
    let before = outstanding();
    {
        let (inside, outside) = match input.v6 {
            true => ("[2020::1]:5000", "[2020::2]:80"),
            false => ("192.0.2.1:5000", "198.51.100.1:80"),
        };
        let (inside, outside) = (inside.parse().unwrap(), outside.parse().unwrap());
        let syn = packet(input.v6, &header(THEIRS, 0, 2, 64_000, &input.options), 0);
        let meta = parse(syn.head(), syn.len()).expect("Ethernet");
        let Some(s) = Segment::read(&syn, &meta) else {
            return;
        };
        let mut now = Nanos(3_600_000_000_000);
        let mut m = match input.opens {
            true => Mirror::opening(inside, outside, ISS, now),
            false => Mirror::new(inside, outside, &s, ISS),
        };
        let mut io = Fake {
            free: 30_000,
            ..Fake::default()
        };
        let mut out: Vec<Frame> = vec![];
        let mut fate = Fate::Lives;
        // What the container has been sent: the end of it.
        let (mut end, mut theirs) = (ISS.wrapping_add(1), THEIRS.wrapping_add(1));
        m.connected(now);
        if input.opens {
            let answer = header(THEIRS, ISS.wrapping_add(1), 0x12, 64_000, &input.options);
            let answer = packet(input.v6, &answer, 0);
            let meta = parse(answer.head(), answer.len()).expect("Ethernet");
            // Half of the time it comes at once.
            if let Some(s) = Segment::read(&answer, &meta).filter(|_| input.room) {
                fate = m.input(now, &s, &mut io, &mut out);
            }
        }
        for step in input.steps.into_iter().take(200) {
            let (frame, known) = match step {
                Step::Near {
                    seq,
                    ack,
                    flags,
                    window,
                    len,
                } => {
                    let seq = theirs.wrapping_add_signed(seq.into());
                    let ack = end.wrapping_add_signed(ack.into());
                    let tcp = header(seq, ack, flags, window, &input.options);
                    (Some(packet(input.v6, &tcp, usize::from(len % 9000))), true)
                }
                Step::Raw(bytes) => (
                    Some(packet(input.v6, &bytes[..bytes.len().min(1400)], 0)),
                    false,
                ),
                Step::Gives(n) if !io.ended => {
                    io.has += usize::from(n);
                    m.readable(false);
                    (None, true)
                }
                Step::Takes(n) => {
                    io.free += usize::from(n);
                    fate = m.writable(&mut io, &mut out);
                    (None, true)
                }
                Step::Ends => {
                    io.ended = true;
                    m.readable(true);
                    (None, true)
                }
                Step::Breaks => {
                    io.broken = true;
                    m.readable(true);
                    (None, true)
                }
                Step::Wait(ms) => {
                    now = now.after(Duration::from_millis(ms.into()));
                    (None, true)
                }
                Step::Expire => {
                    if m.due != Nanos::MAX {
                        now = now.max(m.due);
                        fate = m.expired(now, &mut io, &mut out);
                    }
                    (None, true)
                }
                Step::Gives(_) => (None, true),
            };
            if let (Fate::Lives, Some(mut frame)) = (fate, frame) {
                let meta = parse(frame.head(), frame.len()).expect("Ethernet");
                if let Some(s) = Segment::read(&frame, &meta) {
                    fate = m.input(now, &s, &mut io, &mut out);
                    if fate == Fate::Lives {
                        m.keep(&mut frame, &meta, input.room);
                    }
                } else {
                    assert!(
                        !known || input.options.len() > 40,
                        "a sound segment is read"
                    );
                }
            }
            if fate == Fate::Lives {
                fate = m.flush(now, &mut io, &mut out, 1 << 20).0;
            }
            assert!(out.len() < 2000, "{} frames at once", out.len());
            assert!(m.held() <= 64);
            for f in out.drain(..) {
                let meta = parse(f.head(), f.len()).expect("made by us");
                let s = Segment::read(&f, &meta).expect("made by us");
                let (seq, len) = s.place();
                if (seq.wrapping_add(len).wrapping_sub(end) as i32) > 0 {
                    end = seq.wrapping_add(len);
                }
            }
            theirs = THEIRS.wrapping_add(1).wrapping_add(io.took);
            if fate == Fate::Ends {
                break;
            }
        }
    }
    assert_eq!(outstanding(), before, "every slot came back");
});
