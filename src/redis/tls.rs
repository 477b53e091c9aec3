//! TLS to Redis.

use rustls::ClientConfig;

use super::Options;

impl Options {
    /// Connects over TLS with this configuration, whatever the scheme of the URL. The default of
    /// `rediss` trusts what the system trusts.
    #[must_use]
    pub fn tls(mut self, config: ClientConfig) -> Self {
        self.config.tls = Some(config.into());
        self
    }
}
