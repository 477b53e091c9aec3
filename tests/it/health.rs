//! What active checks say of endpoints, and what a cluster makes of it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};
use tower_gateway::{
    Cluster, Endpoint,
    event::Event,
    health::{Percent, Standing, Verdict},
    pick::{Pick, RoundRobin},
};

fn endpoint(id: impl Into<String>) -> Endpoint {
    let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
    endpoint.id(id.into())
}

#[allow(
    clippy::disallowed_methods,
    reason = "the test asks at the time of the runtime"
)]
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn numbered(count: usize) -> impl Iterator<Item = Endpoint> {
    (0..count).map(|number| endpoint(number.to_string()))
}

/// How often each id is picked in 100 picks for each of 100 parts of the random bits.
fn tally(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..10_000 {
        let snapshot = cluster.snapshot();
        if let Some(member) = snapshot.pick(&Pick::new(rng.u64(..), now())) {
            *tally.entry(member.endpoint().id.to_string()).or_default() += 1;
        }
    }
    tally
}

fn check(cluster: &Cluster, id: &str, verdict: Verdict) {
    let member = cluster.snapshot().member(&id.into()).cloned().unwrap();
    cluster.checked(&member, verdict, "as the test says");
}

async fn settle() {
    sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn verdicts_decide_who_is_picked() {
    let cluster = Cluster::fixed("c", RoundRobin::new(), ["a", "b", "c"].map(endpoint));
    check(&cluster, "a", Verdict::Unhealthy);
    settle().await;
    assert_eq!(
        tally(&cluster).len(),
        3,
        "without checks, verdicts do not count"
    );

    cluster.stop_checks();
    cluster.start_checks();
    assert_eq!(tally(&cluster).len(), 3, "unknown ones are usable");
    let mut events = cluster.events();
    check(&cluster, "b", Verdict::Healthy);
    settle().await;
    // One of three is worth 1.4 thirds.
    let tallied = tally(&cluster);
    assert!((4400..=4800).contains(&tallied["b"]), "{tallied:?}");
    check(&cluster, "c", Verdict::Healthy);
    check(&cluster, "a", Verdict::Unhealthy);
    settle().await;
    assert_eq!(tally(&cluster).keys().collect::<Vec<_>>(), ["b", "c"]);
    for (id, to) in [
        ("b", Standing::Healthy),
        ("a", Standing::Unhealthy),
        ("c", Standing::Healthy),
    ] {
        let Event::Health {
            endpoint,
            from: Standing::Unknown,
            to: found,
            reason,
        } = events.recv().await.unwrap()
        else {
            panic!("another event");
        };
        assert_eq!((endpoint.id.as_str(), found), (id, to));
        assert_eq!(&*reason, "as the test says");
    }

    cluster.stop_checks();
    assert_eq!(tally(&cluster).len(), 3);
    assert!(
        events.try_recv().is_err(),
        "a change of the rules is no event"
    );
}

#[tokio::test(start_paused = true)]
async fn a_priority_spills_over_and_panics() {
    let mut endpoints: Vec<_> = numbered(4).collect();
    endpoints.push(endpoint("far").priority(1));
    let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints);
    cluster.start_checks();
    for id in ["0", "1", "2", "3", "far"] {
        check(&cluster, id, Verdict::Healthy);
    }
    settle().await;
    assert!(!tally(&cluster).contains_key("far"));
    check(&cluster, "0", Verdict::Unhealthy);
    check(&cluster, "1", Verdict::Unhealthy);
    settle().await;
    let tallied = tally(&cluster);
    assert!((2800..=3200).contains(&tallied["far"]), "{tallied:?}");
    assert_eq!(tallied.len(), 3);
    // The other priority is not enough for all requests any more: it panics alone.
    check(&cluster, "far", Verdict::Unhealthy);
    settle().await;
    assert_eq!(tally(&cluster).keys().collect::<Vec<_>>(), ["2", "3"]);
    check(&cluster, "2", Verdict::Unhealthy);
    settle().await;
    assert_eq!(tally(&cluster).len(), 5, "everything panics");
    cluster.set_panic_threshold(Percent::new(0.0));
    assert_eq!(tally(&cluster).keys().collect::<Vec<_>>(), ["3"]);
    check(&cluster, "3", Verdict::Unhealthy);
    settle().await;
    assert!(tally(&cluster).is_empty());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_verdicts_are_few_snapshots() {
    let cluster = Cluster::fixed("c", RoundRobin::new(), numbered(10_000));
    cluster.start_checks();
    let before = cluster.snapshot().generation();
    let members = cluster.snapshot().members().clone();
    for (number, member) in members.iter().enumerate() {
        cluster.checked(member, Verdict::Healthy, "passed");
        if number % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    settle().await;
    let snapshots = cluster.snapshot().generation() - before;
    assert!((1..=3).contains(&snapshots), "{snapshots}");
    let now = now();
    let healthy = members
        .iter()
        .filter(|member| member.standing(now) == Standing::Healthy);
    assert_eq!(healthy.count(), 10_000);
    assert_eq!(cluster.snapshot().candidates().count(), 10_000);
}
