//! Prefixes of paths, by segment.

use std::{fmt, str::FromStr};

/// The first segments of a path.
///
/// - `/api` takes `/api` and everything below it, `/api/` and `/api/x`, and not `/apix`.
/// - `/api/` takes what is below: `/api/` and `/api/x`, and not `/api`.
/// - `/` takes every path, the `*` of `OPTIONS *` included.
///
/// Case matters, and nothing is decoded: `/%61pi` is not `/api`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix {
    text: String,
}

/// A text that is not the beginning of a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a path: expected it as in a URL, with its first slash and without a query, such as /api"
)]
pub struct InvalidPathPrefix {
    text: String,
}

impl PathPrefix {
    /// Whether the path begins with these segments.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        if self.text == "/" {
            return true;
        }
        path.strip_prefix(self.text.as_str()).is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || self.text.ends_with('/')
        })
    }

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for PathPrefix {
    type Err = InvalidPathPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPathPrefix> {
        let is_inner = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*');
        if text.starts_with('/') && text.bytes().all(is_inner) {
            let text = text.to_owned();
            return Ok(Self { text });
        }
        Err(InvalidPathPrefix {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_segments() {
        for (prefix, path, takes) in [
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/x", true),
            ("/api", "/apix", false),
            ("/api", "/API", false),
            ("/api", "/%61pi", false),
            ("/api", "/", false),
            ("/api", "/x/api", false),
            ("/api/", "/api/", true),
            ("/api/", "/api/x", true),
            ("/api/", "/api", false),
            ("/api/", "/apix", false),
            ("/api/users", "/api/users/7", true),
            ("/api/users", "/api", false),
            ("/", "/", true),
            ("/", "/x", true),
            ("/", "*", true),
            ("/", "", true),
        ] {
            let parsed: PathPrefix = prefix.parse().unwrap();
            assert_eq!(parsed.matches(path), takes, "{prefix} {path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused_and_named() {
        for text in [
            "",
            "api",
            "*",
            "/api/*",
            "/a b",
            "/a?b",
            "/a#b",
            "/é",
            "http://a/",
        ] {
            let error = text.parse::<PathPrefix>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}`")), "{error}");
        }
    }
}
