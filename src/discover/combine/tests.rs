use std::{sync::Arc, time::Duration};

use crate::{
    discover::{
        BackendError, Discovery, Fallback, Filter, Fixed, Listing, Merge, RawEvent,
        ServiceDiscovery, ServiceWatch, Snapshot, script::Script,
    },
    endpoint::Endpoint,
};

const SECOND: Duration = Duration::from_secs(1);

/// Endpoints with these ids, all of this weight.
fn endpoints(ids: &str, weight: u32) -> Vec<Endpoint> {
    let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
    let ids = ids.chars().map(|id| endpoint.clone().id(id.to_string()));
    ids.map(|endpoint| endpoint.weight(weight)).collect()
}

fn reset(ids: &str, weight: u32) -> Result<RawEvent, BackendError> {
    Ok(RawEvent::Reset(
        Listing::new(endpoints(ids, weight)).trusted(),
    ))
}

fn away() -> Result<RawEvent, BackendError> {
    Err(BackendError::Transient("away".into()))
}

fn fixed(ids: &str, weight: u32) -> Arc<dyn ServiceDiscovery> {
    Arc::new(Fixed::new(endpoints(ids, weight)))
}

/// A source that a test drives. It says nothing of itself.
fn source(script: &Script) -> Arc<dyn ServiceDiscovery> {
    Arc::new(Discovery::new(script.clone()))
}

fn told(snapshot: &Snapshot) -> String {
    let endpoints = snapshot.endpoints.iter();
    let ids = endpoints.map(|endpoint| format!(" {}{}", endpoint.id, endpoint.weight));
    format!("{}{}", snapshot.state.as_str(), ids.collect::<String>())
}

/// What is there once everything is told.
async fn settled(watch: &ServiceWatch) -> String {
    tokio::time::sleep(SECOND).await;
    told(&watch.current())
}

#[tokio::test(start_paused = true)]
async fn a_union_takes_the_endpoint_of_the_earlier_source() {
    let merge = Merge::new([fixed("bc", 1), fixed("ab", 2)]);
    let watch = merge.watch(&"users".into());
    assert_eq!(told(&watch.current()), "live a2 b1 c1");
    assert_eq!(watch.current().version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_union_follows_each_source_and_is_as_stale_as_the_worst() {
    let script = Script::default();
    let merge = Merge::new([source(&script), fixed("ab", 2)]);
    let mut watch = merge.watch(&"users".into());
    assert_eq!(told(&watch.current()), "live a2 b2");
    let before = watch.current();
    tokio::task::yield_now().await;
    script.say(reset("bc", 2));
    assert_eq!(told(&*watch.changed().await), "live a2 b2 c2");
    // The equal endpoint of another source keeps its identity.
    assert!(Arc::ptr_eq(
        &watch.current().endpoints[1],
        &before.endpoints[1]
    ));
    script.say(away());
    assert_eq!(settled(&watch).await, "stale a2 b2 c2");
    script.say(reset("", 1));
    assert_eq!(settled(&watch).await, "live a2 b2");
    assert_eq!((watch.stats().errors, watch.stats().updates), (1, 3));
    drop(watch);
    tokio::time::sleep(SECOND).await;
    assert!(script.open().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fallback_is_used_when_the_first_source_fails_and_kept() {
    let script = Script::default();
    let fallback = Fallback::new([source(&script), fixed("z", 2)]);
    let watch = fallback.watch(&"users".into());
    // The second is there at once, and the first has not said anything yet.
    assert_eq!(told(&watch.current()), "pending");
    tokio::task::yield_now().await;
    script.say(reset("ab", 1));
    assert_eq!(settled(&watch).await, "live a1 b1");
    script.say(away());
    assert_eq!(settled(&watch).await, "live z2");
    script.say(reset("ab", 1));
    assert_eq!(settled(&watch).await, "live z2");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_says_nothing_is_waited_for_only_so_long() {
    let fallback = Fallback::new([source(&Script::default()), fixed("z", 2)]);
    let mut watch = fallback.patience(3 * SECOND).watch(&"users".into());
    let begin = crate::time::now();
    assert_eq!(told(&*watch.changed().await), "live z2");
    assert_eq!(crate::time::now() - begin, 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_stale_list_is_left_only_for_a_live_one() {
    let (first, second) = (Script::default(), Script::default());
    let fallback = Fallback::new([source(&first), source(&second)]);
    let watch = fallback.watch(&"users".into());
    assert_eq!(settled(&watch).await, "pending");
    first.say(away());
    second.say(reset("z", 2));
    assert_eq!(settled(&watch).await, "live z2");
    second.say(away());
    assert_eq!(settled(&watch).await, "stale z2");
    first.say(reset("", 1));
    assert_eq!(settled(&watch).await, "stale z2");
    first.say(reset("a", 1));
    assert_eq!(settled(&watch).await, "live a1");
    second.say(reset("z", 2));
    assert_eq!(settled(&watch).await, "live a1");
}

#[tokio::test(start_paused = true)]
async fn a_filter_accepts_some_and_tells_no_change_of_the_others() {
    let script = Script::default();
    script.opens_with([reset("abc", 1)]);
    let filter = Filter::new(source(&script), |endpoint| endpoint.id.as_str() != "b");
    let mut watch = filter.watch(&"users".into());
    assert_eq!(told(&*watch.ready().await), "live a1 c1");
    tokio::time::sleep(SECOND).await;
    script.say(reset("ac", 1));
    assert_eq!(settled(&watch).await, "live a1 c1");
    assert_eq!(watch.current().version, 1);
}

#[tokio::test(start_paused = true)]
async fn combinations_combine() {
    let inner: Arc<dyn ServiceDiscovery> = Arc::new(Filter::new(fixed("abc", 1), |endpoint| {
        endpoint.id.as_str() == "a"
    }));
    let outer = Merge::new([inner, Arc::new(Fallback::new([fixed("z", 3)])) as _]);
    assert_eq!(told(&outer.watch(&"users".into()).current()), "live a1 z3");
}
