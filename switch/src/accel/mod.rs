//! The fast path: the kernel forwards between veth ports what the switch has forwarded before.
//!
//! # Theory of operation
//!
//! At the switch's end of each veth pair two small programs ([`program`]) see every frame. The first is the filter of the packet socket: it
//! looks the frame up in a table by (interface, destination, source), and keeps what it finds from the socket, where all else goes, as
//! ever. The second, at the interface, comes next and hands what the first has kept straight to the other container (bpf_redirect_peer).
//!
//! Only the switch decides: an entry is made by a worker that has just forwarded such a frame and sees nothing that would want to
//! look at the next ([`crate::bridge`]). An entry carries the *generation* it was approved in. Whatever changes in the switch
//! adds one to the generation in force, which both programs read with every frame: that ends all entries at once by one store, before the
//! change is answered. The next frame of each flow comes to the switch, which may approve it anew. So a worker that approves what
//! another has just changed does no harm either: it read the generation before it decided.
//!
//! The programs count frames and bytes per port in memory that is mapped here, so that counters are true at any moment. Once a second,
//! while there are entries, [`Accelerator::sweep`] removes those that are void or idle and says which are in use.
//!
//! Datagrams so small and dense that the workers are quicker, who join them to segmentation-offload frames, are left to them.
//!
//! Where a policy judges connections, a pair alone says nothing: its entry is marked so, and the frame must besides belong to a
//! connection that policy has allowed ([`flow`]).
//!
//! An element of the table is reused for another key as soon as it is removed. It is removed only when the programs haven't touched it
//! for seconds, or refuse it by its generation.

mod assembler;
mod flow;
mod program;

pub use flow::{Flow, FlowCounts, FlowKey};

use crate::port::PortId;
use crate::sys::bpf::{self, ProgramKind, Refused, Table, Words};
use crate::wire::MacAddr;
use nix::errno::Errno;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where things are, for programs and for us. Numbers in the machine's byte order.
mod layout {
    /// Key: interface (4 bytes), destination (6), source (6).
    pub(super) const KEY: usize = 16;
    // Value.
    pub(super) const GENERATION: usize = 0;
    pub(super) const TARGET: usize = 8;
    pub(super) const FRAME_LIMIT: usize = 12;
    pub(super) const GSO_LIMIT: usize = 16;
    pub(super) const RX_PORT: usize = 20;
    pub(super) const TX_PORT: usize = 24;
    /// 1: policy judges connections of the pair.
    pub(super) const JUDGED: usize = 28;
    pub(super) const HITS: usize = 32;
    /// When the last small datagram came, in nanoseconds, and how dense they come (4 bytes).
    pub(super) const LAST: usize = 40;
    pub(super) const LEVEL: usize = 48;
    pub(super) const VALUE: usize = 56;
    // Shared memory: the generation in force, and from here on received frames and bytes, sent frames and bytes of each port.
    pub(super) const PORT_BASE: usize = 64;
    pub(super) const PORT_SHIFT: i32 = 5;
    /// Ports that can be on the fast path: those with a number below.
    pub(super) const PORTS: usize = 1024;
    // Behind them a place for each flow. In it:
    pub(super) const FLOW_BASE: usize = PORT_BASE + (PORTS << PORT_SHIFT);
    pub(super) const FLOW_SHIFT: i32 = 6;
    pub(super) const FLOW_GENERATION: usize = 0;
    pub(super) const FLOW_TARGET: usize = 8;
    pub(super) const FLOW_PACKETS: usize = 16;
    pub(super) const FLOW_WIRE: usize = 24;
    pub(super) const FLOW_BYTES: usize = 32;
    pub(super) const FLOW_POSITION: usize = 40;
    /// Key of a flow: interface (4 bytes), ports (4), addresses (32, those of IPv4 in the first 8), protocol, IP version, zeros (6).
    pub(super) const FLOW_KEY: usize = 48;
    /// Value of a flow: number of its place (4 bytes).
    pub(super) const FLOW_VALUE: usize = 4;
}

use layout::{KEY, VALUE};

/// Most pairs of addresses.
pub const PAIRS: u32 = 8192;
/// Most flows, which are directions of connections.
pub const FLOWS: u16 = 8192;
/// Sweeps that an entry may be idle for.
const IDLE: u8 = 10;
/// What GSO sizes leave for headers at least: IPv4 and UDP.
const HEADERS: u32 = 28;
/// Ethernet header.
const ETHERNET: u32 = 14;
/// First kernel with TCX.
const KERNEL: (u32, u32) = (6, 6);

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// Too old.
    #[error("the kernel is {release}, without TCX: Linux 6.6 or newer is needed")]
    Kernel {
        /// What it says.
        release: String,
    },
    /// No map.
    #[error("making {thing}: {source}; {remedy}", remedy = remedy(*.source))]
    Map {
        /// Which.
        thing: &'static str,
        /// Kernel's answer.
        source: Errno,
    },
    /// A program is wrong.
    #[error(transparent)]
    Jump(#[from] assembler::BadJump),
    /// No program.
    #[error("loading {thing}: {source}; {remedy}", remedy = remedy(.source.source))]
    Program {
        /// Which.
        thing: &'static str,
        /// Kernel's answer.
        source: Refused,
    },
    /// Not at this interface.
    #[error("attaching to interface {interface}: {source}; {remedy}", remedy = remedy(*.source))]
    Attach {
        /// Index.
        interface: u32,
        /// Kernel's answer.
        source: Errno,
    },
    /// A port with too high a number.
    #[error("only the first {} ports can be on the fast path", layout::PORTS)]
    Ports,
}

fn remedy(e: Errno) -> &'static str {
    match e {
        Errno::EPERM | Errno::EACCES => {
            "run vswitchd as root of the machine, or with CAP_BPF and CAP_NET_ADMIN of it"
        }
        Errno::ENOSYS => "the kernel has to be built with CONFIG_BPF_SYSCALL",
        Errno::EINVAL => "Linux 6.6 or newer, built with CONFIG_NET_XGRESS, is needed",
        Errno::ENOMEM => "free memory, or raise the memory limit of the daemon's control group",
        _ => "run without --accelerate",
    }
}

/// A port's part in the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastPort {
    /// Index of the switch's end.
    pub interface: u32,
    /// Address of the container's end: only frames for it are redirected, as they are taken for the container's own.
    pub mac: MacAddr,
    /// L3, in bytes.
    pub mtu: u32,
}

/// What the fast path has carried for a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastCounts {
    /// Frames received; those of several segments are one, as elsewhere.
    pub rx_frames: u64,
    /// Their bytes, Ethernet header included.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

impl FastCounts {
    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: FastCounts) -> FastCounts {
        FastCounts {
            rx_frames: self.rx_frames.wrapping_sub(before.rx_frames),
            rx_bytes: self.rx_bytes.wrapping_sub(before.rx_bytes),
            tx_frames: self.tx_frames.wrapping_sub(before.tx_frames),
            tx_bytes: self.tx_bytes.wrapping_sub(before.tx_bytes),
        }
    }
}

/// An entry that frames went by since the last sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Where they came from.
    pub from: PortId,
    /// Where they went.
    pub to: PortId,
    /// Source.
    pub src: MacAddr,
    /// Destination.
    pub dst: MacAddr,
}

type Key = [u8; KEY];

/// Called by a worker when there is the first entry to sweep; must not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The programs and what they share with us; see the module's head.
pub struct Accelerator {
    table: Table<KEY, VALUE>,
    flows: Table<{ layout::FLOW_KEY }, { layout::FLOW_VALUE }>,
    state: Words,
    ingress: OwnedFd,
    filter: OwnedFd,
    wake: Wake,
    /// Somebody sweeps.
    swept: AtomicBool,
    /// Entries in force at the last sweep.
    pairs: AtomicUsize,
    /// Flows in force when they were last looked at.
    allowed: AtomicUsize,
    /// Hits of entries at the last sweep, and since how many they haven't changed.
    idle: Mutex<HashMap<Key, (u64, u8)>>,
}

impl fmt::Debug for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accelerator")
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl Accelerator {
    /// Loads the programs. Errors: an old kernel, missing privileges.
    pub fn new(wake: Wake) -> Result<Accelerator, AccelError> {
        let (release, version) = crate::sys::packet::kernel();
        if version < KERNEL {
            return Err(AccelError::Kernel { release });
        }
        let map = |thing| move |source| AccelError::Map { thing, source };
        let table = Table::new("vswitch_pairs", PAIRS).map_err(map("the table of pairs"))?;
        let flows = Table::new("vswitch_flows", FLOWS.into()).map_err(map("the table of flows"))?;
        let words = (layout::FLOW_BASE + (usize::from(FLOWS) << layout::FLOW_SHIFT)) / 8;
        let state = Words::new("vswitch_state", words).map_err(map("the counters"))?;
        let program = |thing| move |source| AccelError::Program { thing, source };
        let maps = program::Maps {
            pairs: table.as_fd(),
            flows: flows.as_fd(),
            state: state.as_fd(),
        };
        // Of a hash that is seeded anew each time.
        let random = std::hash::RandomState::new().hash_one(0);
        let secret = [random, random >> 32].map(|half| half as i32 & i32::MAX);
        let code = program::ingress(secret)?;
        let ingress = bpf::load(ProgramKind::Classifier, "vswitch_forward", &code)
            .map_err(program("the forwarding program"))?;
        let code = program::filter(maps, secret)?;
        let filter = bpf::load(ProgramKind::SocketFilter, "vswitch_filter", &code)
            .map_err(program("the sockets' filter"))?;
        Ok(Accelerator {
            table,
            flows,
            state,
            ingress,
            filter,
            wake,
            swept: AtomicBool::new(false),
            pairs: AtomicUsize::new(0),
            allowed: AtomicUsize::new(0),
            idle: Mutex::new(HashMap::new()),
        })
    }

    /// The program that a port's packet sockets need, with [`bpf::attach_filter`], before [`Accelerator::attach`].
    #[must_use]
    pub fn filter(&self) -> BorrowedFd<'_> {
        self.filter.as_fd()
    }

    /// Puts the switch's end of a veth pair, in the calling thread's namespace, on the fast path, until what is returned is dropped.
    pub fn attach(&self, interface: u32) -> Result<OwnedFd, AccelError> {
        bpf::attach_ingress(&self.ingress, interface)
            .map_err(|source| AccelError::Attach { interface, source })
    }

    /// The generation in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state.get(0)
    }

    /// Makes all entries void; when it returns no further frame goes by them.
    pub fn invalidate(&self) {
        if let Some(generation) = self.state.word(0) {
            generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Has frames from `from` for `dst` at `to` go the fast way, unless something has changed since `generation`; where they are
    /// `judged`, only those of flows that are allowed.
    pub(crate) fn approve(
        &self,
        generation: u64,
        (from, ingress, src): (PortId, &FastPort, MacAddr),
        (to, egress, dst): (PortId, &FastPort, MacAddr),
        judged: bool,
    ) {
        if from.index().max(to.index()) >= layout::PORTS {
            return;
        }
        let key = key(ingress.interface, dst, src);
        // What the entry knows of its bursts stays.
        if let Ok(old) = self.table.get(&key) {
            let at = |at: usize| old.get(at..).and_then(|v| v.first_chunk::<4>());
            let same = at(layout::TARGET) == Some(&egress.interface.to_ne_bytes())
                && at(layout::JUDGED) == Some(&u32::from(judged).to_ne_bytes())
                && old.first_chunk() == Some(&generation.to_ne_bytes());
            if same {
                return;
            }
        }
        let mut value = [0; VALUE];
        let mut put = |at: usize, v: u32| {
            if let Some(field) = value.get_mut(at..at + 4) {
                field.copy_from_slice(&v.to_ne_bytes());
            }
        };
        put(layout::TARGET, egress.interface);
        put(layout::FRAME_LIMIT, egress.mtu.saturating_add(ETHERNET));
        put(layout::GSO_LIMIT, egress.mtu.saturating_sub(HEADERS));
        put(layout::RX_PORT, from.0.into());
        put(layout::TX_PORT, to.0.into());
        put(layout::JUDGED, judged.into());
        if let Some(field) = value.first_chunk_mut() {
            *field = generation.to_ne_bytes();
        }
        // A full table: it goes on as before, until idle entries are gone.
        if self.table.set(&key, &value).is_ok() && !self.swept.swap(true, Ordering::SeqCst) {
            (self.wake)();
        }
    }

    /// What a port's number has carried since the accelerator was made.
    #[must_use]
    pub fn counts(&self, port: PortId) -> FastCounts {
        if port.index() >= layout::PORTS {
            return FastCounts::default();
        }
        let first = (layout::PORT_BASE + (port.index() << layout::PORT_SHIFT)) / 8;
        let word = |i| self.state.get(first + i);
        // What is received is counted before it is sent.
        let (tx_frames, tx_bytes) = (word(2), word(3));
        FastCounts {
            rx_frames: word(0),
            rx_bytes: word(1),
            tx_frames,
            tx_bytes,
        }
    }

    /// Pairs of addresses in force at the last sweep.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.load(Ordering::Relaxed)
    }

    /// Removes entries that are void or idle; returns those in use. To be called every second after a wake, until it returns
    /// `None`: then there are no entries, and the next one wakes again.
    pub fn sweep(&self) -> Option<Vec<Active>> {
        let mut keys = Vec::new();
        let mut last = None;
        // Others may enter and remove: it ends nevertheless.
        while keys.len() < 2 * PAIRS as usize
            && let Ok(key) = self.table.next(last.as_ref())
        {
            keys.push(key);
            last = Some(key);
        }
        let generation = self.generation();
        let mut before = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::with_capacity(keys.len());
        let mut active = Vec::new();
        for key in keys {
            let Ok(value) = self.table.get(&key) else {
                continue;
            };
            let word = |at: usize| {
                let bytes = value.get(at..).and_then(|v| v.first_chunk());
                bytes.map_or(0, |b| u64::from_ne_bytes(*b))
            };
            let port = |at: usize| {
                let bytes = value.get(at..).and_then(|v| v.first_chunk());
                PortId(bytes.map_or(0, |b| u32::from_ne_bytes(*b)) as u16)
            };
            let hits = word(layout::HITS);
            let idle = match before.get(&key) {
                Some((then, idle)) if *then == hits => idle + 1,
                _ => 0,
            };
            if word(layout::GENERATION) != generation || idle > IDLE {
                let _ = self.table.remove(&key);
                continue;
            }
            now.insert(key, (hits, idle));
            if idle == 0 && hits > 0 {
                let (dst, src) = addresses(&key);
                active.push(Active {
                    from: port(layout::RX_PORT),
                    to: port(layout::TX_PORT),
                    src,
                    dst,
                });
            }
        }
        self.pairs.store(now.len(), Ordering::Relaxed);
        *before = now;
        if !before.is_empty() {
            return Some(active);
        }
        self.swept.store(false, Ordering::SeqCst);
        // One that came in between was told to nobody.
        if self.table.next(None).is_ok() && !self.swept.swap(true, Ordering::SeqCst) {
            return Some(Vec::new());
        }
        None
    }
}

fn key(interface: u32, dst: MacAddr, src: MacAddr) -> Key {
    let mut key = [0; KEY];
    let (first, rest) = key.split_at_mut(4);
    first.copy_from_slice(&interface.to_ne_bytes());
    let (to, from) = rest.split_at_mut(6);
    to.copy_from_slice(&dst.0);
    from.copy_from_slice(&src.0);
    key
}

/// Destination and source.
fn addresses(key: &Key) -> (MacAddr, MacAddr) {
    let mac = |at: usize| {
        let bytes = key.get(at..).and_then(|k| k.first_chunk());
        bytes.map_or(MacAddr::ZERO, |b| MacAddr(*b))
    };
    (mac(4), mac(10))
}
