//! The FDB against a naive model: any sequence of learning, moving, ageing, static entries and flushes gives the same table.

use proptest::prelude::*;
use std::collections::BTreeMap;
use vswitch_core::bridge::fdb::{Fdb, FdbCursor, FlushFilter, Learn, Swept};
use vswitch_core::port::PortId;
use vswitch_core::wire::MacAddr;

const LIMIT: usize = 24;
const AGEING: u32 = 30;

#[derive(Clone, Debug)]
enum Act {
    Learn { key: Key, port: PortId, limit: u32 },
    Lookup(Key),
    Static { key: Key, port: PortId },
    Remove(Key),
    Flush(FlushFilter),
    Wait(u32),
}

type Key = (u16, MacAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    port: PortId,
    seen: u32,
    is_static: bool,
}

/// The same by a sorted map and whole walks.
#[derive(Default)]
struct Model(BTreeMap<Key, Known>);

impl Model {
    fn learned_at(&self, port: PortId) -> u32 {
        self.0
            .values()
            .filter(|k| !k.is_static && k.port == port)
            .count() as u32
    }

    fn learn(&mut self, key: Key, port: PortId, now: u32, limit: u32) -> Learn {
        let fresh = Known {
            port,
            seen: now,
            is_static: false,
        };
        let full = self.learned_at(port) >= limit;
        match self.0.get(&key).copied() {
            Some(k) if k.port == port => {
                if !k.is_static {
                    self.0.insert(key, fresh);
                }
                Learn::Refreshed
            }
            Some(k) if k.is_static => Learn::Pinned(k.port),
            _ if full => Learn::PortFull,
            Some(k) => {
                self.0.insert(key, fresh);
                Learn::Moved(k.port)
            }
            None if self.0.len() >= LIMIT => Learn::Full,
            None => {
                self.0.insert(key, fresh);
                Learn::New
            }
        }
    }

    fn flush(&mut self, f: FlushFilter) -> usize {
        let before = self.0.len();
        self.0.retain(|(vid, mac), k| {
            (k.is_static && !f.statics)
                || f.port.is_some_and(|p| p != k.port)
                || f.vid.is_some_and(|v| v != *vid)
                || f.mac.is_some_and(|m| m != *mac)
        });
        before - self.0.len()
    }

    /// The table says that the entry aged: its time must have been over.
    fn age(&mut self, key: Key, now: u32) {
        let known = self.0.remove(&key).expect("only what is there can age");
        assert!(
            !known.is_static && known.seen + AGEING <= now,
            "{known:?} aged at {now}"
        );
    }
}

fn key() -> impl Strategy<Value = Key> {
    (0..3u16, 0..16u8).prop_map(|(vid, n)| (vid, MacAddr([2, 0, 0, 0, 0, n])))
}

fn port() -> impl Strategy<Value = PortId> {
    (0..5u16).prop_map(PortId)
}

fn act() -> impl Strategy<Value = Act> {
    let filter = (
        prop::option::of(port()),
        prop::option::of(0..3u16),
        prop::option::of(key()),
        any::<bool>(),
    )
        .prop_map(|(port, vid, mac, statics)| FlushFilter {
            port,
            vid,
            mac: mac.map(|k| k.1),
            statics,
        });
    prop_oneof![
        12 => (key(), port(), prop_oneof![Just(u32::MAX), 0..6u32])
            .prop_map(|(key, port, limit)| Act::Learn { key, port, limit }),
        6 => key().prop_map(Act::Lookup),
        1 => (key(), port()).prop_map(|(key, port)| Act::Static { key, port }),
        1 => key().prop_map(Act::Remove),
        1 => filter.prop_map(Act::Flush),
        3 => (0..25u32).prop_map(Act::Wait),
    ]
}

/// Lets the clock run; sweeps only when the table asks for it, in pieces of a few buckets.
fn wait(fdb: &mut Fdb, model: &mut Model, now: &mut u32, by: u32) {
    for _ in 0..by {
        *now += 1;
        for _ in 0..64 {
            let due = fdb.sweep(*now, AGEING, 3, |e, what| {
                if what == Swept::Aged {
                    model.age((e.vid(), e.mac()), *now);
                }
                true
            });
            if due > *now {
                break;
            }
        }
        for (key, k) in &model.0 {
            // Sweeps are a second apart at least.
            assert!(
                k.is_static || k.seen + AGEING + 1 >= *now,
                "{key:?} {k:?} outlives its time at {now}"
            );
        }
    }
}

fn table(fdb: &Fdb) -> BTreeMap<Key, (PortId, bool)> {
    let mut all = BTreeMap::new();
    let mut at = Some(FdbCursor::default());
    while let Some(cursor) = at {
        let (some, next) = fdb.dump(cursor, 5);
        assert!(some.len() <= 5);
        all.extend(
            some.iter()
                .map(|e| ((e.vid(), e.mac()), (e.port, e.is_static))),
        );
        at = next;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn does_what_the_model_does(acts in prop::collection::vec(act(), 1..200)) {
        let (mut fdb, mut model, mut now) = (Fdb::new(LIMIT), Model::default(), 1000u32);
        for act in acts {
            match act {
                Act::Learn { key, port, limit } => {
                    let would = fdb.would_learn(key.0, key.1, port, limit);
                    let did = fdb.learn(key.0, key.1, port, now, limit);
                    prop_assert_eq!(would, did);
                    prop_assert_eq!(did, model.learn(key, port, now, limit));
                    fdb.arm(now, AGEING);
                }
                Act::Lookup(key) => prop_assert_eq!(
                    fdb.lookup(key.0, key.1),
                    model.0.get(&key).map(|k| k.port)
                ),
                Act::Static { key, port } => {
                    model.0.remove(&key);
                    let fits = model.0.len() < LIMIT;
                    prop_assert_eq!(fdb.add_static(key.0, key.1, port), fits);
                    if fits {
                        model.0.insert(key, Known { port, seen: 0, is_static: true });
                    }
                }
                Act::Remove(key) => prop_assert_eq!(
                    fdb.remove(key.0, key.1).map(|e| e.port),
                    model.0.remove(&key).map(|k| k.port)
                ),
                Act::Flush(f) => prop_assert_eq!(fdb.flush(f), model.flush(f)),
                Act::Wait(by) => wait(&mut fdb, &mut model, &mut now, by),
            }
            prop_assert_eq!(fdb.len(), model.0.len());
            for p in 0..5 {
                prop_assert_eq!(fdb.learned_at(PortId(p)), model.learned_at(PortId(p)));
            }
        }
        let want: BTreeMap<_, _> = model.0.iter().map(|(k, v)| (*k, (v.port, v.is_static))).collect();
        prop_assert_eq!(table(&fdb), want);
    }
}
