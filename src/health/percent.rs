use std::fmt;

/// A share of a hundred, to two places.
///
/// # Examples
///
/// ```
/// use tower_gateway::health::Percent;
///
/// assert_eq!(Percent::new(50.0).to_string(), "50 %");
/// assert_eq!(Percent::new(250.0), Percent::new(100.0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent {
    hundredths: u16,
}

impl Percent {
    pub(crate) const HALF: Self = Self { hundredths: 5_000 };

    /// This share; below 0 it is 0, and above 100 it is 100.
    #[must_use]
    pub fn new(percent: f64) -> Self {
        Self {
            hundredths: (percent.clamp(0.0, 100.0) * 100.0).round() as u16,
        }
    }

    /// The share that `part` is of `whole`; of nothing, it is everything.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Self {
        if whole == 0 {
            return Self::new(100.0);
        }
        Self::new(part as f64 * 100.0 / whole as f64)
    }

    /// The number, from 0 to 100.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.hundredths) / 100.0
    }

    /// This share of a count, rounded down.
    pub(super) fn share_of(self, count: usize) -> usize {
        count * usize::from(self.hundredths) / 10_000
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.value())
    }
}

impl fmt::Debug for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(Percent::of(1, 3).to_string(), "33.33 %");
        assert_eq!(Percent::of(0, 0).value(), 100.0);
        assert_eq!(Percent::new(50.0).share_of(3), 1);
        assert_eq!(Percent::new(-1.0), Percent::new(0.0));
        assert_eq!(Percent::new(f64::NAN).value(), 0.0);
    }
}
