//! Names of containers: what the zone answers, and what it leaves to others.

use super::*;

#[test]
fn names_of_containers() {
    let mut d = dns();
    for text in [
        "web.net1.example.",
        "WEB.Net1.Example.",
        "web.",
        "www.",
        "www.net1.example.",
    ] {
        let m = answer(&mut d, text, T::A);
        assert_eq!(addresses(&m), [v4(10)], "{text}");
        assert!(m.authoritative);
        assert_eq!(m.answers[0].ttl, 60);
        assert_eq!(addresses(&answer(&mut d, text, T::AAAA)).len(), 1, "{text}");
    }
    // A shared alias: all of them, in turns.
    let heads: Vec<_> = (0..3)
        .map(|_| {
            let all = addresses(&answer(&mut d, "all.net1.example.", T::A));
            assert_eq!(all.len(), 3);
            all[0]
        })
        .collect();
    let mut sorted = heads.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [v4(10), v4(11), v4(12)]);
    assert_eq!(addresses(&answer(&mut d, "net1.example.", T::A)), [v4(1)]);
    d.zone_mut().unregister("c1");
    assert_eq!(addresses(&answer(&mut d, "all.", T::A)).len(), 2);
    let gone = answer(&mut d, "web.net1.example.", T::A);
    assert_eq!(gone.response_code, ResponseCode::NXDomain);
}

#[test]
fn none_of_the_type_and_no_such_name() {
    let mut d = dns();
    for (text, kind, code) in [
        ("web.net1.example.", T::MX, ResponseCode::NoError),
        ("app11.net1.example.", T::AAAA, ResponseCode::NoError),
        ("app11.", T::AAAA, ResponseCode::NoError),
        ("_tcp.web.net1.example.", T::A, ResponseCode::NoError),
        ("nobody.net1.example.", T::A, ResponseCode::NXDomain),
        ("x.web.net1.example.", T::A, ResponseCode::NXDomain),
        ("99.2.0.192.in-addr.arpa.", T::PTR, ResponseCode::NXDomain),
        ("10.2.0.192.in-addr.arpa.", T::A, ResponseCode::NoError),
        ("a.invalid.", T::A, ResponseCode::NXDomain),
        ("x.localhost.", T::MX, ResponseCode::NoError),
    ] {
        let m = answer(&mut d, text, kind);
        assert_eq!(
            (m.response_code, m.answers.len()),
            (code, 0),
            "{text} {kind}"
        );
        let [soa] = &m.authorities[..] else {
            panic!("{text}: {:?}", m.authorities);
        };
        assert!(soa.name.zone_of(&name(text)), "{text}: {}", soa.name);
        assert_eq!(soa.ttl, 5);
    }
    for text in [
        "nobody.",
        "example.",
        "_tcp.web.",
        "web.net2.example.",
        "webnet1.example.",
        ".",
    ] {
        let bytes = ask(text, T::A, |_| ());
        let verdict = d.query(client(7), &bytes, START);
        assert!(matches!(verdict, Verdict::Forward(_)), "{text}");
    }
    assert_eq!(
        addresses(&answer(&mut d, "localhost.", T::A)),
        [IpAddr::from(Ipv4Addr::LOCALHOST)]
    );
}

#[test]
fn services_and_reverse_names() {
    let mut d = dns();
    for text in ["_http._tcp.web.net1.example.", "_http._tcp.www."] {
        let m = answer(&mut d, text, T::SRV);
        let RData::SRV(srv) = &m.answers[0].data else {
            panic!("{m}");
        };
        assert_eq!((srv.priority, srv.weight, srv.port), (1, 2, 8080));
        assert_eq!(srv.target, name("web.net1.example."));
        assert_eq!(m.additionals.len(), 2);
    }
    let v6 = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";
    for text in ["10.2.0.192.IN-ADDR.arpa.", v6] {
        let m = answer(&mut d, text, T::PTR);
        assert_eq!(m.answers[0].data.to_string(), "web.net1.example.");
    }
    let gateway = answer(&mut d, "1.2.0.192.in-addr.arpa.", T::PTR);
    assert_eq!(gateway.answers[0].data.to_string(), "net1.example.");
    let bytes = ask("1.100.51.198.in-addr.arpa.", T::PTR, |_| ());
    assert!(matches!(
        d.query(client(7), &bytes, START),
        Verdict::Forward(_)
    ));
    let any = answer(&mut d, "web.net1.example.", T::ANY);
    assert_eq!(any.answers.len(), 1);
}

#[test]
fn claimed_names_and_links() {
    let mut d = dns();
    let claim = |name: &str| Host {
        claimed: true,
        ..host(name, &[v4(66)])
    };
    d.zone_mut().register("d1", claim("web")).unwrap();
    d.zone_mut().register("d2", claim("printer")).unwrap();
    assert_eq!(addresses(&answer(&mut d, "web.", T::A)), [v4(10)]);
    assert_eq!(addresses(&answer(&mut d, "printer.", T::A)), [v4(66)]);
    d.zone_mut().unregister("c1");
    assert_eq!(addresses(&answer(&mut d, "web.", T::A)), [v4(66)]);
    // A link is seen by its port only.
    d.zone_mut().link(7, "db", "c11").unwrap();
    assert_eq!(addresses(&answer(&mut d, "db.", T::A)), [v4(11)]);
    assert_eq!(
        addresses(&answer(&mut d, "db.net1.example.", T::A)),
        [v4(11)]
    );
    let bytes = ask("db.", T::A, |_| ());
    assert!(matches!(
        d.query(client(8), &bytes, START),
        Verdict::Forward(_)
    ));
    d.zone_mut().unlink(7);
    let gone = answer(&mut d, "db.net1.example.", T::A);
    assert_eq!(gone.response_code, ResponseCode::NXDomain);
    for bad in ["", "a b", "a..b"] {
        let e = d.zone_mut().register("x", host(bad, &[])).unwrap_err();
        assert!(e.to_string().contains("letters"), "{e}");
    }
    let many = Host {
        aliases: vec!["a".into(); 65],
        ..host("x", &[])
    };
    assert!(matches!(
        d.zone_mut().register("x", many),
        Err(RegisterError::Full(_))
    ));
}
