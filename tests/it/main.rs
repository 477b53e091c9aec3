//! The integration tests: one binary, one module a subject.

mod architecture;
#[cfg(feature = "config")]
mod readme;
