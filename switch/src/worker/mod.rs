//! Workers: one thread, one turn after the other.
//!
//! # Theory of operation
//!
//! A worker owns one queue of each port it serves and its own copy of every table (bridge, FDB); nothing it touches
//! in a turn is shared but bounded lock-free rings. A turn: run commands of the control plane, take frames handed off by
//! other workers, then for each active port receive a batch, run the stages, dispatch by verdict, flush the
//! transmit queues that got frames. A port is active from its readiness event (edge triggered) until it says it is
//! empty. With no active port the worker sleeps in epoll until an event, a command or the next deadline.
//!
//! Workers that aren't needed all the time get frames only under load (`share.rs`).
//!
//! Control reaches a worker by closures ([`WorkerHandle::call`]), which run between turns.

mod cx;
mod handle;
mod output;
mod pace;
mod ports;
mod share;
mod stage;
mod taps;
#[cfg(test)]
mod tests;
mod trace;
mod turn;
mod watch;

pub use cx::{Cx, Event, EventSink, Origin, Sync};
pub use handle::{Gone, WorkerConfig, WorkerHandle, spawn};
pub use output::{LinkState, PortSetup};
pub use ports::{hold_port, start_ports};
pub use stage::Stage;
pub use trace::{Leaving, Outcome, Step, Trace};
pub use turn::Worker;
pub use watch::{Ready, Watch};
