//! How old a response is, how long it is fresh, and whether it may be used (RFC 9111 section 4.2).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::control::{MaxStale, RequestControl, ResponseControl};
use crate::date;

/// The part of its age at which a response is taken to stay as it is (RFC 9111 section 4.2.2).
const HEURISTIC_PART: u32 = 10;

/// The longest that is guessed.
const HEURISTIC_MOST: Duration = Duration::from_secs(24 * 3600);

/// How long a stale response is kept that can be validated or that a client may accept.
const STALE_KEPT: Duration = Duration::from_secs(10 * 60);

/// The longest that anything is kept.
const KEPT_MOST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether a stale response may be used without asking the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validation {
    /// When somebody accepts a stale one.
    WhenStale,
    /// Always when it is stale: `must-revalidate`, `proxy-revalidate`, or `s-maxage` alone.
    WheneverStale,
    /// Also when it is fresh: `no-cache`.
    Always,
}

/// What a response says about how long it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) lifetime: Duration,
    pub(crate) validation: Validation,
    /// How long after its lifetime it is used while a new one is fetched.
    pub(crate) stale_while_revalidate: Duration,
    /// How long after its lifetime it is used when the origin fails; none when it says nothing.
    pub(crate) stale_if_error: Option<Duration>,
}

/// Where a lifetime comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifetime {
    Explicit(Duration),
    Guessed(Duration),
}

impl Freshness {
    /// Reads a response that was received at `received`. `default_lifetime` is for one that says
    /// nothing about how long, and from which nothing can be guessed.
    pub(crate) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        control: &ResponseControl,
        default_lifetime: Duration,
        received: SystemTime,
    ) -> Self {
        let lifetime = match explicit_lifetime(headers, control, received) {
            Some(lifetime) => Lifetime::Explicit(lifetime),
            None if control.public || is_heuristic(status) => {
                let guess = heuristic_lifetime(headers, received);
                Lifetime::Guessed(guess.unwrap_or(default_lifetime))
            }
            None => Lifetime::Guessed(Duration::ZERO),
        };
        let asks_for_stale = control.stale_while_revalidate.or(control.stale_if_error);
        let validation = if control.no_cache.is_everything() {
            Validation::Always
        } else if control.must_revalidate
            || control.proxy_revalidate
            // s-maxage stands for proxy-revalidate (section 5.2.2.10), but not where the same
            // field says in so many words how stale it may become.
            || control.s_maxage.is_some() && asks_for_stale.is_none()
        {
            Validation::WheneverStale
        } else {
            Validation::WhenStale
        };
        let (Lifetime::Explicit(lifetime) | Lifetime::Guessed(lifetime)) = lifetime;
        Self {
            lifetime,
            validation,
            stale_while_revalidate: control.stale_while_revalidate.unwrap_or_default(),
            stale_if_error: control.stale_if_error,
        }
    }

    /// Whether such a response could ever answer such a request without validation.
    pub(crate) fn may_serve(&self, request: &RequestControl) -> bool {
        let is_refused = request.no_cache || request.max_age == Some(Duration::ZERO);
        !is_refused && !self.lifetime.is_zero() && self.validation != Validation::Always
    }

    /// What a response of this age is good for.
    pub(crate) fn reuse(&self, request: &RequestControl, age: Duration) -> Reuse {
        let too_old = request.max_age.is_some_and(|most| age > most);
        let left = self.lifetime.saturating_sub(age);
        let too_late = request.min_fresh.is_some_and(|least| left < least);
        if request.no_cache {
            return Reuse::Refused;
        }
        if self.validation == Validation::Always {
            return Reuse::Stale;
        }
        if age < self.lifetime {
            return if too_old || too_late {
                Reuse::Refused
            } else {
                Reuse::Fresh
            };
        }
        if self.validation == Validation::WheneverStale {
            return Reuse::Stale;
        }
        if too_old || too_late {
            return Reuse::Refused;
        }
        let staleness = age - self.lifetime;
        let is_accepted = match request.max_stale {
            Some(MaxStale::Any) => true,
            Some(MaxStale::For(most)) => staleness <= most,
            None => false,
        };
        if is_accepted {
            Reuse::Accepted
        } else if staleness < self.stale_while_revalidate {
            Reuse::WhileRevalidate
        } else {
            Reuse::Stale
        }
    }

    /// Whether a response of this age may stand in when the origin fails (RFC 5861 section 4).
    pub(crate) fn stands_in(&self, request: &RequestControl, age: Duration) -> bool {
        let staleness = age.saturating_sub(self.lifetime);
        let most = self.stale_if_error.max(request.stale_if_error);
        let is_prohibited = match self.validation {
            Validation::WhenStale => false,
            Validation::WheneverStale => !staleness.is_zero() || age >= self.lifetime,
            Validation::Always => true,
        };
        !is_prohibited && most.is_some_and(|most| staleness <= most)
    }

    /// How long a response of this age is worth keeping.
    pub(crate) fn keep(&self, age: Duration, headers: &HeaderMap) -> Duration {
        let stale = self
            .stale_while_revalidate
            .max(self.stale_if_error.unwrap_or_default());
        let is_validated =
            headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED);
        let stale = match self.validation {
            _ if is_validated => stale.max(STALE_KEPT),
            // A client may accept it.
            Validation::WhenStale if !self.lifetime.is_zero() => stale.max(STALE_KEPT),
            Validation::WhenStale => stale,
            Validation::WheneverStale | Validation::Always => Duration::ZERO,
        };
        let fresh = self.lifetime.saturating_sub(age);
        // One that was too old when it came is not worth more than its validators.
        let late = age.saturating_sub(self.lifetime);
        let left = if is_validated {
            stale
        } else {
            stale.saturating_sub(late)
        };
        (fresh + left).min(KEPT_MOST)
    }

    /// The seconds for which a response of this age is still fresh; below zero when it is stale.
    pub(crate) fn ttl(&self, age: Duration) -> i64 {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        seconds(self.lifetime) - seconds(age)
    }
}

/// What a stored response is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// An answer.
    Fresh,
    /// A stale answer, which the client accepts.
    Accepted,
    /// An answer, while a new one is fetched.
    WhileRevalidate,
    /// It must be validated first.
    Stale,
    /// The client does not want it without validation.
    Refused,
}

/// The freshness that the response states; none when it states nothing.
pub(crate) fn explicit_lifetime(
    headers: &HeaderMap,
    control: &ResponseControl,
    received: SystemTime,
) -> Option<Duration> {
    if let Some(span) = control.s_maxage.or(control.max_age) {
        return Some(span);
    }
    if control.is_targeted {
        return None;
    }
    let mut lines = headers.get_all(header::EXPIRES).iter();
    let expires = lines.next()?;
    // Two of them contradict each other, and what is no date is in the past (section 5.3).
    let expires = match lines.next() {
        None => date::parse(expires, received),
        Some(_) => None,
    };
    let sent = sent(headers, received);
    let lifetime = expires.and_then(|expires| expires.duration_since(sent).ok());
    Some(lifetime.unwrap_or_default())
}

/// A tenth of the time since it was last modified, a day at most.
fn heuristic_lifetime(headers: &HeaderMap, received: SystemTime) -> Option<Duration> {
    let modified = date::parse(headers.get(header::LAST_MODIFIED)?, received)?;
    let unchanged = sent(headers, received).duration_since(modified).ok()?;
    Some((unchanged / HEURISTIC_PART).min(HEURISTIC_MOST))
}

/// When the origin sent the response; when it was received if it does not say.
fn sent(headers: &HeaderMap, received: SystemTime) -> SystemTime {
    let date = headers.get(header::DATE);
    date.and_then(|date| date::parse(date, received))
        .unwrap_or(received)
}

/// Statuses whose freshness may be guessed (RFC 9110 section 15.1); 206 is never stored here.
pub(crate) fn is_heuristic(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// The age of a response when it is received, `delay` after it was asked for (section 4.2.3).
pub(crate) fn initial_age(headers: &HeaderMap, received: SystemTime, delay: Duration) -> Duration {
    let sent = sent(headers, received);
    let apparent = received.duration_since(sent).unwrap_or_default();
    apparent.max(age_value(headers) + delay)
}

/// The first value of `Age`; zero when it is none (section 5.1).
fn age_value(headers: &HeaderMap) -> Duration {
    let first = headers.get(header::AGE).map(HeaderValue::as_bytes);
    let first = first.and_then(|value| value.split(|byte| *byte == b',').next());
    let text = first.and_then(|value| str::from_utf8(value.trim_ascii()).ok());
    let digits =
        text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = digits.map_or(0, |digits| digits.parse().unwrap_or(u32::MAX));
    Duration::from_secs(u64::from(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use proptest::prelude::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + secs(1_767_225_600)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn headers(fields: &[(&'static str, String)]) -> HeaderMap {
        let fields = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        fields.collect()
    }

    /// The date so many seconds from now.
    fn date(offset: i64) -> String {
        let distance = secs(offset.unsigned_abs());
        let time = if offset < 0 {
            now() - distance
        } else {
            now() + distance
        };
        date::format(time).to_str().unwrap().to_owned()
    }

    fn freshness_of(status: u16, headers: &HeaderMap, default: u64) -> Freshness {
        let control = ResponseControl::of(headers);
        let status = StatusCode::from_u16(status).unwrap();
        Freshness::of(status, headers, &control, secs(default), now())
    }

    fn lifetime(fields: &[(&'static str, String)]) -> u64 {
        freshness_of(200, &headers(fields), 7).lifetime.as_secs()
    }

    fn control(text: &str) -> (&'static str, String) {
        ("cache-control", text.to_owned())
    }

    #[test]
    fn explicit_fields_come_first_and_in_their_order() {
        let expires = ("expires", date(100));
        assert_eq!(
            lifetime(&[control("max-age=5, s-maxage=9"), expires.clone()]),
            9
        );
        assert_eq!(lifetime(&[control("max-age=5"), expires.clone()]), 5);
        assert_eq!(lifetime(&[control("max-age=x"), expires.clone()]), 0);
        assert_eq!(lifetime(std::slice::from_ref(&expires)), 100);
        assert_eq!(lifetime(&[expires.clone(), ("date", date(-50))]), 150);
        assert_eq!(lifetime(&[expires.clone(), ("date", date(200))]), 0);
        assert_eq!(lifetime(&[("expires", String::from("0"))]), 0);
        let targeted = ("cdn-cache-control", String::from("public"));
        assert_eq!(lifetime(&[targeted, expires]), 7);
    }

    #[test]
    fn two_expires_are_in_the_past() {
        let mut headers = headers(&[("expires", date(100))]);
        headers.append(header::EXPIRES, date(100).parse().unwrap());
        assert_eq!(freshness_of(200, &headers, 7).lifetime, Duration::ZERO);
    }

    #[test]
    fn a_tenth_of_the_age_is_guessed_for_some_statuses() {
        let modified = [("last-modified", date(-1000))];
        assert_eq!(lifetime(&modified), 100);
        assert_eq!(lifetime(&[("last-modified", date(-1_000_000_000))]), 86_400);
        assert_eq!(lifetime(&[("last-modified", date(1000))]), 7);
        assert_eq!(lifetime(&[]), 7);
        let headers = headers(&modified);
        for (status, seconds) in [
            (200, 100),
            (404, 100),
            (501, 100),
            (201, 0),
            (302, 0),
            (500, 0),
        ] {
            let freshness = freshness_of(status, &headers, 7);
            assert_eq!(freshness.lifetime, secs(seconds), "{status}");
        }
        let public = self::headers(&[modified[0].clone(), control("public")]);
        assert_eq!(freshness_of(302, &public, 7).lifetime, secs(100));
    }

    #[test]
    fn ages_add_up() {
        let age = |fields: &[_], delay| initial_age(&headers(fields), now(), secs(delay)).as_secs();
        let field = |text: &str| ("age", text.to_owned());
        assert_eq!(age(&[], 0), 0);
        assert_eq!(age(&[field("30")], 2), 32);
        assert_eq!(age(&[field("30"), ("date", date(-40))], 2), 40);
        assert_eq!(age(&[("date", date(40))], 0), 0);
        for (text, seconds) in [
            ("abc", 0),
            ("-7200", 0),
            ("7200.0", 0),
            ("7200, 0", 7200),
            ("0, 7200", 0),
            ("2147483648", 2_147_483_648),
            ("99999999999999999999", u64::from(u32::MAX)),
        ] {
            assert_eq!(age(&[field(text)], 0), seconds, "{text}");
        }
    }

    fn reuse(response: &str, request: &str, age: u64) -> Reuse {
        let headers = headers(&[control(response)]);
        let request = RequestControl::of(&self::headers(&[control(request)]));
        freshness_of(200, &headers, 0).reuse(&request, secs(age))
    }

    #[test]
    fn the_request_has_a_say() {
        for (response, request, age, expected) in [
            ("max-age=100", "", 99, Reuse::Fresh),
            ("max-age=100", "", 100, Reuse::Stale),
            ("max-age=100", "no-cache", 0, Reuse::Refused),
            ("max-age=100", "max-age=10", 10, Reuse::Fresh),
            ("max-age=100", "max-age=10", 11, Reuse::Refused),
            ("max-age=100", "max-age=0", 1, Reuse::Refused),
            ("max-age=100", "min-fresh=50", 50, Reuse::Fresh),
            ("max-age=100", "min-fresh=50", 51, Reuse::Refused),
            ("max-age=100", "max-stale", 5000, Reuse::Accepted),
            ("max-age=100", "max-stale=10", 110, Reuse::Accepted),
            ("max-age=100", "max-stale=10", 111, Reuse::Stale),
            (
                "max-age=100, must-revalidate",
                "max-stale",
                100,
                Reuse::Stale,
            ),
            (
                "max-age=100, proxy-revalidate",
                "max-stale",
                100,
                Reuse::Stale,
            ),
            ("s-maxage=100", "max-stale", 100, Reuse::Stale),
            ("no-cache, max-age=100", "max-stale", 0, Reuse::Stale),
            ("no-cache=\"x-a\", max-age=100", "", 0, Reuse::Fresh),
            (
                "max-age=1, stale-while-revalidate=9",
                "",
                9,
                Reuse::WhileRevalidate,
            ),
            ("max-age=1, stale-while-revalidate=9", "", 10, Reuse::Stale),
            (
                "s-maxage=1, stale-while-revalidate=9",
                "",
                9,
                Reuse::WhileRevalidate,
            ),
            (
                "max-age=1, stale-while-revalidate=9",
                "max-age=5",
                9,
                Reuse::Refused,
            ),
            (
                "max-age=1, must-revalidate, stale-while-revalidate=9",
                "",
                5,
                Reuse::Stale,
            ),
        ] {
            let found = reuse(response, request, age);
            assert_eq!(found, expected, "{response} | {request} | {age}");
        }
    }

    #[test]
    fn what_stands_in_when_the_origin_fails() {
        let stands_in = |response: &str, request: &str, age| {
            let headers = headers(&[control(response)]);
            let request = RequestControl::of(&self::headers(&[control(request)]));
            freshness_of(200, &headers, 0).stands_in(&request, secs(age))
        };
        assert!(stands_in("max-age=1, stale-if-error=9", "", 10));
        assert!(!stands_in("max-age=1, stale-if-error=9", "", 11));
        assert!(stands_in("max-age=1", "stale-if-error=9", 10));
        assert!(!stands_in("max-age=1", "", 1));
        assert!(stands_in("s-maxage=1, stale-if-error=9", "", 5));
        assert!(!stands_in("s-maxage=1", "stale-if-error=9", 5));
        assert!(!stands_in(
            "max-age=1, must-revalidate, stale-if-error=9",
            "",
            5
        ));
        assert!(!stands_in("no-cache, stale-if-error=9", "", 0));
    }

    #[test]
    fn what_is_of_no_more_use_is_not_kept() {
        let keep = |fields: &[_], age| {
            let headers = headers(fields);
            freshness_of(200, &headers, 0)
                .keep(secs(age), &headers)
                .as_secs()
        };
        let etag = ("etag", String::from("\"a\""));
        assert_eq!(keep(&[control("max-age=100")], 40), 60 + 600);
        assert_eq!(keep(&[control("max-age=100, must-revalidate")], 40), 60);
        assert_eq!(
            keep(&[control("max-age=100, must-revalidate"), etag.clone()], 40),
            660
        );
        assert_eq!(keep(&[control("max-age=1, stale-if-error=5000")], 1), 5000);
        assert_eq!(keep(&[control("max-age=0")], 0), 0);
        assert_eq!(keep(&[control("no-cache")], 0), 0);
        assert_eq!(keep(&[control("no-cache"), etag], 0), 600);
        assert_eq!(
            keep(&[control("max-age=2147483648")], 0),
            KEPT_MOST.as_secs()
        );
    }

    /// The arithmetic of RFC 9111 in plain seconds, without a type that saturates.
    fn model(response: &Response, request: &Request, age: i64) -> Reuse {
        let lifetime = response.s_maxage.or(response.max_age).unwrap_or(0);
        let says_how_stale = response.stale_while_revalidate.is_some();
        let never_stale =
            response.must_revalidate || response.s_maxage.is_some() && !says_how_stale;
        let is_fresh = lifetime > age;
        let pleases = request.max_age.is_none_or(|most| age <= most)
            && request
                .min_fresh
                .is_none_or(|least| (lifetime - age).max(0) >= least);
        match (is_fresh, request.no_cache) {
            (_, true) => Reuse::Refused,
            (true, _) if response.no_cache => Reuse::Stale,
            (true, _) if pleases => Reuse::Fresh,
            (true, _) => Reuse::Refused,
            (false, _) if response.no_cache || never_stale => Reuse::Stale,
            (false, _) if !pleases => Reuse::Refused,
            (false, _) if request.max_stale.is_some_and(|most| age - lifetime <= most) => {
                Reuse::Accepted
            }
            (false, _)
                if response
                    .stale_while_revalidate
                    .is_some_and(|w| age - lifetime < w) =>
            {
                Reuse::WhileRevalidate
            }
            (false, _) => Reuse::Stale,
        }
    }

    #[derive(Clone, Debug)]
    struct Response {
        max_age: Option<i64>,
        s_maxage: Option<i64>,
        stale_while_revalidate: Option<i64>,
        must_revalidate: bool,
        no_cache: bool,
    }

    #[derive(Clone, Debug)]
    struct Request {
        max_age: Option<i64>,
        min_fresh: Option<i64>,
        max_stale: Option<i64>,
        no_cache: bool,
    }

    fn written(spans: &[(&str, Option<i64>)], flags: &[(&str, bool)]) -> String {
        let spans = spans
            .iter()
            .filter_map(|(name, span)| Some(format!("{name}={}", (*span)?)));
        let flags = flags
            .iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| (*name).to_owned());
        spans.chain(flags).collect::<Vec<_>>().join(", ")
    }

    fn span() -> impl Strategy<Value = Option<i64>> {
        proptest::option::of(0..20_i64)
    }

    proptest! {
        #[test]
        fn reuse_is_that_of_the_model(
            response in (span(), span(), span(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)),
            request in (span(), span(), span(), proptest::bool::weighted(0.2)),
            age in 0..40_i64,
        ) {
            let (max_age, s_maxage, stale_while_revalidate, must_revalidate, no_cache) = response;
            let response =
                Response { max_age, s_maxage, stale_while_revalidate, must_revalidate, no_cache };
            let (max_age, min_fresh, max_stale, no_cache) = request;
            let request = Request { max_age, min_fresh, max_stale, no_cache };
            let response_text = written(
                &[
                    ("max-age", response.max_age),
                    ("s-maxage", response.s_maxage),
                    ("stale-while-revalidate", response.stale_while_revalidate),
                ],
                &[("must-revalidate", response.must_revalidate), ("no-cache", response.no_cache)],
            );
            let request_text = written(
                &[
                    ("max-age", request.max_age),
                    ("min-fresh", request.min_fresh),
                    ("max-stale", request.max_stale),
                ],
                &[("no-cache", request.no_cache)],
            );
            let found = reuse(&response_text, &request_text, age.unsigned_abs());
            prop_assert_eq!(found, model(&response, &request, age));
        }

        #[test]
        fn what_may_be_used_is_still_kept(
            max_age in 0..50_u64, swr in 0..50_u64, sie in 0..50_u64, initial in 0..60_u64, later in 0..100_u64,
        ) {
            let text = format!("max-age={max_age}, stale-while-revalidate={swr}, stale-if-error={sie}");
            let headers = headers(&[control(&text)]);
            let freshness = freshness_of(200, &headers, 0);
            let age = secs(initial + later);
            let nothing = RequestControl::default();
            let is_of_use = freshness.reuse(&nothing, age) != Reuse::Stale
                || freshness.stands_in(&nothing, age);
            if is_of_use {
                prop_assert!(freshness.keep(secs(initial), &headers) >= secs(later));
            }
        }
    }
}
