//! Token buckets that workers share without a lock.
//!
//! The generic cell rate algorithm (GCRA, ITU-T I.371 annex A, "virtual scheduling"): the state is one time, the *theoretical
//! arrival time* at which the bucket would be full again. A frame passes while that is less than the burst ahead of now, and moves
//! it on by its cost. So a frame longer than the burst passes as soon as the bucket holds anything, and the bucket goes
//! into debt: a 64 KiB segmentation-offload frame can't be starved.

use crate::bridge::Rate;
use crate::clock::Nanos;
use crate::frame::{Frame, GsoType};
use crate::wire::{L4, Meta};
use crate::worker::Cx;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Fractional bits of the time per unit, so that rates of many gigabytes per second are exact enough.
const FRACTION: u32 = 20;

/// A token bucket.
#[derive(Debug)]
pub struct Meter {
    /// Theoretical arrival time, nanoseconds.
    tat: AtomicU64,
    /// Nanoseconds per unit, fixed point; 0 lets nothing pass.
    per_unit: u64,
    /// How far ahead of now `tat` may be, nanoseconds.
    tolerance: u64,
}

impl Meter {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Meter {
        let per_unit = (1_000_000_000u64 << FRACTION)
            .checked_div(rate.per_second)
            .map_or(0, |n| n.max(1));
        Meter {
            tat: AtomicU64::new(0),
            per_unit,
            // Half the range, so that a debt fits on top.
            tolerance: time(rate.burst, per_unit).min(u64::MAX / 2),
        }
    }

    /// Whether something may pass at `now`.
    #[must_use]
    pub fn passes(&self, now: Nanos) -> bool {
        let ahead = self.tat.load(Relaxed).saturating_sub(now.0);
        self.per_unit != 0 && (ahead == 0 || ahead < self.tolerance)
    }

    /// Whether `units` may pass now; takes them if so, unless the frame is only asked about.
    pub fn take(&self, cx: &Cx, units: u64) -> bool {
        if cx.is_dry() {
            return self.passes(cx.now);
        }
        self.admit(cx.now, units)
    }

    /// Whether `units` may pass at `now`; takes them if so.
    pub fn admit(&self, now: Nanos, units: u64) -> bool {
        if self.per_unit == 0 {
            return false;
        }
        // Rounded up, so that many small costs don't make a bit more than the burst.
        let cost = time(units, self.per_unit).saturating_add(1);
        // Tables and frames don't hang on it, so no ordering.
        self.tat
            .fetch_update(Relaxed, Relaxed, |tat| {
                let ahead = tat.saturating_sub(now.0);
                let passes = ahead == 0 || ahead < self.tolerance;
                passes.then(|| tat.max(now.0).saturating_add(cost))
            })
            .is_ok()
    }
}

fn time(units: u64, per_unit: u64) -> u64 {
    u64::try_from((u128::from(units) * u128::from(per_unit)) >> FRACTION).unwrap_or(u64::MAX)
}

/// Frames and bytes on the wire that a frame becomes: a segmentation-offload frame counts as its segments, each with headers.
#[must_use]
pub fn wire_load(frame: &Frame, meta: &Meta) -> (u64, u64) {
    let len = frame.len() as u64;
    let size = u64::from(frame.vnet.gso_size);
    if frame.vnet.gso == GsoType::None || size == 0 {
        return (1, len);
    }
    let l4 = usize::from(meta.l4_off);
    // The sender's `hdr_len` is only a hint: count by the headers themselves.
    let headers = match meta.l4 {
        L4::Tcp => {
            l4 + frame
                .head()
                .get(l4 + 12)
                .map_or(20, |b| usize::from(b >> 4) * 4)
        }
        L4::Udp => l4 + 8,
        _ => return (1, len),
    } as u64;
    let segments = len.saturating_sub(headers).div_ceil(size).max(1);
    (segments, len + (segments - 1) * headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::VnetHdr;
    use crate::wire;
    use std::sync::Arc;

    const SECOND: u64 = 1_000_000_000;

    fn passed(meter: &Meter, units: u64, from: u64, seconds: u64) -> u64 {
        (0..seconds * 1000)
            .map(|ms| Nanos(from + ms * SECOND / 1000))
            .map(|now| {
                let n = (0..10).filter(|_| meter.admit(now, units)).count();
                n as u64 * units
            })
            .sum()
    }

    #[test]
    fn burst_then_rate() {
        let rate = Rate {
            per_second: 1_000_000,
            burst: 50_000,
        };
        let meter = Meter::new(rate);
        let n = passed(&meter, 1000, SECOND, 10);
        assert!((10_000_000..=10_100_000).contains(&n), "{n}");
    }

    #[test]
    fn a_frame_beyond_the_burst_passes_and_is_paid_for() {
        let rate = Rate {
            per_second: 125_000,
            burst: 1500,
        };
        let meter = Meter::new(rate);
        let n = passed(&meter, 65_000, SECOND, 20);
        assert!((2_500_000..=2_600_000).contains(&n), "{n}");
    }

    #[test]
    fn extremes() {
        let nothing = Meter::new(Rate {
            per_second: 0,
            burst: 1 << 40,
        });
        assert!(!nothing.admit(Nanos(1), 1) && !nothing.passes(Nanos(1)));
        let slow = Meter::new(Rate {
            per_second: 1,
            burst: u64::MAX,
        });
        assert!(slow.admit(Nanos(1), u64::MAX));
        assert!(!slow.admit(Nanos(2), 1));
        let fast = Meter::new(Rate {
            per_second: 100_000_000_000,
            burst: 0,
        });
        assert!(fast.admit(Nanos(1), 65_536));
        assert!(!fast.passes(Nanos(2)) && !fast.admit(Nanos(2), 1));
        assert!(fast.passes(Nanos(1000)) && fast.passes(Nanos(1000)));
        assert!(fast.admit(Nanos(1000), 1));
    }

    #[test]
    fn threads_share_one_bucket() {
        let meter = Arc::new(Meter::new(Rate {
            per_second: 1,
            burst: 10_000,
        }));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let m = meter.clone();
                std::thread::spawn(move || (0..5000).filter(|_| m.admit(Nanos(SECOND), 1)).count())
            })
            .collect();
        let sum: usize = threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .sum();
        assert_eq!(sum, 10_000);
    }

    #[test]
    fn segments_count_with_their_headers() {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = 20 + 32 + 10_000u16;
        bytes.extend([0x45, 0]);
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let mut tcp = [0u8; 32];
        tcp[12] = 8 << 4;
        bytes.extend(tcp);
        bytes.extend(vec![0; 10_000]);
        let mut frame = Frame::from_bytes(&bytes).expect("fits");
        let meta = wire::parse(frame.head(), frame.len()).expect("long enough");
        assert_eq!(wire_load(&frame, &meta), (1, 10_066));
        frame.vnet = VnetHdr {
            gso: GsoType::Tcp4,
            needs_csum: true,
            gso_size: 1448,
            ..VnetHdr::default()
        };
        assert_eq!(wire_load(&frame, &meta), (7, 10_066 + 6 * 66));
    }
}
