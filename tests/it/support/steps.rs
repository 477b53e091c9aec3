//! Exchanges with a cache, step by step: what a client asks, what the origin would say, and who
//! answers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Response};
use parking_lot::Mutex;

use super::{
    BoxBody,
    site::{Origin, now, pause, read, request, response, site},
};

/// What a request shows of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The origin answers it.
    Origin,
    /// The cache does, by itself.
    Cached,
    /// The cache does once the origin has confirmed its response.
    Validated,
}
pub(crate) use Expect::{Cached, Origin as FromOrigin, Validated};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) pause: u64,
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) ask: &'static [(&'static str, &'static str)],
    /// What the origin says if it is asked.
    pub(crate) status: u16,
    pub(crate) say: &'static [(&'static str, &'static str)],
    pub(crate) expect: Expect,
    /// What the client gets.
    pub(crate) answer: u16,
    pub(crate) header: Option<(&'static str, &'static str)>,
    /// What the origin sees, if it is asked; nothing: that the field is not there.
    pub(crate) sees: &'static [(&'static str, &'static str)],
    pub(crate) body: Option<&'static str>,
}

pub(crate) const STEP: Step = Step {
    pause: 0,
    method: "GET",
    path: "/",
    ask: &[],
    status: 200,
    say: &[],
    expect: FromOrigin,
    answer: 200,
    header: None,
    sees: &[],
    body: None,
};

/// The origin answers with these fields.
pub(crate) const fn fill(say: &'static [(&'static str, &'static str)]) -> Step {
    Step { say, ..STEP }
}

/// A plain request later.
pub(crate) const fn then(pause: u64, expect: Expect) -> Step {
    Step {
        pause,
        expect,
        ..STEP
    }
}

/// A request with these fields, at once.
pub(crate) const fn asking(ask: &'static [(&'static str, &'static str)], expect: Expect) -> Step {
    Step {
        ask,
        expect,
        ..STEP
    }
}

pub(crate) const MAX_AGE: &[(&str, &str)] = &[("cache-control", "max-age=3600")];
pub(crate) const BRIEF: &[(&str, &str)] = &[("cache-control", "max-age=2"), ("etag", "\"a\"")];

/// `@-5` is the date of five seconds ago.
fn value(text: &str, now: SystemTime) -> String {
    let Some(offset) = text.strip_prefix('@') else {
        return text.to_owned();
    };
    let offset: i64 = offset.parse().unwrap();
    let distance = Duration::from_secs(offset.unsigned_abs());
    let time = if offset < 0 {
        now - distance
    } else {
        now + distance
    };
    httpdate(time)
}

fn httpdate(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    // The tests begin on Thursday, 1 January 2026, and name no date farther than a month from it.
    let day = (seconds / 86_400) as i64 - 20_454;
    let names = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let weekday = names[day.rem_euclid(7) as usize];
    let (month, year, day) = if day < 0 {
        ("Dec", 2025, 32 + day)
    } else {
        ("Jan", 2026, day + 1)
    };
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

pub(crate) async fn case(name: &str, steps: &[Step]) {
    let start = now();
    let wall =
        move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + start.elapsed();
    let script: Arc<Mutex<Option<Step>>> = Arc::default();
    let told = Arc::clone(&script);
    let origin = Origin::new(move |number, head| {
        let step = told.lock().expect("a step");
        let fields: Vec<(&str, String)> = step
            .say
            .iter()
            .map(|(name, text)| (*name, value(text, wall())))
            .collect();
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, text)| (*name, &**text)).collect();
        let confirms = head.headers.contains_key("if-none-match")
            || head.headers.contains_key("if-modified-since");
        let answer: Response<BoxBody> = if step.expect == Validated && confirms {
            response(304, &fields, Bytes::new())
        } else {
            response(step.status, &fields, format!("body-{number}"))
        };
        async move { answer }
    });
    let (_, site) = site(&origin);
    for (number, step) in steps.iter().enumerate() {
        pause(step.pause).await;
        *script.lock() = Some(*step);
        let before = origin.requests();
        let method = Method::from_bytes(step.method.as_bytes()).unwrap();
        let ask: Vec<(&str, String)> = step
            .ask
            .iter()
            .map(|(name, text)| (*name, value(text, wall())))
            .collect();
        let ask: Vec<(&str, &str)> = ask.iter().map(|(name, text)| (*name, &**text)).collect();
        let read = read(&site, request(method, step.path, &ask)).await;
        let asked = origin.requests() - before;
        for (field, expected) in step.sees {
            let seen = origin.seen.lock();
            let seen = seen.last().and_then(|head| head.headers.get(*field));
            let seen = seen.map_or("", |value| value.to_str().unwrap());
            let expected = value(expected, wall());
            assert_eq!(seen, expected, "{name}, step {number}: the origin, {field}");
        }
        let seen = match (asked, read.did().contains("fwd-status=304")) {
            (0, false) => Cached,
            (1, true) => Validated,
            (1, false) => FromOrigin,
            other => panic!("{name}, step {number}: {other:?}"),
        };
        assert_eq!(seen, step.expect, "{name}, step {number}: {}", read.did());
        assert_eq!(read.status, step.answer, "{name}, step {number}");
        if let Some((field, expected)) = step.header {
            assert_eq!(
                read.header(field),
                expected,
                "{name}, step {number}: {field}"
            );
        }
        if let Some(body) = step.body {
            assert_eq!(read.text(), body, "{name}, step {number}");
        }
    }
}
