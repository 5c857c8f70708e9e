//! Connection tracking against a naive model: any sequence of packets, translations, waits, removals and flushes gives the same
//! connections, with the same states, counts and ends.
//!
//! The model is a list that is searched from one end to the other. Where the table may choose (which of the connections idle equally
//! long is evicted, and when within a tick one expires) it says what it did, and the model checks that it was right.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_nat::conntrack::{
    Class, Config, ConfirmError, Conn, Conntrack, Cursor, Dir, EndReason, Hint, Packet, State,
    TcpSegment, Timeout, Timeouts, Track, Transport, Tuple, User, flag, proto,
};

const MAX: u32 = 20;
const PER_SOURCE: u32 = 9;

#[derive(Clone, Debug)]
enum Act {
    /// A packet of a tuple; if it opens a connection, how that is translated.
    Packet {
        tuple: Tuple,
        nat: Nat,
    },
    /// Packets of several tuples, looked ahead together.
    Batch(Vec<Tuple>),
    /// An ICMP error that quotes the tuple.
    Inner(Tuple),
    Remove(Tuple),
    Flush {
        port: u16,
    },
    /// Seconds, and whether the worker ticks in each of them or only at the end.
    Wait {
        secs: u32,
        often: bool,
    },
    Timeout {
        which: Timeout,
        secs: u32,
    },
    Evict(Class),
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Nat {
    None,
    /// Answers go to this port of the gateway.
    Masquerade(u16),
    /// Policy says no: never confirmed.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    original: Tuple,
    reply: Tuple,
    state: State,
    packets: [u64; 2],
    created: u32,
    seen: u32,
}

impl Known {
    fn timeout(&self) -> Timeout {
        match (self.original.proto, self.state) {
            (proto::TCP, _) => Timeout::TcpPartial,
            (proto::UDP, State::Stream) => Timeout::UdpStream,
            (proto::UDP, State::Replied) => Timeout::UdpReplied,
            (proto::UDP, _) if self.original.dst_port < 1024 => Timeout::UdpWellKnown,
            (proto::UDP, _) => Timeout::UdpUnreplied,
            (proto::ICMP, State::Unreplied) => Timeout::IcmpUnreplied,
            (proto::ICMP, _) => Timeout::IcmpReplied,
            (_, State::Stream) => Timeout::OtherStream,
            (_, State::Replied) => Timeout::OtherReplied,
            _ => Timeout::OtherUnreplied,
        }
    }

    fn class(&self) -> Class {
        self.timeout().class()
    }
}

struct Model {
    all: Vec<Known>,
    timeouts: Timeouts,
    evict: Class,
}

impl Model {
    fn find(&self, tuple: &Tuple) -> Option<(usize, Dir)> {
        let of = |pick: fn(&Known) -> &Tuple| self.all.iter().position(|k| pick(k) == tuple);
        of(|k| &k.original)
            .map(|i| (i, Dir::Original))
            .or_else(|| of(|k| &k.reply).map(|i| (i, Dir::Reply)))
    }

    fn over(&self, k: &Known) -> u32 {
        k.seen + self.timeouts.get(k.timeout()) + 1
    }

    /// A packet of a known connection.
    fn hit(&mut self, at: usize, dir: Dir, now: u32) {
        let k = &mut self.all[at];
        k.seen = now;
        k.packets[dir as usize] += 1;
        if k.original.proto == proto::TCP || dir == Dir::Original {
            return;
        }
        k.state = match k.state {
            State::Unreplied => State::Replied,
            State::Replied if now > k.created + 2 && k.original.proto != proto::ICMP => {
                State::Stream
            }
            state => state,
        };
    }

    /// What entering must say; `Ok` with whether something has to give way.
    fn enter(&self, original: &Tuple, reply: &Tuple) -> Result<bool, ConfirmError> {
        if self.find(original).is_some() || self.find(reply).is_some() {
            return Err(ConfirmError::Clash);
        }
        let from = |t: &Tuple| (t.zone, t.src());
        let source = |k: &&Known| from(&k.original) == from(original);
        if self.all.iter().filter(source).count() >= PER_SOURCE as usize {
            return Err(ConfirmError::SourceLimit);
        }
        if self.all.len() < MAX as usize {
            return Ok(false);
        }
        if self.all.iter().all(|k| k.class() > self.evict) {
            return Err(ConfirmError::Full);
        }
        Ok(true)
    }

    /// The table says that a connection ended.
    fn end(&mut self, ended: &Conn, why: EndReason, now: u32) {
        let original = ended.tuple(Dir::Original);
        let (at, dir) = self.find(original).expect("only what is there can end");
        assert_eq!(dir, Dir::Original);
        let k = self.all.swap_remove(at);
        assert_eq!(k.state, ended.state());
        match why {
            EndReason::Expired => assert!(self.over(&k) <= now, "{k:?} expired at {now}"),
            EndReason::Evicted => {
                let worse = |o: &&Known| (o.class(), o.seen) < (k.class(), k.seen);
                let better = self.all.iter().find(worse);
                assert_eq!(better, None, "should have gone instead of {k:?}");
                assert!(k.class() <= self.evict);
            }
            EndReason::Reopened | EndReason::Flushed | EndReason::Removed => {}
        }
    }
}

struct Pair {
    ct: Conntrack,
    model: Model,
    now: Nanos,
}

fn config(model: &Model) -> Config {
    Config {
        max_entries: MAX,
        per_source: Some(PER_SOURCE),
        timeouts: model.timeouts.clone(),
        evict: model.evict,
        seed: 3,
        ..Config::default()
    }
}

fn packet(tuple: Tuple) -> Packet {
    let transport = if tuple.proto == proto::TCP {
        Transport::Tcp(TcpSegment {
            flags: flag::SYN,
            ..TcpSegment::default()
        })
    } else {
        Transport::Other
    };
    Packet {
        tuple,
        transport,
        packets: 1,
        bytes: 10,
        refreshes: true,
    }
}

impl Pair {
    fn new() -> Pair {
        let model = Model {
            all: vec![],
            timeouts: Timeouts::default(),
            evict: Class::Replied,
        };
        let now = Nanos(5000 * 1_000_000_000);
        Pair {
            ct: Conntrack::new(config(&model), now),
            model,
            now,
        }
    }

    fn packet(&mut self, tuple: Tuple, nat: Nat, hint: Option<Hint>) {
        let (now, model) = (self.now.secs(), &mut self.model);
        let none = &mut |_: &Conn, _| panic!("nothing ends by this");
        let asked = self.ct.rehearse(&packet(tuple), self.now);
        let track = match hint {
            Some(hint) => self.ct.track_hinted(&packet(tuple), hint, self.now, none),
            None => self.ct.track(&packet(tuple), self.now, none),
        };
        assert_eq!(format!("{asked:?}"), format!("{track:?}"));
        match (track, model.find(&tuple)) {
            (Track::Hit(hit), Some((at, dir))) => {
                assert_eq!(hit.dir, dir);
                model.hit(at, dir, now);
            }
            (Track::Invalid(_), None) => assert!(tuple.is_icmp_answer()),
            (Track::New(pending), None) => {
                let reply = match nat {
                    Nat::Refused => return,
                    Nat::None => tuple.reversed(),
                    Nat::Masquerade(port) => {
                        let out = "203.0.113.1".parse().expect("address");
                        tuple.reversed().with_dst(out, port)
                    }
                };
                let want = model.enter(&tuple, &reply);
                let (user, mut ended) = (User::default(), 0);
                let did = self
                    .ct
                    .confirm(pending, reply, user, self.now, &mut |c, why| {
                        assert_eq!(why, EndReason::Evicted);
                        model.end(c, why, now);
                        ended += 1;
                    });
                assert_eq!(did.map(|_| ended == 1), want);
                if did.is_ok() {
                    let state = match tuple.proto {
                        proto::TCP => State::SynSent,
                        _ => State::Unreplied,
                    };
                    model.all.push(Known {
                        original: tuple,
                        reply,
                        state,
                        packets: [1, 0],
                        created: now,
                        seen: now,
                    });
                }
            }
            (track, known) => panic!("{tuple:?}: {track:?}, but {known:?}"),
        }
    }

    /// Ticks as often as the table asks for, in small steps.
    fn tick(&mut self) {
        let (now, model) = (self.now.secs(), &mut self.model);
        for _ in 0..1000 {
            let due = self
                .ct
                .tick(self.now, 3, &mut |c, why| model.end(c, why, now));
            if due > self.now {
                let overdue = model.all.iter().find(|k| model.over(k) <= now);
                assert_eq!(overdue, None, "outlives its time at {now}");
                let first = model.all.iter().map(|k| model.over(k)).min();
                // It may want to be called earlier, never later.
                assert!(first.is_none_or(|s| due.secs() <= s));
                assert_eq!(due == Nanos::MAX, first.is_none());
                return;
            }
        }
        panic!("ticks without end");
    }

    fn restart(&mut self) {
        let records = self.records();
        self.ct = Conntrack::new(config(&self.model), self.now);
        for record in records.values() {
            self.ct
                .import(record, self.now, &mut |_, _| panic!("there is room"))
                .expect("room");
        }
    }

    fn records(&self) -> BTreeMap<String, vswitch_nat::conntrack::Record> {
        let (mut all, mut at) = (BTreeMap::new(), Some(Cursor::default()));
        while let Some(cursor) = at {
            let (some, next) = self.ct.dump(cursor, 3, self.now);
            for record in some {
                let before = all.insert(format!("{:?}", record.original), record);
                assert_eq!(before, None, "met twice");
            }
            at = next;
        }
        all
    }

    fn check(&self) {
        let (records, now) = (self.records(), self.now.secs());
        assert_eq!(records.len(), self.model.all.len());
        assert_eq!(self.ct.count() as usize, records.len());
        for k in &self.model.all {
            let r = records
                .get(&format!("{:?}", k.original))
                .unwrap_or_else(|| panic!("{k:?} isn't there"));
            assert_eq!(
                (r.reply, r.state, r.packets, r.timeout),
                (k.reply, k.state, k.packets, k.timeout())
            );
            assert_eq!((r.age, r.idle), (now - k.created, now - k.seen));
            let of = |t| {
                self.ct
                    .lookup(t)
                    .map(|(id, dir)| (self.ct.get(id).is_some(), dir))
            };
            assert_eq!(of(&k.original), Some((true, Dir::Original)));
            assert_eq!(of(&k.reply), Some((true, Dir::Reply)));
        }
        for class in Class::ALL {
            let n = self.model.all.iter().filter(|k| k.class() == class).count();
            assert_eq!(self.ct.count_of(class) as usize, n);
        }
    }

    fn act(&mut self, act: Act) {
        let (now, model) = (self.now.secs(), &mut self.model);
        match act {
            Act::Packet { tuple, nat } => self.packet(tuple, nat, None),
            Act::Batch(tuples) => {
                let mut hints = vec![Hint::default(); tuples.len()];
                let packets: Vec<Packet> = tuples.iter().copied().map(packet).collect();
                self.ct.look_ahead(&packets, &mut hints);
                for (tuple, hint) in tuples.into_iter().zip(hints) {
                    self.packet(tuple, Nat::None, Some(hint));
                }
            }
            Act::Inner(tuple) => {
                let found = self.ct.lookup_inner(&tuple).and_then(|(id, dir)| {
                    let conn = self.ct.get(id)?;
                    Some((*conn.tuple(Dir::Original), dir))
                });
                let want = model.find(&tuple.reversed());
                assert_eq!(found, want.map(|(at, dir)| (model.all[at].original, dir)));
            }
            Act::Remove(tuple) => {
                let id = self.ct.lookup(&tuple).map(|(id, _)| id);
                assert_eq!(id.is_some(), model.find(&tuple).is_some());
                if let Some(id) = id {
                    let end = &mut |c: &Conn, why| model.end(c, why, now);
                    assert!(self.ct.remove(id, self.now, end));
                    assert!(!self.ct.remove(id, self.now, &mut |_, _| {}));
                }
            }
            Act::Flush { port } => {
                let which = |c: &Conn| c.tuple(Dir::Original).dst_port == port;
                let mut at = Some(Cursor::default());
                while let Some(cursor) = at {
                    let end = &mut |c: &Conn, why| model.end(c, why, now);
                    at = self.ct.flush(cursor, 3, self.now, which, end).1;
                }
                assert!(model.all.iter().all(|k| k.original.dst_port != port));
            }
            Act::Wait { secs, often } => {
                for _ in 0..secs {
                    self.now = self.now.after(Duration::from_secs(1));
                    if often {
                        self.tick();
                    }
                }
                self.tick();
            }
            Act::Timeout { which, secs } => {
                model.timeouts.set(which, secs);
                self.ct.configure(config(model));
                self.tick();
            }
            Act::Evict(class) => {
                model.evict = class;
                self.ct.configure(config(model));
            }
            Act::Restart => self.restart(),
        }
    }
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let inside = (1..4u8, 1..5u16);
    let port = prop_oneof![Just(53u16), Just(5000)];
    let what = prop_oneof![
        3 => Just(proto::UDP),
        2 => Just(proto::TCP),
        1 => Just(proto::ICMP),
        1 => Just(47)
    ];
    (inside, port, what, 0..2u16, any::<bool>()).prop_map(|((host, id), port, what, zone, back)| {
        let id = if what == 47 { 0 } else { id };
        let port = if what == 47 { 0 } else { port };
        let src = SocketAddr::from(([192, 0, 2, host], id));
        let dst = SocketAddr::from(([198, 51, 100, 1], port));
        let t = Tuple::new(zone % 2 * u16::from(what == proto::UDP), what, src, dst);
        // SYNs one way only: the other would be a simultaneous open.
        if back && what != proto::TCP {
            t.reversed()
        } else {
            t
        }
    })
}

/// What comes back to a masquerading gateway.
fn outside() -> impl Strategy<Value = Tuple> {
    (61_000..61_004u16).prop_map(|port| {
        let src = SocketAddr::from(([198, 51, 100, 1], 53));
        let dst = SocketAddr::from(([203, 0, 113, 1], port));
        Tuple::new(0, proto::UDP, src, dst)
    })
}

fn act() -> impl Strategy<Value = Act> {
    let nat = prop_oneof![
        6 => Just(Nat::None),
        3 => (61_000..61_004u16).prop_map(Nat::Masquerade),
        1 => Just(Nat::Refused)
    ];
    let class = prop::sample::select(Class::ALL.to_vec());
    let which = prop::sample::select(Timeout::ALL.to_vec());
    prop_oneof![
        30 => (tuple(), nat).prop_map(|(tuple, nat)| Act::Packet { tuple, nat }),
        5 => outside().prop_map(|tuple| Act::Packet { tuple, nat: Nat::None }),
        3 => prop::collection::vec(tuple(), 1..20).prop_map(Act::Batch),
        2 => prop_oneof![tuple(), outside()].prop_map(Act::Inner),
        2 => tuple().prop_map(Act::Remove),
        1 => prop_oneof![Just(53u16), Just(5000)].prop_map(|port| Act::Flush { port }),
        8 => (0..6u32).prop_map(|secs| Act::Wait { secs, often: true }),
        2 => (0..200u32, any::<bool>()).prop_map(|(secs, often)| Act::Wait { secs, often }),
        1 => (0..40_000u32).prop_map(|secs| Act::Wait { secs, often: false }),
        1 => (which, prop_oneof![1..400u32, Just(8000)])
            .prop_map(|(which, secs)| Act::Timeout { which, secs }),
        1 => class.prop_map(Act::Evict),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn does_what_the_model_does(acts in prop::collection::vec(act(), 1..250)) {
        let mut pair = Pair::new();
        for act in acts {
            pair.act(act);
            pair.check();
        }
    }
}
