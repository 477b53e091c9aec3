//! The settings of this process.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{EtcdSettings, Reader};
use crate::{
    discover::listing::address,
    endpoint::Address,
    yaml::{
        Fields, Mistakes, Value, duration, number, one_of, positive_duration, socket_addr, text,
    },
};

/// What the keys of nodes in etcd begin with where nothing is said.
const PREFIX: &str = "/services/";

/// A record that lives shorter dies of a pause.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// The settings of this process.
///
/// # Defaults
///
/// - `id`: none, which stands for the host name and the port
/// - `zone`: none
/// - `admin`, `admin_token`, `snapshot_dir`, `register`: none
/// - `trusted_hops`: 0
/// - `drain`: 10 s
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeSettings {
    /// The name of this node.
    pub id: Option<String>,
    /// The zone of this node.
    pub zone: Option<String>,
    /// Where the gateway listens; port 0 asks for a free one.
    pub listen: SocketAddr,
    /// Where the admin router listens. Not loopback only with an `admin_token`.
    pub admin: Option<SocketAddr>,
    /// What a caller of the admin router must present.
    pub admin_token: Option<Secret>,
    /// How many proxies in front are believed; 0: the peer is the client.
    pub trusted_hops: u8,
    /// The longest wait for requests in flight; 0 does not wait.
    pub drain: Duration,
    /// Where the last good lists are kept.
    pub snapshot_dir: Option<PathBuf>,
    /// How the other nodes know of this one, if they do.
    pub register: Option<RegisterSettings>,
}

/// How a node is known to the others.
///
/// # Defaults
///
/// - `place`: the Redis of `store`, else the etcd of `config_store`
/// - `advertise`: where it listens
/// - `ttl`: 10 s
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisterSettings {
    /// Where the nodes are registered.
    pub place: RegisterPlace,
    /// The service whose instances the nodes are.
    pub service: String,
    /// Where the others reach it.
    pub advertise: Option<Address>,
    /// How long it is known after it fell silent.
    pub ttl: Duration,
}

/// A registry.
///
/// # Defaults
///
/// - `prefix`: `/services/`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterPlace {
    /// The Redis that the nodes share.
    Redis,
    /// An etcd.
    Etcd {
        /// Where it is.
        etcd: EtcdSettings,
        /// What keys begin with, before the service.
        prefix: String,
    },
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[cfg(test)]
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn from_text(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Reader<'_> {
    pub(super) fn node(self, value: &Value<'_>) -> Result<NodeSettings, Mistakes> {
        let mut fields = value.fields()?;
        let id = fields.optional("id", text);
        let zone = fields.optional("zone", text);
        let listen = fields.required("listen", socket_addr);
        let admin = fields.value("admin");
        let token = fields.value("admin_token");
        let admin = admin_address(&mut fields, admin.as_ref(), token.is_some(), listen);
        let admin_token = token.and_then(|token| fields.keep(secret(&token)));
        let trusted_hops = fields.optional("trusted_hops", number(0..=u8::MAX));
        let drain = fields.optional("drain", duration);
        let snapshot_dir = fields.optional("snapshot_dir", |path| self.path(path));
        let register = fields.optional("register", |value| self.register(value, listen));
        let node = listen.map(|listen| NodeSettings {
            id,
            zone,
            listen,
            admin,
            admin_token,
            trusted_hops: trusted_hops.unwrap_or(0),
            drain: drain.unwrap_or(Duration::from_secs(10)),
            snapshot_dir,
            register,
        });
        fields.finish(node)
    }

    fn register(
        self,
        value: &Value<'_>,
        listen: Option<SocketAddr>,
    ) -> Result<RegisterSettings, Mistakes> {
        let mut fields = value.fields()?;
        #[derive(Clone, Copy)]
        enum Kind {
            Etcd,
            Redis,
        }
        let kinds = one_of(&[("etcd", Kind::Etcd), ("redis", Kind::Redis)]);
        let kind = match fields.value("type") {
            Some(value) => match fields.keep(kinds(&value)) {
                Some(kind) => kind,
                // Which other keys are known depends on the type.
                None => return fields.abandon(None),
            },
            None if !self.has_redis && self.config_etcd.is_some() => Kind::Etcd,
            None => Kind::Redis,
        };
        let place = match kind {
            Kind::Redis if self.has_redis => Some(RegisterPlace::Redis),
            Kind::Redis => fields.keep(Err(value.wrong(
                "expected store with type redis or config_store with type etcd beside node, or \
                 type: etcd in it, found neither",
            ))),
            Kind::Etcd => {
                // Those of the configuration, unless others are named.
                let mut keys = value.entries()?.into_iter();
                let is_named = keys.any(|(key, _)| key == "endpoints");
                let etcd = match self.config_etcd.filter(|_| !is_named) {
                    Some(etcd) => Some(etcd.clone()),
                    None => self.etcd(&mut fields),
                };
                let prefix = fields.optional("prefix", text);
                let prefix = prefix.unwrap_or_else(|| PREFIX.to_owned());
                etcd.map(|etcd| RegisterPlace::Etcd { etcd, prefix })
            }
        };
        let service = fields.required("service", text);
        let advertised = fields.value("advertise");
        let advertise = advertised
            .as_ref()
            .and_then(|value| fields.keep(address(value)));
        if advertised.is_none() && listen.is_some_and(|listen| listen.ip().is_unspecified()) {
            fields.keep::<()>(Err(value.wrong(
                "expected advertise, where the others reach a node that listens on every address",
            )));
        }
        let ttl = fields.optional("ttl", |value| {
            let ttl = positive_duration(value)?;
            if ttl < LEAST_TTL {
                return Err(value.expected("a duration of at least 1s"));
            }
            Ok(ttl)
        });
        let register = service.zip(place).map(|(service, place)| RegisterSettings {
            place,
            service,
            advertise,
            ttl: ttl.unwrap_or(Duration::from_secs(10)),
        });
        fields.finish(register)
    }
}

/// Who reaches the admin address drains the node and drops its cache: an address that others reach
/// needs a token.
fn admin_address(
    fields: &mut Fields<'_>,
    value: Option<&Value<'_>>,
    has_token: bool,
    listen: Option<SocketAddr>,
) -> Option<SocketAddr> {
    let value = value?;
    let admin = fields.keep(socket_addr(value))?;
    if !has_token && !admin.ip().to_canonical().is_loopback() {
        fields.keep::<()>(Err(
            value.expected("a loopback address, or admin_token beside it")
        ));
    }
    if admin.port() != 0 && listen == Some(admin) {
        fields.keep::<()>(Err(value.expected("another address than listen")));
    }
    Some(admin)
}

/// A token that fits a header. A wrong one is not repeated.
pub(super) fn secret(value: &Value<'_>) -> Result<Secret, Mistakes> {
    let token = text(value)?;
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Secret(token));
    }
    Err(value.wrong("expected a token of visible ASCII characters, found others in it"))
}
