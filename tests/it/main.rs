//! The integration tests: one binary, one module a subject.

#[cfg(feature = "file")]
mod discover;
