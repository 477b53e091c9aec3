//! The settings of what stands in etcd.

use crate::{
    etcd::Etcd,
    yaml::{Fields, Mistakes, Value, text},
};

use super::{Reader, Secret, TlsSettings, node::secret};

/// Where the servers of an etcd cluster are, and who asks them.
///
/// # Defaults
///
/// - `user`: none
/// - `tls`: the certificates of the system, for servers of `https`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdSettings {
    /// The URLs of the servers.
    pub endpoints: Vec<String>,
    /// The name and the password, where etcd asks for them.
    pub user: Option<(String, Secret)>,
    /// How connections to servers of `https` are secured.
    pub tls: Option<Box<TlsSettings>>,
}

impl EtcdSettings {
    /// The client that they make, before it is told how to secure connections.
    pub(in crate::config) fn client(&self) -> Etcd {
        let etcd = Etcd::new(&self.endpoints).expect("the URLs were checked when they were read");
        match &self.user {
            Some((name, password)) => etcd.user(name, password.reveal()),
            None => etcd,
        }
    }

    /// Whether a server wants a secure connection.
    pub(in crate::config) fn is_secured(&self) -> bool {
        self.endpoints.iter().any(|server| is_secured(server))
    }
}

impl Reader<'_> {
    /// The keys `endpoints`, `user`, `password` and `tls`.
    pub(super) fn etcd(self, fields: &mut Fields<'_>) -> Option<EtcdSettings> {
        let endpoints = fields.required("endpoints", servers);
        let (user, password) = (fields.value("user"), fields.value("password"));
        let user = match (&user, &password) {
            (Some(user), Some(password)) => {
                let user = fields.keep(text(user));
                let password = fields.keep(secret(password));
                user.zip(password)
            }
            (None, None) => None,
            (Some(user), None) => {
                fields.keep(Err(user.wrong("expected password beside it, found none")))
            }
            (None, Some(password)) => {
                fields.keep(Err(password.wrong("expected user beside it, found none")))
            }
        };
        let tls = fields.optional("tls", |value| {
            let servers = endpoints.iter().flatten();
            if endpoints.is_some() && !servers.into_iter().any(|server| is_secured(server)) {
                return Err(value.wrong("expected https in endpoints beside it, found none"));
            }
            self.tls(value).map(Box::new)
        });
        endpoints.map(|endpoints| EtcdSettings {
            endpoints,
            user,
            tls,
        })
    }
}

fn is_secured(server: &str) -> bool {
    server.starts_with("https:")
}

fn servers(value: &Value<'_>) -> Result<Vec<String>, Mistakes> {
    let servers = value.list(|value| {
        let server = text(value)?;
        match Etcd::new([&server]) {
            Ok(_) => Ok(server),
            Err(_) => {
                Err(value.expected("the URL of an etcd server, such as http://127.0.0.1:2379"))
            }
        }
    })?;
    if servers.is_empty() {
        return Err(value.wrong("expected an etcd server, found an empty list"));
    }
    Ok(servers)
}
