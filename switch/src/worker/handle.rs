//! Starting workers and reaching them from other threads.

use super::output::{Inbound, Peer};
use super::{EventSink, Stage, Worker};
use crossbeam_channel::{Sender, bounded};
use crossbeam_queue::ArrayQueue;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Frames and news that may wait for a worker.
const INBOX: usize = 4096;
/// Commands that may wait for a worker.
const COMMANDS: usize = 1024;
/// How long `call` waits: a turn takes microseconds, so this only ends when the worker is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The worker has ended or doesn't answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data-path worker does not answer: restart vswitchd")]
pub struct Gone;

pub(super) type Command<S> = Box<dyn FnOnce(&mut Worker<S>) + Send>;

/// Wakes a worker only if it sleeps.
#[derive(Debug)]
pub(super) struct SleepWaker {
    pub(super) asleep: AtomicBool,
    waker: mio::Waker,
}

impl SleepWaker {
    pub(super) fn wake(&self) {
        // Pairs with the fence-like store in `Worker::sleep`: either we see it asleep, or it sees our push.
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _ = self.waker.wake();
        }
    }
}

/// How to start workers.
#[derive(Clone)]
pub struct WorkerConfig {
    /// How many; 1 to 64.
    pub workers: u16,
    /// How long a worker looks for more work before it sleeps; zero sleeps at once.
    pub spin: Duration,
    /// Whether only the first serves the ports until it is at its limit (ports' other queues are added detached).
    pub shared: bool,
    /// Where events go.
    pub events: EventSink,
}

impl fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerConfig")
            .field("workers", &self.workers)
            .field("spin", &self.spin)
            .finish_non_exhaustive()
    }
}

/// Reaches a running worker. Dropping the last handle doesn't stop it: [`WorkerHandle::stop`] does.
#[derive(Debug)]
pub struct WorkerHandle<S: Stage> {
    index: u16,
    commands: Sender<Command<S>>,
    waker: Arc<SleepWaker>,
    thread: Option<JoinHandle<()>>,
}

pub(super) const WAKE_TOKEN: mio::Token = mio::Token(usize::MAX);

/// Starts the workers, each with the stages `stage(index)` makes. Errors: no epoll, no thread.
pub fn spawn<S: Stage>(
    config: &WorkerConfig,
    mut stage: impl FnMut(u16) -> S,
) -> io::Result<Vec<WorkerHandle<S>>> {
    let n = config.workers.clamp(1, 64);
    let mut polls = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..n {
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKE_TOKEN)?;
        let waker = Arc::new(SleepWaker {
            asleep: AtomicBool::new(false),
            waker,
        });
        peers.push(Peer {
            inbox: Arc::new(ArrayQueue::<Inbound>::new(INBOX)),
            waker,
        });
        polls.push(poll);
    }
    let mut handles = Vec::new();
    for (index, poll) in (0..n).zip(polls) {
        let (tx, rx) = bounded::<Command<S>>(COMMANDS);
        let worker = Worker::new((index, n), poll, stage(index), rx, &peers, config);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || worker.run())?;
        let waker = peers[usize::from(index)].waker.clone();
        handles.push(WorkerHandle {
            index,
            commands: tx,
            waker,
            thread: Some(thread),
        });
    }
    Ok(handles)
}

impl<S: Stage> WorkerHandle<S> {
    /// Index of the worker.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// A further handle, for another thread; it can't wait for the worker's end.
    #[must_use]
    pub fn another(&self) -> WorkerHandle<S> {
        WorkerHandle {
            index: self.index,
            commands: self.commands.clone(),
            waker: self.waker.clone(),
            thread: None,
        }
    }

    /// Has the worker run `f` between two turns, without waiting for it.
    pub fn cast(&self, f: impl FnOnce(&mut Worker<S>) + Send + 'static) -> Result<(), Gone> {
        self.commands
            .send_timeout(Box::new(f), CALL_TIMEOUT)
            .map_err(|_| Gone)?;
        self.waker.wake();
        Ok(())
    }

    /// Has the worker run `f` between two turns and returns what it returns.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Worker<S>) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let (tx, rx) = bounded(1);
        self.cast(move |w| {
            let _ = tx.send(f(w));
        })?;
        rx.recv_timeout(CALL_TIMEOUT).map_err(|_| Gone)
    }

    /// Stops the worker after what it has in hand, and waits for its end. Ports are closed.
    pub fn stop(mut self) {
        let _ = self.cast(Worker::stop);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
