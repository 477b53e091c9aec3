//! Limits how often something happens.
//!
//! A [`Quota`] says how much is admitted in what time. A [store](store) keeps the counts and decides
//! about all [asks](Ask) of a request at once, all or nothing.

mod ask;
mod calendar;
mod cell;
mod fingerprint;
mod gcra;
mod quota;
mod slots;
pub mod store;
mod table;
mod window;

pub use ask::{Ask, Decision, Level, Mode, OnStoreFailure, Source};
pub use calendar::Calendar;
pub use fingerprint::Fingerprint;
pub use quota::{InvalidQuota, Quota, Rule};
