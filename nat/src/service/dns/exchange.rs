//! One question and the resolvers it is put to, without sockets.
//!
//! An [`Exchange`] says what to do next, and is told what came of it. Resolvers are asked in their order, those last that
//! didn't answer [`DEAD_AFTER`] times running, for [`DEAD_FOR`]. While others come after it a resolver is first waited for
//! [`IMPATIENCE`] only, so one that is silent costs a second and not its whole time-out. A truncated answer is fetched again by TCP; a resolver that
//! doesn't understand EDNS is asked once without; one that fails leaves it to the next. Only an answer with our id and
//! our question counts: all else is somebody guessing, and the wait goes on.

use super::wire::{self, Question, flag, rcode};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use vswitch_core::clock::Nanos;

const DEAD_AFTER: u8 = 3;
const IMPATIENCE: Duration = Duration::from_secs(1);
const DEAD_FOR: Duration = Duration::from_secs(30);
/// Steps of one exchange: resolvers, rounds and the detours by TCP and without EDNS.
const MAX_STEPS: u8 = 32;
/// Longest that a question is worked on: clients have gone by then.
const MAX_TIME: Duration = Duration::from_secs(12);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no resolver is configured; name one with `nameserver`")]
    NoResolver,
    #[error("no resolver answered in time; check that they can be reached")]
    Timeout,
    #[error("there is no way to any resolver; check the host's routes")]
    Unreachable,
    #[error("the forwarder has too many questions under way; try again")]
    Busy,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failures: u8,
    dead_until: Nanos,
}

/// The resolvers, and which of them answer.
#[derive(Debug)]
pub struct Resolvers {
    servers: Vec<Server>,
    timeout: Duration,
    attempts: u8,
}

impl Resolvers {
    /// `own` are addresses of ours: asking them would be a loop.
    #[must_use]
    pub fn new(
        servers: &[SocketAddr],
        timeout: Duration,
        attempts: u8,
        own: &[IpAddr],
    ) -> Resolvers {
        let servers = servers.iter().filter(|s| !own.contains(&s.ip()));
        Resolvers {
            servers: servers
                .map(|address| Server {
                    address: *address,
                    failures: 0,
                    dead_until: Nanos(0),
                })
                .collect(),
            timeout: timeout.clamp(Duration::from_millis(50), Duration::from_secs(30)),
            attempts: attempts.clamp(1, 5),
        }
    }

    /// Has those that didn't answer asked in their place again: the network has changed.
    pub(super) fn forgive(&mut self) {
        for server in &mut self.servers {
            (server.failures, server.dead_until) = (0, Nanos(0));
        }
    }

    fn order(&self, now: Nanos) -> Vec<SocketAddr> {
        let dead = |s: &&Server| s.dead_until > now;
        let mut order: Vec<_> = self.servers.iter().filter(|s| !dead(s)).collect();
        let mut last: Vec<_> = self.servers.iter().filter(dead).collect();
        last.sort_by_key(|s| s.dead_until);
        order.extend(last);
        order.iter().map(|s| s.address).collect()
    }

    fn answered(&mut self, address: SocketAddr, well: bool, now: Nanos) {
        let Some(server) = self.servers.iter_mut().find(|s| s.address == address) else {
            return;
        };
        if well {
            server.failures = 0;
            server.dead_until = Nanos(0);
        } else {
            server.failures = server.failures.saturating_add(1);
            if server.failures >= DEAD_AFTER {
                server.dead_until = now.after(DEAD_FOR);
            }
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send the message and wait until the time.
    Ask {
        server: SocketAddr,
        tcp: bool,
        message: Vec<u8>,
        until: Nanos,
    },
    /// It is over.
    Done(Result<Vec<u8>, Failure>),
}

/// A question being put.
#[derive(Debug)]
pub(super) struct Exchange {
    message: Vec<u8>,
    question: Option<Question>,
    order: Vec<SocketAddr>,
    /// Place in `attempts` rounds of the order.
    at: usize,
    tcp: bool,
    plain: bool,
    id: u16,
    steps: u8,
    /// Some resolver was waited for in vain.
    waited: bool,
    until: Nanos,
    /// The best bad answer so far.
    bad: Option<Vec<u8>>,
    truncated: Option<Vec<u8>>,
}

impl Exchange {
    pub(super) fn new(message: Vec<u8>, resolvers: &Resolvers, now: Nanos) -> Exchange {
        Exchange {
            question: Question::read(&message).map(|(q, _)| q),
            message,
            order: resolvers.order(now),
            at: 0,
            tcp: false,
            plain: false,
            id: 0,
            steps: 0,
            waited: false,
            until: now.after(MAX_TIME),
            bad: None,
            truncated: None,
        }
    }

    /// The next step, with a random number for the id.
    pub(super) fn step(&mut self, resolvers: &Resolvers, now: Nanos, random: u16) -> Step {
        let rounds = self.order.len() * usize::from(resolvers.attempts);
        let over = self.at >= rounds || self.steps >= MAX_STEPS || now >= self.until;
        let server = self.server();
        let (Some(server), false, Some(_)) = (server, over, &self.question) else {
            let failure = match self.order.is_empty() {
                true => Failure::NoResolver,
                false if self.waited || now >= self.until => Failure::Timeout,
                false => Failure::Unreachable,
            };
            let answer = self.truncated.take().or(self.bad.take());
            return Step::Done(answer.ok_or(failure));
        };
        self.steps += 1;
        self.id = random;
        let mut message = self.message.clone();
        if self.plain {
            without_opt(&mut message);
        }
        wire::put_u16(&mut message, 0, random);
        // Later rounds wait longer, as the C library does.
        let round = (self.at / self.order.len()) as u32;
        let mut wait = resolvers.timeout * 2u32.pow(round.min(3));
        if self.at + 1 < self.order.len() {
            wait = wait.min(IMPATIENCE);
        }
        Step::Ask {
            server,
            tcp: self.tcp,
            message,
            until: now.after(wait).min(self.until),
        }
    }

    /// Begins anew with these resolvers, as when the list or the way to them has changed.
    pub(super) fn restart(&mut self, resolvers: &Resolvers, now: Nanos) {
        self.order = resolvers.order(now);
        self.at = 0;
        (self.tcp, self.plain) = (false, false);
    }

    /// Who is asked.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.order
            .get(self.at.checked_rem(self.order.len())?)
            .copied()
    }

    /// No answer came in time.
    pub(super) fn timed_out(&mut self, resolvers: &mut Resolvers, now: Nanos) {
        self.waited = true;
        self.failed(resolvers, now);
    }

    /// The resolver can't be reached, or gave nothing that can be used.
    pub(super) fn failed(&mut self, resolvers: &mut Resolvers, now: Nanos) {
        if let Some(server) = self.server()
            && !self.tcp
        {
            resolvers.answered(server, false, now);
        }
        self.next_server();
    }

    fn next_server(&mut self) {
        self.at += 1;
        self.tcp = false;
        self.plain = false;
    }

    /// A message came from the resolver. Gives the answer when it is one; `None` with `false` means to go on waiting, with `true` to
    /// take the next step.
    pub(super) fn received(
        &mut self,
        message: Vec<u8>,
        resolvers: &mut Resolvers,
        now: Nanos,
    ) -> (bool, Option<Vec<u8>>) {
        let flags = wire::u16_at(&message, 2).unwrap_or(0);
        let ours = wire::u16_at(&message, 0) == Some(self.id) && flags & flag::QR != 0;
        let asked = Question::read(&message).map(|(q, _)| q);
        let code = flags & 15;
        // A resolver that can't read the query may leave the question out.
        let no_question = wire::u16_at(&message, 4) == Some(0)
            && matches!(code, rcode::FORM_ERR | rcode::NOT_IMP | rcode::REFUSED);
        if !ours || (asked != self.question && !no_question) {
            return (false, None);
        }
        if let Some(server) = self.server() {
            resolvers.answered(server, true, now);
        }
        match code {
            rcode::FORM_ERR | rcode::NOT_IMP if !self.plain => self.plain = true,
            rcode::NO_ERROR | rcode::NX_DOMAIN if flags & flag::TC != 0 => {
                if self.tcp {
                    self.next_server();
                } else {
                    self.truncated = Some(message);
                    self.tcp = true;
                }
            }
            rcode::NO_ERROR | rcode::NX_DOMAIN => return (true, Some(message)),
            _ => {
                if !no_question {
                    self.bad = Some(message);
                }
                self.next_server();
            }
        }
        (true, None)
    }
}

/// Takes off the OPT record that [`super::reply::upstream`] put at the end.
fn without_opt(message: &mut Vec<u8>) {
    if wire::u16_at(message, 10) == Some(1) {
        message.truncate(message.len().saturating_sub(11));
        wire::put_u16(message, 10, 0);
    }
}
