//! Connections that are under way by sockets of the host in containers' hands, and what was counted, by port.

use super::server::Server;
use super::{Listener, diag::Known};
use crate::api;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use utoipa::ToSchema;
use vswitch_nat::gateway::Ends;

/// Most connections, and those of one port.
pub(super) const MOST: usize = 65_536;
pub(super) const MOST_OF_PORT: usize = 16_384;
/// Stack of the thread.
const STACK: usize = 512 << 10;

/// What became of a port's connections by sockets of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwitchingView {
    /// Filters that are answered: one for each container or command that was started with one.
    pub listeners: usize,
    /// Connections under way.
    pub connections: usize,
    /// Connections that were made, or begun where the program doesn't wait.
    pub switched: u64,
    /// Connections that failed at once; what becomes of one later is between the program and the kernel.
    pub failed: u64,
    /// Connections that were reset, for they may not be any more.
    pub reset: u64,
    /// Bytes that connections under way have sent and received.
    pub bytes: [u64; 2],
    /// Connections that went by the network, by reason: `address` (it is translated, or nobody's outside), `busy` (too many), `host`
    /// (no socket of the host), `inside`, `namespace` (of another one), `options` (the socket's), `policy` (denied, or it depends on the packet),
    /// `port` (it isn't up, or has guards, rates, mirrors or captures), `setting` (it isn't on), `shared` (the socket has duplicates, or is in
    /// an epoll set in a way that can't be repeated), `unreadable` (the process).
    pub network: BTreeMap<String, u64>,
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) port: String,
    /// As it is judged.
    pub(crate) ends: Ends,
    /// The host's own address and port.
    pub(crate) here: SocketAddr,
    pub(crate) began: Instant,
    /// Since when nothing has changed.
    pub(crate) used: Instant,
    pub(super) inode: u64,
    pub(super) known: Known,
    /// It is to be reset.
    pub(super) over: bool,
}

impl Connection {
    /// Its state, by the names of conntrack.
    pub(crate) fn state(&self) -> &'static str {
        // include/net/tcp_states.h
        match self.known.state {
            1 => "established",
            2 | 3 => "syn-sent",
            4 | 5 => "fin-wait",
            8 => "close-wait",
            9 | 11 => "last-ack",
            _ => "closed",
        }
    }

    /// Packets and bytes there and back.
    pub(crate) fn counts(&self) -> ([u64; 2], [u64; 2]) {
        (self.known.packets, self.known.bytes)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By the number of their sockets.
    pub(super) all: HashMap<u64, Connection>,
    pub(super) ports: BTreeMap<String, SwitchingView>,
    /// Listeners to be taken up.
    pub(super) new: Vec<Listener>,
}

impl Table {
    pub(super) fn port(&mut self, name: &str) -> &mut SwitchingView {
        self.ports.entry(name.to_owned()).or_default()
    }
}

/// What the thread and who asks it share. Its lock is never held while the plane is asked.
#[derive(Debug)]
pub(crate) struct Shared {
    table: Mutex<Table>,
    pub(super) wake: Option<EventFd>,
    pub(super) stop: AtomicBool,
    /// Something was configured.
    pub(super) changed: AtomicBool,
    /// Some connections are to be reset.
    pub(super) ending: AtomicBool,
    /// How often something was.
    pub(super) generation: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Default for Shared {
    fn default() -> Shared {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Shared {
            table: Mutex::default(),
            wake: EventFd::from_value_and_flags(0, flags).ok(),
            stop: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            thread: Mutex::default(),
        }
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            let _ = wake.write(1);
        }
    }

    /// Starts the thread, if it doesn't run yet. Errors: no thread, no sock_diag.
    pub(super) fn start(self: &Arc<Shared>, plane: &api::Shared) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return Ok(());
        }
        let server = Server::new(self.clone(), plane.clone())?;
        let run = std::thread::Builder::new()
            .name("switching".into())
            .stack_size(STACK)
            .spawn(move || server.run())?;
        *thread = Some(run);
        Ok(())
    }

    /// Ends the thread. Not while the plane is locked.
    pub(crate) fn end(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        self.stop.store(true, Relaxed);
        self.wake();
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }

    pub(super) fn take_up(&self, listener: Listener) {
        self.table().new.push(listener);
        self.wake();
    }

    /// Something was configured: all is judged again.
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Relaxed);
        if !self.table().all.is_empty() {
            self.changed.store(true, Relaxed);
            self.wake();
        }
    }

    /// What was counted of a port, if it has or had a listener.
    pub(crate) fn of_port(&self, name: &str) -> Option<SwitchingView> {
        let table = self.table();
        let mut view = table.ports.get(name)?.clone();
        for c in table.all.values().filter(|c| c.port == name) {
            view.connections += 1;
            for (sum, n) in view.bytes.iter_mut().zip(c.known.bytes) {
                *sum += n;
            }
        }
        Some(view)
    }

    /// Connections under way.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.table().all.values().cloned().collect()
    }

    /// Resets those that `which` chooses; how many.
    pub(crate) fn reset(&self, which: impl Fn(&Connection) -> bool) -> usize {
        let mut n = 0;
        for c in self.table().all.values_mut() {
            if !c.over && which(c) {
                c.over = true;
                n += 1;
            }
        }
        if n > 0 {
            self.ending.store(true, Relaxed);
            self.wake();
        }
        n
    }

    /// Forgets what was counted of ports that are gone.
    pub(crate) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let ports = &mut self.table().ports;
        ports.retain(|name, view| view.listeners > 0 || is_there(name));
    }
}
