//! What a route keeps of its responses.

use std::time::Duration;

use http::HeaderName;

use crate::{
    cache::{Partition, QueryRules},
    health::Percent,
    yaml::{
        Data, Mistakes, Value, boolean, duration, one_of, percent, positive_duration, size, text,
    },
};

/// What a route keeps of its responses.
///
/// # Defaults
///
/// - `default_ttl`: 0 s
/// - `max_object`: 1 MiB
/// - `tags_header`: none
/// - `max_staleness`: 1 s
/// - `on_partition`: bypass
/// - `audit`: 0%
/// - `sort_query`, `drop_query`: queries stay as they are
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheSettings {
    /// How long a response is fresh that says nothing about it.
    pub default_ttl: Duration,
    /// The longest body that is stored, in bytes.
    pub max_object: usize,
    /// In which field the endpoints tag their responses.
    pub tags_header: Option<HeaderName>,
    /// How much later than on the node that asks for it an invalidation may hold on others.
    pub max_staleness: Duration,
    /// What becomes of requests while the store cannot be asked.
    pub on_partition: Partition,
    /// The share of the hits in memory that are looked at again.
    pub audit: Percent,
    /// What is changed of queries.
    pub query: QueryRules,
}

pub(super) fn read(value: &Value<'_>) -> Result<CacheSettings, Mistakes> {
    let mut fields = value.fields()?;
    let default_ttl = fields.optional("default_ttl", duration);
    let max_object = fields.optional("max_object", size);
    let tags_header = fields.optional("tags_header", header_name);
    let max_staleness = fields.optional("max_staleness", duration);
    let on_partition = fields.optional("on_partition", partition);
    let audit = fields.optional("audit", percent);
    let sort_query = fields.optional("sort_query", boolean);
    let drop_query = fields.optional("drop_query", |names| names.list(text));
    let mut query = QueryRules::new();
    if sort_query == Some(true) {
        query = query.sort();
    }
    for name in drop_query.unwrap_or_default() {
        query = query.drop(name);
    }
    fields.finish(Some(CacheSettings {
        default_ttl: default_ttl.unwrap_or(Duration::ZERO),
        max_object: max_object.unwrap_or(1 << 20),
        tags_header,
        max_staleness: max_staleness.unwrap_or(Duration::from_secs(1)),
        on_partition: on_partition.unwrap_or_default(),
        audit: Percent::new(audit.unwrap_or(0.0)),
        query,
    }))
}

fn header_name(value: &Value<'_>) -> Result<HeaderName, Mistakes> {
    let name = text(value)?;
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| value.expected("the name of a header, such as surrogate-key"))
}

/// `bypass`, `island` or `{ serve_stale: 30s }`.
fn partition(value: &Value<'_>) -> Result<Partition, Mistakes> {
    if !matches!(value.data(), Data::Mapping(_)) {
        let words = [("bypass", Partition::Bypass), ("island", Partition::Island)];
        return one_of(&words)(value);
    }
    let mut fields = value.fields()?;
    let longest = fields.required("serve_stale", positive_duration);
    fields.finish(longest.map(Partition::ServeStale))
}
