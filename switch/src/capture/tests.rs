//! Sessions at the ports of a real worker, over in-memory ports.

use super::*;
use crate::bridge::{Bridge, NetworkConfig, NetworkId, PortConfig};
use crate::frame::Offloads;
use crate::port::mem::{self, Mem};
use crate::port::{PortId, PortIo, TxQueue};
use crate::stats::PortCounters;
use crate::worker::{PortSetup, WorkerConfig, WorkerHandle, spawn};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

struct Rig {
    workers: Vec<WorkerHandle<Bridge>>,
    far: Vec<Mem>,
}

impl Rig {
    /// Two ports: 0 accepts anything, 1 as configured.
    fn new(mtu: u32, change: impl FnOnce(&mut PortConfig)) -> Rig {
        let config = WorkerConfig {
            workers: 1,
            shared: false,
            spin: Duration::ZERO,
            events: Arc::new(|_| {}),
        };
        let workers = spawn(&config, |_| Bridge::new()).expect("start a worker");
        let mut change = Some(change);
        let far = (0..2u16).map(|p| {
            let (near, far) = mem::pair(64, Offloads::NONE).expect("a pair");
            let mut port = PortConfig::new(NetworkId(0));
            port.loop_guard = false;
            if p == 1
                && let Some(change) = change.take()
            {
                change(&mut port);
            }
            let setup = PortSetup {
                io: Some(Box::new(near)),
                owner: 0,
                mtu,
                tx_limit: 8,
                admin_up: true,
                counters: Arc::new(PortCounters::default()),
            };
            let added = workers[0].call(move |w| {
                w.stage.set_network(NetworkId(0), NetworkConfig::default());
                w.stage.set_port(PortId(p), port);
                w.add_port(PortId(p), setup);
            });
            added.expect("worker answers");
            far
        });
        let far = far.collect();
        Rig { workers, far }
    }

    fn watch(&self, spec: Spec) -> (Arc<Session>, Vec<Arc<TapCounts>>) {
        let session = Arc::new(Session::new(spec, 5_000, Nanos(0), Box::new(|| {})));
        let counts: Vec<Arc<TapCounts>> = (0..2).map(|_| Arc::default()).collect();
        for (p, counts) in counts.iter().enumerate() {
            let tap = Tap {
                session: session.clone(),
                interface: p as u32 + 7,
                counts: counts.clone(),
            };
            let set = self.workers[0].call(move |w| w.set_taps(PortId(p as u16), &[tap]));
            set.expect("worker answers");
        }
        (session, counts)
    }

    fn send(&mut self, port: usize, bytes: &[u8]) {
        let mut q = TxQueue::new(1);
        q.push(crate::frame::Frame::from_bytes(bytes).expect("fits"));
        self.far[port].send(&mut q).expect("the pair is there");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for w in self.workers.drain(..) {
            w.stop();
        }
    }
}

fn spec(filter: &str, drops: Drops) -> Spec {
    Spec {
        filter: (!filter.is_empty()).then(|| filter.parse().expect("a filter")),
        ingress: true,
        egress: true,
        drops,
        snaplen: SNAPLEN,
    }
}

fn pop(session: &Session) -> Captured {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(copy) = session.pop() {
            return copy;
        }
        assert!(Instant::now() < end, "nothing was captured");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn broadcast(len: usize) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    f.resize(len, 9);
    f
}

#[test]
fn a_frame_is_seen_coming_and_leaving() {
    let mut rig = Rig::new(1500, |_| {});
    let (session, counts) = rig.watch(spec("ether proto 0x88b5", Drops::Include));
    rig.send(0, &broadcast(60));
    let (came, left) = (pop(&session), pop(&session));
    assert_eq!((came.interface, came.direction), (7, Direction::Ingress));
    assert_eq!((left.interface, left.direction), (8, Direction::Egress));
    for c in [&came, &left] {
        assert_eq!(
            (c.dropped, c.len, c.bytes()),
            (None, 60, &broadcast(60)[..])
        );
        assert!(
            c.time > 3_600_000_005_000,
            "the worker's time and the offset"
        );
    }
    let mut arp = broadcast(60);
    arp[12..14].copy_from_slice(&[8, 6]);
    rig.send(0, &arp);
    rig.send(0, &broadcast(61));
    assert_eq!(pop(&session).len, 61, "the filter holds the other one back");
    assert_eq!(counts[0].seen.load(Relaxed), 3);
    assert_eq!(counts[0].passed.load(Relaxed), 2);
}

#[test]
fn drops_are_seen_with_their_reason_on_either_side() {
    let mut rig = Rig::new(100, |_| {});
    let (session, _) = rig.watch(spec("", Drops::Only));
    let mut link_local = broadcast(60);
    link_local[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0]);
    rig.send(0, &link_local);
    let c = pop(&session);
    assert_eq!(
        (c.interface, c.direction, c.dropped),
        (7, Direction::Ingress, Some(DropReason::LinkLocal))
    );
    rig.send(0, &broadcast(200));
    let c = pop(&session);
    assert_eq!(
        (c.interface, c.direction, c.dropped),
        (8, Direction::Egress, Some(DropReason::Mtu))
    );
    assert_eq!(c.bytes(), broadcast(200));
}

#[test]
fn what_finds_no_room_is_lost_and_counted() {
    let mut rig = Rig::new(1500, |_| {});
    let mut only = spec("", Drops::Ignore);
    (only.egress, only.snaplen) = (false, 20);
    let (session, counts) = rig.watch(only);
    for n in 1..=2100 {
        rig.send(0, &broadcast(60));
        // In step, for the pair itself mustn't lose any.
        let end = Instant::now() + Duration::from_secs(10);
        while counts[0].seen.load(Relaxed) < n {
            assert!(Instant::now() < end, "frame {n} didn't come");
            std::thread::yield_now();
        }
    }
    let lost = counts[0].lost.load(Relaxed);
    let mut kept = 0;
    while let Some(copy) = session.pop() {
        assert_eq!((copy.bytes().len(), copy.len), (20, 60));
        session.recycle(copy);
        kept += 1;
    }
    assert_eq!((kept, lost), (2048, 52));
    rig.send(0, &broadcast(60));
    assert_eq!(pop(&session).len, 60, "room again");
}

#[test]
fn waiting_is_told_once() {
    let told = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = told.clone();
    let notify = Box::new(move || {
        count.fetch_add(1, Relaxed);
    });
    let session = Session::new(spec("", Drops::Ignore), 0, Nanos(0), notify);
    let copy = || Captured {
        interface: 0,
        time: 0,
        direction: Direction::Ingress,
        dropped: None,
        len: 0,
        vnet: VnetHdr::default(),
        bytes: Vec::new(),
    };
    assert!(session.push(copy()));
    assert!(session.wait(), "there is one");
    assert_eq!(told.load(Relaxed), 0);
    assert!(session.pop().is_some());
    assert!(!session.wait());
    assert!(session.push(copy()) && session.push(copy()));
    assert_eq!(told.load(Relaxed), 1);
}

#[test]
fn a_partial_checksum_is_finished() {
    // UDP 192.0.2.1:1 > 192.0.2.2:2, "abcd"; the field holds the sum of the pseudo header.
    let udp = [0, 1, 0, 2, 0, 12, 0, 0, b'a', b'b', b'c', b'd'];
    let pseudo = [192, 0, 2, 1, 192, 0, 2, 2, 0, 17, 0, 12];
    let mut bytes = vec![0; 34];
    bytes.extend(udp);
    let partial = csum::fold(csum::add(0, &pseudo));
    bytes[40..42].copy_from_slice(&partial.to_be_bytes());
    let vnet = VnetHdr {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    let mut copy = Captured {
        interface: 0,
        time: 0,
        direction: Direction::Ingress,
        dropped: None,
        len: bytes.len(),
        vnet,
        bytes: bytes.clone(),
    };
    copy.finish();
    let whole = csum::add(csum::add(0, &pseudo), &copy.bytes[34..]);
    assert_eq!(csum::finish(whole), 0, "a receiver finds it right");
    copy.finish();
    assert_eq!(
        csum::finish(csum::add(csum::add(0, &pseudo), &copy.bytes[34..])),
        0
    );
    (copy.bytes, copy.vnet) = (bytes[..40].to_vec(), vnet);
    copy.finish();
    assert_eq!(copy.bytes, bytes[..40], "cut short: left alone");
}
