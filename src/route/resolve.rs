//! Dot segments: routes match a path as its reader will understand it.

use std::borrow::Cow;

/// The path without `.` and `..` segments, percent-encoded ones too (RFC 3986 section 5.2.4).
///
/// A request is forwarded with the path that it has; an endpoint that resolves dot segments must
/// not be reached by a route for another path.
#[must_use]
pub fn resolve(path: &str) -> Cow<'_, str> {
    // Nearly every path has neither a dot nor an escape behind a slash.
    let is_suspect = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'.' | b'%');
    if !path.as_bytes().windows(2).any(is_suspect) {
        return Cow::Borrowed(path);
    }
    let mut resolved: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = dots(segment.as_bytes());
        match dots {
            Some(1) => {}
            Some(2) => {
                resolved.pop();
            }
            _ => resolved.push(segment),
        }
        // What ends in dots names a folder.
        if matches!(dots, Some(1 | 2)) && segments.peek().is_none() {
            resolved.push("");
        }
    }
    Cow::Owned(format!("/{}", resolved.join("/")))
}

/// How many dots a segment consists of, if of nothing else.
fn dots(mut segment: &[u8]) -> Option<usize> {
    let mut dots = 0;
    while !segment.is_empty() {
        segment = match segment {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        dots += 1;
    }
    Some(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_are_resolved() {
        for (path, resolved) in [
            ("/a/../b", "/b"),
            ("/a/./b/../../c", "/c"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e", "/"),
            ("/a/b/.", "/a/b/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a//../b", "/a/b"),
        ] {
            assert_eq!(resolve(path), resolved, "{path}");
        }
    }

    #[test]
    fn other_paths_stay_as_they_are() {
        for path in [
            "/",
            "",
            "*",
            "/.a",
            "/a..",
            "/...",
            "/%2f",
            "/.well-known/x",
            "/a.b/%41",
        ] {
            assert_eq!(resolve(path), path);
        }
    }
}
