//! The connections of the thread that splices ([`super::splice`]), known by their ends to who judges them.

use hashbrown::HashMap;
use mio::Waker;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) live: AtomicUsize,
    /// All that is under way is to end; so is the thread.
    pub(super) reset: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) known: Mutex<Known>,
}

/// Connections under way or handed over: the client's address and the one inside. `over`: those that are to end.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) next: u64,
    pub(super) ends: HashMap<u64, (SocketAddr, SocketAddr), foldhash::fast::RandomState>,
    pub(super) over: Vec<u64>,
}

impl Shared {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection has ended.
    pub(super) fn gone(&self, id: u64) {
        self.known().ends.remove(&id);
        self.live.fetch_sub(1, Relaxed);
    }
}

/// The connections of a thread, for who judges them.
#[derive(Clone, Debug)]
pub(crate) struct Spliced {
    pub(super) waker: Arc<Waker>,
    pub(super) shared: Arc<Shared>,
}

impl Spliced {
    /// All of them: number, the client's address, the one inside.
    pub(crate) fn all(&self) -> Vec<(u64, SocketAddr, SocketAddr)> {
        let known = self.shared.known();
        known.ends.iter().map(|(i, (a, b))| (*i, *a, *b)).collect()
    }

    /// Resets one.
    pub(crate) fn end(&self, id: u64) {
        let mut known = self.shared.known();
        if known.ends.remove(&id).is_some() {
            known.over.push(id);
        }
        drop(known);
        let _ = self.waker.wake();
    }
}
