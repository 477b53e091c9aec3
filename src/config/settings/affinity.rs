//! How a cluster with affinity chooses among its endpoints.

use std::num::NonZeroU32;

use http::HeaderName;

use crate::{
    balance::HashKey,
    pick::{LoadFactor, Maglev},
    yaml::{Data, Fields, Mistakes, Value, boolean, decimal, number},
};

/// How a cluster sends requests with the same key to the same endpoint.
///
/// # Defaults
///
/// - `hash_key`: the address of the client
/// - `bounded_load`: none
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AffinitySettings {
    /// Which of its endpoints that is.
    pub policy: AffinityPolicy,
    /// What of a request is its key.
    pub hash_key: HashKey,
    /// How much more than its share an endpoint may have in flight.
    pub bounded_load: Option<LoadFactor>,
}

/// The policies that hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AffinityPolicy {
    /// The endpoint next to the key on a ring.
    RingHash {
        /// The points for each unit of weight; `None` for the default.
        points: Option<NonZeroU32>,
    },
    /// The same on the ring of nginx: `ketama: true`.
    Ketama {
        /// The points for each unit of weight; `None` for those of nginx.
        points: Option<NonZeroU32>,
    },
    /// The endpoint at the key's place in a table.
    Maglev {
        /// The places of the table, a prime; `None` for the default.
        table_size: Option<u32>,
    },
    /// The endpoint that scores highest for the key.
    Rendezvous,
}

/// More points than this for each unit of weight make nothing more even.
const MOST_POINTS: u32 = 100_000;

/// Reads the keys beside `type`.
pub(super) fn read(policy: AffinityPolicy, fields: &mut Fields<'_>) -> AffinitySettings {
    let hash_key = fields.optional("hash_key", hash_key);
    let bounded_load = fields.optional("bounded_load", load_factor);
    let policy = match policy {
        AffinityPolicy::RingHash { .. } | AffinityPolicy::Ketama { .. } => {
            let is_ketama = fields.optional("ketama", boolean);
            let points = fields.optional("points", number(1..=MOST_POINTS));
            let points = points.and_then(NonZeroU32::new);
            match is_ketama {
                Some(true) => AffinityPolicy::Ketama { points },
                Some(false) | None => AffinityPolicy::RingHash { points },
            }
        }
        AffinityPolicy::Maglev { .. } => AffinityPolicy::Maglev {
            table_size: fields.optional("table_size", table_size),
        },
        AffinityPolicy::Rendezvous => AffinityPolicy::Rendezvous,
    };
    AffinitySettings {
        policy,
        hash_key: hash_key.unwrap_or_else(HashKey::client_ip),
        bounded_load,
    }
}

/// One key, or a list of them that are combined.
pub(super) fn hash_key(value: &Value<'_>) -> Result<HashKey, Mistakes> {
    if !matches!(value.data(), Data::Sequence(_)) {
        return part(value);
    }
    let parts = value.list(part)?;
    let combined = parts.into_iter().reduce(HashKey::and);
    combined.ok_or_else(|| value.wrong("expected at least one key, found an empty list"))
}

/// One key; in a mapping, whether those after it count.
fn part(value: &Value<'_>) -> Result<HashKey, Mistakes> {
    if !matches!(value.data(), Data::Mapping(_)) {
        return source(value);
    }
    let mut fields = value.fields()?;
    let key = fields.required("key", source);
    let is_terminal = fields.optional("terminal", boolean);
    fields.finish(key.map(|key| match is_terminal {
        Some(true) => key.terminal(),
        Some(false) | None => key,
    }))
}

fn table_size(value: &Value<'_>) -> Result<u32, Mistakes> {
    let size = number(0..=u32::MAX)(value).ok();
    size.filter(|size| Maglev::with_table_size(*size).is_ok())
        .ok_or_else(|| value.expected("a prime from 3 to 5000011, such as 65537"))
}

fn source(value: &Value<'_>) -> Result<HashKey, Mistakes> {
    let expected =
        || value.expected("client_ip, path, \"header:NAME\", \"cookie:NAME\" or \"query:NAME\"");
    let (text, _) = value.scalar().ok_or_else(expected)?;
    let key = match text.split_once(':') {
        None if text == "client_ip" => HashKey::client_ip(),
        None if text == "path" => HashKey::path(),
        Some(("header", name)) => HashKey::header(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| value.expected("header: and the name of a header field"))?,
        ),
        Some((_, "")) => return Err(expected()),
        Some(("cookie", name)) => HashKey::cookie(name),
        Some(("query", name)) => HashKey::query(name),
        _ => return Err(expected()),
    };
    Ok(key)
}

fn load_factor(value: &Value<'_>) -> Result<LoadFactor, Mistakes> {
    decimal(value)
        .and_then(|factor| LoadFactor::new(factor).ok())
        .ok_or_else(|| value.expected("a number from 1 to 1000, such as 1.25"))
}
