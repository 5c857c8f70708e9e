//! Fragment tracking against a naive model (a set of bytes), and its bounds one by one.

use super::*;
use proptest::prelude::*;
use vswitch_core::frame::outstanding;
use vswitch_core::wire::parse;

const NOW: Nanos = Nanos(3_600_000_000_000);

fn v4(src: u8, id: u16, offset: u16, len: u16, more: bool) -> (Frame, Meta) {
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    b.extend((20 + len).to_be_bytes());
    b.extend(id.to_be_bytes());
    b.extend((offset / 8 + u16::from(more) * 0x2000).to_be_bytes());
    b.extend([64, 17, 0, 0, 192, 0, 2, src, 198, 51, 100, 1]);
    b.resize(34 + usize::from(len), 0);
    frame_of(&b)
}

fn v6(id: u32, offset: u16, len: u16, more: bool) -> (Frame, Meta) {
    let mut b = vec![
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0,
    ];
    b.extend((16 + len).to_be_bytes());
    b.extend([60, 64]);
    b.extend([[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]; 2].concat());
    b.extend([44, 0, 1, 4, 0, 0, 0, 0, 17, 0]);
    b.extend((offset | u16::from(more)).to_be_bytes());
    b.extend(id.to_be_bytes());
    b.resize(70 + usize::from(len), 0);
    frame_of(&b)
}

fn frame_of(b: &[u8]) -> (Frame, Meta) {
    let f = Frame::from_bytes(b).expect("fits");
    let m = parse(f.head(), f.len()).expect("long enough");
    (f, m)
}

/// The table with what a caller does, and what became of every frame.
struct Rig {
    table: Fragments<u32>,
    now: Nanos,
    dropped: Vec<FragDrop>,
    verdict: u32,
}

#[derive(Debug, PartialEq)]
enum Did {
    Whole,
    /// Judged, and so many held ones released.
    First(Vec<u32>),
    Follow(u32),
    Held,
    Drop(FragDrop),
}

impl Rig {
    fn new(change: impl FnOnce(&mut FragConfig)) -> Rig {
        let mut config = FragConfig::default();
        change(&mut config);
        Rig {
            table: Fragments::new(config),
            now: NOW,
            dropped: vec![],
            verdict: 0,
        }
    }

    fn put(&mut self, (frame, meta): (Frame, Meta)) -> Did {
        let (dropped, now) = (&mut self.dropped, self.now);
        let mut out = |_frame, why| dropped.push(why);
        // Whoever asks beforehand is told the same.
        let asked = self.table.rehearse(now, 0, &frame, &meta);
        let tracked = self.table.track(now, 0, &frame, &meta, &mut out);
        assert_eq!(asked, tracked);
        match tracked {
            Tracked::Whole => Did::Whole,
            Tracked::First(key) => {
                self.verdict += 1;
                let mut released = vec![];
                self.table.decide(&key, self.verdict, &mut |f, m| {
                    released.push(FragmentHeader::of(&f, m).expect("a fragment").offset);
                });
                Did::First(released)
            }
            Tracked::Follow(v) => Did::Follow(v),
            Tracked::Hold(key) => {
                self.table.hold(now, &key, frame, &meta, &mut out);
                Did::Held
            }
            Tracked::Drop(why) => Did::Drop(why),
        }
    }

    fn wait(&mut self, d: Duration) -> Nanos {
        self.now = self.now.after(d);
        let dropped = &mut self.dropped;
        self.table
            .tick(self.now, 1000, &mut |_, why| dropped.push(why))
    }
}

#[test]
fn in_order() {
    let mut r = Rig::new(|_| {});
    assert_eq!(r.put(v4(1, 7, 0, 1480, true)), Did::First(vec![]));
    assert_eq!(r.put(v4(1, 7, 1480, 1480, true)), Did::Follow(1));
    assert_eq!(r.put(v4(1, 8, 0, 1480, true)), Did::First(vec![]));
    assert_eq!(r.put(v4(1, 7, 2960, 5, false)), Did::Follow(1));
    assert_eq!(r.table.len(), 1, "a complete datagram is forgotten");
    assert_eq!(
        r.put(v4(2, 8, 1480, 5, false)),
        Did::Held,
        "of another source"
    );
    assert_eq!(r.put(v4(1, 8, 1480, 5, false)), Did::Follow(2));
}

#[test]
fn first_last() {
    let mut r = Rig::new(|_| {});
    for offset in [2960, 1480] {
        assert_eq!(
            r.put(v6(
                7,
                offset,
                if offset == 2960 { 3 } else { 1480 },
                offset != 2960
            )),
            Did::Held
        );
    }
    assert_eq!((r.table.held(), r.table.held_bytes()), (2, 1483 + 140));
    assert_eq!(r.put(v6(7, 0, 1480, true)), Did::First(vec![2960, 1480]));
    assert_eq!(
        (r.table.held(), r.table.held_bytes(), r.table.len()),
        (0, 0, 0)
    );
}

#[test]
fn whole_packets_are_not_tracked() {
    let mut r = Rig::new(|_| {});
    assert_eq!(r.put(v4(1, 7, 0, 100, false)), Did::Whole);
    assert_eq!(
        r.put(v6(7, 0, 100, false)),
        Did::Whole,
        "an atomic fragment"
    );
    assert!(r.table.is_empty());
}

#[test]
fn overlap_kills_the_datagram() {
    let overlaps = [
        v4(1, 7, 1472, 16, true),
        v4(1, 7, 2952, 16, false),
        v4(1, 7, 0, 8, true),
        v4(1, 7, 1480, 8, false),
        v4(1, 7, 0, 4000, true),
    ];
    for overlap in overlaps {
        let mut r = Rig::new(|_| {});
        r.put(v4(1, 7, 0, 1480, true));
        assert_eq!(r.put(v4(1, 7, 1480, 1480, true)), Did::Follow(1));
        assert_eq!(r.put(overlap), Did::Drop(FragDrop::Overlap));
        assert_eq!(
            r.put(v4(1, 7, 2960, 8, false)),
            Did::Drop(FragDrop::Overlap)
        );
        assert_eq!(r.put(v4(1, 7, 0, 1480, true)), Did::Drop(FragDrop::Overlap));
        assert_eq!(r.put(v4(1, 9, 0, 1480, true)), Did::First(vec![]));
    }
}

#[test]
fn overlap_drops_what_is_held() {
    let mut r = Rig::new(|_| {});
    r.put(v4(1, 7, 1480, 1480, true));
    r.put(v4(1, 8, 1480, 1480, true));
    assert_eq!(
        r.put(v4(1, 7, 1488, 1480, true)),
        Did::Drop(FragDrop::Overlap)
    );
    assert_eq!((r.dropped, r.table.held()), (vec![FragDrop::Overlap], 1));
}

#[test]
fn a_duplicate_is_dropped_alone() {
    let mut r = Rig::new(|_| {});
    r.put(v4(1, 7, 0, 1480, true));
    assert_eq!(
        r.put(v4(1, 7, 0, 1480, true)),
        Did::Drop(FragDrop::Duplicate)
    );
    r.put(v4(1, 7, 2960, 8, false));
    assert_eq!(
        r.put(v4(1, 7, 2960, 8, false)),
        Did::Drop(FragDrop::Duplicate)
    );
    assert_eq!(r.put(v4(1, 7, 1480, 1480, true)), Did::Follow(1));
}

#[test]
fn impossible_fragments() {
    let mut r = Rig::new(|_| {});
    assert_eq!(r.put(v4(1, 7, 8, 0, true)), Did::Drop(FragDrop::Malformed));
    assert_eq!(r.put(v4(1, 7, 8, 9, true)), Did::Drop(FragDrop::Malformed));
    assert_eq!(
        r.put(v4(1, 7, 65_528, 16, false)),
        Did::Drop(FragDrop::Malformed)
    );
    let (mut frame, _) = v4(1, 7, 0, 16, true);
    // TCP needs 20.
    frame.head_mut()[23] = 6;
    let meta = parse(frame.head(), frame.len()).unwrap();
    assert_eq!(r.put((frame, meta)), Did::Drop(FragDrop::Tiny));
    assert!(r.table.is_empty());
}

#[test]
fn holding_is_bounded() {
    let mut r = Rig::new(|c| {
        c.held_frames = 8;
        c.held_per_source = 4;
        c.held_bytes = 4000;
    });
    for id in 0..6 {
        r.put(v4(1, id, 8, 8, true));
    }
    assert_eq!(
        (r.table.held(), r.dropped.clone()),
        (4, vec![FragDrop::SourceLimit; 2])
    );
    for source in 2..10 {
        r.put(v4(source, 1, 8, 8, true));
    }
    assert_eq!(
        (r.table.held(), r.dropped.split_off(2)),
        (8, vec![FragDrop::Evicted; 4])
    );
    assert_eq!(
        r.put(v4(1, 0, 0, 8, true)),
        Did::First(vec![]),
        "the oldest made room"
    );
    assert_eq!(r.put(v4(9, 1, 0, 8, true)), Did::First(vec![8]));
    r.put(v4(20, 1, 8, 3952, true));
    assert!(r.table.held_bytes() <= 4000 && r.table.held() == 1);
    let dropped = r.dropped.len();
    r.put(v4(21, 1, 8, 4000, true));
    assert_eq!(
        (r.table.held(), r.dropped.len()),
        (1, dropped + 1),
        "longer than all the room"
    );
}

#[test]
fn holding_ends() {
    let before = outstanding();
    let mut r = Rig::new(|_| {});
    let due = NOW.after(Duration::from_secs(2));
    r.put(v4(1, 7, 8, 8, true));
    assert_eq!(r.wait(Duration::from_millis(1999)), due);
    assert_eq!(r.table.held(), 1);
    assert_eq!(
        r.wait(Duration::from_millis(1)),
        NOW.after(Duration::from_secs(15))
    );
    assert_eq!(
        (r.table.held(), r.dropped.clone()),
        (0, vec![FragDrop::Timeout])
    );
    assert_eq!(outstanding(), before);
    assert_eq!(r.wait(Duration::from_secs(13)), Nanos::MAX);
    assert!(r.table.is_empty());
}

#[test]
fn datagrams_are_bounded() {
    let mut r = Rig::new(|c| {
        c.datagrams = 4;
        c.per_source = 3;
    });
    for id in 0..3 {
        r.put(v4(1, id, 0, 8, true));
    }
    assert_eq!(
        r.put(v4(1, 9, 0, 8, true)),
        Did::Drop(FragDrop::SourceLimit)
    );
    // Some of these may share the first's counter, but hardly many.
    let others = (2..12).filter(|s| r.put(v4(*s, 1, 0, 8, true)) == Did::First(vec![]));
    assert!(others.count() >= 7);
    assert_eq!(r.table.len(), 4);
    assert_eq!(
        r.put(v4(1, 0, 8, 8, true)),
        Did::Held,
        "the oldest was evicted"
    );
}

#[test]
fn an_old_datagram_is_another() {
    let mut r = Rig::new(|_| {});
    r.put(v4(1, 7, 0, 8, true));
    r.now = r.now.after(Duration::from_secs(15));
    assert_eq!(
        r.put(v4(1, 7, 0, 16, true)),
        Did::First(vec![]),
        "without a tick before"
    );
    assert_eq!(r.table.len(), 1);
}

#[test]
fn a_datagram_of_too_many_fragments() {
    let mut r = Rig::new(|_| {});
    r.put(v4(1, 7, 0, 8, true));
    for n in 1..128 {
        assert_eq!(r.put(v4(1, 7, n * 8, 8, true)), Did::Follow(1));
    }
    assert_eq!(
        r.put(v4(1, 7, 128 * 8, 8, true)),
        Did::Drop(FragDrop::TooMany)
    );
}

/// One datagram by a byte map.
#[derive(Default)]
struct Model {
    bytes: std::collections::BTreeSet<u32>,
    parts: Vec<(u32, u32, bool)>,
    end: Option<u32>,
    dead: bool,
    verdict: Option<u32>,
    held: Vec<u32>,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn does_what_the_model_does(
        parts in prop::collection::vec((0..3u16, 0..8u16, 1..4u16, 0..3u8, any::<bool>()), 1..40),
        six in any::<bool>(),
    ) {
        let before = outstanding();
        {
            let mut r = Rig::new(|_| {});
            let mut models: [Model; 3] = Default::default();
            let mut verdicts = 0;
            for (id, at, len, odd, more) in parts {
                let odd = if more { 0 } else { u16::from(odd) };
                let (offset, len) = (at * 8, len * 8 + odd);
                let did = r.put(if six { v6(id.into(), offset, len, more) } else { v4(1, id, offset, len, more) });
                let m = &mut models[usize::from(id)];
                let (from, to) = (u32::from(offset), u32::from(offset + len));
                if offset == 0 && !more {
                    prop_assert_eq!(did, Did::Whole);
                    continue;
                }
                let expected = if m.dead {
                    Did::Drop(FragDrop::Overlap)
                } else if m.parts.contains(&(from, to, more)) {
                    Did::Drop(FragDrop::Duplicate)
                } else if (from..to).any(|b| m.bytes.contains(&b))
                    || m.end.is_some_and(|e| to > e || !more)
                    || (!more && m.bytes.last().is_some_and(|b| *b >= from))
                {
                    m.dead = true;
                    m.held.clear();
                    Did::Drop(FragDrop::Overlap)
                } else {
                    m.bytes.extend(from..to);
                    m.parts.push((from, to, more));
                    if !more {
                        m.end = Some(to);
                    }
                    if let Some(v) = m.verdict {
                        Did::Follow(v)
                    } else if from == 0 {
                        verdicts += 1;
                        m.verdict = Some(verdicts);
                        Did::First(std::mem::take(&mut m.held))
                    } else {
                        m.held.push(from);
                        Did::Held
                    }
                };
                prop_assert_eq!(did, expected);
                let complete = m.end.is_some_and(|e| m.bytes.len() == e as usize);
                if complete && !m.dead {
                    *m = Model::default();
                }
                prop_assert_eq!(r.table.held(), models.iter().map(|m| m.held.len()).sum::<usize>());
            }
        }
        prop_assert_eq!(outstanding(), before, "no frame is lost");
    }
}
