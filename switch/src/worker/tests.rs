//! Adding ports while several workers run.

use super::{PortSetup, WorkerConfig, WorkerHandle, hold_port, spawn, start_ports};
use crate::bridge::{Bridge, NetworkConfig, NetworkId, PortConfig};
use crate::frame::{DropReason, Frame, Offloads};
use crate::port::mem::{self, Mem};
use crate::port::{PortId, TxQueue};
use crate::stats::PortCounters;
use crate::wire::MacAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const NET: NetworkId = NetworkId(0);

struct Rig {
    workers: Vec<WorkerHandle<Bridge>>,
    counters: Vec<Arc<PortCounters>>,
}

fn mac(port: u16) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, port as u8])
}

/// A broadcast from the host at a port.
fn broadcast(port: u16) -> Frame {
    let bytes = [&[0xff; 6][..], &mac(port).0, &[0x88, 0xb5], &[0; 46]].concat();
    Frame::from_bytes(&bytes).expect("fits")
}

#[track_caller]
fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Rig {
    fn new() -> Rig {
        let config = WorkerConfig {
            workers: 2,
            shared: false,
            spin: Duration::ZERO,
            events: Arc::new(|_| {}),
        };
        let first = Bridge::new();
        let workers = spawn(&config, |_| {
            let mut bridge = first.sibling();
            bridge.set_network(NET, NetworkConfig::default());
            bridge
        });
        Rig {
            workers: workers.expect("two threads"),
            counters: vec![],
        }
    }

    /// Adds a port, which this worker has and whose queue holds these frames; the second worker is told later.
    fn add(&mut self, id: u16, owner: u16, frames: impl IntoIterator<Item = Frame>) -> Mem {
        let (near, far) = mem::pair(1 << 14, Offloads::NONE).expect("a pair");
        for frame in frames {
            far.push(frame).expect("room");
        }
        let mut near = Some(near);
        let counters: Vec<Arc<PortCounters>> = (0..2).map(|_| Arc::default()).collect();
        let setups = (0u16..).zip(&counters).map(|(i, mine)| {
            if i > 0 {
                std::thread::sleep(Duration::from_millis(100));
            }
            let io = near.take_if(|_| i == owner);
            PortSetup {
                io: io.map(|io| Box::new(io) as Box<dyn crate::port::PortIo>),
                owner,
                mtu: 1500,
                tx_limit: TxQueue::DEFAULT_LIMIT,
                admin_up: true,
                counters: mine.clone(),
            }
        });
        let mut config = PortConfig::new(NET);
        config.loop_guard = false;
        hold_port(&self.workers, PortId(id), setups, move |b| {
            b.set_port(PortId(id), config.clone());
        })
        .and_then(|()| start_ports(&self.workers, &[PortId(id)]))
        .expect("workers answer");
        self.counters.extend(counters);
        far
    }

    fn learned(&self, worker: usize, port: u16) -> Option<PortId> {
        let ask = move |w: &mut super::Worker<Bridge>| w.stage.fdb(NET)?.lookup(0, mac(port));
        self.workers[worker].call(ask).expect("worker answers")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for w in self.workers.drain(..) {
            w.stop();
        }
    }
}

#[test]
fn an_address_is_learned_by_all_workers_from_a_port_that_is_new() {
    let mut r = Rig::new();
    let _far = r.add(0, 0, [broadcast(0)]);
    for worker in 0..2 {
        wait_until("the address to be learned", || {
            r.learned(worker, 0) == Some(PortId(0))
        });
    }
}

#[test]
fn what_is_flooded_while_a_port_is_added_is_accounted_for() {
    let mut r = Rig::new();
    let (far, silent) = (r.add(0, 0, []), r.add(2, 0, []));
    let done = AtomicBool::new(false);
    let new = std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A full queue is a reason to wait, too.
                let _ = far.push(broadcast(0));
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let new = r.add(1, 1, []);
        done.store(true, Ordering::Relaxed);
        new
    });
    let ledger = || {
        let (mut took, mut gave) = (0, 0);
        for c in &r.counters {
            took += c.rx_frames.get() + c.copied.get() + c.originated.get();
            let drops: u64 = DropReason::ALL.iter().map(|d| c.dropped(*d)).sum();
            gave += c.tx_frames.get() + drops + c.held.get();
        }
        (took, gave)
    };
    let end = Instant::now() + Duration::from_secs(5);
    while ledger().0 != ledger().1 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (took, gave) = ledger();
    assert!(took > 100, "{took} frames are no load");
    assert_eq!(took, gave, "taken and accounted for");
    drop((silent, new));
}
