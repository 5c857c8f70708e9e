//! Connections that stay within the machine: a client on the host's loopback, joined to a socket of the container's own namespace.
//!
//! # Theory of operation
//!
//! Nothing of such a connection has to cross the network: bytes go from socket to socket within the kernel, through pipes. That is
//! done on a thread of its own, which may be in the kernel for as long as a copy takes. Connections are handed to it as
//! they are accepted ([`SplicePath::hand_over`]); how a socket is opened inside is the affair of who made the path.
//!
//! Who made a path can have connections judged again: all that are under way are known by their ends ([`Spliced::all`]), and those that
//! may not be any more are ended by their numbers.
//!
//! A pipe is lent to a direction while something is in it, so idle connections have none. A direction that has ended is shut at
//! the other side; if anything fails, both sides are reset. There are so many connections at most; those beyond take the way
//! through the network.

use super::listen::HostPortCounters;
use super::spliced::{Shared, Spliced};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use vswitch_core::sys::sock;
use vswitch_core::sys::splice::{Pipe, abort, shut};

/// Connections at most, and that may wait for the thread.
const MOST: usize = 4096;
const WAITING: usize = 256;
/// Pipes kept for those to come.
const SPARE: usize = 32;
/// Bytes moved one way before others have their turn.
const TURN: usize = 4 << 20;
const WAKE: Token = Token(usize::MAX);

/// Opens streams inside, that connect to these.
pub type Open = dyn Fn(&[SocketAddr]) -> Vec<io::Result<OwnedFd>> + Send + Sync;

struct Job {
    id: u64,
    client: OwnedFd,
    to: SocketAddr,
    open: Arc<Open>,
    counters: Arc<HostPortCounters>,
}

/// The way into a container for the connections of a published port.
#[derive(Clone)]
pub struct SplicePath {
    to: SocketAddr,
    open: Arc<Open>,
    jobs: Sender<Job>,
    spliced: Spliced,
}

impl fmt::Debug for SplicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SplicePath").field(&self.to).finish()
    }
}

impl SplicePath {
    /// Where it leads.
    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    pub(super) fn spliced(&self) -> Spliced {
        self.spliced.clone()
    }

    /// Hands a connection over; gives it back if there are too many.
    pub fn hand_over(
        &self,
        client: OwnedFd,
        peer: SocketAddr,
        counters: &Arc<HostPortCounters>,
    ) -> Result<(), OwnedFd> {
        let shared = &self.spliced.shared;
        if shared.live.load(Relaxed) >= MOST {
            return Err(client);
        }
        let id = {
            let mut known = shared.known();
            known.next += 1;
            let id = known.next;
            known.ends.insert(id, (peer, self.to));
            id
        };
        let job = Job {
            id,
            client,
            to: self.to,
            open: self.open.clone(),
            counters: counters.clone(),
        };
        shared.live.fetch_add(1, Relaxed);
        self.jobs.try_send(job).map_err(|e| {
            shared.gone(id);
            e.into_inner().client
        })?;
        // It fails only when the thread has ended, which closes what was handed over.
        let _ = self.spliced.waker.wake();
        Ok(())
    }
}

/// The thread. It ends when this is dropped, and so do its connections.
#[derive(Debug)]
pub struct Splicer {
    jobs: Sender<Job>,
    waker: Arc<Waker>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Splicer {
    /// Starts it. Errors: no epoll, no thread.
    pub fn start() -> io::Result<Splicer> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (jobs, queue) = bounded(WAITING);
        let shared = Arc::new(Shared::default());
        let relay = Relay {
            poll,
            queue,
            shared: shared.clone(),
            pairs: Vec::new(),
            free: Vec::new(),
            dirty: VecDeque::new(),
            spare: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("splice".into())
            .spawn(move || relay.run())?;
        Ok(Splicer {
            jobs,
            waker,
            shared,
            thread: Some(thread),
        })
    }

    /// A way to an address, by sockets that `open` makes.
    #[must_use]
    pub fn path(&self, to: SocketAddr, open: Arc<Open>) -> SplicePath {
        SplicePath {
            to,
            open,
            jobs: self.jobs.clone(),
            spliced: Spliced {
                waker: self.waker.clone(),
                shared: self.shared.clone(),
            },
        }
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.shared.reset.store(true, Relaxed);
        let _ = self.waker.wake();
    }
}

impl Drop for Splicer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    pipe: Option<Pipe>,
    /// Its source may have something, its destination may take something.
    readable: bool,
    writable: bool,
    /// Its source has ended; its destination knows.
    ended: bool,
    shut: bool,
}

/// A connection: the client's end and the one inside.
#[derive(Debug)]
struct Pair {
    id: u64,
    ends: [OwnedFd; 2],
    ways: [Way; 2],
    connected: bool,
    queued: bool,
    counters: Arc<HostPortCounters>,
}

struct Relay {
    poll: Poll,
    queue: Receiver<Job>,
    shared: Arc<Shared>,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    dirty: VecDeque<usize>,
    spare: Vec<Pipe>,
}

/// What a turn has left.
enum Left {
    /// Nothing that can be done now.
    Nothing,
    More,
    /// Both ways are shut.
    Over,
}

impl Way {
    fn moved(&mut self, from: &OwnedFd, to: &OwnedFd, spare: &mut Vec<Pipe>) -> io::Result<bool> {
        let mut left = TURN;
        loop {
            if let Some(pipe) = self.pipe.as_mut().filter(|p| p.held() > 0) {
                if !self.writable {
                    return Ok(false);
                }
                match pipe.drain(to) {
                    Ok(n) => left = left.saturating_sub(n),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
                continue;
            }
            if self.ended || !self.readable {
                break;
            }
            if left == 0 {
                return Ok(true);
            }
            let pipe = match self.pipe.take().or_else(|| spare.pop()) {
                Some(pipe) => pipe,
                None => Pipe::new()?,
            };
            match self.pipe.insert(pipe).fill(from) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(pipe) = self.pipe.take()
            && spare.len() < SPARE
        {
            spare.push(pipe);
        }
        if self.ended && !std::mem::replace(&mut self.shut, true) {
            shut(to);
        }
        Ok(false)
    }
}

impl Pair {
    fn turn(&mut self, spare: &mut Vec<Pipe>) -> io::Result<Left> {
        let [client, inside] = &self.ends;
        let [out, back] = &mut self.ways;
        let more = out.moved(client, inside, spare)?;
        let more = back.moved(inside, client, spare)? || more;
        Ok(match (more, out.shut && back.shut) {
            (_, true) => Left::Over,
            (true, _) => Left::More,
            (false, _) => Left::Nothing,
        })
    }
}

impl Relay {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = (!self.dirty.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            if self.shared.stop.load(Relaxed) {
                self.end_all();
                return;
            }
            if self.shared.reset.swap(false, Relaxed) {
                self.end_all();
            }
            for e in &events {
                if e.token() == WAKE {
                    continue;
                }
                let error = e.is_error() || e.is_read_closed() && e.is_write_closed();
                self.event(
                    e.token().0,
                    e.is_readable() || error,
                    e.is_writable() || error,
                );
            }
            self.end_those_over();
            self.take_jobs();
            self.serve();
        }
    }

    fn event(&mut self, token: usize, readable: bool, writable: bool) {
        let (i, side) = (token / 2, token % 2);
        let Some(pair) = self.pairs.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        if side == 1 && !pair.connected {
            if pair
                .ends
                .get(1)
                .is_some_and(|fd| sock::take_error(fd).is_err())
            {
                self.end(i, true);
                return;
            }
            pair.connected = writable;
        }
        let [out, back] = &mut pair.ways;
        let (from, to) = if side == 0 { (out, back) } else { (back, out) };
        from.readable |= readable;
        to.writable |= writable;
        if !std::mem::replace(&mut pair.queued, true) {
            self.dirty.push_back(i);
        }
    }

    /// Takes up what was handed over, together what goes to one place.
    fn take_jobs(&mut self) {
        let mut next = self.queue.try_recv();
        loop {
            let mut jobs = match next {
                Ok(job) => vec![job],
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            };
            next = self.queue.try_recv();
            while let Ok(job) = next {
                let same = jobs
                    .first()
                    .is_some_and(|f| Arc::ptr_eq(&f.open, &job.open));
                if !same {
                    next = Ok(job);
                    break;
                }
                jobs.push(job);
                next = self.queue.try_recv();
            }
            let to: Vec<SocketAddr> = jobs.iter().map(|j| j.to).collect();
            let open = jobs.first().map(|j| j.open.clone());
            let mut opened = open.map(|o| o(&to)).unwrap_or_default().into_iter();
            for job in jobs {
                match opened.next() {
                    Some(Ok(inside)) => self.enter(job, inside),
                    _ => self.refuse(job.id, &job.client, &job.counters),
                }
            }
        }
    }

    fn refuse(&self, id: u64, client: &OwnedFd, counters: &HostPortCounters) {
        counters.unreached.add(1);
        abort(client);
        self.shared.gone(id);
    }

    /// Ends what may not be any more. What waits yet is found out when it is taken up.
    fn end_those_over(&mut self) {
        let over = std::mem::take(&mut self.shared.known().over);
        if over.is_empty() {
            return;
        }
        for i in 0..self.pairs.len() {
            let pair = self.pairs.get(i).and_then(Option::as_ref);
            if pair.is_some_and(|p| over.contains(&p.id)) {
                self.end(i, true);
            }
        }
    }

    fn enter(&mut self, job: Job, inside: OwnedFd) {
        if !self.shared.known().ends.contains_key(&job.id) {
            return self.refuse(job.id, &job.client, &job.counters);
        }
        let i = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let ends = [job.client, inside];
        let both = Interest::READABLE | Interest::WRITABLE;
        for (side, fd) in ends.iter().enumerate() {
            let raw = fd.as_raw_fd();
            let registry = self.poll.registry();
            if registry
                .register(&mut SourceFd(&raw), Token(i * 2 + side), both)
                .is_err()
            {
                self.free.push(i);
                let [client, _] = &ends;
                return self.refuse(job.id, client, &job.counters);
            }
        }
        if let Some(place) = self.pairs.get_mut(i) {
            *place = Some(Pair {
                id: job.id,
                ends,
                ways: Default::default(),
                connected: false,
                queued: false,
                counters: job.counters,
            });
        }
    }

    fn serve(&mut self) {
        for _ in 0..self.dirty.len() {
            let Some(i) = self.dirty.pop_front() else {
                return;
            };
            let Some(pair) = self.pairs.get_mut(i).and_then(Option::as_mut) else {
                continue;
            };
            pair.queued = false;
            match pair.turn(&mut self.spare) {
                Ok(Left::Nothing) => {}
                Ok(Left::More) => {
                    pair.queued = true;
                    self.dirty.push_back(i);
                }
                Ok(Left::Over) => self.end(i, false),
                Err(_) => self.end(i, true),
            }
        }
    }

    fn end(&mut self, i: usize, reset: bool) {
        let Some(pair) = self.pairs.get_mut(i).and_then(Option::take) else {
            return;
        };
        if reset {
            pair.ends.iter().for_each(abort);
            pair.counters.unreached.add(u64::from(!pair.connected));
        }
        self.free.push(i);
        self.shared.gone(pair.id);
    }

    fn end_all(&mut self) {
        for i in 0..self.pairs.len() {
            self.end(i, true);
        }
        self.dirty.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use vswitch_core::sys::listen;

    /// A client, and what the thread makes of it.
    fn client(splicer: &Splicer, to: SocketAddr, counters: &Arc<HostPortCounters>) -> TcpStream {
        let open: Arc<Open> = Arc::new(|to: &[SocketAddr]| {
            let open = |to: &SocketAddr| sock::open(sock::Kind::Tcp, *to, None);
            to.iter().map(open).collect()
        });
        let fd = listen::open(sock::Kind::Tcp, "127.0.0.1:0".parse().unwrap()).unwrap();
        let stream = TcpStream::connect(sock::local(&fd).unwrap()).unwrap();
        let (accepted, _) = listen::accept(&fd).unwrap();
        let path = splicer.path(to, open);
        let peer = stream.local_addr().unwrap();
        path.hand_over(accepted, peer, counters).unwrap();
        stream
    }

    #[test]
    fn every_byte_arrives_and_ends_pass() {
        let splicer = Splicer::start().unwrap();
        let counters = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            s.read_to_end(&mut all).unwrap();
            s.write_all(&all).unwrap();
        });
        let bytes: Vec<u8> = (0..20_000_000u32).map(|i| (i / 7) as u8).collect();
        let mut c = client(&splicer, to, &counters);
        let mut reader = c.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        c.write_all(&bytes).unwrap();
        c.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(reading.join().unwrap() == bytes, "bytes differ");
        server.join().unwrap();
        assert_eq!(counters.unreached.get(), 0);
    }

    #[test]
    fn who_isnt_reached_and_who_is_cut_off_is_reset() {
        let splicer = Splicer::start().unwrap();
        let counters = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut c = client(&splicer, to, &counters);
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"x").unwrap();
        assert_eq!(c.read(&mut [0; 9]).unwrap(), 1);
        let spliced = Spliced {
            waker: splicer.waker.clone(),
            shared: splicer.shared.clone(),
        };
        // One that is over, and then all.
        let mut other = client(&splicer, to, &counters);
        let own = other.local_addr().unwrap();
        let (mut there, _) = listener.accept().unwrap();
        there.write_all(b"x").unwrap();
        assert_eq!(other.read(&mut [0; 9]).unwrap(), 1);
        let all = spliced.all();
        let (id, _, far_end) = all.iter().find(|(_, a, _)| *a == own).unwrap();
        assert_eq!(*far_end, to);
        spliced.end(*id);
        assert_eq!(
            other.read(&mut [0; 9]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(spliced.all().len(), 1);
        splicer.reset();
        assert_eq!(
            c.read(&mut [0; 9]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert!(far.read(&mut [0; 9]).is_err());
        drop(listener);
        let mut c = client(&splicer, to, &counters);
        assert_eq!(
            c.read(&mut [0; 9]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(counters.unreached.get(), 1);
    }
}
