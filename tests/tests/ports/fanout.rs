//! Several workers on one interface: PACKET_FANOUT.

use crate::own_lab;
use crate::packet::open;
use std::collections::{HashMap, HashSet};
use vswitch_core::frame::Batch;
use vswitch_core::port::packet::{Fanout, PacketOptions, PacketPort, Receive};
use vswitch_core::port::{PortId, PortIo};
use vswitch_core::stats::Tally;
use vswitch_tests::{Mtu, wait_until};

/// UDP flows, and datagrams of each.
const FLOWS: usize = 64;
const EACH: u32 = 50;

/// Sends the datagrams, flow by flow in turn, each with the number it has in its flow.
const SENDER: &str = "\
import socket, struct
to = ('192.0.2.9', 7)
flows = []
for i in range(64):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(('192.0.2.1', 10000 + i))
    flows.append(s)
for n in range(50):
    for s in flows:
        s.sendto(struct.pack('!I', n), to)
";

/// A group of two as two workers would open it.
fn group(name: &str, receive: Receive, steered: bool) -> Vec<PacketPort> {
    let mut options = PacketOptions {
        promiscuous: true,
        fanout: Some(if steered {
            Fanout::NewSteered
        } else {
            Fanout::New
        }),
        receive,
    };
    let first = PacketPort::open_in_current_netns(name, options).expect("make a group");
    options.fanout = first.fanout().map(if steered {
        Fanout::JoinSteered
    } else {
        Fanout::Join
    });
    let second = PacketPort::open_in_current_netns(name, options).expect("join the group");
    assert_eq!(first.fanout(), second.fanout());
    vec![first, second]
}

/// Port of the flow and number of a datagram of ours.
fn read(frame: &[u8]) -> Option<(u16, u32)> {
    if frame.get(12..14) != Some(&[8, 0]) || frame.get(23) != Some(&17) {
        return None;
    }
    let flow = u16::from_be_bytes(*frame.get(34..36)?.first_chunk()?);
    Some((flow, u32::from_be_bytes(*frame.get(42..46)?.first_chunk()?)))
}

fn flows_stay_together(name: &str, receive: Receive, steered: bool) {
    let lab = own_lab!(name);
    let (host, a) = (lab.host("sw"), lab.container("a"));
    lab.link(&host, "v-a", &a, "eth0", Mtu(1500));
    a.addr("eth0", "192.0.2.1/24");
    a.ok(&[
        "ip",
        "neigh",
        "add",
        "192.0.2.9",
        "lladdr",
        "02:00:00:00:00:09",
        "dev",
        "eth0",
    ]);
    // Two groups, as two daemons in one namespace have them: neither takes frames of the other's.
    let groups = open(&host.netns_path(), move || {
        [(); 2].map(|()| group("v-a", receive, steered))
    });
    let numbers: HashSet<_> = groups.iter().map(|g| g[0].fanout()).collect();
    assert_eq!(numbers.len(), 2, "{numbers:?}");
    let _sender = a.spawn(&["python3", "-c", SENDER]);
    let mut members: Vec<Member> = groups.into_iter().flatten().map(Member::new).collect();
    if steered {
        // The first alone, until the second asks.
        wait_until("all datagrams by the first of each group", || {
            members.iter_mut().for_each(Member::drain);
            [&members[0], &members[2]]
                .iter()
                .all(|m| m.whole() == FLOWS)
        });
        assert!(members[1].next.is_empty() && members[3].next.is_empty());
        members.iter_mut().for_each(|m| m.next.clear());
        assert!(members[1].port.set_attached(true) && members[3].port.set_attached(true));
        a.ok(&["python3", "-c", SENDER]);
    }
    wait_until("all datagrams by each group", || {
        members.iter_mut().for_each(Member::drain);
        members
            .chunks(2)
            .all(|group| group.iter().map(Member::whole).sum::<usize>() == FLOWS)
    });
    for group in members.chunks(2) {
        let by: usize = group.iter().map(|m| m.next.len()).sum();
        assert_eq!(by, FLOWS, "a flow came by both members");
        assert!(
            group.iter().all(|m| !m.next.is_empty()),
            "one had nothing to do"
        );
    }
}

/// A port of a group, and the next number of each flow that came by it.
struct Member {
    port: PacketPort,
    next: HashMap<u16, u32>,
}

impl Member {
    fn new(port: PacketPort) -> Member {
        let next = HashMap::new();
        Member { port, next }
    }

    fn drain(&mut self) {
        let mut batch = Batch::new(PortId(0));
        let r = self.port.recv(&mut batch, &mut Tally::default());
        r.expect("the interface is up");
        for (flow, n) in batch.entries.iter().filter_map(|e| read(e.frame.head())) {
            let next = self.next.entry(flow).or_insert(0);
            assert_eq!(*next, n, "flow {flow} is out of order");
            *next += 1;
        }
    }

    /// Flows that came whole.
    fn whole(&self) -> usize {
        self.next.values().filter(|n| **n == EACH).count()
    }
}

#[test]
fn flows_stay_together_and_groups_apart() {
    flows_stay_together("fanout", Receive::Socket, false);
}

#[test]
fn flows_stay_together_and_groups_apart_by_the_ring() {
    flows_stay_together("fanout-ring", Receive::Ring { blocks: 64 }, false);
}

#[test]
fn a_second_member_that_asks_gets_its_part_of_the_flows() {
    flows_stay_together("fanout-steered", Receive::Socket, true);
}
