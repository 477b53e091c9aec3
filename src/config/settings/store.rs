//! What the nodes of a cluster keep together.

use super::{Secret, node::secret};
use crate::{
    store::redis,
    yaml::{Mistakes, Value, one_of, text},
};

/// Where that is kept which nodes share.
///
/// # Defaults
///
/// - `redis`: none; this process counts alone
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreSettings {
    /// The Redis that all nodes share.
    pub redis: Option<RedisSettings>,
}

/// A Redis.
///
/// # Defaults
///
/// - `namespace`: `gw`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisSettings {
    /// The URL, which may have a password in it.
    pub url: Secret,
    /// What the keys begin with; nodes of one cluster have one.
    pub namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Redis,
}

pub(super) fn read(value: &Value<'_>) -> Result<StoreSettings, Mistakes> {
    let mut fields = value.fields()?;
    let kind = fields.optional(
        "type",
        one_of(&[("memory", Kind::Memory), ("redis", Kind::Redis)]),
    );
    if kind != Some(Kind::Redis) {
        return fields.finish(Some(StoreSettings::default()));
    }
    let url = fields.required("url", url);
    let namespace = fields.optional("namespace", namespace);
    let redis = url.map(|url| RedisSettings {
        url,
        namespace: namespace.unwrap_or_else(|| "gw".to_owned()),
    });
    fields.finish(redis.map(|redis| StoreSettings { redis: Some(redis) }))
}

fn url(value: &Value<'_>) -> Result<Secret, Mistakes> {
    let url = secret(value)?;
    match redis::Options::new(url.reveal()) {
        Ok(_) => Ok(url),
        Err(_) => Err(value.wrong(
            "expected the URL of a Redis, such as redis://127.0.0.1:6379, found another text",
        )),
    }
}

fn namespace(value: &Value<'_>) -> Result<String, Mistakes> {
    let name = text(value)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if !name.is_empty() && name.len() <= 64 && name.bytes().all(is_plain) {
        return Ok(name);
    }
    Err(value
        .expected("a name of at most 64 letters, digits, hyphens, underscores, dots and colons"))
}
