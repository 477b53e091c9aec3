//! What the nodes share, and where the configuration comes from.

use std::{fmt, time::Duration};

use crate::{
    redis::{Connection, Options},
    yaml::{Fields, Mistakes, Value, one_of, positive_duration, size, text},
};

use super::{EtcdSettings, Reader, Secret};

/// How long a decision waits where nothing is said.
const TIMEOUT: Duration = Duration::from_millis(10);

/// The key of a configuration in a store where none is named.
const CONFIG_KEY: &str = "/gateway/config";

/// What is kept for all routes, and shared with the other nodes where there is a server for it.
///
/// # Defaults
///
/// - `redis`: none, this process alone
/// - `cache_memory`: 256 MiB
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreSettings {
    /// The server over which the nodes share what they share.
    pub redis: Option<RedisSettings>,
    /// Bytes of responses that this process keeps, at most.
    pub cache_memory: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            redis: None,
            cache_memory: 256 << 20,
        }
    }
}

/// A Redis, and the part of it that is this cluster's.
///
/// # Defaults
///
/// - `namespace`: `gw`
/// - `timeout`: 10 ms
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisSettings {
    /// Where it is, and with which password.
    pub url: Secret,
    /// What the keys of this cluster begin with.
    pub namespace: String,
    /// How long a decision about a limit waits for it, at most.
    pub timeout: Duration,
}

impl RedisSettings {
    /// What a connection is opened with.
    pub(in crate::config) fn options(&self) -> Options {
        Options::new(self.url.reveal()).expect("the URL was checked when it was read")
    }

    /// A connection that gives its answers within the time-out of a decision.
    pub(in crate::config) fn limit_connection(&self) -> Connection {
        let patience = self.timeout.max(Duration::from_millis(40));
        Connection::open(self.options().command_timeout(patience))
    }

    /// A connection for what no request waits for.
    pub(in crate::config) fn patient_connection(&self) -> Connection {
        let patience = Duration::from_secs(1);
        Connection::open(self.options().command_timeout(patience))
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("url", &self.options())
            .field("namespace", &self.namespace)
            .finish()
    }
}

/// Where the clusters and routes come from, when not from the file.
///
/// # Defaults
///
/// - `key`: `/gateway/config`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigStoreSettings {
    /// The store.
    pub place: ConfigPlace,
    /// The key, whose value is their YAML or JSON text.
    pub key: String,
}

/// A store of configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigPlace {
    /// An etcd.
    Etcd(EtcdSettings),
    /// A Redis.
    Redis(RedisSettings),
}

impl ConfigStoreSettings {
    /// The etcd that it is in, if it is in one.
    pub(in crate::config) fn etcd(&self) -> Option<&EtcdSettings> {
        match &self.place {
            ConfigPlace::Etcd(etcd) => Some(etcd),
            ConfigPlace::Redis(_) => None,
        }
    }

    /// What it is called in messages.
    pub(in crate::config) fn name(&self) -> String {
        match &self.place {
            ConfigPlace::Etcd(_) => format!("etcd:{}", self.key),
            ConfigPlace::Redis(_) => format!("redis:{}", self.key),
        }
    }
}

pub(super) fn store(value: &Value<'_>) -> Result<StoreSettings, Mistakes> {
    #[derive(Clone, Copy)]
    enum Kind {
        Memory,
        Redis,
    }
    let mut fields = value.fields()?;
    let kinds = one_of(&[("memory", Kind::Memory), ("redis", Kind::Redis)]);
    let kind = fields.value("type");
    let kind = match &kind {
        Some(value) => fields.keep(kinds(value)),
        None => Some(Kind::Memory),
    };
    let redis = match kind {
        // Which other keys are known depends on the type.
        None => return fields.abandon(None),
        Some(Kind::Memory) => None,
        Some(Kind::Redis) => redis(&mut fields),
    };
    let cache_memory = fields.optional("cache_memory", size);
    let default = StoreSettings::default();
    fields.finish(Some(StoreSettings {
        redis,
        cache_memory: cache_memory.unwrap_or(default.cache_memory),
    }))
}

fn redis(fields: &mut Fields<'_>) -> Option<RedisSettings> {
    let url = fields.required("url", redis_url);
    let namespace = fields.optional("namespace", namespace);
    let timeout = fields.optional("timeout", positive_duration);
    url.map(|url| RedisSettings {
        url,
        namespace: namespace.unwrap_or_else(|| "gw".to_owned()),
        timeout: timeout.unwrap_or(TIMEOUT),
    })
}

/// One that is wrong is not repeated: there may be a password in it.
fn redis_url(value: &Value<'_>) -> Result<Secret, Mistakes> {
    let expected = "the URL of a Redis, such as redis://127.0.0.1:6379";
    let Ok(url) = text(value) else {
        return Err(value.expected(expected));
    };
    match Options::new(&url) {
        Ok(_) => Ok(Secret::from_text(url)),
        Err(_) => Err(value.wrong(format!("expected {expected}, found another text"))),
    }
}

fn namespace(value: &Value<'_>) -> Result<String, Mistakes> {
    let namespace = text(value)?;
    let fits = |character: char| character.is_ascii_graphic() && !"{}".contains(character);
    if namespace.chars().all(fits) {
        return Ok(namespace);
    }
    Err(value.expected("visible ASCII characters without braces"))
}

impl Reader<'_> {
    pub(super) fn config_store(
        self,
        value: &Value<'_>,
        store: Option<&StoreSettings>,
    ) -> Result<ConfigStoreSettings, Mistakes> {
        let mut fields = value.fields()?;
        #[derive(Clone, Copy)]
        enum Kind {
            Etcd,
            Redis,
        }
        let kinds = one_of(&[("etcd", Kind::Etcd), ("redis", Kind::Redis)]);
        let place = match fields.required("type", kinds) {
            // Which other keys are known depends on the type.
            None => return fields.abandon(None),
            Some(Kind::Etcd) => self.etcd(&mut fields).map(ConfigPlace::Etcd),
            Some(Kind::Redis) => {
                let url = fields.value("url");
                let redis = match (url, store.and_then(|store| store.redis.as_ref())) {
                    (Some(url), _) => fields.keep(redis_url(&url)).map(|url| RedisSettings {
                        url,
                        namespace: String::new(),
                        timeout: TIMEOUT,
                    }),
                    (None, Some(redis)) => Some(redis.clone()),
                    (None, None) => fields.keep(Err(value.wrong(
                        "expected url in it, or store with type redis beside it, found neither",
                    ))),
                };
                redis.map(ConfigPlace::Redis)
            }
        };
        let key = fields.optional("key", text);
        let settings = place.map(|place| ConfigStoreSettings {
            place,
            key: key.unwrap_or_else(|| CONFIG_KEY.to_owned()),
        });
        fields.finish(settings)
    }
}
