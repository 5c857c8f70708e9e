//! What the host listens on at its loopback, and so is to be found at the container's (`--tcp-ns auto`, `--udp-ns auto`).
//!
//! Once a second the tables of the host's sockets are read. A port that has come is opened in the container, by the process that has stayed there; one
//! that has gone is closed. Ports of the host that are published for the container, which would lead it back to itself, are left out, and
//! so is what can't be opened, because the container listens there or may not.

use super::super::options::MOST_TO_HOST;
use super::super::ports::{Lead, Wanted};
use crate::integrations::opener::Opener;
use crate::listening;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use vswitch_core::sys::sock::Kind;

/// Ports of the host that lead to the container, of TCP, or (`true`) of UDP.
pub(in super::super) type Own = Box<dyn Fn(bool) -> BTreeSet<u16> + Send>;

/// What is followed, and what has come of it.
pub(in super::super) struct Followed {
    wanted: Vec<Wanted>,
    opener: Opener,
    own: Own,
    /// Places of those that are open.
    open: BTreeMap<Key, usize>,
}

/// Orders ports that lead.
type Key = (bool, std::net::SocketAddr, Option<String>);

fn key(lead: &Lead) -> Key {
    let interface = lead.from.on.map(|i| i.name().to_owned());
    (lead.from.kind == Kind::Udp, lead.from.at, interface)
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Followed").field(&self.wanted).finish()
    }
}

/// What there is to be done.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) gone: Vec<usize>,
    pub(super) new: Vec<Lead>,
}

/// The ports that are to be open, for what the host listens on.
fn leads(wanted: &[Wanted], host: impl Fn(bool) -> BTreeSet<(bool, u16)>, own: &Own) -> Vec<Lead> {
    let mut all = Vec::new();
    for w in wanted {
        let udp = w.kind == Kind::Udp;
        let ours = own(udp);
        let listens = host(udp).into_iter();
        let is_wanted = |n: u16| w.ports.iter().any(|(a, b)| (*a..=*b).contains(&n));
        let found = listens.filter(|(_, n)| is_wanted(*n) && !ours.contains(n));
        all.extend(found.filter_map(|(v4, n)| w.at.lead(w.kind, v4, n, n)));
    }
    all.truncate(MOST_TO_HOST);
    all
}

impl Followed {
    pub(in super::super) fn new(wanted: Vec<Wanted>, opener: Opener, own: Own) -> Followed {
        Followed {
            wanted,
            opener,
            own,
            open: BTreeMap::new(),
        }
    }

    /// Compares what is open with what the host listens on.
    pub(super) fn look(&mut self) -> Change {
        let all = leads(&self.wanted, listening::of_host, &self.own);
        let all: BTreeMap<Key, Lead> = all.into_iter().map(|l| (key(&l), l)).collect();
        let mut change = Change::default();
        self.open.retain(|key, place| {
            let stays = all.contains_key(key);
            if !stays {
                change.gone.push(*place);
            }
            stays
        });
        let new = all.into_iter().filter(|(k, _)| !self.open.contains_key(k));
        change.new = new.map(|(_, lead)| lead).collect();
        change
    }

    /// Opens a port in the container.
    pub(super) fn open(&mut self, lead: &Lead) -> io::Result<OwnedFd> {
        self.opener.open(&lead.from)
    }

    /// It is open, and has this place.
    pub(super) fn entered(&mut self, lead: Lead, place: usize) {
        self.open.insert(key(&lead), place);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::ports::At;
    use super::*;

    #[test]
    fn what_the_host_listens_on_leads_there_but_for_what_is_published() {
        let wanted = |ports| Wanted {
            kind: Kind::Tcp,
            at: At::default(),
            ports,
        };
        let host = |udp| match udp {
            true => BTreeSet::new(),
            false => BTreeSet::from([(true, 22), (true, 80), (false, 80), (true, 8080)]),
        };
        let own: Own = Box::new(|_| BTreeSet::from([8080]));
        let from = |ports| {
            let all = leads(&[wanted(ports)], host, &own).into_iter();
            all.map(|l| (l.from.at.to_string(), l.to.to_string()))
                .collect::<Vec<_>>()
        };
        let same = |at: &str| (at.to_owned(), at.to_owned());
        let all = [same("[::1]:80"), same("127.0.0.1:22"), same("127.0.0.1:80")];
        assert_eq!(from(vec![(1, 65_535)]), all);
        assert_eq!(from(vec![(23, 65_535)]), [all[0].clone(), all[2].clone()]);
    }
}
