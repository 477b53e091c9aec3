//! The cache under concurrency, on several nodes, and with clients and origins that misbehave.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::sync::{Semaphore, mpsc};
use tower::{Layer as _, Service as _, ServiceBuilder, ServiceExt as _};
use tower_gateway::cache::{
    Acknowledge, HttpCache, Kept, Outcome, Partition, QueryRules, Scope, Stats, Weight,
    store::{Memory, Redis},
};
use tower_gateway::{
    redis::{Connection, Options},
    refusal::{Dialect, Reason, Refusal},
    timeout::TimeoutLayer,
};

use crate::support::{
    Backend, BoxBody, Gateway, one_cluster,
    redis::RedisServer,
    site::{Origin, Site, get, layer, now, pause, read, request, response, send, site},
    until,
};

type Fields = &'static [(&'static str, &'static str)];

/// How an answer ends.
type End = fn(&Pieces);

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];
const HIT: &str = "tower-gateway; hit; detail=l1";

/// An origin whose answers have these fields, and take a second.
fn slow(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::new(move |number, _| async move {
        pause(1).await;
        response(200, fields, format!("body-{number}"))
    })
}

fn count(stats: &Stats, outcome: Outcome) -> u64 {
    let mut counts = stats.outcomes();
    counts.find(|(of, _)| *of == outcome).unwrap().1
}

async fn crowd(site: &Site, size: usize) -> Vec<crate::support::site::Read> {
    join_all((0..size).map(|_| get(site, "/", &[]))).await
}

#[tokio::test(start_paused = true)]
async fn many_misses_at_once_are_one_request() {
    let origin = slow(FRESH);
    let (cache, site) = site(&origin);
    let answers = crowd(&site, 100).await;
    assert_eq!(origin.requests(), 1);
    assert!(answers.iter().all(|answer| answer.text() == "body-0"));
    let collapsed = "tower-gateway; fwd=uri-miss; stored; collapsed; ttl=59";
    let alike = answers
        .iter()
        .filter(|answer| answer.did() == collapsed)
        .count();
    assert_eq!(alike, 99, "{}", answers[1].did());
    assert_eq!(count(cache.stats(), Outcome::Collapsed), 99);
    assert_eq!(get(&site, "/", &[]).await.did(), HIT);
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_one_client_is_given_to_no_other() {
    for fields in [
        &[("set-cookie", "a=b"), ("cache-control", "max-age=60")][..],
        &[("cache-control", "private")],
        &[("cache-control", "no-store")],
        &[("cache-control", "max-age=60"), ("vary", "*")],
        &[],
    ] {
        let origin = slow(Box::leak(fields.to_vec().into_boxed_slice()));
        let (_, site) = site(&origin);
        let start = now();
        let answers = crowd(&site, 50).await;
        // The first one is waited for, and then nobody waits for anybody.
        assert_eq!(start.elapsed(), Duration::from_secs(2), "{fields:?}");
        let mut bodies: Vec<_> = answers.iter().map(|answer| answer.text()).collect();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), 50, "{fields:?}");
        let again = now();
        crowd(&site, 50).await;
        assert_eq!(again.elapsed(), Duration::from_secs(1), "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_never_fresh_is_not_waited_for() {
    const RELOAD: Fields = &[("cache-control", "no-cache")];
    const OLDEST: Fields = &[("cache-control", "max-age=0")];
    let cases: [(Fields, Fields); 4] = [
        (&[("cache-control", "no-cache"), ("etag", "\"a\"")], &[]),
        (&[("cache-control", "max-age=0"), ("etag", "\"a\"")], &[]),
        (FRESH, RELOAD),
        (FRESH, OLDEST),
    ];
    for (fields, asked) in cases {
        let origin = slow(fields);
        let (_, site) = site(&origin);
        let crowd = || join_all((0..50).map(|_| get(&site, "/", asked)));
        let start = now();
        crowd().await;
        // The first one is waited for, as nothing is known yet.
        assert_eq!(
            start.elapsed(),
            Duration::from_secs(2),
            "{fields:?} {asked:?}"
        );
        let again = now();
        let answers = crowd().await;
        assert_eq!(
            again.elapsed(),
            Duration::from_secs(1),
            "{fields:?} {asked:?}"
        );
        let mut bodies: Vec<_> = answers.iter().map(|answer| answer.text()).collect();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), 50, "{fields:?} {asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_authorized_client_does_not_keep_others_from_the_cache() {
    let origin = slow(FRESH);
    let (_, site) = site(&origin);
    let user = [("authorization", "Basic x")];
    let (mine, others) = tokio::join!(get(&site, "/", &user), crowd(&site, 5));
    assert_eq!(mine.did(), "tower-gateway; fwd=uri-miss");
    assert!(others.iter().all(|answer| answer.text() != mine.text()));
    crowd(&site, 1).await;
    assert_eq!(get(&site, "/", &[]).await.did(), HIT);
}

#[tokio::test(start_paused = true)]
async fn variants_are_fetched_once_each() {
    let origin = Origin::new(|_, head| async move {
        pause(1).await;
        let language = head.headers["accept-language"].to_str().unwrap().to_owned();
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        response(200, &fields, language)
    });
    let (_, site) = site(&origin);
    for round in 0..2 {
        let answers = join_all((0..30).map(async |number| {
            let language = ["de", "en", "fr"][number % 3];
            (
                language,
                get(&site, "/", &[("accept-language", language)]).await,
            )
        }));
        for (language, answer) in answers.await {
            assert_eq!(answer.text(), language);
            assert!(round == 0 || answer.did() == HIT, "{}", answer.did());
        }
        assert_eq!(origin.requests(), 3, "round {round}");
    }
    let other = get(&site, "/", &[("accept-language", "it")]).await;
    assert_eq!(other.did(), "tower-gateway; fwd=vary-miss; stored; ttl=59");
}

/// An origin whose bodies the test sends piece by piece.
fn streaming(fields: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Pieces>) {
    let pieces = Arc::new(Pieces::default());
    let told = Arc::clone(&pieces);
    let origin = Origin::new(move |_, _| {
        let (sender, receiver) = mpsc::unbounded_channel();
        told.0.lock().push(sender);
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            let piece: Piece = receiver.recv().await?;
            Some((piece.map(Frame::data), receiver))
        });
        let body: BoxBody = StreamBody::new(stream).boxed_unsync();
        let mut answer = Response::new(body);
        for (name, value) in fields {
            answer.headers_mut().insert(*name, value.parse().unwrap());
        }
        async move { answer }
    });
    (origin, pieces)
}

type Piece = Result<Bytes, std::io::Error>;

#[derive(Debug, Default)]
struct Pieces(parking_lot::Mutex<Vec<mpsc::UnboundedSender<Piece>>>);

impl Pieces {
    fn send(&self, text: &'static str) {
        let piece = Ok(Bytes::from_static(text.as_bytes()));
        self.0.lock().last().unwrap().send(piece).unwrap();
    }

    fn end(&self) {
        self.0.lock().pop();
    }

    fn fail(&self) {
        let error = std::io::Error::other("broken off");
        self.0.lock().pop().unwrap().send(Err(error)).unwrap();
    }

    /// Whether nobody reads the last body any more.
    fn is_left(&self) -> bool {
        self.0.lock().last().unwrap().is_closed()
    }
}

async fn piece<B>(body: &mut B) -> Option<Bytes>
where
    B: http_body::Body<Data = Bytes, Error = std::io::Error> + Unpin,
{
    let frame = body.frame().await?;
    Some(frame.unwrap().into_data().unwrap())
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_miss_streams_while_it_is_stored() {
    let (origin, pieces) = streaming(FRESH);
    let (_, site) = site(&origin);
    let mut answer = send(&site, request(Method::GET, "/", &[]))
        .await
        .into_body();
    pieces.send("one ");
    assert_eq!(piece(&mut answer).await.unwrap(), "one ");
    pieces.send("two");
    assert_eq!(piece(&mut answer).await.unwrap(), "two");
    pieces.end();
    assert_eq!(piece(&mut answer).await, None);
    let again = get(&site, "/", &[]).await;
    assert_eq!((again.text(), again.did()), ("one two", HIT));
    assert_eq!(again.header("content-length"), "7");
}

#[tokio::test(start_paused = true)]
async fn what_broke_off_is_never_stored() {
    const LONG: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("content-length", "9")];
    let ends: [(Fields, End); 3] = [
        (FRESH, Pieces::fail),
        (LONG, Pieces::fail),
        (LONG, Pieces::end),
    ];
    for (case, (fields, end)) in ends.into_iter().enumerate() {
        let (origin, pieces) = streaming(fields);
        let (cache, site) = site(&origin);
        let answer = send(&site, request(Method::GET, "/", &[])).await;
        pieces.send("half");
        end(&pieces);
        answer.into_body().collect().await.ok();
        let again = send(&site, request(Method::GET, "/", &[])).await;
        assert_eq!(origin.requests(), 2, "case {case}");
        let did = again.headers()["cache-status"].to_str().unwrap();
        assert!(
            did.starts_with("tower-gateway; fwd=uri-miss"),
            "case {case}: {did}"
        );
        let mut kept = cache.stats().kept();
        assert!(
            kept.any(|kept| kept == (Kept::Incomplete, 1)),
            "case {case}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_passes_and_is_not_stored() {
    for known in [true, false] {
        let fields: &[(&str, &str)] = if known {
            &[("cache-control", "max-age=60"), ("content-length", "2000")]
        } else {
            FRESH
        };
        let fields: &'static [_] = Box::leak(fields.to_vec().into_boxed_slice());
        let origin = Origin::new(move |_, _| async move {
            let chunks = (0..20).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 100]))));
            let body = StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync();
            response(200, fields, "").map(|_| body)
        });
        let cache = HttpCache::new(64 << 20);
        let site = layer(&cache).max_object(1000).layer(origin.clone());
        for _ in 0..2 {
            let answer = get(&site, "/", &[]).await;
            assert_eq!(answer.body.unwrap().len(), 2000);
        }
        assert_eq!(origin.requests(), 2, "known: {known}");
        assert_eq!(cache.weight().bytes / 1000, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_does_not_take_the_answer_from_those_who_wait() {
    // While the head is waited for.
    let origin = slow(FRESH);
    let (_, one) = site(&origin);
    let leader = tokio::spawn({
        let site = one.clone();
        async move { get(&site, "/", &[]).await }
    });
    settle().await;
    let waiter = tokio::spawn({
        let site = one.clone();
        async move { get(&site, "/", &[]).await }
    });
    settle().await;
    leader.abort();
    assert_eq!(waiter.await.unwrap().text(), "body-0");
    assert_eq!(origin.requests(), 1);

    // In the middle of the body.
    let (origin, pieces) = streaming(FRESH);
    let (_, one) = site(&origin);
    let mut answer = send(&one, request(Method::GET, "/", &[])).await.into_body();
    pieces.send("one ");
    assert_eq!(piece(&mut answer).await.unwrap(), "one ");
    let waiter = tokio::spawn({
        let site = one.clone();
        async move { get(&site, "/", &[]).await }
    });
    settle().await;
    drop(answer);
    pieces.send("two");
    pieces.end();
    assert_eq!(waiter.await.unwrap().text(), "one two");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_one_that_does_not_come_in_time() {
    let origin = Origin::new(|number, head| async move {
        if number > 2 {
            pause(3600).await;
        }
        let control = match head.uri.path() {
            "/may" => "max-age=1, stale-if-error=60",
            "/vary" => "max-age=1, stale-if-error=60",
            _ => "max-age=1",
        };
        let fields = [("cache-control", control), ("vary", "accept-language")];
        let fields = if head.uri.path() == "/vary" {
            &fields[..]
        } else {
            &fields[..1]
        };
        response(200, fields, "old")
    });
    let (cache, site) = site(&origin);
    for path in ["/may", "/vary", "/must-not"] {
        assert_eq!(get(&site, path, &[]).await.text(), "old");
    }
    pause(5).await;
    let within_time = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .map_request(|request: Request<_>| request.map(|_| Full::<Bytes>::default()))
        .service(site);
    for (path, expected, age) in [
        ("/may", 200, "6"),
        ("/vary", 200, "7"),
        ("/must-not", 504, ""),
    ] {
        let start = now();
        let asked = (0..20).map(|_| {
            let request = request(Method::GET, path, &[]);
            within_time.clone().oneshot(request)
        });
        for answer in join_all(asked).await {
            let answer = answer.unwrap();
            assert_eq!(answer.status(), expected, "{path}");
            if expected == 200 {
                let did = &answer.headers()["cache-status"];
                assert_eq!(did, "tower-gateway; fwd=stale; fwd-status=504");
                assert_eq!(answer.headers()["age"], age);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, "old");
            }
        }
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        pause(0).await;
    }
    assert_eq!(count(cache.stats(), Outcome::Stale), 40);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let (origin, pieces) = streaming(FRESH);
    let (cache, site) = site(&origin);
    let ask = || {
        let site = site.clone();
        tokio::spawn(async move { get(&site, "/", &[]).await })
    };
    let mut idle = send(&site, request(Method::GET, "/", &[]))
        .await
        .into_body();
    pieces.send("one ");
    assert_eq!(piece(&mut idle).await.unwrap(), "one ");
    // Now it stands still, and others come.
    let waiters = [ask(), ask()];
    settle().await;
    pieces.send("two ");
    pieces.send("three");
    pieces.end();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().text(), "one two three");
    }
    assert_eq!(get(&site, "/", &[]).await.did(), HIT);
    assert_eq!(origin.requests(), 1);
    // It has missed nothing.
    assert_eq!(piece(&mut idle).await.unwrap(), "two ");
    assert_eq!(piece(&mut idle).await.unwrap(), "three");
    assert_eq!(piece(&mut idle).await, None);
    assert!(cache.stats().kept().any(|kept| kept == (Kept::Stored, 1)));
}

/// Others wait before there is anything to read.
#[tokio::test(start_paused = true)]
async fn who_shares_a_request_reads_at_its_own_pace() {
    for ends_well in [true, false] {
        let (origin, pieces) = streaming(FRESH);
        let (_, site) = site(&origin);
        let heads = tokio::spawn(async move {
            join_all((0..3).map(|_| send(&site, request(Method::GET, "/", &[])))).await
        });
        settle().await;
        assert_eq!(origin.requests(), 1);
        pieces.send("one ");
        settle().await;
        assert!(!heads.is_finished(), "those who wait get what is whole");
        if ends_well {
            pieces.send("two");
            pieces.end();
            for head in heads.await.unwrap() {
                let body = head.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, "one two");
            }
            continue;
        }
        // What broke off is seen to break off by the first, and is asked for again by the others.
        pieces.fail();
        settle().await;
        assert_eq!(origin.requests(), 3);
        for _ in 0..2 {
            pieces.send("again");
            pieces.end();
        }
        let mut bodies = Vec::new();
        for head in heads.await.unwrap() {
            let body = head.into_body().collect().await;
            bodies.push(body.map(|body| body.to_bytes()).ok());
        }
        assert_eq!(bodies, [None, Some("again".into()), Some("again".into())]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_comes_no_sooner_than_it_is_read() {
    let chunks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let sent = Arc::clone(&chunks);
    let origin = Origin::new(move |_, _| {
        let sent = Arc::clone(&sent);
        async move {
            let chunks = (0..1000).map(move |_| {
                sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(Frame::data(Bytes::from(vec![b'x'; 100])))
            });
            let body = StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync();
            pause(1).await;
            response(200, FRESH, "").map(|_| body)
        }
    });
    let cache = HttpCache::new(64 << 20);
    let site = layer(&cache).max_object(1000).layer(origin.clone());
    let ask = || {
        let site = site.clone();
        tokio::spawn(async move { send(&site, request(Method::GET, "/", &[])).await })
    };
    let (first, second) = (ask(), ask());
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    settle().await;
    let read = chunks.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read < 30, "{read} chunks are held that nobody reads");
    for head in [first, second] {
        let body = head.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 100_000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_alone_ends_its_request() {
    let (origin, pieces) = streaming(FRESH);
    let (_, site) = site(&origin);
    let answer = send(&site, request(Method::GET, "/", &[])).await;
    drop(answer);
    settle().await;
    assert!(pieces.is_left());
    let again = send(&site, request(Method::GET, "/", &[])).await;
    assert_eq!(
        again.headers()["cache-status"],
        "tower-gateway; fwd=uri-miss; stored; ttl=60"
    );
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_it_does_not_keep_it_from_the_cache() {
    let (origin, pieces) = streaming(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]);
    let (_, site) = site(&origin);
    let mine = get(&site, "/", &[("if-none-match", "\"a\"")]).await;
    assert_eq!((mine.status, mine.text()), (304, ""));
    assert!(!origin.seen.lock()[0].headers.contains_key("if-none-match"));
    pieces.send("whole");
    pieces.end();
    settle().await;
    let other = get(&site, "/", &[]).await;
    assert_eq!((other.text(), other.did()), ("whole", HIT));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_given_while_one_request_renews_it() {
    let origin = slow(&[("cache-control", "max-age=5, stale-while-revalidate=30")]);
    let (cache, site) = site(&origin);
    get(&site, "/", &[]).await;
    pause(10).await;
    let start = now();
    for answer in crowd(&site, 10).await {
        assert_eq!(answer.text(), "body-0");
        assert_eq!(answer.did(), "tower-gateway; hit; ttl=-6; detail=l1");
    }
    assert!(start.elapsed() < Duration::from_millis(100), "nobody waits");
    pause(2).await;
    assert_eq!(get(&site, "/", &[]).await.text(), "body-1");
    assert_eq!(origin.requests(), 2);
    assert_eq!(count(cache.stats(), Outcome::Stale), 10);
}

#[tokio::test(start_paused = true)]
async fn nodes_share_what_they_have_and_what_is_no_longer_valid() {
    let origin = Origin::new(|number, _| async move {
        let fields = [
            ("cache-control", "max-age=600"),
            ("surrogate-key", "a b"),
            ("cache-groups", "\"g\""),
        ];
        response(200, &fields, format!("body-{number}"))
    });
    let store = Memory::with_capacity(64 << 20);
    let caches = [(); 2].map(|()| HttpCache::with_store(64 << 20, store.clone()));
    let node = |cache| {
        let tags = HeaderName::from_static("surrogate-key");
        layer(cache).tags_header(tags).layer(origin.clone())
    };
    let [one, two] = caches.each_ref().map(node);
    let scopes: [Vec<Scope>; 4] = [
        caches[0].scopes_of("http://H:80/").unwrap(),
        vec![Scope::tag("b")],
        vec![Scope::host("h")],
        vec![Scope::all()],
    ];
    for (edition, scopes) in scopes.into_iter().enumerate() {
        let text = format!("body-{edition}");
        let filled = get(&one, "/", &[]).await;
        assert_eq!(
            (filled.text(), filled.did()),
            (&*text, "tower-gateway; fwd=uri-miss; stored; ttl=600")
        );
        for did in ["tower-gateway; hit; detail=l2", HIT] {
            let found = get(&two, "/", &[]).await;
            assert_eq!((found.text(), found.did()), (&*text, did));
        }
        caches[1]
            .invalidate(&scopes, Acknowledge::Everywhere)
            .await
            .unwrap();
    }
    // By methods: at once here, within the bound elsewhere.
    for (fields, path) in [
        (&[][..], "/"),
        (&[("location", "/")], "/other"),
        (&[("cache-group-invalidation", "\"g\"")], "/other"),
    ] {
        get(&one, "/", &[]).await;
        get(&two, "/", &[]).await;
        let fields: &'static [(&str, &str)] = Box::leak(fields.to_vec().into_boxed_slice());
        let change = Origin::new(move |_, _| async move { response(204, fields, "") });
        let changer = layer(&caches[0]).layer(change);
        read(&changer, request(Method::POST, path, &[])).await;
        assert!(!get(&one, "/", &[]).await.is_hit(), "{fields:?}");
        pause(2).await;
        let found = get(&two, "/", &[]).await;
        assert_eq!(found.text(), get(&one, "/", &[]).await.text(), "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_before_an_invalidation_is_not_stored_after_it() {
    let origin = slow(FRESH);
    let (cache, site) = site(&origin);
    let early = tokio::spawn({
        let site = site.clone();
        async move { get(&site, "/", &[]).await }
    });
    settle().await;
    pause(0).await;
    let scopes = cache.scopes_of("http://h/").unwrap();
    cache
        .invalidate(&scopes, Acknowledge::Stored)
        .await
        .unwrap();
    // Whoever comes now must not be given the old answer.
    let late = get(&site, "/", &[]).await;
    assert_eq!(early.await.unwrap().text(), "body-0");
    assert_eq!(late.text(), "body-1");
    assert_eq!(get(&site, "/", &[]).await.text(), "body-1");
}

#[tokio::test(start_paused = true)]
async fn inputs_beside_the_url_poison_nobody() {
    let origin = Origin::new(|_, head| async move {
        let told = head.headers.get("x-forwarded-host");
        let told = told.map_or("", |told| told.to_str().unwrap());
        response(200, FRESH, format!("<a href=//{told}/>"))
    });
    let (_, site) = site(&origin);
    let evil = get(&site, "/", &[("x-forwarded-host", "evil")]).await;
    assert_eq!(evil.text(), "<a href=//evil/>");
    assert_eq!(get(&site, "/", &[]).await.text(), "<a href=///>");
    assert_eq!(
        get(&site, "/", &[("x-forwarded-host", "evil")]).await.did(),
        HIT
    );
    let other_host = get(&site, "http://evil/", &[]).await;
    assert!(!other_host.is_hit());
    let disguised = get(&site, "/", &[("x-http-method-override", "DELETE")]).await;
    assert_eq!(disguised.did(), "tower-gateway; fwd=bypass");
    let mut fat = request(Method::GET, "/", &[]);
    *fat.body_mut() = Full::from("body");
    assert_eq!(read(&site, fat).await.did(), "tower-gateway; fwd=bypass");
}

#[tokio::test(start_paused = true)]
async fn the_origin_sees_the_query_of_the_key() {
    let origin = Origin::new(|_, head| async move { response(200, FRESH, head.uri.to_string()) });
    let cache = HttpCache::new(64 << 20);
    let rules = QueryRules::new().sort().drop("utm_*");
    let site = layer(&cache).query(rules).layer(origin.clone());
    let first = get(&site, "http://h/p?b=2&utm_source=x&a=1", &[]).await;
    assert_eq!(first.text(), "http://h/p?a=1&b=2");
    assert_eq!(get(&site, "http://h/p?a=1&b=2", &[]).await.did(), HIT);
    let scopes = cache.scopes_of("http://h/p?b=2&a=1&utm_y").unwrap();
    cache
        .invalidate(&scopes, Acknowledge::Stored)
        .await
        .unwrap();
    assert!(!get(&site, "http://h/p?a=1&b=2", &[]).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_origin_keep_nobody_waiting_in_line() {
    let origin = Origin::new(|_, _| async {
        pause(1).await;
        response(503, &[], "")
    });
    let (_, site) = site(&origin);
    let start = now();
    let answers = crowd(&site, 20).await;
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_gateway_is_not_stored() {
    let origin = Origin::new(|_, _| async {
        let refusal = Refusal::new(Reason::NotImplemented, "not here");
        let refused: Response<Full<Bytes>> = refusal.into_response(Dialect::Http);
        refused.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    });
    let cache = HttpCache::new(64 << 20);
    let site = layer(&cache)
        .default_ttl(Duration::from_secs(60))
        .layer(origin.clone());
    for _ in 0..2 {
        assert_eq!(
            get(&site, "/", &[]).await.did(),
            "tower-gateway; fwd=uri-miss"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_and_are_not_stored() {
    let origin = Origin::new(|_, _| async {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        let frames = [
            Frame::data(Bytes::from_static(b"body")),
            Frame::trailers(trailers),
        ];
        let frames = futures_util::stream::iter(frames.into_iter().map(Ok));
        response(200, FRESH, "").map(|_| StreamBody::new(frames).boxed_unsync())
    });
    let (_, site) = site(&origin);
    let mut trailers = Vec::new();
    for _ in 0..2 {
        let answer = send(&site, request(Method::GET, "/", &[])).await;
        let body = answer.into_body().collect().await.unwrap();
        trailers.push(body.trailers().is_some());
        assert_eq!(body.to_bytes(), "body");
    }
    assert_eq!(trailers, [true, false]);
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_room_and_not_for_each_other() {
    // Two hosts, one of which hangs.
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let origin = Origin::new(move |_, head| {
        let gate = Arc::clone(&held);
        async move {
            if head.uri.path() == "/slow" {
                gate.acquire().await.unwrap().forget();
            }
            response(200, FRESH, "")
        }
    });
    let (_, site) = site(&origin);
    let hanging = tokio::spawn({
        let site = site.clone();
        async move { get(&site, "/slow", &[]).await }
    });
    settle().await;
    assert_eq!(get(&site, "/fast", &[]).await.status, 200);
    gate.add_permits(1);
    assert_eq!(hanging.await.unwrap().status, 200);
}

/// Polls once, which is all that a hit takes.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hit waited"),
    }
}

#[test]
fn a_hit_copies_nothing_and_allocates_little() {
    const LENGTH: usize = 256 << 10;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let body = Bytes::from(vec![b'x'; LENGTH]);
    // As many more fields as the path says: however many there are, a map is not made larger.
    let origin = Origin::new(move |_, head| {
        let body = body.clone();
        async move {
            let more = head.uri.path().trim_start_matches('/').parse().unwrap();
            let names: Vec<String> = (0..more)
                .map(|number: usize| format!("x-{number}"))
                .collect();
            let mut fields = vec![
                ("cache-control", "max-age=600"),
                ("content-type", "text/html"),
                ("etag", "\"a\""),
            ];
            fields.extend(names.iter().map(|name| (&**name, "1")));
            response(200, &fields, body)
        }
    });
    let cache = HttpCache::new(64 << 20);
    let _context = runtime.enter();
    let mut site = tower_gateway::CacheLayer::new(cache).layer(origin);
    runtime.block_on(async {
        for more in 0..20 {
            let uri = format!("http://h/{more}");
            let answer = send(&site, request(Method::GET, &uri, &[])).await;
            let mut body = pin!(answer.into_body());
            while body.frame().await.is_some() {}
        }
    });
    let mut hit = |more: usize| {
        let request = Request::get(format!("http://h/{more}")).body(Full::default());
        let mut request = Some(request.unwrap());
        let mut answer = None;
        let allocations = measure(|| {
            let request = request.take().unwrap();
            answer = Some(at_once(site.call(request)).unwrap());
        });
        let mut body = answer.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), Some(LENGTH as u64));
        let frame = at_once(std::future::poll_fn(|cx| {
            Pin::new(&mut body).poll_frame(cx)
        }));
        let data = frame.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data.len(), LENGTH);
        assert!(body.is_end_stream());
        (data, allocations)
    };
    for more in 0..20 {
        let (first, _) = hit(more);
        let (second, allocations) = hit(more);
        assert_eq!(first.as_ptr(), second.as_ptr());
        // The text of the key, and the two parts of a header map.
        assert_eq!(allocations.count_total, 3, "{more}: {allocations:?}");
        assert!(allocations.bytes_total < 4096, "{more}: {allocations:?}");
    }
}

/// Of the response that [`held`] fills caches with: all of its fields, as they are sent.
const TEXTS: &str = "max-age=600text/htmlgzip1024Thu, 01 Jan 2026 00:00:00 GMT0";
const FIELDS: usize = 7;

/// Bytes that a cache holds after so many fills, and one hit of each, and its weight.
fn held(bytes: u64, fills: usize, body: usize) -> (usize, Weight) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // As from a connection: everything is a part of a larger buffer.
    let origin = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let mut buffer = BytesMut::zeroed(64 << 10);
        buffer[..24].copy_from_slice(b"max-age=600text/htmlgzip");
        let buffer = buffer.freeze();
        let mut answer = response(200, &[], "").map(|_| Full::new(buffer.slice(1000..1000 + body)));
        for (name, range) in [
            ("cache-control", 0..11),
            ("content-type", 11..20),
            ("content-encoding", 20..24),
        ] {
            let value = HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
            answer.headers_mut().insert(name, value);
        }
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let mut weight = None;
    let mut cache = None;
    let measured = measure(|| {
        let cache = cache.insert(HttpCache::new(bytes));
        let mut site = tower_gateway::CacheLayer::new(cache.clone()).layer(origin);
        runtime.block_on(async {
            for number in 0..fills {
                let uri = format!("http://example.com/api/users/{number:017}");
                for _ in 0..2 {
                    let request = Request::get(&uri).body(Full::default()).unwrap();
                    let answer = site.call(request).await.unwrap();
                    answer.into_body().collect().await.unwrap();
                }
            }
        });
        weight = Some(cache.weight());
    });
    (measured.bytes_current as usize, weight.unwrap())
}

#[test]
fn an_entry_costs_at_most_300_bytes_beside_its_object() {
    const BODY: usize = 1024;
    // The object is the body and the map of fields, which a hit hands out as they are, with all of
    // its texts. The key is not: every entry has it, whatever it keeps.
    let map = size_of::<http::HeaderMap>() + FIELDS * 104 + 16 * 4;
    // The table doubles where it grows, so what an entry takes depends on how many there are; which
    // of the shards have grown already is random.
    let beside = [7_000, 8_500, 10_000, 15_000].map(|fills| {
        let (bytes, weight) = held(1 << 30, fills, BODY);
        assert_eq!(weight.entries, fills);
        let beside = bytes / fills - (map + TEXTS.len() + BODY);
        println!("{fills}: {beside} bytes beside a response, the key included");
        beside
    });
    let mean = beside.iter().sum::<usize>() / beside.len();
    assert!(mean <= 300, "{beside:?}");
    let worst = beside.iter().max();
    assert!(worst <= Some(&310), "right after it has grown: {beside:?}");
}

#[test]
fn the_memory_of_a_cache_is_what_it_was_given() {
    const BYTES: u64 = 16 << 20;
    for body in [0, 100, 1024, 20 << 10] {
        let fills = (2 * BYTES) as usize / (1200 + body);
        let (held, weight) = held(BYTES, fills, body);
        let held = held as u64;
        println!("bodies of {body}: {held} bytes, {weight:?}");
        assert!(weight.bytes <= BYTES);
        assert!(weight.bytes > BYTES * 8 / 10, "it is used: {weight:?}");
        assert!(held <= BYTES * 11 / 10, "{held}, {weight:?}");
        assert!(
            held >= weight.bytes * 7 / 10,
            "it is not counted twice: {held}, {weight:?}"
        );
    }
}

/// Asks for many URLs, again and again: every answer comes, and is that of the origin.
async fn ask_around(site: &Site, span: Duration) {
    let start = now();
    for round in 0.. {
        let asked = (0..20).map(|number| {
            let path = format!("/{}", number * (1 + round % 3));
            async move {
                let answer = read(site, request(Method::GET, &path, &[])).await;
                assert_eq!((answer.status, answer.text()), (200, &*path));
            }
        });
        let answers = tokio::time::timeout(Duration::from_secs(5), join_all(asked));
        answers.await.expect("nobody waits for the store");
        let changed = read(site, request(Method::POST, "/0", &[])).await;
        assert_eq!(changed.status, 200);
        if start.elapsed() > span {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_store_that_dies_fails_no_request() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let origin = Origin::new(|_, head| async move {
        let path = head.uri.path().to_owned();
        response(200, &[("cache-control", "max-age=600")], path)
    });
    let connection = Connection::open(Options::new(&server.url()).unwrap());
    let cache = HttpCache::with_store(64 << 20, Redis::new(connection, "http"));
    let site = layer(&cache).layer(origin);
    let span = Duration::from_millis(700);
    for _ in 0..2 {
        ask_around(&site, span).await;
        server.pause();
        ask_around(&site, 2 * span).await;
        server.resume();
        ask_around(&site, span).await;
        server.stop();
        ask_around(&site, span).await;
        server.restart().await;
    }
    until("hits", async || {
        let answer = read(&site, request(Method::GET, "/7", &[])).await;
        assert_eq!(answer.status, 200);
        answer.is_hit()
    })
    .await;
}

#[tokio::test]
async fn what_is_served_unconfirmed_says_so() {
    const UNCONFIRMED: &str = "tower-gateway; hit; detail=unconfirmed";
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let connection = Connection::open(Options::new(&server.url()).unwrap());
    let cache = HttpCache::with_store(64 << 20, Redis::new(connection, "http"))
        .max_staleness(Duration::from_millis(300));
    let origin = Origin::new(|_, _| async { response(200, FRESH, "body") });
    let policies = [
        Partition::ServeStale(Duration::from_secs(3600)),
        Partition::Island,
        Partition::Bypass,
    ];
    let [stale, island, strict] = policies.map(|policy| {
        let cache = cache.clone().on_partition(policy);
        layer(&cache).layer(origin.clone())
    });
    let did = async |site: &Site, path: &str| {
        let answer = read(site, request(Method::GET, path, &[])).await;
        assert_eq!((answer.status, answer.text()), (200, "body"));
        answer.did().to_owned()
    };
    until("a hit", async || did(&stale, "/a").await == HIT).await;
    server.stop();
    let is_over = async || did(&strict, "/a").await == "tower-gateway; fwd=bypass";
    until("the bound is over", is_over).await;
    assert_eq!(did(&stale, "/a").await, UNCONFIRMED);
    assert_eq!(did(&strict, "/a").await, "tower-gateway; fwd=bypass");
    until("what was filled alone", async || {
        did(&island, "/b").await;
        did(&island, "/b").await == UNCONFIRMED
    })
    .await;
    assert!(count(cache.stats(), Outcome::Stale) >= 2);
    server.restart().await;
    for site in [&stale, &island, &strict] {
        until("hits", async || did(site, "/a").await == HIT).await;
    }
}

/// A whole node, over sockets.
#[tokio::test]
async fn a_node_caches_by_its_file_and_invalidates_by_its_admin_address() {
    let backend = Backend::answering(|request| {
        let body = format!(
            "for {}",
            request.head.first.split(' ').nth(1).unwrap_or_default()
        );
        let tag = "surrogate-key: t1\r\ncache-control: max-age=60";
        format!(
            "HTTP/1.1 200 OK\r\n{tag}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    })
    .await;
    let route = "cache: { tags_header: surrogate-key, max_staleness: 500ms }";
    let gateway = Gateway::start(&one_cluster(backend.address, "", route)).await;
    let ask = async |path: &str| {
        let client = crate::support::http_client();
        let request = Request::get(format!("http://{}{path}", gateway.address));
        let request = request
            .header("host", "Example.com")
            .body(Full::<Bytes>::default());
        let answer = client.request(request.unwrap()).await.unwrap();
        let did = answer.headers()["cache-status"]
            .to_str()
            .unwrap()
            .to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("for {path}"));
        did
    };
    let invalidate = async |document: &'static str| {
        let client = crate::support::http_client();
        let request = Request::post(format!("http://{}/cache/invalidate", gateway.admin));
        let request = request.body(Full::from(document)).unwrap();
        client.request(request).await.unwrap().status().as_u16()
    };
    let miss = "tower-gateway; fwd=uri-miss; stored; ttl=60";
    assert_eq!(ask("/a").await, miss);
    assert_eq!(ask("/a").await, HIT);
    for document in [
        r#"{"keys": ["http://example.com/a"]}"#,
        r#"{"tags": ["t1"], "ack": "everywhere"}"#,
        r#"{"all": true, "ack": "stored"}"#,
    ] {
        assert_eq!(invalidate(document).await, 200);
        assert_eq!(ask("/a").await, miss, "{document}");
        assert_eq!(ask("/a").await, HIT);
    }
    assert_eq!(invalidate(r#"{"keys": ["/a"]}"#).await, 400);
    let (_, metrics) = crate::support::get(gateway.admin, "/metrics").await;
    assert!(metrics.contains("tower_gateway_cache_requests_total{outcome=\"hit_l1\"} 4\n"));
    assert!(metrics.contains("tower_gateway_cache_requests_total{outcome=\"miss\"} 4\n"));
    assert!(metrics.contains("tower_gateway_cache_invalidations_total 3\n"));
}

/// A backend that counts what it answers to GETs, which are fresh for a minute.
async fn counting(name: &'static str) -> Backend {
    let count = std::sync::atomic::AtomicU32::new(0);
    Backend::answering(move |request| {
        if request.head.method() != "GET" {
            return b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        }
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let body = format!("{name} {number}");
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    })
    .await
}

/// A node over two clusters, `one` and `two`, with these routes.
async fn node_over(backends: [&Backend; 2], routes: &str) -> Gateway {
    let [one, two] = backends.map(|backend| {
        let address = backend.address;
        format!("{{ discovery: {{ type: static, endpoints: [ {{ address: \"{address}\" }} ] }} }}")
    });
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ one: {one}, two: {two} }}\n\
         routes:{routes}"
    );
    Gateway::start(&text).await
}

/// What a client gets that sends one request with these fields.
async fn asked(gateway: &Gateway, method: &str, path: &str, fields: &str) -> String {
    let mut client = gateway.connect().await;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: example.com\r\n{fields}\r\n");
    client.ask(request).await.text().to_owned()
}

#[tokio::test]
async fn routes_that_a_field_chooses_keep_their_answers_apart() {
    let (one, two) = (counting("one").await, counting("two").await);
    let routes = "
  - { match: { path_prefix: /, headers: { x-version: v2 } }, cluster: two, cache: {} }
  - { match: { path_prefix: / }, cluster: one, cache: {} }
";
    let gateway = node_over([&one, &two], routes).await;
    let v2 = "x-version: v2\r\n";
    for _ in 0..2 {
        assert_eq!(asked(&gateway, "GET", "/", "").await, "one 0");
        assert_eq!(asked(&gateway, "GET", "/", v2).await, "two 0");
        // Nobody asked for that version: it is the route that tells answers apart.
        let v3 = "x-version: v3\r\n";
        assert_eq!(asked(&gateway, "GET", "/", v3).await, "one 0");
    }
    // Both are of the one URL.
    let body = r#"{"keys": ["http://example.com/"]}"#;
    let invalidate = format!("http://{}/cache/invalidate", gateway.admin);
    let invalidate = Request::post(invalidate).body(Full::from(body)).unwrap();
    let done = crate::support::http_client().request(invalidate).await;
    assert_eq!(done.unwrap().status(), 200);
    assert_eq!(asked(&gateway, "GET", "/", v2).await, "two 1");
    assert_eq!(asked(&gateway, "GET", "/", "").await, "one 1");
}

/// What is kept elsewhere, or nowhere, can be invalidated at a node whose routes have no cache.
#[tokio::test]
async fn a_node_without_a_cache_invalidates_what_others_keep() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let backend = counting("one").await;
    let node = async |store: &str, cache: &str| {
        let address = backend.address;
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n{store}\
             clusters: {{ one: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{address}\" }} ] }} }} }}\n\
             routes: [ {{ match: {{}}, cluster: one{cache} }} ]\n"
        );
        Gateway::start(&text).await
    };
    let invalidate = async |gateway: &Gateway, document: &'static str| {
        let request = Request::post(format!("http://{}/cache/invalidate", gateway.admin));
        let request = request.body(Full::from(document)).unwrap();
        let answer = crate::support::http_client().request(request).await;
        answer.unwrap().status().as_u16()
    };
    let document = r#"{"keys": ["http://example.com/"]}"#;
    let alone = node("", "").await;
    assert_eq!(invalidate(&alone, document).await, 200, "nothing is kept");
    assert_eq!(invalidate(&alone, "{}").await, 400);

    let store = format!("store: {{ type: redis, url: \"{}\" }}\n", redis.url());
    let with = node(&store, ", cache: {}").await;
    let without = node(&store, "").await;
    until("a hit", async || {
        asked(&with, "GET", "/", "").await == asked(&with, "GET", "/", "").await
    })
    .await;
    let before = asked(&with, "GET", "/", "").await;
    until("an invalidation", async || {
        invalidate(&without, document).await == 200
    })
    .await;
    until("another answer", async || {
        asked(&with, "GET", "/", "").await != before
    })
    .await;
    redis.stop();
    until("no acknowledgement", async || {
        invalidate(&without, document).await == 503
    })
    .await;
}

#[tokio::test]
async fn what_a_route_without_a_cache_changes_is_not_served_by_another() {
    let (one, two) = (counting("one").await, counting("two").await);
    let routes = "
  - { match: { path_prefix: /a, methods: [GET] }, cluster: one, cache: { sort_query: true } }
  - { match: { path_prefix: / }, cluster: two }
";
    let gateway = node_over([&one, &two], routes).await;
    for (number, method) in ["POST", "DELETE", "PATCH"].into_iter().enumerate() {
        let expected = format!("one {number}");
        for query in ["b=1&a=2", "a=2&b=1"] {
            let path = format!("/a?{query}");
            assert_eq!(
                asked(&gateway, "GET", &path, "").await,
                expected,
                "{method}"
            );
        }
        asked(&gateway, method, "/b", "content-length: 0\r\n").await;
        assert_eq!(asked(&gateway, "GET", "/a?a=2&b=1", "").await, expected);
        asked(&gateway, method, "/a?b=1&a=2", "content-length: 0\r\n").await;
    }
    // What is no URL of the route with a cache has nothing to do with it.
    let (_, metrics) = crate::support::get(gateway.admin, "/metrics").await;
    assert!(metrics.contains("tower_gateway_cache_invalidations_total 3\n"));
}

#[tokio::test(start_paused = true)]
async fn a_url_has_the_scheme_that_the_proxy_in_front_tells() {
    let origin = Origin::new(|_, head| async move {
        let told = head.headers.get("x-forwarded-proto");
        let told = told.map_or("", |told| told.to_str().unwrap());
        response(200, FRESH, told.to_owned())
    });
    let (cache, site) = site(&origin);
    let https = [("x-forwarded-proto", "HTTPS")];
    for _ in 0..2 {
        assert_eq!(get(&site, "http://h/", &[]).await.text(), "");
        assert_eq!(get(&site, "http://h/", &https).await.text(), "HTTPS");
    }
    assert_eq!(get(&site, "https://h:443/", &[]).await.did(), HIT);
    let scopes = cache.scopes_of("https://h/").unwrap();
    let invalidated = cache.invalidate(&scopes, Acknowledge::Stored).await;
    invalidated.unwrap();
    assert!(!get(&site, "http://h/", &https).await.is_hit());
    assert_eq!(get(&site, "http://h/", &[]).await.did(), HIT);
}

/// It waits for its store for a moment before it listens, and before it goes over to routes that
/// have a cache: else the first requests would go past it. A machine that stands still for longer
/// than that moment may spoil a round.
#[tokio::test]
async fn a_node_over_redis_caches_from_its_first_request_on() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let backend = counting("one").await;
    let store = format!("store: {{ type: redis, url: \"{}\" }}\n", server.url());
    let text = |route| format!("{store}{}", one_cluster(backend.address, "", route));
    let mut cached = [0, 0];
    for round in 0..5 {
        let first = format!("/{round}");
        let is_cached = async |gateway: &Gateway| {
            asked(gateway, "GET", &first, "").await == asked(gateway, "GET", &first, "").await
        };
        let started = Gateway::start(&text("cache: {}")).await;
        cached[0] += u32::from(is_cached(&started).await);
        let mut reloaded = Gateway::start(&text("")).await;
        reloaded.reload(&text("cache: {}")).await;
        cached[1] += u32::from(is_cached(&reloaded).await);
    }
    assert!(cached.iter().all(|rounds| *rounds >= 3), "{cached:?}");
}
