//! DNS names in rules: their addresses, as answers of the DNS service are heard.
//!
//! Learned are only names that some rule has. The table is bounded; when it is full, what ends first gives way. An address stays
//! for its TTL, but [`MIN_TTL`] at least: applications use what they have resolved a little longer.

use super::CompileError;
use super::rule::{End, PolicyConfig};
use hashbrown::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Most DNS names in rules.
pub const MAX_PATTERNS: usize = 1024;
/// Most addresses learned.
pub const MAX_LEARNED: usize = 16_384;
/// Patterns remembered per address.
const PER_ADDRESS: usize = 8;
/// Shortest and longest time that an address is kept.
const MIN_TTL: Duration = Duration::from_secs(30);
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// Addresses of the names that rules have.
#[derive(Clone, Debug, Default)]
pub struct Names {
    patterns: Vec<Arc<str>>,
    by_address: HashMap<IpAddr, Vec<(Arc<str>, Nanos)>, foldhash::fast::RandomState>,
}

fn ends(config: &PolicyConfig) -> impl Iterator<Item = &End> {
    let rules = config.rules.iter();
    rules.flat_map(|r| r.from.iter().chain(&r.to))
}

fn patterns(config: &PolicyConfig) -> Vec<Arc<str>> {
    let mut all: Vec<Arc<str>> = ends(config).flat_map(|e| e.names.clone()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a name is the pattern's, or below it after `*.`; ASCII case doesn't matter (RFC 4343).
fn is_of(name: &str, pattern: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let at = name.len().checked_sub(suffix.len()).filter(|at| *at > 0);
            let end = at.and_then(|at| name.get(at..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
        None => name.eq_ignore_ascii_case(pattern),
    }
}

impl Names {
    pub(super) fn check(config: &PolicyConfig) -> Result<(), CompileError> {
        if patterns(config).len() > MAX_PATTERNS {
            return Err(CompileError::TooManyNames);
        }
        Ok(())
    }

    /// Takes up the names of a policy; what is known of names that it hasn't is forgotten.
    pub fn configure(&mut self, config: &PolicyConfig) {
        self.patterns = patterns(config);
        let patterns = &self.patterns;
        self.by_address.retain(|_, of| {
            of.retain(|(p, _)| patterns.binary_search(p).is_ok());
            !of.is_empty()
        });
    }

    /// Whether rules have names at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// A name was resolved to these addresses.
    pub fn learn(&mut self, name: &str, addresses: &[IpAddr], ttl: Duration, now: Nanos) {
        let name = name.strip_suffix('.').unwrap_or(name);
        let until = now.after(ttl.clamp(MIN_TTL, MAX_TTL));
        let of: Vec<&Arc<str>> = self.patterns.iter().filter(|p| is_of(name, p)).collect();
        for address in addresses {
            for pattern in &of {
                if !self.by_address.contains_key(address) && self.by_address.len() >= MAX_LEARNED {
                    make_room(&mut self.by_address, now);
                }
                let known = self.by_address.entry(*address).or_default();
                if let Some((_, end)) = known.iter_mut().find(|(p, _)| p == *pattern) {
                    *end = until.max(*end);
                } else if known.len() < PER_ADDRESS {
                    known.push(((*pattern).clone(), until));
                } else if let Some(first) = known.iter_mut().min_by_key(|(_, end)| *end) {
                    *first = ((*pattern).clone(), until);
                }
            }
        }
    }

    /// Whether the address is one of one of these names.
    pub(super) fn is_any_of(&self, ip: IpAddr, any: &[Arc<str>], now: Nanos) -> bool {
        let known = self.by_address.get(&ip);
        let alive = known.into_iter().flatten().filter(|(_, end)| *end > now);
        alive.into_iter().any(|(p, _)| any.contains(p))
    }

    /// Addresses known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

type ByAddress = HashMap<IpAddr, Vec<(Arc<str>, Nanos)>, foldhash::fast::RandomState>;

/// Forgets what is over, and if nothing is, what ends first.
fn make_room(by_address: &mut ByAddress, now: Nanos) {
    by_address.retain(|_, of| {
        of.retain(|(_, end)| *end > now);
        !of.is_empty()
    });
    if by_address.len() < MAX_LEARNED {
        return;
    }
    // An eighth at a time, so that this is rare.
    let last = |of: &[(Arc<str>, Nanos)]| of.iter().map(|(_, end)| *end).max();
    let mut ends: Vec<Option<Nanos>> = by_address.values().map(|of| last(of)).collect();
    let (_, limit, _) = ends.select_nth_unstable(MAX_LEARNED / 8);
    let limit = *limit;
    let mut left = MAX_LEARNED / 8;
    by_address.retain(|_, of| {
        let goes = left > 0 && last(of) <= limit;
        left -= usize::from(goes);
        !goes
    });
}
