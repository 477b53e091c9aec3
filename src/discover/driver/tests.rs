use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use crate::{
    discover::{
        BackendError, Discovery, Guard, Listing, RawEvent, ServiceDiscovery as _, ServiceWatch,
        Snapshot, script::Script,
    },
    endpoint::Endpoint,
    time,
};

fn endpoint(id: &str) -> Endpoint {
    let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
    endpoint.id(id)
}

fn listing(ids: &str) -> Listing {
    let ids = ids.chars().map(|id| endpoint(&id.to_string()));
    Listing::new(ids.collect::<Vec<_>>())
}

fn reset(ids: &str) -> Result<RawEvent, BackendError> {
    Ok(RawEvent::Reset(listing(ids)))
}

fn away() -> Result<RawEvent, BackendError> {
    Err(BackendError::Transient("away".into()))
}

fn told(snapshot: &Snapshot) -> String {
    let ids = snapshot
        .endpoints
        .iter()
        .map(|endpoint| endpoint.id.as_str());
    format!("{} {}", snapshot.state.as_str(), ids.collect::<String>())
}

/// Lets every task do what it can without time passing.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn pass(time: Duration) {
    settle().await;
    tokio::time::sleep(time).await;
    settle().await;
}

fn watch(script: &Script) -> (Discovery, ServiceWatch) {
    let discovery = Discovery::new(script.clone());
    let watch = discovery.watch(&"users".into());
    (discovery, watch)
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_watch_lists_then_follows() {
    let script = Script::default();
    script.opens_with([reset("ab")]);
    let (_discovery, mut watch) = watch(&script);
    assert_eq!(told(&watch.current()), "pending ");
    assert_eq!(told(&*watch.ready().await), "live ab");
    pass(SECOND).await;
    script.say(Ok(RawEvent::Upsert(endpoint("c"))));
    assert_eq!(told(&*watch.changed().await), "live abc");
    assert_eq!(watch.stats().updates, 2);
    assert_eq!(watch.stats().last_success, Some(time::now()));
}

#[tokio::test(start_paused = true)]
async fn watches_of_a_service_share_one_connection_and_the_last_closes_it() {
    let script = Script::default();
    script
        .opens_with([reset("a")])
        .opens_with([reset("b")])
        .opens_with([reset("c")]);
    let (discovery, first) = watch(&script);
    let second = discovery.watch(&"users".into());
    let other = discovery.clone().watch(&"orders".into());
    settle().await;
    assert_eq!(script.open(), ["users", "orders"]);
    assert!(Arc::ptr_eq(&first.current(), &second.current()));
    drop(first);
    settle().await;
    assert_eq!(script.open(), ["users", "orders"]);
    drop(second);
    settle().await;
    assert_eq!(script.open(), ["orders"]);
    let again = discovery.watch(&"users".into());
    settle().await;
    assert_eq!(told(&again.current()), "live c");
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_replaced_at_once_keeps_the_connection() {
    let script = Script::default();
    script.opens_with([reset("a")]);
    let (discovery, first) = watch(&script);
    settle().await;
    drop(first);
    let second = discovery.watch(&"users".into());
    settle().await;
    assert_eq!(told(&second.current()), "live a");
    assert_eq!(script.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_goes_on_from_its_cursor_without_turning_stale() {
    let script = Script::default();
    script.opens_with([Ok(RawEvent::Reset(listing("a").cursor("7")))]);
    script.opens_with([Ok(RawEvent::Upsert(endpoint("b")))]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    script.hang_up();
    assert_eq!(told(&*watch.changed().await), "live ab");
    assert_eq!(script.cursor(), Some("7".into()));
    assert_eq!(watch.stats().errors, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_cursor_lists_again_without_turning_stale() {
    let script = Script::default();
    script.opens_with([Ok(RawEvent::Reset(listing("a").cursor("7")))]);
    script.opens_with([Err(BackendError::CursorLost)]);
    script.opens_with([reset("ab")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    script.hang_up();
    assert_eq!(told(&*watch.changed().await), "live ab");
    assert_eq!(script.cursor(), None);
    assert_eq!(script.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_stale_and_ends_without_a_gap() {
    let script = Script::default();
    script.opens_with([reset("ab")]);
    for _ in 0..3 {
        script.ends_with([away()]);
    }
    script.opens_with([reset("abc")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    script.hang_up();
    let stale = watch.changed().await;
    assert_eq!(told(&stale), "stale ab");
    assert_eq!(
        stale.reason.as_deref(),
        Some("the source is not available: away")
    );
    assert_eq!(told(&*watch.changed().await), "live abc");
    assert_eq!((script.connections(), watch.stats().errors), (5, 3));
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_is_no_error() {
    let script = Script::default();
    script.opens_with([reset("ab")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    pass(100_000 * SECOND).await;
    assert!(watch.changed().now_or_never().is_none());
    assert_eq!((script.connections(), watch.stats().errors), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_refuses_every_connection_is_asked_ever_less_often() {
    let script = Script::default();
    for _ in 0..10_000 {
        script.ends_with([]);
    }
    let (_discovery, watch) = watch(&script);
    pass(3600 * SECOND).await;
    // Half of 30 s on the average, once the ceiling is reached.
    let connections = script.connections();
    assert!(
        (150..400).contains(&connections),
        "{connections} connections"
    );
    assert_eq!(told(&watch.current()), "pending ");
    assert!(watch.current().reason.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_recovers_by_itself_keeps_its_connection() {
    let script = Script::default();
    script.opens_with([reset("a"), away(), reset("a")]);
    let (_discovery, mut watch) = watch(&script);
    settle().await;
    assert_eq!(told(&*watch.ready().await), "live a");
    assert_eq!((script.connections(), watch.stats().errors), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_published_together_when_its_window_ends() {
    let script = Script::default();
    script.opens_with([reset("a")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    let begin = time::now();
    for id in ["b", "c", "d"] {
        script.say(Ok(RawEvent::Upsert(endpoint(id))));
    }
    assert_eq!(told(&*watch.changed().await), "live abcd");
    assert_eq!(time::now() - begin, SECOND / 2);
}

#[tokio::test(start_paused = true)]
async fn an_accident_is_counted_and_the_list_stays() {
    let script = Script::default();
    script.opens_with([reset("abcdef")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    script.say(reset(""));
    assert_eq!(told(&*watch.changed().await), "stale abcdef");
    assert_eq!(watch.stats().guarded, 1);
}

#[tokio::test(start_paused = true)]
async fn the_guard_is_that_of_the_backend_unless_the_user_sets_one() {
    let script = Script::guarded(Guard::authoritative());
    script
        .opens_with([reset("abcdef")])
        .opens_with([reset("abcdef")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    script.say(reset("a"));
    assert_eq!(told(&*watch.changed().await), "live a");

    let discovery = Discovery::new(script.clone()).guard(Guard::default());
    let mut watch = discovery.watch(&"users".into());
    watch.ready().await;
    script.say(reset("a"));
    pass(5 * SECOND).await;
    assert_eq!(told(&watch.current()), "live abcdef");
}

#[tokio::test(start_paused = true)]
async fn watches_outlive_their_discovery() {
    let script = Script::default();
    script.opens_with([reset("a")]);
    let (discovery, mut watch) = watch(&script);
    watch.ready().await;
    drop(discovery);
    pass(SECOND).await;
    script.say(reset("ab"));
    assert_eq!(told(&*watch.changed().await), "live ab");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_no_change() {
    let script = Script::default();
    script.opens_with([reset("a")]);
    let (_discovery, mut watch) = watch(&script);
    watch.ready().await;
    assert!(watch.changed().now_or_never().is_none());
    pass(SECOND).await;
    script.say(reset("ab"));
    settle().await;
    assert_eq!(
        watch.changed().now_or_never().map(|s| told(&s)),
        Some("live ab".into())
    );
}

/// Panics when it is asked for the next event.
struct Broken;

impl crate::discover::DiscoveryBackend for Broken {
    fn connect(
        &self,
        _: &crate::discover::ServiceName,
        _: Option<crate::discover::Cursor>,
    ) -> futures_util::stream::BoxStream<'static, Result<RawEvent, BackendError>> {
        use futures_util::StreamExt as _;

        let panics = futures_util::stream::once(async { panic!("a backend that panics") });
        futures_util::stream::iter([reset("a")])
            .chain(panics)
            .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_leaves_a_stale_list_and_may_be_watched_again() {
    let discovery = Discovery::new(Broken);
    let watch = discovery.watch(&"users".into());
    settle().await;
    assert_eq!(told(&watch.current()), "stale a");
    let mut again = discovery.watch(&"users".into());
    assert_eq!(told(&*again.ready().await), "live a");
}
