//! Work that may block, on a thread for it.

use std::{future, panic};

/// Runs the work on tokio's pool for blocking work.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(reason) => panic::resume_unwind(reason),
            // The runtime is shutting down, and this task with it.
            Err(_) => future::pending().await,
        },
    }
}
