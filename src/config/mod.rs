//! A running node from a YAML file.
//!
//! [`Settings`] are what the file says, typed and checked: every value is valid on its own and
//! with the others, and nothing was ignored. What is wrong with a file is a [`ConfigError`], with
//! the file, the line, the key and what was expected.
//!
//! # Examples
//!
//! ```
//! use std::path::Path;
//! use tower_gateway::config::Settings;
//!
//! let text = r#"
//! node: { listen: "127.0.0.1:8080" }
//! clusters:
//!   users: { discovery: { type: static, endpoints: [ { address: "127.0.0.1:9001" } ] } }
//! routes:
//!   - { match: { path_prefix: /users }, cluster: users, timeout: 10 }
//! "#;
//! let error = Settings::parse(text, Path::new("gateway.yaml"), &[]).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "gateway.yaml:6: routes[0].timeout: \
//!      expected a duration such as 250ms, 30s, 5m or 1h, found \"10\""
//! );
//!
//! let settings = Settings::parse(&text.replace("10 }", "10s }"), Path::new("gateway.yaml"), &[])?;
//! assert!(settings.clusters.contains_key("users"));
//! # Ok::<(), tower_gateway::config::ConfigError>(())
//! ```

mod error;
pub mod settings;

pub use error::ConfigError;
pub use settings::Settings;
