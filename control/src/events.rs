//! Events: what the data path reports, and what was configured, told to everybody who listens.
//!
//! A worker must not wait, so its events go into a bounded queue and are counted lost when it is full. The control thread
//! takes them out, gives them names and passes them on; a listener that is too slow loses the oldest ones.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{broadcast, mpsc};
use utoipa::ToSchema;
use vswitch_core::worker::{Event, EventSink};

/// Events that may wait for the control thread.
const QUEUE: usize = 1024;
/// Events a listener may be behind.
const BACKLOG: usize = 256;

/// Events there are.
pub(crate) const NAMES: [&str; 13] = [
    "configured",
    "host_changed",
    "lease",
    "limit_reached",
    "loop_cleared",
    "loop_detected",
    "lost",
    "mac_aged",
    "mac_learned",
    "mac_moved",
    "policy",
    "port_down",
    "port_up",
];

/// An event as listeners see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// Milliseconds since 1970-01-01 UTC.
    pub time: u64,
    /// Which: `port_up`, `port_down`, `mac_learned`, `mac_moved`, `mac_aged`, `limit_reached`, `loop_detected`,
    /// `loop_cleared`, `nat_exhausted`, `policy`, `lease`, `configured`, `host_changed`, `lost`.
    pub event: String,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The other port: where a MAC was before, the other end of a loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Record {
    /// An event of now.
    #[must_use]
    pub fn now(event: &str) -> Record {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64);
        Record {
            time,
            event: event.to_owned(),
            ..Record::default()
        }
    }
}

/// The queue from the workers.
#[derive(Debug)]
pub(crate) struct Intake {
    queue: mpsc::Receiver<Event>,
    lost: Arc<AtomicU64>,
}

impl Intake {
    /// The queue and the workers' end of it.
    pub(crate) fn new() -> (Intake, EventSink) {
        let (tx, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = lost.clone();
        let sink: EventSink = Arc::new(move |e| {
            if tx.try_send(e).is_err() {
                counter.fetch_add(1, Relaxed);
            }
        });
        (Intake { queue, lost }, sink)
    }

    /// The next event, and how many were lost before it.
    pub(crate) async fn next(&mut self) -> Option<(Event, u64)> {
        let event = self.queue.recv().await?;
        Some((event, self.lost.swap(0, Relaxed)))
    }
}

/// Where listeners subscribe.
#[derive(Clone, Debug)]
pub(crate) struct Bus(broadcast::Sender<Record>);

impl Bus {
    pub(crate) fn new() -> Bus {
        Bus(broadcast::channel(BACKLOG).0)
    }

    /// Tells all listeners.
    pub(crate) fn tell(&self, record: Record) {
        // No listener is no fault.
        let _ = self.0.send(record);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Record> {
        self.0.subscribe()
    }
}
