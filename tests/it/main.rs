//! The integration tests: one binary, one module a subject.

mod architecture;
#[cfg(feature = "file")]
mod discover;
#[cfg(feature = "config")]
mod readme;
