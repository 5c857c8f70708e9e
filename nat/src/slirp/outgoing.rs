//! Datagrams of containers that wait for the end of the batch they came with, so that those of one flow go to its socket together.
//!
//! A frame stays whole and is its datagram's buffer. Datagrams of one size that follow each other are one message for the kernel, cut
//! by it as late as it can (UDP_SEGMENT); others go several by one call. One that the kernel doesn't take is dropped with its reason.

use super::errors::{Travel, cause_of, errors, is_too_long};
use super::udp::{SEGMENTS, Udp, quote};
use super::{Flow, Key, Out, Slirp};
use arrayvec::ArrayVec;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Frame};
use vswitch_core::sys::{datagram, mmsg, sock};

/// Most that wait; a batch has fewer.
const MOST: usize = 256;
/// Most bytes of one message with its headers, and a little less.
const MESSAGE: usize = 65_000;

/// One datagram, or several of one size that the container left to be cut.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) flow: u32,
    /// The flow in that place must be this one yet.
    key: Key,
    nth: u32,
    frame: Frame,
    /// Where the payload is: in the head, and how far into the tail.
    head: (usize, usize),
    tail: usize,
    size: Option<u16>,
    travel: Travel,
}

/// Payload of a frame: in its head, how much of its tail, and the size of each datagram if it has several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) head: (usize, usize),
    pub(super) tail: usize,
    pub(super) size: Option<u16>,
}

impl Datagram {
    fn parts(&self) -> [&[u8]; 2] {
        let (from, to) = self.head;
        let first = self.frame.head().get(from..to).unwrap_or_default();
        let rest = self.frame.tail().get(..self.tail).unwrap_or_default();
        [first, rest]
    }

    fn len(&self) -> usize {
        self.head.1 - self.head.0 + self.tail
    }
}

/// How many of the first datagrams can go as one.
fn alike(run: &[Datagram]) -> usize {
    let Some(first) = run.first().filter(|d| d.size.is_none() && d.len() > 0) else {
        return 1;
    };
    let (mut n, mut bytes) = (0, 0);
    for d in run.iter().take(SEGMENTS) {
        let len = d.len();
        let fits = d.size.is_none() && d.travel == first.travel && len > 0 && len <= first.len();
        if !fits || bytes + len > MESSAGE {
            break;
        }
        (n, bytes) = (n + 1, bytes + len);
        if len < first.len() {
            // A shorter one is the last.
            break;
        }
    }
    n.max(1)
}

/// Puts those of a flow together in their order, and says where each flow's are: by who came first, as the slots of a table say
/// nothing about that and hosts outside may care (traceroute).
fn in_turn(all: &mut [Datagram]) -> ArrayVec<(u32, Range<usize>), MOST> {
    all.sort_unstable_by_key(|d| (d.flow, d.nth));
    let (mut runs, mut at) = (ArrayVec::new(), 0);
    for run in all.chunk_by(|a, b| a.flow == b.flow && a.key == b.key) {
        let from = at;
        at += run.len();
        runs.extend(run.first().map(|d| (d.nth, from..at)));
    }
    runs.sort_unstable_by_key(|(first, _)| *first);
    runs
}

impl Udp {
    /// Sends the first few; how many of them the kernel has taken.
    fn send_some(&mut self, run: &[Datagram], v6: bool) -> io::Result<usize> {
        let Some(first) = run.first() else {
            return Ok(0);
        };
        first.travel.tell(self.fd.as_fd(), v6, &mut self.travel);
        if let Some(size) = first.size {
            return self.send_cut(first.parts(), size).map(|()| 1);
        }
        let n = alike(run);
        if n > 1 && first.len() <= self.joins {
            let run = run.get(..n).unwrap_or_default();
            let parts = run.iter().flat_map(Datagram::parts);
            let parts = parts.filter(|p| !p.is_empty()).map(IoSlice::new);
            let parts: ArrayVec<IoSlice<'_>, { 2 * SEGMENTS }> = parts.collect();
            match datagram::send_segments(&self.fd, &parts, first.len() as u16) {
                Ok(_) => return Ok(n),
                // The kernel can't, or they are longer than the way takes.
                Err(e) if is_no_segmentation(&e) => self.joins = first.len() - 1,
                Err(e) => return Err(e),
            }
        }
        if run.len() == 1 {
            return sock::send(&self.fd, first.parts()).map(|_| 1);
        }
        let mut each = ArrayVec::<[IoSlice<'_>; 2], { mmsg::MAX_MESSAGES }>::new();
        for (i, d) in run.iter().enumerate().take(mmsg::MAX_MESSAGES) {
            let joins = || d.len() <= self.joins && alike(run.get(i..).unwrap_or_default()) > 1;
            if d.size.is_some() || d.travel != first.travel || i > 0 && joins() {
                break;
            }
            each.push(d.parts().map(IoSlice::new));
        }
        Ok(mmsg::sendmmsg(&self.fd, &each)?)
    }

    /// Sends datagrams of `size` bytes that a container left to be cut.
    fn send_cut(&mut self, parts: [&[u8]; 2], size: u16) -> io::Result<()> {
        let each = usize::from(size).max(1);
        let (mut at, all) = (0, parts[0].len() + parts[1].len());
        let cut = |from: usize, to: usize| {
            let split = parts[0].len();
            let first = parts[0].get(from.min(split)..to.min(split));
            let rest = parts[1].get(from.saturating_sub(split)..to.saturating_sub(split));
            [first.unwrap_or_default(), rest.unwrap_or_default()]
        };
        while at < all {
            let joins = each <= self.joins;
            let most = if joins {
                (MESSAGE / each).clamp(1, SEGMENTS)
            } else {
                1
            };
            let end = (at + each * most).min(all);
            let piece = cut(at, end);
            let sent = match end - at > each {
                true => datagram::send_segments(&self.fd, &piece.map(IoSlice::new), size),
                false => sock::send(&self.fd, piece),
            };
            match sent {
                Ok(_) => at = end,
                Err(e) if end - at > each && is_no_segmentation(&e) => self.joins = each - 1,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sends all of a flow, and says of each what became of it.
    fn send_all(
        &mut self,
        key: &Key,
        run: &mut [Datagram],
        out: &mut Vec<Out>,
        done: &mut dyn FnMut(&Datagram, Result<(), DropReason>),
    ) {
        let v6 = key.outside.is_ipv6();
        let (mut at, mut again) = (0, false);
        while let Some(rest) = run.get_mut(at..).filter(|r| !r.is_empty()) {
            let error = match self.send_some(rest, v6) {
                Ok(n) => {
                    let sent = rest.get(..n.max(1)).unwrap_or_default();
                    sent.iter().for_each(|d| done(d, Ok(())));
                    at += sent.len();
                    again = false;
                    continue;
                }
                Err(e) => e,
            };
            if error.kind() != ErrorKind::WouldBlock {
                errors(self.fd.as_fd(), v6, out, &|payload| quote(key, payload));
                let too_long = is_too_long(&error);
                if !again && !too_long {
                    // It was the error of a datagram before.
                    again = true;
                    continue;
                }
                if let Some(d) = rest.first_mut() {
                    let why = if too_long {
                        DropReason::Mtu
                    } else {
                        let offender = std::mem::take(&mut d.frame);
                        out.push(Out::Error(offender, cause_of(&error), None));
                        DropReason::HostSocket
                    };
                    done(d, Err(why));
                }
            } else if let Some(d) = rest.first() {
                done(d, Err(DropReason::QueueFull));
            }
            (at, again) = (at + 1, false);
        }
    }
}

/// Whether an error says that the kernel can't cut, or not this.
fn is_no_segmentation(e: &io::Error) -> bool {
    is_too_long(e)
        || matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported)
        || e.raw_os_error() == Some(datagram::NO_SEGMENTATION)
}

impl Slirp {
    /// Has a datagram wait for the end of the batch.
    pub(super) fn put(
        &mut self,
        now: Nanos,
        (flow, key): (u32, Key),
        frame: Frame,
        p: Payload,
        travel: Travel,
    ) {
        if self.outgoing.len() >= MOST {
            self.send_datagrams(now);
        }
        self.outgoing.push(Datagram {
            flow,
            key,
            nth: self.outgoing.len() as u32,
            frame,
            head: p.head,
            tail: p.tail,
            size: p.size,
            travel,
        });
    }

    /// Sends the datagrams that wait.
    pub(super) fn send_datagrams(&mut self, now: Nanos) {
        if self.outgoing.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.outgoing);
        for (_, range) in in_turn(&mut all) {
            let run = all.get_mut(range).unwrap_or_default();
            let flow = run.first().and_then(|d| {
                let slot = self.table.get(d.flow)?;
                (slot.key == d.key).then_some(slot)
            });
            let counters = &self.counters;
            let mut done = |d: &Datagram, sent: Result<(), DropReason>| match sent {
                Ok(()) => {
                    counters.tx_frames.add(1);
                    counters.tx_bytes.add(d.frame.len() as u64);
                }
                Err(why) => counters.count_drop(why, 1),
            };
            let Some(slot) = flow else {
                run.iter()
                    .for_each(|d| done(d, Err(DropReason::HostSocket)));
                continue;
            };
            slot.used = now;
            if let Flow::Udp(u) = &mut slot.flow {
                u.send_all(&slot.key, run, &mut self.out, &mut done);
            }
        }
        all.clear();
        self.outgoing = all;
    }
}

#[cfg(test)]
mod tests {
    use super::super::errors::OWN;
    use super::*;

    fn key(outside: std::net::SocketAddr) -> Key {
        Key {
            proto: 17,
            inside: "192.0.2.10:5000".parse().unwrap(),
            outside,
        }
    }

    fn datagram(nth: u32, len: usize, ttl: Option<u8>) -> Datagram {
        Datagram {
            flow: 1,
            key: key("127.0.0.1:9".parse().unwrap()),
            nth,
            frame: Frame::from_bytes(&vec![nth as u8; len]).unwrap(),
            head: (0, len.min(1000)),
            tail: 0,
            size: None,
            travel: Travel { ttl, ..OWN },
        }
    }

    #[test]
    fn only_those_of_a_size_and_a_shorter_last_go_as_one() {
        let count = |sizes: &[usize]| {
            let run: Vec<_> = sizes.iter().map(|n| datagram(0, *n, None)).collect();
            alike(&run)
        };
        assert_eq!(count(&[64; 5]), 5);
        assert_eq!(count(&[64, 64, 10, 10]), 3);
        assert_eq!(count(&[64, 65]), 1);
        assert_eq!(count(&[0, 0]), 1, "an empty one has no segments");
        assert_eq!(count(&[64, 0]), 1);
        assert_eq!(count(&[64; 200]), SEGMENTS);
        assert_eq!(count(&[1000; 80]), SEGMENTS);
        let run = [datagram(0, 9, None), datagram(1, 9, Some(2))];
        assert_eq!(alike(&run), 1, "another TTL");
    }

    #[test]
    fn flows_have_their_turn_by_who_came_first() {
        let mut all: Vec<_> = (0u32..)
            .zip([7, 7, 3, 9, 3, 7, 1])
            .map(|(nth, flow)| Datagram {
                flow,
                ..datagram(nth, 1, None)
            })
            .collect();
        let runs = in_turn(&mut all);
        let turn = |r: &(u32, Range<usize>)| all[r.1.clone()].iter().map(|d| d.nth).collect();
        let turns: Vec<Vec<u32>> = runs.iter().map(turn).collect();
        assert_eq!(turns, [vec![0, 1, 5], vec![2, 4], vec![3], vec![6]]);
    }

    #[test]
    fn all_arrive_in_order_whatever_their_sizes() {
        let far = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = far.local_addr().unwrap();
        let fd = sock::open(sock::Kind::Udp, to, None).unwrap();
        let mut udp = Udp::new(fd, 1);
        let key = key(to);
        let sizes = [64, 64, 64, 9, 0, 1, 2, 3, 3, 3, 700, 64, 1, 1];
        let mut run: Vec<_> = (0u32..)
            .zip(sizes)
            .map(|(i, n)| datagram(i, n, (i == 11).then_some(9)))
            .collect();
        let (mut out, mut sent) = (vec![], 0);
        udp.send_all(&key, &mut run, &mut out, &mut |_, r| {
            assert_eq!(r, Ok(()));
            sent += 1;
        });
        assert_eq!((sent, out.len()), (sizes.len(), 0));
        let mut buf = [0; 2000];
        for (i, size) in sizes.iter().enumerate() {
            let n = far.recv(&mut buf).unwrap();
            assert_eq!(&buf[..n], &vec![i as u8; *size][..]);
        }
        // Nobody listens any more: told once, and each counted.
        drop(far);
        let mut run = [datagram(0, 5, None)];
        udp.send_all(&key, &mut run, &mut out, &mut |_, r| assert_eq!(r, Ok(())));
        let mut run = [datagram(0, 5, None)];
        let mut told = false;
        udp.send_all(&key, &mut run, &mut out, &mut |_, _| told = true);
        assert!(told);
        assert_eq!(out.len(), 1);
    }
}
