//! The turn.

use super::handle::{Command, WAKE_TOKEN};
use super::output::{Inbound, Outputs, Peer};
use super::pace::Pace;
use super::share::Load;
use super::{Cx, EventSink, LinkState, Ready, Stage, WorkerConfig};
use crate::capture::{Receipts, TurnClock};
use crate::clock::{Clock, Nanos};
use crate::frame::{self, Batch, DropReason, FloodSet, Verdict};
use crate::port::{PortId, RxState};
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
    pub(super) poll: mio::Poll,
    events: mio::Events,
    commands: Receiver<Command<S>>,
    pub(super) out: Outputs,
    own: Peer,
    pub(super) active: Vec<PortId>,
    /// Boxed, so that taking it out while its frames are dispatched moves a pointer.
    batch: Option<Box<Batch>>,
    tally: Tally,
    pub(super) taps_clock: TurnClock,
    pub(super) receipts: Receipts,
    sink: EventSink,
    pub(super) pace: Pace,
    pub(super) load: Load,
    /// Bytes received in this turn.
    turn_bytes: usize,
    pub(super) next_tick: Nanos,
    pub(super) last_work: Nanos,
    pub(super) trimmed: bool,
    /// Descriptors of the stage that are ready.
    pub(super) ready: Vec<Ready>,
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
            taps_clock: TurnClock::default(),
            receipts: Receipts::default(),
            sink: config.events.clone(),
            pace: Pace::new(config.spin),
            load: Load::new(config.shared),
            turn_bytes: 0,
            next_tick: Nanos(0),
            last_work: Nanos(0),
            trimmed: true,
            ready: Vec::new(),
            stopping: false,
        }
    }

    /// Turns until stopped.
    pub(super) fn run(mut self) {
        self.offer_watch();
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
        self.taps_clock.set(self.cx.now);
        self.measure();
        while let Ok(command) = self.commands.try_recv() {
            command(self);
            // It may have changed what the timers depend on.
            self.next_tick = Nanos(0);
            self.finish_call();
        }
        self.drain_inbox();
        let working = !self.active.is_empty();
        self.turn_bytes = 0;
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
            // Many ports that flood to many make a long turn: commands go between, and who hasn't had its turn is first in the next.
            if !self.commands.is_empty() {
                self.active.rotate_left(i);
                break;
            }
        }
        if working && self.turn_bytes > 0 {
            self.pace.worked(self.cx.now, self.turn_bytes);
            self.load.worked(self.cx.now);
        }
        self.serve_watched();
        if self.cx.now >= self.next_tick {
            self.tick();
        }
        if !self.stopping {
            self.sleep();
        }
    }

    /// Waits for events: not at all while ports are active, else until the next deadline.
    fn sleep(&mut self) {
        let busy = !self.active.is_empty() || self.cx.again || self.pace.spins(self.cx.now);
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            self.load.sleeps(&self.clock);
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
            if let Some(ready) = Ready::of(e) {
                self.ready.push(ready);
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
        if !write_ready.is_empty() {
            self.taps_clock.set(self.clock.now());
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
    pub(super) fn service(&mut self, port: PortId) -> bool {
        // It is put back below; a panic in between ends the worker.
        let Some(mut batch) = self.batch.take() else {
            return false;
        };
        let more = self.receive(port, &mut batch);
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
        self.turn_bytes += batch.bytes();
        slot.recent = slot.recent.saturating_add(batch.entries.len() as u32);
        slot.counters.add_rx(&mut self.tally);
        let admin_down = slot.link == LinkState::AdminDown;
        if matches!(slot.link, LinkState::Down(_)) && !batch.is_empty() {
            self.link_up(port);
        }
        if admin_down {
            self.show_refused(batch, DropReason::PortDown);
            for _ in batch.entries.drain(..) {
                self.count_drop(port, DropReason::PortDown);
            }
        }
        self.process(batch, true);
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
                Verdict::Gateway => self.hand_to_gateway(from, e.frame),
                Verdict::Next => self.count_drop(from, DropReason::NoDestination),
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
            Ok(()) => match self.sender(to, &frame, meta) {
                None => self.out.enqueue(to, frame),
                Some(worker) => self.out.hand(worker, to, frame),
            },
            Err(why) => {
                if let Some(slot) = self.out.slot(to) {
                    slot.drop_leaving(&frame, why);
                }
            }
        }
    }

    /// After stages or a command ran: sends what they emitted, flushes, reports.
    pub(super) fn finish_call(&mut self) {
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

    /// Gives a frame for the gateway to the worker that has it.
    fn hand_to_gateway(&mut self, from: PortId, frame: frame::Frame) {
        let Some(peer) = self.out.peers.first().and_then(Option::as_ref) else {
            return self.count_drop(from, DropReason::NoDestination);
        };
        let full = peer.inbox.push(Inbound::Gateway(from, frame)).is_err();
        peer.waker.wake();
        if full {
            self.count_drop(from, DropReason::HandoffFull);
        }
    }

    fn drain_inbox(&mut self) {
        let mut any = false;
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        for _ in 0..INBOX_BUDGET {
            match self.own.inbox.pop() {
                Some(Inbound::Frame(to, frame)) => self.out.enqueue(to, frame),
                Some(Inbound::News(n)) => self.stage.sync(&mut self.cx, &n),
                Some(Inbound::Help(port)) => self.help(port),
                Some(Inbound::Helped(port)) => self.helped(port),
                Some(Inbound::Gateway(from, frame)) => {
                    if batch.ingress != from || batch.is_full() {
                        self.process(&mut batch, false);
                        batch.ingress = from;
                    }
                    let _ = batch.push(frame);
                }
                None => break,
            }
            any = true;
        }
        self.process(&mut batch, false);
        self.batch = Some(batch);
        if any {
            self.load.worked(self.cx.now);
            self.finish_call();
        }
    }

    /// Runs the stages over a batch and sends its frames. It is `fresh` from a port, or handed off by another worker.
    fn process(&mut self, batch: &mut Batch, fresh: bool) {
        if !batch.is_empty() {
            for e in &mut batch.entries {
                match wire::parse(e.frame.head(), e.frame.len()) {
                    Some(m) => e.meta = m,
                    None => e.verdict = Verdict::Drop(DropReason::Runt),
                }
            }
            // Who asks for help is the first.
            if fresh && self.cx.worker.0 == 0 {
                self.load.received(batch);
            }
            batch.handed = !fresh;
            self.run_stages(batch, fresh);
            self.dispatch(batch);
        }
        batch.clear();
    }

    pub(super) fn flush(&mut self, port: PortId) {
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
        let mut next = self.stage.tick(&mut self.cx).min(self.tick_help());
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

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }
}
