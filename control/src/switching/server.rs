//! The thread that answers calls; see the module's head.

use super::connections::{Connection, MOST, MOST_OF_PORT, Shared};
use super::diag::{Diag, Known};
use super::tracee::{self, Held, Tracee};
use super::{Listener, routes::Way};
use crate::api;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use vswitch_core::sys::seccomp::{self, Waiting};
use vswitch_core::sys::sock;
use vswitch_core::sys::source::Source;
use vswitch_core::sys::twin::{self, Stands};
use vswitch_nat::gateway::Ends;

/// Calls that wait until they are connected, in all and of one listener.
const PENDING: usize = 4096;
const PENDING_OF_ONE: usize = 256;
/// How often it is asked whether they still wait, and after connections.
const LOOK: Duration = Duration::from_millis(250);
const SWEEP: Duration = Duration::from_secs(1);
/// Connections that are asked after in one sweep.
const SWEPT: usize = 8192;
/// include/net/tcp_states.h
const SYN_SENT: u8 = 2;
const TIME_WAIT: u8 = 6;
/// Longest address of a system call (`struct sockaddr_storage`).
const ADDRESS: u64 = 128;

/// A connect(2) that waits.
struct Pending {
    listener: Arc<Listener>,
    call: u64,
    made: Made,
    until: Option<Instant>,
}

/// A socket of the host that is to take the place of a container's.
struct Made {
    fd: OwnedFd,
    at: i32,
    cloexec: bool,
    /// Calls on it wait, as on the container's own.
    waits: bool,
    ends: Ends,
}

/// What a call is told.
enum Told {
    /// It goes on with the container's own socket: it isn't about us.
    Own,
    /// The same; it could have been, but for this.
    Network(&'static str),
    /// 0, or an error number.
    Answer(i32),
    /// It waits.
    Later(Made, Option<Duration>),
    /// The connection is begun, or made.
    Given(Made, i32),
}

pub(super) struct Server {
    shared: Arc<Shared>,
    plane: api::Shared,
    diag: Diag,
    /// The namespace of the host's sockets.
    home: u64,
    listeners: Vec<Arc<Listener>>,
    pending: Vec<Pending>,
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
            pending: Vec::new(),
            swept: Instant::now(),
            hand: 0,
        })
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Relaxed) {
            let (ready, pending) = match self.wait() {
                Ok(ready) => ready,
                Err(e) => {
                    tracing::error!("sockets are switched no more: waiting for calls: {e}");
                    break;
                }
            };
            if let Some(wake) = &self.shared.wake {
                let _ = wake.read();
            }
            self.finish(&pending);
            self.answer_all(&ready);
            self.take_up();
            self.judge_again();
            self.end_those_over();
            if self.swept.elapsed() >= SWEEP {
                self.sweep();
            }
        }
        // What waits goes on without us, as all will that comes.
        for p in self.pending.drain(..) {
            let _ = seccomp::go_on(&p.listener.fd, p.call);
        }
    }

    /// Which listeners have something, and which connections are made.
    fn wait(&mut self) -> io::Result<(Vec<PollFlags>, Vec<bool>)> {
        let mut fds = Vec::with_capacity(1 + self.listeners.len() + self.pending.len());
        if let Some(wake) = &self.shared.wake {
            fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
        }
        let own = fds.len();
        for l in &self.listeners {
            fds.push(PollFd::new(l.fd.as_fd(), PollFlags::POLLIN));
        }
        for p in &self.pending {
            fds.push(PollFd::new(p.made.fd.as_fd(), PollFlags::POLLOUT));
        }
        let idle = self.shared.table().all.is_empty();
        let timeout = match (self.pending.is_empty(), idle) {
            (false, _) => Some(LOOK),
            (true, false) => Some(SWEEP),
            (true, true) => None,
        };
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let said = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let mut rest = fds.iter().skip(own);
        let ready = rest.by_ref().take(self.listeners.len()).map(said).collect();
        let pending = rest.map(|fd| !said(fd).is_empty()).collect();
        Ok((ready, pending))
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
            self.pending.retain(|p| !Arc::ptr_eq(&p.listener, &l));
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
                let mut table = self.shared.table();
                *table.port(&l.port).network.entry(why.into()).or_default() += 1;
            }
            Told::Answer(error) => drop(seccomp::answer(&l.fd, call.id, error)),
            Told::Given(made, error) => self.give(l, call.id, &made, error),
            Told::Later(made, patience) => self.pending.push(Pending {
                listener: l.clone(),
                call: call.id,
                made,
                until: patience.and_then(|p| Instant::now().checked_add(p)),
            }),
        }
    }

    /// bind(2) and listen(2) are for the container's own sockets.
    fn refuse_hosts(&self, l: &Listener, call: &Waiting) -> Told {
        let Ok(held) = Tracee::of(call.thread).and_then(|t| t.socket(call.args[0] as i32)) else {
            return Told::Own;
        };
        let is_home = twin::namespace(&held.fd).ok() == Some(self.home);
        if is_home && seccomp::is_valid(&l.fd, call.id) && self.is_twin(&held.fd).is_some() {
            return Told::Answer(libc::EINVAL);
        }
        Told::Own
    }

    /// The other end of a socket that we have handed over.
    fn is_twin(&self, fd: &OwnedFd) -> Option<SocketAddr> {
        let number = twin::number(fd).ok()?;
        // One that has ended is known by what nobody but us has set: its filter.
        let known = self.shared.table().all.get(&number).map(|c| c.ends.to);
        known.or_else(|| twin::is_locked(fd).then_some(SocketAddr::from(([0; 4], 0))))
    }

    fn connect(&mut self, l: &Arc<Listener>, call: &Waiting) -> Result<Told, Told> {
        let [number, at, len, ..] = call.args;
        let number = number as i32;
        let Some(routes) = &l.routes else {
            return Ok(Told::Own);
        };
        if !(2..=ADDRESS).contains(&len) {
            return Ok(Told::Own);
        }
        let t = Tracee::of(call.thread).map_err(network("unreadable"))?;
        let bytes = t.memory(at, len as usize).map_err(network("unreadable"))?;
        let family = bytes.first_chunk().map_or(0, |b| u16::from_ne_bytes(*b));
        let families = [libc::AF_UNSPEC, libc::AF_INET, libc::AF_INET6];
        if !families.contains(&family.into()) {
            return Ok(Told::Own);
        }
        let held = t.socket(number).map_err(network("unreadable"))?;
        let cloexec = t.is_cloexec(number).map_err(network("unreadable"))?;
        if !seccomp::is_valid(&l.fd, call.id) {
            return Ok(Told::Own);
        }
        let namespace = twin::namespace(&held.fd).map_err(network("namespace"))?;
        let again = match namespace == self.home {
            true => self.is_twin(&held.fd),
            false => None,
        };
        if again.is_none() && namespace != routes.namespace() {
            return Ok(Told::Network("namespace"));
        }
        let stands = twin::stands(&held.fd).map_err(network("options"))?;
        if let Some(known) = again {
            let known = Some(known).filter(|k| k.port() != 0);
            match (stands, known) {
                _ if family == libc::AF_UNSPEC as u16 => return Ok(Told::Answer(libc::EOPNOTSUPP)),
                (Some(Stands::Unconnected), _) => {}
                (Some(Stands::Connecting), _) => return Ok(Told::Answer(libc::EALREADY)),
                (_, None) => return Ok(Told::Answer(libc::EISCONN)),
                // As the kernel tells it: that it is made now, or was before.
                (_, Some(to)) => return Ok(Told::Answer(outcome(twin::begin(&held.fd, to)))),
            }
        }
        let to = twin::address(&bytes).filter(|to| to.port() != 0);
        let Some(to) = to.filter(|_| stands == Some(Stands::Unconnected)) else {
            return Ok(if again.is_some() {
                Told::Answer(libc::EINVAL)
            } else {
                Told::Own
            });
        };
        let told = self.make(l, (&t, &held), (number, cloexec), to, again.is_some());
        match told {
            // A socket of the host goes nowhere but where it may.
            Err(Told::Network(_) | Told::Own) if again.is_some() => {
                Ok(Told::Answer(libc::ENETUNREACH))
            }
            other => other,
        }
    }

    /// Makes the host's socket, if there may be one.
    fn make(
        &mut self,
        l: &Arc<Listener>,
        (t, held): (&Tracee, &Held),
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
        if self.is_busy(l) {
            return Err(Told::Network("busy"));
        }
        if t.is_shared(at, held).map_err(network("unreadable"))? {
            return Err(Told::Network("shared"));
        }
        let source = self.may(&l.port, ends, true).map_err(Told::Network)?;
        let fd = twin::twin(&held.fd, to, &source, again).map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Told::Network("options"),
            _ => Told::Network("host"),
        })?;
        let waits = !twin::is_nonblocking(&held.fd).map_err(network("options"))?;
        let made = Made {
            fd,
            at,
            cloexec,
            waits,
            ends,
        };
        match twin::begin(&made.fd, to) {
            Ok(true) => Ok(Told::Given(made, 0)),
            Ok(false) if waits => Ok(Told::Later(made, twin::patience(&held.fd))),
            Ok(false) => Ok(Told::Given(made, libc::EINPROGRESS)),
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
        let of_one = self.pending.iter().filter(|p| Arc::ptr_eq(&p.listener, l));
        if self.pending.len() >= PENDING || of_one.count() >= PENDING_OF_ONE {
            return true;
        }
        let table = self.shared.table();
        table.all.len() >= MOST
            || table.all.len() >= MOST_OF_PORT
                && table.all.values().filter(|c| c.port == l.port).count() >= MOST_OF_PORT
    }

    fn may(&self, port: &str, ends: Ends, begins: bool) -> Result<Source, &'static str> {
        api::lock(&self.plane).judge_switched(port, ends, begins)
    }

    /// Hands a socket over.
    fn give(&self, l: &Listener, call: u64, made: &Made, error: i32) {
        let entered = self.enter(l, made);
        let put = entered.and_then(|number| {
            if made.waits {
                twin::make_blocking(&made.fd)?;
            }
            let put = seccomp::put(&l.fd, call, made.fd.as_fd(), made.at, made.cloexec);
            put.inspect_err(|_| drop(self.shared.table().all.remove(&number)))
        });
        match put {
            Ok(()) => {
                self.shared.table().port(&l.port).switched += 1;
                let _ = seccomp::answer(&l.fd, call, error);
            }
            Err(_) => drop(seccomp::go_on(&l.fd, call)),
        }
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

    /// Connections that calls wait for.
    fn finish(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut all = std::mem::take(&mut self.pending);
        let mut ready = ready.iter().copied();
        for p in all.drain(..) {
            if ready.next().unwrap_or(false) {
                match sock::take_error(&p.made.fd) {
                    Ok(()) => self.give(&p.listener, p.call, &p.made, 0),
                    Err(e) => match self.failed(&p.listener, &e) {
                        Told::Answer(error) => {
                            let _ = seccomp::answer(&p.listener.fd, p.call, error);
                        }
                        _ => drop(seccomp::go_on(&p.listener.fd, p.call)),
                    },
                }
            } else if p.until.is_some_and(|u| u <= now) {
                // As SO_SNDTIMEO has it: it goes on by itself.
                self.give(&p.listener, p.call, &p.made, libc::EINPROGRESS);
            } else if seccomp::is_valid(&p.listener.fd, p.call) {
                self.pending.push(p);
            }
        }
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
            }
        }
    }

    /// Resets what is to end. What is in nobody's hands just now, as on its way by a unix socket, is looked for again.
    fn end_those_over(&self) {
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
            }
        }
    }

    /// Asks after connections; those that aren't any more are forgotten.
    fn sweep(&mut self) {
        self.swept = Instant::now();
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

/// What connect(2) would return.
fn outcome(begun: io::Result<bool>) -> i32 {
    match begun {
        Ok(true) => 0,
        Ok(false) => libc::EALREADY,
        Err(e) => e.raw_os_error().unwrap_or(libc::EINVAL),
    }
}

/// The namespace that this thread opens sockets in.
fn home() -> io::Result<u64> {
    twin::namespace(super::routes::open()?)
}
