//! The middle of several figures, and how far they lie apart.

/// The value in the middle; of an even number of values the mean of the two there.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// Least, middle and greatest of several figures of the same thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The one in the middle.
    pub middle: f64,
    /// The greatest.
    pub most: f64,
    /// How many there are.
    pub of: usize,
}

impl Spread {
    /// Of these; `None` of none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Spread> {
        let least = values.iter().copied().min_by(f64::total_cmp)?;
        let most = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Spread { least, middle: median(values.to_vec())?, most, of: values.len() })
    }

    /// Whether the two have a value in common.
    #[must_use]
    pub fn overlaps(&self, other: &Spread) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 9.0, 2.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn spreads_that_only_touch_overlap() {
        let of = |values: &[f64]| Spread::of(values).unwrap();
        assert!(of(&[1.0, 3.0]).overlaps(&of(&[3.0, 4.0])));
        assert!(!of(&[1.0, 3.0]).overlaps(&of(&[3.5, 4.0])));
        assert!(of(&[1.0, 9.0]).overlaps(&of(&[3.5, 4.0])));
        assert_eq!(Spread::of(&[]), None);
    }
}
