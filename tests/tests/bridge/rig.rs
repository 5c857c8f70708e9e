//! A switch in this process: workers with a bridge, and TAP ports in containers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use vswitch_core::bridge::{Bridge, NetworkConfig, NetworkId, PortConfig};
use vswitch_core::frame::{DropReason, Offloads};
use vswitch_core::port::tap::Tap;
use vswitch_core::port::{PortId, PortIo, TxQueue};
use vswitch_core::stats::PortCounters;
use vswitch_core::worker::{
    Event, PortSetup, WorkerConfig, WorkerHandle, hold_port, spawn, start_ports,
};
use vswitch_tests::{Node, wait_until};

pub(crate) const NET: NetworkId = NetworkId(0);

pub(crate) struct Switch {
    workers: Vec<WorkerHandle<Bridge>>,
    events: Arc<Mutex<Vec<Event>>>,
    /// By port, then by worker.
    counters: Vec<Vec<Arc<PortCounters>>>,
}

/// A lab with TAP devices that this process can open, or the test is skipped with the reason.
#[macro_export]
macro_rules! own_lab {
    ($name:expr) => {{
        let lab = vswitch_tests::tap_lab!($name);
        if lab.is_rootless() {
            vswitch_tests::skip!(
                "this process has to enter the lab's namespaces, which takes root"
            );
        }
        lab
    }};
}

impl Switch {
    pub(crate) fn new(workers: u16, network: NetworkConfig) -> Switch {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let config = WorkerConfig {
            workers,
            shared: false,
            spin: Duration::ZERO,
            events: Arc::new(move |e| {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(e);
            }),
        };
        let first = Bridge::new();
        let workers = spawn(&config, |_| first.sibling()).expect("start the workers");
        let switch = Switch {
            workers,
            events,
            counters: Vec::new(),
        };
        switch.network(NET, network);
        switch
    }

    /// Has every worker run a command.
    pub(crate) fn each(&self, f: impl Fn(&mut Bridge) + Clone + Send + 'static) {
        for w in &self.workers {
            let f = f.clone();
            w.call(move |w| f(&mut w.stage)).expect("worker answers");
        }
    }

    /// Asks the first worker.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Bridge) -> R + Send + 'static,
    ) -> R {
        self.workers[0]
            .call(move |w| f(&mut w.stage))
            .expect("worker answers")
    }

    pub(crate) fn network(&self, id: NetworkId, config: NetworkConfig) {
        self.each(move |b| b.set_network(id, config.clone()));
    }

    /// Makes a TAP in a container, with addresses, and serves it.
    #[track_caller]
    pub(crate) fn tap(
        &mut self,
        node: &Node,
        name: &str,
        addresses: &[&str],
        change: impl FnOnce(&mut PortConfig),
    ) -> PortId {
        let (path, device) = (node.netns_path(), name.to_owned());
        let opened = std::thread::spawn(move || {
            let ns = std::fs::File::open(path).expect("open the network namespace");
            setns(ns, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
            Tap::open(&device, false, Offloads::ALL).expect("open a TAP device")
        });
        let tap = opened.join().expect("the thread that opens the TAP");
        node.ok(&["ip", "link", "set", name, "up"]);
        for a in addresses {
            node.addr(name, a);
        }
        self.add(Box::new(tap), change)
    }

    /// Serves a port by the worker whose turn it is.
    pub(crate) fn add(
        &mut self,
        io: Box<dyn PortIo>,
        change: impl FnOnce(&mut PortConfig),
    ) -> PortId {
        let id = PortId(self.counters.len() as u16);
        let mut config = PortConfig::new(NET);
        config.loop_guard = false;
        change(&mut config);
        let owner = id.0 % self.workers.len() as u16;
        let mut io = Some(io);
        let counters: Vec<Arc<PortCounters>> =
            self.workers.iter().map(|_| Arc::default()).collect();
        let setups = self
            .workers
            .iter()
            .zip(&counters)
            .map(|(w, count)| PortSetup {
                io: if w.index() == owner { io.take() } else { None },
                owner,
                mtu: 1500,
                tx_limit: TxQueue::DEFAULT_LIMIT,
                admin_up: true,
                counters: count.clone(),
            });
        hold_port(&self.workers, id, setups, move |b| {
            b.set_port(id, config.clone());
        })
        .and_then(|()| start_ports(&self.workers, &[id]))
        .expect("workers answer");
        self.counters.push(counters);
        id
    }

    pub(crate) fn set(&self, id: PortId, config: &PortConfig) {
        let config = config.clone();
        self.each(move |b| b.set_port(id, config.clone()));
    }

    pub(crate) fn set_mtu(&self, id: PortId, mtu: u32) {
        for w in &self.workers {
            w.call(move |w| w.set_mtu(id, mtu)).expect("worker answers");
        }
    }

    /// Frames that software segmentation made beyond those that came.
    pub(crate) fn splits(&self) -> u64 {
        let all = self.counters.iter().flatten();
        all.map(|c| c.split.get()).sum()
    }

    /// Frames of a port dropped for a reason.
    pub(crate) fn dropped(&self, port: PortId, why: DropReason) -> u64 {
        let of = &self.counters[port.index()];
        of.iter().map(|c| c.dropped(why)).sum()
    }

    /// Frames received from a port, and receive errors.
    #[allow(dead_code, reason = "for the scenarios of ports")]
    pub(crate) fn received(&self, port: PortId) -> (u64, u64) {
        let of = &self.counters[port.index()];
        let sum = |f: fn(&PortCounters) -> u64| of.iter().map(|c| f(c)).sum();
        (sum(|c| c.rx_frames.get()), sum(|c| c.rx_errors.get()))
    }

    /// Keeps every worker from its ports for this long; returns at once.
    #[allow(dead_code, reason = "for the scenarios of ports")]
    pub(crate) fn stall(&self, time: Duration) {
        for w in &self.workers {
            w.cast(move |_| std::thread::sleep(time))
                .expect("worker answers");
        }
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    #[track_caller]
    pub(crate) fn wait_event(&self, what: &str, which: impl Fn(&Event) -> bool) {
        wait_until(what, || self.events().iter().any(&which));
    }

    /// received + copied + originated + split = sent + dropped + held, over all ports, once traffic has settled.
    #[track_caller]
    pub(crate) fn assert_ledger(&self) {
        let sums = || {
            let (mut took, mut gave) = (0, 0);
            for c in self.counters.iter().flatten() {
                took += c.rx_frames.get() + c.copied.get() + c.originated.get() + c.split.get();
                let drops: u64 = DropReason::ALL.iter().map(|r| c.dropped(*r)).sum();
                gave += c.tx_frames.get() + drops + c.held.get();
            }
            (took, gave)
        };
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while sums().0 != sums().1 {
            let (took, gave) = sums();
            assert!(
                std::time::Instant::now() < end,
                "the ledger is out: {took} taken, {gave} accounted for"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for w in self.workers.drain(..) {
            w.stop();
        }
    }
}
