//! What goes over the wire: the JSON mapping of etcd's protocol buffers. PURE.
//!
//! Bytes are base64, 64-bit numbers are texts, and what is zero or empty is left out.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::error::BoxError;

/// gRPC's `OUT_OF_RANGE`, by which etcd says that a revision was compacted, or is yet to come.
const OUT_OF_RANGE: u64 = 11;

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No server was reached, or none answered in time. Whether it did what it was asked is not
    /// known.
    #[error("etcd cannot be reached")]
    Unreachable(#[source] BoxError),
    /// A server refused.
    #[error("etcd refused with status {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The words of the server.
        message: String,
    },
    /// The revision that was asked for is gone.
    #[error("the revision was compacted")]
    Compacted,
    /// The answer is not what etcd's documentation says.
    #[error("etcd's answer cannot be read: expected {0}")]
    Malformed(&'static str),
}

/// The same error for somebody else.
pub(super) fn again(error: &EtcdError) -> EtcdError {
    match error {
        EtcdError::Unreachable(source) => EtcdError::Unreachable(source.to_string().into()),
        EtcdError::Refused { status, message } => EtcdError::Refused {
            status: *status,
            message: message.clone(),
        },
        EtcdError::Compacted => EtcdError::Compacted,
        EtcdError::Malformed(expected) => EtcdError::Malformed(expected),
    }
}

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// The revision of the last change of the key; 0 when it was never there.
    pub(crate) mod_revision: i64,
    /// The lease that it hangs on; 0 when there is none.
    pub(crate) lease: i64,
}

/// The keys of a range, all of one revision of the whole store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) cluster: u64,
    pub(crate) revision: i64,
    pub(crate) pairs: Vec<KeyValue>,
}

/// A key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The key as it is now; without a value when it was deleted.
    pub(crate) pair: KeyValue,
    pub(crate) is_deleted: bool,
    /// What it was before, when etcd still has that.
    pub(crate) previous: Option<KeyValue>,
}

/// What must hold for a transaction to be done.
#[derive(Clone, Debug)]
pub(crate) enum Compare {
    /// The last change of the key was this revision; 0: there is no such key.
    ModRevision(Vec<u8>, i64),
}

/// A step of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
        /// 0: for ever.
        lease: i64,
    },
    Delete(Vec<u8>),
}

/// The key after every key with this prefix; `\0` when there is none.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|byte| *byte < 0xFF);
    last.map_or_else(
        || vec![0],
        |last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        },
    )
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Asks for every key with a prefix; an empty prefix is every key.
pub(super) fn prefix(prefix: &[u8]) -> Value {
    let begin = if prefix.is_empty() { b"\0" } else { prefix };
    json!({ "key": base64(begin), "range_end": base64(&end_of(prefix)) })
}

pub(super) fn key(key: &[u8]) -> Value {
    json!({ "key": base64(key) })
}

pub(super) fn watch(prefix: &[u8], from: i64) -> Value {
    let mut create = self::prefix(prefix);
    create["start_revision"] = json!(from.to_string());
    create["prev_kv"] = json!(true);
    json!({ "create_request": create })
}

pub(super) fn transaction(compare: &[Compare], then: &[Operation]) -> Value {
    let compare: Vec<_> = compare
        .iter()
        .map(|Compare::ModRevision(key, revision)| {
            json!({ "target": "MOD", "key": base64(key), "mod_revision": revision.to_string() })
        })
        .collect();
    let then: Vec<_> = then
        .iter()
        .map(|operation| match operation {
            Operation::Put { key, value, lease } => {
                json!({ "request_put": put(key, value, *lease) })
            }
            Operation::Delete(key) => json!({ "request_delete_range": self::key(key) }),
        })
        .collect();
    json!({ "compare": compare, "success": then })
}

pub(super) fn put(key: &[u8], value: &[u8], lease: i64) -> Value {
    json!({ "key": base64(key), "value": base64(value), "lease": lease.to_string() })
}

/// A 64-bit number, as text or as a number; what is left out is 0.
pub(super) fn number(object: &Value, name: &str) -> Result<i64, EtcdError> {
    let found = match &object[name] {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    };
    found.ok_or(EtcdError::Malformed("a 64-bit number"))
}

pub(super) fn cluster(answer: &Value) -> Result<u64, EtcdError> {
    let id = &answer["header"]["cluster_id"];
    let id = id.as_str().and_then(|id| id.parse().ok());
    id.ok_or(EtcdError::Malformed("a cluster_id in the header"))
}

pub(super) fn revision(answer: &Value) -> Result<i64, EtcdError> {
    number(&answer["header"], "revision")
}

pub(super) fn range(answer: &Value) -> Result<Range, EtcdError> {
    let pairs = list(&answer["kvs"])?.iter().map(pair);
    Ok(Range {
        cluster: cluster(answer)?,
        revision: revision(answer)?,
        pairs: pairs.collect::<Result<_, _>>()?,
    })
}

pub(super) fn changes(result: &Value) -> Result<Vec<Change>, EtcdError> {
    let change = |event: &Value| {
        let previous = &event["prev_kv"];
        Ok(Change {
            pair: pair(&event["kv"])?,
            is_deleted: event["type"] == "DELETE",
            previous: (!previous.is_null()).then(|| pair(previous)).transpose()?,
        })
    };
    list(&result["events"])?.iter().map(change).collect()
}

fn list(value: &Value) -> Result<&[Value], EtcdError> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(EtcdError::Malformed("a list")),
    }
}

fn pair(value: &Value) -> Result<KeyValue, EtcdError> {
    let bytes = |name: &str| match &value[name] {
        Value::Null => Ok(Vec::new()),
        field => field
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .ok_or(EtcdError::Malformed("bytes in base64")),
    };
    Ok(KeyValue {
        key: bytes("key")?,
        value: bytes("value")?,
        mod_revision: number(value, "mod_revision")?,
        lease: number(value, "lease")?,
    })
}

/// Whether who asks is not known any more: a new token may help.
pub(super) fn is_unauthenticated(error: &EtcdError) -> bool {
    matches!(error, EtcdError::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED)
}

/// The status of a refusal in these words, where it matters and the gateway does not say it.
fn status_of(words: &str) -> Option<StatusCode> {
    let is = |part| words.contains(part);
    if is("permission denied") {
        Some(StatusCode::FORBIDDEN)
    } else if is("invalid auth token") || is("revision of auth store is old") {
        Some(StatusCode::UNAUTHORIZED)
    } else {
        None
    }
}

/// The error that the end of a watch is.
pub(super) fn canceled(reason: &str) -> EtcdError {
    let message = reason.to_owned();
    match status_of(reason) {
        Some(status) => EtcdError::Refused { status, message },
        None => EtcdError::Unreachable(message.into()),
    }
}

/// The error that an answer with such a status is.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> EtcdError {
    let answer: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let message = text("message").or_else(|| text("error"));
    let code = answer.get("code").and_then(Value::as_u64);
    match message {
        Some(message) if code == Some(OUT_OF_RANGE) && message.contains("compacted") => {
            EtcdError::Compacted
        }
        _ => EtcdError::Refused {
            status: message.and_then(status_of).unwrap_or(status),
            message: message.map_or_else(
                || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
                str::to_owned,
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_the_last_key_with_the_prefix() {
        assert_eq!(end_of(b"/services/users/"), b"/services/users0");
        assert_eq!(end_of(b"a\xFF"), b"b");
        assert_eq!(end_of(b"\xFF\xFF"), b"\0");
        assert_eq!(end_of(b""), b"\0");
        assert_eq!(
            prefix(b"/s/").to_string(),
            r#"{"key":"L3Mv","range_end":"L3Mw"}"#
        );
    }

    #[test]
    fn answers_are_read_and_what_is_zero_is_left_out() {
        let answer = json!({
            "header": { "cluster_id": "14841639068965178418", "revision": "3" },
            "kvs": [{ "key": "L3MvYQ==", "mod_revision": "2", "value": "dg==", "lease": "7" }],
        });
        let range = range(&answer).unwrap();
        assert_eq!((range.cluster, range.revision), (14841639068965178418, 3));
        assert_eq!(range.pairs[0].key, b"/s/a");
        assert_eq!(range.pairs[0].value, b"v");
        assert_eq!((range.pairs[0].mod_revision, range.pairs[0].lease), (2, 7));

        let changes = changes(&json!({ "events": [
            { "type": "DELETE", "kv": { "key": "aw==", "mod_revision": "3" }, "prev_kv": { "key": "aw==", "value": "dg==" } },
            { "kv": { "key": "aw==" } },
        ] }))
        .unwrap();
        assert!(changes[0].is_deleted && !changes[1].is_deleted);
        assert_eq!(changes[0].previous.as_ref().unwrap().value, b"v");
        assert_eq!(
            changes[1].pair,
            KeyValue {
                key: b"k".into(),
                ..KeyValue::default()
            }
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(range(&json!({})).is_err());
        assert!(range(&json!({ "header": { "cluster_id": "1" }, "kvs": 3 })).is_err());
        let pair = json!({ "header": { "cluster_id": "1" }, "kvs": [{ "key": "!" }] });
        assert!(range(&pair).is_err());
    }

    #[test]
    fn who_is_not_known_any_more_is_told_from_who_may_not() {
        for (reason, is_known) in [
            (
                "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                false,
            ),
            (
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                true,
            ),
            ("etcdserver: no leader", true),
        ] {
            assert_eq!(is_unauthenticated(&canceled(reason)), !is_known, "{reason}");
        }
        let old = br#"{"message":"etcdserver: revision of auth store is old","code":3}"#;
        assert!(is_unauthenticated(&refusal(StatusCode::BAD_REQUEST, old)));
    }

    #[test]
    fn a_refusal_says_what_the_server_said() {
        let status = StatusCode::BAD_REQUEST;
        let compacted =
            br#"{"message":"etcdserver: mvcc: required revision has been compacted","code":11}"#;
        assert!(matches!(refusal(status, compacted), EtcdError::Compacted));
        let future =
            br#"{"message":"etcdserver: mvcc: required revision is a future revision","code":11}"#;
        assert_eq!(
            refusal(status, future).to_string(),
            "etcd refused with status 400 Bad Request: etcdserver: mvcc: required revision is a future revision"
        );
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, b"404 page not found").to_string(),
            "etcd refused with status 404 Not Found: 404 page not found"
        );
    }
}
