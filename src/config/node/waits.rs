//! What a node waits for before it serves, and for how long.

use std::time::Duration;

use super::state::State;
use crate::{
    cluster::Cluster,
    discover::{self, ServiceWatch},
};

/// How long a node waits for its store before it serves without.
pub(super) const STORE: Duration = Duration::from_millis(250);

/// How long a start, or a reload, waits for the first word of discovery on clusters that are new, so
/// that no request goes to one that has no endpoints yet.
pub(super) const NEW_CLUSTERS: Duration = Duration::from_secs(2);

/// Waits until the store answers, or has had its time: one that does not is none to stop for.
pub(super) async fn connected(state: &State) {
    let Some(store) = state.gateway.lock().shared() else {
        return;
    };
    let cache = state.gateway.lock().cache_connection();
    let cached = async {
        if let Some(connection) = cache {
            connection.available().await;
        }
    };
    let both = futures_util::future::join(store.available(), cached);
    if tokio::time::timeout(STORE, both).await.is_err() {
        tracing::warn!(
            event = "store_unreachable",
            "the store does not answer: this node counts alone until it does"
        );
    }
}

/// Waits until discovery has said something of each of these clusters, be it why it cannot, or has
/// had its time.
pub(super) async fn heard_of(clusters: Vec<Cluster>, patience: Duration) {
    let heard = async {
        for cluster in &clusters {
            tokio::select! {
                () = cluster.discovered() => {}
                () = failed(cluster.watch()) => {}
            }
        }
    };
    // The time is over for those that are left, which is all that there is to know.
    tokio::time::timeout(patience, heard).await.ok();
}

/// Waits until a source has said why it has no endpoints.
async fn failed(watch: Option<ServiceWatch>) {
    let Some(mut watch) = watch else {
        return std::future::pending().await;
    };
    let mut snapshot = watch.current();
    while snapshot.state != discover::State::Pending || snapshot.reason.is_none() {
        snapshot = watch.changed().await;
    }
}

/// Whether discovery has spoken for all of these clusters within this time.
pub(super) async fn discovered(clusters: Vec<Cluster>, patience: Duration) -> bool {
    let discovered = async {
        for cluster in clusters {
            cluster.discovered().await;
        }
    };
    tokio::time::timeout(patience, discovered).await.is_ok()
}
