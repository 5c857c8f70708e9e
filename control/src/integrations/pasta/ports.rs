//! Port forwards as pasta writes them: `none`, `auto`, `all`, or a list like `127.0.0.1%lo/8080-8089:80-89,53,~8085`.
//!
//! A list that only excludes is of all ports but those. As with `auto`, of all ports those are forwarded that the container listens on, as it comes
//! and goes: to a client outside that is the same, and no port of the host is taken in vain.

use super::super::opener::Listen;
use crate::model::{Protocol, PublishedPort};
use crate::units::Ports;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use vswitch_core::sys::listen::Interface;
use vswitch_core::sys::sock::Kind;

/// What one option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    None,
    /// Of these ports, what is listened on at the other side.
    Followed(At, Vec<(u16, u16)>),
    Listed(Vec<Listed>),
}

/// Where it is listened: at an address, by an interface; by default at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct At {
    pub(super) address: Option<IpAddr>,
    interface: Option<String>,
}

/// Ports of one side and where they begin at the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    at: At,
    ports: (u16, u16),
    first: u16,
}

/// A port of the container that leads to one of the host's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) from: Listen,
    pub(super) to: SocketAddr,
}

/// Ports of the container's loopback that lead to the host's while the host listens on them.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) at: At,
    pub(super) ports: Vec<(u16, u16)>,
}

const LIKE: &str = "write ports like 8080, 8080:80, 127.0.0.1/8000-8009:80-89, %eth0/80 or ~22, separated by commas";

fn range(text: &str) -> Option<(u16, u16)> {
    let (a, b) = text.split_once('-').unwrap_or((text, text));
    let (a, b) = (a.parse().ok()?, b.parse().ok()?);
    (a != 0 && a <= b).then_some((a, b))
}

fn listed(at: &At, text: &str) -> Option<Listed> {
    let (outer, inner) = text.split_once(':').unwrap_or((text, text));
    let (ports, inner) = (range(outer)?, range(inner)?);
    (ports.1 - ports.0 == inner.1 - inner.0).then_some(Listed {
        at: at.clone(),
        ports,
        first: inner.0,
    })
}

impl FromStr for At {
    type Err = String;
    fn from_str(text: &str) -> Result<At, String> {
        let (address, interface) = match text.split_once('%') {
            Some((address, name)) => (address, Some(name)),
            None => (text, None),
        };
        if let Some(name) = interface.filter(|name| Interface::new(name).is_none()) {
            return Err(format!(
                "`{name}` can't be the name of an interface: {LIKE}"
            ));
        }
        let ip = match address {
            "" if interface.is_some() => None,
            _ => {
                let ip = address.trim_start_matches('[').trim_end_matches(']');
                let ip = ip.parse::<IpAddr>();
                Some(ip.map_err(|_| format!("`{address}` isn't an address: {LIKE}"))?)
            }
        };
        Ok(At {
            address: ip.filter(|ip| !ip.is_unspecified()),
            interface: interface.map(str::to_owned),
        })
    }
}

impl At {
    fn is_of(&self, v4: bool) -> bool {
        self.address.is_none_or(|a| a.is_ipv4() == v4)
    }

    /// A port of the container, at its loopback if no address is given, that leads to one of the host's loopback.
    pub(super) fn lead(&self, kind: Kind, v4: bool, port: u16, to: u16) -> Option<Lead> {
        let loopback: IpAddr = match v4 {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        };
        self.is_of(v4).then(|| Lead {
            from: Listen {
                kind,
                at: SocketAddr::new(self.address.unwrap_or(loopback), port),
                on: self.interface.as_deref().and_then(Interface::new),
            },
            to: SocketAddr::new(loopback, to),
        })
    }
}

/// What is left of a range without others.
fn without(range: (u16, u16), excluded: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = vec![range];
    for (from, to) in excluded {
        let cut = |(a, b): (u16, u16)| {
            let before = (*from > a).then(|| (a, b.min(from.saturating_sub(1))));
            let after = (*to < b).then(|| (a.max(to.saturating_add(1)), b));
            match b < *from || a > *to {
                true => vec![(a, b)],
                false => before.into_iter().chain(after).collect(),
            }
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

impl Forward {
    /// What is listened on inside.
    pub(super) fn auto() -> Forward {
        Forward::Followed(At::default(), vec![(1, u16::MAX)])
    }

    /// All ports but these, and but those that the kernel gives out by itself.
    fn all_but(at: At, mut excluded: Vec<(u16, u16)>, given_out: &RangeInclusive<u16>) -> Forward {
        excluded.push((*given_out.start(), *given_out.end()));
        Forward::Followed(at, without((1, u16::MAX), &excluded))
    }
}

impl FromStr for Forward {
    type Err = String;
    fn from_str(text: &str) -> Result<Forward, String> {
        let given_out = || crate::listening::given_out();
        match text {
            "none" => return Ok(Forward::None),
            "auto" => return Ok(Forward::auto()),
            "all" => return Ok(Forward::all_but(At::default(), Vec::new(), &given_out())),
            _ => {}
        }
        let (at, list) = match text.rsplit_once('/') {
            Some((at, list)) => (at.parse()?, list),
            None => (At::default(), text),
        };
        let wrong =
            |t: &str| format!("`{t}` isn't a port or range: {LIKE}, `auto`, `all` or `none`");
        let (mut excluded, mut wanted, mut auto) = (Vec::new(), Vec::new(), false);
        for t in list.split(',') {
            match t.strip_prefix('~') {
                Some(t) => excluded.push(range(t).ok_or_else(|| wrong(t))?),
                None if t == "auto" => auto = true,
                None => wanted.push(listed(&at, t).ok_or_else(|| wrong(t))?),
            }
        }
        if auto && wanted.is_empty() {
            return Ok(Forward::Followed(at, without((1, u16::MAX), &excluded)));
        }
        if auto {
            let reason = "`auto` and listed ports are options each, as in -t auto -t 8080";
            return Err(reason.to_owned());
        }
        if wanted.is_empty() {
            return Ok(Forward::all_but(at, excluded, &given_out()));
        }
        let cut = |l: Listed| {
            let left = without(l.ports, &excluded).into_iter();
            left.map(move |ports| Listed {
                at: l.at.clone(),
                ports,
                first: l.first + (ports.0 - l.ports.0),
            })
        };
        let left: Vec<Listed> = wanted.into_iter().flat_map(cut).collect();
        match left.is_empty() {
            true => Err(format!(
                "`{text}` excludes all that it lists: {LIKE}, or `none`"
            )),
            false => Ok(Forward::Listed(left)),
        }
    }
}

impl Listed {
    /// The ports of the container's loopback, or at the address, that lead to the host's loopback.
    pub(super) fn to_host(&self, kind: Kind) -> Vec<Lead> {
        let (from, to) = self.ports;
        let numbers = [true, false]
            .into_iter()
            .flat_map(|v4| (from..=to).map(move |n| (v4, n)));
        let lead = |(v4, n)| self.at.lead(kind, v4, n, self.first + (n - from));
        numbers.filter_map(lead).collect()
    }

    /// As a published port that leads to the container.
    pub(super) fn published(&self, protocol: Protocol, container: &[IpAddr]) -> PublishedPort {
        let to = container.iter().filter(|ip| self.at.is_of(ip.is_ipv4()));
        let to = to.filter_map(|ip| SocketAddr::new(*ip, self.first).to_string().parse().ok());
        PublishedPort {
            protocol,
            address: self.at.address,
            interface: self.at.interface.clone(),
            ..PublishedPort::new(Ports(self.ports), to.collect())
        }
    }
}

/// What a process's namespace listens on, under the same ports of the host, while it is listened on.
pub(super) fn followed(
    protocol: Protocol,
    pid: i32,
    at: &At,
    ports: (u16, u16),
    container: &[IpAddr],
) -> PublishedPort {
    let to = container.iter().filter(|ip| at.is_of(ip.is_ipv4()));
    let to = to.filter_map(|ip| ip.to_string().parse().ok());
    PublishedPort {
        protocol,
        address: at.address,
        interface: at.interface.clone(),
        auto: true,
        netns: Some(format!("pid:{pid}")),
        ..PublishedPort::new(Ports(ports), to.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let read = |t: &str| match t.parse() {
            Ok(Forward::Listed(l)) => l,
            other => panic!("{t}: {other:?}"),
        };
        let podman = read("127.0.0.1/8085-8085:80-80");
        assert_eq!((podman[0].ports, podman[0].first), ((8085, 8085), 80));
        assert_eq!(podman[0].at.address, "127.0.0.1".parse().ok());
        assert_eq!(read("[::1]/53,5353:53").len(), 2);
        assert_eq!(read("0.0.0.0/53")[0].at.address, None);
        let to = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let p = podman[0].published(Protocol::Tcp, &to);
        assert_eq!(
            (p.to.len(), p.to[0].to_string()),
            (1, "192.0.2.7:80".to_owned())
        );
        let p = read("53")[0].published(Protocol::Udp, &to);
        assert_eq!(
            (p.to.len(), p.to[1].to_string()),
            (2, "[2001:db8::7]:53".to_owned())
        );
    }

    #[test]
    fn exclusions_split_ranges_with_their_mapping() {
        let read = |t: &str| match t.parse() {
            Ok(Forward::Listed(l)) => l.iter().map(|l| (l.ports, l.first)).collect::<Vec<_>>(),
            other => panic!("{t}: {other:?}"),
        };
        assert_eq!(read("20-30,~25"), [((20, 24), 20), ((26, 30), 26)]);
        let mapped = [((2000, 2009), 80), ((2021, 2030), 101)];
        assert_eq!(read("2000-2030:80-110,~2010-2020"), mapped);
        assert_eq!(read("192.0.2.1/53,80,~80"), [((53, 53), 53)]);
        let all = Forward::all_but(At::default(), vec![(1, 79), (81, 81)], &(100..=65_000));
        let ranges = vec![(80, 80), (82, 99), (65_001, 65_535)];
        assert_eq!(all, Forward::Followed(At::default(), ranges));
        let but = "auto,~22".parse();
        let ranges = vec![(1, 21), (23, 65_535)];
        assert_eq!(but, Ok(Forward::Followed(At::default(), ranges)));
        assert!(matches!("~22".parse(), Ok(Forward::Followed(_, r)) if r[0] == (1, 21)));
        assert!(matches!("all".parse(), Ok(Forward::Followed(..))));
        let one = "127.0.0.1/~22".parse();
        assert!(matches!(one, Ok(Forward::Followed(at, _)) if at.address.is_some()));
    }

    #[test]
    fn interfaces_are_named() {
        let read = |t: &str| match t.parse() {
            Ok(Forward::Listed(l)) => l[0].at.clone(),
            Ok(Forward::Followed(at, _)) => at,
            other => panic!("{t}: {other:?}"),
        };
        let at = |address: &str, name: &str| At {
            address: address.parse().ok(),
            interface: Some(name.to_owned()),
        };
        assert_eq!(read("192.0.2.1%eth0/22"), at("192.0.2.1", "eth0"));
        assert_eq!(
            read("[2001:db8::1]%eth0/22:23,80"),
            at("2001:db8::1", "eth0")
        );
        assert_eq!(read("%eth0/22"), at("", "eth0"));
        assert_eq!(read("0.0.0.0%eth0/22"), at("", "eth0"));
        assert_eq!(read("%eth0/~22"), at("", "eth0"));
        assert_eq!(read("%eth0/auto"), at("", "eth0"));
    }

    #[test]
    fn mistakes_are_told() {
        for t in [
            "",
            "0",
            "9-8",
            "1-2:5-9",
            "x/80",
            "80:",
            "80,~80",
            "~x",
            "70000",
            "1,,2",
            "%eth0",
            "%/80",
            "%sixteen-letters-x/80",
            "x%eth0/80",
        ] {
            let told = t.parse::<Forward>().unwrap_err();
            assert!(told.contains("8080:80"), "{t}: {told}");
        }
    }
}
