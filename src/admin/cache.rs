//! `POST /cache/invalidate`, and what the cache shows in `/metrics`.

use axum::{
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{Admin, page::Page, router::json_response};
use crate::cache::{Acknowledge, HttpCache, Scope};

/// Invalidates what a document names.
pub(super) async fn invalidate(State(admin): State<Admin>, body: Bytes) -> Response {
    let Some(cache) = admin.cache().await else {
        return (StatusCode::NOT_FOUND, "no route has a cache\n").into_response();
    };
    let order = match Order::read(&body, &cache) {
        Ok(order) => order,
        Err(wrong) => return (StatusCode::BAD_REQUEST, format!("{wrong}\n")).into_response(),
    };
    match cache.invalidate(&order.scopes, order.acknowledge).await {
        Ok(_) => json_response(&json!({ "acknowledged": order.word })),
        Err(error) => {
            let mut response = json_response(&json!({ "error": error.to_string() }));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// What a document asks for.
#[derive(Debug)]
struct Order {
    scopes: Vec<Scope>,
    acknowledge: Acknowledge,
    word: &'static str,
}

impl Order {
    fn read(text: &[u8], cache: &HttpCache) -> Result<Self, String> {
        let document: Value =
            serde_json::from_slice(text).map_err(|error| format!("expected JSON: {error}"))?;
        let Value::Object(members) = document else {
            return Err("expected an object with keys, tags or all".into());
        };
        let mut order = Self {
            scopes: Vec::new(),
            acknowledge: Acknowledge::Stored,
            word: "stored",
        };
        for (name, value) in &members {
            match (&**name, value) {
                ("keys", Value::Array(urls)) => {
                    for url in urls {
                        let text = url.as_str().unwrap_or_default();
                        let scopes = cache.scopes_of(text);
                        let scopes =
                            scopes.map_err(|error| format!("keys: {error}, found {url}"))?;
                        order.scopes.extend(scopes);
                    }
                }
                ("tags", Value::Array(tags)) => {
                    for tag in tags {
                        let text = tag.as_str().filter(|text| !text.is_empty());
                        let text =
                            text.ok_or_else(|| format!("tags: expected a text, found {tag}"))?;
                        order.scopes.push(Scope::tag(text));
                    }
                }
                ("all", Value::Bool(true)) => order.scopes.push(Scope::all()),
                ("all", Value::Bool(false)) => {}
                ("ack", Value::String(word)) if word == "stored" => {}
                ("ack", Value::String(word)) if word == "everywhere" => {
                    order.acknowledge = Acknowledge::Everywhere;
                    order.word = "everywhere";
                }
                ("keys" | "tags", _) => {
                    return Err(format!("{name}: expected a list, found {value}"));
                }
                ("all", _) => return Err(format!("all: expected true or false, found {value}")),
                ("ack", _) => {
                    return Err(format!("ack: expected stored or everywhere, found {value}"));
                }
                _ => {
                    return Err(format!(
                        "unknown key {name:?}; known are keys, tags, all, ack"
                    ));
                }
            }
        }
        if order.scopes.is_empty() {
            return Err("expected keys, tags or all, found nothing to invalidate".into());
        }
        Ok(order)
    }
}

pub(super) fn metrics(page: &mut Page, cache: &HttpCache) {
    let stats = cache.stats();
    let help = "Requests to routes with a cache, by what became of them.";
    page.family("cache_requests_total", "counter", help);
    for (outcome, count) in stats.outcomes() {
        page.sample(
            "cache_requests_total",
            &[("outcome", outcome.as_str())],
            count,
        );
    }
    let help = "Responses that the cache waited for, by what became of them.";
    page.family("cache_responses_total", "counter", help);
    for (kept, count) in stats.kept() {
        page.sample("cache_responses_total", &[("kept", kept.as_str())], count);
    }
    let help = "Invalidations that this node asked for.";
    page.family("cache_invalidations_total", "counter", help);
    page.sample("cache_invalidations_total", &[], stats.invalidations());
    let audited = cache.audited();
    let name = "cache_audits_total";
    let help = "Hits in memory that were looked at again.";
    page.family(name, "counter", help);
    page.sample(name, &[], audited.checked);
    let name = "cache_audit_violations_total";
    let help = "Hits in memory that were served for longer than they may be.";
    page.family(name, "counter", help);
    page.sample(name, &[], audited.violations);
    let weight = cache.weight();
    page.family(
        "cache_bytes",
        "gauge",
        "Bytes of responses in the memory of this node.",
    );
    page.sample("cache_bytes", &[], weight.bytes);
    page.family(
        "cache_entries",
        "gauge",
        "Responses in the memory of this node.",
    );
    page.sample("cache_entries", &[], weight.entries);
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<Scope>, &'static str), String> {
        let order = Order::read(text.as_bytes(), &HttpCache::new(1 << 20))?;
        Ok((order.scopes, order.word))
    }

    #[test]
    fn documents_are_read() {
        let everything =
            r#"{"keys": ["http://H:80/p"], "tags": ["t"], "all": true, "ack": "everywhere"}"#;
        let (mut scopes, word) = read(everything).unwrap();
        scopes.sort();
        let mut expected = [Scope::key("http://h/p"), Scope::tag("t"), Scope::all()];
        expected.sort();
        assert_eq!((scopes.as_slice(), word), (&expected[..], "everywhere"));
        let (scopes, word) = read(r#"{"tags": ["t"], "all": false}"#).unwrap();
        assert_eq!((scopes, word), (vec![Scope::tag("t")], "stored"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "",
                "expected JSON: EOF while parsing a value at line 1 column 0",
            ),
            ("[]", "expected an object with keys, tags or all"),
            (
                "{}",
                "expected keys, tags or all, found nothing to invalidate",
            ),
            (
                r#"{"all": false}"#,
                "expected keys, tags or all, found nothing to invalidate",
            ),
            (
                r#"{"keys": ["/p"]}"#,
                "keys: expected an absolute http or https URL, found \"/p\"",
            ),
            (r#"{"keys": "x"}"#, "keys: expected a list, found \"x\""),
            (r#"{"tags": [5]}"#, "tags: expected a text, found 5"),
            (r#"{"all": 1}"#, "all: expected true or false, found 1"),
            (
                r#"{"ack": "now", "all": true}"#,
                "ack: expected stored or everywhere, found \"now\"",
            ),
            (
                r#"{"key": []}"#,
                "unknown key \"key\"; known are keys, tags, all, ack",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), expected, "{text}");
        }
    }
}
