//! Forwards by themselves: what is listened on in the container is published under the same port of the host, while it is listened on.
//!
//! The kernel's lists of sockets are read once a second, in the form of /proc/net/tcp (proc(5)). A port that the host doesn't give is left,
//! and tried again.

use super::ports;
use crate::api::{Shared, lock};
use crate::model::Protocol;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// How often the lists are read.
const EACH: Duration = Duration::from_secs(1);
/// Most ports.
const MOST: usize = 1024;
/// Clients' ports (ip_local_port_range of the kernel): an unconnected datagram socket there is a client's.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;
const STACK: usize = 256 << 10;

/// Which are followed, of which process's namespace, and where they lead.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) pid: i32,
    pub(super) tcp: bool,
    pub(super) udp: bool,
    pub(super) container: Vec<IpAddr>,
}

type Port = (Protocol, u16);

/// Local ports of the sockets that wait for anybody: state 0A of TCP, 07 of UDP; not those of loopback.
fn waiting(list: &str, protocol: Protocol) -> impl Iterator<Item = Port> {
    let state = if protocol == Protocol::Tcp {
        "0A"
    } else {
        "07"
    };
    list.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let is = words.nth(1)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let loopback = address.len() == 8 && address.ends_with("7F")
            || address == "00000000000000000000000001000000";
        let client = protocol == Protocol::Udp && EPHEMERAL.contains(&port);
        (is == state && port != 0 && !loopback && !client).then_some((protocol, port))
    })
}

fn name((protocol, port): Port) -> String {
    format!("auto-{}-{port}", protocol.number())
}

impl Following {
    /// Starts to follow, until the process is gone.
    pub(super) fn start(self, plane: Shared) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("ports".into());
        let followed = move || {
            let mut known = BTreeSet::new();
            while let Some(now) = self.look() {
                self.follow(&plane, &mut known, &now);
                std::thread::sleep(EACH);
            }
        };
        thread.stack_size(STACK).spawn(followed).map(drop)
    }

    fn look(&self) -> Option<BTreeSet<Port>> {
        let lists = [
            ("tcp", Protocol::Tcp, self.tcp),
            ("tcp6", Protocol::Tcp, self.tcp),
            ("udp", Protocol::Udp, self.udp),
            ("udp6", Protocol::Udp, self.udp),
        ];
        let mut all = BTreeSet::new();
        for (file, protocol, _) in lists.into_iter().filter(|l| l.2) {
            match std::fs::read_to_string(format!("/proc/{}/net/{file}", self.pid)) {
                Ok(list) => all.extend(waiting(&list, protocol)),
                // A kernel without IPv6 has no such lists.
                Err(_) if file.ends_with('6') => {}
                Err(_) => return None,
            }
        }
        Some(all.into_iter().take(MOST).collect())
    }

    fn follow(&self, plane: &Shared, known: &mut BTreeSet<Port>, now: &BTreeSet<Port>) {
        let gone: Vec<Port> = known.difference(now).copied().collect();
        for port in gone {
            let mut plane = lock(plane);
            let mut wanted = plane.desired().clone();
            wanted.publish.remove(&name(port));
            if plane.apply(wanted).is_ok() {
                known.remove(&port);
            }
        }
        let new: Vec<Port> = now.difference(known).copied().collect();
        for port in new {
            let mut plane = lock(plane);
            let mut wanted = plane.desired().clone();
            let published = ports::same(port.0, port.1, &self.container);
            wanted.publish.insert(name(port), published);
            match plane.apply(wanted) {
                Ok(_) => {
                    known.insert(port);
                }
                Err(e) => tracing::debug!("{e}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_wait_are_found() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n\
                    1: 0100007F:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n\
                    2: 0A000002:0052 0A000001:9999 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n\
                    garbage\n";
        let found: Vec<Port> = waiting(list, Protocol::Tcp).collect();
        assert_eq!(found, [(Protocol::Tcp, 80)]);
        let six = "h\n 0: 00000000000000000000000000000000:0035 0:0 07 0\n 1: 00000000000000000000000001000000:0036 0:0 07 0\n";
        let found: Vec<Port> = waiting(six, Protocol::Udp).collect();
        assert_eq!(found, [(Protocol::Udp, 53)]);
    }
}
