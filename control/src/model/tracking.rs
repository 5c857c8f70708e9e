//! Settings of connection tracking.

use super::check::Problem;
use crate::units::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use utoipa::ToSchema;
use vswitch_nat::conntrack::{Config, TcpOptions, Timeout, Timeouts};

/// Connection tracking of the gateways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tracking {
    /// Most connections. A change ends all connections.
    pub max: u32,
    /// Most connections of one source (an IPv4 address, or an IPv6 /64); 0 is no limit.
    pub per_source: u32,
    /// TCP segments out of the window pass.
    pub liberal: bool,
    /// TCP connections may be taken up in the middle.
    pub pickup: bool,
    /// UDP from outside keeps a connection alive as UDP from inside does; otherwise a flood from outside can't (RFC 4787 REQ-6).
    pub inbound_refresh: bool,
    /// Timeouts that differ from the default, by name.
    pub timeouts: BTreeMap<String, Span>,
}

impl Default for Tracking {
    fn default() -> Self {
        let c = Config::default();
        Tracking {
            max: c.max_entries,
            per_source: c.per_source.unwrap_or(0),
            liberal: c.tcp.liberal,
            pickup: c.tcp.pickup,
            inbound_refresh: c.inbound_refresh,
            timeouts: BTreeMap::new(),
        }
    }
}

impl Tracking {
    pub(super) fn is_default(&self) -> bool {
        *self == Tracking::default()
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        if !(16..=16_777_216).contains(&self.max) {
            let reason = format!("{} is out of range", self.max);
            return Err(Problem::at(
                &["conntrack", "max"],
                reason,
                "use 16 to 16777216",
            ));
        }
        for (name, span) in &self.timeouts {
            let path = ["conntrack", "timeouts", name.as_str()];
            if !Timeout::ALL.iter().any(|t| t.name() == name) {
                let names: Vec<&str> = Timeout::ALL.iter().map(|t| t.name()).collect();
                let remedy = match crate::refusal::nearest(name, names.iter().copied()) {
                    Some(n) => format!("did you mean `{n}`?"),
                    None => format!("use one of {}", names.join(", ")),
                };
                return Err(Problem::at(&path, "there is no such timeout", remedy));
            }
            if span.0.as_secs() == 0 || span.0.as_secs() > 86_400 * 30 {
                let reason = format!("{span} is out of range");
                return Err(Problem::at(&path, reason, "use 1s to 720h"));
            }
        }
        Ok(())
    }

    /// As the data path knows it, with a seed of its own.
    pub(super) fn to_config(&self) -> Config {
        let mut timeouts = Timeouts::default();
        for (name, span) in &self.timeouts {
            if let Some(t) = Timeout::ALL.iter().find(|t| t.name() == name) {
                timeouts.set(*t, span.0.as_secs() as u32);
            }
        }
        Config {
            max_entries: self.max,
            timeouts,
            per_source: (self.per_source != 0).then_some(self.per_source),
            tcp: TcpOptions {
                pickup: self.pickup,
                liberal: self.liberal,
            },
            inbound_refresh: self.inbound_refresh,
            // Randomness of the system, as hash maps have it.
            seed: std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish(),
            ..Config::default()
        }
    }
}
