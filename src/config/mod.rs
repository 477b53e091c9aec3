//! A running node from a YAML file.
//!
//! [`Settings`] are what the file says, typed and checked: every value is valid on its own and
//! with the others, and nothing was ignored. What is wrong with a file is a [`ConfigError`], with
//! the file, the line, the key and what was expected. A [`ConfigFile`] loads them with the files
//! that they name into a [`Plan`], which cannot fail any more, and a [`Node`] runs it: it serves,
//! follows the file, and drains.
//!
//! # Examples
//!
//! ```no_run
//! use tower_gateway::config::{ConfigFile, Node};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::start(ConfigFile::new("gateway.yaml")).await?;
//! println!("listening on {}", node.address());
//! node.run().await;
//! # Ok(())
//! # }
//! ```
//!
//! A policy of the application's own, named in the file:
//!
//! ```no_run
//! use std::sync::Arc;
//! use tower_gateway::{config::ConfigFile, pick::{Policy, Random}};
//!
//! let file = ConfigFile::new("gateway.yaml").policy("dice", |options| {
//!     match options.first() {
//!         Some(option) => Err(format!("expected no options, found {}", option.key)),
//!         None => Ok(Arc::new(Random::new()) as Arc<dyn Policy>),
//!     }
//! });
//! ```

mod alerts;
mod checks;
mod error;
mod etcds;
mod file;
mod gateway;
mod node;
mod plan;
mod route_layers;
mod running;
mod serve;
pub mod settings;
mod shared;
mod structure;
mod watch;

pub use error::{ConfigError, LoadError};
pub use file::ConfigFile;
pub use node::{Node, Signals, StartError};
pub use plan::Plan;
pub use settings::Settings;
