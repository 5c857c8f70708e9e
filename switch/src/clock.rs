//! Monotonic time, passed in.
//!
//! A worker reads the clock once per turn; everything in the turn uses that reading. Tests pass
//! whatever time they like.

use std::time::Duration;

/// A point of monotonic time in nanoseconds; the origin is arbitrary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// A time that never comes.
    pub const MAX: Nanos = Nanos(u64::MAX);

    /// The time `d` later, saturating.
    #[must_use]
    pub fn after(self, d: Duration) -> Nanos {
        Nanos(
            self.0
                .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds since the origin.
    #[must_use]
    pub fn secs(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }
}

/// The system's monotonic clock. All clocks of a process have the same origin, so that workers can compare times.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

static ORIGIN: std::sync::LazyLock<std::time::Instant> =
    std::sync::LazyLock::new(std::time::Instant::now);

impl Default for Clock {
    fn default() -> Self {
        Clock { origin: *ORIGIN }
    }
}

impl Clock {
    /// The present time. Costs a vDSO call: once per turn, never per frame.
    #[must_use]
    pub fn now(&self) -> Nanos {
        // Begin at one hour, so that "an hour ago" is representable.
        Nanos(3_600_000_000_000 + self.origin.elapsed().as_nanos() as u64)
    }
}
