//! IGMP and MLD snooping of one network (RFC 4541).
//!
//! # Theory of operation
//!
//! Reports enter memberships (VLAN, group, port) that end when they aren't renewed; queries and PIM hellos enter router ports. Then
//! - reports and leaves go to router ports only (2.1.1 1); queries and everything else of the control protocols go to all;
//! - 224.0.0.0/24 and ff02::1 go to all, always (2.1.2 2, 3);
//! - any other group goes to its members and the router ports, an unknown one to router ports only (2.1.2 3);
//! - but as long as nobody queries, memberships can't be trusted and all of it is flooded.
//!
//! A leave ends the membership after the time a router gives the other hosts to object, or at once with `fast_leave`.
//! The table is bounded: when full, a port that holds more than its share gets no more, and one that holds less takes a place of the
//! port that holds most.

mod message;
mod query;

use crate::frame::Frame;
use crate::port::PortId;
use crate::wire::Meta;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use message::{Change, Kind};
use std::net::IpAddr;

pub(super) use query::{general as general_query, specific as group_query};

/// Time the members that are left have to answer a group-specific query: last member query time, 2 s (RFC 3376 8.8), and one for
/// whole-second clocks.
const LEAVE_SECS: u32 = 3;
/// Most router ports: (VLAN, family, port).
const MAX_ROUTERS: usize = 256;

/// Where a multicast frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To all ports.
    Flood,
    /// To the members of the group and the router ports.
    Group(IpAddr),
    /// To the router ports of the family.
    Routers {
        /// IPv6.
        v6: bool,
    },
    /// Nowhere: the message contradicts itself.
    Malformed,
}

/// News of a membership or router, for other workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Group {
        group: IpAddr,
        until: u32,
    },
    Router {
        v6: bool,
        until: u32,
        querier: bool,
    },
    /// A member has left; we are the querier and ask who is still there.
    Ask(IpAddr),
    /// The table is full.
    Full,
}

/// One membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MdbEntry {
    /// VLAN.
    pub vid: u16,
    /// The group; `None` for a router port.
    pub group: Option<IpAddr>,
    /// IPv6 (MLD) or IPv4 (IGMP).
    pub v6: bool,
    /// Port.
    pub port: PortId,
    /// Seconds until it ends if it isn't renewed.
    pub remaining: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    port: PortId,
    until: u32,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    vid: u16,
    v6: bool,
    port: PortId,
    until: u32,
    querier: bool,
}

/// Memberships and router ports of a network.
#[derive(Debug, Default)]
pub(super) struct Snoop {
    groups: HashMap<(u16, IpAddr), Vec<Member>, RandomState>,
    memberships: usize,
    /// Memberships by port index.
    held: Vec<u32>,
    routers: Vec<Router>,
}

/// What a network's configuration says of snooping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Seconds a membership or router port lasts.
    pub(super) membership: u32,
    pub(super) fast_leave: bool,
    pub(super) querier: bool,
    pub(super) limit: usize,
}

impl Snoop {
    /// Reads a multicast frame received by `port` and says where it goes. `news` gets what changed.
    pub(super) fn hear(
        &mut self,
        frame: &Frame,
        m: &Meta,
        port: PortId,
        now: u32,
        rules: &Rules,
        news: &mut dyn FnMut(News),
    ) -> Way {
        let Some(to) = message::destination(frame.head(), m).filter(IpAddr::is_multicast) else {
            return Way::Flood;
        };
        let (v6, vid) = (to.is_ipv6(), m.vid);
        let read = message::read(frame, m, &mut |group, change| {
            self.change((vid, group), port, change, now, rules, news);
        });
        let until = now.saturating_add(rules.membership);
        let querier = match read {
            Ok(Kind::Query { from_router: true }) => Some(true),
            Ok(Kind::RouterHello) => Some(false),
            _ => None,
        };
        if let Some(querier) = querier {
            self.router(vid, v6, port, until, querier);
            news(News::Router { v6, until, querier });
        }
        self.leads(read.ok(), to, vid, rules)
    }

    /// What [`Snoop::hear`] would say of a frame. Changes nothing.
    pub(super) fn way(&self, frame: &Frame, m: &Meta, rules: &Rules) -> Way {
        let Some(to) = message::destination(frame.head(), m).filter(IpAddr::is_multicast) else {
            return Way::Flood;
        };
        let read = message::read(frame, m, &mut |_, _| {});
        self.leads(read.ok(), to, m.vid, rules)
    }

    fn leads(&self, read: Option<Kind>, to: IpAddr, vid: u16, rules: &Rules) -> Way {
        let v6 = to.is_ipv6();
        match read {
            None => return Way::Malformed,
            Some(Kind::Report) if self.is_active(vid, v6, rules) => return Way::Routers { v6 },
            Some(Kind::Query { .. } | Kind::RouterHello) => return Way::Flood,
            Some(Kind::Report | Kind::Other) => {}
        }
        if is_local(to) || !self.is_active(vid, v6, rules) {
            Way::Flood
        } else {
            Way::Group(to)
        }
    }

    /// Whether somebody asks for memberships, so that they are known.
    fn is_active(&self, vid: u16, v6: bool, rules: &Rules) -> bool {
        rules.querier
            || self
                .routers
                .iter()
                .any(|r| r.querier && r.vid == vid && r.v6 == v6)
    }

    /// Member ports of a group and router ports, each once.
    pub(super) fn ports_of(
        &self,
        vid: u16,
        group: Option<IpAddr>,
        v6: bool,
    ) -> impl Iterator<Item = PortId> + '_ {
        let members = group
            .and_then(|g| self.groups.get(&(vid, g)))
            .map_or(&[][..], Vec::as_slice);
        let routers = self
            .routers
            .iter()
            .filter(move |r| r.vid == vid && r.v6 == v6)
            .map(|r| r.port)
            .filter(move |p| !members.iter().any(|m| m.port == *p));
        members.iter().map(|m| m.port).chain(routers)
    }

    fn change(
        &mut self,
        key: (u16, IpAddr),
        port: PortId,
        change: Change,
        now: u32,
        rules: &Rules,
        news: &mut dyn FnMut(News),
    ) {
        // Everybody gets these anyway.
        if is_local(key.1) {
            return;
        }
        let until = match change {
            Change::Join => now.saturating_add(rules.membership),
            Change::Leave if rules.fast_leave => now,
            Change::Leave => {
                let members = self.groups.get(&key).map_or(&[][..], Vec::as_slice);
                let Some(was) = members.iter().find(|m| m.port == port) else {
                    return;
                };
                if rules.querier {
                    news(News::Ask(key.1));
                }
                was.until.min(now.saturating_add(LEAVE_SECS))
            }
        };
        news(if self.set(key, port, until, now, rules.limit) {
            News::Group {
                group: key.1,
                until,
            }
        } else {
            News::Full
        });
    }

    /// Enters, renews or (if `until` isn't in the future) ends a membership. False if the table is full.
    pub(super) fn set(
        &mut self,
        key: (u16, IpAddr),
        port: PortId,
        until: u32,
        now: u32,
        limit: usize,
    ) -> bool {
        if let Some(m) = self
            .groups
            .get_mut(&key)
            .and_then(|g| g.iter_mut().find(|m| m.port == port))
        {
            m.until = until;
            if until <= now {
                self.remove_from(key, |m| m.port == port);
            }
            return true;
        }
        if until <= now {
            return true;
        }
        if self.memberships >= limit && !self.make_room(port, limit) {
            return false;
        }
        self.groups
            .entry(key)
            .or_default()
            .push(Member { port, until });
        self.memberships += 1;
        if self.held.len() <= port.index() {
            self.held.resize(port.index() + 1, 0);
        }
        self.held[port.index()] += 1;
        true
    }

    /// Takes a place from the port that holds most, unless that is (nearly) the port that asks.
    fn make_room(&mut self, port: PortId, limit: usize) -> bool {
        let ours = self.held.get(port.index()).copied().unwrap_or(0);
        let Some((most, n)) = self.held.iter().enumerate().max_by_key(|(_, n)| **n) else {
            return false;
        };
        if limit == 0 || *n <= ours + 1 {
            return false;
        }
        let most = PortId(most as u16);
        let victim = self
            .groups
            .iter()
            .find(|(_, g)| g.iter().any(|m| m.port == most))
            .map(|(k, _)| *k);
        victim.is_some_and(|k| self.remove_from(k, |m| m.port == most) > 0)
    }

    fn remove_from(&mut self, key: (u16, IpAddr), which: impl Fn(&Member) -> bool) -> usize {
        let Some(group) = self.groups.get_mut(&key) else {
            return 0;
        };
        let before = group.len();
        for m in group.extract_if(.., |m| which(m)) {
            release(&mut self.held, m.port);
        }
        let gone = before - group.len();
        self.memberships -= gone;
        if group.is_empty() {
            self.groups.remove(&key);
        }
        gone
    }

    /// Enters or renews a router port.
    pub(super) fn router(&mut self, vid: u16, v6: bool, port: PortId, until: u32, querier: bool) {
        if let Some(r) = self
            .routers
            .iter_mut()
            .find(|r| r.vid == vid && r.v6 == v6 && r.port == port)
        {
            r.until = r.until.max(until);
            r.querier |= querier;
        } else if self.routers.len() < MAX_ROUTERS {
            self.routers.push(Router {
                vid,
                v6,
                port,
                until,
                querier,
            });
        }
    }

    /// VLANs with members, not each once.
    pub(super) fn vids(&self) -> impl Iterator<Item = u16> + '_ {
        self.groups.keys().map(|(vid, _)| *vid)
    }

    /// Forgets what has ended; returns the second at which the next thing ends.
    pub(super) fn expire(&mut self, now: u32) -> u32 {
        self.remove_if(|m| m.until <= now);
        self.routers.retain(|r| r.until > now);
        let members = self.groups.values().flatten().map(|m| m.until);
        let routers = self.routers.iter().map(|r| r.until);
        members.chain(routers).min().unwrap_or(u32::MAX)
    }

    /// Forgets a port.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.remove_if(|m| m.port == port);
        self.routers.retain(|r| r.port != port);
    }

    fn remove_if(&mut self, which: impl Fn(&Member) -> bool) {
        let (held, memberships) = (&mut self.held, &mut self.memberships);
        self.groups.retain(|_, g| {
            g.retain(|m| {
                let goes = which(m);
                if goes {
                    release(held, m.port);
                    *memberships -= 1;
                }
                !goes
            });
            !g.is_empty()
        });
    }

    /// Memberships and router ports; at most the configured limit and some router ports.
    pub(super) fn entries(&self, now: u32) -> Vec<MdbEntry> {
        let members = self.groups.iter().flat_map(|((vid, group), members)| {
            members.iter().map(|m| MdbEntry {
                vid: *vid,
                group: Some(*group),
                v6: group.is_ipv6(),
                port: m.port,
                remaining: m.until.saturating_sub(now),
            })
        });
        let routers = self.routers.iter().map(|r| MdbEntry {
            vid: r.vid,
            group: None,
            v6: r.v6,
            port: r.port,
            remaining: r.until.saturating_sub(now),
        });
        members.chain(routers).collect()
    }
}

fn release(held: &mut [u32], port: PortId) {
    if let Some(n) = held.get_mut(port.index()) {
        *n = n.saturating_sub(1);
    }
}

/// Groups that are always flooded: 224.0.0.0/24, and ff02::1 with everything of a smaller scope.
fn is_local(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(a) => matches!(a.octets(), [224, 0, 0, _]),
        IpAddr::V6(a) => {
            let [first, second, ..] = a.octets();
            first == 0xff && (second & 0x0f) < 2
                || a == std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
        }
    }
}
