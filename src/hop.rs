//! Hop-by-hop header fields (RFC 9110 section 7.6.1): what concerns one connection only is not
//! forwarded.
//!
//! [`strip`] is idempotent, so that the edge and the upstream client may both call it. The edge
//! must: a client could otherwise name fields in `Connection` that the gateway adds later.

use std::ops::BitOr;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, Entry, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes the hop-by-hop fields and all that `Connection` names; returns what was there before.
///
/// Two things stay, in their plainest form, because the gateway supports them on both sides:
/// `Connection: upgrade` with its `Upgrade`, except to `h2c`, and `TE: trailers`.
pub(crate) fn strip(headers: &mut HeaderMap) -> Found {
    let found = Found::scan(headers);
    found.strip(headers);
    found
}

impl Found {
    /// Removes what [`strip`] does from the head that was looked through.
    pub(crate) fn strip(self, headers: &mut HeaderMap) {
        let mut upgrade = None;
        if self.any(Self::CONNECTION) && !drop_usual(headers) {
            upgrade = named(headers, "upgrade")
                .then(|| headers.get(UPGRADE).cloned())
                .flatten()
                .filter(may_upgrade);
            remove_named(headers);
            headers.remove(CONNECTION);
        }
        if self.any(Self::TE) {
            let trailers = headers.get_all(TE).iter().any(lists_trailers);
            headers.remove(TE);
            if trailers {
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        }
        if self.any(Self::TRANSFER_ENCODING | Self::UPGRADE | Self::RARE) {
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
}

/// Removes a `Connection` that names nothing but how long the connection lasts, as nearly all do;
/// returns whether it was one.
fn drop_usual(headers: &mut HeaderMap) -> bool {
    let Entry::Occupied(connection) = headers.entry(CONNECTION) else {
        return false;
    };
    let mut lines = connection.iter();
    let is_usual = lines.next().is_some_and(lasts_alone) && lines.next().is_none();
    if is_usual {
        connection.remove();
    }
    is_usual
}

/// Whether this value of `Connection` says how long the connection lasts, and no more.
pub(crate) fn lasts_alone(connection: &HeaderValue) -> bool {
    let option = connection.as_bytes();
    option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")
}

/// Whether `Connection` asks for an upgrade that [`strip`] let pass.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE) && named(headers, "upgrade")
}

/// Which of the fields that decide over the way of a message a head has; found in one pass, as most
/// have few of them, and each look by name would be dearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found(u16);

impl Found {
    pub(crate) const HOST: Self = Self(1);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 1);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 2);
    pub(crate) const EXPECT: Self = Self(1 << 3);
    pub(crate) const UPGRADE: Self = Self(1 << 4);
    pub(crate) const VIA: Self = Self(1 << 5);
    /// A name that begins as all do in which a client may say who it is, or which path it means.
    pub(crate) const CLAIM: Self = Self(1 << 6);
    const CONNECTION: Self = Self(1 << 7);
    const TE: Self = Self(1 << 8);
    /// Further hop-by-hop fields.
    const RARE: Self = Self(1 << 9);

    /// Looks through a head.
    pub(crate) fn scan(headers: &HeaderMap) -> Self {
        let found = headers.keys().map(|name| match name.as_str() {
            "host" => Self::HOST,
            "content-length" => Self::CONTENT_LENGTH,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "expect" => Self::EXPECT,
            "upgrade" => Self::UPGRADE,
            "via" => Self::VIA,
            "connection" => Self::CONNECTION,
            "te" => Self::TE,
            "keep-alive" | "proxy-connection" | "http2-settings" => Self::RARE,
            name if matches!(name.as_bytes()[0], b'x' | b'f') => Self::CLAIM,
            _ => Self::default(),
        });
        found.fold(Self::default(), |all, one| all | one)
    }

    /// Whether one of these is there.
    pub(crate) fn any(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }
}

impl BitOr for Found {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
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
    fn the_usual_connection_goes_alone() {
        for usual in ["Keep-Alive", "close"] {
            let left = stripped(&[("connection", usual), ("close", "1"), ("x-a", "1")]);
            assert_eq!(left, fields(&[("close", "1"), ("x-a", "1")]));
        }
        let left = stripped(&[("connection", "close"), ("connection", "x-a"), ("x-a", "1")]);
        assert_eq!(left, fields(&[]));
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
