//! Medians over rounds, and ratios that are taken within a round before they are summed up: what slows a whole round down
//! (another program on the machine) is in both sides of its ratio.

use serde::Serialize;

/// Median, least and greatest of what was sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

/// Ratios `ours / theirs` of the rounds in which both have a value.
pub(crate) fn ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<Summary> {
    let both = ours
        .iter()
        .zip(theirs)
        .filter_map(|(a, b)| Some((*a)? / (*b)?));
    Summary::of(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        let odd = Summary::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        let even = Summary::of([4.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((even.median, even.min, even.max), (3.0, 1.0, 10.0));
        assert_eq!(Summary::of([7.0]).unwrap().median, 7.0);
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn a_slow_round_is_in_both_sides_of_its_ratio() {
        let ours = [Some(9.0), Some(1.8), Some(9.0)];
        let theirs = [Some(10.0), Some(2.0), Some(10.0)];
        assert_eq!(ratios(&ours, &theirs).unwrap().median, 0.9);
    }

    #[test]
    fn rounds_without_one_side_do_not_count() {
        let ours = [None, Some(2.0), Some(100.0)];
        let theirs = [Some(1.0), Some(4.0), None];
        let r = ratios(&ours, &theirs).unwrap();
        assert_eq!((r.median, r.min, r.max), (0.5, 0.5, 0.5));
        assert_eq!(ratios(&ours, &[None, None, None]), None);
        assert_eq!(ratios(&ours, &[None, Some(0.0), None]), None);
    }
}
