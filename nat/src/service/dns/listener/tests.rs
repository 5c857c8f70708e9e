//! A client by hand, segment by segment, so that it can do what no kernel does.

use super::*;
use proptest::prelude::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn at(ms: u64) -> Nanos {
    Nanos(3_600_000_000_000).after(Duration::from_millis(ms))
}

fn listener() -> Listener {
    Listener::new(1500, 7, at(0))
}

/// A segment that the listener sent.
#[derive(Clone, Debug)]
struct Sent {
    to: u16,
    flags: u8,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
}

fn flush(l: &mut Listener, now: Nanos) -> Vec<Sent> {
    let mut all = vec![];
    l.flush(now, &mut |peer, packet| {
        assert!(is_tcp(packet) && packet.len() <= 1500);
        let tcp = &packet[20..];
        let word = |i: usize| u32::from_be_bytes(tcp[i..i + 4].try_into().expect("4 bytes"));
        let sent = Sent {
            to: u16::from_be_bytes([tcp[2], tcp[3]]),
            flags: tcp[13],
            seq: word(4),
            ack: word(8),
            payload: tcp[usize::from(tcp[12] >> 4) * 4..].to_vec(),
        };
        assert_eq!(peer.client.port(), sent.to);
        all.push(sent);
    });
    all
}

fn peer(switch_port: u32, port: u16) -> Peer {
    Peer {
        port: switch_port,
        mac: MacAddr([2, 0, 0, 0, 0, 9]),
        client: SocketAddr::from(([192, 0, 2, 9], port)),
        local: SocketAddr::from(([192, 0, 2, 1], 53)),
    }
}

/// An IPv4 packet; checksums are the caller's matter, so there are none.
fn segment(port: u16, flags: u8, (seq, ack): (u32, u32), window: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0];
    p.extend((40 + payload.len() as u16).to_be_bytes());
    p.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1]);
    p.extend(port.to_be_bytes());
    p.extend(53u16.to_be_bytes());
    p.extend(seq.to_be_bytes());
    p.extend(ack.to_be_bytes());
    p.extend([0x50, flags]);
    p.extend(window.to_be_bytes());
    p.extend([0; 4]);
    p.extend(payload);
    p
}

/// A client that has completed the handshake.
struct Client {
    peer: Peer,
    seq: u32,
    ack: u32,
}

impl Client {
    fn connect(l: &mut Listener, switch_port: u32, port: u16, now: Nanos) -> Client {
        let peer = peer(switch_port, port);
        l.packet(peer, segment(port, SYN, (1000, 0), 65_000, &[]), now);
        assert_eq!(l.next_query(now), None);
        let sent = flush(l, now);
        let answer = sent.iter().find(|s| s.to == port);
        let answer = answer.expect("an answer to the SYN");
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1001));
        let mut client = Client {
            peer,
            seq: 1001,
            ack: answer.seq.wrapping_add(1),
        };
        client.send(l, ACK, &[], now);
        client
    }

    fn send(&mut self, l: &mut Listener, flags: u8, payload: &[u8], now: Nanos) {
        let port = self.peer.client.port();
        let packet = segment(port, flags, (self.seq, self.ack), 65_000, payload);
        self.seq = self
            .seq
            .wrapping_add(payload.len() as u32 + u32::from(flags & FIN));
        l.packet(self.peer, packet, now);
    }

    /// What has come in order.
    fn receive(&mut self, l: &mut Listener, now: Nanos) -> Vec<u8> {
        let mut got = vec![];
        loop {
            let sent = flush(l, now);
            let mine: Vec<Sent> = sent
                .into_iter()
                .filter(|s| s.to == self.peer.client.port() && !s.payload.is_empty())
                .collect();
            if mine.is_empty() {
                return got;
            }
            for s in mine {
                assert_eq!(s.seq, self.ack);
                self.ack = self.ack.wrapping_add(s.payload.len() as u32);
                got.extend(s.payload);
            }
            self.send(l, ACK, &[], now);
            assert_eq!(l.next_query(now), None);
        }
    }
}

fn query(id: u16) -> Vec<u8> {
    let mut q = id.to_be_bytes().to_vec();
    q.resize(30, 0);
    q
}

fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
    let all = messages.iter().map(|m| tcp::frame(m).expect("it fits"));
    all.collect::<Vec<_>>().concat()
}

#[test]
fn queries_in_pieces_and_pipelined_are_answered_in_any_order() {
    let mut l = listener();
    let now = at(0);
    let mut client = Client::connect(&mut l, 1, 4000, now);
    let bytes = framed(&[query(1), query(2)]);
    client.send(&mut l, ACK, &bytes[..5], now);
    assert_eq!(l.next_query(now), None);
    client.send(&mut l, ACK, &bytes[5..], now);
    let first = l.next_query(now).expect("the first query");
    let second = l.next_query(now).expect("the second query");
    assert_eq!((first.message, second.message), (query(1), query(2)));
    assert_eq!(l.next_query(now), None);
    // The longest answer, then a short one.
    let long = vec![7; 65_535];
    l.answer(second.connection, &long, now);
    l.answer(first.connection, &query(1), now);
    assert_eq!(client.receive(&mut l, now), framed(&[long, query(1)]));
    // The client ends it.
    client.send(&mut l, FIN | ACK, &[], now);
    assert_eq!(l.next_query(now), None);
    let sent = flush(&mut l, now);
    assert!(sent.iter().any(|s| s.flags & FIN != 0), "{sent:?}");
    client.ack = client.ack.wrapping_add(1);
    client.send(&mut l, ACK, &[], now);
    flush(&mut l, now);
    assert!(l.is_empty() && l.deadlines.is_empty() && l.by_ends.is_empty());
}

#[test]
fn half_a_message_and_silence_end_a_connection() {
    let mut l = listener();
    let mut half = Client::connect(&mut l, 1, 4000, at(0));
    half.send(&mut l, ACK, &[0, 40, 1], at(0));
    let _idle = Client::connect(&mut l, 1, 4001, at(0));
    l.packet(peer(1, 4002), segment(4002, SYN, (5, 0), 1000, &[]), at(0));
    let mut now = 0;
    let mut ended = [None; 3];
    while now < 30_000 {
        now += 100;
        // One byte at a time doesn't help.
        if now % 1000 == 0 && now <= 20_000 {
            half.send(&mut l, ACK, &[0], at(now));
        }
        l.tick(at(now));
        assert_eq!(l.next_query(at(now)), None);
        for s in flush(&mut l, at(now)) {
            if s.flags & (FIN | RST) != 0 {
                ended[usize::from(s.to) - 4000].get_or_insert(now);
            }
        }
    }
    let [half, idle, handshake] = ended.map(|e| e.expect("it is ended"));
    assert!((10_000..11_000).contains(&half), "{half}");
    assert!((10_000..11_000).contains(&idle), "{idle}");
    assert!((5_000..6_000).contains(&handshake), "{handshake}");
    assert!(l.is_empty() && l.deadlines.is_empty() && l.by_ends.is_empty());
}

#[test]
fn connections_and_what_waits_in_them_are_bounded() {
    let mut l = listener();
    let now = at(0);
    for port in 0..100 {
        let first = segment(port, SYN, (5, 0), 1000, &[]);
        l.packet(peer(1, port), first, now);
    }
    assert_eq!(l.len(), MAX_PER_PORT);
    // Another port isn't concerned.
    let mut client = Client::connect(&mut l, 2, 4000, now);
    // Handshakes that nobody completes give way to later ones.
    l.packet(peer(1, 200), segment(200, SYN, (5, 0), 1000, &[]), at(1500));
    assert!(l.knows(peer(1, 200).client, peer(1, 200).local));
    assert_eq!(l.len(), MAX_PER_PORT + 1);
    // More queries than may be under way: the rest waits.
    let many: Vec<Vec<u8>> = (0..PIPELINE as u16 + 10).map(query).collect();
    client.send(&mut l, ACK, &framed(&many), now);
    let taken: Vec<TcpQuery> = std::iter::from_fn(|| l.next_query(now)).collect();
    assert_eq!(taken.len(), PIPELINE);
    // Too much waits for a client that takes nothing: it is ended.
    for q in &taken[..4] {
        l.answer(q.connection, &vec![1; 60_000], now);
    }
    let sent = flush(&mut l, now);
    assert!(sent.iter().any(|s| s.flags & RST != 0), "{sent:?}");
    assert!(!l.knows(client.peer.client, client.peer.local));
    // Lengths that no query has.
    for len in [0u16, 3, 5000] {
        let mut client = Client::connect(&mut l, 3, 4000 + len, now);
        let head = [len.to_be_bytes().as_slice(), &[0; 20]].concat();
        client.send(&mut l, ACK, &head, now);
        assert_eq!(l.next_query(now), None);
        flush(&mut l, now);
        assert!(!l.knows(client.peer.client, client.peer.local), "{len}");
    }
    // Many ports together.
    for port in 10..100u32 {
        for n in 0..8 {
            l.packet(
                peer(port, 300 + port as u16 * 8 + n),
                segment(300 + port as u16 * 8 + n, SYN, (5, 0), 1000, &[]),
                now,
            );
        }
    }
    assert!(l.len() <= MAX_CONNECTIONS, "{}", l.len());
}

/// One act of a client that keeps to no rule.
#[derive(Clone, Debug)]
struct Act {
    port: u16,
    flags: u8,
    seq: i32,
    ack: i32,
    window: u16,
    payload: Vec<u8>,
    wait: u64,
    answer: usize,
}

fn act() -> impl Strategy<Value = Act> {
    let near = || {
        prop_oneof![
            4 => Just(0),
            3 => -70_000..70_000i32,
            1 => any::<i32>(),
        ]
    };
    let flags = prop_oneof![4 => Just(ACK), 2 => Just(SYN), 1 => Just(FIN | ACK), 2 => any::<u8>()];
    let payload = prop_oneof![
        Just(vec![]),
        Just(framed(&[query(1), query(2), query(3)])),
        prop::collection::vec(any::<u8>(), 0..3000),
    ];
    let window = prop_oneof![Just(0), Just(1), any::<u16>()];
    let wait = prop_oneof![3 => Just(0), 1 => 0..3000u64];
    (
        0..2u16,
        flags,
        near(),
        near(),
        window,
        payload,
        wait,
        0..70_000usize,
    )
        .prop_map(
            |(port, flags, seq, ack, window, payload, wait, answer)| Act {
                port,
                flags,
                seq,
                ack,
                window,
                payload,
                wait,
                answer,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever a client sends, nothing grows, no fault of the stack is hit, and all ends once it is silent.
    #[test]
    fn a_client_that_keeps_to_no_rule(acts in prop::collection::vec(act(), 1..60)) {
        let mut l = listener();
        let seed = l.seed;
        let mut now = 0;
        // As the client could know it: what was sent last.
        let mut known = [(1000u32, 0u32); 2];
        for a in acts {
            now += a.wait;
            l.tick(at(now));
            let (seq, ack) = known[usize::from(a.port)];
            let seq = seq.wrapping_add_signed(a.seq);
            let numbers = (seq, ack.wrapping_add_signed(a.ack));
            let port = 4000 + a.port;
            l.packet(peer(1, port), segment(port, a.flags, numbers, a.window, &a.payload), at(now));
            while let Some(q) = l.next_query(at(now)) {
                if a.answer % 3 > 0 {
                    l.answer(q.connection, &vec![1; a.answer], at(now));
                }
            }
            for s in flush(&mut l, at(now)) {
                let len = s.payload.len() as u32 + u32::from(s.flags & SYN != 0);
                known[usize::from(s.to - 4000)] = (s.ack, s.seq.wrapping_add(len));
            }
            prop_assert!(l.len() <= 2 && l.deadlines.len() <= 2 && l.looked_at.is_empty());
        }
        for _ in 0..2000 {
            now += 50;
            l.tick(at(now));
            while l.next_query(at(now)).is_some() {}
            flush(&mut l, at(now));
        }
        prop_assert!(l.is_empty() && l.by_ends.is_empty() && l.deadlines.is_empty());
        prop_assert_eq!(l.seed, seed, "the stack panicked");
    }
}
