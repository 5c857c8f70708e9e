//! DNS of a network: names of its containers, and a caching forwarder for the rest.
//!
//! # Theory of operation
//! [`Dns::query`] takes a client's message. What the [`Zone`] knows is answered from it, what was fetched lately from the cache, and
//! what is under way already has the client wait with the others. Only then a question goes out: the caller hands the
//! [`Upstream`] to a [`Forwarder`], and what comes back to [`Dns::respond`], which gives the answers for all who wait.
//! [`Dns::tick`] ends what never came back.
//!
//! Fetched messages stay the resolver's bytes, cleaned of its OPT record and cut off behind; for a client they get its id, its
//! spelling of the question, counted-down TTLs, and if they are longer than it takes, only the TC bit, so that it comes by TCP.
//!
//! Bounded are: queries per second of a port, questions under way in all and of a port, clients that wait for one, the cache. An
//! answer is never answered, a transfer refused, ANY answered as briefly as RFC 8482 allows. A loop through other servers back to
//! us finds the question under way and waits there, so it can't multiply.

mod cache;
mod exchange;
mod forwarder;
mod heard;
mod limit;
mod listener;
mod reply;
mod resolv;
mod socket;
mod tcp;
mod wire;
mod zone;

#[cfg(test)]
mod tests;

pub use cache::CacheStats;
pub use exchange::{Failure, Resolvers};
pub use forwarder::{Forwarder, ForwarderConfig, ForwarderError, Random, os_random};
pub use heard::{Resolved, resolved};
pub use listener::{Listener, MAX_CONNECTIONS, MAX_PER_PORT, Peer, TcpQuery};
pub use resolv::{ResolvConf, parse as parse_resolv_conf};
pub use tcp::{Framing, MAX_WAITING, TooMuch, frame};
pub use zone::{Host, RegisterError, Service, Zone, ZoneConfig};

use cache::{Cache, Key};
use hashbrown::HashMap;
use limit::Limits;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use wire::{Query, Question, Unreadable, flag, kind, rcode};
use zone::Found;

/// Port of DNS.
pub const PORT: u16 = 53;
/// Our UDP payload size: no fragments on any usual path.
pub const UDP_SIZE: u16 = 1232;
/// Where in an id the tag is.
const TAG_SHIFT: u32 = 48;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a connection, which the caller knows by a number.
    Tcp(u64),
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its port of the switch: what limits count by, as an address can be made up.
    pub port: u32,
    /// Where the answer goes.
    pub address: SocketAddr,
    /// How.
    pub transport: Transport,
}

/// Bounds of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tells the networks apart that share a forwarder: comes back in [`Response::tag`].
    pub tag: u16,
    /// Queries per second of a port; 0 doesn't limit.
    pub rate: u32,
    /// Queries of a port at once.
    pub burst: u32,
    /// Questions under way.
    pub max_in_flight: usize,
    /// Of one port.
    pub max_in_flight_per_port: usize,
    /// Clients that wait for one question.
    pub max_waiting: usize,
    /// When a question that the forwarder hasn't answered is given up.
    pub timeout: Duration,
    /// Answers kept.
    pub cache_entries: usize,
    /// Bytes they may take.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            tag: 0,
            rate: 2000,
            burst: 4000,
            max_in_flight: 512,
            max_in_flight_per_port: 128,
            max_waiting: 64,
            timeout: Duration::from_secs(15),
            cache_entries: 8192,
            cache_bytes: 4 << 20,
        }
    }
}

/// A question for the resolvers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Comes back in [`Response::id`].
    pub id: u64,
    /// Query message; the forwarder gives it an id.
    pub message: Vec<u8>,
}

/// What the forwarder got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Of the [`Upstream`].
    pub id: u64,
    /// A resolver's message, or why there is none.
    pub outcome: Result<Vec<u8>, Failure>,
}

impl Response {
    /// [`Config::tag`] of the service that asked.
    #[must_use]
    pub fn tag(&self) -> u16 {
        (self.id >> TAG_SHIFT) as u16
    }
}

/// What to do about a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send this to the client.
    Answer(Vec<u8>),
    /// Hand this to the forwarder; the client waits.
    Forward(Upstream),
    /// The question is under way; the client waits.
    Waiting,
    /// Say nothing.
    Drop,
}

/// Counts of what the service did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Queries that came.
    pub queries: u64,
    /// Answered from the zone.
    pub local: u64,
    /// Answered from the cache.
    pub cached: u64,
    /// Questions sent out.
    pub forwarded: u64,
    /// Queries that joined a question under way.
    pub joined: u64,
    /// Questions that got no answer.
    pub failed: u64,
    /// Queries above their port's rate.
    pub limited: u64,
    /// Queries refused because too much was under way.
    pub overload: u64,
    /// Messages that weren't queries we serve.
    pub invalid: u64,
}

#[derive(Debug)]
struct Pending {
    key: Key,
    port: u32,
    waiting: Vec<(Client, Query)>,
}

/// DNS service of one network.
#[derive(Debug)]
pub struct Dns {
    config: Config,
    zone: Zone,
    cache: Cache,
    limits: Limits,
    pending: HashMap<u64, Pending, foldhash::quality::RandomState>,
    under_way: HashMap<Key, u64, foldhash::quality::RandomState>,
    /// In order: the time-out is the same for all.
    deadlines: VecDeque<(Nanos, u64)>,
    next_id: u64,
    stats: Stats,
}

impl Dns {
    /// A service with an empty cache.
    #[must_use]
    pub fn new(config: Config, zone: Zone) -> Dns {
        Dns {
            cache: Cache::new(config.cache_entries, config.cache_bytes),
            limits: Limits::new(config.rate, config.burst, config.max_in_flight_per_port),
            next_id: u64::from(config.tag) << TAG_SHIFT,
            config,
            zone,
            pending: HashMap::default(),
            under_way: HashMap::default(),
            deadlines: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// The names.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// To register and unregister names.
    pub fn zone_mut(&mut self) -> &mut Zone {
        &mut self.zone
    }

    /// Serves a client's message.
    pub fn query(&mut self, client: Client, payload: &[u8], now: Nanos) -> Verdict {
        self.stats.queries += 1;
        if !self.limits.admit(client.port, now) {
            self.stats.limited += 1;
            return Verdict::Drop;
        }
        let query = match Query::read(payload) {
            Ok(query) => query,
            Err(why) => {
                self.stats.invalid += 1;
                return match why {
                    Unreadable::Silent => Verdict::Drop,
                    Unreadable::Code(code) => Verdict::Answer(reply::unreadable(payload, code)),
                };
            }
        };
        let tcp = client.transport != Transport::Udp;
        if let Some(code) = refusal(&query) {
            self.stats.invalid += 1;
            return Verdict::Answer(reply::code(&query, code, tcp));
        }
        match self.zone.look_up(client.port, &query.question) {
            Found::Elsewhere => self.look_elsewhere(client, query, now),
            found => {
                self.stats.local += 1;
                Verdict::Answer(reply::local(&query, found, &self.zone, tcp))
            }
        }
    }

    fn look_elsewhere(&mut self, client: Client, query: Query, now: Nanos) -> Verdict {
        let tcp = client.transport != Transport::Udp;
        if !query.has(flag::RD) {
            return Verdict::Answer(reply::code(&query, rcode::REFUSED, tcp));
        }
        if query.question.kind == kind::ANY {
            return Verdict::Answer(reply::any(&query, tcp));
        }
        let key = Key {
            question: query.question.clone(),
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.has(flag::CD),
        };
        if let Some(message) = self.cache.get(&key, now) {
            self.stats.cached += 1;
            return Verdict::Answer(reply::fetched(&query, message, tcp));
        }
        if let Some(id) = self.under_way.get(&key).copied()
            && let Some(pending) = self.pending.get_mut(&id)
        {
            let again = |(c, q): &(Client, Query)| *c == client && q.id == query.id;
            if !pending.waiting.iter().any(again) {
                if pending.waiting.len() >= self.config.max_waiting {
                    self.stats.overload += 1;
                    return Verdict::Answer(reply::code(&query, rcode::SERV_FAIL, tcp));
                }
                pending.waiting.push((client, query));
            }
            self.stats.joined += 1;
            return Verdict::Waiting;
        }
        if self.pending.len() >= self.config.max_in_flight || !self.limits.begin(client.port) {
            self.stats.overload += 1;
            return Verdict::Answer(reply::code(&query, rcode::SERV_FAIL, tcp));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.stats.forwarded += 1;
        let message = reply::upstream(&key);
        self.under_way.insert(key.clone(), id);
        let pending = Pending {
            key,
            port: client.port,
            waiting: vec![(client, query)],
        };
        self.pending.insert(id, pending);
        if self.deadlines.len() > 4 * self.config.max_in_flight {
            // Most of them have been answered long ago.
            self.deadlines
                .retain(|(_, id)| self.pending.contains_key(id));
        }
        self.deadlines
            .push_back((now.after(self.config.timeout), id));
        Verdict::Forward(Upstream { id, message })
    }

    /// Takes what the forwarder got (or that it took nothing); gives the answers to send.
    pub fn respond(&mut self, response: Response, now: Nanos) -> Vec<(Client, Vec<u8>)> {
        let Some(pending) = self.pending.remove(&response.id) else {
            return vec![];
        };
        self.under_way.remove(&pending.key);
        self.limits.end(pending.port);
        // What is to be blamed on us may be better the next time.
        let ours = matches!(response.outcome, Err(f) if f != Failure::Timeout);
        let fetched = response.outcome.ok();
        let message = fetched.and_then(|m| reply::clean(m, &pending.key.question));
        let message = message.unwrap_or_else(|| {
            self.stats.failed += 1;
            reply::failure(&pending.key.question)
        });
        if !ours && wire::u16_at(&message, 2).is_some_and(|f| f & flag::TC == 0) {
            self.cache.put(pending.key, &message, now);
        }
        let answers = pending.waiting.into_iter().map(|(client, query)| {
            let tcp = client.transport != Transport::Udp;
            (client, reply::fetched(&query, message.clone(), tcp))
        });
        answers.collect()
    }

    /// Gives up what is overdue; the answers to send.
    pub fn tick(&mut self, now: Nanos) -> Vec<(Client, Vec<u8>)> {
        let mut answers = vec![];
        while let Some((until, id)) = self.deadlines.front().copied() {
            if until > now && self.pending.contains_key(&id) {
                break;
            }
            self.deadlines.pop_front();
            let outcome = Err(Failure::Timeout);
            answers.extend(self.respond(Response { id, outcome }, now));
        }
        answers
    }

    /// When [`Dns::tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Nanos {
        self.deadlines.front().map_or(Nanos::MAX, |(t, _)| *t)
    }

    /// Forgets what was fetched, as when the resolvers change.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
    }

    /// Forgets what couldn't be fetched, as when the network has changed.
    pub fn forget_failures(&mut self) {
        self.cache.forget_failures();
    }

    /// What the service did.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What the cache holds.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Questions under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
}

/// The code for a query that isn't served at all.
fn refusal(query: &Query) -> Option<u16> {
    let Question { kind, class, .. } = query.question;
    if query.edns.is_some_and(|e| e.version > 0) {
        return Some(rcode::BAD_VERS);
    }
    match kind {
        0 | kind::OPT => Some(rcode::FORM_ERR),
        // Transfers and the mail kinds of long ago; TKEY and TSIG too.
        249..=kind::IXFR | 252 => Some(rcode::REFUSED),
        253 | kind::MAILA => Some(rcode::NOT_IMP),
        _ if class != kind::CLASS_IN => Some(rcode::REFUSED),
        _ => None,
    }
}
