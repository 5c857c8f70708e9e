//! The thread that answers calls; see the module's head.

use super::connections::{Connection, MOST, MOST_OF_PORT, Shared};
use super::diag::{Diag, Known};
use super::tracee::{self, Held, Registered, Tracee};
use super::verdicts::Verdicts;
use super::{Listener, routes::Way};
use crate::api;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use vswitch_core::sys::registrar::Registrar;
use vswitch_core::sys::seccomp::{self, Waiting};
use vswitch_core::sys::source::Source;
use vswitch_core::sys::twin::{self, Stands};
use vswitch_nat::gateway::{Ends, Permit};

/// How often connections are asked after.
const SWEEP: Duration = Duration::from_secs(1);
/// Connections that are asked after in one sweep.
const SWEPT: usize = 8192;
/// include/net/tcp_states.h
const SYN_SENT: u8 = 2;
const TIME_WAIT: u8 = 6;
/// Longest address of a system call (`struct sockaddr_storage`).
const ADDRESS: usize = 128;
/// Threads that are kept in mind: two descriptors each.
const THREADS: usize = 128;

/// A socket of the host that is to take the place of a container's.
struct Made {
    fd: OwnedFd,
    at: i32,
    cloexec: bool,
    /// Calls on it wait, as on the container's own.
    waits: bool,
    ends: Ends,
    /// The container's, and the epoll sets that have it.
    held: OwnedFd,
    sets: Vec<Registered>,
}

/// What a call is told.
enum Told {
    /// It goes on with the container's own socket: it isn't about us.
    Own,
    /// The same; it could have been, but for this.
    Network(&'static str),
    /// 0, or an error number.
    Answer(i32),
    /// It goes on with a socket of the host: to wait for the connection, or to be told how it stands.
    On,
    /// The connection is begun, or made; `None`: the call goes on to wait for it.
    Given(Box<Made>, Option<i32>),
}

pub(super) struct Server {
    shared: Arc<Shared>,
    plane: api::Shared,
    diag: Diag,
    /// The namespace of the host's sockets.
    home: u64,
    listeners: Vec<Arc<Listener>>,
    threads: HashMap<i32, Tracee>,
    verdicts: Verdicts,
    registrar: Option<Registrar>,
    swept: Instant,
    /// Where the next sweep begins.
    hand: usize,
}

fn network(why: &'static str) -> impl Fn(io::Error) -> Told {
    move |_| Told::Network(why)
}

impl Server {
    /// Errors: no sock_diag, a kernel before Linux 5.14.
    pub(super) fn new(shared: Arc<Shared>, plane: api::Shared) -> io::Result<Server> {
        Ok(Server {
            shared,
            plane,
            diag: Diag::open()?,
            home: home()?,
            listeners: Vec::new(),
            threads: HashMap::new(),
            verdicts: Verdicts::default(),
            registrar: None,
            swept: Instant::now(),
            hand: 0,
        })
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Relaxed) {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(e) => {
                    tracing::error!("sockets are switched no more: waiting for calls: {e}");
                    break;
                }
            };
            if let Some(wake) = &self.shared.wake {
                let _ = wake.read();
            }
            self.answer_all(&ready);
            self.take_up();
            self.judge_again();
            self.end_those_over();
            if self.swept.elapsed() >= SWEEP {
                self.sweep();
            }
        }
    }

    /// Which listeners have something.
    fn wait(&mut self) -> io::Result<Vec<PollFlags>> {
        let mut fds = Vec::with_capacity(1 + self.listeners.len());
        if let Some(wake) = &self.shared.wake {
            fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
        }
        let own = fds.len();
        for l in &self.listeners {
            fds.push(PollFd::new(l.fd.as_fd(), PollFlags::POLLIN));
        }
        let idle = self.shared.table().all.is_empty() && self.threads.is_empty();
        let timeout = if idle { None } else { Some(SWEEP) };
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let said = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        Ok(fds.iter().skip(own).map(said).collect())
    }

    fn take_up(&mut self) {
        let new = std::mem::take(&mut self.shared.table().new);
        for mut l in new {
            // The host's own namespace has nothing to switch.
            let own = l.routes.as_ref().map(super::Routes::namespace) == Some(self.home);
            if own {
                l.routes = None;
            }
            if !l.port.is_empty() {
                self.shared.table().port(&l.port).listeners += 1;
            }
            // An older kernel does without.
            let _ = seccomp::wake_in_turn(&l.fd);
            self.listeners.push(Arc::new(l));
        }
    }

    /// One call of each listener that has any, so that all have their turn.
    fn answer_all(&mut self, ready: &[PollFlags]) {
        let mut gone = Vec::new();
        for (l, said) in self.listeners.clone().iter().zip(ready) {
            if said.contains(PollFlags::POLLIN) {
                self.serve(l);
            } else if said.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
            {
                // Nobody has the filter any more.
                gone.push(l.clone());
            }
        }
        for l in gone {
            self.listeners.retain(|o| !Arc::ptr_eq(o, &l));
            if let Some(view) = self.shared.table().ports.get_mut(&l.port) {
                view.listeners = view.listeners.saturating_sub(1);
            }
        }
    }

    fn serve(&mut self, l: &Arc<Listener>) {
        // Gone meanwhile, or interrupted.
        let Ok(call) = seccomp::receive(&l.fd) else {
            return;
        };
        let told = match call.call {
            Some(libc::SYS_connect) => self.connect(l, &call).unwrap_or_else(|told| told),
            Some(libc::SYS_bind | libc::SYS_listen) => self.refuse_hosts(l, &call),
            _ => Told::Own,
        };
        match told {
            Told::Own => drop(seccomp::go_on(&l.fd, call.id)),
            Told::Network(why) => {
                let _ = seccomp::go_on(&l.fd, call.id);
                self.count(&l.port, why);
            }
            Told::Answer(error) => drop(seccomp::answer(&l.fd, call.id, error)),
            Told::On => drop(seccomp::go_on(&l.fd, call.id)),
            Told::Given(made, answer) => self.give(l, call.id, &made, answer),
        }
    }

    /// The thread that has made a call, and a socket of its process. What is known of it is used as long as it lives.
    fn held(&mut self, thread: i32, number: i32) -> io::Result<(&Tracee, Held)> {
        if let Some(known) = self.threads.get(&thread) {
            match known.socket(number) {
                // Its number is another's by now.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(e),
                Ok(held) => {
                    let known = self.threads.get(&thread);
                    return Ok((known.ok_or(io::ErrorKind::NotFound)?, held));
                }
            }
        }
        if self.threads.len() >= THREADS {
            self.threads.clear();
        }
        let new = Tracee::of(thread)?;
        let held = new.socket(number)?;
        self.threads.insert(thread, new);
        let new = self.threads.get(&thread).ok_or(io::ErrorKind::NotFound)?;
        Ok((new, held))
    }

    /// bind(2) and listen(2) are for the container's own sockets.
    fn refuse_hosts(&mut self, l: &Listener, call: &Waiting) -> Told {
        let Ok((_, held)) = self.held(call.thread, call.args[0] as i32) else {
            return Told::Own;
        };
        let is_home = twin::namespace(&held.fd).ok() == Some(self.home);
        if is_home && seccomp::is_valid(&l.fd, call.id) && self.is_twin(&held.fd) {
            return Told::Answer(libc::EINVAL);
        }
        Told::Own
    }

    /// Whether it is a socket that we have handed over.
    fn is_twin(&self, fd: &OwnedFd) -> bool {
        let Ok(number) = twin::number(fd) else {
            return false;
        };
        // One that has ended is known by what nobody but us has set: its filter.
        self.shared.table().all.contains_key(&number) || twin::is_locked(fd)
    }

    fn connect(&mut self, l: &Arc<Listener>, call: &Waiting) -> Result<Told, Told> {
        let [number, at, len, ..] = call.args;
        let number = number as i32;
        let Some(routes) = &l.routes else {
            return Ok(Told::Own);
        };
        let mut bytes = [0; ADDRESS];
        let room = usize::try_from(len).ok().and_then(|n| bytes.get_mut(..n));
        let Some(bytes) = room.filter(|b| b.len() >= 2) else {
            return Ok(Told::Own);
        };
        let (t, held) = self
            .held(call.thread, number)
            .map_err(network("unreadable"))?;
        t.memory(at, bytes).map_err(network("unreadable"))?;
        let family = bytes.first_chunk().map_or(0, |b| u16::from_ne_bytes(*b));
        let families = [libc::AF_UNSPEC, libc::AF_INET, libc::AF_INET6];
        if !families.contains(&family.into()) {
            return Ok(Told::Own);
        }
        let cloexec = t.is_cloexec(number).map_err(network("unreadable"))?;
        if !seccomp::is_valid(&l.fd, call.id) {
            return Ok(Told::Own);
        }
        let namespace = twin::namespace(&held.fd).map_err(network("namespace"))?;
        let again = namespace == self.home && self.is_twin(&held.fd);
        if !again && namespace != routes.namespace() {
            return Ok(Told::Network("namespace"));
        }
        let stands = twin::stands(&held.fd).map_err(network("options"))?;
        if again {
            match stands {
                _ if family == libc::AF_UNSPEC as u16 => return Ok(Told::Answer(libc::EOPNOTSUPP)),
                Some(Stands::Unconnected) => {}
                // The kernel tells how it stands, or waits as after a signal.
                _ => return Ok(Told::On),
            }
        }
        let to = twin::address(bytes).filter(|to| to.port() != 0);
        let Some(to) = to.filter(|_| stands == Some(Stands::Unconnected)) else {
            return Ok(if again {
                Told::Answer(libc::EINVAL)
            } else {
                Told::Own
            });
        };
        let told = self.make(l, call.thread, held, (number, cloexec), to, again);
        match told {
            // A socket of the host goes nowhere but where it may.
            Err(Told::Network(_) | Told::Own) if again => Ok(Told::Answer(libc::ENETUNREACH)),
            other => other,
        }
    }

    /// Makes the host's socket, if there may be one.
    fn make(
        &mut self,
        l: &Arc<Listener>,
        thread: i32,
        held: Held,
        (at, cloexec): (i32, bool),
        to: SocketAddr,
        again: bool,
    ) -> Result<Told, Told> {
        let ip = to.ip();
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return Err(Told::Own);
        }
        let none: SocketAddr = ([0; 4], 0).into();
        let bound = if again {
            none
        } else {
            twin::here(&held.fd).map_err(network("options"))?
        };
        let chosen = Some(bound.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
        let routes = l.routes.as_ref().ok_or(Told::Own)?;
        let way = routes.towards(ip, chosen).map_err(network("inside"))?;
        let Way { from, via } = way.ok_or(Told::Network("inside"))?;
        let ends = Ends {
            from: SocketAddr::new(from, bound.port()),
            to,
            via,
        };
        let waits = !twin::is_nonblocking(&held.fd).map_err(network("options"))?;
        // Who waits with a limit would be told EALREADY at its end, for the connection has begun before.
        if waits && !again && twin::is_impatient(&held.fd).map_err(network("options"))? {
            return Err(Told::Network("options"));
        }
        if self.is_busy(l) {
            return Err(Told::Network("busy"));
        }
        let t = self.threads.get(&thread).ok_or(Told::Own)?;
        let sets = t.sets(at, &held).map_err(network("unreadable"))?;
        let sets = sets.ok_or(Told::Network("shared"))?;
        let source = self.verdict(&l.port, ends).map_err(Told::Network)?;
        let fd = twin::twin(&held.fd, to, &source, again).map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Told::Network("options"),
            _ => Told::Network("host"),
        })?;
        let made = Box::new(Made {
            fd,
            at,
            cloexec,
            waits,
            ends,
            held: held.fd,
            sets,
        });
        match twin::begin(&made.fd, to) {
            Ok(true) => Ok(Told::Given(made, Some(0))),
            Ok(false) if waits => Ok(Told::Given(made, None)),
            Ok(false) => Ok(Told::Given(made, Some(libc::EINPROGRESS))),
            Err(e) => Err(self.failed(l, &e)),
        }
    }

    /// How a failure outside is told: as the host's kernel does.
    fn failed(&self, l: &Listener, e: &io::Error) -> Told {
        match e.raw_os_error() {
            Some(
                error @ (libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
                | libc::ECONNRESET
                | libc::ENETDOWN
                | libc::EHOSTDOWN),
            ) => {
                self.shared.table().port(&l.port).failed += 1;
                Told::Answer(error)
            }
            // The host's own trouble: ports, descriptors, its firewall.
            _ => Told::Network("host"),
        }
    }

    fn is_busy(&self, l: &Arc<Listener>) -> bool {
        let table = self.shared.table();
        table.all.len() >= MOST
            || table.all.len() >= MOST_OF_PORT
                && table.all.values().filter(|c| c.port == l.port).count() >= MOST_OF_PORT
    }

    fn may(&self, port: &str, ends: Ends, begins: bool) -> Result<Permit, &'static str> {
        api::lock(&self.plane).judge_switched(port, ends, begins)
    }

    /// One goes by the network.
    fn count(&self, port: &str, why: &str) {
        let mut table = self.shared.table();
        let network = &mut table.port(port).network;
        match network.get_mut(why) {
            Some(n) => *n += 1,
            None => drop(network.insert(why.into(), 1)),
        }
    }

    /// The same for one that begins, by what is known from the last time if that holds.
    fn verdict(&mut self, port: &str, ends: Ends) -> Result<Source, &'static str> {
        let generation = self.shared.generation.load(Relaxed);
        if let Some(source) = self.verdicts.find(generation, port, ends) {
            return Ok(source);
        }
        let Permit { source, lasts } = self.may(port, ends, true)?;
        if lasts {
            self.verdicts.keep(generation, port, ends, source.clone());
        }
        Ok(source)
    }

    /// Hands a socket over. A program that waits goes on to wait by connect(2) itself: with a signal, a time limit or a failure it is
    /// told so by the kernel.
    fn give(&mut self, l: &Listener, call: u64, made: &Made, answer: Option<i32>) {
        if self.register(made).is_err() {
            let _ = seccomp::go_on(&l.fd, call);
            self.count(&l.port, "shared");
            return;
        }
        let put = self.enter(l, made).and_then(|number| {
            if made.waits {
                twin::make_blocking(&made.fd)?;
            }
            let put = seccomp::put(&l.fd, call, made.fd.as_fd(), made.at, made.cloexec);
            put.inspect_err(|_| drop(self.shared.table().all.remove(&number)))
        });
        if put.is_err() {
            let _ = seccomp::go_on(&l.fd, call);
            return;
        }
        self.shared.table().port(&l.port).switched += 1;
        // The old socket would end by itself what it has registered, but only once nobody has it: not before we have answered.
        for r in &made.sets {
            if let Some(registrar) = &self.registrar {
                let _ = registrar.remove(r.set.as_fd(), made.held.as_fd(), made.at);
            }
        }
        let _ = match answer {
            Some(error) => seccomp::answer(&l.fd, call, error),
            None => seccomp::go_on(&l.fd, call),
        };
    }

    /// Has the epoll sets know the socket by the number that it is to have. What is registered ends with the socket, if that isn't
    /// handed over.
    fn register(&mut self, made: &Made) -> io::Result<()> {
        if made.sets.is_empty() {
            return Ok(());
        }
        let registrar = match self.registrar.take() {
            Some(registrar) => registrar,
            None => Registrar::start()?,
        };
        let registrar = self.registrar.insert(registrar);
        for r in &made.sets {
            let added = registrar.add(r.set.as_fd(), made.fd.as_fd(), made.at, r.entry);
            // The same set, by a duplicate of it.
            if !matches!(&added, Err(e) if e.raw_os_error() == Some(libc::EEXIST)) {
                added?;
            }
        }
        Ok(())
    }

    fn enter(&self, l: &Listener, made: &Made) -> io::Result<u64> {
        let number = twin::number(&made.fd)?;
        let inode = nix::sys::stat::fstat(made.fd.as_fd())?.st_ino;
        let now = Instant::now();
        let connection = Connection {
            port: l.port.clone(),
            ends: made.ends,
            here: twin::here(&made.fd)?,
            began: now,
            used: now,
            inode,
            known: Known {
                state: SYN_SENT,
                ..Known::default()
            },
            over: false,
        };
        self.shared.table().all.insert(number, connection);
        Ok(number)
    }

    fn judge_again(&self) {
        if !self.shared.changed.swap(false, Relaxed) {
            return;
        }
        let all: Vec<(u64, String, Ends)> = {
            let table = self.shared.table();
            let one = |(n, c): (&u64, &Connection)| (*n, c.port.clone(), c.ends);
            table.all.iter().map(one).collect()
        };
        for (number, port, ends) in all {
            if self.may(&port, ends, false).is_err()
                && let Some(c) = self.shared.table().all.get_mut(&number)
            {
                c.over = true;
                self.shared.ending.store(true, Relaxed);
            }
        }
    }

    /// Resets what is to end. What is in nobody's hands just now, as on its way by a unix socket, is looked for again.
    fn end_those_over(&self) {
        if !self.shared.ending.swap(false, Relaxed) {
            return;
        }
        let over: Vec<(u64, Connection)> = {
            let table = self.shared.table();
            let over = table.all.iter().filter(|(_, c)| c.over);
            over.map(|(n, c)| (*n, c.clone())).collect()
        };
        for (number, c) in over {
            let is_it = |fd: &OwnedFd| twin::number(fd).ok() == Some(number);
            let done = match self.diag.destroy(c.here, c.ends.to, number) {
                Ok(()) => true,
                Err(_) => {
                    tracee::find(c.inode, is_it).is_some_and(|fd| twin::disconnect(fd).is_ok())
                }
            };
            if done {
                let mut table = self.shared.table();
                table.all.remove(&number);
                if let Some(view) = table.ports.get_mut(&c.port) {
                    view.reset += 1;
                }
            } else {
                self.shared.ending.store(true, Relaxed);
            }
        }
    }

    /// Asks after connections; those that aren't any more are forgotten.
    fn sweep(&mut self) {
        self.swept = Instant::now();
        self.threads.clear();
        let some: Vec<(u64, SocketAddr, SocketAddr)> = {
            let table = self.shared.table();
            let one = |(n, c): (&u64, &Connection)| (*n, c.here, c.ends.to);
            if self.hand >= table.all.len() {
                self.hand = 0;
            }
            let from = table.all.iter().skip(self.hand);
            from.map(one).take(SWEPT).collect()
        };
        self.hand += SWEPT;
        for (number, here, to) in some {
            let found = self.diag.find(here, to, number);
            let mut table = self.shared.table();
            match found {
                Ok(None) => drop(table.all.remove(&number)),
                // Both have ended it.
                Ok(Some(known)) if known.state == TIME_WAIT => drop(table.all.remove(&number)),
                Ok(Some(known)) => {
                    if let Some(c) = table.all.get_mut(&number)
                        && c.known != known
                    {
                        (c.known, c.used) = (known, Instant::now());
                    }
                }
                Err(_) => {}
            }
        }
    }
}

/// The namespace that this thread opens sockets in.
fn home() -> io::Result<u64> {
    twin::namespace(super::routes::open()?)
}
