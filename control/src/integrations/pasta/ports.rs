//! Port forwards as pasta writes them: `none`, `auto`, `all`, or a list like `127.0.0.1/8080-8089:80-89,53,~8085`.
//!
//! A list that only excludes is of all ports but those. As with `auto`, of all ports those are forwarded that the container listens on, as it comes
//! and goes: to a client outside that is the same, and no port of the host is taken in vain.

use crate::model::{Protocol, PublishedPort};
use crate::units::Ports;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// What one option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    None,
    /// Of these ports, at an address or all, what is listened on inside.
    Followed(Option<IpAddr>, Vec<(u16, u16)>),
    Listed(Vec<Listed>),
}

/// Ports of the host and where they begin in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    address: Option<IpAddr>,
    ports: (u16, u16),
    first: u16,
}

const LIKE: &str =
    "write ports like 8080, 8080:80, 127.0.0.1/8000-8009:80-89 or ~22, separated by commas";

fn range(text: &str) -> Option<(u16, u16)> {
    let (a, b) = text.split_once('-').unwrap_or((text, text));
    let (a, b) = (a.parse().ok()?, b.parse().ok()?);
    (a != 0 && a <= b).then_some((a, b))
}

fn listed(address: Option<IpAddr>, text: &str) -> Option<Listed> {
    let (outer, inner) = text.split_once(':').unwrap_or((text, text));
    let (ports, inner) = (range(outer)?, range(inner)?);
    (ports.1 - ports.0 == inner.1 - inner.0).then_some(Listed {
        address,
        ports,
        first: inner.0,
    })
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
        Forward::Followed(None, vec![(1, u16::MAX)])
    }

    /// All ports but these, and but those that the kernel gives out by itself.
    fn all_but(
        address: Option<IpAddr>,
        mut excluded: Vec<(u16, u16)>,
        given_out: &RangeInclusive<u16>,
    ) -> Forward {
        excluded.push((*given_out.start(), *given_out.end()));
        Forward::Followed(address, without((1, u16::MAX), &excluded))
    }
}

impl FromStr for Forward {
    type Err = String;
    fn from_str(text: &str) -> Result<Forward, String> {
        let given_out = || crate::listening::given_out();
        match text {
            "none" => return Ok(Forward::None),
            "auto" => return Ok(Forward::auto()),
            "all" => return Ok(Forward::all_but(None, Vec::new(), &given_out())),
            _ => {}
        }
        if text.contains('%') {
            let what = "forwards of one interface of the host aren't offered";
            return Err(format!("{what}, name an address of it instead: {LIKE}"));
        }
        let (address, list) = match text.rsplit_once('/') {
            Some((address, list)) => {
                let ip = address.trim_start_matches('[').trim_end_matches(']');
                let ip = ip.parse::<IpAddr>();
                let ip = ip.map_err(|_| format!("`{address}` isn't an address: {LIKE}"))?;
                (Some(ip).filter(|ip| !ip.is_unspecified()), list)
            }
            None => (None, text),
        };
        let wrong =
            |t: &str| format!("`{t}` isn't a port or range: {LIKE}, `auto`, `all` or `none`");
        let (mut excluded, mut wanted, mut auto) = (Vec::new(), Vec::new(), false);
        for t in list.split(',') {
            match t.strip_prefix('~') {
                Some(t) => excluded.push(range(t).ok_or_else(|| wrong(t))?),
                None if t == "auto" => auto = true,
                None => wanted.push(listed(address, t).ok_or_else(|| wrong(t))?),
            }
        }
        if auto && wanted.is_empty() {
            return Ok(Forward::Followed(
                address,
                without((1, u16::MAX), &excluded),
            ));
        }
        if auto {
            let reason = "`auto` and listed ports are options each, as in -t auto -t 8080";
            return Err(reason.to_owned());
        }
        if wanted.is_empty() {
            return Ok(Forward::all_but(address, excluded, &given_out()));
        }
        let cut = |l: Listed| {
            let left = without(l.ports, &excluded).into_iter();
            left.map(move |ports| Listed {
                address: l.address,
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
    /// The container's loopback, or the address, and the host's, port by port.
    pub(super) fn to_host(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let (from, to) = self.ports;
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let family = |ip: &IpAddr| self.address.is_none_or(|a| a.is_ipv4() == ip.is_ipv4());
        let at = both.into_iter().filter(family);
        let all = at.flat_map(|ip| (from..=to).map(move |n| (ip, n)));
        all.map(|(ip, n)| {
            let inside = SocketAddr::new(self.address.unwrap_or(ip), n);
            (inside, SocketAddr::new(ip, self.first + (n - from)))
        })
        .collect()
    }

    /// As a published port that leads to the container.
    pub(super) fn published(&self, protocol: Protocol, container: &[IpAddr]) -> PublishedPort {
        let family = |ip: &&IpAddr| self.address.is_none_or(|a| a.is_ipv4() == ip.is_ipv4());
        let to = container.iter().filter(family);
        let to = to.filter_map(|ip| SocketAddr::new(*ip, self.first).to_string().parse().ok());
        PublishedPort {
            protocol,
            address: self.address,
            ..PublishedPort::new(Ports(self.ports), to.collect())
        }
    }
}

/// What a process's namespace listens on, under the same ports of the host, while it is listened on.
pub(super) fn followed(
    protocol: Protocol,
    pid: i32,
    address: Option<IpAddr>,
    ports: (u16, u16),
    container: &[IpAddr],
) -> PublishedPort {
    let family = |ip: &&IpAddr| address.is_none_or(|a| a.is_ipv4() == ip.is_ipv4());
    let to = container.iter().filter(family);
    let to = to.filter_map(|ip| ip.to_string().parse().ok());
    PublishedPort {
        protocol,
        address,
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
        assert_eq!(podman[0].address, "127.0.0.1".parse().ok());
        assert_eq!(read("[::1]/53,5353:53").len(), 2);
        assert_eq!(read("0.0.0.0/53")[0].address, None);
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
        let all = Forward::all_but(None, vec![(1, 79), (81, 81)], &(100..=65_000));
        let ranges = vec![(80, 80), (82, 99), (65_001, 65_535)];
        assert_eq!(all, Forward::Followed(None, ranges));
        let but = "auto,~22".parse();
        let ranges = vec![(1, 21), (23, 65_535)];
        assert_eq!(but, Ok(Forward::Followed(None, ranges)));
        assert!(matches!("~22".parse(), Ok(Forward::Followed(None, r)) if r[0] == (1, 21)));
        assert!(matches!("all".parse(), Ok(Forward::Followed(None, _))));
        let one = "127.0.0.1/~22".parse();
        assert!(matches!(one, Ok(Forward::Followed(Some(_), _))));
    }

    #[test]
    fn mistakes_are_told() {
        for t in [
            "", "0", "9-8", "1-2:5-9", "x/80", "80:", "80,~80", "~x", "70000", "1,,2", "%eth0/80",
        ] {
            let told = t.parse::<Forward>().unwrap_err();
            assert!(told.contains("8080:80"), "{t}: {told}");
        }
    }
}
