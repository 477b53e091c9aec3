//! The rules that every backend keeps together with the driver.

use std::{sync::Arc, time::Duration};

use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::{
    Change, Fixture,
    bench::{Bench, Check, Miss, fourth, holds},
};
use crate::discover::{BackendError, Empties, RawEvent};

type Verdict = Result<(), Miss>;

/// Every rule, by name.
pub(super) const RULES: &[(&str, Check)] = &[
    ("a connection begins with the whole list", |f| {
        Box::pin(begins_with_the_list(f))
    }),
    ("every attribute of an endpoint arrives", |f| {
        Box::pin(every_attribute_arrives(f))
    }),
    ("an endpoint that comes is seen", |f| {
        Box::pin(additions_are_seen(f))
    }),
    (
        "an endpoint that changes is seen and the others stay the same",
        |f| Box::pin(changes_are_seen(f)),
    ),
    ("an endpoint that goes is seen", |f| {
        Box::pin(removals_are_seen(f))
    }),
    ("the same list in another order is no change", |f| {
        Box::pin(order_is_no_change(f))
    }),
    (
        "of two entries with one id the later is refused and named",
        |f| Box::pin(duplicates_are_refused(f)),
    ),
    ("an outage keeps the list and turns it stale", |f| {
        Box::pin(an_outage_keeps_the_list(f))
    }),
    ("what changes during an outage is seen after it", |f| {
        Box::pin(an_outage_leaves_no_gap(f))
    }),
    ("garbled data keeps the list and says why", |f| {
        Box::pin(garbled_data_keeps_the_list(f))
    }),
    ("an empty list is guarded", |f| {
        Box::pin(an_empty_list_is_guarded(f))
    }),
    ("a service that vanishes is guarded", |f| {
        Box::pin(a_vanished_service_is_guarded(f))
    }),
    ("an unknown service is absent", |f| {
        Box::pin(an_unknown_service_is_absent(f))
    }),
    ("removals one by one empty the list", |f| {
        Box::pin(removals_empty_the_list(f))
    }),
    ("a forgotten history is read again", |f| {
        Box::pin(a_lost_cursor_lists_again(f))
    }),
    ("a cursor goes on without a gap", |f| {
        Box::pin(a_cursor_leaves_no_gap(f))
    }),
    ("dropping the last watch closes the connection", |f| {
        Box::pin(a_dropped_watch_disconnects(f))
    }),
];

fn ensure(holds: bool, expected: &str) -> Verdict {
    if holds {
        return Ok(());
    }
    Err(Miss::Failed(format!("expected {expected}")))
}

async fn begins_with_the_list(fixture: &mut dyn Fixture) -> Verdict {
    let bench = Bench::start(fixture).await;
    let mut said = bench.backend.connect(&bench.fixture().service(), None);
    let first = timeout(bench.within(), said.next()).await;
    match first {
        Ok(Some(Ok(RawEvent::Reset(_)))) => Ok(()),
        other => Err(Miss::Failed(format!(
            "expected a list first, found {other:?}"
        ))),
    }
}

async fn every_attribute_arrives(fixture: &mut dyn Fixture) -> Verdict {
    Bench::live(fixture).await.map(drop)
}

async fn additions_are_seen(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.put(fourth()).await?;
    bench.follows().await.map(drop)
}

async fn changes_are_seen(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    let before = bench.watch.current();
    let changed = bench.list[0].clone().weight(7).metadata("version", "v2");
    if bench.fixture().carried(changed.clone()) == bench.list[0] {
        return Err(Miss::Skipped("change an endpoint".to_owned()));
    }
    let id = changed.id.clone();
    bench.put(changed).await?;
    let after = bench.follows().await?;
    ensure(
        after.version == before.version + 1,
        "one change for one endpoint",
    )?;
    for (old, new) in before.endpoints.iter().zip(after.endpoints.iter()) {
        let kept = Arc::ptr_eq(old, new) || new.id == id;
        ensure(
            kept,
            "the endpoints that did not change to be the same ones",
        )?;
    }
    Ok(())
}

async fn removals_are_seen(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    let id = bench.list[0].id.clone();
    bench.delete(&id).await?;
    bench.follows().await.map(drop)
}

async fn order_is_no_change(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    let before = bench.watch.current();
    let reversed = bench.list.iter().rev().cloned().collect();
    bench.change(Change::List(reversed)).await?;
    bench.stays(&before).await
}

async fn duplicates_are_refused(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    let mut twice = bench.list.clone();
    twice.push(fourth().id(twice[0].id.as_str()));
    bench.change(Change::List(twice)).await?;
    let list = bench.list.clone();
    let seen = bench.until("the later entry of an id refused and named", |snapshot| {
        let id = list[0].id.as_str();
        let named = snapshot
            .refused
            .iter()
            .any(|refused| refused.entry.contains(id));
        named && holds(snapshot, &list)
    });
    seen.await.map(drop)
}

async fn an_outage_keeps_the_list(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Break).await?;
    let stale = bench.turns_stale().await?;
    ensure(stale.reason.is_some(), "a reason for a stale list")?;
    bench.stays(&stale).await?;
    bench.change(Change::Repair).await?;
    let live = bench.follows().await?;
    ensure(
        live.version == stale.version,
        "the same list after an outage to be no change",
    )
}

async fn an_outage_leaves_no_gap(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Break).await?;
    bench.turns_stale().await?;
    bench.put(fourth()).await?;
    bench.change(Change::Repair).await?;
    bench.follows().await.map(drop)
}

async fn garbled_data_keeps_the_list(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Garble).await?;
    let stale = bench.turns_stale().await?;
    ensure(stale.reason.is_some(), "a reason for a stale list")?;
    bench.stays(&stale).await?;
    bench.change(Change::List(bench.list.clone())).await?;
    bench.follows().await.map(drop)
}

/// Checks what is left when the source has nothing any more.
async fn guarded(mut bench: Bench<'_>) -> Verdict {
    if bench.empties() == Empties::Allow {
        let emptied = bench.until("an empty list, which this source allows", |snapshot| {
            snapshot.endpoints.is_empty()
        });
        return emptied.await.map(drop);
    }
    let stale = bench.turns_stale().await?;
    bench.stays(&stale).await?;
    bench.change(Change::List(bench.list.clone())).await?;
    bench.follows().await.map(drop)
}

async fn an_empty_list_is_guarded(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::List(Vec::new())).await?;
    guarded(bench).await
}

async fn a_vanished_service_is_guarded(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Vanish).await?;
    guarded(bench).await
}

async fn an_unknown_service_is_absent(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Vanish).await?;
    bench.watch = bench.another_watch();
    let absent = bench.until("absent", |snapshot| snapshot.state.as_str() == "absent");
    absent.await.map(drop)
}

async fn removals_empty_the_list(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    for endpoint in std::mem::take(&mut bench.list) {
        bench.change(Change::Delete(endpoint.id)).await?;
        // One by one, as they would go.
        sleep(Duration::from_millis(50)).await;
    }
    bench.follows().await.map(drop)
}

async fn a_lost_cursor_lists_again(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    bench.change(Change::Break).await?;
    bench.turns_stale().await?;
    bench.put(fourth()).await?;
    bench.change(Change::Forget).await?;
    bench.change(Change::Repair).await?;
    bench.follows().await.map(drop)
}

async fn a_cursor_leaves_no_gap(fixture: &mut dyn Fixture) -> Verdict {
    let mut bench = Bench::live(fixture).await?;
    let service = bench.fixture().service();
    let first = bench.backend.connect(&service, None).next().await;
    let Some(Ok(RawEvent::Reset(listing))) = first else {
        return Err(Miss::Failed(format!(
            "expected a list first, found {first:?}"
        )));
    };
    let Some(cursor) = listing.cursor else {
        return Err(Miss::Skipped("go on from a cursor".to_owned()));
    };
    bench.put(fourth()).await?;
    let said = bench.backend.connect(&service, Some(cursor));
    let seen = timeout(bench.within(), tells_of_the_fourth(said)).await;
    let seen = seen.unwrap_or(false);
    ensure(
        seen,
        "what came after the cursor, from a connection that goes on from it",
    )
}

/// Whether a connection that goes on tells of the fourth endpoint, or that it cannot go on.
async fn tells_of_the_fourth(mut said: BoxStream<'static, Result<RawEvent, BackendError>>) -> bool {
    let expected = fourth().id;
    while let Some(said) = said.next().await {
        let seen = match said {
            Ok(RawEvent::Upsert(endpoint)) => endpoint.id == expected,
            Ok(RawEvent::Reset(list)) => list.endpoints.iter().any(|e| e.id == expected),
            Err(error) => matches!(error, BackendError::CursorLost),
            Ok(_) => false,
        };
        if seen {
            return true;
        }
    }
    false
}

async fn a_dropped_watch_disconnects(fixture: &mut dyn Fixture) -> Verdict {
    let bench = Bench::live(fixture).await?;
    let within = bench.within();
    let Some(open) = bench.fixture().connections() else {
        return Err(Miss::Skipped("tell its connections".to_owned()));
    };
    ensure(open > 0, "a connection while a watch is alive")?;
    drop(bench);
    let step = within / 20;
    for _ in 0..20 {
        if fixture.connections() == Some(0) {
            return Ok(());
        }
        sleep(step).await;
    }
    ensure(false, "no connection after the last watch was dropped")
}
