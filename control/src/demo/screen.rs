//! What is drawn, as text: a matrix, a line of bars, a histogram. Colour only where standard output is a terminal and NO_COLOR
//! (no-color.org) isn't set; block characters only where the terminal's locale has them.

use super::DemoError;
use hdrhistogram::Histogram;
use std::io::{self, IsTerminal, Write};

/// How something is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Head,
    Good,
    Bad,
    Dim,
    Bar,
}

impl Ink {
    /// SGR parameter (ECMA-48 8.3.117).
    fn sgr(self) -> &'static str {
        match self {
            Ink::Head => "1",
            Ink::Good => "32",
            Ink::Bad => "31",
            Ink::Dim => "2",
            Ink::Bar => "36",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    colour: bool,
    blocks: bool,
}

/// Columns of the longest bar of a histogram.
const BAR: u64 = 40;
/// Rows of a histogram, the last for the slowest.
const ROWS: i32 = 10;

impl Screen {
    pub(super) fn new() -> Screen {
        let set = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        let terminal = io::stdout().is_terminal();
        let able = set("TERM").is_some_and(|t| t != "dumb");
        let locale = set("LC_ALL")
            .or_else(|| set("LC_CTYPE"))
            .or_else(|| set("LANG"));
        let utf8 = locale.is_some_and(|l| {
            let l = l.to_ascii_lowercase();
            l.contains("utf-8") || l.contains("utf8")
        });
        Screen {
            colour: terminal && able && set("NO_COLOR").is_none(),
            blocks: terminal && utf8,
        }
    }

    /// Prints at once.
    #[expect(clippy::unused_self, reason = "a screen is what one prints on")]
    pub(super) fn say(&self, text: &str) -> Result<(), DemoError> {
        let mut out = io::stdout().lock();
        let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        done.map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => DemoError::Closed,
            _ => DemoError::failed("writing to standard output", e, "is its disk full?"),
        })
    }

    pub(super) fn ink(&self, ink: Ink, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", ink.sgr())
        } else {
            text.to_owned()
        }
    }

    /// The title of a part.
    pub(super) fn title(&self, title: &str, more: &str) -> String {
        format!("\n{}  {more}\n", self.ink(Ink::Head, title))
    }

    /// Round trips from each (row) to each (column); `None` for no answer.
    pub(super) fn matrix(&self, names: &[&str], trips: &[Vec<Option<u64>>]) -> String {
        let mut text = format!("  {:>8}", "to");
        for name in names {
            text += &self.ink(Ink::Dim, &format!("{name:>12}"));
        }
        for (row, (from, trips)) in names.iter().zip(trips).enumerate() {
            text += &format!("\n  {}", self.ink(Ink::Dim, &format!("{from:>8}")));
            for (column, trip) in trips.iter().enumerate() {
                let (ink, cell) = match trip {
                    Some(nanos) => (Ink::Good, format!("{:.0} us", micros(*nanos))),
                    None => (Ink::Bad, "no answer".to_owned()),
                };
                let ink = if row == column && trip.is_some() {
                    Ink::Dim
                } else {
                    ink
                };
                text += &self.ink(ink, &format!("{cell:>12}"));
            }
        }
        text + "\n"
    }

    /// Values as bars side by side, one character each.
    pub(super) fn sparks(&self, values: &[u64]) -> String {
        let steps: Vec<char> = if self.blocks {
            "▁▂▃▄▅▆▇█".chars().collect()
        } else {
            "_.-=+*%#".chars().collect()
        };
        let most = values.iter().copied().max().unwrap_or(0).max(1);
        let last = steps.len() as u64 - 1;
        let spark = |v: &u64| steps[usize::try_from(v * last / most).unwrap_or(0)];
        self.ink(Ink::Bar, &values.iter().map(spark).collect::<String>())
    }

    /// A histogram of times in nanoseconds.
    pub(super) fn histogram(&self, times: &Histogram<u64>) -> String {
        let bars = bars(times);
        let most = bars.iter().map(|b| b.count).max().unwrap_or(0).max(1);
        let (all, block) = (times.len().max(1), if self.blocks { "█" } else { "#" });
        let mut text = String::new();
        for b in bars {
            let range = match b.to {
                Some(to) => format!("{:>5} - {:<5} us", tenths(b.from), tenths(to)),
                None => format!("{:>5}   or more ", tenths(b.from)),
            };
            let length = (b.count * BAR).div_ceil(most);
            let bar = block.repeat(usize::try_from(length).unwrap_or(0));
            let room = " ".repeat(usize::try_from(BAR - length).unwrap_or(0));
            let share = b.count as f64 * 100.0 / all as f64;
            text += &format!(
                "  {range}  {}{room} {share:5.1} %\n",
                self.ink(Ink::Bar, &bar)
            );
        }
        text
    }
}

/// A row of a histogram.
#[derive(Debug, PartialEq, Eq)]
struct Bar {
    from: u64,
    /// Its end; none for the last.
    to: Option<u64>,
    count: u64,
}

/// Rows of even ratio from the fastest to the 99th percentile, and one for what is slower.
fn bars(times: &Histogram<u64>) -> Vec<Bar> {
    let low = times.min().max(100) as f64;
    let high = (times.value_at_quantile(0.99) as f64).max(low * 1.1);
    let round = |nanos: f64| (nanos / 100.0).round() as u64 * 100;
    let edge = |i: i32| round(low * (high / low).powf(f64::from(i) / f64::from(ROWS - 1)));
    let mut edges: Vec<u64> = (0..ROWS).map(edge).collect();
    edges.dedup();
    let mut found = Vec::new();
    for (i, from) in edges.iter().copied().enumerate() {
        let to = edges.get(i + 1).copied();
        // Rounding mustn't lose what lies at either end.
        let first = if i == 0 { 0 } else { from };
        let inside = |v: u64| v >= first && to.is_none_or(|to| v < to);
        let of = times.iter_recorded();
        let of = of.filter(|v| inside(v.value_iterated_to()));
        let count = of.map(|v| v.count_at_value()).sum();
        found.push(Bar { from, to, count });
    }
    found
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Microseconds with a tenth where that says something.
pub(super) fn tenths(nanos: u64) -> String {
    let us = micros(nanos);
    if us < 100.0 {
        format!("{us:.1}")
    } else {
        format!("{us:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Screen = Screen {
        colour: false,
        blocks: false,
    };

    #[test]
    fn a_histogram_shows_every_value_once() {
        let mut times = Histogram::<u64>::new(3).unwrap();
        for i in 0..1000 {
            times.record(40_000 + i * 37).unwrap();
        }
        times.record(9_000_000).unwrap();
        let bars = bars(&times);
        assert_eq!(bars.iter().map(|b| b.count).sum::<u64>(), 1001);
        let last = bars.last().unwrap();
        assert!(
            last.to.is_none() && (1..=11).contains(&last.count),
            "{last:?}"
        );
        let text = PLAIN.histogram(&times);
        assert!(text.contains(&"#".repeat(40)) && text.is_ascii(), "{text}");
    }

    #[test]
    fn one_value_and_none_are_drawn_as_well() {
        let mut times = Histogram::<u64>::new(3).unwrap();
        assert!(!PLAIN.histogram(&times).contains('#'));
        times.record(50_000).unwrap();
        assert!(PLAIN.histogram(&times).contains("100.0 %"));
    }

    #[test]
    fn what_isnt_reached_is_said() {
        let trips = [vec![Some(10_000), None], vec![Some(52_400), Some(9_000)]];
        let text = PLAIN.matrix(&["web", "db"], &trips);
        assert!(
            text.contains("no answer") && text.contains("52 us"),
            "{text}"
        );
        let colour = Screen {
            colour: true,
            ..PLAIN
        };
        let text = colour.matrix(&["web", "db"], &trips);
        assert!(text.contains("\x1b[31m   no answer\x1b[0m"), "{text}");
    }

    #[test]
    fn sparks_are_scaled_to_the_largest() {
        assert_eq!(PLAIN.sparks(&[0, 50, 100]), "_=#");
        assert_eq!(PLAIN.sparks(&[0, 0]), "__");
    }
}
