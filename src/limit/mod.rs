//! Limits how often something happens.
//!
//! A [`Quota`] says how much is admitted in what time. A [store](store) keeps the counts and decides
//! about all [asks](Ask) of a request at once, all or nothing.

mod answer;
mod ask;
pub mod body;
mod calendar;
mod cell;
mod counts;
mod field;
mod fingerprint;
pub mod future;
mod gcra;
mod key;
mod layer;
#[allow(
    clippy::module_inception,
    reason = "the file holds the type of that name"
)]
mod limit;
mod limiter;
mod permit;
mod quota;
mod quotas;
mod service;
mod slots;
mod status;
pub mod store;
mod table;
mod window;

pub use ask::{Ask, Decision, Level, Mode, OnStoreFailure, Source};
pub use calendar::Calendar;
pub use counts::Verdict;
pub use fingerprint::Fingerprint;
pub use key::{LimitKey, Missing, Subject};
pub use layer::{Fields, RateLimitLayer};
pub use limit::Limit;
pub use limiter::Limiter;
pub use permit::{Denied, Permit};
pub use quota::{InvalidQuota, Quota, Rule};
pub use quotas::Quotas;
pub use service::RateLimit;

pub use crate::head::RequestHead;
