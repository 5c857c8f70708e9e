//! The ports of a worker as the control plane and the kernel change them: added, removed, up, down.
//!
//! # Theory of operation
//!
//! Several workers come to know a port one after the other, and meanwhile they talk: a frame for a port whose owner doesn't have
//! it yet would be lost, and so would news of an address learned at a port that another worker doesn't know yet. So a port is added
//! in steps, each of which all workers have taken before the next: they take its queues, their stages know it ([`hold_port`]), and only
//! then anything is received ([`start_ports`]). Many ports are started together: what some of them send would be flooded to the others, and
//! commands would wait for it.

use super::handle::{Gone, WorkerHandle};
use super::output::Slot;
use super::{Event, LinkState, PortSetup, Stage, Worker};
use crate::clock::Nanos;
use crate::frame::DropReason;
use crate::port::{PortFault, PortId};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use std::os::fd::AsRawFd;

/// Has all workers of a switch take the queues of a port, each by its setup, in their order; then `know` has their stages know it. Frames
/// for it are sent from now on; [`start_ports`] is to follow. Errors: a worker has ended.
pub fn hold_port<S: Stage>(
    workers: &[WorkerHandle<S>],
    id: PortId,
    setups: impl IntoIterator<Item = PortSetup>,
    know: impl Fn(&mut S) + Clone + Send + 'static,
) -> Result<(), Gone> {
    for (worker, setup) in workers.iter().zip(setups) {
        worker.call(move |w| w.hold_port(id, setup))?;
    }
    for worker in workers {
        let know = know.clone();
        worker.call(move |w| know(&mut w.stage))?;
    }
    Ok(())
}

/// Has all workers receive from ports that are held. Errors: a worker has ended.
pub fn start_ports<S: Stage>(workers: &[WorkerHandle<S>], ids: &[PortId]) -> Result<(), Gone> {
    if ids.is_empty() {
        return Ok(());
    }
    for worker in workers {
        let ids = ids.to_vec();
        worker.call(move |w| {
            for id in ids {
                w.start_port(id);
            }
        })?;
    }
    Ok(())
}

impl<S: Stage> Worker<S> {
    /// Has stages and ports ticked soon, e.g. after a command that set a timer.
    pub fn wake_timers(&mut self) {
        self.next_tick = Nanos(0);
    }

    pub(super) fn register(&mut self, port: PortId) {
        let Some(slot) = self
            .out
            .slots
            .get_mut(port.index())
            .and_then(Option::as_mut)
        else {
            return;
        };
        let Some(fd) = slot.io.as_ref().and_then(|io| io.ready_fd()) else {
            return;
        };
        let raw = fd.as_raw_fd();
        slot.write_armed = false;
        let registry = self.poll.registry();
        if registry
            .register(&mut SourceFd(&raw), Token(port.index()), Interest::READABLE)
            .is_err()
        {
            let _ =
                registry.reregister(&mut SourceFd(&raw), Token(port.index()), Interest::READABLE);
        }
        // Edge triggered: what came before registering makes no event.
        if !slot.active {
            slot.active = true;
            self.active.push(port);
        }
    }

    /// Begins to serve a port, as the only worker; see [`hold_port`]. A port of the same id is removed first.
    pub fn add_port(&mut self, id: PortId, setup: PortSetup) {
        self.hold_port(id, setup);
        self.start_port(id);
    }

    /// Takes a queue of a port: what is for the port is sent, nothing is received and no timer runs yet.
    fn hold_port(&mut self, id: PortId, setup: PortSetup) {
        self.remove_port(id);
        if self.out.slots.len() <= id.index() {
            self.out.slots.resize_with(id.index() + 1, || None);
        }
        let mut slot = Slot::new(setup);
        slot.next_tick = None;
        self.out.slots[id.index()] = Some(slot);
    }

    /// Begins to receive from a port that is held.
    fn start_port(&mut self, id: PortId) {
        let Some(slot) = self.out.slot(id) else {
            return;
        };
        let up = slot.link == LinkState::Up;
        if let Some(io) = &mut slot.io {
            io.set_carrier(up);
        }
        slot.next_tick = Some(Nanos(0));
        self.register(id);
        // What had to wait meanwhile asks for room to be sent.
        self.flush(id);
        self.wake_timers();
        if up {
            self.stage.link_changed(&mut self.cx, id, true);
        }
    }

    /// Ends serving a port; what waits in its queue is dropped and counted, its fd is closed.
    pub fn remove_port(&mut self, id: PortId) {
        let Some(Some(mut slot)) = self.out.slots.get_mut(id.index()).map(Option::take) else {
            return;
        };
        slot.txq.clear(DropReason::Shutdown);
        slot.counters.add_tx(&mut slot.txq.tally);
        slot.counters.held.set(0);
        self.deregister(&slot);
        self.active.retain(|p| *p != id);
        self.stage.link_changed(&mut self.cx, id, false);
    }

    fn deregister(&self, slot: &Slot) {
        if let Some(fd) = slot.io.as_ref().and_then(|io| io.ready_fd()) {
            let _ = self
                .poll
                .registry()
                .deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }

    /// Sets a port up or down by configuration.
    pub fn set_admin(&mut self, id: PortId, up: bool) {
        let Some(slot) = self.out.slot(id) else {
            return;
        };
        if up == (slot.link != LinkState::AdminDown) {
            return;
        }
        slot.link = if up {
            LinkState::Up
        } else {
            LinkState::AdminDown
        };
        slot.txq.clear(DropReason::PortDown);
        if let Some(io) = &mut slot.io {
            io.set_carrier(up);
        }
        self.stage.link_changed(&mut self.cx, id, up);
    }

    /// Sets a port's MTU (L3 length, bytes).
    pub fn set_mtu(&mut self, id: PortId, mtu: u32) {
        if let Some(slot) = self.out.slot(id) {
            slot.mtu = mtu;
        }
    }

    /// Link state of a port; `None` if this worker doesn't know it.
    pub fn link(&mut self, id: PortId) -> Option<LinkState> {
        self.out.slot(id).map(|s| s.link.clone())
    }

    /// Takes a port down for a reason found elsewhere (its container died).
    pub fn fail_port(&mut self, id: PortId, fault: &PortFault) {
        self.link_down(id, fault);
    }

    pub(super) fn link_down(&mut self, port: PortId, fault: &PortFault) {
        let Some(slot) = self
            .out
            .slots
            .get_mut(port.index())
            .and_then(Option::as_mut)
        else {
            return;
        };
        slot.txq.clear(DropReason::PortDown);
        slot.counters.add_tx(&mut slot.txq.tally);
        slot.counters.held.set(0);
        let was = std::mem::replace(&mut slot.link, LinkState::Down(fault.clone()));
        slot.next_tick = Some(Nanos(0));
        if fault.is_final() {
            if let Some(fd) = slot.io.as_ref().and_then(|io| io.ready_fd()) {
                let _ = self
                    .poll
                    .registry()
                    .deregister(&mut SourceFd(&fd.as_raw_fd()));
            }
            slot.io = None;
            slot.owner = self.cx.worker.0;
        }
        self.next_tick = Nanos(0);
        // An interface goes down before it is deleted: that it is gone for good is news again.
        let is_final = fault.is_final();
        let was_final = matches!(&was, LinkState::Down(f) if f.is_final());
        if was == LinkState::Up || (is_final && !was_final) {
            self.cx.event(Event::PortDown {
                port,
                reason: fault.to_string(),
                is_final,
            });
        }
        if was == LinkState::Up {
            self.stage.link_changed(&mut self.cx, port, false);
        }
    }

    pub(super) fn link_up(&mut self, port: PortId) {
        let Some(slot) = self.out.slot(port) else {
            return;
        };
        if matches!(slot.link, LinkState::Down(_)) {
            slot.link = LinkState::Up;
            self.cx.event(Event::PortUp { port });
            self.stage.link_changed(&mut self.cx, port, true);
        }
    }
}
