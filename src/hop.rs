//! Hop-by-hop header fields (RFC 9110 section 7.6.1): what concerns one connection only is not
//! forwarded.
//!
//! [`strip`] is idempotent, so that the edge and the upstream client may both call it. The edge
//! must: a client could otherwise name fields in `Connection` that the gateway adds later.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes the hop-by-hop fields and all that `Connection` names.
///
/// Two things stay, in their plainest form, because the gateway supports them on both sides:
/// `Connection: upgrade` with its `Upgrade`, except to `h2c`, and `TE: trailers`.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let found = Found::scan(headers);
    if found == Found::default() {
        return;
    }
    let mut upgrade = None;
    if found.connection {
        upgrade = named(headers, "upgrade")
            .then(|| headers.get(UPGRADE).cloned())
            .flatten()
            .filter(may_upgrade);
        remove_named(headers);
        headers.remove(CONNECTION);
    }
    if found.te {
        let trailers = headers.get_all(TE).iter().any(lists_trailers);
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    if found.other {
        for name in [
            KEEP_ALIVE,
            PROXY_CONNECTION,
            HTTP2_SETTINGS,
            TRANSFER_ENCODING,
            UPGRADE,
        ] {
            headers.remove(name);
        }
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Whether `Connection` asks for an upgrade that [`strip`] let pass.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE) && named(headers, "upgrade")
}

/// Which groups of hop-by-hop fields a header map has; found in one pass, as most have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    connection: bool,
    te: bool,
    other: bool,
}

impl Found {
    fn scan(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "te" => found.te = true,
                "keep-alive" | "proxy-connection" | "http2-settings" | "transfer-encoding"
                | "upgrade" => found.other = true,
                _ => {}
            }
        }
        found
    }
}

fn options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

fn named(headers: &HeaderMap, option: &str) -> bool {
    options(headers).any(|name| name.eq_ignore_ascii_case(option.as_bytes()))
}

/// Removes the fields that `Connection` names, but for those that frame and address the message.
fn remove_named(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = options(headers)
        .filter(|name| {
            !name.eq_ignore_ascii_case(b"close") && !name.eq_ignore_ascii_case(b"keep-alive")
        })
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, CONNECTION, TE, UPGRADE].contains(name))
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// `h2c` would tunnel requests past every layer.
fn may_upgrade(protocol: &HeaderValue) -> bool {
    !protocol
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

fn lists_trailers(value: &HeaderValue) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|coding| {
        let coding = coding
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default();
        coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(fields: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let once = headers.clone();
        strip(&mut headers);
        assert_eq!(headers, once, "not idempotent");
        let mut left: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        left.sort();
        left
    }

    fn fields(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_the_rest_stays() {
        let left = stripped(&[
            ("accept", "*/*"),
            ("connection", "keep-alive, X-Token"),
            ("connection", "x-other"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("trailer", "digest"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-other", "1"),
            ("x-token", "1"),
        ]);
        assert_eq!(
            left,
            fields(&[("accept", "*/*"), ("host", "a"), ("trailer", "digest")])
        );
    }

    #[test]
    fn an_upgrade_stays_in_its_plainest_form() {
        let left = stripped(&[
            ("connection", "Keep-Alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
        ]);
        let expected = [
            ("connection", "upgrade"),
            ("sec-websocket-key", "k"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(left, fields(&expected));
    }

    #[test]
    fn h2c_is_never_tunnelled() {
        let left = stripped(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("upgrade", "websocket, h2c"),
        ]);
        assert_eq!(left, fields(&[]));
    }

    #[test]
    fn trailers_may_still_be_asked_for() {
        let left = stripped(&[("te", "deflate;q=0.5, Trailers"), ("connection", "TE")]);
        assert_eq!(left, fields(&[("te", "trailers")]));
    }

    #[test]
    fn fields_that_frame_or_address_the_message_cannot_be_named_away() {
        let left = stripped(&[
            ("connection", "host, content-length, close"),
            ("content-length", "5"),
            ("host", "a"),
        ]);
        assert_eq!(left, fields(&[("content-length", "5"), ("host", "a")]));
    }
}
