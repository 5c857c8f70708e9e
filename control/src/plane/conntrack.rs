//! Connections of the gateways: shown, counted, flushed.

use super::Plane;
use crate::refusal::{Kind, Refusal};
use crate::switching::Connection;
use crate::units::Cidr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use utoipa::{IntoParams, ToSchema};
use vswitch_nat::conntrack::{Conn, Cursor, Dir, Event, Record, Tuple, proto};
use vswitch_nat::gateway::contains;

/// Places of the table looked at between two turns.
const CHUNK: usize = 8192;
/// Most connections shown at once.
const MOST: usize = 100_000;
/// Events kept for who watches.
const EVENTS: usize = 8192;

/// Which connections; what isn't named matches all.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionFilter {
    /// `tcp`, `udp`, `icmp`, `icmp6`, `sctp`, or a protocol number.
    pub protocol: Option<String>,
    /// Prefix of the original source.
    #[param(value_type = Option<String>)]
    pub src: Option<Cidr>,
    /// Prefix of the original or translated destination.
    #[param(value_type = Option<String>)]
    pub dst: Option<Cidr>,
    /// Original source or destination port.
    pub port: Option<u16>,
    /// State, such as `established`.
    pub state: Option<String>,
    /// Most to show.
    pub limit: Option<usize>,
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Direction {
    /// Source.
    #[schema(value_type = String)]
    pub src: IpAddr,
    /// Destination.
    #[schema(value_type = String)]
    pub dst: IpAddr,
    /// Source port, or ICMP identifier.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Packets seen.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionView {
    /// Protocol.
    pub protocol: String,
    /// State.
    pub state: String,
    /// As it began.
    pub original: Direction,
    /// What comes back: differs from the reverse of the original where addresses are translated.
    pub reply: Direction,
    /// A packet has come back.
    pub replied: bool,
    /// Seconds since it began.
    pub age: u32,
    /// Seconds since its last packet.
    pub idle: u32,
    /// Seconds until it expires.
    pub expires: u32,
    /// Its socket in the container is one of the host: it crosses no switch, and doesn't expire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switched: bool,
}

/// How full the table is, and what was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionCount {
    /// Connections.
    pub connections: u32,
    /// Most there can be.
    pub max: u32,
    /// External ports in use for source translation.
    pub mappings: usize,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// Name of a protocol number.
pub(super) fn protocol_name(proto: u8) -> String {
    match proto {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmp6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

/// A compiled filter.
#[derive(Clone, Debug)]
struct Matcher {
    protocol: Option<u8>,
    filter: ConnectionFilter,
}

impl Matcher {
    fn new(filter: &ConnectionFilter, act: &str) -> Result<Matcher, Refusal> {
        let wrong = |thing: String, reason: &str, remedy: &str| {
            Refusal::new(Kind::Invalid, act, thing, reason, remedy)
        };
        let protocol = match &filter.protocol {
            None => None,
            Some(p) => {
                let known = (0..=255)
                    .find(|n| p.parse() == Ok(*n) || protocol_name(*n) == p.to_lowercase());
                Some(known.ok_or_else(|| {
                    let remedy = "use tcp, udp, icmp, icmp6, sctp or a number";
                    wrong(
                        format!("protocol `{p}`"),
                        "there is no such protocol",
                        remedy,
                    )
                })?)
            }
        };
        Ok(Matcher {
            protocol,
            filter: filter.clone(),
        })
    }

    fn fits(&self, original: &Tuple, reply: &Tuple, state: &str) -> bool {
        let f = &self.filter;
        self.protocol.is_none_or(|p| p == original.proto)
            && f.src.as_ref().is_none_or(|c| contains(c.0, original.src()))
            && f.dst
                .as_ref()
                .is_none_or(|c| contains(c.0, original.dst()) || contains(c.0, reply.src()))
            && f.port
                .is_none_or(|p| p == original.src_port || p == original.dst_port)
            && f.state
                .as_ref()
                .is_none_or(|s| s.eq_ignore_ascii_case(state))
    }
}

impl Matcher {
    fn fits_switched(&self, c: &Connection) -> bool {
        let [original, reply] = tuples(c);
        self.fits(&original, &reply, c.state())
    }
}

fn state_name(state: vswitch_nat::conntrack::State) -> String {
    let mut name = String::new();
    for (i, c) in format!("{state:?}").chars().enumerate() {
        if i > 0 && c.is_uppercase() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

fn view(r: &Record) -> ConnectionView {
    let side = |t: &Tuple, i: usize| Direction {
        src: t.src(),
        dst: t.dst(),
        src_port: t.src_port,
        dst_port: t.dst_port,
        packets: r.packets[i],
        bytes: r.bytes[i],
    };
    ConnectionView {
        protocol: protocol_name(r.original.proto),
        state: state_name(r.state),
        original: side(&r.original, 0),
        reply: side(&r.reply, 1),
        replied: r.replied,
        age: r.age,
        idle: r.idle,
        expires: r.left,
        switched: false,
    }
}

/// The tuples of one by a socket of the host.
fn tuples(c: &Connection) -> [Tuple; 2] {
    // The container's port is the host's, as its own getsockname(2) tells.
    let from = SocketAddr::new(c.ends.from.ip(), c.here.port());
    let tuple = |from, to| Tuple::new(0, proto::TCP, from, to);
    [tuple(from, c.ends.to), tuple(c.ends.to, c.here)]
}

fn switched(c: &Connection) -> ConnectionView {
    let (packets, bytes) = c.counts();
    let side = |t: &Tuple, packets, bytes| Direction {
        src: t.src(),
        dst: t.dst(),
        src_port: t.src_port,
        dst_port: t.dst_port,
        packets,
        bytes,
    };
    let [original, reply] = tuples(c);
    let secs = |since: Instant| u32::try_from(since.elapsed().as_secs()).unwrap_or(u32::MAX);
    ConnectionView {
        protocol: protocol_name(proto::TCP),
        state: c.state().into(),
        original: side(&original, packets[0], bytes[0]),
        reply: side(&reply, packets[1], bytes[1]),
        replied: c.state() != "syn-sent",
        age: secs(c.began),
        idle: secs(c.used),
        expires: 0,
        switched: true,
    }
}

impl Plane {
    /// Connections that the filter matches, in pieces so that no turn is long.
    pub fn connections(&self, filter: &ConnectionFilter) -> Result<Vec<ConnectionView>, Refusal> {
        let matcher = Matcher::new(filter, "showing connections of")?;
        let limit = filter.limit.unwrap_or(MOST).min(MOST);
        self.collect_fast();
        let mut found = Vec::new();
        let Some(worker) = self.workers.first() else {
            return Ok(found);
        };
        let mut next = Some(Cursor::default());
        while let Some(from) = next {
            let part = worker.call(move |w| w.stage.gateway.connections(from, CHUNK, w.cx.now));
            let Ok((some, then)) = part else { break };
            next = then;
            for r in some {
                if matcher.fits(&r.original, &r.reply, &state_name(r.state)) {
                    found.push(view(&r));
                }
                if found.len() >= limit {
                    return Ok(found);
                }
            }
        }
        let all = self.switching.connections();
        let all = all.iter().filter(|c| matcher.fits_switched(c));
        found.extend(all.map(switched).take(limit - found.len()));
        Ok(found)
    }

    /// Ends the connections that the filter matches; returns how many.
    pub fn flush_connections(&self, filter: &ConnectionFilter) -> Result<usize, Refusal> {
        let matcher = Matcher::new(filter, "flushing connections of")?;
        let switched = self.switching.reset(|c| matcher.fits_switched(c));
        let ended = self.end_connections(move |c: &Conn| {
            let (original, reply) = (c.tuple(Dir::Original), c.tuple(Dir::Reply));
            matcher.fits(original, reply, &state_name(c.state()))
        });
        Ok(ended + switched)
    }

    /// Ends the connections that `which` chooses; returns how many.
    pub(super) fn end_connections(
        &self,
        which: impl Fn(&Conn) -> bool + Clone + Send + 'static,
    ) -> usize {
        self.collect_fast();
        let mut ended = 0;
        let Some(worker) = self.workers.first() else {
            return 0;
        };
        let mut next = Some(Cursor::default());
        while let Some(from) = next {
            let which = which.clone();
            let part = worker.call(move |w| {
                let now = w.cx.now;
                let gateway = &mut w.stage.gateway;
                gateway.flush_connections(from, CHUNK, now, &mut |c: &Conn| which(c))
            });
            let Ok((n, then)) = part else { break };
            ended += n;
            next = then;
        }
        ended
    }

    /// How many connections there are, and counters.
    #[must_use]
    pub fn connection_count(&self) -> ConnectionCount {
        let Some(worker) = self.workers.first() else {
            return ConnectionCount::default();
        };
        let read = worker.call(|w| {
            let gateway = &w.stage.gateway;
            let conns = gateway.conntrack()?;
            let counters = conns.counters().clone();
            Some((
                conns.count(),
                conns.capacity(),
                counters,
                gateway.nat_stats(),
            ))
        });
        let Ok(Some((connections, max, c, (nat, mappings)))) = read else {
            return ConnectionCount::default();
        };
        let named = [
            ("found", c.found),
            ("new", c.new),
            ("confirmed", c.confirmed),
            ("invalid", c.invalid.iter().sum()),
            ("full", c.full),
            ("source_limited", c.source_limited),
            ("clashes", c.clashes),
            ("expired", c.expired),
            ("evicted", c.evicted.iter().sum()),
            ("reopened", c.reopened),
            ("flushed", c.flushed),
            ("nat_mappings_made", nat.made),
            ("nat_ports_preserved", nat.preserved),
            ("nat_exhausted", nat.exhausted),
            ("nat_host_limit", nat.host_limit),
            ("nat_pool_limit", nat.pool_limit),
        ];
        ConnectionCount {
            connections,
            max,
            mappings,
            counters: named.map(|(n, v)| (n.to_owned(), v)).into(),
        }
    }

    /// New and ended connections since the last call, as (what happened, connection).
    #[must_use]
    pub fn connection_events(&self) -> Vec<(String, ConnectionView)> {
        let Some(worker) = self.workers.first() else {
            return Vec::new();
        };
        let taken = worker.call(|w| w.stage.gateway.take_connection_events(EVENTS));
        let told = |e: &Event| match e {
            Event::New(r) => ("new".to_owned(), view(r)),
            Event::Ended(r, why) => (format!("{why:?}").to_lowercase(), view(r)),
        };
        taken.unwrap_or_default().iter().map(told).collect()
    }
}
