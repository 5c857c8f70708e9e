//! What firewall rules are written with: `label:web,192.0.2.0/24`, `80,8000-8010`, `tcp,udp`, `echo-request`, `new`.

use super::{Deserialize, Serialize, ToSchema, UnitError, fmt};
use std::net::IpAddr;
use std::str::FromStr;
use vswitch_nat::policy::State;

text_type!(
    /// Ends of connections: alternatives, any of which may be.
    #[derive(Default)]
    Peers(Vec<Peer>), "a list of ends", "label:web, port:eth1, network:lan, dns:*.example.com, 192.0.2.0/24, any, or several with commas",
    "label:web,192.0.2.0/24"
);
text_type!(
    /// Ports and ranges of ports.
    PortList(Vec<(u16, u16)>), "a list of ports", "80, 8000-8010, or several with commas", "80,8000-8010"
);
text_type!(
    /// Protocols, by name or number.
    Protocols(Vec<u8>), "a list of protocols", "tcp, udp, sctp, icmp, icmp6, a number, or several with commas", "tcp,udp"
);
text_type!(
    /// ICMP types, by name or by number with or without code; names mean both ICMP and ICMPv6.
    IcmpTypes(Vec<IcmpType>), "a list of ICMP types", "echo-request, unreachable, 3, 3/4, or several with commas", "echo-request"
);
text_type!(
    /// States of connections.
    States(Vec<State>), "a list of states", "new, established, related, or several with commas", "established,related"
);

/// One alternative of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A port.
    Port(String),
    /// All ports with a label.
    Label(String),
    /// All of a network.
    Network(String),
    /// The addresses of a DNS name; with `*.` in front, of all names below it.
    Dns(String),
    /// A prefix of addresses.
    Prefix((IpAddr, u8)),
}

/// A type of ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpType {
    /// By name.
    Name(usize),
    /// By number, with a code if it matters.
    Number(u8, Option<u8>),
}

/// Names of types: of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const TYPES: [(&str, u8, u8); 5] = [
    ("echo-reply", 0, 129),
    ("echo-request", 8, 128),
    ("unreachable", 3, 1),
    ("time-exceeded", 11, 3),
    ("parameter-problem", 12, 4),
];

impl IcmpType {
    /// Types and codes that it stands for.
    #[must_use]
    pub fn numbers(self) -> Vec<(u8, Option<u8>)> {
        match self {
            IcmpType::Name(i) => TYPES
                .get(i)
                .map_or_else(Vec::new, |(_, v4, v6)| vec![(*v4, None), (*v6, None)]),
            IcmpType::Number(kind, code) => vec![(kind, code)],
        }
    }
}

const PROTOCOLS: [(&str, u8); 6] = [
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("icmp", 1),
    ("icmp6", 58),
    ("icmpv6", 58),
];

/// Number of a protocol by its name or number.
fn protocol(text: &str) -> Option<u8> {
    let known = PROTOCOLS.iter().find(|(n, _)| *n == text).map(|(_, p)| *p);
    known.or_else(|| text.parse().ok())
}

const STATES: [(&str, State); 3] = [
    ("new", State::New),
    ("established", State::Established),
    ("related", State::Related),
];

fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let all: Option<Vec<T>> = text.split(',').map(|t| read(t.trim())).collect();
    all.filter(|l| !l.is_empty())
}

fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    all: &[T],
    write: impl Fn(&T) -> String,
) -> fmt::Result {
    let all: Vec<String> = all.iter().map(write).collect();
    f.write_str(&all.join(","))
}

fn peer(text: &str) -> Option<Peer> {
    let Some((kind, name)) = text.split_once(':') else {
        return super::Cidr::read(text).map(Peer::Prefix);
    };
    let named = |f: fn(String) -> Peer| (!name.is_empty()).then(|| f(name.to_owned()));
    match kind {
        "port" => named(Peer::Port),
        "label" => named(Peer::Label),
        "network" => named(Peer::Network),
        "dns" => named(|n| Peer::Dns(n.trim_end_matches('.').to_ascii_lowercase())),
        // An IPv6 address.
        _ => super::Cidr::read(text).map(Peer::Prefix),
    }
}

impl Peers {
    fn read(text: &str) -> Option<Vec<Peer>> {
        if text == "any" {
            return Some(Vec::new());
        }
        list(text, peer)
    }

    /// Whether it is any end.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any");
        }
        write_list(f, &self.0, |p| match p {
            Peer::Port(n) => format!("port:{n}"),
            Peer::Label(n) => format!("label:{n}"),
            Peer::Network(n) => format!("network:{n}"),
            Peer::Dns(n) => format!("dns:{n}"),
            Peer::Prefix(p) => super::Cidr(*p).to_string(),
        })
    }
}

impl PortList {
    fn read(text: &str) -> Option<Vec<(u16, u16)>> {
        list(text, |one| super::Ports::read(one).filter(|p| p.0 != 0))
    }
}

impl fmt::Display for PortList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0, |r| super::Ports(*r).to_string())
    }
}

impl Protocols {
    fn read(text: &str) -> Option<Vec<u8>> {
        list(text, protocol)
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0, |p| {
            let name = PROTOCOLS.iter().find(|(_, n)| n == p);
            name.map_or_else(|| p.to_string(), |(n, _)| (*n).to_owned())
        })
    }
}

fn icmp_type(text: &str) -> Option<IcmpType> {
    if let Some(i) = TYPES.iter().position(|(n, ..)| *n == text) {
        return Some(IcmpType::Name(i));
    }
    match text.split_once('/') {
        Some((kind, code)) => Some(IcmpType::Number(
            kind.parse().ok()?,
            Some(code.parse().ok()?),
        )),
        None => Some(IcmpType::Number(text.parse().ok()?, None)),
    }
}

impl IcmpTypes {
    fn read(text: &str) -> Option<Vec<IcmpType>> {
        list(text, icmp_type)
    }
}

impl fmt::Display for IcmpTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0, |t| match t {
            IcmpType::Name(i) => TYPES.get(*i).map_or("", |(n, ..)| n).to_owned(),
            IcmpType::Number(kind, Some(code)) => format!("{kind}/{code}"),
            IcmpType::Number(kind, None) => kind.to_string(),
        })
    }
}

impl States {
    fn read(text: &str) -> Option<Vec<State>> {
        list(text, |t| {
            STATES.iter().find(|(n, _)| *n == t).map(|(_, s)| *s)
        })
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0, |s| {
            let name = STATES.iter().find(|(_, state)| state == s);
            name.map_or("", |(n, _)| n).to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<T: FromStr + ToString>(text: &str) -> Option<String> {
        text.parse::<T>().ok().map(|v| v.to_string())
    }

    #[test]
    fn texts_come_back() {
        for text in [
            "any",
            "label:web,port:a,network:lan,dns:*.example.com,192.0.2.0/24",
            "2001:db8::/64",
        ] {
            assert_eq!(round::<Peers>(text).as_deref(), Some(text));
        }
        assert_eq!(round::<PortList>("80, 8000-8010").unwrap(), "80,8000-8010");
        assert_eq!(round::<Protocols>("tcp,47,icmpv6").unwrap(), "tcp,47,icmp6");
        let types = "echo-request,3/4,11";
        assert_eq!(round::<IcmpTypes>(types).as_deref(), Some(types));
        assert_eq!(round::<States>("new,related").unwrap(), "new,related");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "label:",
            "web",
            "192.0.2.0/33",
            "any,label:web",
            "lable:web",
        ] {
            assert!(round::<Peers>(text).is_none(), "{text}");
        }
        for text in ["", "0", "9-8", "http"] {
            assert!(round::<PortList>(text).is_none(), "{text}");
        }
        assert!(round::<Protocols>("tpc").is_none());
        assert!(round::<IcmpTypes>("ping").is_none() && round::<States>("old").is_none());
    }
}
