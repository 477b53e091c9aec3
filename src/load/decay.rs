//! A figure that falls with time, in one word.

use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The time constant: 10 s, as Finagle and linkerd have it.
pub(super) const DECAY: Duration = Duration::from_secs(10);

/// The figure, as the bits of an `f32`, and the millisecond of its last change, so that both change
/// together. One that is on trial is negative there.
#[derive(Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    const EMPTY: u64 = u64::MAX;

    /// Nothing yet.
    pub(super) fn empty() -> Self {
        Self(AtomicU64::new(Self::EMPTY))
    }

    pub(super) fn load(&self) -> Option<Figure> {
        Figure::unpack(self.0.load(Relaxed))
    }

    /// Sets what `next` makes of what is there, unless that is `None`. It is asked again when
    /// another thread was faster.
    pub(super) fn update(&self, mut next: impl FnMut(Option<Figure>) -> Option<Figure>) {
        let mut value = self.0.load(Relaxed);
        while let Some(next) = next(Figure::unpack(value)) {
            let next = next.pack();
            match self.0.compare_exchange_weak(value, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(changed) => value = changed,
            }
        }
    }
}

/// What a cell holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    /// Not negative.
    pub(super) value: f32,
    pub(super) stamp: u32,
    pub(super) is_on_trial: bool,
}

impl Figure {
    pub(super) fn new(value: f32, stamp: u32) -> Self {
        Self {
            value,
            stamp,
            is_on_trial: false,
        }
    }

    /// What is left of it.
    pub(super) fn at(&self, stamp: u32) -> f32 {
        self.value * decay(stamp.wrapping_sub(self.stamp))
    }

    fn pack(self) -> u64 {
        let value = if self.is_on_trial {
            -self.value
        } else {
            self.value
        };
        u64::from(value.to_bits()) << 32 | u64::from(self.stamp)
    }

    fn unpack(word: u64) -> Option<Self> {
        (word != Cell::EMPTY).then(|| {
            let value = f32::from_bits((word >> 32) as u32);
            Self {
                value: value.abs(),
                stamp: word as u32,
                is_on_trial: value.is_sign_negative(),
            }
        })
    }
}

/// Whole milliseconds; wraps after 49 days, which differences survive.
pub(super) fn stamp(at: Duration) -> u32 {
    (micros(at) / 1_000) as u32
}

/// Whole microseconds, for 580,000 years.
pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}

/// The share of a figure that is left after `elapsed` milliseconds: `e^(-elapsed / DECAY)`, within
/// 0.02 % and never growing with time.
///
/// A pick reads it for each endpoint that it compares: the whole part of the power of two goes
/// into the exponent, the rest is a cubic, and no function of the maths library is called.
pub(super) fn decay(elapsed: u32) -> f32 {
    const PER_MILLI: f32 = std::f32::consts::LOG2_E / DECAY.as_millis() as f32;
    const C1: f32 = 0.6954;
    const C2: f32 = 0.2264;
    // A stamp that another thread advanced in between looks like 49 days ahead.
    if elapsed == 0 || elapsed > u32::MAX / 2 {
        return 1.0;
    }
    let power = elapsed as f32 * PER_MILLI;
    let whole = power as u32;
    if whole >= 126 {
        return 0.0;
    }
    // 2^rest for a rest of 0 to 1, exact at both ends; found by search for the least error.
    let rest = 1.0 - (power - whole as f32);
    let cubic = 1.0 + rest * (C1 + rest * (C2 + rest * (1.0 - C1 - C2)));
    cubic * f32::from_bits((126 - whole) << 23)
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decay_never_grows() {
        let mut last = 1.0;
        for elapsed in 0..1_000_000 {
            let left = decay(elapsed);
            assert!(left <= last, "{elapsed}: {left} after {last}");
            last = left;
        }
        assert_eq!(decay(u32::MAX), 1.0);
        assert_eq!(decay(u32::MAX / 2), 0.0);
    }

    proptest! {
        #[test]
        fn decay_is_the_exponential(elapsed in 0_u32..800_000) {
            let exact = (-f64::from(elapsed) / 10_000.0).exp();
            let error = (f64::from(decay(elapsed)) / exact - 1.0).abs();
            prop_assert!(error < 2e-4, "{}", error);
        }
    }
}
