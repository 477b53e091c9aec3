//! What HTTP says about caches, as functions over header maps: no clock, no store, no service.

pub(crate) mod age;
pub(crate) mod control;
pub(crate) mod freshness;
pub(crate) mod key;
pub(crate) mod range;
pub(crate) mod request;
pub(crate) mod status;
pub(crate) mod storing;
mod structured;
pub(crate) mod tag;
pub(crate) mod validation;
pub(crate) mod vary;
