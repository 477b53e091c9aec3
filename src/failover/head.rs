//! What is kept of a request until it has its answer.
//!
//! Most requests never need it, so keeping is cheap: the head is copied as bytes into memory that
//! the next request of the thread uses again.

use std::thread::LocalKey;

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::Idempotent;
use crate::{
    attempt::{Ledger, Overdue},
    client::ClientAddress,
    spare::{Spare, Spared, Spares},
};

/// How much memory of a request a thread keeps.
const SPARE_BYTES: usize = 16 * 1024;

thread_local! {
    static SPARES: Spares<Box<Kept>> = const { Spares::none() };
}

/// The head of a request, and the endpoints of its attempts.
#[derive(Debug, Default)]
pub(super) struct Kept {
    method: Method,
    version: Version,
    scheme: Option<Scheme>,
    /// Authority, path and fields, one after the other.
    text: Vec<u8>,
    authority: Option<usize>,
    path: Option<usize>,
    fields: Vec<Field>,
    extensions: Kind,
    /// What the request came with, for the attempts after the first.
    pub(super) overdue: Option<Overdue>,
    pub(super) hash: Option<u64>,
    pub(super) ledger: Ledger,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: usize,
    value: usize,
    is_sensitive: bool,
}

/// The extensions of a request.
#[derive(Debug, Default)]
enum Kind {
    /// None but what the layers of this crate set: it takes no copy of the map.
    #[default]
    Plain,
    Client(ClientAddress),
    /// Others, too.
    All(Extensions),
}

impl Kept {
    /// Copies the head of this request, of whose extensions so many are set by each attempt anew.
    pub(super) fn keep<B>(&mut self, request: &Request<B>, renewed: usize) {
        self.method.clone_from(request.method());
        self.version = request.version();
        let uri = request.uri();
        self.scheme = uri.scheme().cloned();
        self.text.clear();
        self.authority = uri
            .authority()
            .map(|part| self.write(part.as_str().as_bytes()));
        self.path = uri
            .path_and_query()
            .map(|part| self.write(part.as_str().as_bytes()));
        self.fields.clear();
        for (name, value) in request.headers() {
            let field = Field {
                name: self.write(name.as_str().as_bytes()),
                value: self.write(value.as_bytes()),
                is_sensitive: value.is_sensitive(),
            };
            self.fields.push(field);
        }
        self.extensions = kind(request.extensions(), renewed);
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.text.extend_from_slice(bytes);
        bytes.len()
    }

    /// The request as it was, with this body. Of its extensions, those of this crate are left to
    /// the caller.
    pub(super) fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        let mut text = &*self.text;
        let mut next = |length: usize| {
            let (part, rest) = text.split_at(length);
            text = rest;
            part
        };
        request.method_mut().clone_from(&self.method);
        *request.version_mut() = self.version;
        let authority = self.authority.map(&mut next);
        let path = self.path.map(&mut next);
        *request.uri_mut() = uri(self.scheme.clone(), authority, path);
        let mut headers = HeaderMap::with_capacity(self.fields.len());
        for field in &self.fields {
            let name = HeaderName::from_bytes(next(field.name)).expect(COPIED);
            let mut value = HeaderValue::from_bytes(next(field.value)).expect(COPIED);
            value.set_sensitive(field.is_sensitive);
            headers.append(name, value);
        }
        *request.headers_mut() = headers;
        match &self.extensions {
            Kind::Plain => {}
            Kind::Client(client) => {
                request.extensions_mut().insert(*client);
            }
            Kind::All(extensions) => request.extensions_mut().clone_from(extensions),
        }
        request
    }
}

const COPIED: &str = "it was copied from a request";

fn uri(scheme: Option<Scheme>, authority: Option<&[u8]>, path: Option<&[u8]>) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = scheme;
    parts.authority = authority.map(|text| Authority::try_from(text).expect(COPIED));
    parts.path_and_query = path.map(|text| PathAndQuery::try_from(text).expect(COPIED));
    Uri::from_parts(parts).expect(COPIED)
}

fn kind(extensions: &Extensions, renewed: usize) -> Kind {
    let all = extensions.len();
    if all == renewed {
        return Kind::Plain;
    }
    let client = extensions.get::<ClientAddress>();
    let known = renewed + usize::from(client.is_some());
    // The marker is looked for only where something is left to be it.
    if all == known || all == known + usize::from(extensions.get::<Idempotent>().is_some()) {
        return client.map_or(Kind::Plain, |client| Kind::Client(*client));
    }
    Kind::All(extensions.clone())
}

/// What is kept, in memory that goes back to the thread.
pub(super) type Pooled = Spare<Kept>;

impl Spared for Kept {
    fn spares() -> &'static LocalKey<Spares<Box<Self>>> {
        &SPARES
    }

    fn end(&mut self) -> bool {
        self.extensions = Kind::Plain;
        self.overdue = None;
        // A client may still hold the request, and with it the ledger.
        self.text.capacity() <= SPARE_BYTES && self.ledger.reset()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::attempt::Terms;
    use std::net::{IpAddr, Ipv4Addr};

    #[derive(Clone, Debug, PartialEq)]
    struct OfTheApplication(u8);

    fn again(request: &Request<()>) -> Request<()> {
        let mut kept = Pooled::left();
        kept.keep(
            request,
            usize::from(request.extensions().get::<Terms>().is_some()),
        );
        kept.request(())
    }

    #[test]
    fn the_head_comes_back_as_it_was() {
        for uri in [
            "/",
            "/a/b?c=d%20e",
            "http://a.example:81/x",
            "http://a.example",
            "*",
        ] {
            let mut request = Request::builder()
                .method("PATCH")
                .version(Version::HTTP_2)
                .uri(uri)
                .header("host", "a")
                .header("x-many", "1")
                .header("other", "")
                .header("x-many", "2")
                .header("x-bytes", HeaderValue::from_bytes(b"\xe9").unwrap())
                .body(())
                .unwrap();
            let mut secret = HeaderValue::from_static("s");
            secret.set_sensitive(true);
            request.headers_mut().insert("authorization", secret);
            let found = again(&request);
            assert_eq!(found.method(), request.method());
            assert_eq!(found.version(), request.version());
            assert_eq!(found.uri(), request.uri());
            assert_eq!(found.headers(), request.headers());
            assert!(found.headers()["authorization"].is_sensitive());
        }
        let connect = Request::connect("a.example:443").body(()).unwrap();
        assert_eq!(again(&connect).uri(), connect.uri());
    }

    #[test]
    fn extensions_come_back_too() {
        let mut request = Request::new(());
        let client = ClientAddress::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(Terms::default());
        assert!(matches!(kind(request.extensions(), 1), Kind::Client(_)));
        assert_eq!(again(&request).extensions().get(), Some(&client));
        request.extensions_mut().insert(OfTheApplication(7));
        let found = again(&request);
        assert_eq!(found.extensions().get(), Some(&client));
        assert_eq!(found.extensions().get(), Some(&OfTheApplication(7)));
    }

    #[test]
    fn what_is_still_shared_is_not_used_again() {
        let first = Pooled::left();
        let held = first.ledger.clone();
        Terms {
            ledger: Some(held.clone()),
            ..Terms::default()
        }
        .chosen(&"a".into(), || 1);
        drop(first);
        assert!(Pooled::left().ledger.entry(0).is_none());
        assert!(held.entry(0).is_some());
    }
}
