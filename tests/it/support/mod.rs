//! What the integration tests share: a node from the text of its file, backends and clients that
//! show the bytes.

mod backend;
mod gateway;
mod wire;

use std::time::Duration;

pub(crate) use backend::{Backend, BoxBody, full, nobody};
pub(crate) use gateway::{Gateway, get, http_client, json, one_cluster};
pub(crate) use wire::{Head, Message, Wire};

/// How long a test waits for what must come. No test is decided by a shorter time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the future gives, unless it takes far too long.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it took too long: {what}"),
    }
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, waiting).await;
}

/// Bytes that differ from place to place, so that a lost or doubled piece shows.
pub(crate) fn pattern(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}
