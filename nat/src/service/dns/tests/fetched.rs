//! What goes to the resolvers and comes back: waiting clients, cache, sizes, bounds, hostile messages.

use super::*;
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::rdata::{CNAME, TXT};
use proptest::prelude::*;

const ROOM: usize = 512;

#[test]
fn a_name_fetched_once_serves_many() {
    let mut d = dns();
    let bytes = ask("Www.Example.", T::A, edns(1400));
    let up = forwarded(&mut d, client(1), &bytes, START);
    let sent = read(&up.message);
    assert_eq!(sent.queries[0].name().to_ascii(), "www.example.");
    assert!(sent.recursion_desired && sent.edns.is_some());
    // Again, and another client with its own spelling.
    assert_eq!(d.query(client(1), &bytes, START), Verdict::Waiting);
    let other = ask("wWW.example.", T::A, |_| ());
    assert_eq!(d.query(client(2), &other, START), Verdict::Waiting);
    assert_eq!(d.in_flight(), 1);
    let message = resolved(&up.message, ResponseCode::NoError, address(100));
    let answers = respond(&mut d, up.id, message, START);
    assert_eq!(answers.len(), 2);
    for ((c, m), (n, text)) in answers
        .iter()
        .zip([(1, "Www.Example."), (2, "wWW.example.")])
    {
        assert_eq!(*c, client(n));
        assert_eq!((m.id, m.edns.is_some()), (4242, n == 1));
        assert!(m.queries[0].name().eq_case(&name(text)));
        assert!(!m.authoritative);
        assert_eq!(addresses(m).len(), 1);
    }
    // From the cache with the TTL counted down, until it ends.
    let Verdict::Answer(a) = d.query(client(3), &other, at(30)) else {
        panic!("not cached");
    };
    assert_eq!(read(&a).answers[0].ttl, 70);
    assert_eq!(d.cache_stats().entries, 1);
    forwarded(&mut d, client(3), &other, at(100));
    assert_eq!(d.cache_stats(), CacheStats::default());
}

#[test]
fn what_there_is_none_of_is_kept_as_its_soa_says() {
    for (code, fill, kept) in [
        (ResponseCode::NXDomain, Some((50, 20)), 20),
        (ResponseCode::NoError, Some((30, 900)), 30),
        (ResponseCode::NXDomain, None, 0),
        (ResponseCode::NXDomain, Some((0x8000_0000, 900)), 0),
        (ResponseCode::Refused, None, 0),
        (ResponseCode::ServFail, None, 5),
    ] {
        let mut d = dns();
        let bytes = ask("www.example.", T::AAAA, |_| ());
        let up = forwarded(&mut d, client(1), &bytes, START);
        let message = resolved(&up.message, code, |m, n| {
            if let Some((ttl, minimum)) = fill {
                soa(ttl, minimum)(m, n);
            }
        });
        let answers = respond(&mut d, up.id, message, START);
        assert_eq!(answers[0].1.response_code, code);
        if kept > 0 {
            let Verdict::Answer(a) = d.query(client(1), &bytes, at(kept - 1)) else {
                panic!("{code} isn't kept");
            };
            assert_eq!(read(&a).response_code, code);
        }
        forwarded(&mut d, client(1), &bytes, at(kept));
    }
}

#[test]
fn an_alias_without_data_is_no_data() {
    let mut d = dns();
    let bytes = ask("www.example.", T::AAAA, |_| ());
    let up = forwarded(&mut d, client(1), &bytes, START);
    let message = resolved(&up.message, ResponseCode::NoError, |m, n| {
        let data = RData::CNAME(CNAME(name("real.example.")));
        m.add_answer(Record::from_rdata(n.clone(), 1000, data));
        soa(40, 900)(m, n);
    });
    respond(&mut d, up.id, message, START);
    assert!(matches!(
        d.query(client(1), &bytes, at(39)),
        Verdict::Answer(_)
    ));
    forwarded(&mut d, client(1), &bytes, at(40));
}

#[test]
fn long_answers_come_by_tcp() {
    let mut d = dns();
    let long = |m: &mut Message, n: Name| {
        for i in 0..60 {
            let data = RData::TXT(TXT::new(vec![format!("{i} {}", "x".repeat(20))]));
            m.add_answer(Record::from_rdata(n.clone(), 100, data));
        }
    };
    let small = ask("t.example.", T::TXT, |_| ());
    let up = forwarded(&mut d, client(1), &small, START);
    let message = resolved(&up.message, ResponseCode::NoError, long);
    let answers = respond(&mut d, up.id, message, START);
    let m = &answers[0].1;
    assert!(m.truncation && m.answers.is_empty() && m.queries.len() == 1);
    // A size of the client's, bounded by ours, in both directions.
    for size in [0, 512, 4096] {
        let bytes = ask("t.example.", T::TXT, edns(size));
        let Verdict::Answer(a) = d.query(client(1), &bytes, START) else {
            panic!("not cached");
        };
        assert!(a.len() <= 512 && read(&a).truncation, "{size}");
    }
    let Verdict::Answer(a) = d.query(over_tcp(1), &small, START) else {
        panic!("not cached");
    };
    assert_eq!(read(&a).answers.len(), 60);
    // Names of ours are cut off as well.
    for n in 0..60 {
        let h = Host {
            aliases: vec!["many".into()],
            ..host(&format!("m{n}"), &[v4(n)])
        };
        d.zone_mut().register(&format!("m{n}"), h).unwrap();
    }
    assert!(answer(&mut d, "many.", T::A).truncation);
    let bytes = ask("many.", T::A, edns(1232));
    let Verdict::Answer(a) = d.query(client(1), &bytes, START) else {
        panic!("local");
    };
    assert_eq!(read(&a).answers.len(), 60);
}

#[test]
fn what_is_not_served() {
    let mut d = dns();
    let mut code = |bytes: &[u8]| match d.query(client(1), bytes, START) {
        Verdict::Answer(a) => Some(read(&a).response_code),
        Verdict::Drop => None,
        other => panic!("{other:?}"),
    };
    let good = ask("web.", T::A, |_| ());
    assert_eq!(
        code(&ask("a.example.", T::AXFR, |_| ())),
        Some(ResponseCode::Refused)
    );
    assert_eq!(
        code(&ask("a.example.", T::IXFR, |_| ())),
        Some(ResponseCode::Refused)
    );
    let chaos = ask("version.bind.", T::TXT, |m| {
        m.queries[0].set_query_class(DNSClass::CH);
    });
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    let no_recursion = ask("a.example.", T::A, |m| m.metadata.recursion_desired = false);
    assert_eq!(code(&no_recursion), Some(ResponseCode::Refused));
    let update = ask("a.example.", T::A, |m| m.metadata.op_code = OpCode::Notify);
    assert_eq!(code(&update), Some(ResponseCode::NotImp));
    let two = ask("a.example.", T::A, |m| {
        m.add_query(Ask::query(name("b."), T::A));
    });
    assert_eq!(code(&two), Some(ResponseCode::FormErr));
    let version = ask("a.example.", T::A, |m| {
        let mut e = Edns::new();
        e.set_version(1);
        m.set_edns(e);
    });
    // 16 is BADVERS as well, and hickory can't know which.
    assert_eq!(code(&version), Some(ResponseCode::BADSIG));
    let any = match d.query(client(1), &ask("a.example.", T::ANY, |_| ()), START) {
        Verdict::Answer(a) => read(&a),
        other => panic!("{other:?}"),
    };
    assert_eq!(any.answers[0].record_type(), T::HINFO);
    // Answers are never answered, nor is what isn't a header.
    let mut answer = good.clone();
    answer[2] |= 0x80;
    for bytes in [&answer[..], &good[..11], &[]] {
        assert_eq!(d.query(client(1), bytes, START), Verdict::Drop);
    }
}

#[test]
fn bounds() {
    let config = Config {
        rate: 100,
        burst: 1000,
        max_in_flight: 20,
        max_in_flight_per_port: 5,
        max_waiting: 3,
        ..Config::default()
    };
    let mut d = Dns::new(config, zone());
    let mut begin = |port: u8, from: u32, n: u32| {
        (from..from + n)
            .filter(|i| {
                let bytes = ask(&format!("h{i}.example."), T::A, |_| ());
                matches!(d.query(client(port), &bytes, START), Verdict::Forward(_))
            })
            .count()
    };
    assert_eq!(begin(1, 0, 50), 5);
    assert_eq!(begin(2, 100, 4), 4);
    assert_eq!(
        (3..9)
            .map(|p| begin(p, u32::from(p) * 1000, 5))
            .sum::<usize>(),
        11
    );
    let bytes = ask("h0.example.", T::A, |_| ());
    let joined = (10..20).filter(|n| d.query(client(*n), &bytes, START) == Verdict::Waiting);
    assert_eq!(joined.count(), 2);
    // What never comes back is given up, and makes room.
    assert_eq!(d.next_deadline(), at(15));
    assert_eq!(d.tick(at(14)), []);
    let answers = d.tick(at(15));
    assert_eq!(answers.len(), 22);
    assert!(
        answers
            .iter()
            .all(|(_, a)| read(a).response_code == ResponseCode::ServFail)
    );
    assert_eq!((d.in_flight(), d.next_deadline()), (0, Nanos::MAX));
    // The failure is kept for a while, then asked again.
    assert!(matches!(
        d.query(client(1), &bytes, at(16)),
        Verdict::Answer(_)
    ));
    forwarded(&mut d, client(1), &bytes, at(20));
    // The rate.
    let passed = (0..5000).filter(|_| d.query(client(9), &bytes, at(20)) != Verdict::Drop);
    assert_eq!(passed.count(), 1000);
    assert_eq!(d.stats().limited, 4000);
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let mut d = dns();
    let bytes = |i: u32| ask(&format!("h{i}.example."), T::A, |_| ());
    for i in 0..500 {
        let up = forwarded(&mut d, client(1), &bytes(i), START);
        let message = resolved(&up.message, ResponseCode::NoError, address(1000));
        respond(&mut d, up.id, message, START);
        // This one is always asked for.
        assert!(
            matches!(d.query(client(2), &bytes(0), START), Verdict::Answer(_)),
            "{i}"
        );
    }
    let stats = d.cache_stats();
    assert_eq!((stats.entries, stats.evicted), (100, 400));
    assert!(stats.bytes > 0 && stats.bytes < 100 * ROOM);
    d.clear_cache();
    assert_eq!(d.cache_stats().bytes, 0);
    let mut small = Dns::new(
        Config {
            cache_bytes: 3 * 250,
            tag: 7,
            ..Config::default()
        },
        zone(),
    );
    for i in 0..50 {
        let up = forwarded(&mut small, client(1), &bytes(i), START);
        let outcome = Err(Failure::Busy);
        assert_eq!(Response { id: up.id, outcome }.tag(), 7);
        let message = resolved(&up.message, ResponseCode::NoError, address(1000));
        respond(&mut small, up.id, message, START);
        assert!(small.cache_stats().bytes <= 750);
    }
    assert!(small.cache_stats().entries > 0);
}

#[test]
fn messages_that_answer_something_else() {
    let mut d = dns();
    let bytes = ask("www.example.", T::A, |_| ());
    for change in 0..4 {
        let up = forwarded(&mut d, client(1), &bytes, at(change * 10));
        let mut message = resolved(&up.message, ResponseCode::NoError, address(100));
        match change {
            0 => message[2] &= 0x7f,
            1 => message[13] = b'x',
            2 => message.truncate(30),
            _ => message[7] = 9,
        }
        let answers = respond(&mut d, up.id, message, at(change * 10));
        assert_eq!(
            answers[0].1.response_code,
            ResponseCode::ServFail,
            "{change}"
        );
    }
    let outcome = Err(Failure::Busy);
    assert_eq!(d.respond(Response { id: 999, outcome }, START), []);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
    ) {
        let mut d = dns();
        let _ = d.query(client(1), &bytes, START);
        let mut bytes = ask("web.net1.example.", T::A, edns(1000));
        for (at, value) in &flips {
            if let Some(b) = bytes.get_mut(*at) {
                *b = *value;
            }
        }
        if let Verdict::Forward(up) = d.query(client(1), &bytes, START) {
            let mut message = resolved(&ask("www.example.", T::A, edns(500)), ResponseCode::NoError, address(60));
            for (at, value) in flips {
                if let Some(b) = message.get_mut(at) {
                    *b = value;
                }
            }
            for (_, a) in d.respond(Response { id: up.id, outcome: Ok(message) }, START) {
                prop_assert!(a.len() <= 1232);
            }
        }
    }
}
