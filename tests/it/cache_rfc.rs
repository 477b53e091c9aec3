//! What the RFCs demand of a shared cache, one test for each demand, named by its section.
//!
//! | section | demand | test |
//! |---|---|---|
//! | RFC 9111, 2 | a key is the method and the URI at least | `rfc9111_2_a_key_is_the_method_and_the_uri` |
//! | 3 | the method is understood | `rfc9111_3_only_answers_to_gets_are_stored` |
//! | 3 | the status is final, and 206 and 304 are understood | `rfc9111_3_no_part_and_no_304_is_stored` |
//! | 3 | not with `no-store` | `rfc9111_3_no_store_is_not_stored` |
//! | 3 | not with `private` | `rfc9111_3_private_is_not_stored` |
//! | 3 | something says that it may be stored | `rfc9111_3_something_says_that_it_may_be_stored` |
//! | 3 | `must-understand`: the status is understood | `rfc9111_5_2_2_3_must_understand` |
//! | 3.1 | all fields are stored, unknown ones too | `rfc9111_3_1_all_fields_are_stored` |
//! | 3.1 | but those of the connection and of a proxy | `rfc9111_3_1_fields_of_one_exchange_are_not_stored` |
//! | 3.1 | no trailer becomes a header | `rfc9111_3_1_trailers_are_discarded` |
//! | 3.2 | a 304 replaces and adds fields, not the length | `rfc9111_3_2_a_304_replaces_and_adds_fields` |
//! | 3.3 | what broke off is no answer | `rfc9111_3_3_what_is_incomplete_is_not_used` |
//! | 3.5 | `Authorization`: shared only when it says so | `rfc9111_3_5_authorization_is_shared_only_when_it_says_so` |
//! | 4 | unsafe methods are written through | `rfc9111_4_unsafe_methods_are_written_through` |
//! | 4 | `Age` is generated, in place of any other | `rfc9111_4_age_is_generated` |
//! | 4 | one answer for many only if it may be shared | `rfc9111_4_a_collapsed_answer_may_be_shared` |
//! | 4 | of several responses the most recent one | `rfc9111_4_the_most_recent_response_is_used` |
//! | 4.1 | every field that `Vary` names matches | `rfc9111_4_1_every_field_that_vary_names_matches` |
//! | 4.1 | an absent field matches its absence alone | `rfc9111_4_1_absence_matches_absence` |
//! | 4.1 | `Vary: *` matches nothing | `rfc9111_4_1_a_star_matches_nothing` |
//! | 4.1 | also when a 304 or a HEAD brought it | `rfc9111_4_1_what_a_304_varies_by_counts` |
//! | 4.2 | fresh while the lifetime is above the age | `rfc9111_4_2_fresh_until_the_age_is_the_lifetime` |
//! | 4.2.1 | `s-maxage`, `max-age`, `Expires`, in this order | `rfc9111_4_2_1_the_order_of_lifetimes` |
//! | 4.2.1 | twice the same: the first; invalid: stale | `rfc9111_4_2_1_the_first_of_two_and_nothing_invalid` |
//! | 4.2.2 | nothing is guessed beside what is explicit | `rfc9111_4_2_2_nothing_is_guessed_beside_what_is_explicit` |
//! | 4.2.2 | and only for statuses that allow it, or `public` | `rfc9111_4_2_2_only_some_statuses_are_guessed` |
//! | 4.2.3 | age: of `Age`, `Date`, the delay and the stay | `rfc9111_4_2_3_ages_add_up` |
//! | 4.2.4 | never stale where a directive forbids it | `rfc9111_4_2_4_never_stale_where_it_is_forbidden` |
//! | 4.2.4 | nor without a permission | `rfc9111_4_2_4_never_stale_without_permission` |
//! | 4.3.1 | the validators that are stored are sent | `rfc9111_4_3_1_all_validators_are_sent` |
//! | 4.3.2 | `If-None-Match` of a client is evaluated | `rfc9111_4_3_2_if_none_match_is_evaluated` |
//! | 4.3.2 | `If-Modified-Since` too, by `Last-Modified` or `Date` | `rfc9111_4_3_2_if_modified_since_is_evaluated` |
//! | 4.3.2 | conditions for the origin are not | `rfc9111_4_3_2_conditions_for_the_origin_are_not_evaluated` |
//! | 4.3.2 | nor those of what is not stored | `rfc9111_4_3_2_conditions_of_what_is_not_stored` |
//! | 4.3.2 | `If-Range` is evaluated | `rfc9110_13_1_5_if_range` |
//! | 4.3.3 | a full response is the answer | `rfc9111_4_3_3_a_full_response_is_the_answer` |
//! | 4.3.3 | an error is passed on, or something stale allowed | `rfc9111_4_3_3_an_error_is_passed_on` |
//! | 4.3.4 | a 304 updates what it is about | `rfc9111_4_3_4_a_304_updates_what_is_stored` |
//! | 4.3.4 | and nothing that has another strong validator | `rfc9111_4_3_4_a_304_about_another_response_updates_nothing` |
//! | 4.3.4 | what a 304 forbids to store is no longer stored | `rfc9111_4_3_4_a_304_that_forbids_storing_is_obeyed` |
//! | 4.3.5 | HEAD updates, or makes stale | `rfc9111_4_3_5_head_updates_or_makes_stale` |
//! | 4.4 | an unsafe method invalidates its URI, all variants | `rfc9111_4_4_an_unsafe_method_invalidates_its_uri` |
//! | 4.4 | not when it failed | `rfc9111_4_4_an_error_invalidates_nothing` |
//! | 4.4 | other URIs only of the same origin | `rfc9111_4_4_other_uris_only_of_the_same_origin` |
//! | 5.1 | the first of several ages; none that is invalid | `rfc9111_5_1_the_first_valid_age_counts` |
//! | 5.2 | directives pass through | `rfc9111_5_2_directives_pass_through` |
//! | 5.2 | in any case, in quotes or not | `rfc9111_5_2_case_and_quotes_do_not_count` |
//! | 5.2.1.1-7 | the directives of requests | `rfc9111_5_2_1_*` |
//! | 5.2.2.1-10 | the directives of responses | `rfc9111_5_2_2_*` |
//! | 5.2.3 | what is unknown is ignored | `rfc9111_5_2_3_unknown_directives_are_ignored` |
//! | 5.3 | no date, or `0`, is in the past | `rfc9111_5_3_what_is_no_date_is_in_the_past` |
//! | 5.4 | `Pragma` counts in requests alone | `rfc9111_5_4_pragma_counts_in_requests_alone` |
//! | RFC 9110, 6.6.1 | what has no date gets one | `rfc9110_6_6_1_what_is_cached_has_a_date` |
//! | 7.8 | an upgrade is not answered by a cache | `rfc9110_7_8_an_upgrade_is_passed_on` |
//! | 8.8.3.2 | strong and weak comparison | `rfc9111_4_3_2_if_none_match_is_evaluated`, `rfc9110_13_1_5_if_range` |
//! | 9.3.2 | a HEAD has the fields of the GET and no content | `rfc9110_9_3_2_a_head_has_no_content` |
//! | 9.3.4-8 | PUT, DELETE, OPTIONS, TRACE are not cacheable | `rfc9111_3_only_answers_to_gets_are_stored` |
//! | 13.1.3 | when `If-Modified-Since` is ignored | `rfc9110_13_1_3_if_modified_since_is_ignored` |
//! | 13.1.5 | `If-Range`: exact, strong, only with `Range` | `rfc9110_13_1_5_if_range` |
//! | 13.2.1 | conditions of what is no success are ignored | `rfc9110_13_2_1_conditions_of_failures_are_ignored` |
//! | 13.2.2 | the order of conditions | `rfc9110_13_2_2_the_order_of_conditions` |
//! | 14.2 | when `Range` is ignored | `rfc9110_14_2_range_is_ignored` |
//! | 15.3.7 | the fields of a 206 | `rfc9110_15_3_7_the_fields_of_a_part` |
//! | 15.4.5 | the fields of a 304 | `rfc9110_15_4_5_the_fields_of_a_304` |
//! | 15.5.17 | a 416 names the length | `rfc9110_15_5_17_beyond_the_end` |
//! | RFC 9211, 2 | a list, the nearest to the client last, none lost | `rfc9211_2_caches_nearer_to_the_origin_keep_their_place` |
//! | 2.1, 2.2 | `hit` or `fwd`, never both, and why | `rfc9211_2_1_hit_and_2_2_fwd_exclude_each_other` |
//! | 2.3-2.6 | `fwd-status`, `ttl`, `stored`, `collapsed` | `rfc9211_2_3_what_became_of_a_forwarded_request` |
//! | RFC 9213, 2.1 | broken or empty: as if it were not there | `rfc9213_2_1_a_broken_field_is_ignored` |
//! | 2.2 | else `Cache-Control` and `Expires` are ignored | `rfc9213_2_2_the_targeted_field_comes_first` |
//! | RFC 5861, 3 | stale while it is validated, no longer | `rfc5861_3_stale_while_revalidate` |
//! | 4 | stale in place of 500, 502, 503, 504, no longer | `rfc5861_4_stale_if_error` |
//! | RFC 9875, 2 | 32 groups of 32 characters, strings alone | `rfc9875_2_groups_are_strings` |
//! | 2.1 | of one origin, case-sensitive | `rfc9875_2_1_a_group_is_of_one_origin` |
//! | 3 | named by unsafe methods alone | `rfc9875_3_only_an_unsafe_method_invalidates_groups` |
//!
//! What a cache on hyper cannot do, or this one does not:
//!
//! - Forward `1xx` (RFC 9110 section 15.2): hyper's client shows them, its server can send none
//!   but its own `100 Continue`.
//! - Store parts, and combine them (RFC 9111 sections 3.3 and 3.4, both MAY); answer several ranges
//!   by `multipart/byteranges` (RFC 9110 section 14.2: the whole is an answer to any range).
//! - Store answers to POST (RFC 9110 section 9.3.3, MAY), and trailers (RFC 9111 section 3.1: MAY
//!   be discarded).
//! - Send a list of the tags of all variants when it validates (RFC 9111 section 4.3.1, MAY), or
//!   several responses' worth of anything: one is stored for each selection by `Vary`.
//! - Invalidate what shares groups with a URI that is invalidated (RFC 9875 section 2.2.1, MAY).
//!
//! In one place it goes by the word of the origin and not by the letter: `s-maxage` beside
//! `stale-while-revalidate` or `stale-if-error`. RFC 9111 section 5.2.2.10 lets nothing stale be
//! used under `s-maxage`; who writes both means both, and every cache reads them so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::cache::HttpCache;

use crate::support::{
    site::{Origin, get, layer, pause, read, request, response, send, site},
    steps::{
        BRIEF, Cached, Expect, FromOrigin, MAX_AGE, STEP, Step, Validated, asking, case, fill, then,
    },
};

type Fields = &'static [(&'static str, &'static str)];

/// Fresh for an hour, with both validators.
const TAGGED: Fields = &[
    ("cache-control", "max-age=3600"),
    ("etag", "\"a\""),
    ("last-modified", "@-5000"),
    ("date", "@0"),
];

fn one(name: &'static str, value: &str) -> Fields {
    let value = &*Box::leak(value.to_owned().into_boxed_str());
    Box::leak(Box::new([(name, value)]))
}

fn control(text: &str) -> Fields {
    one("cache-control", text)
}

/// Two plain requests, the second one a second later.
async fn twice(say: Fields, expect: Expect) {
    case(&format!("{say:?}"), &[fill(say), then(1, expect)]).await;
}

fn of_status(status: u16, step: Step) -> Step {
    Step {
        status,
        answer: status,
        ..step
    }
}

fn by(method: &'static str) -> Step {
    Step { method, ..STEP }
}

// --- RFC 9111

#[tokio::test(start_paused = true)]
async fn rfc9111_2_a_key_is_the_method_and_the_uri() {
    let at = |path, expect| Step {
        path,
        say: MAX_AGE,
        expect,
        ..STEP
    };
    let steps = [
        at("/a", FromOrigin),
        at("/A", FromOrigin),
        at("/a/", FromOrigin),
        at("/a?", FromOrigin),
        at("/a?b", FromOrigin),
        at("http://other/a", FromOrigin),
        at("https://h/a", FromOrigin),
        at("http://H:80/a", Cached),
        at("/a", Cached),
    ];
    case("uris", &steps).await;
    for method in ["POST", "OPTIONS", "QUERY"] {
        let other = by(method);
        case(method, &[fill(MAX_AGE), other]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_only_answers_to_gets_are_stored() {
    for method in [
        "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY",
    ] {
        let first = Step {
            say: MAX_AGE,
            ..by(method)
        };
        case(method, &[first, by(method), then(0, FromOrigin)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_no_part_and_no_304_is_stored() {
    for status in [206, 304] {
        let first = of_status(status, fill(MAX_AGE));
        case("a status", &[first, then(0, FromOrigin)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_no_store_is_not_stored() {
    twice(control("no-store, max-age=3600"), FromOrigin).await;
    twice(control("max-age=3600, public, No-Store"), FromOrigin).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_private_is_not_stored() {
    twice(control("private, max-age=3600"), FromOrigin).await;
    twice(
        control("s-maxage=3600, public, PRIVATE, must-revalidate"),
        FromOrigin,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_something_says_that_it_may_be_stored() {
    const MODIFIED: (&str, &str) = ("last-modified", "@-10000");
    for status in [201, 302, 403, 500] {
        let nothing: Fields = &[MODIFIED];
        let last = |expect| of_status(status, then(1, expect));
        let first = |say| of_status(status, fill(say));
        case("nothing", &[first(nothing), last(FromOrigin)]).await;
        let says: [Fields; 4] = [
            &[("cache-control", "public"), MODIFIED],
            &[("cache-control", "max-age=60")],
            &[("cache-control", "s-maxage=60")],
            &[("expires", "@60"), ("date", "@0")],
        ];
        for say in says {
            case(&format!("{say:?}"), &[first(say), last(Cached)]).await;
        }
    }
    twice(&[MODIFIED], Cached).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_1_all_fields_are_stored() {
    let origin = Origin::new(|_, _| async {
        let fields = [
            ("cache-control", "max-age=60"),
            ("x-unknown", "1"),
            ("x-unknown", "2"),
            ("x-empty", ""),
            ("content-security-policy", "default-src 'self'"),
            ("link", "</a>; rel=preload"),
        ];
        response(200, &fields, "")
    });
    let (_, site) = site(&origin);
    let first = get(&site, "/", &[]).await;
    let hit = get(&site, "/", &[]).await;
    assert!(hit.is_hit());
    for (name, value) in &first.headers {
        if *name != "cache-status" {
            let lines = hit.headers.get_all(name);
            assert!(lines.iter().any(|line| line == value), "{name}: {value:?}");
        }
    }
    assert_eq!(hit.headers.get_all("x-unknown").iter().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_1_fields_of_one_exchange_are_not_stored() {
    let say: Fields = &[
        ("cache-control", "max-age=60"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("proxy-authorization", "x"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
        ("upgrade", "websocket"),
    ];
    for (name, _) in &say[1..] {
        let hit = Step {
            header: Some((name, "")),
            ..then(0, Cached)
        };
        case(name, &[fill(say), hit]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_1_trailers_are_discarded() {
    let origin = Origin::new(|_, _| async {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-trailer", "1".parse().unwrap());
        let frames = [
            Frame::data(Bytes::from_static(b"body")),
            Frame::trailers(trailers),
        ];
        let frames = futures_util::stream::iter(frames.into_iter().map(Ok));
        response(200, MAX_AGE, "").map(|_| StreamBody::new(frames).boxed_unsync())
    });
    let (_, site) = site(&origin);
    get(&site, "/", &[]).await;
    let hit = get(&site, "/", &[]).await;
    assert!(hit.is_hit());
    assert_eq!((hit.text(), hit.header("x-trailer")), ("body", ""));
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_2_a_304_replaces_and_adds_fields() {
    let first = fill(&[
        ("cache-control", "max-age=2"),
        ("etag", "\"a\""),
        ("content-encoding", "gzip"),
        ("x-old", "1"),
        ("x-kept", "1"),
    ]);
    let update = Step {
        say: &[
            ("cache-control", "max-age=60"),
            ("etag", "\"a\""),
            ("x-old", "2"),
            ("x-new", "3"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "0"),
            ("content-encoding", "br"),
        ],
        ..then(3, Validated)
    };
    for header in [
        ("x-old", "2"),
        ("x-kept", "1"),
        ("x-new", "3"),
        ("x-hop", ""),
        ("content-length", "6"),
        ("content-encoding", "gzip"),
        ("cache-control", "max-age=60"),
    ] {
        let both = |step| Step {
            header: Some(header),
            body: Some("body-0"),
            ..step
        };
        let steps = [first, both(update), both(then(1, Cached))];
        case(header.0, &steps).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_3_what_is_incomplete_is_not_used() {
    let short = fill(&[("cache-control", "max-age=60"), ("content-length", "99")]);
    case("too short", &[short, then(0, FromOrigin)]).await;
    let long = fill(&[("cache-control", "max-age=60"), ("content-length", "2")]);
    case("too long", &[long, then(0, FromOrigin)]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_5_authorization_is_shared_only_when_it_says_so() {
    const USER: Fields = &[("authorization", "Basic x")];
    const OTHER: Fields = &[("authorization", "Basic y")];
    for (text, expect) in [
        ("max-age=3600", FromOrigin),
        ("max-age=3600, proxy-revalidate", FromOrigin),
        ("max-age=3600, immutable", FromOrigin),
        ("max-age=3600, public", Cached),
        ("max-age=3600, must-revalidate", Cached),
        ("s-maxage=3600", Cached),
    ] {
        let first = Step {
            ask: USER,
            ..fill(control(text))
        };
        for ask in [&[][..], USER, OTHER] {
            case(text, &[first, asking(ask, expect)]).await;
        }
        // What was stored for everybody is for the authorized, too.
        case(text, &[fill(control(text)), asking(USER, Cached)]).await;
    }
    // Also when an authorized request renews it.
    let renews = Step {
        say: control("max-age=3600"),
        ask: USER,
        ..then(3, Validated)
    };
    let steps = [fill(BRIEF), renews, then(0, Validated)];
    case("renewed", &steps).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_unsafe_methods_are_written_through() {
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let write = Step {
            say: MAX_AGE,
            ..by(method)
        };
        case(method, &[fill(MAX_AGE), write, write]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_age_is_generated() {
    let origin = Origin::new(|_, _| async {
        response(200, &[("cache-control", "max-age=60"), ("age", "30")], "")
    });
    let (_, site) = site(&origin);
    get(&site, "/", &[]).await;
    for (seconds, age) in [(0, "30"), (5, "35"), (5, "40")] {
        pause(seconds).await;
        let hit = get(&site, "/", &[]).await;
        let ages: Vec<_> = hit.headers.get_all("age").iter().collect();
        assert_eq!(ages, [age]);
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_a_collapsed_answer_may_be_shared() {
    let says: [Fields; 5] = [
        control("private, max-age=60"),
        control("no-store"),
        &[("cache-control", "max-age=60"), ("set-cookie", "a=b")],
        &[("cache-control", "max-age=60"), ("vary", "*")],
        &[("cache-control", "max-age=60"), ("vary", "x-user")],
    ];
    for say in says {
        let origin = Origin::new(move |_, head| async move {
            pause(1).await;
            let user = head.headers["x-user"].to_str().unwrap().to_owned();
            response(200, say, user)
        });
        let (_, site) = site(&origin);
        let users = ["1", "2", "3", "4", "5"];
        let ask = |user| {
            let site = &site;
            async move { get(site, "/", &[("x-user", user)]).await }
        };
        let answers = join_all(users.map(ask)).await;
        let texts: Vec<_> = answers.iter().map(|answer| answer.text()).collect();
        assert_eq!(texts, users, "{say:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_the_most_recent_response_is_used() {
    const VARY: Fields = &[("cache-control", "max-age=2"), ("vary", "foo")];
    let renewed = Step {
        say: VARY,
        ..then(3, FromOrigin)
    };
    let last = Step {
        body: Some("body-1"),
        ..then(1, Cached)
    };
    case("one replaces another", &[fill(VARY), renewed, last]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_every_field_that_vary_names_matches() {
    const VARY: Fields = &[("cache-control", "max-age=60"), ("vary", "foo, Bar")];
    let first = Step {
        ask: &[("foo", "1"), ("bar", "2")],
        ..fill(VARY)
    };
    let cases: [(Fields, Expect); 7] = [
        (&[("foo", "1"), ("bar", "2")], Cached),
        (&[("bar", "2"), ("other", "x"), ("foo", "1")], Cached),
        (&[("foo", " 1 "), ("bar", "2")], Cached),
        (&[("foo", "2"), ("bar", "2")], FromOrigin),
        (&[("foo", "1"), ("bar", "1")], FromOrigin),
        (&[("foo", "1")], FromOrigin),
        (&[("foo", "1"), ("foo", "1"), ("bar", "2")], FromOrigin),
    ];
    for (ask, expect) in cases {
        case(&format!("{ask:?}"), &[first, asking(ask, expect)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_absence_matches_absence() {
    const VARY: Fields = &[("cache-control", "max-age=60"), ("vary", "foo")];
    case("absent twice", &[fill(VARY), then(0, Cached)]).await;
    for ask in [&[("foo", "")][..], &[("foo", "1")]] {
        case("now present", &[fill(VARY), asking(ask, FromOrigin)]).await;
        let first = Step { ask, ..fill(VARY) };
        case("now absent", &[first, then(0, FromOrigin)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_a_star_matches_nothing() {
    for vary in ["*", "foo, *", "*, foo", " * "] {
        let say: Fields = Box::leak(Box::new([
            ("cache-control", "max-age=60"),
            ("vary", &*Box::leak(vary.to_owned().into_boxed_str())),
        ]));
        twice(say, FromOrigin).await;
    }
    let two_lines: Fields = &[
        ("cache-control", "max-age=60"),
        ("vary", "foo"),
        ("vary", "*"),
    ];
    twice(two_lines, FromOrigin).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_what_a_304_varies_by_counts() {
    const NOW: Fields = &[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("vary", "foo"),
    ];
    const ONE: Fields = &[("foo", "1")];
    let first = Step {
        ask: ONE,
        ..fill(BRIEF)
    };
    let confirmed = Step {
        say: NOW,
        ask: ONE,
        ..then(3, Validated)
    };
    let head = Step {
        method: "HEAD",
        expect: FromOrigin,
        ..confirmed
    };
    for renews in [confirmed, head] {
        let other = asking(&[("foo", "2")], FromOrigin);
        case("another", &[first, renews, other]).await;
        case("absent", &[first, renews, then(0, FromOrigin)]).await;
        case("the same", &[first, renews, asking(ONE, Cached)]).await;
    }
    let star = Step {
        say: &[
            ("cache-control", "max-age=60"),
            ("etag", "\"a\""),
            ("vary", "*"),
        ],
        ..confirmed
    };
    case("a star", &[first, star, asking(ONE, FromOrigin)]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_fresh_until_the_age_is_the_lifetime() {
    let steps = [
        fill(control("max-age=5")),
        then(4, Cached),
        then(1, FromOrigin),
    ];
    case("five seconds", &steps).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_1_the_order_of_lifetimes() {
    let cases: [(Fields, Expect); 6] = [
        (control("max-age=1, s-maxage=60"), Cached),
        (control("s-maxage=1, max-age=60"), FromOrigin),
        (
            &[("cache-control", "max-age=60"), ("expires", "@-60")],
            Cached,
        ),
        (
            &[("cache-control", "max-age=1"), ("expires", "@60")],
            FromOrigin,
        ),
        (
            &[("cache-control", "s-maxage=1"), ("expires", "@60")],
            FromOrigin,
        ),
        (&[("expires", "@60")], Cached),
    ];
    for (say, expect) in cases {
        twice(say, expect).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_1_the_first_of_two_and_nothing_invalid() {
    for (text, expect) in [
        ("max-age=60, max-age=1", Cached),
        ("max-age=1, max-age=60", FromOrigin),
        ("max-age=1.5", FromOrigin),
        ("max-age=-60", FromOrigin),
        ("max-age = 60", FromOrigin),
        ("max-age", FromOrigin),
        ("max-age=99999999999999", Cached),
        // The more restrictive of two that contradict each other.
        ("max-age=60, no-cache", FromOrigin),
    ] {
        twice(control(text), expect).await;
    }
    let two: Fields = &[("expires", "@60"), ("expires", "@60"), ("date", "@0")];
    twice(two, FromOrigin).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_2_nothing_is_guessed_beside_what_is_explicit() {
    let says: [Fields; 3] = [
        &[("last-modified", "@-10000"), ("expires", "@0")],
        &[("last-modified", "@-10000"), ("cache-control", "max-age=0")],
        &[
            ("last-modified", "@-10000"),
            ("cache-control", "s-maxage=1"),
        ],
    ];
    for say in says {
        case("explicit", &[fill(say), then(1, FromOrigin)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_2_only_some_statuses_are_guessed() {
    const MODIFIED: Fields = &[("last-modified", "@-10000")];
    for (status, expect) in [
        (200, Cached),
        (203, Cached),
        (204, Cached),
        (300, Cached),
        (301, Cached),
        (308, Cached),
        (404, Cached),
        (405, Cached),
        (410, Cached),
        (414, Cached),
        (501, Cached),
        (201, FromOrigin),
        (302, FromOrigin),
        (307, FromOrigin),
        (400, FromOrigin),
        (403, FromOrigin),
        (500, FromOrigin),
        (503, FromOrigin),
    ] {
        let first = of_status(status, fill(MODIFIED));
        let last = of_status(status, then(1, expect));
        case(&status.to_string(), &[first, last]).await;
    }
    let public: Fields = &[("last-modified", "@-10000"), ("cache-control", "public")];
    let first = of_status(302, fill(public));
    case("public", &[first, of_status(302, then(1, Cached))]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_3_ages_add_up() {
    let cases: [(Fields, u64, &str); 4] = [
        (&[], 0, "9"),
        (&[("age", "30")], 0, "39"),
        (&[("date", "Wed, 31 Dec 2025 23:59:50 GMT")], 10, "19"),
        (
            &[("date", "Thu, 01 Jan 2026 00:00:00 GMT"), ("age", "3")],
            0,
            "12",
        ),
    ];
    for (fields, _, expected) in cases {
        // It takes five seconds to come, and four more pass.
        let origin = Origin::new(move |_, _| async move {
            pause(5).await;
            let fields = [&[("cache-control", "max-age=100")], fields].concat();
            response(200, &fields, "")
        });
        let (_, site) = site(&origin);
        get(&site, "/", &[]).await;
        pause(4).await;
        let hit = get(&site, "/", &[]).await;
        assert!(hit.is_hit());
        assert_eq!(hit.header("age"), expected, "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_4_never_stale_where_it_is_forbidden() {
    let accepts = Step {
        pause: 5,
        ..asking(&[("cache-control", "max-stale")], FromOrigin)
    };
    let fails = Step {
        status: 503,
        answer: 503,
        ask: &[("cache-control", "stale-if-error=60")],
        ..then(5, FromOrigin)
    };
    for text in [
        "max-age=2, no-cache",
        "max-age=2, must-revalidate",
        "max-age=2, proxy-revalidate",
        "s-maxage=2",
    ] {
        let first = fill(control(text));
        case(text, &[first, accepts]).await;
        case(text, &[first, fails]).await;
    }
    case(
        "none of them",
        &[
            fill(BRIEF),
            Step {
                expect: Cached,
                ..accepts
            },
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_4_never_stale_without_permission() {
    let fails = of_status(503, then(5, FromOrigin));
    case("an error", &[fill(BRIEF), fails]).await;
    case("nothing", &[fill(BRIEF), then(5, FromOrigin)]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_1_all_validators_are_sent() {
    let both = fill(&[
        ("cache-control", "max-age=2"),
        ("etag", "\"a\""),
        ("last-modified", "Wed, 31 Dec 2025 00:00:00 GMT"),
    ]);
    let sees = Step {
        sees: &[
            ("if-none-match", "\"a\""),
            ("if-modified-since", "Wed, 31 Dec 2025 00:00:00 GMT"),
        ],
        ..then(3, Validated)
    };
    case("both", &[both, sees]).await;
    // In place of those of the client.
    let own = Step {
        ask: &[("if-none-match", "\"b\"")],
        ..sees
    };
    case("not the client's", &[both, own]).await;
    let tag = Step {
        sees: &[("if-none-match", "\"a\""), ("if-modified-since", "")],
        ..then(3, Validated)
    };
    case("a tag", &[fill(BRIEF), tag]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_if_none_match_is_evaluated() {
    for (condition, answer) in [
        ("\"a\"", 304),
        ("W/\"a\"", 304),
        ("\"b\", W/\"c\", \"a\"", 304),
        ("*", 304),
        ("\"b\"", 200),
        ("\"A\"", 200),
    ] {
        let ask = one("if-none-match", condition);
        let step = Step {
            answer,
            body: Some(if answer == 304 { "" } else { "body-0" }),
            ..asking(ask, Cached)
        };
        case(condition, &[fill(TAGGED), step]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_if_modified_since_is_evaluated() {
    const DATED: Fields = &[("cache-control", "max-age=3600"), ("date", "@0")];
    const UNDATED: Fields = &[("cache-control", "max-age=3600")];
    let cases: [(Fields, Fields, u16); 6] = [
        (TAGGED, &[("if-modified-since", "@-5000")], 304),
        (TAGGED, &[("if-modified-since", "@-5001")], 200),
        (DATED, &[("if-modified-since", "@0")], 304),
        (DATED, &[("if-modified-since", "@-10")], 200),
        (UNDATED, &[("if-modified-since", "@0")], 304),
        (UNDATED, &[("if-modified-since", "@-10")], 200),
    ];
    for (say, ask, answer) in cases {
        let step = Step {
            answer,
            ..asking(ask, Cached)
        };
        case(&format!("{say:?} {ask:?}"), &[fill(say), step]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_conditions_for_the_origin_are_not_evaluated() {
    for name in ["if-match", "if-unmodified-since"] {
        let step = Step {
            sees: one(name, "\"a\""),
            ..asking(one(name, "\"a\""), FromOrigin)
        };
        case(name, &[fill(TAGGED), step]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_conditions_of_what_is_not_stored() {
    // The origin does not see the condition, as its answer might have been for all. Who asked gets
    // what it would have said.
    let say = &[("cache-control", "no-store"), ("etag", "\"a\"")];
    let has = Step {
        say,
        sees: &[("if-none-match", "")],
        answer: 304,
        body: Some(""),
        header: Some(("etag", "\"a\"")),
        ..asking(&[("if-none-match", "\"a\"")], FromOrigin)
    };
    // From then on it does, and decides for itself.
    let again = Step {
        say,
        sees: &[("if-none-match", "\"a\"")],
        body: Some("body-1"),
        ..asking(&[("if-none-match", "\"a\"")], FromOrigin)
    };
    let has_not = Step {
        say,
        body: Some("body-0"),
        ..asking(&[("if-none-match", "\"b\"")], FromOrigin)
    };
    case("has it", &[has, again]).await;
    case("has not", &[has_not]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_3_a_full_response_is_the_answer() {
    for status in [200, 404, 410] {
        let full = Step {
            say: MAX_AGE,
            body: Some("body-1"),
            ..of_status(status, then(3, FromOrigin))
        };
        let stored = Step {
            body: Some("body-1"),
            ..of_status(status, then(1, Cached))
        };
        case("a full response", &[fill(BRIEF), full, stored]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_3_an_error_is_passed_on() {
    for status in [500, 502, 503, 504] {
        let fails = Step {
            body: Some("body-1"),
            ..of_status(status, then(3, FromOrigin))
        };
        // What was stored is still there.
        let later = Step {
            body: Some("body-0"),
            ..then(0, Validated)
        };
        case("an error", &[fill(BRIEF), fails, later]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_updates_what_is_stored() {
    let renews = Step {
        say: MAX_AGE,
        body: Some("body-0"),
        ..then(3, Validated)
    };
    let cached = Step {
        body: Some("body-0"),
        ..then(100, Cached)
    };
    case("renewed", &[fill(BRIEF), renews, cached]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_about_another_response_updates_nothing() {
    let other = Step {
        status: 304,
        say: &[("etag", "\"b\""), ("cache-control", "max-age=60")],
        body: Some("body-0"),
        header: Some(("age", "3")),
        ..then(3, Validated)
    };
    let steps = [fill(BRIEF), other, then(0, FromOrigin)];
    case("another", &steps).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_that_forbids_storing_is_obeyed() {
    // The client insists, while what is stored is fresh.
    for text in ["private, max-age=60", "no-store"] {
        let forbids = Step {
            say: control(text),
            body: Some("body-0"),
            ..asking(&[("cache-control", "no-cache")], Validated)
        };
        let steps = [fill(TAGGED), forbids, then(0, FromOrigin)];
        case(text, &steps).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_5_head_updates_or_makes_stale() {
    let head = |say| Step {
        method: "HEAD",
        say,
        ..then(3, FromOrigin)
    };
    let same = head(&[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("content-length", "6"),
        ("x-new", "1"),
    ]);
    let updated = Step {
        header: Some(("x-new", "1")),
        body: Some("body-0"),
        ..then(30, Cached)
    };
    case("updates", &[fill(BRIEF), same, updated]).await;
    let others: [Fields; 3] = [
        &[("cache-control", "max-age=60"), ("etag", "\"b\"")],
        &[("cache-control", "max-age=60"), ("content-length", "7")],
        &[("cache-control", "max-age=60"), ("last-modified", "@-10")],
    ];
    for say in others {
        case(
            "makes stale",
            &[fill(BRIEF), head(say), then(0, FromOrigin)],
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_4_an_unsafe_method_invalidates_its_uri() {
    const VARY: Fields = &[("cache-control", "max-age=60"), ("vary", "foo")];
    const ONE: Fields = &[("foo", "1")];
    for method in ["POST", "PUT", "DELETE", "PATCH", "UNKNOWN"] {
        for status in [200, 201, 204, 303] {
            let change = of_status(status, by(method));
            case(method, &[fill(MAX_AGE), change, then(0, FromOrigin)]).await;
            let variants = [
                fill(VARY),
                Step {
                    ask: ONE,
                    ..fill(VARY)
                },
                change,
                asking(ONE, FromOrigin),
                then(0, FromOrigin),
            ];
            case(method, &variants).await;
        }
    }
    for method in ["OPTIONS", "TRACE", "HEAD"] {
        let expect = if method == "HEAD" { Cached } else { FromOrigin };
        let safe = Step {
            expect,
            ..by(method)
        };
        case(method, &[fill(MAX_AGE), safe, then(0, Cached)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_4_an_error_invalidates_nothing() {
    for status in [400, 403, 404, 409, 500, 503] {
        let failed = of_status(status, by("POST"));
        case("an error", &[fill(MAX_AGE), failed, then(0, Cached)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_4_other_uris_only_of_the_same_origin() {
    for name in ["location", "content-location"] {
        for (reference, path, expect) in [
            ("/b", "/b", FromOrigin),
            ("http://h:80/b", "/b", FromOrigin),
            ("http://other/b", "http://other/b", Cached),
            ("https://h/b", "https://h/b", Cached),
            ("http://h:8080/b", "http://h:8080/b", Cached),
        ] {
            let first = Step {
                path,
                ..fill(MAX_AGE)
            };
            let change = Step {
                say: one(name, reference),
                ..by("POST")
            };
            let last = Step {
                path,
                ..then(0, expect)
            };
            case(reference, &[first, change, last]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_1_the_first_valid_age_counts() {
    for (age, expected) in [
        ("30, 0", "31"),
        ("0, 30", "1"),
        ("-1", "1"),
        ("1.5", "1"),
        ("x", "1"),
        ("30;foo", "1"),
    ] {
        let say: Fields = Box::leak(Box::new([("cache-control", "max-age=100"), ("age", age)]));
        let hit = Step {
            header: Some(("age", expected)),
            ..then(1, Cached)
        };
        case(age, &[fill(say), hit]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_directives_pass_through() {
    let request = Step {
        sees: &[("cache-control", "max-age=0, unknown=\"a, b\"")],
        ..asking(
            &[("cache-control", "max-age=0, unknown=\"a, b\"")],
            FromOrigin,
        )
    };
    case("of requests", &[request]).await;
    const SAID: &str = "max-age=60, private=\"x-a\", unknown=\"a, b\"";
    let both = |step| Step {
        header: Some(("cache-control", SAID)),
        ..step
    };
    let steps = [
        both(fill(&[("cache-control", SAID)])),
        both(then(0, Cached)),
    ];
    case("of responses", &steps).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_case_and_quotes_do_not_count() {
    twice(control("MAX-AGE=60"), Cached).await;
    twice(control("max-age=\"60\""), Cached).await;
    twice(control("max-age=60, NO-STORE"), FromOrigin).await;
    twice(control("ext=\"no-store\", max-age=60"), Cached).await;
    let asks = asking(&[("cache-control", "No-Cache")], FromOrigin);
    case("of requests", &[fill(MAX_AGE), asks]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_1_max_age() {
    let later = |ask, expect| Step {
        pause: 5,
        ..asking(ask, expect)
    };
    for (text, expect) in [("max-age=5", Cached), ("max-age=4", FromOrigin)] {
        case(text, &[fill(MAX_AGE), later(control(text), expect)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_2_max_stale() {
    let later = |text, expect| Step {
        pause: 5,
        ..asking(control(text), expect)
    };
    for (text, expect) in [
        ("max-stale", Cached),
        ("max-stale=3", Cached),
        ("max-stale=2", FromOrigin),
    ] {
        case(text, &[fill(BRIEF), later(text, expect)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_3_min_fresh() {
    let later = |text, expect| Step {
        pause: 5,
        ..asking(control(text), expect)
    };
    for (text, expect) in [("min-fresh=5", Cached), ("min-fresh=6", FromOrigin)] {
        case(text, &[fill(control("max-age=10")), later(text, expect)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_4_no_cache() {
    let asks = |expect| asking(&[("cache-control", "no-cache")], expect);
    case("no validator", &[fill(MAX_AGE), asks(FromOrigin)]).await;
    case("a validator", &[fill(TAGGED), asks(Validated)]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_5_no_store() {
    let first = Step {
        say: MAX_AGE,
        ..asking(&[("cache-control", "no-store")], FromOrigin)
    };
    case("not stored", &[first, then(0, FromOrigin)]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_6_no_transform() {
    let first = Step {
        ask: &[
            ("cache-control", "no-transform"),
            ("accept-encoding", "gzip"),
        ],
        header: Some(("content-encoding", "")),
        body: Some("body-0"),
        ..fill(MAX_AGE)
    };
    let hit = Step {
        expect: Cached,
        ..first
    };
    case("as it came", &[first, hit]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_7_only_if_cached() {
    let only = |answer| Step {
        answer,
        ..asking(&[("cache-control", "only-if-cached")], Cached)
    };
    case("something", &[fill(MAX_AGE), only(200)]).await;
    case("nothing", &[only(504)]).await;
    let stale = Step {
        pause: 5,
        ..only(504)
    };
    case("stale", &[fill(BRIEF), stale]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_1_max_age() {
    let steps = [
        fill(control("max-age=10")),
        then(9, Cached),
        then(1, FromOrigin),
    ];
    case("ten seconds", &steps).await;
}

/// A site whose origin can be gone altogether. What comes of a request, five seconds after a first
/// one, when it is.
async fn without_an_origin(text: &str, ask: Fields) -> Result<u16, String> {
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&is_gone);
    let say = control(text);
    let origin = service_fn(move |_: Request<Full<Bytes>>| {
        let answer = match gone.load(Relaxed) {
            true => Err("gone".to_owned()),
            false => Ok(response(200, say, "body")),
        };
        async move { answer }
    });
    let site = layer(&HttpCache::new(1 << 20)).layer(origin);
    for is_last in [false, true] {
        is_gone.store(is_last, Relaxed);
        let answer = site.clone().oneshot(request(Method::GET, "/", ask)).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        if is_last {
            return Ok(status);
        }
        pause(5).await;
    }
    unreachable!("the last one returns")
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_2_must_revalidate() {
    const ACCEPTS: Fields = &[("cache-control", "max-stale, stale-if-error=60")];
    for (text, expected) in [
        ("max-age=2", true),
        ("max-age=2, must-revalidate", false),
        ("max-age=2, must-revalidate, stale-if-error=60", false),
    ] {
        let found = without_an_origin(text, ACCEPTS).await;
        assert_eq!(found.is_ok(), expected, "{text}");
    }
    assert_eq!(
        without_an_origin("max-age=60, must-revalidate", &[]).await,
        Ok(200)
    );
    let steps = [
        fill(control(
            "max-age=2, must-revalidate, stale-while-revalidate=60",
        )),
        then(1, Cached),
        then(2, FromOrigin),
    ];
    case("stale", &steps).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_3_must_understand() {
    let say = control("must-understand, no-store, max-age=60");
    twice(say, Cached).await;
    for text in ["must-understand, max-age=60", "must-understand, no-store"] {
        let first = of_status(299, fill(control(text)));
        let last = of_status(299, then(1, FromOrigin));
        case("an unknown status", &[first, last]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_4_no_cache() {
    twice(control("no-cache, max-age=60"), FromOrigin).await;
    let tagged: Fields = &[("cache-control", "no-cache, max-age=60"), ("etag", "\"a\"")];
    twice(tagged, Validated).await;
    // The fields that it names are not used again; the rest is.
    let named: Fields = &[
        ("cache-control", "max-age=60, no-cache=\"x-a, X-B\""),
        ("x-a", "1"),
        ("x-b", "1"),
        ("x-c", "1"),
    ];
    for header in [("x-a", ""), ("x-b", ""), ("x-c", "1")] {
        let hit = Step {
            header: Some(header),
            ..then(0, Cached)
        };
        case(header.0, &[fill(named), hit]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_5_no_store() {
    twice(control("no-store"), FromOrigin).await;
    let tagged: Fields = &[("cache-control", "no-store, max-age=60"), ("etag", "\"a\"")];
    twice(tagged, FromOrigin).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_6_no_transform() {
    let first = Step {
        ask: &[("accept-encoding", "gzip")],
        header: Some(("content-encoding", "")),
        body: Some("body-0"),
        ..fill(control("max-age=60, no-transform"))
    };
    let hit = Step {
        expect: Cached,
        ..first
    };
    case("as it came", &[first, hit]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_7_private() {
    twice(control("private, max-age=60"), FromOrigin).await;
    // Whatever is no list of names is about everything.
    twice(control("private=\"\", max-age=60"), FromOrigin).await;
    let named: Fields = &[
        ("cache-control", "max-age=60, private=\"X-User\""),
        ("x-user", "me"),
        ("x-all", "us"),
    ];
    let first = Step {
        header: Some(("x-user", "me")),
        ..fill(named)
    };
    for header in [("x-user", ""), ("x-all", "us")] {
        let hit = Step {
            header: Some(header),
            ..then(0, Cached)
        };
        case(header.0, &[first, hit]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_8_proxy_revalidate() {
    let accepts = Step {
        pause: 5,
        ..asking(&[("cache-control", "max-stale")], FromOrigin)
    };
    let first = fill(control("max-age=2, proxy-revalidate"));
    case("stale", &[first, then(1, Cached), accepts]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_9_public() {
    let first = Step {
        ask: &[("authorization", "Basic x")],
        ..fill(control("public, max-age=60"))
    };
    case("shared", &[first, then(0, Cached)]).await;
    // It does not take back what another directive says.
    twice(control("public, private, max-age=60"), FromOrigin).await;
    twice(control("public, no-store, max-age=60"), FromOrigin).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_10_s_maxage() {
    let accepts = Step {
        pause: 5,
        ..asking(&[("cache-control", "max-stale")], FromOrigin)
    };
    let first = fill(control("s-maxage=2, max-age=3600"));
    case("stale", &[first, then(1, Cached), accepts]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_3_unknown_directives_are_ignored() {
    for text in [
        "max-age=60, community=\"UCI\"",
        "max-age=60, immutable, x=y, \"quoted\"",
        "foo=\"max-age=0, no-store\", max-age=60",
    ] {
        twice(control(text), Cached).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_3_what_is_no_date_is_in_the_past() {
    for text in ["0", "-1", "now", "Thu, 99 Jan 2050 00:00:00 GMT", ""] {
        twice(one("expires", text), FromOrigin).await;
    }
    twice(one("expires", "Sat, 01 Jan 2050 00:00:00 GMT"), Cached).await;
    let beside: Fields = &[("cache-control", "max-age=60"), ("expires", "0")];
    twice(beside, Cached).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_4_pragma_counts_in_requests_alone() {
    let say: Fields = &[("cache-control", "max-age=60"), ("pragma", "no-cache")];
    twice(say, Cached).await;
    let asks = asking(&[("pragma", "no-cache")], FromOrigin);
    case("alone", &[fill(MAX_AGE), asks]).await;
    let beside = asking(
        &[("pragma", "no-cache"), ("cache-control", "max-age=60")],
        Cached,
    );
    case("beside", &[fill(MAX_AGE), beside]).await;
}

// --- RFC 9110

#[tokio::test(start_paused = true)]
async fn rfc9110_6_6_1_what_is_cached_has_a_date() {
    let hit = Step {
        header: Some(("date", "Thu, 01 Jan 2026 00:00:00 GMT")),
        ..then(5, Cached)
    };
    case("of its receipt", &[fill(MAX_AGE), hit]).await;
    let own: Fields = &[
        ("cache-control", "max-age=60"),
        ("date", "Wed, 31 Dec 2025 23:59:59 GMT"),
    ];
    let hit = Step {
        header: Some(("date", "Wed, 31 Dec 2025 23:59:59 GMT")),
        ..hit
    };
    case("its own", &[fill(own), hit]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9110_7_8_an_upgrade_is_passed_on() {
    let upgrade = asking(
        &[("connection", "upgrade"), ("upgrade", "websocket")],
        FromOrigin,
    );
    case("an upgrade", &[fill(MAX_AGE), upgrade]).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9110_9_3_2_a_head_has_no_content() {
    let origin = Origin::new(|_, _| async { response(200, MAX_AGE, "body") });
    let (_, site) = site(&origin);
    get(&site, "/", &[]).await;
    let body = get(&site, "/", &[]).await;
    let head = read(&site, request(Method::HEAD, "/", &[])).await;
    assert_eq!(head.text(), "");
    assert_eq!(head.headers, body.headers);
    assert_eq!(head.header("content-length"), "4");
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_3_if_modified_since_is_ignored() {
    let cases: [Fields; 5] = [
        // Beside If-None-Match, which comes first.
        &[("if-modified-since", "@0"), ("if-none-match", "\"b\"")],
        // No date.
        &[("if-modified-since", "yesterday")],
        &[("if-modified-since", "")],
        // More than one.
        &[("if-modified-since", "@0"), ("if-modified-since", "@0")],
        &[("if-modified-since", "@0"), ("if-modified-since", "@-9000")],
    ];
    for ask in cases {
        let whole = Step {
            body: Some("body-0"),
            ..asking(ask, Cached)
        };
        case(&format!("{ask:?}"), &[fill(TAGGED), whole]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_5_if_range() {
    const WEAK: Fields = &[("cache-control", "max-age=60"), ("etag", "W/\"a\"")];
    let cases: [(Fields, Fields, u16); 8] = [
        (
            TAGGED,
            &[("range", "bytes=0-1"), ("if-range", "\"a\"")],
            206,
        ),
        (
            TAGGED,
            &[("range", "bytes=0-1"), ("if-range", "\"b\"")],
            200,
        ),
        (
            TAGGED,
            &[("range", "bytes=0-1"), ("if-range", "W/\"a\"")],
            200,
        ),
        (
            WEAK,
            &[("range", "bytes=0-1"), ("if-range", "W/\"a\"")],
            200,
        ),
        (
            TAGGED,
            &[("range", "bytes=0-1"), ("if-range", "@-5000")],
            206,
        ),
        (
            TAGGED,
            &[("range", "bytes=0-1"), ("if-range", "@-4999")],
            200,
        ),
        (TAGGED, &[("range", "bytes=0-1"), ("if-range", "x")], 200),
        // Without a range it says nothing.
        (TAGGED, &[("if-range", "\"b\"")], 200),
    ];
    for (say, ask, answer) in cases {
        let step = Step {
            answer,
            body: Some(if answer == 206 { "bo" } else { "body-0" }),
            ..asking(ask, Cached)
        };
        case(&format!("{ask:?}"), &[fill(say), step]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_2_1_conditions_of_failures_are_ignored() {
    for status in [301, 404, 410, 501] {
        let first = of_status(status, fill(TAGGED));
        for ask in [
            &[("if-none-match", "\"a\"")][..],
            &[("if-modified-since", "@0")],
            &[("range", "bytes=0-1")],
        ] {
            let step = Step {
                body: Some("body-0"),
                ..of_status(status, asking(ask, Cached))
            };
            case("no success", &[first, step]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_2_2_the_order_of_conditions() {
    let cases: [(Fields, u16); 4] = [
        (
            &[("if-none-match", "\"a\""), ("if-modified-since", "@-9000")],
            304,
        ),
        (
            &[("if-none-match", "\"b\""), ("if-modified-since", "@0")],
            200,
        ),
        (&[("if-none-match", "\"a\""), ("range", "bytes=0-1")], 304),
        (&[("if-none-match", "\"b\""), ("range", "bytes=0-1")], 206),
    ];
    for (ask, answer) in cases {
        let step = Step {
            answer,
            ..asking(ask, Cached)
        };
        case(&format!("{ask:?}"), &[fill(TAGGED), step]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_14_2_range_is_ignored() {
    for range in ["lines=0-1", "bytes=x", "bytes=3-1", "bytes", "0-1"] {
        let whole = Step {
            body: Some("body-0"),
            ..asking(one("range", range), Cached)
        };
        case(range, &[fill(MAX_AGE), whole]).await;
    }
    let head = Step {
        method: "HEAD",
        header: Some(("content-length", "6")),
        ..asking(&[("range", "bytes=0-1")], Cached)
    };
    case("by HEAD", &[fill(MAX_AGE), head]).await;
}

/// The fields that a part, and a 304, have of the whole response.
const DESCRIBED: [(&str, &str); 6] = [
    ("cache-control", "max-age=60"),
    ("content-location", "/it"),
    ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ("etag", "\"a\""),
    ("expires", "Thu, 01 Jan 2026 00:01:00 GMT"),
    ("vary", "foo"),
];

#[tokio::test(start_paused = true)]
async fn rfc9110_15_3_7_the_fields_of_a_part() {
    let origin = Origin::new(|_, _| async {
        let fields = [&DESCRIBED[..], &[("content-type", "text/plain")]].concat();
        response(200, &fields, "0123456789")
    });
    let (_, site) = site(&origin);
    get(&site, "/", &[]).await;
    let part = get(&site, "/", &[("range", "bytes=2-4")]).await;
    assert_eq!((part.status, part.text()), (206, "234"));
    for (name, value) in DESCRIBED {
        assert_eq!(part.header(name), value, "{name}");
    }
    for (name, value) in [
        ("content-range", "bytes 2-4/10"),
        ("content-length", "3"),
        ("content-type", "text/plain"),
        ("age", "0"),
    ] {
        assert_eq!(part.header(name), value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_4_5_the_fields_of_a_304() {
    let origin = Origin::new(|_, _| async {
        let fields = [
            &DESCRIBED[..],
            &[("content-type", "text/plain"), ("content-encoding", "gzip")],
        ];
        response(200, &fields.concat(), "0123456789")
    });
    let (_, site) = site(&origin);
    for _ in 0..2 {
        // Of what is fetched for it, and of what is stored.
        let same = get(&site, "/", &[("if-none-match", "\"a\"")]).await;
        assert_eq!((same.status, same.text()), (304, ""));
        for (name, value) in DESCRIBED {
            assert_eq!(same.header(name), value, "{name}");
        }
        for name in ["content-length", "content-type", "content-encoding"] {
            assert_eq!(same.header(name), "", "{name}");
        }
    }
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_5_17_beyond_the_end() {
    for range in ["bytes=6-", "bytes=100-200", "bytes=-0"] {
        let beyond = Step {
            answer: 416,
            header: Some(("content-range", "bytes */6")),
            body: Some(""),
            ..asking(one("range", range), Cached)
        };
        case(range, &[fill(MAX_AGE), beyond]).await;
    }
}

// --- RFC 9211

#[tokio::test(start_paused = true)]
async fn rfc9211_2_caches_nearer_to_the_origin_keep_their_place() {
    let origin = Origin::new(|_, _| async {
        let fields = [
            ("cache-control", "max-age=60"),
            ("cache-status", "Nearer; hit; ttl=5"),
            ("cache-status", "\"Next One\"; fwd=uri-miss"),
        ];
        response(200, &fields, "")
    });
    let (_, site) = site(&origin);
    for own in [
        "tower-gateway; fwd=uri-miss; stored; ttl=60",
        "tower-gateway; hit; detail=l1",
        "tower-gateway; hit; detail=l1",
    ] {
        let answer = get(&site, "/", &[]).await;
        let said: Vec<_> = answer.headers.get_all("cache-status").iter().collect();
        assert_eq!(
            said,
            ["Nearer; hit; ttl=5", "\"Next One\"; fwd=uri-miss", own]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_1_hit_and_2_2_fwd_exclude_each_other() {
    const VARY: Fields = &[
        ("cache-control", "max-age=10"),
        ("vary", "foo"),
        ("etag", "\"a\""),
    ];
    let origin = Origin::new(|_, head| async move {
        let is_conditional = head.headers.contains_key("if-none-match");
        response(if is_conditional { 304 } else { 200 }, VARY, "")
    });
    let (_, site) = site(&origin);
    let expected: [(u64, Method, Fields, &str); 8] = [
        (0, Method::GET, &[], "fwd=uri-miss; stored; ttl=10"),
        (0, Method::GET, &[], "hit; detail=l1"),
        (0, Method::HEAD, &[], "hit; detail=l1"),
        (
            0,
            Method::GET,
            &[("foo", "1")],
            "fwd=vary-miss; stored; ttl=10",
        ),
        (
            0,
            Method::GET,
            &[("cache-control", "no-cache")],
            "fwd=request; fwd-status=304; stored; ttl=10",
        ),
        (
            12,
            Method::GET,
            &[("cache-control", "max-stale")],
            "hit; ttl=-2; detail=l1",
        ),
        (
            0,
            Method::GET,
            &[],
            "fwd=stale; fwd-status=304; stored; ttl=10",
        ),
        (0, Method::POST, &[], "fwd=bypass"),
    ];
    for (seconds, method, fields, did) in expected {
        pause(seconds).await;
        let answer = read(&site, request(method, "/", fields)).await;
        assert_eq!(answer.did(), format!("tower-gateway; {did}"));
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_3_what_became_of_a_forwarded_request() {
    let origin = Origin::new(|_, _| async {
        pause(1).await;
        response(200, MAX_AGE, "")
    });
    let (_, site) = site(&origin);
    let answers = join_all((0..2).map(|_| get(&site, "/", &[]))).await;
    assert_eq!(
        answers[0].did(),
        "tower-gateway; fwd=uri-miss; stored; ttl=3599"
    );
    assert_eq!(
        answers[1].did(),
        "tower-gateway; fwd=uri-miss; stored; collapsed; ttl=3599"
    );
    // The status of the origin, where the client got another one.
    let fails = Origin::new(|number, _| async move {
        let control = [("cache-control", "max-age=1, stale-if-error=60")];
        response(if number == 0 { 200 } else { 503 }, &control, "")
    });
    let (_, site) = crate::support::site::site(&fails);
    get(&site, "/", &[]).await;
    pause(5).await;
    let answer = get(&site, "/", &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.did(), "tower-gateway; fwd=stale; fwd-status=503");
}

// --- RFC 9213

#[tokio::test(start_paused = true)]
async fn rfc9213_2_1_a_broken_field_is_ignored() {
    for text in [
        "",
        "max-age=60, &&&",
        "max-age=60,",
        "max-age==60",
        "max-age=60; ;",
        "MAX-AGE=60",
        "max-age=\"60\"",
        "no-store=60",
    ] {
        for (plain, expect) in [("max-age=60", Cached), ("no-store", FromOrigin)] {
            let say: Fields = Box::leak(Box::new([
                ("cdn-cache-control", text),
                ("cache-control", plain),
            ]));
            twice(say, expect).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9213_2_2_the_targeted_field_comes_first() {
    let cases: [(Fields, Expect); 8] = [
        (
            &[
                ("cdn-cache-control", "max-age=60"),
                ("cache-control", "no-store"),
            ],
            Cached,
        ),
        (
            &[
                ("cdn-cache-control", "no-store"),
                ("cache-control", "max-age=60"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "private"),
                ("cache-control", "public, max-age=60"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=1"),
                ("cache-control", "max-age=60"),
            ],
            FromOrigin,
        ),
        (
            &[("cdn-cache-control", "max-age=60"), ("expires", "0")],
            Cached,
        ),
        // Expires does not count, and nothing can be guessed.
        (
            &[("cdn-cache-control", "must-revalidate"), ("expires", "@60")],
            FromOrigin,
        ),
        // Two lines are one dictionary, of which the last of two members counts.
        (
            &[
                ("cdn-cache-control", "max-age=60, x=1"),
                ("cdn-cache-control", "max-age=1"),
            ],
            FromOrigin,
        ),
        (
            &[
                ("cdn-cache-control", "max-age=60;p=1, unknown=(a b)"),
                ("cache-control", "no-store"),
            ],
            Cached,
        ),
    ];
    for (say, expect) in cases {
        twice(say, expect).await;
    }
}

// --- RFC 5861

#[tokio::test(start_paused = true)]
async fn rfc5861_3_stale_while_revalidate() {
    let origin = Origin::new(|number, _| async move {
        pause(1).await;
        let control = [("cache-control", "max-age=3, stale-while-revalidate=10")];
        response(200, &control, format!("body-{number}"))
    });
    let (_, site) = site(&origin);
    get(&site, "/", &[]).await;
    pause(5).await;
    // Served at once, and only one request goes to the origin for all of them.
    for _ in 0..3 {
        let stale = get(&site, "/", &[]).await;
        assert_eq!(stale.text(), "body-0");
        assert!(stale.is_hit(), "{}", stale.did());
    }
    pause(2).await;
    assert_eq!(origin.requests(), 2);
    assert_eq!(get(&site, "/", &[]).await.text(), "body-1");
    // No longer than it says.
    pause(30).await;
    assert_eq!(get(&site, "/", &[]).await.text(), "body-2");
}

#[tokio::test(start_paused = true)]
async fn rfc5861_4_stale_if_error() {
    let first = fill(control("max-age=2, stale-if-error=10"));
    for status in [500, 502, 503, 504] {
        let stands_in = Step {
            status,
            body: Some("body-0"),
            ..then(5, FromOrigin)
        };
        case("an error", &[first, stands_in]).await;
        let too_late = of_status(status, then(20, FromOrigin));
        case("too late", &[first, too_late]).await;
    }
    for status in [400, 404, 429, 501] {
        let other = of_status(status, then(5, FromOrigin));
        case("no such error", &[first, other]).await;
    }
    let accepts: Fields = &[("cache-control", "stale-if-error=60")];
    assert_eq!(without_an_origin("max-age=2", accepts).await, Ok(200));
    assert_eq!(
        without_an_origin("max-age=2, stale-if-error=60", &[]).await,
        Ok(200)
    );
    assert!(without_an_origin("max-age=2", &[]).await.is_err());
}

// --- RFC 9875

/// Whether a URL is still stored after this answer to a request by this method.
async fn is_kept(groups: Fields, path: &'static str, method: &'static str, say: Fields) -> bool {
    let origin = Origin::new(move |_, head| async move {
        let fields = if head.method == Method::GET && head.uri.path() == "/in" {
            [MAX_AGE, groups].concat()
        } else {
            say.to_vec()
        };
        response(200, &fields, "")
    });
    let (_, site) = site(&origin);
    get(&site, path, &[]).await;
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    read(&site, request(method, "/change", &[])).await;
    let answer = send(&site, request(Method::GET, path, &[])).await;
    let did = answer.headers()["cache-status"].to_str().unwrap();
    did.contains("hit")
}

#[tokio::test(start_paused = true)]
async fn rfc9875_2_groups_are_strings() {
    const INVALID: &str = "cache-group-invalidation";
    let many: Vec<String> = (0..32).map(|n| format!("\"{n:032}\"")).collect();
    let many = many.join(", ");
    for (groups, invalid, kept) in [
        ("\"a\"", "\"a\"", false),
        ("\"a\";x=1, \"b\"", "\"b\";y", false),
        ("\"a b\"", "\"a b\"", false),
        ("a", "\"a\"", true),
        ("\"a\"", "a", true),
        ("\"a\"", "\"b\"", true),
        (&*many, "\"00000000000000000000000000000031\"", false),
        ("\"00000000000000000000000000000007\"", &*many, false),
    ] {
        let found = is_kept(
            one("cache-groups", groups),
            "/in",
            "POST",
            one(INVALID, invalid),
        );
        assert_eq!(found.await, kept, "{groups} | {invalid}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9875_2_1_a_group_is_of_one_origin() {
    let groups = one("cache-groups", "\"a\"");
    let change = one("cache-group-invalidation", "\"a\"");
    assert!(!is_kept(groups, "/in", "POST", change).await);
    for path in ["http://other/in", "https://h/in", "http://h:81/in"] {
        assert!(is_kept(groups, path, "POST", change).await, "{path}");
    }
    let other_case = one("cache-group-invalidation", "\"A\"");
    assert!(is_kept(groups, "/in", "POST", other_case).await);
}

#[tokio::test(start_paused = true)]
async fn rfc9875_3_only_an_unsafe_method_invalidates_groups() {
    let groups = one("cache-groups", "\"a\"");
    let change = one("cache-group-invalidation", "\"a\"");
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        assert!(is_kept(groups, "/in", method, change).await, "{method}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert!(!is_kept(groups, "/in", method, change).await, "{method}");
    }
}
