//! Router advertisements (RFC 4861 6.2, 4862, 8106).
//!
//! # Theory of operation
//! An [`Advertiser`] has one timer, [`Advertiser::next`]: [`Advertiser::poll`] at that time gives the message that is due. It
//! multicasts at random intervals (quicker at first), and sooner after a solicitation of a host that has no address yet, never more
//! often than every 3 s. A solicitation from an address is answered at once and by unicast, from a bucket that a flood
//! empties; what finds it empty gets the next multicast. What a new configuration leaves out is withdrawn: prefixes
//! with lifetime 0, and [`Advertiser::goodbye`] takes back the default route.
//!
//! Messages are ICMPv6 with the checksum in place; the caller adds IPv6 (hop limit 255) and Ethernet.

use super::name::{self, InvalidName};
use std::net::Ipv6Addr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::{MacAddr, csum};

/// Where multicast advertisements go.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

// Constants of RFC 4861 10.
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const FINAL: u8 = 3;
const MIN_DELAY: Duration = Duration::from_secs(3);
const MAX_ANSWER_DELAY_MS: u64 = 500;
/// Unicast answers: so many at once, then one per interval.
const UNICAST_BURST: u32 = 16;
const UNICAST_INTERVAL: Duration = Duration::from_millis(250);

/// So many prefixes and bytes of names still fit a packet of 1280 bytes.
const MAX_PREFIXES: usize = 16;
const MAX_SEARCH: usize = 512;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ICMPV6: u64 = 58;

/// A prefix told to hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// First address.
    pub address: Ipv6Addr,
    /// Prefix length; hosts make addresses of 64 only.
    pub len: u8,
    /// Flag L: addresses are reached directly.
    pub on_link: bool,
    /// Flag A: hosts make addresses of it.
    pub autonomous: bool,
    /// Valid lifetime.
    pub valid: Duration,
    /// Preferred lifetime, not longer.
    pub preferred: Duration,
}

impl Prefix {
    /// An on-link prefix for autoconfiguration with the lifetimes of RFC 4861 6.2.1.
    #[must_use]
    pub fn new(address: Ipv6Addr, len: u8) -> Prefix {
        Prefix {
            address,
            len,
            on_link: true,
            autonomous: true,
            valid: Duration::from_secs(2_592_000),
            preferred: Duration::from_secs(604_800),
        }
    }
}

/// What is advertised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Prefixes.
    pub prefixes: Vec<Prefix>,
    /// Flag M: addresses come by DHCPv6.
    pub managed: bool,
    /// Flag O: other configuration comes by DHCPv6.
    pub other: bool,
    /// How long this is a default router; zero: it isn't.
    pub router_lifetime: Duration,
    /// Hop limit for hosts; 0 says nothing.
    pub hop_limit: u8,
    /// MTU of the link.
    pub mtu: Option<u32>,
    /// Recursive DNS servers.
    pub dns: Vec<Ipv6Addr>,
    /// DNS search list.
    pub search: Vec<String>,
    /// Shortest time between periodic advertisements.
    pub min_interval: Duration,
    /// Longest.
    pub max_interval: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            prefixes: vec![],
            managed: false,
            other: false,
            router_lifetime: Duration::from_secs(1800),
            hop_limit: 64,
            mtu: None,
            dns: vec![],
            search: vec![],
            min_interval: Duration::from_secs(200),
            max_interval: Duration::from_secs(600),
        }
    }
}

/// A configuration that can't be advertised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "router advertisements every {0:?} to {1:?}: use 3 s to 1350 s for the shortest and 4 s to 1800 s for the longest interval, the shortest at most 3/4 of the longest (RFC 4861 6.2.1)"
    )]
    Interval(Duration, Duration),
    #[error("router lifetime {0:?}: use 0, or from the longest interval up to 9000 s")]
    Lifetime(Duration),
    #[error("prefix {0}/{1}: use a global prefix of 1 to 128 bits")]
    Prefix(Ipv6Addr, u8),
    #[error("prefix {0}/{1}: it is preferred longer than valid; lower the preferred lifetime")]
    Preferred(Ipv6Addr, u8),
    #[error("router advertisements: at most 16 prefixes and 8 DNS servers fit; name fewer")]
    TooMany,
    #[error("link MTU {0}: IPv6 needs 1280 or more")]
    Mtu(u32),
    #[error("DNS search list: {0}")]
    Search(#[from] InvalidName),
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        let secs = Duration::from_secs;
        let (min, max) = (self.min_interval, self.max_interval);
        if min < secs(3) || max < secs(4) || max > secs(1800) || min > max.mul_f32(0.75) {
            return Err(ConfigError::Interval(min, max));
        }
        let lifetime = self.router_lifetime;
        if !lifetime.is_zero() && (lifetime < max || lifetime > secs(9000)) {
            return Err(ConfigError::Lifetime(lifetime));
        }
        if self.prefixes.len() > MAX_PREFIXES || self.dns.len() > 8 {
            return Err(ConfigError::TooMany);
        }
        for p in &self.prefixes {
            let link_local = p.address.segments()[0] & 0xffc0 == 0xfe80;
            if !(1..=128).contains(&p.len) || link_local || p.address.is_multicast() {
                return Err(ConfigError::Prefix(p.address, p.len));
            }
            if p.preferred > p.valid {
                return Err(ConfigError::Preferred(p.address, p.len));
            }
        }
        if let Some(mtu) = self.mtu.filter(|m| *m < 1280) {
            return Err(ConfigError::Mtu(mtu));
        }
        for n in &self.search {
            name::domain(n)?;
        }
        Ok(())
    }
}

/// A message to send: ICMPv6 with its checksum, from the router's link-local address with hop limit 255.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination.
    pub to: Ipv6Addr,
    /// ICMPv6 message.
    pub payload: Vec<u8>,
}

/// The advertising side of a router's interface.
#[derive(Debug)]
pub struct Advertiser {
    config: Config,
    mac: MacAddr,
    link_local: Ipv6Addr,
    /// When the next multicast is due.
    due: Nanos,
    last: Option<Nanos>,
    /// Multicasts that are still to come at the initial pace.
    initial: u8,
    /// Prefixes left out by a new configuration, to be withdrawn that many times.
    withdrawn: Vec<Prefix>,
    withdrawals: u8,
    /// Time at which the bucket of unicast answers is full.
    bucket: Nanos,
}

impl Advertiser {
    /// The first advertisement is due at once.
    ///
    /// # Errors
    /// With what can't be advertised.
    pub fn new(
        config: Config,
        mac: MacAddr,
        link_local: Ipv6Addr,
        now: Nanos,
    ) -> Result<Advertiser, ConfigError> {
        config.check()?;
        Ok(Advertiser {
            config,
            mac,
            link_local,
            due: now,
            last: None,
            initial: INITIAL,
            withdrawn: vec![],
            withdrawals: 0,
            bucket: Nanos(0),
        })
    }

    /// Advertises something else from now on.
    ///
    /// # Errors
    /// With what can't be advertised; then nothing changes.
    pub fn set_config(&mut self, config: Config, now: Nanos) -> Result<(), ConfigError> {
        config.check()?;
        let kept = |p: &Prefix| {
            config
                .prefixes
                .iter()
                .any(|q| (q.address, q.len) == (p.address, p.len))
        };
        let gone = self
            .config
            .prefixes
            .drain(..)
            .chain(self.withdrawn.drain(..));
        self.withdrawn = gone
            .filter(|p| !kept(p))
            .take(MAX_PREFIXES - config.prefixes.len())
            .collect();
        self.withdrawals = FINAL;
        self.initial = INITIAL;
        self.config = config;
        self.due = self.earliest(now);
        Ok(())
    }

    /// When [`Advertiser::poll`] has a message.
    #[must_use]
    pub fn next(&self) -> Nanos {
        self.due
    }

    /// The multicast that is due; `random` decides about the next one.
    pub fn poll(&mut self, now: Nanos, random: u32) -> Option<Message> {
        if now < self.due {
            return None;
        }
        self.last = Some(now);
        let min = self.config.min_interval.as_nanos() as u64;
        let max = self.config.max_interval.as_nanos() as u64;
        let spread = (u128::from(max - min) * u128::from(random)) >> 32;
        let mut wait = Duration::from_nanos(min + spread as u64);
        if self.initial > 0 {
            self.initial -= 1;
            wait = wait.min(INITIAL_INTERVAL);
        }
        self.due = now.after(wait);
        let payload = self.encode(ALL_NODES, self.config.router_lifetime);
        self.withdrawals = self.withdrawals.saturating_sub(1);
        if self.withdrawals == 0 {
            self.withdrawn.clear();
        }
        Some(Message {
            to: ALL_NODES,
            payload,
        })
    }

    /// Serves an ICMPv6 message that came to the router or to all routers; gives the answer to send at once, if any.
    pub fn solicited(
        &mut self,
        from: Ipv6Addr,
        hop_limit: u8,
        message: &[u8],
        now: Nanos,
        random: u32,
    ) -> Option<Message> {
        if hop_limit != 255 || !is_solicitation(from, message) {
            return None;
        }
        if !from.is_unspecified() && self.take_unicast(now) {
            let payload = self.encode(from, self.config.router_lifetime);
            return Some(Message { to: from, payload });
        }
        let delay = Duration::from_millis(u64::from(random) % MAX_ANSWER_DELAY_MS);
        self.due = self.due.min(self.earliest(now.after(delay)));
        None
    }

    /// The last message of a router that goes: no default route any more, prefixes not preferred (RFC 4861 6.2.5).
    #[must_use]
    pub fn goodbye(&self) -> Message {
        Message {
            to: ALL_NODES,
            payload: self.encode(ALL_NODES, Duration::ZERO),
        }
    }

    /// `at`, or later where the last multicast was just before.
    fn earliest(&self, at: Nanos) -> Nanos {
        self.last.map_or(at, |last| at.max(last.after(MIN_DELAY)))
    }

    fn take_unicast(&mut self, now: Nanos) -> bool {
        let full = self.bucket.max(now);
        let passes = full.since(now) < UNICAST_INTERVAL * UNICAST_BURST;
        if passes {
            self.bucket = full.after(UNICAST_INTERVAL);
        }
        passes
    }

    fn encode(&self, to: Ipv6Addr, router_lifetime: Duration) -> Vec<u8> {
        let c = &self.config;
        let goodbye = router_lifetime.is_zero() && !c.router_lifetime.is_zero();
        let mut out = vec![ADVERTISEMENT, 0, 0, 0, c.hop_limit];
        out.push(u8::from(c.managed) << 7 | u8::from(c.other) << 6);
        out.extend((router_lifetime.as_secs() as u16).to_be_bytes());
        // Reachable time and retransmission timer: unspecified.
        out.extend([0; 8]);
        out.extend([1, 1]);
        out.extend(self.mac.0);
        if let Some(mtu) = c.mtu {
            out.extend([5, 1, 0, 0]);
            out.extend(mtu.to_be_bytes());
        }
        for p in &c.prefixes {
            let preferred = if goodbye { Duration::ZERO } else { p.preferred };
            put_prefix(&mut out, p, p.valid, preferred);
        }
        for p in &self.withdrawn {
            // A host keeps an address for two hours all the same (RFC 4862 5.5.3 e), but makes no new use of it.
            put_prefix(&mut out, p, Duration::ZERO, Duration::ZERO);
        }
        // Three missed advertisements must not take the resolvers away (RFC 8106 5.1).
        let lifetime = if goodbye {
            0
        } else {
            c.max_interval.as_secs() as u32 * 3
        };
        if !c.dns.is_empty() {
            out.extend([25, 1 + 2 * c.dns.len() as u8, 0, 0]);
            out.extend(lifetime.to_be_bytes());
            c.dns.iter().for_each(|a| out.extend(a.octets()));
        }
        put_search(&mut out, &c.search, lifetime);
        put_checksum(&mut out, self.link_local, to);
        out
    }
}

fn is_solicitation(from: Ipv6Addr, message: &[u8]) -> bool {
    let [SOLICITATION, 0, _, _, _, _, _, _, options @ ..] = message else {
        return false;
    };
    let mut rest = options;
    while let [kind, len, ..] = rest {
        // An option of length 0 makes the message invalid, and so does a link-layer address without a source (RFC 4861 6.1.1).
        if *len == 0 || (*kind == 1 && from.is_unspecified()) {
            return false;
        }
        let Some(next) = rest.get(usize::from(*len) * 8..) else {
            return false;
        };
        rest = next;
    }
    rest.is_empty()
}

fn put_prefix(out: &mut Vec<u8>, p: &Prefix, valid: Duration, preferred: Duration) {
    let secs = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let host = u128::MAX.checked_shr(p.len.into()).unwrap_or(0);
    out.extend([3, 4, p.len]);
    out.push(u8::from(p.on_link) << 7 | u8::from(p.autonomous) << 6);
    out.extend(secs(valid).to_be_bytes());
    out.extend(secs(preferred).to_be_bytes());
    out.extend([0; 4]);
    out.extend((u128::from(p.address) & !host).to_be_bytes());
}

/// DNSSL: uncompressed names, padded with zeros to eight bytes; as many as the option's length can say.
fn put_search(out: &mut Vec<u8>, search: &[String], lifetime: u32) {
    let mut names = vec![];
    for label in search {
        let Ok(name) = name::domain(label) else {
            continue;
        };
        // A label's length byte each and the root: one more than the text with its dots.
        if names.len() + name.len() + 1 > MAX_SEARCH {
            break;
        }
        for label in name.iter() {
            names.push(label.len() as u8);
            names.extend(label);
        }
        names.push(0);
    }
    if names.is_empty() {
        return;
    }
    names.resize(names.len().next_multiple_of(8), 0);
    out.extend([31, 1 + (names.len() / 8) as u8, 0, 0]);
    out.extend(lifetime.to_be_bytes());
    out.extend(names);
}

fn put_checksum(message: &mut [u8], from: Ipv6Addr, to: Ipv6Addr) {
    let pseudo = csum::add(csum::add(0, &from.octets()), &to.octets());
    let sum = csum::add(pseudo + message.len() as u64 + ICMPV6, message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&csum::finish(sum).to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
