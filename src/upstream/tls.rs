//! TLS to endpoints, by rustls.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{
    Protocol,
    connect::{self, BoxIo, Connector},
};
use crate::{
    endpoint::Address,
    error::{BoxError, TransportError, TransportErrorKind},
};

const PRIVATE_KEY: &str = "expected a private key in PEM form";

/// A certificate, key or name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct InvalidTls {
    what: &'static str,
    source: Option<BoxError>,
}

impl InvalidTls {
    fn new(what: &'static str, source: impl Into<BoxError>) -> Self {
        Self {
            what,
            source: Some(source.into()),
        }
    }

    /// Whether the private key is what cannot be used.
    #[must_use]
    pub fn is_about_key(&self) -> bool {
        self.what == PRIVATE_KEY
    }

    fn empty(what: &'static str) -> Self {
        Self { what, source: None }
    }
}

/// TLS 1.2 or 1.3 over TCP. The certificate of the endpoint is verified, always.
///
/// # Defaults
///
/// - `server_name`: the host of the endpoint; it is sent as SNI and must stand in the certificate
/// - no client certificate
#[derive(Clone)]
pub struct TlsConnector {
    roots: Arc<RootCertStore>,
    protocol: Protocol,
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl TlsConnector {
    /// Trusts the certificate authorities of the operating system.
    ///
    /// # Errors
    ///
    /// When the operating system has none.
    pub fn new(protocol: Protocol) -> Result<Self, InvalidTls> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(InvalidTls::empty(
                "the operating system has no certificate authorities: name one",
            ));
        }
        Self::with_roots(roots, protocol)
    }

    /// Trusts the certificate authorities in this PEM text, and no others.
    ///
    /// # Errors
    ///
    /// When the text has no certificate, or one that cannot be read.
    pub fn with_ca(pem: &[u8], protocol: Protocol) -> Result<Self, InvalidTls> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem)? {
            roots.add(certificate).map_err(|error| {
                InvalidTls::new("a certificate cannot be used as an authority", error)
            })?;
        }
        Self::with_roots(roots, protocol)
    }

    fn with_roots(roots: RootCertStore, protocol: Protocol) -> Result<Self, InvalidTls> {
        let roots = Arc::new(roots);
        let config = Self::verifier(&roots)?.with_no_client_auth();
        Ok(Self {
            config: with_alpn(config, protocol),
            roots,
            protocol,
            server_name: None,
        })
    }

    /// Shows this certificate, a PEM chain with its PEM key, to endpoints that ask for one.
    ///
    /// # Errors
    ///
    /// When a text has no certificate or key, or they do not belong together.
    pub fn client_certificate(mut self, chain: &[u8], key: &[u8]) -> Result<Self, InvalidTls> {
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| InvalidTls::new(PRIVATE_KEY, error))?;
        let config = Self::verifier(&self.roots)?
            .with_client_auth_cert(certificates(chain)?, key)
            .map_err(|error| {
                InvalidTls::new("the client certificate and its key cannot be used", error)
            })?;
        self.config = with_alpn(config, self.protocol);
        Ok(self)
    }

    /// Offers another protocol than the one that it was made for.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        if self.protocol != protocol {
            self.protocol = protocol;
            self.config = with_alpn((*self.config).clone(), protocol);
        }
        self
    }

    /// Sets the name that is sent as SNI and that the certificate must have.
    ///
    /// # Errors
    ///
    /// When it is neither a host name nor an IP address.
    pub fn server_name(mut self, name: &str) -> Result<Self, InvalidTls> {
        self.server_name = Some(parse_name(name)?);
        Ok(self)
    }

    /// What connections are made by, and the name that the certificate must have, if that is not
    /// the host.
    #[cfg_attr(not(feature = "config"), expect(dead_code, reason = "a file names it"))]
    pub(crate) fn parts(&self) -> (&ClientConfig, Option<&ServerName<'static>>) {
        (&self.config, self.server_name.as_ref())
    }

    fn verifier(
        roots: &Arc<RootCertStore>,
    ) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, InvalidTls>
    {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidTls::new("no usable version of tls", error))?;
        Ok(builder.with_root_certificates(Arc::clone(roots)))
    }
}

fn with_alpn(mut config: ClientConfig, protocol: Protocol) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn(protocol).to_vec()];
    Arc::new(config)
}

fn alpn(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Http1 => b"http/1.1",
        Protocol::Http2 => b"h2",
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| InvalidTls::new("expected certificates in PEM form", error))?;
    if certificates.is_empty() {
        return Err(InvalidTls::empty(
            "expected certificates in PEM form, found none",
        ));
    }
    Ok(certificates)
}

fn parse_name(name: &str) -> Result<ServerName<'static>, InvalidTls> {
    ServerName::try_from(name.to_owned())
        .map_err(|error| InvalidTls::new("expected a host name or an IP address", error))
}

impl Connector for TlsConnector {
    fn connect(&self, address: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>> {
        let address = address.clone();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.config));
        let name = self.server_name.clone();
        let protocol = self.protocol;
        Box::pin(async move {
            let name = match name {
                Some(name) => name,
                None => parse_name(address.host()).map_err(tls)?,
            };
            let stream = connect::tcp(&address).await.map_err(connect::failed)?;
            let stream = connector.connect(name, stream).await.map_err(tls)?;
            // HTTP/1.1 is what a server speaks that knows nothing of ALPN.
            let spoken = stream.get_ref().1.alpn_protocol();
            if protocol == Protocol::Http2 && spoken != Some(alpn(protocol)) {
                return Err(tls("the endpoint does not speak h2 (ALPN)"));
            }
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

fn tls(error: impl Into<BoxError>) -> TransportError {
    TransportError::new(TransportErrorKind::Tls).caused_by(error)
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector")
            .field("protocol", &self.protocol)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
