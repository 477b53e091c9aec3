//! A running node from a YAML file.
//!
//! [`Settings`] are what the file says, typed and checked: every value is valid on its own and
//! with the others, and nothing was ignored. What is wrong with a file is a [`ConfigError`], with
//! the file, the line, the key and what was expected.

mod error;
pub mod settings;

pub use error::ConfigError;
pub use settings::Settings;
