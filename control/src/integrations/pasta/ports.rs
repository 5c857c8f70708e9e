//! Port forwards as pasta writes them: `none`, `auto`, or a list like `127.0.0.1/8080-8089:80-89,53`.

use crate::model::{Protocol, PublishedPort};
use crate::units::Ports;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What one option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    None,
    /// What is listened on inside.
    Auto,
    Listed(Vec<Listed>),
}

/// Ports of the host and where they begin in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    address: Option<IpAddr>,
    ports: (u16, u16),
    first: u16,
}

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

impl FromStr for Forward {
    type Err = String;
    fn from_str(text: &str) -> Result<Forward, String> {
        match text {
            "none" => return Ok(Forward::None),
            "auto" => return Ok(Forward::Auto),
            _ => {}
        }
        let like = "write ports like 8080, 8080:80, 127.0.0.1/8000-8009:80-89, separated by commas";
        if text == "all" || text.contains(['~', '%']) {
            let what = "`all`, excluded ports and interfaces aren't offered";
            return Err(format!("{what}: {like}, or `auto` or `none`"));
        }
        let (address, list) = match text.rsplit_once('/') {
            Some((address, list)) => {
                let ip = address.trim_start_matches('[').trim_end_matches(']');
                let ip = ip.parse::<IpAddr>();
                let ip = ip.map_err(|_| format!("`{address}` isn't an address: {like}"))?;
                (Some(ip).filter(|ip| !ip.is_unspecified()), list)
            }
            None => (None, text),
        };
        let one =
            |t| listed(address, t).ok_or_else(|| format!("`{t}` isn't a port or range: {like}"));
        list.split(',')
            .map(one)
            .collect::<Result<_, _>>()
            .map(Forward::Listed)
    }
}

impl Listed {
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
pub(super) fn followed(protocol: Protocol, pid: i32, container: &[IpAddr]) -> PublishedPort {
    let to = container
        .iter()
        .filter_map(|ip| ip.to_string().parse().ok());
    PublishedPort {
        protocol,
        auto: true,
        netns: Some(format!("pid:{pid}")),
        ..PublishedPort::new(Ports((1, u16::MAX)), to.collect())
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
    fn mistakes_are_told() {
        for t in [
            "", "0", "9-8", "1-2:5-9", "x/80", "80:", "all", "~80", "70000", "1,,2",
        ] {
            let told = t.parse::<Forward>().unwrap_err();
            assert!(told.contains("8080:80"), "{t}: {told}");
        }
    }
}
