//! What an operator is told of a service.

use crate::discover::{ServiceName, Snapshot, State, Stats};

/// No line names more entries than this.
const NAMED: usize = 20;

/// Logs what is new.
pub(super) fn tell(
    service: &ServiceName,
    (before, after): (&Snapshot, &Snapshot),
    (counted, counts): (Stats, Stats),
) {
    let endpoints = after.endpoints.len();
    if after.refused != before.refused && !after.refused.is_empty() {
        let named = after.refused.iter().take(NAMED).map(ToString::to_string);
        let entries = named.collect::<Vec<_>>().join("; ");
        let count = after.refused.len();
        tracing::warn!(%service, count, entries, "entries of the source are refused");
    }
    if counts.guarded > counted.guarded {
        tracing::warn!(%service, endpoints, "the source dropped endpoints; they are kept for now");
    }
    let turned = after.state.as_str() != before.state.as_str();
    let reason = after.reason.as_deref().unwrap_or("unknown");
    match after.state {
        State::Stale { .. } if turned || after.reason != before.reason => {
            tracing::warn!(%service, endpoints, reason, "endpoints are stale");
        }
        State::Pending if after.reason != before.reason => {
            tracing::warn!(%service, reason, "endpoints are not known yet");
        }
        State::Absent if turned => tracing::warn!(%service, "the source knows no such service"),
        State::Live if turned => tracing::info!(%service, endpoints, "endpoints are live"),
        _ => {}
    }
    if after.version != before.version {
        let diff = after.diff(before);
        let (added, updated, removed) = (diff.added.len(), diff.updated.len(), diff.removed.len());
        tracing::debug!(%service, version = after.version, added, updated, removed, "endpoints changed");
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;

    use super::*;
    use crate::{
        discover::{BackendError, Guard, Listing, RawEvent, Refused, roster::Roster},
        endpoint::Endpoint,
        time,
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_operator_reads_what_is_refused_stale_guarded_and_live_again() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        let now = time::now();
        let mut roster = Roster::new(Guard::default(), std::time::Duration::ZERO, now);
        let mut step = |act: &dyn Fn(&mut Roster)| {
            let before = (Arc::clone(roster.snapshot()), roster.stats());
            act(&mut roster);
            roster.publish(now);
            let snapshots = (&*before.0, &**roster.snapshot());
            tell(&"users".into(), snapshots, (before.1, roster.stats()));
            String::from_utf8(std::mem::take(&mut *lines.0.lock())).unwrap()
        };
        tracing::subscriber::with_default(subscriber, || {
            let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
            let bad = Refused::new("line 2: b", "no address");
            let listing = Listing::new([endpoint]).refused([bad]);
            let told = step(&|roster| roster.event(RawEvent::Reset(listing.clone()), now));
            assert!(told.contains("line 2: b: no address"), "{told}");
            assert!(
                told.contains("INFO") && told.contains("endpoints are live"),
                "{told}"
            );
            let away = BackendError::Transient("away".into());
            let told = step(&|roster| roster.fail(&away));
            assert!(told.contains("WARN") && told.contains("stale"), "{told}");
            assert!(told.contains("away"), "{told}");
            assert_eq!(step(&|roster| roster.fail(&away)), "");
            let told = step(&|roster| roster.event(RawEvent::Alive(None), now));
            assert!(told.contains("endpoints are live"), "{told}");
            let told = step(&|roster| roster.event(RawEvent::Absent, now));
            assert!(told.contains("the source dropped endpoints"), "{told}");
        });
    }
}
