//! What of its processor and its memory an endpoint says that it uses.

use std::time::Duration;

use super::report::Report;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long a report is believed.
const EXPIRY: Duration = Duration::from_secs(60);

/// One word holds both shares, in thousandths, and the second of the report: 16, 16 and 32 bits. A
/// share that was not reported is 0, so that an empty word says nothing.
#[derive(Debug)]
pub(super) struct Usage(AtomicU64);

impl Usage {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(super) fn report(&self, report: &Report, at: Duration) {
        let (cpu, memory) = (thousandths(report.cpu()), thousandths(report.memory()));
        if cpu == 0 && memory == 0 {
            return;
        }
        let second = at.as_secs() & u64::from(u32::MAX);
        self.0.store(cpu << 48 | memory << 32 | second, Relaxed);
    }

    /// The share of the processor.
    pub(super) fn cpu(&self, at: Duration) -> Option<f64> {
        self.share(48, at)
    }

    /// The share of the memory.
    pub(super) fn memory(&self, at: Duration) -> Option<f64> {
        self.share(32, at)
    }

    fn share(&self, shift: u32, at: Duration) -> Option<f64> {
        let word = self.0.load(Relaxed);
        let reported = Duration::from_secs(word & u64::from(u32::MAX));
        let share = (word >> shift) as u16;
        let is_fresh = share > 0 && at.saturating_sub(reported) < EXPIRY;
        is_fresh.then(|| f64::from(share) / 1e3)
    }
}

/// At least one where anything was reported, at most 65.535 times the capacity.
fn thousandths(share: Option<f64>) -> u64 {
    let most = f64::from(u16::MAX);
    share.map_or(0, |share| (share * 1e3).round().clamp(1.0, most) as u64)
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    fn reported(field: &str, at: Duration) -> Usage {
        let usage = Usage::new();
        usage.report(&Report::parse(field).unwrap(), at);
        usage
    }

    #[test]
    fn shares_are_believed_for_a_minute() {
        let at = Duration::from_secs;
        let usage = reported("TEXT cpu_utilization=0.25,mem_utilization=0.8", at(100));
        assert_eq!(usage.cpu(at(159)), Some(0.25));
        assert_eq!(usage.memory(at(159)), Some(0.8));
        assert_eq!(usage.cpu(at(160)), None);
        assert_eq!(Usage::new().cpu(at(1)), None);
    }

    #[test]
    fn each_is_there_without_the_other() {
        let at = Duration::from_secs(1);
        let usage = reported("TEXT mem_utilization=0.00001", at);
        assert_eq!((usage.cpu(at), usage.memory(at)), (None, Some(0.001)));
        let usage = reported("TEXT cpu_utilization=1e9", at);
        assert_eq!((usage.cpu(at), usage.memory(at)), (Some(65.535), None));
        // What says nothing of either leaves what was said before.
        usage.report(&Report::parse("TEXT rps_fractional=4").unwrap(), at);
        assert_eq!(usage.cpu(at), Some(65.535));
    }
}
