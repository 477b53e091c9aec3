//! Load that must not notice what happens.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use tokio::task::JoinHandle;

use super::{http_client, until};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Requests without a pause, until it is told to stop; every one must be answered well.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Load on each of these addresses.
    pub(crate) fn on(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::of_attempts(1, addresses)
    }

    /// Load that asks again where a connection ends without an answer, as browsers do: a proxy that
    /// loads its configuration ends its idle connections.
    pub(crate) fn patient_on(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::of_attempts(3, addresses)
    }

    fn of_attempts(attempts: usize, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let client = |address: SocketAddr| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let client = http_client();
                let mut failures = Vec::new();
                while !stop.load(SeqCst) {
                    let mut answer = ask(&client, address).await;
                    for _ in 1..attempts {
                        if answer.is_err() {
                            answer = ask(&client, address).await;
                        }
                    }
                    match answer {
                        Ok((200, _)) => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    sent.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                failures
            })
        };
        let addresses = addresses.into_iter();
        let clients = addresses.map(client).collect();
        Self {
            stop,
            sent,
            clients,
        }
    }

    /// Ends it, once it was a load.
    pub(crate) async fn end(self) {
        until("a load", async || self.sent.load(SeqCst) > 100).await;
        self.stop.store(true, SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        let sent = self.sent.load(SeqCst);
        assert!(
            failures.is_empty(),
            "{} of {sent} requests failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(3)]
        );
    }
}

/// The status and the body of an answer.
async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
) -> Result<(u16, Bytes), BoxError> {
    let request = Request::get(format!("http://{address}/users"));
    let response = client.request(request.body(Full::default())?).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
