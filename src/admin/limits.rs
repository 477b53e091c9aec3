//! `/limits/NAME/KEY`: how a key stands, and a fresh start for it.

use axum::{
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{Admin, router::json_response};
use crate::limit::{Level, Limiter, store::StoreError};

/// Shows how a key stands, or with `DELETE` forgets what was taken from it.
pub(super) async fn limit(State(admin): State<Admin>, method: Method, uri: Uri) -> Response {
    let Some((name, key)) = named(uri.path()) else {
        return (StatusCode::NOT_FOUND, "expected /limits/NAME/KEY\n").into_response();
    };
    let limiters = admin.shared.limiters.load_full();
    let has_name = |limiter: &&Limiter| limiter.limits().iter().any(|limit| **limit.name() == name);
    let Some(limiter) = limiters.iter().find(has_name) else {
        return (StatusCode::NOT_FOUND, "no limit has this name\n").into_response();
    };
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    if method == Method::DELETE {
        return match limiter.reset(&name, &key) {
            Some(reset) => reset
                .await
                .map_or_else(unavailable, |()| StatusCode::NO_CONTENT.into_response()),
            None => no_such_key(),
        };
    }
    match limiter.peek(&name, &key) {
        Some(level) => level.await.map_or_else(unavailable, shown),
        None => no_such_key(),
    }
}

fn shown(level: Level) -> Response {
    json_response(&json!({
        "remaining": level.remaining,
        "limit": level.limit,
        "reset_ms": level.reset.as_nanos().div_ceil(1_000_000) as u64,
    }))
}

fn no_such_key() -> Response {
    let text = "the limit has no such key; it wants a value for each part of its key, and * \
                where it is global\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what results are mapped by"
)]
fn unavailable(error: StoreError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

/// The name and the values of the key, which have a segment each; `None` where it is no such path.
fn named(path: &str) -> Option<(String, Vec<String>)> {
    let rest = path.strip_prefix("/limits/")?;
    let mut segments = rest.split('/').map(decoded);
    let name = segments.next()??;
    let key: Option<Vec<_>> = segments.collect();
    Some((name, key.filter(|key| !key.is_empty())?))
}

/// The text that is percent-encoded (RFC 3986 section 2.1); `None` where it is none.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.bytes();
    while let Some(byte) = left.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(left.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn keys_are_percent_encoded_segments() {
        let key = |path| named(path).map(|(_, key)| key);
        let one = |key: &str| Some(vec![key.to_owned()]);
        assert_eq!(key("/limits/a/10.0.0.1"), one("10.0.0.1"));
        assert_eq!(key("/limits/a/2001%3adb8%3A%3A1"), one("2001:db8::1"));
        assert_eq!(key("/limits/a/%2Fusers%2F7"), one("/users/7"));
        assert_eq!(key("/limits/a/*"), one("*"));
        assert_eq!(key("/limits/a/"), one(""));
        assert_eq!(
            key("/limits/a/b/c%20d"),
            Some(vec!["b".into(), "c d".into()])
        );
        for wrong in [
            "/limits/a",
            "/limits/a/%",
            "/limits/a/%4",
            "/limits/a/%zz",
            "/limits/a/%ff",
        ] {
            assert_eq!(key(wrong), None, "{wrong}");
        }
        assert_eq!(named("/limits/per%2Dclient/x").unwrap().0, "per-client");
    }
}
