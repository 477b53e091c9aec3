//! A cache over an origin that does as it is told, without sockets, in paused time.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, request::Parts};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use tower::{Layer as _, Service, ServiceExt as _};
use tower_gateway::cache::{Cache, CacheLayer, HttpCache, body::ResponseBody};

use super::BoxBody;

/// Thu, 01 Jan 2026 00:00:00 GMT
const START: u64 = 1_767_225_600;

type Answer = Arc<dyn Fn(usize, Parts) -> BoxFuture<'static, Response<BoxBody>> + Send + Sync>;

/// An origin that answers by a function of how many requests there were before, and of the head.
#[derive(Clone)]
pub(crate) struct Origin {
    answer: Answer,
    pub(crate) seen: Arc<Mutex<Vec<Parts>>>,
}

impl Origin {
    pub(crate) fn new<F>(answer: impl Fn(usize, Parts) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<BoxBody>> + Send + 'static,
    {
        Self {
            answer: Arc::new(move |number, head| Box::pin(answer(number, head))),
            seen: Arc::default(),
        }
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().len()
    }
}

impl Service<Request<Full<Bytes>>> for Origin {
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<BoxBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let (head, _) = request.into_parts();
        let mut seen = self.seen.lock();
        seen.push(head.clone());
        let answer = (self.answer)(seen.len() - 1, head);
        Box::pin(async move { Ok(answer.await) })
    }
}

pub(crate) type Site = Cache<Origin>;

/// The time of the test.
#[expect(clippy::disallowed_methods, reason = "outside the crate")]
pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// A layer whose wall clock runs with the time of the test.
pub(crate) fn layer(cache: &HttpCache) -> CacheLayer {
    let start = now();
    CacheLayer::new(cache.clone()).wall_clock(move || wall(start))
}

fn wall(start: tokio::time::Instant) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(START) + start.elapsed()
}

/// A cache of its own over an origin.
pub(crate) fn site(origin: &Origin) -> (HttpCache, Site) {
    let cache = HttpCache::new(64 << 20);
    let site = layer(&cache).layer(origin.clone());
    (cache, site)
}

/// An answer that was read whole.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Result<Bytes, std::io::Error>,
}

impl Read {
    /// What the cache says it did.
    pub(crate) fn did(&self) -> &str {
        let said = self.headers.get_all("cache-status").iter().next_back();
        said.map_or("", |said| said.to_str().unwrap())
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.did().starts_with("tower-gateway; hit")
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) fn request(method: Method, uri: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    if uri.starts_with('/') {
        request = request.header("host", "h");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// The head of an answer, and its body unread.
pub(crate) async fn send(
    site: &Site,
    request: Request<Full<Bytes>>,
) -> Response<ResponseBody<BoxBody>> {
    site.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn read(site: &Site, request: Request<Full<Bytes>>) -> Read {
    let (head, body) = send(site, request).await.into_parts();
    Read {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.map(|body| body.to_bytes()),
    }
}

pub(crate) async fn get(site: &Site, uri: &str, fields: &[(&str, &str)]) -> Read {
    read(site, request(Method::GET, uri, fields)).await
}

/// A response with these fields.
pub(crate) fn response(
    status: u16,
    fields: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<BoxBody> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(super::full(body)).unwrap()
}

pub(crate) async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
