//! Neighbours: which MAC address an IP address has, by ARP (RFC 826) and ND (RFC 4861).
//!
//! # Theory of operation
//!
//! The first packet to an unknown address is held while the address is asked for: three times, a second apart; then what is held is
//! dropped, and the address counts as unreachable for a while, so that a scan of an empty subnet costs little. A known
//! address is used for [`REACHABLE`]; after that it is used on, but asked for again, and forgotten when it doesn't
//! answer (RFC 4861 7.3, without the delay state). Any word of the neighbour itself that reaches us confirms it.
//!
//! The table is bounded; when full, the entry unused for longest of a few looked at makes room.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;
use vswitch_core::wire::MacAddr;

/// Most neighbours.
const LIMIT: usize = 16_384;
/// Packets held per address; Linux' default of `unres_qlen` is far more, but a turn's burst fits.
pub(crate) const HELD: usize = 8;
/// How long an address counts as reachable (RFC 4861 10: REACHABLE_TIME).
const REACHABLE: Duration = Duration::from_secs(30);
/// Between two requests (RETRANS_TIMER).
const RETRANS: Duration = Duration::from_secs(1);
/// Requests (MAX_MULTICAST_SOLICIT).
const TRIES: u8 = 3;
/// How long an address that didn't answer isn't asked for again.
const UNREACHABLE: Duration = Duration::from_secs(3);
/// How long a back end's answer counts for its health.
const HEALTHY: Duration = Duration::from_secs(2);
/// Entries looked at for the one to evict.
const LOOKED_AT: usize = 8;

type Key = (NetworkId, IpAddr);

#[derive(Debug)]
enum State {
    /// Asked for, with what waits.
    Incomplete(Vec<Frame>),
    /// Known. `tries` requests were sent since it went stale.
    Known(MacAddr),
    /// Didn't answer.
    Unreachable,
}

#[derive(Debug)]
struct Neighbour {
    state: State,
    /// When it goes stale, is asked for again, or may be asked for again.
    due: Nanos,
    tries: u8,
    used: Nanos,
}

/// What is known of an address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// Its MAC address; `ask` says that a request is due as well.
    Known { mac: MacAddr, ask: bool },
    /// Asked for: hold the frame. `ask` says that a request is to be sent now.
    Pending { ask: bool },
    /// It doesn't answer.
    Unreachable,
}

/// What is known of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// It answers, or nothing else is known.
    pub(crate) alive: bool,
    /// A request is due.
    pub(crate) ask: bool,
    /// Its MAC address.
    pub(crate) mac: Option<MacAddr>,
}

/// Something a tick wants done.
#[derive(Debug)]
pub(crate) enum Due {
    /// Ask for the address again; its MAC if it is known and to be asked itself.
    Ask(NetworkId, IpAddr, Option<MacAddr>),
    /// It doesn't answer: these frames can't be sent.
    Failed(NetworkId, Vec<Frame>),
}

/// The table of neighbours.
#[derive(Debug)]
pub(crate) struct Neighbours {
    table: HashMap<Key, Neighbour, RandomState>,
    /// Entries that a tick has something to do for.
    waiting: Vec<Key>,
}

impl Default for Neighbours {
    fn default() -> Self {
        Neighbours {
            table: HashMap::with_hasher(RandomState::default()),
            waiting: Vec::new(),
        }
    }
}

impl Neighbours {
    /// Looks an address up to send to it.
    pub(crate) fn resolve(&mut self, now: Nanos, network: NetworkId, ip: IpAddr) -> Resolved {
        let key = (network, ip);
        if let Some(n) = self.table.get_mut(&key) {
            n.used = now;
            return match &n.state {
                State::Known(mac) => {
                    let mac = *mac;
                    let ask = now >= n.due && n.tries == 0;
                    if ask {
                        n.tries = 1;
                        n.due = now.after(RETRANS);
                        self.waiting.push(key);
                    }
                    Resolved::Known { mac, ask }
                }
                State::Incomplete(_) => Resolved::Pending { ask: false },
                State::Unreachable if now < n.due => Resolved::Unreachable,
                State::Unreachable => {
                    n.state = State::Incomplete(Vec::new());
                    n.tries = 1;
                    n.due = now.after(RETRANS);
                    self.waiting.push(key);
                    Resolved::Pending { ask: true }
                }
            };
        }
        self.make_room();
        self.table.insert(
            key,
            Neighbour {
                state: State::Incomplete(Vec::new()),
                due: now.after(RETRANS),
                tries: 1,
                used: now,
            },
        );
        self.waiting.push(key);
        Resolved::Pending { ask: true }
    }

    /// What [`Neighbours::resolve`] would tell. Changes nothing.
    pub(crate) fn peek(&self, now: Nanos, network: NetworkId, ip: IpAddr) -> Resolved {
        let Some(n) = self.table.get(&(network, ip)) else {
            return Resolved::Pending { ask: true };
        };
        match &n.state {
            State::Known(mac) => Resolved::Known {
                mac: *mac,
                ask: now >= n.due && n.tries == 0,
            },
            State::Incomplete(_) => Resolved::Pending { ask: false },
            State::Unreachable if now < n.due => Resolved::Unreachable,
            State::Unreachable => Resolved::Pending { ask: true },
        }
    }

    /// Whether a back end counts as alive. Changes nothing.
    pub(crate) fn is_alive(&self, network: NetworkId, ip: IpAddr) -> bool {
        let known = self.table.get(&(network, ip));
        known.is_none_or(|n| !matches!(n.state, State::Unreachable))
    }

    /// The MAC of an address, if it is known.
    pub(crate) fn mac_of(&self, network: NetworkId, ip: IpAddr) -> Option<MacAddr> {
        match self.table.get(&(network, ip))?.state {
            State::Known(mac) => Some(mac),
            _ => None,
        }
    }

    /// Keeps a frame until the address is known; gives it back when too many wait.
    pub(crate) fn hold(
        &mut self,
        network: NetworkId,
        ip: IpAddr,
        frame: Frame,
    ) -> Result<(), Frame> {
        match self.table.get_mut(&(network, ip)) {
            Some(Neighbour {
                state: State::Incomplete(held),
                ..
            }) if held.len() < HELD => {
                held.push(frame);
                Ok(())
            }
            _ => Err(frame),
        }
    }

    /// The neighbour said that it has the address. Returns what waited for it. `learn` enters it even if nobody asked.
    pub(crate) fn heard(
        &mut self,
        now: Nanos,
        network: NetworkId,
        ip: IpAddr,
        mac: MacAddr,
        learn: bool,
    ) -> Vec<Frame> {
        let key = (network, ip);
        if let Some(n) = self.table.get_mut(&key) {
            n.due = now.after(REACHABLE);
            n.tries = 0;
            return match std::mem::replace(&mut n.state, State::Known(mac)) {
                State::Incomplete(held) => held,
                _ => Vec::new(),
            };
        }
        if learn {
            self.make_room();
            self.table.insert(
                key,
                Neighbour {
                    state: State::Known(mac),
                    due: now.after(REACHABLE),
                    tries: 0,
                    used: now,
                },
            );
        }
        Vec::new()
    }

    fn make_room(&mut self) {
        if self.table.len() < LIMIT {
            return;
        }
        let oldest = self
            .table
            .iter()
            .filter(|(_, n)| !matches!(n.state, State::Incomplete(_)))
            .take(LOOKED_AT)
            .min_by_key(|(_, n)| n.used)
            .map(|(k, _)| *k);
        // With nothing but requests under way, one of them must go; its frames are few and lost.
        let victim = oldest.or_else(|| self.table.keys().next().copied());
        if let Some(key) = victim {
            self.table.remove(&key);
        }
    }

    /// Whether the address answers, as far as is known; one that did is asked again when that is a while ago, and one that didn't
    /// every few seconds.
    pub(crate) fn health(&mut self, now: Nanos, network: NetworkId, ip: IpAddr) -> Health {
        let key = (network, ip);
        let Some(n) = self.table.get_mut(&key) else {
            let ask = matches!(
                self.resolve(now, network, ip),
                Resolved::Pending { ask: true }
            );
            return Health {
                alive: true,
                ask,
                mac: None,
            };
        };
        match n.state {
            State::Known(mac) => {
                let confirmed = n.due.since(now) > REACHABLE - HEALTHY;
                let ask = !confirmed && n.tries == 0;
                if ask {
                    n.tries = 1;
                    n.due = now.after(RETRANS);
                    self.waiting.push(key);
                }
                Health {
                    alive: true,
                    ask,
                    mac: Some(mac),
                }
            }
            State::Incomplete(_) => Health {
                alive: true,
                ask: false,
                mac: None,
            },
            State::Unreachable => {
                let ask = now >= n.due;
                if ask {
                    n.due = now.after(UNREACHABLE);
                }
                Health {
                    alive: false,
                    ask,
                    mac: None,
                }
            }
        }
    }

    /// Requests to repeat and addresses to give up; returns when to be called again.
    pub(crate) fn tick(&mut self, now: Nanos, due: &mut Vec<Due>) -> Nanos {
        let mut next = Nanos::MAX;
        let table = &mut self.table;
        self.waiting.retain(|key| {
            let Some(n) = table.get_mut(key) else {
                return false;
            };
            if n.tries == 0 {
                return false;
            }
            if now < n.due {
                next = next.min(n.due);
                return true;
            }
            let mac = match &n.state {
                State::Known(mac) => Some(*mac),
                _ => None,
            };
            if n.tries < TRIES {
                n.tries += 1;
                n.due = now.after(RETRANS);
                next = next.min(n.due);
                due.push(Due::Ask(key.0, key.1, mac));
                return true;
            }
            n.tries = 0;
            n.due = now.after(UNREACHABLE);
            if let State::Incomplete(held) = std::mem::replace(&mut n.state, State::Unreachable) {
                due.push(Due::Failed(key.0, held));
            }
            false
        });
        next
    }

    /// Forgets everything of a network, or of all; returns the frames that waited.
    pub(crate) fn forget(&mut self, network: Option<NetworkId>) -> Vec<Frame> {
        let mut held = Vec::new();
        self.table.retain(|(n, _), neighbour| {
            let stays = network.is_some_and(|gone| gone != *n);
            if !stays && let State::Incomplete(frames) = &mut neighbour.state {
                held.append(frames);
            }
            stays
        });
        held
    }

    /// Forgets the addresses of a network whose MAC is `at` where nobody is any more: the next packet asks for them, and who has
    /// taken their place is found at once.
    pub(crate) fn forget_at(&mut self, network: NetworkId, at: impl Fn(MacAddr) -> bool) {
        self.table.retain(|(of, _), n| {
            *of != network || !matches!(n.state, State::Known(mac) if at(mac))
        });
    }

    /// All known addresses: network, address, MAC, seconds until it goes stale.
    pub(crate) fn entries(
        &self,
        now: Nanos,
    ) -> impl Iterator<Item = (NetworkId, IpAddr, Option<MacAddr>, u64)> + '_ {
        self.table.iter().map(move |((network, ip), n)| {
            let mac = match n.state {
                State::Known(mac) => Some(mac),
                _ => None,
            };
            (*network, *ip, mac, n.due.since(now).as_secs())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId(1);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn at(secs: u64) -> Nanos {
        Nanos(secs * 1_000_000_000)
    }

    fn tick(n: &mut Neighbours, now: Nanos) -> (Vec<Due>, Nanos) {
        let mut due = Vec::new();
        let next = n.tick(now, &mut due);
        (due, next)
    }

    #[test]
    fn frames_wait_for_the_answer() {
        let mut n = Neighbours::default();
        assert_eq!(
            n.resolve(at(0), NET, ip(1)),
            Resolved::Pending { ask: true }
        );
        assert!(n.hold(NET, ip(1), Frame::new()).is_ok());
        assert_eq!(
            n.resolve(at(0), NET, ip(1)),
            Resolved::Pending { ask: false }
        );
        for _ in 1..HELD {
            assert!(n.hold(NET, ip(1), Frame::new()).is_ok());
        }
        assert!(n.hold(NET, ip(1), Frame::new()).is_err());
        assert_eq!(n.heard(at(0), NET, ip(1), MAC, false).len(), HELD);
        assert_eq!(
            n.resolve(at(1), NET, ip(1)),
            Resolved::Known {
                mac: MAC,
                ask: false
            }
        );
        assert!(n.heard(at(0), NET, ip(2), MAC, false).is_empty());
        let pending = Resolved::Pending { ask: true };
        assert_eq!(n.resolve(at(1), NET, ip(2)), pending, "nobody asked");
    }

    #[test]
    fn silence_ends_in_unreachable_and_is_asked_again_later() {
        let mut n = Neighbours::default();
        n.resolve(at(0), NET, ip(1));
        n.hold(NET, ip(1), Frame::new()).expect("held");
        let mut now = at(0);
        for _ in 1..TRIES {
            let (due, next) = tick(&mut n, now);
            assert!(due.is_empty());
            now = next;
            let (due, _) = tick(&mut n, now);
            assert!(matches!(due[..], [Due::Ask(NET, _, None)]));
        }
        let (_, next) = tick(&mut n, now);
        let (due, next) = tick(&mut n, next);
        assert!(matches!(&due[..], [Due::Failed(NET, held)] if held.len() == 1));
        assert_eq!(next, Nanos::MAX);
        assert_eq!(n.peek(at(4), NET, ip(1)), Resolved::Unreachable);
        assert_eq!(n.resolve(at(4), NET, ip(1)), Resolved::Unreachable);
        assert_eq!(n.peek(at(9), NET, ip(1)), Resolved::Pending { ask: true });
        assert_eq!(
            n.resolve(at(9), NET, ip(1)),
            Resolved::Pending { ask: true }
        );
    }

    #[test]
    fn a_stale_address_is_used_on_while_it_is_asked_for() {
        let mut n = Neighbours::default();
        n.heard(at(0), NET, ip(1), MAC, true);
        let known = |ask| Resolved::Known { mac: MAC, ask };
        assert_eq!(n.resolve(at(29), NET, ip(1)), known(false));
        for _ in 0..2 {
            assert_eq!(
                n.peek(at(31), NET, ip(1)),
                known(true),
                "it changes nothing"
            );
        }
        assert_eq!(n.resolve(at(31), NET, ip(1)), known(true));
        assert_eq!(n.resolve(at(31), NET, ip(1)), known(false));
        let (due, _) = tick(&mut n, at(32));
        assert!(matches!(due[..], [Due::Ask(NET, _, Some(MAC))]));
        n.heard(at(32), NET, ip(1), MAC, false);
        assert_eq!(tick(&mut n, at(33)).1, Nanos::MAX);
        assert_eq!(n.resolve(at(33), NET, ip(1)), known(false));
        n.resolve(at(70), NET, ip(1));
        for s in 71..74 {
            tick(&mut n, at(s));
        }
        assert_eq!(n.resolve(at(74), NET, ip(1)), Resolved::Unreachable);
    }

    #[test]
    fn a_back_end_that_falls_silent_is_found_out_within_seconds() {
        let mut n = Neighbours::default();
        n.heard(at(0), NET, ip(1), MAC, true);
        let health = |n: &mut Neighbours, s| {
            let h = n.health(at(s), NET, ip(1));
            (h.alive, h.ask)
        };
        assert_eq!(health(&mut n, 1), (true, false));
        assert_eq!(health(&mut n, 3), (true, true));
        for s in 4..7 {
            tick(&mut n, at(s));
        }
        assert_eq!(health(&mut n, 7), (false, false));
        assert_eq!(health(&mut n, 10), (false, true));
        assert_eq!(health(&mut n, 10), (false, false));
        n.heard(at(10), NET, ip(1), MAC, false);
        assert_eq!(health(&mut n, 11), (true, false));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut n = Neighbours::default();
        for i in 0..(LIMIT as u32 + 100) {
            let ip = IpAddr::from((0x0a00_0000 + i).to_be_bytes());
            n.heard(at(0), NET, ip, MAC, true);
        }
        assert_eq!(n.table.len(), LIMIT);
    }
}
