//! What a connection is opened with.

use std::{fmt, time::Duration};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    types::{
        Builder, RespVersion,
        config::{Config, ReconnectPolicy, TcpConfig, UnresponsiveConfig},
    },
};

/// Which server, and for how long to wait for it.
///
/// # Defaults
///
/// - an answer: 40 ms; connecting: 1 s
/// - commands waiting to be written: 10,000 at most
///
/// These stand in for defaults of the client that would let a request wait without end, and send a
/// command again whose connection broke: whether it was done is not known, and it might be counted
/// twice.
#[derive(Clone)]
pub struct Options {
    pub(super) config: Config,
    command_timeout: Duration,
    connect_timeout: Duration,
}

/// A URL that names no Redis.
#[derive(Debug, thiserror::Error)]
#[error("not the url of a redis server")]
pub struct InvalidUrl(#[source] Error);

impl Options {
    /// The server, the cluster, or the master that sentinels know, of this URL:
    ///
    /// ```text
    /// redis://[[user:]password@]host[:port][/database]
    /// redis-cluster://[[user:]password@]host[:port][?node=host:port&…]
    /// redis-sentinel://[[user:]password@]host[:port][/database]?sentinelServiceName=name[&node=host:port&…]
    /// ```
    ///
    /// `rediss`, with the feature `tls`, is the same over TLS.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] for anything else.
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        // The client takes any scheme for that of a single server.
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let (kind, way) = scheme.split_once('-').unwrap_or((scheme, ""));
        let is_known = matches!(kind, "redis" | "rediss" | "valkey" | "valkeys")
            && matches!(way, "" | "cluster" | "sentinel");
        if !is_known {
            let error = Error::new(ErrorKind::Config, "unknown scheme");
            return Err(InvalidUrl(error));
        }
        let mut config = Config::from_url(url).map_err(InvalidUrl)?;
        // A store that is unreachable at start does not stop the node.
        config.fail_fast = false;
        config.version = RespVersion::RESP3;
        Ok(Self {
            config,
            command_timeout: Duration::from_millis(40),
            connect_timeout: Duration::from_secs(1),
        })
    }

    /// How long to wait for an answer. Default: 40 ms.
    #[must_use]
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// How long to wait for a connection, its handshake included. Default: 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    pub(super) fn is_clustered(&self) -> bool {
        self.config.server.is_clustered()
    }

    /// How long to wait for the answer to a probe.
    pub(super) fn probe_timeout(&self) -> Duration {
        self.command_timeout.min(self.connect_timeout)
    }

    pub(super) fn timeout(&self) -> Duration {
        self.command_timeout
    }

    /// A client that waits no longer than `timeout` for an answer.
    pub(super) fn client(&self, timeout: Duration) -> Client {
        let mut builder = Builder::from_config(self.config.clone());
        builder.with_performance_config(|performance| {
            performance.default_command_timeout = timeout;
            performance.broadcast_channel_capacity = 1024;
        });
        builder.with_connection_config(|connection| {
            connection.connection_timeout = self.connect_timeout;
            connection.internal_command_timeout = self.connect_timeout;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 10_000;
            connection.reconnect_on_auth_error = true;
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(self.connect_timeout.max(timeout) * 2),
                interval: self.connect_timeout / 2,
            };
            connection.tcp = TcpConfig {
                nodelay: Some(true),
                ..TcpConfig::default()
            };
        });
        let mut policy = ReconnectPolicy::new_exponential(0, 50, 500, 2);
        policy.set_jitter(100);
        builder.set_policy(policy);
        builder.build().expect("a configuration is given")
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the password.
        f.debug_struct("Options")
            .field("server", &self.config.server)
            .field("command_timeout", &self.command_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_all_kinds() {
        assert!(!Options::new("redis://127.0.0.1").unwrap().is_clustered());
        let cluster = Options::new("redis-cluster://a:1?node=b:2&node=c:3");
        assert!(cluster.unwrap().is_clustered());
        assert!(Options::new("redis-sentinel://a:1?sentinelServiceName=m").is_ok());
        for wrong in ["", "127.0.0.1:6379", "http://a:1", "redis-sentinel://a:1"] {
            assert!(Options::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let options = Options::new("redis://user:secret@127.0.0.1:1").unwrap();
        let shown = format!("{options:?}");
        assert!(shown.contains("127.0.0.1"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
