//! One question and several resolvers; and the forwarder against sockets on the loopback.

use super::*;
use crate::service::dns::exchange::{Exchange, Step};
use std::net::UdpSocket;
use std::sync::Arc;

fn resolvers(n: u8) -> (Vec<SocketAddr>, Resolvers) {
    let servers: Vec<SocketAddr> = (0..n).map(|i| (v4(100 + i), PORT).into()).collect();
    let r = Resolvers::new(&servers, Duration::from_secs(1), 2, &[]);
    (servers, r)
}

fn upstream_query() -> Vec<u8> {
    let mut d = dns();
    forwarded(&mut d, client(1), &ask("www.example.", T::A, |_| ()), START).message
}

fn asked(step: Step) -> (SocketAddr, bool, Vec<u8>) {
    match step {
        Step::Ask {
            server,
            tcp,
            message,
            ..
        } => (server, tcp, message),
        Step::Done(outcome) => panic!("{outcome:?}"),
    }
}

#[test]
fn resolvers_take_over_from_each_other() {
    let (servers, mut r) = resolvers(2);
    for _ in 0..3 {
        let mut x = Exchange::new(upstream_query(), &r, START);
        assert_eq!(asked(x.step(&r, START, 1)).0, servers[0]);
        x.failed(&mut r, START);
        let (server, tcp, message) = asked(x.step(&r, START, 2));
        assert_eq!((server, tcp), (servers[1], false));
        let good = resolved(&message, ResponseCode::NXDomain, |_, _| ());
        assert_eq!(x.received(good.clone(), &mut r, START), (true, Some(good)));
    }
    // The first one has failed three times: it is asked last for a while.
    let mut x = Exchange::new(upstream_query(), &r, START);
    let order: Vec<_> = (0..4)
        .map(|_| {
            let server = asked(x.step(&r, START, 3)).0;
            x.timed_out(&mut r, START);
            server
        })
        .collect();
    assert_eq!(order, [servers[1], servers[0], servers[1], servers[0]]);
    assert_eq!(x.step(&r, START, 4), Step::Done(Err(Failure::Timeout)));
    let mut x = Exchange::new(upstream_query(), &r, at(60));
    assert_eq!(asked(x.step(&r, at(60), 5)).0, servers[0]);
    assert_eq!(x.step(&r, at(80), 6), Step::Done(Err(Failure::Timeout)));
    let none = Resolvers::new(&servers, Duration::ZERO, 0, &[v4(100), v4(101)]);
    let mut x = Exchange::new(upstream_query(), &none, START);
    assert_eq!(
        x.step(&none, START, 7),
        Step::Done(Err(Failure::NoResolver))
    );
}

#[test]
fn a_silent_one_is_waited_for_a_second_while_another_comes_after_it() {
    let (servers, _) = resolvers(2);
    let mut r = Resolvers::new(&servers, Duration::from_secs(5), 2, &[]);
    let mut x = Exchange::new(upstream_query(), &r, START);
    let mut waits = vec![];
    while let Step::Ask { until, .. } = x.step(&r, START, 1) {
        waits.push(until.since(START).as_secs());
        x.timed_out(&mut r, START);
    }
    // A whole question takes 12 seconds at most.
    assert_eq!(waits, [1, 5, 10, 10]);
}

#[test]
fn what_fails_here_is_told_from_silence_and_begins_anew_elsewhere() {
    let (_, mut r) = resolvers(2);
    let mut x = Exchange::new(upstream_query(), &r, START);
    for _ in 0..4 {
        asked(x.step(&r, START, 1));
        x.failed(&mut r, START);
    }
    let unreachable = Step::Done(Err(Failure::Unreachable));
    assert_eq!(x.step(&r, START, 2), unreachable);
    // The first of other resolvers comes first, whatever was before.
    let other: Vec<SocketAddr> = vec![(v4(200), PORT).into()];
    let other = Resolvers::new(&other, Duration::from_secs(1), 2, &[]);
    let mut x = Exchange::new(upstream_query(), &r, START);
    asked(x.step(&r, START, 3));
    x.failed(&mut r, START);
    x.restart(&other, START);
    assert_eq!(asked(x.step(&other, START, 4)).0.ip(), v4(200));
    // Who has been silent is asked first again, when that is forgiven.
    let (servers, mut r) = resolvers(2);
    for _ in 0..3 {
        let mut x = Exchange::new(upstream_query(), &r, START);
        asked(x.step(&r, START, 5));
        x.timed_out(&mut r, START);
    }
    let first =
        |r: &Resolvers| asked(Exchange::new(upstream_query(), r, START).step(r, START, 6)).0;
    assert_eq!(first(&r), servers[1]);
    r.forgive();
    assert_eq!(first(&r), servers[0]);
}

#[test]
fn only_our_answer_counts() {
    let (_, mut r) = resolvers(1);
    let mut x = Exchange::new(upstream_query(), &r, START);
    let (_, _, message) = asked(x.step(&r, START, 0xbeef));
    assert_eq!(message[..2], [0xbe, 0xef]);
    let good = resolved(&message, ResponseCode::NoError, address(9));
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_name = good.clone();
    other_name[14] ^= 1;
    let mut query = good.clone();
    query[2] &= 0x7f;
    for bad in [other_id, other_name, query, vec![], good[..11].to_vec()] {
        assert_eq!(x.received(bad, &mut r, START), (false, None));
    }
    assert!(x.received(good, &mut r, START).1.is_some());
}

#[test]
fn detours_of_an_exchange() {
    let (servers, mut r) = resolvers(2);
    let mut x = Exchange::new(upstream_query(), &r, START);
    // No EDNS there.
    let (_, _, message) = asked(x.step(&r, START, 1));
    let mut bare = wire::bare(1, 0x8081, &[]);
    assert_eq!(x.received(bare.clone(), &mut r, START), (true, None));
    let (server, _, plain) = asked(x.step(&r, START, 2));
    assert_eq!(server, servers[0]);
    assert!(read(&message).edns.is_some() && read(&plain).edns.is_none());
    // It still can't; the next one has a long answer, which its TCP doesn't give.
    bare[1] = 2;
    assert_eq!(x.received(bare, &mut r, START), (true, None));
    let (server, tcp, message) = asked(x.step(&r, START, 3));
    assert_eq!((server, tcp), (servers[1], false));
    let cut = resolved(&message, ResponseCode::NoError, |m, _| {
        m.metadata.truncation = true;
    });
    assert_eq!(x.received(cut.clone(), &mut r, START), (true, None));
    assert!(asked(x.step(&r, START, 4)).1);
    x.failed(&mut r, START);
    // Nobody does better in the second round: the client gets the truncated one.
    for id in [5, 6] {
        let (_, tcp, message) = asked(x.step(&r, START, id));
        assert!(!tcp);
        let refused = resolved(&message, ResponseCode::Refused, |_, _| ());
        assert_eq!(x.received(refused, &mut r, START), (true, None));
    }
    assert_eq!(x.step(&r, START, 7), Step::Done(Ok(cut)));
}

/// A resolver on the loopback that answers with the address of `f`, or not at all.
fn loopback_resolver(f: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind on the loopback");
    let address = socket.local_addr().expect("bound");
    let listener = std::net::TcpListener::bind(address).expect("bind on the loopback");
    let f = Arc::new(f);
    let g = f.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if let Some(mut answer) = f(&buffer[..n]) {
                if answer.len() > 1232 {
                    answer.truncate(n - 11);
                    answer[2] |= 2;
                    answer[6..12].fill(0);
                }
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut framing = Framing::default();
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                framing.push(&buffer[..n]).expect("little");
                while let Some(m) = framing.next_message() {
                    let answer = g(m).and_then(|a| frame(&a)).expect("an answer");
                    stream.write_all(&answer).expect("it is read");
                }
            }
        }
    });
    address
}

fn conf(servers: Vec<SocketAddr>) -> ResolvConf {
    ResolvConf {
        servers,
        timeout: Duration::from_millis(200),
        ..parse_resolv_conf("", |_| None)
    }
}

#[test]
fn the_forwarder_asks_falls_back_and_follows_changes() {
    let long = |m: &mut Message, n: Name| {
        for i in 0..200u8 {
            let data = RData::A(A::new(198, 51, 100, i));
            m.add_answer(Record::from_rdata(n.clone(), 60, data));
        }
    };
    let silent = loopback_resolver(|_| None);
    let good = loopback_resolver(move |q| {
        let text = read(q).queries[0].name().to_ascii();
        if text.starts_with("long") {
            return Some(resolved(q, ResponseCode::NoError, long));
        }
        Some(resolved(q, ResponseCode::NoError, address(60)))
    });
    let (woken, wakes) = crossbeam_channel::bounded(1000);
    let wake = Arc::new(move || {
        let _ = woken.try_send(());
    });
    let forwarder = Forwarder::spawn(
        &ForwarderConfig {
            max_in_flight: 4,
            ..ForwarderConfig::default()
        },
        &conf(vec![]),
        os_random().expect("random numbers"),
        wake,
    )
    .expect("starts");
    let mut d = dns();
    let mut fetch = |texts: &[String]| -> Vec<Message> {
        for text in texts {
            let bytes = ask(text, T::A, |_| ());
            let up = forwarded(&mut d, over_tcp(1), &bytes, START);
            forwarder.submit(up).expect("room");
        }
        let mut all = vec![];
        while all.len() < texts.len() {
            let response = forwarder
                .responses()
                .recv_timeout(Duration::from_secs(60))
                .expect("a response");
            all.extend(d.respond(response, START).iter().map(|(_, a)| read(a)));
        }
        all
    };
    let failed = fetch(&["none.example.".into()]);
    assert_eq!(failed[0].response_code, ResponseCode::ServFail);
    forwarder.set_resolvers(&conf(vec![silent, good]));
    // More than there are slots, and one that needs TCP.
    let mut texts: Vec<String> = (0..20).map(|n| format!("h{n}.example.")).collect();
    texts.push("long.example.".into());
    let got = fetch(&texts);
    assert!(got.iter().all(|m| m.response_code == ResponseCode::NoError));
    let mut counts: Vec<_> = got.iter().map(|m| m.answers.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [vec![1; 20], vec![200]].concat());
    assert!(wakes.len() >= 20);
}
