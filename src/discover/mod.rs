//! Where endpoints come from.
use crate::endpoint::Endpoint;
use std::{sync::Arc, time::Instant};
/// s
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// p
    Pending,
    /// l
    Live,
    /// s
    Stale {
        /// since
        since: Instant,
    },
    /// a
    Absent,
}
impl State {
    /// s
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ""
    }
}
/// s
#[derive(Debug)]
pub struct Snapshot {
    /// e
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// s
    pub state: State,
    /// v
    pub version: u64,
}
/// w
#[derive(Debug)]
pub struct ServiceWatch {}
impl ServiceWatch {
    /// c
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        unimplemented!()
    }
    /// c
    pub async fn changed(&mut self) -> Arc<Snapshot> {
        unimplemented!()
    }
}
