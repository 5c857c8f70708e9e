//! The host's sockets towards the resolvers, on a thread of their own.
//!
//! # Theory of operation
//! Questions come by a bounded queue, answers go by another, and a call of the owner's choice says that there is one. The
//! thread sleeps in `poll` until a socket is ready, a time-out is due or the queue has something. Each question is an
//! [`Exchange`] in a slot with one socket at a time; while all slots are taken questions stay in the queue, and
//! while that is full [`Forwarder::submit`] refuses.
//!
//! The sockets are in the network namespace of the thread that called [`Forwarder::spawn`].

use super::exchange::{Exchange, Failure, Resolvers, Step};
use super::socket::{Progress, Socket};
use super::{ResolvConf, Response, Upstream};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mio::{Events, Poll, Token, Waker};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vswitch_core::clock::{Clock, Nanos};
use vswitch_core::sys::source::Source;

const WAKE: Token = Token(usize::MAX);
/// Events of one `poll`, and questions begun after it.
const PER_TURN: usize = 256;

/// Unpredictable numbers.
pub type Random = Box<dyn FnMut() -> u64 + Send>;

/// Numbers of the kernel's generator, read a page at a time.
///
/// # Errors
/// When /dev/urandom can't be read.
pub fn os_random() -> io::Result<Random> {
    let mut source = File::open("/dev/urandom")?;
    let mut page = [0u8; 4096];
    source.read_exact(&mut page)?;
    let mut at = 0;
    Ok(Box::new(move || {
        if at >= page.len() && source.read_exact(&mut page).is_ok() {
            at = 0;
        }
        // It can't fail once it is open; if it did, old numbers come again, mixed with the place.
        let bytes = page.get(at % page.len()..).and_then(|b| b.first_chunk());
        at += 8;
        u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
    }))
}

/// Bounds of a forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwarderConfig {
    /// Questions worked on at once, each with a socket.
    pub max_in_flight: usize,
    /// Questions that may wait for their turn.
    pub queue: usize,
    /// Addresses of ours, which are no resolvers for us.
    pub own: Vec<IpAddr>,
    /// Where its sockets leave from.
    pub source: Source,
}

impl Default for ForwarderConfig {
    fn default() -> ForwarderConfig {
        ForwarderConfig {
            max_in_flight: 256,
            queue: 1024,
            own: vec![],
            source: Source::default(),
        }
    }
}

/// A forwarder that can't start.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    #[error("make the poll of the DNS forwarder: {0}; check the limit of open files")]
    Poll(io::Error),
    #[error("start the thread of the DNS forwarder: {0}; check the limit of processes")]
    Thread(io::Error),
}

struct Shared {
    resolvers: Mutex<Option<Resolvers>>,
    /// The host's network has changed.
    moved: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Resolvers>> {
        self.resolvers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts questions to resolvers. Drop ends the thread; what was under way is lost.
pub struct Forwarder {
    questions: Sender<Upstream>,
    responses: Receiver<Response>,
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    own: Vec<IpAddr>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").finish_non_exhaustive()
    }
}

impl Forwarder {
    /// Starts the thread. `wake` is called on it whenever a response is there.
    ///
    /// # Errors
    /// When the machine gives no thread or poll.
    pub fn spawn(
        config: &ForwarderConfig,
        conf: &ResolvConf,
        random: Random,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Forwarder, ForwarderError> {
        let poll = Poll::new().map_err(ForwarderError::Poll)?;
        let waker = Waker::new(poll.registry(), WAKE).map_err(ForwarderError::Poll)?;
        let (questions, queue) = bounded(config.queue);
        // Every question has a place for its response.
        let (results, responses) = bounded(config.queue + config.max_in_flight);
        let shared = Arc::new(Shared {
            resolvers: Mutex::new(None),
            moved: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut work = Work {
            poll,
            queue,
            results,
            wake,
            shared: shared.clone(),
            resolvers: resolvers(conf, &config.own),
            source: config.source.clone(),
            random,
            clock: Clock::default(),
            slots: (0..config.max_in_flight.max(1)).map(|_| None).collect(),
            free: (0..config.max_in_flight.max(1)).rev().collect(),
            timers: BTreeSet::new(),
            buffer: vec![0; 65_536],
        };
        let thread = std::thread::Builder::new()
            .name("dns-forwarder".into())
            .spawn(move || work.run())
            .map_err(ForwarderError::Thread)?;
        Ok(Forwarder {
            questions,
            responses,
            shared,
            waker: Arc::new(waker),
            own: config.own.clone(),
            thread: Some(thread),
        })
    }

    /// Puts a question, without blocking.
    ///
    /// # Errors
    /// With a response that says so when the queue is full; it is for [`super::Dns::respond`].
    pub fn submit(&self, upstream: Upstream) -> Result<(), Response> {
        self.questions.try_send(upstream).map_err(|e| {
            let (TrySendError::Full(u) | TrySendError::Disconnected(u)) = e;
            Response {
                id: u.id,
                outcome: Err(Failure::Busy),
            }
        })?;
        self.nudge();
        Ok(())
    }

    /// The next response, without blocking.
    #[must_use]
    pub fn poll(&self) -> Option<Response> {
        self.responses.try_recv().ok()
    }

    /// The queue of responses, to select on.
    #[must_use]
    pub fn responses(&self) -> &Receiver<Response> {
        &self.responses
    }

    /// Asks these resolvers from now on; what is under way begins anew with them.
    pub fn set_resolvers(&self, conf: &ResolvConf) {
        let resolvers = resolvers(conf, &self.own);
        *self.shared.lock() = Some(resolvers);
        self.nudge();
    }

    /// The host's addresses or routes have changed: resolvers that couldn't be reached are tried again in their place, and what was asked
    /// from an address that isn't the one to ask from any more is asked again.
    pub fn network_changed(&self) {
        self.shared.moved.store(true, Relaxed);
        self.nudge();
    }

    fn nudge(&self) {
        // It only fails when the counter of wake-ups is full, and then the thread wakes.
        let _ = self.waker.wake();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.nudge();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn resolvers(conf: &ResolvConf, own: &[IpAddr]) -> Resolvers {
    Resolvers::new(&conf.servers, conf.timeout, conf.attempts, own)
}

struct Slot {
    id: u64,
    exchange: Exchange,
    socket: Option<Socket>,
    until: Nanos,
}

/// What the thread works with.
struct Work {
    poll: Poll,
    queue: Receiver<Upstream>,
    results: Sender<Response>,
    wake: Arc<dyn Fn() + Send + Sync>,
    shared: Arc<Shared>,
    resolvers: Resolvers,
    source: Source,
    random: Random,
    clock: Clock,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    timers: BTreeSet<(Nanos, usize)>,
    buffer: Vec<u8>,
}

impl Work {
    fn run(&mut self) {
        let mut events = Events::with_capacity(PER_TURN);
        let mut more = false;
        loop {
            let wait = match self.timers.first() {
                _ if more => Some(Duration::ZERO),
                // Rounded up, or it would spin through the last millisecond.
                Some((at, _)) => Some(at.since(self.clock.now()) + Duration::from_millis(1)),
                None => None,
            };
            match self.poll.poll(&mut events, wait) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
            if self.shared.stop.load(Relaxed) {
                return;
            }
            let now = self.clock.now();
            self.take_news(now);
            for event in &events {
                if event.token() != WAKE {
                    self.ready(event.token().0, now);
                }
            }
            while let Some((until, at)) = self.timers.first().copied()
                && until <= now
            {
                self.fail(at, now, Exchange::timed_out);
            }
            more = self.begin(now);
        }
    }

    fn take_news(&mut self, now: Nanos) {
        let new = self.shared.lock().take();
        let moved = self.shared.moved.swap(false, Relaxed);
        let all = new.is_some();
        if let Some(new) = new {
            self.resolvers = new;
        } else if moved {
            self.resolvers.forgive();
        } else {
            return;
        }
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else {
                continue;
            };
            let asked = slot.exchange.server().zip(slot.socket.as_ref());
            if all || asked.is_some_and(|(to, s)| s.is_stale(to, &self.source)) {
                slot.exchange.restart(&self.resolvers, now);
                self.advance(at, now);
            }
        }
    }

    /// Begins questions that wait; whether there may be more for which there is room.
    fn begin(&mut self, now: Nanos) -> bool {
        for _ in 0..PER_TURN {
            if self.free.is_empty() {
                return false;
            }
            let Ok(upstream) = self.queue.try_recv() else {
                return false;
            };
            let Some(at) = self.free.pop() else {
                return false;
            };
            let slot = Slot {
                id: upstream.id,
                exchange: Exchange::new(upstream.message, &self.resolvers, now),
                socket: None,
                until: Nanos(0),
            };
            if let Some(place) = self.slots.get_mut(at) {
                *place = Some(slot);
            }
            self.advance(at, now);
        }
        true
    }

    /// Takes steps until there is something to wait for.
    fn advance(&mut self, at: usize, now: Nanos) {
        while let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) {
            self.timers.remove(&(slot.until, at));
            slot.socket = None;
            let random = ((self.random)() >> 16) as u16;
            match slot.exchange.step(&self.resolvers, now, random) {
                Step::Ask {
                    server,
                    tcp,
                    message,
                    until,
                } => {
                    let watched = (self.poll.registry(), Token(at));
                    match Socket::open(server, tcp, &message, &self.source, watched) {
                        Ok(socket) => {
                            slot.socket = Some(socket);
                            slot.until = until;
                            self.timers.insert((until, at));
                            return;
                        }
                        Err(_) => slot.exchange.failed(&mut self.resolvers, now),
                    }
                }
                Step::Done(outcome) => {
                    let id = slot.id;
                    self.finish(at, Response { id, outcome });
                }
            }
        }
    }

    fn finish(&mut self, at: usize, response: Response) {
        if let Some(slot) = self.slots.get_mut(at).and_then(Option::take) {
            self.timers.remove(&(slot.until, at));
            self.free.push(at);
            // A full queue means that the owner doesn't look; it gives questions up by itself.
            let _ = self.results.try_send(response);
            (self.wake)();
        }
    }

    fn fail(&mut self, at: usize, now: Nanos, how: fn(&mut Exchange, &mut Resolvers, Nanos)) {
        if let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) {
            how(&mut slot.exchange, &mut self.resolvers, now);
        }
        self.advance(at, now);
    }

    fn ready(&mut self, at: usize, now: Nanos) {
        while let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut)
            && let Some(socket) = &mut slot.socket
        {
            match socket.ready(&mut self.buffer) {
                Progress::Wait => return,
                Progress::Failed => return self.fail(at, now, Exchange::failed),
                Progress::Message(message) => {
                    let exchange = &mut slot.exchange;
                    match exchange.received(message, &mut self.resolvers, now) {
                        (_, Some(answer)) => {
                            let id = slot.id;
                            let outcome = Ok(answer);
                            return self.finish(at, Response { id, outcome });
                        }
                        (true, None) => return self.advance(at, now),
                        (false, None) => {}
                    }
                }
            }
        }
    }
}
