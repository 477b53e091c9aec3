//! RFC 9111 as a client sees it: what comes from the cache, and what from the origin. The subjects
//! are those of Mark Nottingham's suite for HTTP caches (<https://cache-tests.fyi>).

use crate::support::steps::{
    BRIEF, Cached, Expect, FromOrigin, MAX_AGE, STEP, Step, Validated, asking, case, fill, then,
};

/// Two plain requests, two seconds apart.
async fn twice(cases: &[(&'static [(&'static str, &'static str)], Expect)]) {
    for (say, expect) in cases {
        case(&format!("{say:?}"), &[fill(say), then(2, *expect)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn freshness_by_cache_control() {
    twice(&[
        (&[], FromOrigin),
        (MAX_AGE, Cached),
        (&[("cache-control", "max-age=1")], FromOrigin),
        (&[("cache-control", "max-age=0")], FromOrigin),
        (&[("cache-control", "max-age=99999999999")], Cached),
        (&[("cache-control", "MaX-aGe=3600")], Cached),
        (
            &[
                ("cache-control", "max-age=3600"),
                ("date", "@0"),
                ("age", "7200"),
            ],
            FromOrigin,
        ),
        (
            &[("cache-control", "max-age=3600"), ("date", "@-7200")],
            FromOrigin,
        ),
        (
            &[
                ("cache-control", "max-age=3600"),
                ("expires", "@-7200"),
                ("date", "@0"),
            ],
            Cached,
        ),
        (
            &[
                ("cache-control", "max-age=3600"),
                ("expires", "0"),
                ("date", "@0"),
            ],
            Cached,
        ),
        (
            &[
                ("cache-control", "max-age=0"),
                ("expires", "@7200"),
                ("date", "@0"),
            ],
            FromOrigin,
        ),
        (&[("cache-control", "max-age=1, s-maxage=3600")], Cached),
        (&[("cache-control", "max-age=3600, s-maxage=1")], FromOrigin),
        (&[("cache-control", "foobar, max-age=3600")], Cached),
        (
            &[("cache-control", "extension=\"max-age=3600\", max-age=1")],
            FromOrigin,
        ),
        (&[("cache-control", "max-age='3600'")], FromOrigin),
        (&[("cache-control", "max-age=3600"), ("age", "abc")], Cached),
        (
            &[("cache-control", "max-age=3600"), ("age", "7200, 0")],
            FromOrigin,
        ),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn freshness_by_expires_and_by_guess() {
    twice(&[
        (&[("expires", "@7200"), ("date", "@0")], Cached),
        (&[("expires", "@-7200"), ("date", "@0")], FromOrigin),
        (&[("expires", "@0"), ("date", "@0")], FromOrigin),
        (&[("expires", "@7200"), ("date", "@9000")], FromOrigin),
        (&[("expires", "0")], FromOrigin),
        (&[("expires", "Thu, 18 Aug 2050 02:01:18 UTC")], FromOrigin),
        (&[("expires", "THU, 18 AUG 2050 02:01:18 gmt")], Cached),
        (&[("expires", "Thursday, 18-Aug-50 02:01:18 GMT")], Cached),
        (&[("last-modified", "@-10000"), ("date", "@0")], Cached),
        (&[("last-modified", "@-5"), ("date", "@0")], FromOrigin),
        (
            &[("last-modified", "@-10000"), ("pragma", "no-cache")],
            Cached,
        ),
    ])
    .await;
    for (status, expect) in [
        (404, Cached),
        (410, Cached),
        (201, FromOrigin),
        (500, FromOrigin),
    ] {
        let first = Step {
            status,
            answer: status,
            ..fill(&[("last-modified", "@-10000")])
        };
        let last = Step {
            status,
            answer: status,
            ..then(2, expect)
        };
        case("a status whose freshness may be guessed", &[first, last]).await;
        let first = Step {
            say: MAX_AGE,
            ..first
        };
        let last = Step {
            expect: Cached,
            ..last
        };
        case("a status with explicit freshness", &[first, last]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn directives_of_responses() {
    twice(&[
        (&[("cache-control", "private, max-age=3600")], FromOrigin),
        (&[("cache-control", "No-StOrE, max-age=3600")], FromOrigin),
        (&[("cache-control", "no-cache, max-age=3600")], FromOrigin),
        (
            &[
                ("cache-control", "no-cache, max-age=3600"),
                ("etag", "\"a\""),
            ],
            Validated,
        ),
        (
            &[("cache-control", "max-age=3600"), ("set-cookie", "a=b")],
            FromOrigin,
        ),
        (
            &[("cache-control", "max-age=3600"), ("vary", "*")],
            FromOrigin,
        ),
        (
            &[("cache-control", "max-age=3600"), ("vary", "foo, *")],
            FromOrigin,
        ),
        (
            &[("cache-control", "max-age=3600"), ("pragma", "no-cache")],
            Cached,
        ),
        (
            &[("cache-control", "no-store, must-understand, max-age=3600")],
            Cached,
        ),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn targeted_directives() {
    twice(&[
        (&[("cdn-cache-control", "max-age=3600")], Cached),
        (
            &[
                ("cdn-cache-control", "max-age=3600"),
                ("age", "7200"),
                ("date", "@0"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age =100"),
                ("cache-control", "max-age=1"),
            ],
            FromOrigin,
        ),
        (&[("cdn-cache-control", "foobar, max-age=3600")], Cached),
        (
            &[
                ("cdn-cache-control", "max-age=3600"),
                ("expires", "@-10000"),
                ("date", "@0"),
            ],
            Cached,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=0"),
                ("expires", "@10000"),
                ("date", "@0"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=3600"),
                ("cache-control", "max-age=1"),
            ],
            Cached,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=1"),
                ("cache-control", "max-age=3600"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "private"),
                ("cache-control", "max-age=3600"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "no-cache"),
                ("cache-control", "max-age=3600"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "no-store"),
                ("cache-control", "max-age=3600"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=3600"),
                ("cache-control", "no-store"),
            ],
            Cached,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=3600, &&&"),
                ("cache-control", "no-store"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=\"3600\""),
                ("cache-control", "no-store"),
            ],
            FromOrigin,
        ),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn directives_of_requests() {
    for (say, pause, ask, expect) in [
        (MAX_AGE, 1, "max-age=0", FromOrigin),
        (MAX_AGE, 1, "max-age=1", Cached),
        (MAX_AGE, 2, "max-age=1", FromOrigin),
        (MAX_AGE, 0, "no-cache", FromOrigin),
        (MAX_AGE, 0, "min-fresh=4000", FromOrigin),
        (MAX_AGE, 0, "min-fresh=3000", Cached),
        (BRIEF, 5, "max-stale=10", Cached),
        (BRIEF, 5, "max-stale=1", FromOrigin),
        (BRIEF, 0, "only-if-cached", Cached),
    ] {
        let ask: &'static [(&str, &str)] = Box::leak(Box::new([("cache-control", ask)]));
        let last = Step {
            pause,
            ..asking(ask, expect)
        };
        case(&format!("{ask:?}"), &[fill(say), last]).await;
    }
    let only = Step {
        answer: 504,
        ..asking(&[("cache-control", "only-if-cached")], Cached)
    };
    case("only-if-cached of nothing", &[only]).await;
    let pragma = asking(&[("pragma", "no-cache")], FromOrigin);
    case("pragma", &[fill(MAX_AGE), pragma]).await;
    let no_store = asking(&[("cache-control", "no-store")], FromOrigin);
    let first = Step {
        say: MAX_AGE,
        ..no_store
    };
    case("no-store", &[first, then(0, FromOrigin)]).await;
}

#[tokio::test(start_paused = true)]
async fn vary() {
    const VARY: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("vary", "foo")];
    const ONE: &[(&str, &str)] = &[("foo", "1")];
    const TWO: &[(&str, &str)] = &[("foo", "2")];
    let first = Step {
        ask: ONE,
        ..fill(VARY)
    };
    let second = Step {
        ask: TWO,
        body: Some("body-1"),
        ..fill(VARY)
    };
    case("a match", &[first, asking(ONE, Cached)]).await;
    case("no match", &[first, asking(TWO, FromOrigin)]).await;
    case("what is absent is no match", &[first, then(0, FromOrigin)]).await;
    case(
        "what was absent is no match",
        &[fill(VARY), asking(ONE, FromOrigin)],
    )
    .await;
    case("absent both times", &[fill(VARY), then(0, Cached)]).await;
    let again = |ask, body| Step {
        body: Some(body),
        ..asking(ask, Cached)
    };
    case(
        "two variants",
        &[first, second, again(ONE, "body-0"), again(TWO, "body-1")],
    )
    .await;
    let other = asking(&[("foo", "1"), ("other", "2")], Cached);
    case("what is not listed does not count", &[first, other]).await;
    let lines = asking(&[("foo", "1"), ("foo", "2")], FromOrigin);
    let combined = Step {
        ask: &[("foo", "1, 2")],
        ..fill(VARY)
    };
    case(
        "lines are one value",
        &[
            combined,
            Step {
                expect: Cached,
                ..lines
            },
        ],
    )
    .await;
    // A resource that changes by what it varies.
    let more = Step {
        ask: &[("foo", "2"), ("bar", "1")],
        ..fill(&[("cache-control", "max-age=3600"), ("vary", "bar")])
    };
    let steps = [
        first,
        more,
        Step {
            ask: more.ask,
            expect: Cached,
            body: Some("body-1"),
            ..STEP
        },
    ];
    case("more fields", &steps).await;
    // The encodings, in another order.
    let encoded = Step {
        ask: &[("accept-encoding", "gzip, br")],
        ..fill(&[
            ("cache-control", "max-age=3600"),
            ("vary", "Accept-Encoding"),
        ])
    };
    let same = asking(&[("accept-encoding", "BR,gzip")], Cached);
    case("encodings", &[encoded, same]).await;
}

#[tokio::test(start_paused = true)]
async fn validation() {
    const DATED: &[(&str, &str)] = &[
        ("cache-control", "max-age=2"),
        ("last-modified", "@-5000"),
        ("date", "@0"),
    ];
    let confirmed = Step {
        body: Some("body-0"),
        ..then(3, Validated)
    };
    case("an entity tag", &[fill(BRIEF), confirmed]).await;
    case("a date", &[fill(DATED), confirmed]).await;
    let fresh_again = Step {
        say: &[("cache-control", "max-age=60"), ("x-new", "1")],
        ..confirmed
    };
    let cached = Step {
        header: Some(("x-new", "1")),
        body: Some("body-0"),
        ..then(30, Cached)
    };
    case(
        "a 304 renews what is stored",
        &[fill(BRIEF), fresh_again, cached],
    )
    .await;
    let length = Step {
        say: &[("content-length", "1"), ("etag", "\"a\"")],
        header: Some(("content-length", "6")),
        ..confirmed
    };
    case("a 304 does not change the length", &[fill(BRIEF), length]).await;
    let changed = Step {
        body: Some("body-1"),
        ..then(3, FromOrigin)
    };
    let stored = Step {
        body: Some("body-1"),
        ..then(1, Cached)
    };
    case(
        "a new response replaces the old one",
        &[
            fill(BRIEF),
            Step {
                say: BRIEF,
                ..changed
            },
            stored,
        ],
    )
    .await;
    let wrong = Step {
        say: &[("etag", "\"b\"")],
        body: Some("body-0"),
        ..then(3, Validated)
    };
    case(
        "a 304 about another response",
        &[fill(BRIEF), wrong, then(0, FromOrigin)],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn conditions_of_clients() {
    const TAGGED: &[(&str, &str)] = &[
        ("cache-control", "max-age=3600"),
        ("etag", "\"a\""),
        ("last-modified", "@-5000"),
        ("date", "@0"),
    ];
    let not_modified = |ask, expect| Step {
        answer: 304,
        header: Some(("etag", "\"a\"")),
        body: Some(""),
        ..asking(ask, expect)
    };
    for ask in [
        &[("if-none-match", "\"a\"")][..],
        &[("if-none-match", "W/\"a\"")],
        &[("if-none-match", "\"1\", \"a\", \"2\"")],
        &[("if-none-match", "*")],
        &[("if-modified-since", "@-5000")],
        &[("if-modified-since", "@-10")],
        &[("if-none-match", "\"a\""), ("if-modified-since", "@-10000")],
    ] {
        case(
            &format!("{ask:?}"),
            &[fill(TAGGED), not_modified(ask, Cached)],
        )
        .await;
    }
    for ask in [
        &[("if-none-match", "\"b\"")][..],
        &[("if-modified-since", "@-10000")],
        &[("if-none-match", "\"b\""), ("if-modified-since", "@-10")],
    ] {
        case(&format!("{ask:?}"), &[fill(TAGGED), asking(ask, Cached)]).await;
    }
    const STALE: &[(&str, &str)] = &[("cache-control", "max-age=2"), ("etag", "\"a\"")];
    let stale = Step {
        pause: 3,
        say: STALE,
        ..not_modified(&[("if-none-match", "\"a\"")], Validated)
    };
    case("after validation", &[fill(STALE), stale]).await;
    // Nothing is stored yet: the whole response is fetched, and the client gets what it wants.
    let first = Step {
        say: TAGGED,
        ..not_modified(&[("if-none-match", "\"a\"")], FromOrigin)
    };
    case(
        "of what is not stored",
        &[
            first,
            Step {
                body: Some("body-0"),
                ..then(1, Cached)
            },
        ],
    )
    .await;
    let precondition = asking(&[("if-match", "\"a\"")], FromOrigin);
    case("for the origin alone", &[fill(TAGGED), precondition]).await;
}

#[tokio::test(start_paused = true)]
async fn parts() {
    let part = |ask, body| Step {
        answer: 206,
        body: Some(body),
        ..asking(ask, Cached)
    };
    case(
        "a range",
        &[fill(MAX_AGE), part(&[("range", "bytes=0-1")], "bo")],
    )
    .await;
    case(
        "a suffix",
        &[fill(MAX_AGE), part(&[("range", "bytes=-1")], "0")],
    )
    .await;
    let beyond = Step {
        answer: 416,
        header: Some(("content-range", "bytes */6")),
        ..asking(&[("range", "bytes=9-")], Cached)
    };
    case("beyond the end", &[fill(MAX_AGE), beyond]).await;
    const TAGGED: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("etag", "\"a\"")];
    let same = part(&[("range", "bytes=0-1"), ("if-range", "\"a\"")], "bo");
    case("the very same", &[fill(TAGGED), same]).await;
    let other = Step {
        body: Some("body-0"),
        ..asking(&[("range", "bytes=0-1"), ("if-range", "\"b\"")], Cached)
    };
    case("another one", &[fill(TAGGED), other]).await;
    // A part from the origin is not stored.
    let partial = Step {
        status: 206,
        answer: 206,
        say: MAX_AGE,
        ..asking(&[("range", "bytes=0-1")], FromOrigin)
    };
    case(
        "a part of what is not stored",
        &[partial, then(0, FromOrigin)],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn head() {
    let head = |expect| Step {
        method: "HEAD",
        body: Some(""),
        expect,
        ..STEP
    };
    let length = Step {
        header: Some(("content-length", "6")),
        ..head(Cached)
    };
    case("from a stored GET", &[fill(MAX_AGE), length]).await;
    let miss = Step {
        method: "HEAD",
        say: MAX_AGE,
        ..STEP
    };
    case("is not stored as a GET", &[miss, then(0, FromOrigin)]).await;
    let renewed = Step {
        pause: 3,
        method: "HEAD",
        say: &[
            ("cache-control", "max-age=60"),
            ("etag", "\"a\""),
            ("content-length", "6"),
        ],
        ..STEP
    };
    let cached = Step {
        body: Some("body-0"),
        ..then(30, Cached)
    };
    case(
        "renews what it agrees with",
        &[fill(BRIEF), renewed, cached],
    )
    .await;
    let other = Step {
        say: &[("cache-control", "max-age=60"), ("etag", "\"b\"")],
        ..renewed
    };
    case(
        "drops what it contradicts",
        &[fill(BRIEF), other, then(1, FromOrigin)],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn unsafe_methods() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
        let change = Step { method, ..STEP };
        case(method, &[fill(MAX_AGE), change, then(0, FromOrigin)]).await;
        let failed = Step {
            status: 500,
            answer: 500,
            ..change
        };
        case(method, &[fill(MAX_AGE), failed, then(0, Cached)]).await;
        for field in ["location", "content-location"] {
            for (reference, expect) in [
                ("/other", FromOrigin),
                ("other", FromOrigin),
                ("http://H:80/other", FromOrigin),
                ("http://elsewhere/other", Cached),
            ] {
                let say: &'static [(&str, &str)] = Box::leak(Box::new([(field, reference)]));
                let first = Step {
                    path: "/other",
                    ..fill(MAX_AGE)
                };
                let change = Step { say, ..change };
                let last = Step {
                    path: "/other",
                    expect,
                    ..STEP
                };
                case(&format!("{method} {say:?}"), &[first, change, last]).await;
            }
        }
    }
    let safe = Step {
        method: "OPTIONS",
        ..STEP
    };
    case("a safe method", &[fill(MAX_AGE), safe, then(0, Cached)]).await;
}

#[tokio::test(start_paused = true)]
async fn authorization() {
    const USER: &[(&str, &str)] = &[("authorization", "Basic x")];
    for (control, expect) in [
        ("max-age=3600", FromOrigin),
        ("max-age=3600, public", Cached),
        ("max-age=3600, must-revalidate", Cached),
        ("max-age=3600, s-maxage=3600", Cached),
    ] {
        let say: &'static [(&str, &str)] = Box::leak(Box::new([("cache-control", control)]));
        let first = Step {
            ask: USER,
            ..fill(say)
        };
        case(control, &[first, then(0, expect)]).await;
    }
    // One user keeps nobody else from the cache.
    let user = Step {
        ask: USER,
        ..fill(MAX_AGE)
    };
    case("others", &[user, fill(MAX_AGE), then(0, Cached)]).await;
}

#[tokio::test(start_paused = true)]
async fn stale() {
    let failed = Step {
        status: 503,
        expect: FromOrigin,
        body: Some("body-0"),
        ..then(5, FromOrigin)
    };
    let stands_in: &[(&str, &str)] = &[("cache-control", "max-age=2, stale-if-error=60")];
    case("stale-if-error", &[fill(stands_in), failed]).await;
    let gone = Step {
        answer: 503,
        body: None,
        ..failed
    };
    case("no stale-if-error", &[fill(BRIEF), gone]).await;
    case("too stale", &[fill(stands_in), Step { pause: 100, ..gone }]).await;
    let prohibited: &[(&str, &str)] = &[(
        "cache-control",
        "max-age=2, stale-if-error=60, must-revalidate",
    )];
    case("must-revalidate", &[fill(prohibited), gone]).await;
    let asked = Step {
        ask: &[("cache-control", "stale-if-error=60")],
        ..failed
    };
    case("the client accepts", &[fill(BRIEF), asked]).await;
    let not_found = Step {
        status: 404,
        answer: 404,
        body: Some("body-1"),
        ..failed
    };
    case("not an error of the origin", &[fill(stands_in), not_found]).await;
    for control in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=2",
        "no-cache",
    ] {
        let text = Box::leak(format!("max-age=2, {control}").into_boxed_str());
        let say: &'static [(&str, &str)] = Box::leak(Box::new([("cache-control", &*text)]));
        let accepts = Step {
            pause: 5,
            ..asking(&[("cache-control", "max-stale")], FromOrigin)
        };
        case(control, &[fill(say), accepts]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn fields() {
    let age = Step {
        header: Some(("age", "35")),
        ..then(5, Cached)
    };
    let aged: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("age", "30")];
    case("the age is counted on", &[fill(aged), age]).await;
    let dated: &[(&str, &str)] = &[
        ("cache-control", "max-age=3600"),
        ("date", "Wed, 31 Dec 2025 23:59:59 GMT"),
    ];
    let kept = Step {
        header: Some(("date", "Wed, 31 Dec 2025 23:59:59 GMT")),
        ..then(5, Cached)
    };
    case("the date stays", &[fill(dated), kept]).await;
    let warned = Step {
        header: Some(("warning", "")),
        ..asking(&[("cache-control", "max-stale")], Cached)
    };
    case("no warnings", &[fill(BRIEF), Step { pause: 5, ..warned }]).await;
    let hop: &[(&str, &str)] = &[
        ("cache-control", "max-age=3600"),
        ("connection", "a"),
        ("a", "1"),
        ("proxy-authenticate", "x"),
    ];
    for field in ["a", "connection", "proxy-authenticate"] {
        let gone = Step {
            header: Some((field, "")),
            ..then(0, Cached)
        };
        case("fields of one exchange", &[fill(hop), gone]).await;
    }
    let query = Step {
        path: "/?a",
        ..fill(MAX_AGE)
    };
    let same = Step {
        path: "/?a",
        ..then(0, Cached)
    };
    let other = Step {
        path: "/?b",
        ..then(0, FromOrigin)
    };
    case("the query is a part of the key", &[query, same, other]).await;
}
