//! What was judged just now, kept for a moment.
//!
//! To ask takes waking the worker that judges packets, which costs as much as all else about a connection; programs connect to the same places
//! again and again. So what holds for a place by configuration alone, with no policy to count, charge or look up names for, is
//! kept until anything is configured, and for no longer than a moment, for ports and the host's addresses change by themselves.

use std::collections::HashMap;
use std::time::{Duration, Instant};
use vswitch_core::sys::source::Source;
use vswitch_nat::gateway::Ends;

/// Most that are kept.
const MOST: usize = 256;
const MOMENT: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Verdicts {
    generation: u64,
    kept: HashMap<(String, Ends), (Source, Instant)>,
}

impl Verdicts {
    /// From where it leaves, if that is known and nothing was configured since.
    pub(super) fn find(&mut self, generation: u64, port: &str, ends: Ends) -> Option<Source> {
        if self.generation != generation {
            self.kept.clear();
            self.generation = generation;
        }
        let (source, since) = self.kept.get(&(port.to_owned(), ends))?;
        (since.elapsed() < MOMENT).then(|| source.clone())
    }

    /// Keeps what was judged after `generation` was read.
    pub(super) fn keep(&mut self, generation: u64, port: &str, ends: Ends, source: Source) {
        if self.generation != generation {
            return;
        }
        if self.kept.len() >= MOST {
            self.kept.clear();
        }
        let now = Instant::now();
        self.kept.insert((port.to_owned(), ends), (source, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outlives_what_is_configured() {
        let mut all = Verdicts::default();
        let ends = Ends {
            from: "192.0.2.10:0".parse().unwrap(),
            to: "198.51.100.1:80".parse().unwrap(),
            via: "192.0.2.1".parse().unwrap(),
        };
        assert!(all.find(1, "a", ends).is_none());
        all.keep(1, "a", ends, Source::default());
        assert!(all.find(1, "b", ends).is_none());
        let mut other = ends;
        other.to.set_port(81);
        assert!(all.find(1, "a", other).is_none());
        assert!(all.find(2, "a", ends).is_none());
        all.keep(1, "a", ends, Source::default());
        assert!(all.find(2, "a", ends).is_none(), "judged before");
        for port in 0..2 * MOST {
            all.keep(2, &port.to_string(), ends, Source::default());
        }
        assert!(all.kept.len() <= MOST);
    }
}
