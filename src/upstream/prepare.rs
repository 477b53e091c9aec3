//! What a request looks like on the wire to an endpoint.

use http::{
    HeaderMap, HeaderValue, Request, Uri, Version,
    header::{CONNECTION, COOKIE, EXPECT, HOST, UPGRADE},
    uri::{Authority, PathAndQuery},
};
use hyper::upgrade::OnUpgrade;

use super::tunnel::Offer;
use crate::{
    hop::{self, Found},
    member::Chosen,
};

/// Makes an HTTP/1.1 request, and takes the client's side of an upgrade out of it.
pub(super) fn http1<B>(request: &mut Request<B>, chosen: &Chosen) -> Option<Offer> {
    let (offer, found) = strip(request, chosen);
    if request.version() == Version::HTTP_2 {
        join_cookies(request.headers_mut());
    }
    *request.version_mut() = Version::HTTP_11;
    if !found.any(Found::HOST) {
        let authority = authority(chosen, None);
        let host =
            HeaderValue::try_from(authority.as_str()).expect("an authority is a header value");
        request.headers_mut().insert(HOST, host);
    }
    offer
}

/// Makes an HTTP/2 request with the authority that the client asked for.
pub(super) fn http2<B>(request: &mut Request<B>, chosen: &Chosen) {
    // HTTP/2 knows no upgrade: the request goes on without.
    if strip(request, chosen).0.is_some() {
        drop_upgrade(request);
    }
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = Some(authority(chosen, host));
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    *request.uri_mut() =
        Uri::from_parts(parts).expect("balance set the scheme; authority and path are here");
}

/// Leaves what is of this hop alone; returns what the head had.
fn strip<B>(request: &mut Request<B>, chosen: &Chosen) -> (Option<Offer>, Found) {
    let found = hop::strip(request.headers_mut());
    if found.any(Found::EXPECT) {
        // The gateway's own server answers it, when the body is first wanted.
        request.headers_mut().remove(EXPECT);
    }
    if !found.any(Found::UPGRADE) || !hop::is_upgrade(request.headers()) {
        return (None, found);
    }
    let client = request.extensions_mut().remove::<OnUpgrade>();
    if client.is_none() {
        // Nothing to tunnel to: the client's connection cannot leave HTTP.
        drop_upgrade(request);
    }
    let offer = client.map(|client| Offer::new(client, chosen.member()));
    (offer, found)
}

fn drop_upgrade<B>(request: &mut Request<B>) {
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(UPGRADE);
}

/// Clients of HTTP/2 may cut the cookies into crumbs (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::try_from(joined).expect("field values joined by `; ` are one");
    headers.insert(COOKIE, joined);
}

/// What the client asked for: the authority that its URI or its `Host` named.
fn authority(chosen: &Chosen, host: Option<HeaderValue>) -> Authority {
    if let Some(authority) = chosen.authority() {
        return authority.clone();
    }
    host.and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .unwrap_or_else(|| chosen.member().endpoint().address.authority().clone())
}
