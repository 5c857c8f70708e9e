//! Captures of the running switch: which sessions look at which ports.
//!
//! A session names ports, or looks at all; it follows them when ports are added, deleted and opened again. Each port
//! gets a number in each session the first time it is looked at, so a copy tells where it was made even when its port has
//! gone by the time it is read.

use super::Plane;
use crate::refusal::{Kind, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, oneshot};
use utoipa::ToSchema;
use vswitch_core::capture::{Session, Spec, Tap, TapCounts};
use vswitch_core::clock::Clock;
use vswitch_core::port::PortId;

/// Sessions at once: each may take some 8 MiB, and as much on its way to a slow client.
pub(crate) const MAX_CAPTURES: usize = 16;

/// A port in a session: its name, and what was counted there.
pub(crate) type Interface = (String, Arc<TapCounts>);

/// A capture that runs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CaptureView {
    /// Its number.
    pub id: u32,
    /// Ports it looks at; none for all.
    pub ports: Vec<String>,
    /// Its filter.
    pub filter: Option<String>,
    /// Frames looked at.
    pub seen: u64,
    /// Frames that passed the filter.
    pub passed: u64,
    /// Frames that passed but were lost, for the client was too slow.
    pub lost: u64,
}

/// A session as the plane knows it.
#[derive(Debug)]
pub(super) struct Watching {
    ports: BTreeSet<String>,
    filter: Option<String>,
    session: Arc<Session>,
    interfaces: Arc<Mutex<Vec<Interface>>>,
    /// Dropped to end it.
    _end: Option<oneshot::Sender<()>>,
}

/// What who drains a session gets.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) id: u32,
    pub(crate) session: Arc<Session>,
    pub(crate) interfaces: Arc<Mutex<Vec<Interface>>>,
    /// There are copies to drain.
    pub(crate) ready: Arc<Notify>,
    /// Somebody ends it.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// Nanoseconds since 1970-01-01 UTC.
pub(crate) fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

impl Plane {
    /// Whether a capture looks at a port.
    pub(super) fn is_captured(&self, port: &str) -> bool {
        let mut all = self.captures.values();
        all.any(|w| w.ports.is_empty() || w.ports.contains(port))
    }

    /// Begins a capture at these ports, or at all if none is named.
    pub(crate) fn begin_capture(
        &mut self,
        ports: BTreeSet<String>,
        filter: Option<String>,
        spec: Spec,
    ) -> Result<Begun, Refusal> {
        if let Some(p) = ports.iter().find(|p| !self.ports.contains_key(*p)) {
            return Err(Refusal::missing(
                "capturing at",
                "port",
                p,
                self.ports.keys(),
            ));
        }
        if self.captures.len() >= MAX_CAPTURES {
            return Err(Refusal::new(
                Kind::Conflict,
                "beginning",
                "a capture",
                format!("{MAX_CAPTURES} are running"),
                "end one: `vswitchctl capture --list` lists them, `--end ID` ends one",
            ));
        }
        let ready = Arc::new(Notify::new());
        let wake = ready.clone();
        let notify = Box::new(move || wake.notify_one());
        let session = Arc::new(Session::new(spec, wall(), Clock::default().now(), notify));
        let interfaces = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = oneshot::channel();
        self.last_capture = self.last_capture.wrapping_add(1);
        let id = self.last_capture;
        let watching = Watching {
            ports,
            filter,
            session: session.clone(),
            interfaces: interfaces.clone(),
            _end: Some(end),
        };
        self.captures.insert(id, watching);
        if let Err(e) = self.tap() {
            self.captures.remove(&id);
            return Err(e);
        }
        Ok(Begun {
            id,
            session,
            interfaces,
            ready,
            ended,
        })
    }

    /// Ends a capture: no further copies are made when this returns. False if there was none.
    pub(crate) fn end_capture(&mut self, id: u32) -> bool {
        let was = self.captures.remove(&id).is_some();
        if was {
            // Dead workers copy nothing.
            let _ = self.tap();
        }
        was
    }

    /// How many captures run.
    pub(super) fn capture_count(&self) -> usize {
        self.captures.len()
    }

    /// All captures that run.
    #[must_use]
    pub fn capture_views(&self) -> Vec<CaptureView> {
        let view = |(id, w): (&u32, &Watching)| {
            let interfaces = w.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
            let sum = |f: fn(&TapCounts) -> u64| interfaces.iter().map(|(_, c)| f(c)).sum();
            CaptureView {
                id: *id,
                ports: w.ports.iter().cloned().collect(),
                filter: w.filter.clone(),
                seen: sum(|c| c.seen.load(Relaxed)),
                passed: sum(|c| c.passed.load(Relaxed)),
                lost: sum(|c| c.lost.load(Relaxed)),
            }
        };
        self.captures.iter().map(view).collect()
    }

    /// Has the captures follow a change of the ports.
    pub(super) fn follow_captures(&self) -> Result<(), Refusal> {
        if self.captures.is_empty() {
            return Ok(());
        }
        self.tap()
    }

    /// Gives every port the taps of the sessions that look at it.
    fn tap(&self) -> Result<(), Refusal> {
        let mut all: BTreeMap<PortId, Vec<Tap>> = BTreeMap::new();
        for (name, live) in self.ports.iter().filter(|(_, l)| l.open) {
            let looks = |w: &&Watching| w.ports.is_empty() || w.ports.contains(name);
            let taps = self.captures.values().filter(looks).map(|w| w.tap(name));
            all.insert(live.id, taps.collect());
        }
        self.each(move |w| {
            for (port, taps) in &all {
                w.set_taps(*port, taps);
            }
        })
    }
}

impl Watching {
    fn tap(&self, port: &str) -> Tap {
        let mut known = self
            .interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let number = known.iter().position(|(n, _)| n == port);
        let number = number.unwrap_or_else(|| {
            known.push((port.to_owned(), Arc::default()));
            known.len() - 1
        });
        Tap {
            session: self.session.clone(),
            interface: number as u32,
            counts: known[number].1.clone(),
        }
    }
}
