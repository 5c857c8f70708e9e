//! Acknowledgements that a later one makes superfluous.
//!
//! # Theory of operation
//!
//! A receiver of bulk TCP acknowledges every long segment once or twice. A TCP acknowledgement is cumulative, so of those of one
//! connection that wait for the same port at the same time the last says it all (ACK filtering, RFC 3449 section 5.2.1): each
//! that is left out saves a system call here and a walk through the sender's stack.
//!
//! One takes the place of another only where nothing is lost by it: both carry no data and no flag but ACK, the same headers and
//! sequence number, no option but timestamps, and the later one acknowledges more. So duplicates, window updates, selective
//! acknowledgements and congestion marks all pass. [`MOST`] bounds how many become one, so that the sender's clock of
//! acknowledgements keeps ticking.

use super::{Frame, GsoType};

/// Most acknowledgements that become one.
const MOST: u16 = 4;
/// Where TCP has its checksum.
const TCP_CHECKSUM: u16 = 16;
/// Options of an acknowledgement with nothing but timestamps: two no-operations, kind 8, length 10 (RFC 7323 appendix A).
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];
/// How far back in a queue an earlier one is looked for.
const REACH: usize = 16;

/// A TCP segment without data and with no flag but ACK.
struct Ack<'a> {
    frame: &'a [u8],
    l4: usize,
    v4: bool,
}

impl<'a> Ack<'a> {
    /// Only of segments whose checksum is left to offloading: those come from a kernel, and say where TCP begins.
    fn of(frame: &'a Frame) -> Option<Ack<'a>> {
        let v = &frame.vnet;
        if !v.needs_csum || v.csum_offset != TCP_CHECKSUM || v.gso != GsoType::None {
            return None;
        }
        let (head, l4) = (frame.head(), usize::from(v.csum_start));
        let tcp: &[u8; 20] = head.get(l4..)?.first_chunk()?;
        let header = match (tcp[12], tcp[13]) {
            (0x50, 0x10) => 20,
            (0x80, 0x10) if *head.get(l4 + 20..)?.first_chunk()? == TIMESTAMPS => 32,
            _ => return None,
        };
        if frame.len() != l4 + header {
            return None;
        }
        let at = |back: usize| head.get(l4.checked_sub(back)?..l4);
        let says = |len: &[u8; 2], whole: usize| usize::from(u16::from_be_bytes(*len)) == whole;
        let v4 = match (at(22), at(42)) {
            // Not a fragment, TCP.
            (Some([8, 0, 0x45, _, l1, l2, _, _, flags, 0, _, 6, ..]), _)
                if says(&[*l1, *l2], 20 + header) && flags & 0x3f == 0 =>
            {
                true
            }
            (_, Some([0x86, 0xdd, version, _, _, _, l1, l2, 6, ..]))
                if version >> 4 == 6 && says(&[*l1, *l2], header) =>
            {
                false
            }
            _ => return None,
        };
        Some(Ack {
            frame: head,
            l4,
            v4,
        })
    }

    fn field(&self, at: usize) -> u32 {
        let bytes = self.frame.get(self.l4 + at..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u32::from_be_bytes(*b))
    }

    /// Whether the frame is of the same connection and direction.
    fn same_flow(&self, other: &Frame) -> bool {
        let (a, b) = (self.frame, other.head());
        let same = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
        let addresses = if self.v4 { 8 } else { 32 };
        same(self.l4 - addresses, self.l4 + 4)
    }

    /// Whether all but the acknowledgement, its window and timestamps, IPv4's identification and checksums is the same.
    fn same_but_number(&self, other: &Ack<'_>) -> bool {
        let same = |from: usize, to: usize| self.frame.get(from..to) == other.frame.get(from..to);
        let l4 = self.l4;
        let ip = if self.v4 {
            same(0, l4 - 16) && same(l4 - 14, l4 - 10) && same(l4 - 8, l4)
        } else {
            same(0, l4)
        };
        // Ports and sequence number; data offset and flags.
        ip && l4 == other.l4 && self.v4 == other.v4 && same(l4, l4 + 8) && same(l4 + 12, l4 + 14)
    }
}

/// Puts `next` into the place of one that waits and that it makes superfluous; gives it back if there is none.
#[inline]
pub(crate) fn replace<'a>(
    waiting: impl Iterator<Item = &'a mut Frame>,
    next: Frame,
) -> Result<(), Frame> {
    if next.len() > 100 {
        return Err(next);
    }
    search(waiting, next)
}

fn search<'a>(waiting: impl Iterator<Item = &'a mut Frame>, mut next: Frame) -> Result<(), Frame> {
    let Some(ack) = Ack::of(&next) else {
        return Err(next);
    };
    for earlier in waiting.take(REACH) {
        if !ack.same_flow(earlier) {
            continue;
        }
        // The latest of the flow: if it stays, so does all before it.
        let newer = Ack::of(earlier).is_some_and(|e| {
            let more = ack.field(8).wrapping_sub(e.field(8));
            ack.same_but_number(&e) && more > 0 && more < 1 << 31
        });
        if !newer || earlier.merged + 1 >= MOST {
            return Err(next);
        }
        next.merged = earlier.merged + 1;
        *earlier = next;
        return Ok(());
    }
    Err(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::VnetHdr;

    fn ack(v4: bool, port: u16, seq: u32, number: u32) -> Frame {
        let mut b = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if v4 {
            b.extend([8, 0, 0x45, 0, 0, 52, 1, 2, 0x40, 0, 64, 6, 9, 9]);
            b.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        } else {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 6, 64]);
            b.extend([0x20; 32]);
        }
        let l4 = b.len();
        b.extend(port.to_be_bytes());
        b.extend([0, 80]);
        b.extend(seq.to_be_bytes());
        b.extend(number.to_be_bytes());
        b.extend([
            0x80, 0x10, 1, 1, 7, 7, 0, 0, 1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6,
        ]);
        let mut f = Frame::from_bytes(&b).expect("fits");
        f.vnet = VnetHdr {
            needs_csum: true,
            csum_start: l4 as u16,
            csum_offset: TCP_CHECKSUM,
            ..VnetHdr::default()
        };
        f
    }

    /// Queues frames as a transmit queue does, and returns what waits then.
    fn queued(frames: Vec<Frame>) -> Vec<Frame> {
        let mut waiting: Vec<Frame> = Vec::new();
        for f in frames {
            if let Err(f) = replace(waiting.iter_mut().rev(), f) {
                waiting.push(f);
            }
        }
        waiting
    }

    #[test]
    fn the_last_of_a_connection_stands_for_those_before() {
        for v4 in [true, false] {
            let left = queued(vec![
                ack(v4, 1, 7, u32::MAX),
                ack(v4, 2, 7, 500),
                ack(v4, 1, 7, 100),
                ack(v4, 2, 7, 900),
            ]);
            let want = [ack(v4, 1, 7, 100), ack(v4, 2, 7, 900)];
            assert_eq!(left.len(), 2);
            for (l, w) in left.iter().zip(&want) {
                assert_eq!((l.to_vec(), l.merged), (w.to_vec(), 1));
            }
        }
    }

    #[test]
    fn no_more_than_so_many_become_one() {
        let left = queued((1..=10).map(|i| ack(true, 1, 7, i)).collect());
        let merged: Vec<u16> = left.iter().map(|f| f.merged + 1).collect();
        assert_eq!(merged, [MOST, MOST, 2]);
    }

    #[test]
    fn what_says_something_of_its_own_stays() {
        let stays = |what: &str, change: &dyn Fn(&mut Frame)| {
            for both in [false, true] {
                let (mut first, mut second) = (ack(true, 1, 7, 100), ack(true, 1, 7, 200));
                change(&mut second);
                if both {
                    change(&mut first);
                    if first.to_vec() == second.to_vec() || what.starts_with("one") {
                        continue;
                    }
                }
                let left = queued(vec![first, second]);
                assert_eq!(left.len(), 2, "{what}");
            }
        };
        let l4 = 34;
        stays("one duplicate", &|f| f.head_mut()[l4 + 11] = 100);
        stays("one older", &|f| f.head_mut()[l4 + 11] = 99);
        stays("one of another sequence number", &|f| {
            f.head_mut()[l4 + 7] = 8;
        });
        stays("congestion echo", &|f| f.head_mut()[l4 + 13] = 0x50);
        stays("push", &|f| f.head_mut()[l4 + 13] = 0x18);
        stays("end", &|f| f.head_mut()[l4 + 13] = 0x11);
        stays("selective", &|f| f.head_mut()[l4 + 22] = 5);
        stays("fragment", &|f| f.head_mut()[20] = 0x20);
        stays("another protocol", &|f| f.head_mut()[23] = 17);
        stays("one of other marks", &|f| f.head_mut()[15] = 2);
        stays("one of another hop count", &|f| f.head_mut()[22] = 63);
        stays("summed", &|f| f.vnet.needs_csum = false);
        stays("cut short", &|f| f.truncate(60));
        stays("data", &|f| assert!(f.append(&[1])));
    }

    #[test]
    fn it_doesnt_overtake_what_its_own_connection_sent() {
        let mut data = ack(true, 1, 7, 100);
        data.head_mut()[47] = 0x18;
        assert!(data.append(&[1; 9]));
        let left = queued(vec![ack(true, 1, 7, 100), data, ack(true, 1, 7, 200)]);
        assert_eq!(left.len(), 3);
    }
}
