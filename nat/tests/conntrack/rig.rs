//! A table with its clock and a record of what has ended; packets for it.

pub(crate) use std::net::SocketAddr;
pub(crate) use std::time::{Duration, Instant};
pub(crate) use vswitch_core::clock::Nanos;
pub(crate) use vswitch_nat::conntrack::{
    Class, Config, ConfirmError, Conn, ConnId, Conntrack, Cursor, Dir, EndReason, Event, Hint, Hit,
    Invalid, Packet, Record, State, TcpSegment, Timeout, Timeouts, Track, Transport, Tuple, User,
    flag, proto,
};

pub(crate) const START: u64 = 3600;

/// A table, its clock, and what has ended.
pub(crate) struct Rig {
    pub(crate) ct: Conntrack,
    pub(crate) now: Nanos,
    pub(crate) ended: Vec<(Tuple, EndReason)>,
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

pub(crate) fn udp(src: &str, dst: &str) -> Tuple {
    Tuple::new(1, proto::UDP, addr(src), addr(dst))
}

pub(crate) fn tcp(src: &str, dst: &str) -> Tuple {
    Tuple::new(1, proto::TCP, addr(src), addr(dst))
}

/// UDP from one of many sources.
pub(crate) fn nth(n: u32) -> Tuple {
    let src = format!(
        "[2001:db8:{:x}:{:x}::1]:{}",
        n >> 20,
        n >> 4 & 0xffff,
        n & 15
    );
    udp(&src, "[2001:db8::1]:5000")
}

pub(crate) fn datagram(tuple: Tuple) -> Packet {
    Packet {
        tuple,
        transport: Transport::Other,
        packets: 1,
        bytes: 100,
        refreshes: true,
    }
}

pub(crate) fn segment(tuple: Tuple, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet {
        transport: Transport::Tcp(TcpSegment {
            flags,
            seq,
            ack,
            window: 5000,
            len: 0,
            scale: None,
        }),
        ..datagram(tuple)
    }
}

impl Rig {
    pub(crate) fn new(config: Config) -> Rig {
        let now = Nanos(START * 1_000_000_000);
        Rig {
            ct: Conntrack::new(config, now),
            now,
            ended: vec![],
        }
    }

    pub(crate) fn sized(max_entries: u32) -> Rig {
        Rig::new(Config {
            max_entries,
            ..Config::default()
        })
    }

    /// Tracks a packet; asking beforehand has told the same.
    pub(crate) fn track(&mut self, packet: &Packet) -> Track {
        let ended = &mut self.ended;
        let asked = self.ct.rehearse(packet, self.now);
        let track = self.ct.track(packet, self.now, &mut |c: &Conn, why| {
            ended.push((*c.tuple(Dir::Original), why));
        });
        assert_eq!(format!("{asked:?}"), format!("{track:?}"));
        track
    }

    pub(crate) fn hit(&mut self, packet: &Packet) -> Hit {
        match self.track(packet) {
            Track::Hit(hit) => hit,
            other => panic!("{}: {other:?}", packet.tuple),
        }
    }

    pub(crate) fn confirm(
        &mut self,
        packet: &Packet,
        reply: Tuple,
    ) -> Result<ConnId, ConfirmError> {
        let Track::New(pending) = self.track(packet) else {
            panic!("{} is known", packet.tuple);
        };
        let ended = &mut self.ended;
        let user = User {
            nat: 7,
            epoch: 1,
            rule: 2,
        };
        self.ct
            .confirm(pending, reply, user, self.now, &mut |c: &Conn, why| {
                ended.push((*c.tuple(Dir::Original), why));
            })
    }

    pub(crate) fn open(&mut self, packet: &Packet) -> Result<ConnId, ConfirmError> {
        self.confirm(packet, packet.tuple.reversed())
    }

    pub(crate) fn establish(&mut self, tuple: Tuple) -> ConnId {
        let id = self.open(&segment(tuple, flag::SYN, 0, 0)).expect("room");
        let back = tuple.reversed();
        self.hit(&segment(back, flag::SYN | flag::ACK, 100, 1));
        let hit = self.hit(&segment(tuple, flag::ACK, 1, 101));
        assert_eq!(hit.change, Some(State::Established));
        id
    }

    pub(crate) fn wait(&mut self, secs: u32) {
        self.now = self.now.after(Duration::from_secs(secs.into()));
        while self.tick(1000) <= self.now {}
    }

    pub(crate) fn tick(&mut self, budget: usize) -> Nanos {
        let ended = &mut self.ended;
        self.ct.tick(self.now, budget, &mut |c: &Conn, why| {
            ended.push((*c.tuple(Dir::Original), why));
        })
    }

    pub(crate) fn state(&self, id: ConnId) -> Option<State> {
        self.ct.get(id).map(Conn::state)
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let (mut all, mut at) = (vec![], Some(Cursor::default()));
        while let Some(cursor) = at {
            let (some, next) = self.ct.dump(cursor, 7, self.now);
            assert!(some.len() <= 7);
            all.extend(some);
            at = next;
        }
        all
    }
}
