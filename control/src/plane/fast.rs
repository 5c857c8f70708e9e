//! The fast path as the switch keeps it: which ports are on it, what it has carried, and who is alive there.

use super::{LivePort, Plane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use utoipa::ToSchema;
use vswitch_core::accel::{Accelerator, Active, FastCounts, FastPort};
use vswitch_core::port::PortId;

/// Flows told to a worker between two turns.
const CHUNK: usize = 256;

/// The fast path that the daemon was asked for.
#[derive(Debug, Default)]
pub(super) enum FastPath {
    /// It wasn't.
    #[default]
    Unasked,
    /// There is none, for this reason.
    Failed(String),
    On(Arc<Accelerator>),
}

/// A port on the fast path; it is off when this is dropped.
#[derive(Debug)]
pub(super) struct FastLink {
    with: Arc<Accelerator>,
    id: PortId,
    pub(super) port: FastPort,
    /// What ports of this number have carried before.
    before: FastCounts,
    _link: OwnedFd,
}

impl FastLink {
    pub(super) fn new(with: Arc<Accelerator>, id: PortId, port: FastPort, link: OwnedFd) -> Self {
        FastLink {
            before: with.counts(id),
            with,
            id,
            port,
            _link: link,
        }
    }

    pub(super) fn counts(&self) -> FastCounts {
        self.with.counts(self.id).since(self.before)
    }
}

/// The kernel's fast path between veth ports (`--accelerate`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceleratorView {
    /// Whether it works.
    pub on: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ports that are on it.
    pub ports: usize,
    /// Pairs of addresses that it carried frames of lately; counted once a second.
    pub flows: usize,
    /// Connections that policy has allowed and it carries, each direction by itself; counted once a second.
    #[serde(default)]
    pub connections: usize,
    /// Frames that ports of now have sent by it. They are in the ports' counters too.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl LivePort {
    /// What it has carried the fast way, since it is open.
    pub(super) fn fast_counts(&self) -> FastCounts {
        self.fast.as_ref().map(FastLink::counts).unwrap_or_default()
    }
}

impl Plane {
    /// Has the workers use the fast path, or notes why there is none. Before any port is there.
    pub(crate) fn set_accelerator(&mut self, accelerator: Result<Arc<Accelerator>, String>) {
        self.fast = match accelerator {
            Err(reason) => FastPath::Failed(reason),
            Ok(with) => {
                for w in &self.workers {
                    let with = with.clone();
                    // A dead worker forwards nothing.
                    let _ = w.call(move |w| w.stage.bridge.accelerate(with));
                }
                FastPath::On(with)
            }
        };
    }

    pub(super) fn accelerator(&self) -> Option<Arc<Accelerator>> {
        match &self.fast {
            FastPath::On(with) => Some(with.clone()),
            _ => None,
        }
    }

    /// The fast path, if it was asked for.
    pub(super) fn accelerator_view(&self) -> Option<AcceleratorView> {
        let with = match &self.fast {
            FastPath::Unasked => return None,
            FastPath::Failed(reason) => {
                return Some(AcceleratorView {
                    reason: Some(reason.clone()),
                    ..AcceleratorView::default()
                });
            }
            FastPath::On(with) => with,
        };
        let counts: Vec<FastCounts> = self
            .ports
            .values()
            .filter_map(|l| l.fast.as_ref().map(FastLink::counts))
            .collect();
        Some(AcceleratorView {
            on: true,
            reason: None,
            ports: counts.len(),
            flows: with.pairs(),
            connections: with.flows(),
            frames: counts.iter().map(|c| c.tx_frames).sum(),
            bytes: counts.iter().map(|c| c.tx_bytes).sum(),
        })
    }

    /// Once a second while there is anything on the fast path: removes what is void or idle, and renews the addresses that are alive.
    /// False when there is nothing left.
    pub(crate) fn sweep_fast(&self) -> bool {
        let Some(active) = self.accelerator().map(|a| a.sweep()) else {
            return false;
        };
        let Some(active) = active else {
            return false;
        };
        let Some(first) = self.workers.first() else {
            return false;
        };
        // The others hear it from the first.
        for some in active.chunks(CHUNK) {
            let some: Vec<Active> = some.to_vec();
            let told = first.cast(move |w| {
                let now = w.cx.now.secs();
                w.stage.bridge.seen_fast(&some, now);
            });
            if told.is_err() {
                return false;
            }
        }
        true
    }

    /// Has connections and rules take in what the fast path has counted for them.
    pub(super) fn collect_fast(&self) {
        if let (FastPath::On(_), Some(first)) = (&self.fast, self.workers.first()) {
            // Of a dead worker there is nothing to learn.
            let _ = first.call(|w| w.stage.gateway.collect_fast(w.cx.now));
        }
    }

    /// Names of the ports on the fast path, and what each has carried.
    pub(super) fn fast_ports(&self) -> BTreeMap<&str, FastCounts> {
        let of = |l: &LivePort| l.fast.as_ref().map(FastLink::counts);
        self.ports
            .iter()
            .filter_map(|(n, l)| Some((n.as_str(), of(l)?)))
            .collect()
    }
}
