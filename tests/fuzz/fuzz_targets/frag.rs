#![no_main]
//! Fragments in any order with any lies: no panic, every bound holds, and every frame is sent on, held or handed back.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Frame, outstanding};
use vswitch_core::wire::{Meta, parse};
use vswitch_nat::frag::{DatagramKey, FragConfig, Fragments, Tracked};

#[derive(Arbitrary, Debug)]
enum Step {
    V4 {
        src: u8,
        id: u8,
        word: u16,
        len: u8,
        proto: u8,
    },
    V6 {
        id: u8,
        word: u16,
        len: u8,
        next: u8,
    },
    Any(Vec<u8>),
    Wait(u16),
    /// Judges what wasn't judged at once.
    Decide,
}

#[derive(Arbitrary, Debug)]
struct Input {
    late: bool,
    steps: Vec<Step>,
}

fn bytes(step: &Step) -> Vec<u8> {
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match step {
        Step::V4 {
            src,
            id,
            word,
            len,
            proto,
        } => {
            b.extend([8, 0, 0x45, 0, 0, 20 + len % 200, 0, *id]);
            b.extend(word.to_be_bytes());
            b.extend([64, *proto, 0, 0, 192, 0, 2, src % 4, 192, 0, 2, 9]);
            b.resize(34 + usize::from(len % 200), 0);
        }
        Step::V6 {
            id,
            word,
            len,
            next,
        } => {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8 + len % 200, 44, 64]);
            b.extend([0x20; 32]);
            b.extend([*next, 0]);
            b.extend(word.to_be_bytes());
            b.extend([0, 0, 0, *id]);
            b.resize(62 + usize::from(len % 200), 0);
        }
        Step::Any(any) => b.extend(any),
        Step::Wait(_) | Step::Decide => {}
    }
    b
}

fuzz_target!(|input: Input| {
    let before = outstanding();
    let (mut received, mut sent, mut dropped) = (0, 0, 0);
    {
        let config = FragConfig {
            datagrams: 6,
            per_source: 5,
            held_frames: 5,
            held_per_source: 4,
            held_bytes: 600,
            ..FragConfig::default()
        };
        let mut table: Fragments<u8> = Fragments::new(config);
        let mut now = Nanos(3_600_000_000_000);
        let mut undecided: Vec<DatagramKey> = vec![];
        for step in input.steps.into_iter().take(200) {
            match &step {
                Step::Wait(ms) => {
                    now = now.after(Duration::from_millis(u64::from(*ms)));
                    let due = table.tick(now, 1000, &mut |_, _| dropped += 1);
                    assert!(due > now, "a tick asks for another at once");
                }
                Step::Decide => {
                    for key in undecided.drain(..) {
                        table.decide(&key, 1, &mut |_: Frame, _: &Meta| sent += 1);
                    }
                }
                _ => {
                    let frame = Frame::from_bytes(&bytes(&step)).expect("short");
                    let Some(meta) = parse(frame.head(), frame.len()) else {
                        continue;
                    };
                    received += 1;
                    match table.track(now, 1, &frame, &meta, &mut |_, _| dropped += 1) {
                        Tracked::Whole | Tracked::Follow(_) => sent += 1,
                        Tracked::First(key) => {
                            sent += 1;
                            if input.late {
                                undecided.push(key);
                            } else {
                                table.decide(&key, 1, &mut |_: Frame, _: &Meta| sent += 1);
                            }
                        }
                        Tracked::Hold(key) => {
                            table.hold(now, &key, frame, &meta, &mut |_, _| dropped += 1);
                        }
                        Tracked::Drop(_) => dropped += 1,
                    }
                }
            }
            assert_eq!(received, sent + dropped + table.held());
            assert!(table.held() <= 5 && table.held_bytes() <= 600 && table.len() <= 6);
            assert_eq!(table.held() == 0, table.held_bytes() == 0);
        }
    }
    assert_eq!(outstanding(), before, "every slot came back");
});
