//! The handle: one question, one answer.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    connect::{Connector, Secure},
    folder::Folders,
    message::{self, Compare, EtcdError, KeyValue, Operation, Range},
};
use crate::error::BoxError;

/// A list that is longer is no list of endpoints.
const MOST_BYTES: usize = 64 << 20;

/// An etcd cluster. Clones share connections.
///
/// The servers are asked in turn, beginning with the one that answered last.
///
/// # Defaults
///
/// - `timeout`: 2 s for an answer, over all servers a server each
/// - `user`: none
/// - `tls` (feature `tls`): none, and servers of `https` cannot be reached
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Box<[Uri]>,
    /// The one that answered last.
    preferred: AtomicUsize,
    connector: Connector,
    client: Client<Connector, Full<Bytes>>,
    timeout: Duration,
    user: Option<User>,
    /// What shows who asks, until the server has forgotten it.
    token: Mutex<Option<String>>,
    folders: Folders,
}

#[derive(Clone)]
struct User {
    name: String,
    password: String,
}

/// Why an address is none of an etcd server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the URL of an etcd server, such as http://127.0.0.1:2379, found {0:?}")]
pub struct InvalidServer(String);

impl Etcd {
    /// A cluster with these servers, each `http://host:port`, or `https://host:port` with TLS.
    ///
    /// # Errors
    ///
    /// When there is none, or when one of them is no such URL.
    pub fn new<S: AsRef<str>>(servers: impl IntoIterator<Item = S>) -> Result<Self, InvalidServer> {
        let servers: Box<[Uri]> = servers
            .into_iter()
            .map(|server| self::server(server.as_ref()))
            .collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(InvalidServer(String::new()));
        }
        let connector = Connector::new();
        let shared = Shared {
            servers,
            preferred: AtomicUsize::new(0),
            client: client(&connector),
            connector,
            timeout: Duration::from_secs(2),
            user: None,
            token: Mutex::default(),
            folders: Folders::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Sets how long a server may take to answer. Clones that were made before keep theirs.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|shared| shared.timeout = timeout)
    }

    /// Says who asks, for clusters with authentication.
    #[must_use]
    pub fn user(self, name: impl Into<String>, password: impl Into<String>) -> Self {
        let user = User {
            name: name.into(),
            password: password.into(),
        };
        self.with(|shared| shared.user = Some(user))
    }

    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "nothing secures"))]
    pub(super) fn secured_by(self, tls: Arc<dyn Secure>) -> Self {
        self.with(|shared| {
            shared.connector = shared.connector.clone().secured_by(tls);
            shared.client = client(&shared.connector);
        })
    }

    pub(super) fn folders(&self) -> &Folders {
        &self.shared.folders
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let mut shared = Arc::try_unwrap(self.shared).unwrap_or_else(|shared| Shared {
            servers: shared.servers.clone(),
            preferred: AtomicUsize::new(0),
            connector: shared.connector.clone(),
            client: shared.client.clone(),
            timeout: shared.timeout,
            user: shared.user.clone(),
            token: Mutex::default(),
            folders: Folders::default(),
        });
        change(&mut shared);
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Every key with this prefix, as of one revision.
    pub(crate) async fn list(&self, prefix: &[u8]) -> Result<Range, EtcdError> {
        message::range(&self.ask("kv/range", &message::prefix(prefix)).await?)
    }

    /// One key, and the revision at which it was read.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, EtcdError> {
        let range = message::range(&self.ask("kv/range", &message::key(key)).await?)?;
        Ok(range.pairs.into_iter().next())
    }

    /// Does the steps when what is compared holds; returns the revision at which they were done.
    pub(crate) async fn transaction(
        &self,
        compare: &[Compare],
        then: &[Operation],
    ) -> Result<Option<i64>, EtcdError> {
        let answer = self
            .ask("kv/txn", &message::transaction(compare, then))
            .await?;
        let succeeded = answer["succeeded"] == true;
        let revision = message::revision(&answer)?;
        Ok(succeeded.then_some(revision))
    }

    /// A lease that is over after this time, unless it is kept alive.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let seconds = ttl.as_secs().max(1) + u64::from(ttl.subsec_nanos() > 0 && ttl.as_secs() > 0);
        let answer = self
            .ask("lease/grant", &json!({ "TTL": seconds.to_string() }))
            .await?;
        message::number(&answer, "ID")
    }

    /// Begins the time of a lease anew; false when it is over.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool, EtcdError> {
        let answer = self
            .ask("lease/keepalive", &json!({ "ID": lease.to_string() }))
            .await?;
        Ok(message::number(&answer["result"], "TTL")? > 0)
    }

    /// Ends a lease, and deletes the keys that hang on it.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        self.ask("lease/revoke", &json!({ "ID": lease.to_string() }))
            .await?;
        Ok(())
    }

    /// The answer of the first server that has one.
    async fn ask(&self, path: &str, question: &Value) -> Result<Value, EtcdError> {
        let answer = self.asked_of_all(path, question).await;
        if answer.as_ref().is_err_and(message::is_unauthenticated) {
            // The token has run out: once more, with a new one.
            self.forget_token();
            return self.asked_of_all(path, question).await;
        }
        answer
    }

    /// Has the next question show a new token.
    pub(super) fn forget_token(&self) {
        *self.shared.token.lock() = None;
    }

    async fn asked_of_all(&self, path: &str, question: &Value) -> Result<Value, EtcdError> {
        let question = Bytes::from(question.to_string());
        let mut failure = None;
        for server in self.in_turn() {
            let answer = timeout(self.shared.timeout, async {
                let response = self.send(server, path, question.clone()).await?;
                let body = Limited::new(response.into_body(), MOST_BYTES);
                let body = body.collect().await.map_err(EtcdError::Unreachable)?;
                serde_json::from_slice(&body.to_bytes())
                    .map_err(|_| EtcdError::Malformed("a JSON object"))
            });
            match answer.await {
                Ok(Err(error @ EtcdError::Unreachable(_))) => failure = Some(error),
                Ok(answer) => {
                    self.shared.preferred.store(server, Relaxed);
                    return answer;
                }
                Err(late) => failure = Some(EtcdError::Unreachable(late.into())),
            }
        }
        Err(failure.expect("there is a server"))
    }

    /// The answer of one server to a question that it answers for as long as it lives.
    pub(super) async fn open(
        &self,
        path: &str,
        question: &Value,
    ) -> Result<Response<Incoming>, EtcdError> {
        let question = Bytes::from(question.to_string());
        let mut failure = None;
        for server in self.in_turn() {
            match timeout(
                self.shared.timeout,
                self.send(server, path, question.clone()),
            )
            .await
            {
                Ok(Err(error @ EtcdError::Unreachable(_))) => failure = Some(error),
                Ok(answer) => return answer,
                Err(late) => failure = Some(EtcdError::Unreachable(late.into())),
            }
        }
        Err(failure.expect("there is a server"))
    }

    fn in_turn(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (
            self.shared.preferred.load(Relaxed),
            self.shared.servers.len(),
        );
        (0..count).map(move |step| (first + step) % count)
    }

    async fn send(
        &self,
        server: usize,
        path: &str,
        question: Bytes,
    ) -> Result<Response<Incoming>, EtcdError> {
        let token = self.token(server).await?;
        self.post(server, path, question, token.as_deref()).await
    }

    async fn token(&self, server: usize) -> Result<Option<String>, EtcdError> {
        let Some(user) = &self.shared.user else {
            return Ok(None);
        };
        let token = self.shared.token.lock().clone();
        if token.is_some() {
            return Ok(token);
        }
        let question = json!({ "name": user.name, "password": user.password });
        let question = Bytes::from(question.to_string());
        let response = self
            .post(server, "auth/authenticate", question, None)
            .await?;
        let body = Limited::new(response.into_body(), MOST_BYTES);
        let body = body.collect().await.map_err(EtcdError::Unreachable)?;
        let answer: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let token = answer["token"].as_str().map(str::to_owned);
        let token = token.ok_or(EtcdError::Malformed("a token"))?;
        *self.shared.token.lock() = Some(token.clone());
        Ok(Some(token))
    }

    async fn post(
        &self,
        server: usize,
        path: &str,
        question: Bytes,
        token: Option<&str>,
    ) -> Result<Response<Incoming>, EtcdError> {
        let uri = format!("{}v3/{path}", self.shared.servers[server]);
        let mut request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            // A member that has no leader knows nothing new.
            .header("grpc-metadata-hasleader", "true");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(question)).map_err(unreachable_by)?;
        let response = self.shared.client.request(request);
        let response = response.await.map_err(unreachable_by)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_BYTES);
        let body = body.collect().await.map_err(EtcdError::Unreachable)?;
        let error = message::refusal(status, &body.to_bytes());
        // One without a leader, or on its way down: another may do better.
        Err(match (status, error) {
            (StatusCode::SERVICE_UNAVAILABLE, error) => EtcdError::Unreachable(error.into()),
            (_, error) => error,
        })
    }
}

fn client(connector: &Connector) -> Client<Connector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build(connector.clone())
}

fn unreachable_by(error: impl Into<BoxError>) -> EtcdError {
    EtcdError::Unreachable(error.into())
}

/// `http://host:port` or `https://host:port`, with or without a path of `/`.
fn server(text: &str) -> Result<Uri, InvalidServer> {
    let uri: Option<Uri> = text.parse().ok();
    let is_server = |uri: &Uri| {
        (uri.scheme() == Some(&Scheme::HTTP) || uri.scheme() == Some(&Scheme::HTTPS))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.path() == "/"
            && uri.query().is_none()
    };
    uri.filter(is_server)
        .ok_or_else(|| InvalidServer(text.to_owned()))
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("servers", &self.shared.servers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_url() {
        for good in [
            "http://127.0.0.1:2379",
            "http://[::1]:2379/",
            "http://etcd",
            "https://etcd:2379",
        ] {
            assert!(Etcd::new([good]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:2379",
            "ftp://e:1",
            "http://e:1/v3",
            "http://e:1?a",
        ] {
            assert_eq!(Etcd::new([bad]).unwrap_err(), InvalidServer(bad.into()));
        }
        assert!(Etcd::new([""; 0]).is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let etcd = Etcd::new(["http://127.0.0.1:1", "http://127.0.0.1:2"]).unwrap();
        let error = etcd.list(b"").await.unwrap_err();
        assert!(matches!(error, EtcdError::Unreachable(_)), "{error}");
    }
}
