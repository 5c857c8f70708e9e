//! The turn.

use super::handle::{Command, WAKE_TOKEN};
use super::output::{Inbound, Outputs, Peer, Slot};
use super::{Cx, Event, EventSink, LinkState, PortSetup, Stage, WorkerConfig};
use crate::clock::{Clock, Nanos};
use crate::frame::{self, Batch, DropReason, FloodSet, Verdict};
use crate::port::{PortFault, PortId, RxState};
use crate::stats::Tally;
use crate::wire;
use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Readiness events taken from epoll at once.
const EVENTS: usize = 256;
/// Batches of handed-off frames and news taken per turn.
const INBOX_BUDGET: usize = 256;
/// After this long without a frame, slots of the pool go back to the allocator.
const TRIM_AFTER: Duration = Duration::from_secs(5);

/// One worker; see the module's head. Reached through [`super::WorkerHandle`].
pub struct Worker<S: Stage> {
    /// The stages, for commands.
    pub stage: S,
    /// The stages' context, for commands that emit or report.
    pub cx: Cx,
    clock: Clock,
    poll: mio::Poll,
    events: mio::Events,
    commands: Receiver<Command<S>>,
    out: Outputs,
    own: Peer,
    active: Vec<PortId>,
    /// Boxed, so that taking it out while its frames are dispatched moves a pointer.
    batch: Option<Box<Batch>>,
    tally: Tally,
    sink: EventSink,
    spin: Duration,
    next_tick: Nanos,
    last_work: Nanos,
    trimmed: bool,
    stopping: bool,
}

impl<S: Stage> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.cx.worker.0)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl<S: Stage> Worker<S> {
    pub(super) fn new(
        index: (u16, u16),
        poll: mio::Poll,
        stage: S,
        commands: Receiver<Command<S>>,
        peers: &[Peer],
        config: &WorkerConfig,
    ) -> Worker<S> {
        let me = usize::from(index.0);
        let others = peers
            .iter()
            .enumerate()
            .map(|(i, p)| (i != me).then(|| p.clone()));
        Worker {
            stage,
            cx: Cx {
                worker: index,
                ..Cx::default()
            },
            clock: Clock::default(),
            poll,
            events: mio::Events::with_capacity(EVENTS),
            commands,
            out: Outputs {
                peers: others.collect(),
                ..Outputs::default()
            },
            own: peers[me].clone(),
            active: Vec::new(),
            batch: Some(Box::new(Batch::new(PortId(0)))),
            tally: Tally::default(),
            sink: config.events.clone(),
            spin: config.spin,
            next_tick: Nanos(0),
            last_work: Nanos(0),
            trimmed: true,
            stopping: false,
        }
    }

    /// Turns until stopped.
    pub(super) fn run(mut self) {
        while !self.stopping {
            self.turn();
        }
        for i in 0..self.out.slots.len() {
            self.remove_port(PortId(i as u16));
        }
    }

    /// One turn.
    fn turn(&mut self) {
        self.cx.now = self.clock.now();
        while let Ok(command) = self.commands.try_recv() {
            command(self);
            // It may have changed what the timers depend on.
            self.next_tick = Nanos(0);
            self.finish_call();
        }
        self.drain_inbox();
        let mut i = 0;
        while i < self.active.len() {
            let port = self.active[i];
            if self.service(port) {
                i += 1;
            } else {
                self.active.swap_remove(i);
            }
            self.last_work = self.cx.now;
            self.trimmed = false;
        }
        if self.cx.now >= self.next_tick {
            self.tick();
        }
        if !self.stopping {
            self.sleep();
        }
    }

    /// Waits for events: not at all while ports are active, else until the next deadline.
    fn sleep(&mut self) {
        let spinning = self.cx.now.since(self.last_work) < self.spin;
        let busy = !self.active.is_empty() || spinning;
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            self.own.waker.asleep.store(true, Ordering::SeqCst);
            if !self.commands.is_empty() || !self.own.inbox.is_empty() {
                Some(Duration::ZERO)
            } else {
                self.idle_timeout()
            }
        };
        // EINTR and the like: the next turn looks again.
        let _ = self.poll.poll(&mut self.events, timeout);
        if !busy {
            self.own.waker.asleep.store(false, Ordering::SeqCst);
        }
        let mut write_ready = arrayvec::ArrayVec::<PortId, EVENTS>::new();
        for e in &self.events {
            if e.token() == WAKE_TOKEN {
                continue;
            }
            let port = PortId(e.token().0 as u16);
            let Some(slot) = self.out.slot(port) else {
                continue;
            };
            if e.is_writable() && slot.write_armed {
                let _ = write_ready.try_push(port);
            }
            if (e.is_readable() || e.is_error() || e.is_read_closed()) && !slot.active {
                slot.active = true;
                self.active.push(port);
            }
        }
        for port in write_ready {
            self.flush(port);
        }
    }

    fn idle_timeout(&mut self) -> Option<Duration> {
        let trim_at = if self.trimmed {
            Nanos::MAX
        } else {
            self.last_work.after(TRIM_AFTER)
        };
        if self.cx.now >= trim_at {
            frame::trim(64, 2);
            self.trimmed = true;
        }
        let next = self
            .next_tick
            .min(if self.trimmed { Nanos::MAX } else { trim_at });
        // One millisecond is epoll's grain: rounded up, so that we don't wake just before the deadline.
        (next != Nanos::MAX).then(|| next.since(self.cx.now) + Duration::from_millis(1))
    }

    /// Receives and handles one batch of a port; false when it has no more.
    fn service(&mut self, port: PortId) -> bool {
        // It is put back below; a panic in between ends the worker.
        let Some(mut batch) = self.batch.take() else {
            return false;
        };
        let more = self.receive(port, &mut batch);
        batch.clear();
        self.batch = Some(batch);
        more
    }

    fn receive(&mut self, port: PortId, batch: &mut Batch) -> bool {
        let Some(slot) = self
            .out
            .slots
            .get_mut(port.index())
            .and_then(Option::as_mut)
        else {
            return false;
        };
        let Some(io) = &mut slot.io else {
            slot.active = false;
            return false;
        };
        batch.ingress = port;
        let state = io.recv(batch, &mut self.tally);
        slot.counters.add_rx(&mut self.tally);
        let admin_down = slot.link == LinkState::AdminDown;
        if matches!(slot.link, LinkState::Down(_)) && !batch.is_empty() {
            self.link_up(port);
        }
        for e in &mut batch.entries {
            match wire::parse(e.frame.head(), e.frame.len()) {
                Some(m) => e.meta = m,
                None => e.verdict = Verdict::Drop(DropReason::Runt),
            }
            if admin_down {
                e.verdict = Verdict::Drop(DropReason::PortDown);
            }
        }
        if !batch.is_empty() {
            self.stage.run(&mut self.cx, batch);
            self.dispatch(batch);
        }
        self.finish_call();
        let more = match state {
            Ok(RxState::More) => true,
            Ok(RxState::Empty) => false,
            Err(fault) => {
                self.link_down(port, &fault);
                false
            }
        };
        if !more && let Some(slot) = self.out.slot(port) {
            slot.active = false;
        }
        more
    }

    /// Sends every frame of the batch where its verdict says.
    fn dispatch(&mut self, batch: &mut Batch) {
        let from = batch.ingress;
        for e in batch.entries.drain(..) {
            match e.verdict {
                Verdict::Forward(to) => self.output(from, to, e.frame, &e.meta),
                Verdict::Hairpin => self.output(from, from, e.frame, &e.meta),
                Verdict::Flood(set) => self.flood(from, set, e.frame, &e.meta),
                Verdict::Drop(why) => self.count_drop(from, why),
                Verdict::Held => {}
                Verdict::Next | Verdict::Gateway => {
                    self.count_drop(from, DropReason::NoDestination);
                }
            }
        }
        self.cx.flood.clear();
    }

    /// Sends a copy of the frame out of every port of the set.
    fn flood(&mut self, from: PortId, set: FloodSet, frame: frame::Frame, meta: &wire::Meta) {
        let (first, last) = (set.start as usize, (set.start + set.len) as usize);
        if set.len == 0 {
            self.count_drop(from, DropReason::NoDestination);
            return;
        }
        for i in first..last - 1 {
            let to = self.cx.flood[i];
            if let Some(slot) = self.out.slot(to) {
                slot.counters.copied.add(1);
                self.output(from, to, frame.duplicate(), meta);
            }
        }
        let to = self.cx.flood[last - 1];
        self.output(from, to, frame, meta);
    }

    fn count_drop(&mut self, port: PortId, why: DropReason) {
        if let Some(slot) = self.out.slot(port) {
            slot.counters.count_drop(why, 1);
        }
    }

    fn output(&mut self, from: PortId, to: PortId, mut frame: frame::Frame, meta: &wire::Meta) {
        if self.out.slot(to).is_none() {
            self.count_drop(from, DropReason::NoPort);
            return;
        }
        match self.stage.egress(&mut self.cx, from, to, &mut frame, meta) {
            Ok(()) => self.out.enqueue(to, frame),
            Err(why) => self.count_drop(to, why),
        }
    }

    /// After stages or a command ran: sends what they emitted, flushes, reports.
    fn finish_call(&mut self) {
        for (to, frame, origin) in self.cx.emits.drain(..) {
            self.out.emit(to, frame, origin);
        }
        if let Some(due) = self.cx.wake_at.take() {
            self.next_tick = self.next_tick.min(due);
        }
        while let Some(port) = self.out.dirty.pop() {
            self.flush(port);
        }
        for e in self.cx.events.drain(..) {
            (self.sink)(e);
        }
        if !self.cx.news.is_empty() {
            for peer in self.out.peers.iter().flatten() {
                for n in &self.cx.news {
                    let _ = peer.inbox.push(Inbound::News(n.clone()));
                }
                peer.waker.wake();
            }
            self.cx.news.clear();
        }
    }

    fn drain_inbox(&mut self) {
        let mut any = false;
        for _ in 0..INBOX_BUDGET {
            match self.own.inbox.pop() {
                Some(Inbound::Frame(to, frame)) => self.out.enqueue(to, frame),
                Some(Inbound::News(n)) => self.stage.sync(&mut self.cx, &n),
                None => break,
            }
            any = true;
        }
        if any {
            self.finish_call();
        }
    }

    fn flush(&mut self, port: PortId) {
        if let Err(fault) = self.out.flush(port) {
            self.link_down(port, &fault);
        }
        let Some(slot) = self
            .out
            .slots
            .get_mut(port.index())
            .and_then(Option::as_mut)
        else {
            return;
        };
        // Ask for writability only while something waits.
        if slot.write_armed == slot.txq.is_empty()
            && let Some(io) = &slot.io
            && let Some(fd) = io.ready_fd()
        {
            slot.write_armed = !slot.txq.is_empty();
            let interest = if slot.write_armed {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let _ = self.poll.registry().reregister(
                &mut SourceFd(&fd.as_raw_fd()),
                Token(port.index()),
                interest,
            );
        }
    }

    /// Timers of the stages and the ports.
    fn tick(&mut self) {
        // Whatever the ticks do may bring the next one forward.
        self.next_tick = Nanos::MAX;
        let mut next = self.stage.tick(&mut self.cx);
        for i in 0..self.out.slots.len() {
            let port = PortId(i as u16);
            let Some(slot) = self.out.slot(port) else {
                continue;
            };
            let Some(due) = slot.next_tick else { continue };
            if due > self.cx.now {
                next = next.min(due);
                continue;
            }
            let now = self.cx.now;
            let Some(slot) = self.out.slot(port) else {
                continue;
            };
            let Some(io) = &mut slot.io else { continue };
            let r = io.tick(now);
            let changed = io.fd_changed();
            slot.next_tick = r.as_ref().ok().copied().flatten();
            next = next.min(slot.next_tick.unwrap_or(Nanos::MAX));
            let down = matches!(slot.link, LinkState::Down(_));
            match r {
                Err(fault) => self.link_down(port, &fault),
                Ok(_) if changed => {
                    self.register(port);
                    if down {
                        self.link_up(port);
                    }
                }
                Ok(_) => {}
            }
        }
        self.next_tick = self.next_tick.min(next);
        self.finish_call();
    }

    /// Has stages and ports ticked soon, e.g. after a command that set a timer.
    pub fn wake_timers(&mut self) {
        self.next_tick = Nanos(0);
    }

    fn register(&mut self, port: PortId) {
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

    /// Begins to serve a port. A port of the same id is removed first.
    pub fn add_port(&mut self, id: PortId, setup: PortSetup) {
        self.remove_port(id);
        if self.out.slots.len() <= id.index() {
            self.out.slots.resize_with(id.index() + 1, || None);
        }
        let up = setup.admin_up;
        let mut slot = Slot::new(setup);
        if let Some(io) = &mut slot.io {
            io.set_carrier(up);
        }
        self.out.slots[id.index()] = Some(slot);
        self.register(id);
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

    fn link_down(&mut self, port: PortId, fault: &PortFault) {
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

    fn link_up(&mut self, port: PortId) {
        let Some(slot) = self.out.slot(port) else {
            return;
        };
        if matches!(slot.link, LinkState::Down(_)) {
            slot.link = LinkState::Up;
            self.cx.event(Event::PortUp { port });
            self.stage.link_changed(&mut self.cx, port, true);
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }
}
