//! The judgement: the first bit of the AND over all dimensions.

use super::compile::{Compiled, DIMENSIONS, dim};
use super::dimension::Wild;
use super::names::Names;
use super::rule::{Decision, ICMP, Key};
use super::vectors::{VectorId, View};
use arrayvec::ArrayVec;
use std::net::IpAddr;
use vswitch_core::clock::Nanos;

/// A dimension's part in one judgement.
struct Part<'a> {
    mentioned: View<'a>,
    wild: &'a Wild,
    /// Words of `mentioned` before the summary word at hand.
    before: usize,
}

impl Part<'_> {
    fn summary(&self, at: usize) -> u64 {
        let mentioned = self.mentioned.summary.get(at).copied().unwrap_or(0);
        mentioned | self.wild.summary.get(at).copied().unwrap_or(0)
    }

    /// The word that bit `bit` of summary word `at` stands for.
    fn word(&self, at: usize, bit: u32) -> u64 {
        let wild = self.wild.words.get(at * 64 + bit as usize);
        let wild = wild.copied().unwrap_or(0);
        let summary = self.mentioned.summary.get(at).copied().unwrap_or(0);
        if summary >> bit & 1 == 0 {
            return wild;
        }
        let below = (summary & ((1 << bit) - 1)).count_ones() as usize;
        let word = self.mentioned.words.get(self.before + below);
        wild | word.copied().unwrap_or(0)
    }

    fn pass(&mut self, at: usize) {
        let summary = self.mentioned.summary.get(at).copied().unwrap_or(0);
        self.before += summary.count_ones() as usize;
    }
}

impl Compiled {
    /// Judges: the first rule that matches decides. `names` has the addresses learned for DNS names.
    #[must_use]
    pub fn judge(&self, key: &Key, names: &Names, now: Nanos) -> Decision {
        let row = self.first(key, |row| self.names_match(row, key, names, now));
        let rule = row.and_then(|r| self.rule_of.get(r as usize)).copied();
        let action = rule
            .and_then(|r| self.rule(r))
            .map_or(self.config.default, |r| r.action);
        Decision { action, rule }
    }

    fn names_match(&self, row: u32, key: &Key, names: &Names, now: Nanos) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Some(need) = self.names.get(&row) else {
            return true;
        };
        let holds = |ip: IpAddr, lists: &[Vec<std::sync::Arc<str>>]| {
            lists.iter().all(|any| names.is_any_of(ip, any, now))
        };
        holds(key.src, &need.from) && holds(key.dst, &need.to)
    }

    fn vector(&self, dimension: usize, key: &Key) -> VectorId {
        let address = |ip: IpAddr, end: usize| match ip {
            IpAddr::V4(ip) => self.v4[end].find(ip.into()),
            IpAddr::V6(ip) => self.v6[end].find(ip.into()),
        };
        let port = if ICMP.contains(&key.proto) {
            u16::from_be_bytes([key.icmp.0, key.icmp.1])
        } else {
            key.port
        };
        match dimension {
            dim::DST => address(key.dst, 1),
            dim::SRC => address(key.src, 0),
            dim::TO_PORT => self.ports[1].find(key.to_port.map(|p| p.0)),
            dim::PORT => self.l4[1].find(port),
            dim::FROM_PORT => self.ports[0].find(key.from_port.map(|p| p.0)),
            dim::PROTOCOL => self.protocols.find(Some(key.proto.into())),
            dim::TO_NETWORK => self.networks[1].find(key.to_network.map(|n| n.0)),
            dim::FROM_NETWORK => self.networks[0].find(key.from_network.map(|n| n.0)),
            dim::SOURCE_PORT => self.l4[0].find(key.source_port),
            _ => self.states.find(Some(key.state as u16)),
        }
    }

    /// The first row that all dimensions allow and `holds` confirms.
    fn first(&self, key: &Key, holds: impl Fn(u32) -> bool) -> Option<u32> {
        let mut parts: ArrayVec<Part<'_>, DIMENSIONS> = ArrayVec::new();
        for dimension in &self.order {
            parts.push(Part {
                mentioned: self.vectors.view(self.vector(*dimension, key)),
                wild: &self.wild[*dimension],
                before: 0,
            });
        }
        let words = self.rows.div_ceil(64);
        for at in 0..self.vectors.span {
            let every = (words - (at * 64).min(words)).min(64) as u32;
            let mut left = if every == 64 {
                u64::MAX
            } else {
                (1 << every) - 1
            };
            for p in &parts {
                left &= p.summary(at);
            }
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let base = (at * 64 + bit as usize) * 64;
                let rows = self.rows.saturating_sub(base).min(64);
                let mut word = if rows == 64 {
                    u64::MAX
                } else {
                    (1 << rows) - 1
                };
                for p in &parts {
                    word &= p.word(at, bit);
                    if word == 0 {
                        break;
                    }
                }
                while word != 0 {
                    let row = base as u32 + word.trailing_zeros();
                    if holds(row) {
                        return Some(row);
                    }
                    word &= word - 1;
                }
            }
            parts.iter_mut().for_each(|p| p.pass(at));
        }
        None
    }
}
