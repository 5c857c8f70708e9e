//! Ports and back ends: `80`, `8000-8010`, `192.0.2.10:80`, `[2001:db8::1]:80*3`.

use super::{Deserialize, Serialize, ToSchema, UnitError, fmt};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

text_type!(
    /// A port, or a range of ports; 0 alone is one that the host picks.
    Ports((u16, u16)), "a port or range of ports (1 to 65535)", "80 or 8000-8010", "8000-8010"
);
text_type!(
    /// A back end of a published port: an address, a port if it differs, and a weight.
    BackendAddress(BackendParts), "a back end", "192.0.2.10:80, 192.0.2.10, [2001:db8::1]:80 or 192.0.2.10:80*3", "192.0.2.10:80"
);

/// What a back end is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendParts {
    /// Address.
    pub address: IpAddr,
    /// Port that stands for the first published one; the same by default.
    pub port: Option<u16>,
    /// Share beside the others'.
    pub weight: u16,
}

impl Ports {
    pub(super) fn read(text: &str) -> Option<(u16, u16)> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (0 < from && from <= to || (from, to) == (0, 0)).then_some((from, to))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            (from, to) if from == to => write!(f, "{from}"),
            (from, to) => write!(f, "{from}-{to}"),
        }
    }
}

impl BackendAddress {
    fn read(text: &str) -> Option<BackendParts> {
        let (end, weight) = match text.split_once('*') {
            Some((end, weight)) => (end, weight.parse().ok().filter(|w| *w > 0)?),
            None => (text, 1),
        };
        let (address, port) = match end.parse::<SocketAddr>() {
            Ok(a) => (a.ip(), Some(a.port()).filter(|p| *p != 0)?.into()),
            Err(_) => (
                end.trim_start_matches('[')
                    .trim_end_matches(']')
                    .parse()
                    .ok()?,
                None,
            ),
        };
        Some(BackendParts {
            address,
            port,
            weight,
        })
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BackendParts {
            address,
            port,
            weight,
        } = self.0;
        match port {
            Some(port) => write!(f, "{}", SocketAddr::new(address, port))?,
            None => write!(f, "{address}")?,
        }
        if weight != 1 {
            write!(f, "*{weight}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were() {
        for text in ["0", "80", "8000-8010"] {
            assert_eq!(
                text.parse::<Ports>().map(|p| p.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in [
            "192.0.2.1:80",
            "192.0.2.1",
            "[2001:db8::1]:80*3",
            "2001:db8::1*2",
        ] {
            let back = text.parse::<BackendAddress>().map(|b| b.to_string());
            assert_eq!(back.as_deref(), Ok(text));
        }
        for text in ["0-9", "9-0", "9-8", "65536", "-", "80-"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
        for text in ["192.0.2.1:0", "192.0.2.1*0", "web:80", ":80", "192.0.2.1:"] {
            assert!(text.parse::<BackendAddress>().is_err(), "{text}");
        }
    }
}
