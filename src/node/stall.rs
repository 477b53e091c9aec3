//! How long frames wait for a client that grants no window.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The streams of a connection that wait, counted by the sweep in which they began to. The sweeps go
/// round: a connection does not outlast the first sweep that finds an old one.
#[derive(Debug, Default)]
pub(super) struct Stalls([AtomicU32; Self::ROUND]);

impl Stalls {
    /// More than any limit in sweeps.
    const ROUND: usize = 8;

    fn at(&self, sweep: u32) -> &AtomicU32 {
        &self.0[sweep as usize % Self::ROUND]
    }

    pub(super) fn begin(&self, sweep: u32) {
        self.at(sweep).fetch_add(1, Relaxed);
    }

    /// Ends the wait of a stream that began in this sweep.
    pub(super) fn end(&self, sweep: u32) {
        self.at(sweep).fetch_sub(1, Relaxed);
    }

    /// Whether a stream has waited for at least so many sweeps.
    pub(super) fn any(&self, sweep: u32, sweeps: u32) -> bool {
        (sweeps..Self::ROUND as u32).any(|age| self.at(sweep.wrapping_sub(age)).load(Relaxed) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_many_streams_counts() {
        let stalls = Stalls::default();
        let start = u32::MAX - 1;
        stalls.begin(start);
        for age in 0..4 {
            let sweep = start.wrapping_add(age);
            assert!(!stalls.any(sweep, 4), "{age}");
            stalls.begin(sweep);
            stalls.end(sweep);
        }
        let late = start.wrapping_add(4);
        assert!(stalls.any(late, 4));
        stalls.begin(late);
        stalls.end(start);
        assert!(!stalls.any(late, 4));
    }
}
