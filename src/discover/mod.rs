//! Where endpoints come from.

#[cfg(feature = "file")]
pub(crate) mod listing;
