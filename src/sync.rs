//! Atomics of std and locks of parking_lot, or those of loom under `--cfg tower_gateway_loom`.
//!
//! The cfg has a name of its own because plain `--cfg loom` removes `tokio::net`.

#[cfg(not(tower_gateway_loom))]
pub(crate) use std::sync::atomic;

#[cfg(tower_gateway_loom)]
pub(crate) use loom::sync::atomic;

#[cfg(not(tower_gateway_loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};

#[cfg(tower_gateway_loom)]
pub(crate) use lock::{Mutex, MutexGuard};

/// The lock of loom in the form of parking_lot's.
#[cfg(tower_gateway_loom)]
mod lock {
    pub(crate) use loom::sync::MutexGuard;

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of a model panics")
        }
    }
}
