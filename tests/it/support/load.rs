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
use tokio::task::JoinHandle;

use super::{http_client, until};

/// Requests without a pause, until it is told to stop; every one must be answered well.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn on(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let client = |address: SocketAddr| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let client = http_client();
                let mut failures = Vec::new();
                while !stop.load(SeqCst) {
                    let request = Request::get(format!("http://{address}/users"));
                    let request = request.body(Full::<Bytes>::default()).unwrap();
                    match client.request(request).await {
                        Ok(response) if response.status() == 200 => {
                            if let Err(error) = response.into_body().collect().await {
                                failures.push(format!("{error:?}"));
                            }
                        }
                        Ok(response) => {
                            let status = response.status();
                            let body = response.into_body().collect().await.unwrap().to_bytes();
                            failures.push(format!("{status} {body:?}"));
                        }
                        Err(error) => failures.push(format!("{error:?}")),
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
