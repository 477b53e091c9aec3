//! Which requests go where: conditions on the head of a request, and a table of them.
//!
//! A [`Match`] holds conditions on host, path, method and headers; a [`Table`] gives the target of
//! the first match that takes a request. Both are plain data, and asking them allocates nothing.
//! Of many routes, only those are looked at that ask for the host and for a prefix of the path, or
//! for none; hosts with a wildcard count as none.
//!
//! What is compared is what the client sent: paths are neither decoded nor normalised, so that the
//! endpoint sees the very path that was routed.
//!
//! # Examples
//!
//! ```
//! use http::{HeaderMap, Method};
//! use tower_gateway::route::{Match, Table};
//!
//! let table: Table<&str> = Table::from_iter([
//!     (Match::any().host("api.example.com".parse()?).path_prefix("/users".parse()?), "users"),
//!     (Match::any().method(Method::GET), "pages"),
//! ]);
//! let headers = HeaderMap::new();
//! let find = |host, path| table.find(&Method::GET, host, path, &headers).copied();
//! assert_eq!(find("API.example.com:8080", "/users/7"), Some("users"));
//! assert_eq!(find("api.example.com", "/usersandmore"), Some("pages"));
//! assert_eq!(table.find(&Method::POST, "www.example.com", "/", &headers), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod host;
mod index;
mod matching;
mod path;
mod resolve;
mod table;

pub use host::{HostPattern, InvalidHostPattern};
pub use matching::Match;
pub use path::{InvalidPathPrefix, PathPrefix};
pub use resolve::resolve;
pub use table::Table;
