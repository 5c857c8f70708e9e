//! Values as people write them: `300s`, `100mbit`, `1000pps`, `52:54:00:12:34:56`, `192.0.2.1/24`, `10,20-30`.
//!
//! Each is a type of its own that reads and writes that text, in TOML, JSON and on the command line alike, so that a
//! mistake is told the same way everywhere.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;
use utoipa::ToSchema;
use vswitch_core::bridge::VlanSet;
use vswitch_core::wire::MacAddr;

/// A text that can't be read; says how it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: write it like {like}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    like: &'static str,
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident($inner:ty), $what:literal, $like:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, example = $example)]
        pub struct $name(pub $inner);

        impl TryFrom<String> for $name {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(v: $name) -> String {
                v.to_string()
            }
        }

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                Self::read(text.trim()).map($name).ok_or_else(|| UnitError {
                    text: text.to_owned(),
                    what: $what,
                    like: $like,
                })
            }
        }
    };
}

mod endpoint;
mod policy;

pub use endpoint::{BackendAddress, BackendParts, Ports};
pub use policy::{IcmpType, IcmpTypes, Peer, Peers, PortList, Protocols, States};

text_type!(
    /// A time span. A millisecond is its grain.
    Span(Duration), "a time span", "300s, 500ms, 5m or 1h", "300s"
);
text_type!(
    /// A rate in bits per second on the wire's Ethernet frames.
    BitRate(u64), "a bit rate", "100mbit, 64kbit, 1gbit or 9600bit", "100mbit"
);
text_type!(
    /// A rate in frames per second.
    FrameRate(u64), "a frame rate", "1000pps or 10kpps", "1000pps"
);
text_type!(
    /// A MAC address.
    Mac(MacAddr), "a MAC address", "52:54:00:12:34:56", "52:54:00:12:34:56"
);
text_type!(
    /// An IP address with a prefix length; a bare address is the whole address (/32, /128).
    Cidr((IpAddr, u8)), "an address with prefix length", "192.0.2.1/24 or 2001:db8::1/64", "192.0.2.1/24"
);
text_type!(
    /// VLANs, 1 to 4094.
    Vlans(VlanSet), "a list of VLANs (1 to 4094)", "10,20-30, or an empty text for none", "10,20-30"
);

impl Mac {
    /// Order of the octets, for sorting.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.0.to_u64()
    }
}

impl Default for Vlans {
    fn default() -> Self {
        Vlans(VlanSet::EMPTY)
    }
}

/// Splits `12kbit` into number and unit.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text.get(..end)?.parse().ok()?, text.get(end..)?.trim()))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (n, unit) = number(text)?;
    let (_, factor) = units.iter().find(|(u, _)| u.eq_ignore_ascii_case(unit))?;
    n.checked_mul(*factor)
}

const SPANS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const BITS: [(&str, u64); 4] = [
    ("bit", 1),
    ("kbit", 1000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
];
const FRAMES: [(&str, u64); 3] = [("pps", 1), ("kpps", 1000), ("mpps", 1_000_000)];

/// Writes `n` with the largest unit that divides it.
fn write_scaled(f: &mut fmt::Formatter<'_>, n: u64, units: &[(&str, u64)]) -> fmt::Result {
    let best = units
        .iter()
        .rev()
        .find(|(_, factor)| n != 0 && n.is_multiple_of(*factor));
    let (unit, factor) = best.copied().unwrap_or(units[0]);
    write!(f, "{}{unit}", n / factor)
}

impl Span {
    fn read(text: &str) -> Option<Duration> {
        if text == "0" {
            return Some(Duration::ZERO);
        }
        scaled(text, &SPANS).map(Duration::from_millis)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX) {
            0 => f.write_str("0s"),
            // Seconds stay seconds up to an hour: ageing is always told so.
            ms if ms % 1000 == 0 && ms < 3_600_000 => write!(f, "{}s", ms / 1000),
            ms => write_scaled(f, ms, &SPANS),
        }
    }
}

impl BitRate {
    fn read(text: &str) -> Option<u64> {
        scaled(text, &BITS).filter(|n| *n >= 8)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &BITS)
    }
}

impl FrameRate {
    fn read(text: &str) -> Option<u64> {
        scaled(text, &FRAMES).filter(|n| *n > 0)
    }
}

impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &FRAMES)
    }
}

impl Mac {
    fn read(text: &str) -> Option<MacAddr> {
        text.parse().ok()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Cidr {
    fn read(text: &str) -> Option<(IpAddr, u8)> {
        let (address, len) = match text.split_once('/') {
            Some((a, l)) => (a.parse::<IpAddr>().ok()?, Some(l.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.unwrap_or(most);
        (len <= most).then_some((address, len))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.0, self.0.1)
    }
}

impl Vlans {
    fn read(text: &str) -> Option<VlanSet> {
        let mut set = VlanSet::EMPTY;
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first < 1 || last > 4094 || first > last {
                return None;
            }
            (first..=last).for_each(|v: u16| set.insert(v));
        }
        Some(set)
    }
}

impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for v in self.0.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == v => *last = v,
                _ => runs.push((v, v)),
            }
        }
        for (i, (first, last)) in runs.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<T: FromStr + ToString>(text: &str) -> Option<String> {
        text.parse::<T>().ok().map(|v| v.to_string())
    }

    #[test]
    fn texts_are_read_and_written() {
        assert_eq!(round::<Span>("5m").unwrap(), "300s");
        assert_eq!(round::<Span>("1500ms").unwrap(), "1500ms");
        assert_eq!(round::<Span>("2h").unwrap(), "2h");
        assert_eq!(round::<Span>("0").unwrap(), "0s");
        assert_eq!(round::<BitRate>("1000kbit").unwrap(), "1mbit");
        assert_eq!(round::<FrameRate>("10kpps").unwrap(), "10kpps");
        assert_eq!(round::<Vlans>("30, 10-12,13").unwrap(), "10-13,30");
        assert_eq!(round::<Vlans>("").unwrap(), "");
        assert_eq!(round::<Cidr>("192.0.2.1").unwrap(), "192.0.2.1/32");
        assert_eq!(
            round::<Mac>("52:54:00:AB:cd:ef").unwrap(),
            "52:54:00:ab:cd:ef"
        );
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["5", "5 parsecs", "-1s", "99999999999999999999h", ""] {
            assert!(round::<Span>(text).is_none(), "{text}");
        }
        for text in ["0", "4095", "9-3", "x", "1,,y"] {
            assert!(round::<Vlans>(text).is_none(), "{text}");
        }
        assert!(round::<Cidr>("192.0.2.1/33").is_none());
        let e = "100".parse::<BitRate>().unwrap_err().to_string();
        assert!(e.contains("100mbit"), "{e}");
    }
}
