//! Who a request came from, told to the endpoint: pure functions over the head.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Version,
    header::{FORWARDED, HOST, VIA},
};

use crate::{client::ClientAddress, hop::Found};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The other end of a client's connection: made once, used for each of its requests. It may also
/// come as a request extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    address: IpAddr,
    /// The address as a field value.
    value: HeaderValue,
}

impl Peer {
    /// The address of the peer.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        // A v4 address mapped into v6 is the same client on a dual-stack listener.
        let address = address.to_canonical();
        let value = HeaderValue::try_from(address.to_string())
            .expect("the text of an IP address is a field value");
        Self { address, value }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        address.ip().into()
    }
}

/// How an edge tells endpoints of the client.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// How many proxies in front are believed.
    pub(super) trusted_hops: Arc<AtomicU32>,
    /// What the listener speaks.
    pub(super) scheme: HeaderValue,
}

impl Told {
    /// Makes the fields that tell of the client say what is true.
    ///
    /// Of `trusted_hops` proxies in front, each has appended the address of its own peer to
    /// `X-Forwarded-For`. With none, what the client says of itself is dropped. The address of the
    /// client becomes an extension of the request. `found` is what its head came with.
    pub(super) fn tell<B>(&self, request: &mut Request<B>, peer: Option<&Peer>, found: Found) {
        let via = match request.version() {
            Version::HTTP_2 => "2 tower-gateway",
            Version::HTTP_10 => "1.0 tower-gateway",
            _ => "1.1 tower-gateway",
        };
        let host = match request.headers().get(HOST) {
            Some(host) => Some(host.clone()),
            None => request.uri().authority().map(|authority| {
                HeaderValue::try_from(authority.as_str()).expect("an authority is a field value")
            }),
        };
        if let Some(client) = self.client(request.headers(), peer) {
            request.extensions_mut().insert(client);
        }
        let headers = request.headers_mut();
        headers.reserve(4);
        let is_trusted = self.trusted_hops.load(Relaxed) > 0;
        if found.any(Found::CLAIM) {
            let sent_forwarded = headers.contains_key(FORWARDED);
            remove_claims(headers, is_trusted);
            if sent_forwarded && let Some(peer) = peer {
                headers.append(FORWARDED, self.element(peer, host.as_ref()));
            }
        }
        // What a trusted proxy says of the first hop stands.
        let stands = is_trusted && found.any(Found::CLAIM);
        if let Some(peer) = peer {
            match stands {
                true => append(headers, X_FORWARDED_FOR, &peer.value),
                false => {
                    headers.insert(X_FORWARDED_FOR, peer.value.clone());
                }
            }
        }
        if !stands || !headers.contains_key(X_FORWARDED_PROTO) {
            headers.insert(X_FORWARDED_PROTO, self.scheme.clone());
        }
        if let Some(host) = host
            && (!stands || !headers.contains_key(X_FORWARDED_HOST))
        {
            headers.insert(X_FORWARDED_HOST, host);
        }
        match found.any(Found::VIA) {
            true => append(headers, VIA, &HeaderValue::from_static(via)),
            false => {
                headers.insert(VIA, HeaderValue::from_static(via));
            }
        }
    }

    /// The client: the peer of the farthest trusted hop. What is left of its address in
    /// `X-Forwarded-For` was said by nobody who is believed. Where the trusted hops have written
    /// less, or no address, the client is the farthest of those that are addresses.
    fn client(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Option<ClientAddress> {
        let peer = peer.map(|peer| ClientAddress::from(peer.address));
        let trusted_hops = self.trusted_hops.load(Relaxed) as usize;
        if trusted_hops == 0 {
            return peer;
        }
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let written = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let believed = written.take(trusted_hops);
        believed.map_while(address).last().or(peer)
    }

    /// An element of `Forwarded` (RFC 7239 section 4).
    fn element(&self, peer: &Peer, host: Option<&HeaderValue>) -> HeaderValue {
        let scheme = self.scheme.to_str().unwrap_or("http");
        let mut element = match peer.address {
            IpAddr::V4(address) => format!("for={address};proto={scheme}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\";proto={scheme}"),
        };
        if let Some(host) = host.and_then(|host| host.to_str().ok()) {
            element.push_str(";host=\"");
            element.push_str(host);
            element.push('"');
        }
        HeaderValue::try_from(element).expect("an address and a checked host are visible ASCII")
    }
}

/// An address in a list; some proxies write a port to it.
fn address(element: &[u8]) -> Option<ClientAddress> {
    let text = str::from_utf8(element).ok()?.trim();
    let address: Option<IpAddr> = text.parse().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(ClientAddress::from)
}

/// Removes what a client may not say: of itself, unless it is trusted, and of the path, ever.
fn remove_claims(headers: &mut HeaderMap, is_trusted: bool) {
    let is_claim = |name: &HeaderName| {
        let name = name.as_str();
        if name.contains('_') && matches!(name.as_bytes()[0], b'x' | b'f') {
            // CGI and its heirs read both spellings as one variable.
            let dashed = name.replace('_', "-");
            return dashed.starts_with("x-forwarded-")
                || matches!(&*dashed, "x-original-url" | "x-rewrite-url" | "x-real-ip");
        }
        match name.as_bytes()[0] {
            b'x' => {
                matches!(name, "x-original-url" | "x-rewrite-url")
                    || !is_trusted && (name.starts_with("x-forwarded-") || name == "x-real-ip")
            }
            b'f' => !is_trusted && name == "forwarded",
            _ => false,
        }
    };
    // Nearly always there is none, and the list stays empty.
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for claim in claims {
        headers.remove(claim);
    }
}

/// Appends to a list field, on one line: some readers take the first line alone. Lines that say
/// nothing become no elements of it (RFC 9110 section 5.6.1.1).
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let lines = headers.get_all(&name).iter().chain([value]);
    let lines = lines.map(HeaderValue::as_bytes);
    let lines: Vec<_> = lines.filter(|line| !line.trim_ascii().is_empty()).collect();
    let list = HeaderValue::try_from(lines.join(&b", "[..]));
    headers.insert(name, list.expect("field values joined by commas are one"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(trusted_hops: u32, headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut request = Request::builder().header("host", "api.example.com");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        let peer = Peer::from("::ffff:192.0.2.1".parse::<IpAddr>().unwrap());
        let scheme = HeaderValue::from_static("http");
        let told = Told {
            trusted_hops: Arc::new(AtomicU32::new(trusted_hops)),
            scheme,
        };
        let found = Found::scan(request.headers());
        told.tell(&mut request, Some(&peer), found);
        request.into_parts().0.headers
    }

    #[test]
    fn a_client_says_nothing_of_itself() {
        let headers = told(
            0,
            &[
                ("forwarded", "for=6.6.6.6"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-proto", "https"),
                ("x-original-url", "/admin"),
                ("x-real-ip", "6.6.6.6"),
                ("x_forwarded_for", "6.6.6.6"),
                ("x-real_ip", "6.6.6.6"),
                ("x_original_url", "/admin"),
                ("x-request-id", "7"),
                ("x-rewrite-url", "/admin"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
        assert_eq!(headers["x-forwarded-host"], "api.example.com");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-request-id"], "7");
        assert_eq!(headers["via"], "1.1 tower-gateway");
        assert_eq!(
            headers["forwarded"],
            "for=192.0.2.1;proto=http;host=\"api.example.com\""
        );
        for gone in [
            "x-forwarded-port",
            "x-original-url",
            "x-real-ip",
            "x-rewrite-url",
            "x_forwarded_for",
            "x-real_ip",
            "x_original_url",
        ] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn the_client_is_the_peer_of_the_farthest_trusted_hop() {
        let list = [
            "6.6.6.6, 203.0.113.9",
            " 198.51.100.7:4711,[2001:db8::1]:80 ",
        ];
        for (trusted_hops, list, expected) in [
            (0, &list[..], "192.0.2.1"),
            (1, &list, "2001:db8::1"),
            (2, &list, "198.51.100.7"),
            (3, &list, "203.0.113.9"),
            (4, &list, "6.6.6.6"),
            (9, &list, "6.6.6.6"),
            (1, &[], "192.0.2.1"),
            (1, &["unknown"], "192.0.2.1"),
            (2, &["6.6.6.6, unknown, ::ffff:203.0.113.9"], "203.0.113.9"),
            (3, &["6.6.6.6, unknown, 203.0.113.9"], "203.0.113.9"),
        ] {
            let mut request = Request::builder().header("host", "a");
            for line in list {
                request = request.header(X_FORWARDED_FOR, *line);
            }
            let mut request = request.body(()).unwrap();
            let scheme = HeaderValue::from_static("http");
            let told = Told {
                trusted_hops: Arc::new(AtomicU32::new(trusted_hops)),
                scheme,
            };
            let peer = Peer::from("::ffff:192.0.2.1".parse::<IpAddr>().unwrap());
            let found = Found::scan(request.headers());
            told.tell(&mut request, Some(&peer), found);
            let client: &ClientAddress = request.extensions().get().unwrap();
            assert_eq!(client.ip().to_string(), expected, "{trusted_hops} {list:?}");
        }
    }

    #[test]
    fn without_a_peer_only_a_trusted_hop_says_who_the_client_is() {
        let told = |trusted_hops| {
            let request = Request::builder().header(X_FORWARDED_FOR, "203.0.113.9");
            let mut request = request.body(()).unwrap();
            let scheme = HeaderValue::from_static("http");
            let told = Told {
                trusted_hops: Arc::new(AtomicU32::new(trusted_hops)),
                scheme,
            };
            let found = Found::scan(request.headers());
            told.tell(&mut request, None, found);
            request.extensions().get::<ClientAddress>().copied()
        };
        assert_eq!(told(0), None);
        let client = told(1).unwrap();
        assert_eq!(client.ip().to_string(), "203.0.113.9");
    }

    #[test]
    fn forwarded_is_not_written_when_nobody_used_it() {
        assert!(!told(0, &[]).contains_key("forwarded"));
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_appended_to() {
        let headers = told(
            1,
            &[
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-for", "203.0.113.10"),
                ("x-forwarded-host", "shop.example.com"),
                ("x-forwarded-proto", "https"),
                ("x-rewrite-url", "/admin"),
                ("via", "1.1 edge"),
            ],
        );
        assert_eq!(
            headers["x-forwarded-for"],
            "203.0.113.9, 203.0.113.10, 192.0.2.1"
        );
        assert_eq!(headers["x-forwarded-host"], "shop.example.com");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["via"], "1.1 edge, 1.1 tower-gateway");
        assert!(!headers.contains_key("x-rewrite-url"));
    }

    #[test]
    fn a_line_that_says_nothing_is_no_hop() {
        let headers = told(1, &[("x-forwarded-for", ""), ("x-forwarded-for", " ")]);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
    }
}
