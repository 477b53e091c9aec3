//! What a request wants of the cache.

use std::{
    cell::RefCell,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header, uri::PathAndQuery};

use super::{
    Hit, Key, Verdict,
    answer::Conditions,
    http::{
        control::RequestControl,
        freshness::Reuse,
        key::{self, QueryRules},
        request::{self, Found},
        vary,
    },
    layer::Options,
    resource::{Kind, Resource, Stored},
};

thread_local! {
    /// Where keys are written, so that each takes one allocation.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A request that a stored response may answer.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) control: RequestControl,
    /// The primary key, and what else decides about the answer whatever it varies by.
    pub(super) key: Key,
    /// The path and query that the origin gets in place of those of the request.
    changed: Option<PathAndQuery>,
    /// Whether an answer may depend on conditions of the request.
    pub(super) is_conditional: bool,
}

impl Wanted {
    /// None when the request names no resource that could have a key.
    pub(super) fn of<B>(request: &Request<B>, options: &Options, found: Found<'_>) -> Option<Self> {
        let uri = request.uri();
        let told = found.scheme(request.headers()).or_else(|| uri.scheme_str());
        let scheme = told.unwrap_or(options.scheme.as_str());
        let authority = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => found.host?.to_str().ok()?,
        };
        let path_and_query = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let changed = changed(path_and_query, &options.query);
        let sent = changed
            .as_ref()
            .map_or(path_and_query, PathAndQuery::as_str);
        let write = |text: &mut String| {
            key::append_primary(text, scheme, authority, sent)?;
            let primary = text.len();
            text.push_str(&options.chosen_by);
            if found.says_more(scheme, authority) {
                request::append_unkeyed(text, request.headers(), scheme, authority);
            }
            Some(primary)
        };
        let key = TEXT.with_borrow_mut(|text| Key::begin(text, write))?;
        let control = if found.directives {
            RequestControl::of(request.headers())
        } else {
            RequestControl::default()
        };
        Some(Self {
            control,
            key,
            changed,
            is_conditional: found.conditions,
        })
    }

    /// Where the response is that was chosen by these fields.
    pub(super) fn variant(&self, fields: &[HeaderName], request: &HeaderMap) -> Key {
        if fields.is_empty() {
            return self.key.clone();
        }
        let write = |text: &mut String| {
            text.push_str(self.key.primary());
            let primary = text.len();
            text.push_str(self.key.variant_name());
            vary::append_selecting(text, fields, request);
            Some(primary)
        };
        let key = TEXT.with_borrow_mut(|text| Key::begin(text, write));
        key.expect("the primary key has an end")
    }

    /// What is found of a resource.
    pub(super) fn judge(&self, hit: &Hit<Resource>, now: Instant) -> Verdict {
        match &hit.value().0 {
            Kind::Variants(_) => Verdict::Fresh,
            Kind::Response(stored) => match self.reuse(stored, hit.age_at(now)) {
                Reuse::Fresh | Reuse::Accepted => Verdict::Fresh,
                Reuse::WhileRevalidate => Verdict::Refresh,
                Reuse::Stale | Reuse::Refused if stored.freshness().may_serve(&self.control) => {
                    Verdict::Stale
                }
                Reuse::Stale | Reuse::Refused => Verdict::NeverFresh,
            },
        }
    }

    pub(super) fn reuse(&self, stored: &Stored, age: Duration) -> Reuse {
        stored.freshness().reuse(&self.control, age)
    }

    /// Makes the request name what the key names.
    pub(super) fn change<B>(&self, request: &mut Request<B>) {
        if let Some(changed) = &self.changed {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.path_and_query = Some(changed.clone());
            *request.uri_mut() = parts
                .try_into()
                .expect("a URI with another path and query is as whole as before");
        }
    }
}

fn changed(path_and_query: &str, rules: &QueryRules) -> Option<PathAndQuery> {
    rules.apply(path_and_query)?.parse().ok()
}

/// The head of a request, kept while the request itself is with the origin.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
}

impl Head {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            headers: request.headers().clone(),
        }
    }

    pub(super) fn conditions(&self, now: SystemTime) -> Conditions<'_> {
        Conditions {
            request: &self.headers,
            now,
        }
    }
}

/// The length that a message states of its body.
pub(super) fn content_length(headers: &HeaderMap) -> Option<usize> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .map(HeaderValue::to_str)?;
    length.ok()?.parse().ok()
}
