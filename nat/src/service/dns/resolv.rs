//! Resolver lists in the form of /etc/resolv.conf (resolv.conf(5)).

use super::PORT;
use crate::service::name;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

/// Most resolvers that are used; the C library takes three.
const MAX_SERVERS: usize = 8;
/// Caps of the C library.
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u8 = 5;
const MAX_NDOTS: u8 = 15;
const MAX_SEARCH: usize = 32;

/// What a resolver list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// In the order to be asked.
    pub servers: Vec<SocketAddr>,
    /// Search list.
    pub search: Vec<String>,
    /// `ndots`: with fewer dots a name is searched first.
    pub ndots: u8,
    /// `timeout`: for one try.
    pub timeout: Duration,
    /// `attempts`: rounds through the list.
    pub attempts: u8,
}

/// Reads a list; what makes no sense is passed over, as the C library does. `scope` gives the index of an
/// interface that an address like `fe80::1%eth0` names; a number is taken as it is.
pub fn parse(text: &str, scope: impl Fn(&str) -> Option<u32>) -> ResolvConf {
    let mut conf = ResolvConf {
        servers: vec![],
        search: vec![],
        ndots: 1,
        timeout: Duration::from_secs(5),
        attempts: 2,
    };
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|w| server(w, &scope));
                if let Some(server) = server
                    && conf.servers.len() < MAX_SERVERS
                    && !conf.servers.contains(&server)
                {
                    conf.servers.push(server);
                }
            }
            // The last one counts.
            Some("search" | "domain") => {
                // A name that can't be one is no use to clients that are told of it.
                let names = words.filter(|n| name::domain(n).is_ok());
                let names = names.map(|n| n.trim_end_matches('.').to_ascii_lowercase());
                conf.search = names.take(MAX_SEARCH).collect();
            }
            Some("options") => words.for_each(|w| option(&mut conf, w)),
            _ => {}
        }
    }
    conf
}

fn server(word: &str, scope: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else {
        let ip: IpAddr = word.parse().ok()?;
        return (!ip.is_unspecified() && !ip.is_multicast()).then_some((ip, PORT).into());
    };
    let ip: Ipv6Addr = address.parse().ok()?;
    let index = zone.parse().ok().or_else(|| scope(zone))?;
    Some(SocketAddrV6::new(ip, PORT, 0, index).into())
}

fn option(conf: &mut ResolvConf, word: &str) {
    let Some((name, value)) = word.split_once(':') else {
        return;
    };
    let Ok(value) = value.parse::<u64>() else {
        return;
    };
    let small = |most: u8| u8::try_from(value).unwrap_or(most).min(most);
    match name {
        "ndots" => conf.ndots = small(MAX_NDOTS),
        "timeout" => conf.timeout = Duration::from_secs(value.clamp(1, MAX_TIMEOUT)),
        "attempts" => conf.attempts = small(MAX_ATTEMPTS).max(1),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_with_everything() {
        let text = "# made by hand\n\
                    domain old.example\n\
                    nameserver 192.0.2.53 ; first\n\
                    nameserver 2001:db8::53\n\
                    nameserver fe80::1%eth0\n\
                    nameserver fe80::2%7\n\
                    nameserver fe80::3%gone\n\
                    nameserver 0.0.0.0\n\
                    nameserver 192.0.2.53\n\
                    nameserver not-an-address\n\
                    search A.example b.example. . *.example\n\
                    options ndots:99 timeout:3 attempts:0 rotate edns0 timeout:x\n";
        let conf = parse(text, |name| (name == "eth0").then_some(4));
        let servers: Vec<_> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            [
                "192.0.2.53:53",
                "[2001:db8::53]:53",
                "[fe80::1%4]:53",
                "[fe80::2%7]:53"
            ]
        );
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!((conf.ndots, conf.attempts), (15, 1));
        assert_eq!(conf.timeout, Duration::from_secs(3));
    }

    #[test]
    fn an_empty_one() {
        let conf = parse("", |_| None);
        assert_eq!((conf.servers.len(), conf.attempts), (0, 2));
        let many: String = (0..20)
            .map(|n| format!("nameserver 192.0.2.{n}\n"))
            .collect();
        assert_eq!(parse(&many, |_| None).servers.len(), MAX_SERVERS);
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_what_it_says_is_read_back(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "nameserver", "search", "domain", "options", "\n", "192.0.2.1", "::1", "fe80::1%eth0", "fe80::1%9",
                    "::%3", "0.0.0.0", "ff02::1", "a.example", "B.", ".", "*", "ndots:3", "timeout:99", "attempts:x", "#", ";",
                ]),
                0..60,
            ),
            noise in ".{0,20}",
        ) {
            let text = words.join(" ") + &noise;
            let scope = |name: &str| (name == "eth0").then_some(4);
            let conf = parse(&text, scope);
            let mut again = format!("search {}\n", conf.search.join(" "));
            for server in &conf.servers {
                let zone = match server {
                    SocketAddr::V6(a) if a.scope_id() != 0 => format!("%{}", a.scope_id()),
                    _ => String::new(),
                };
                again += &format!("nameserver {}{zone}\n", server.ip());
            }
            let secs = conf.timeout.as_secs();
            again += &format!("options ndots:{} timeout:{secs} attempts:{}", conf.ndots, conf.attempts);
            prop_assert_eq!(parse(&again, scope), conf);
        }
    }
}
