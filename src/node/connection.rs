//! One connection of a client, served to its end or until it is told to stop.

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use tower::Service;

use super::{
    body::ResponseBody,
    socket::{Blocked, Socket, Spoken},
    stall::Stalls,
};
use crate::{error::BoxError, refusal::Refusals};

/// A response body that can be served.
pub trait ServeBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static> ServeBody for B {}

/// What the server and a connection know of each other. The server tells a connection to stop by
/// a signal and a wake-up, so that a connection that goes on pays one load for it.
#[derive(Debug, Default)]
pub(super) struct Link {
    signal: AtomicU8,
    /// Whether it was accepted by a server that was leaving already.
    came_late: AtomicBool,
    waker: AtomicWaker,
    in_flight: AtomicU32,
    is_http2: AtomicBool,
    /// Whether it has left HTTP, for a tunnel.
    has_switched: AtomicBool,
    /// The sweep in which the last request ended.
    idle_since: AtomicU32,
    pub(super) blocked: Blocked,
    pub(super) stalls: Stalls,
}

/// Say with each HTTP/1.1 response that it is the last one.
const LEAVE: u8 = 1;
/// Finish what is in flight and close. Who came late and has said nothing yet is about to ask.
const FINISH: u8 = 2;
/// Finish what is in flight and close, whoever it is.
const END: u8 = 3;
/// Close now.
const CLOSE: u8 = 4;

impl Link {
    pub(super) fn new(sweep: u32) -> Self {
        let link = Self::default();
        link.idle_since.store(sweep, Relaxed);
        link
    }

    /// Tells the connection that the server is leaving. HTTP/2 can say so at any time without a
    /// loss. A client of HTTP/1.1 may be sending at this moment: it is told with its next response.
    pub(super) fn leave(&self) {
        self.signal.fetch_max(LEAVE, Relaxed);
        if self.is_http2.load(Relaxed) {
            self.finish();
        }
    }

    /// Tells a new connection that the server is leaving.
    pub(super) fn come_late(&self) {
        self.came_late.store(true, Relaxed);
        self.leave();
    }

    fn is_leaving(&self) -> bool {
        self.signal.load(Relaxed) >= LEAVE
    }

    /// Tells the connection to finish what is in flight and close. One that came late may ask yet.
    pub(super) fn finish(&self) {
        self.signal.fetch_max(FINISH, Relaxed);
        self.waker.wake();
    }

    /// Tells the connection to finish what is in flight and close, also when it has said nothing.
    pub(super) fn end(&self) {
        self.signal.fetch_max(END, Relaxed);
        self.waker.wake();
    }

    /// Tells the connection to close now.
    pub(super) fn close(&self) {
        self.signal.store(CLOSE, Relaxed);
        self.waker.wake();
    }

    /// Ends a connection on which there was no request for `sweeps`: first politely; one that is
    /// still in the middle of a request head then, for good. So ends one whose client took no byte
    /// for so long, of all it was sent or of one stream.
    pub(super) fn expire(&self, sweep: u32, sweeps: u32) {
        if self.blocked.sweeps(sweep) >= sweeps || self.stalls.any(sweep, sweeps) {
            self.close();
            return;
        }
        let idle = sweep.wrapping_sub(self.idle_since.load(Relaxed));
        if self.in_flight.load(Relaxed) > 0 || idle < sweeps {
            return;
        }
        if self.signal.load(Relaxed) < FINISH {
            self.finish();
        } else if idle > sweeps {
            self.close();
        }
    }

    /// Whether bytes that are written may be an answer of hyper's own.
    pub(super) fn is_unasked(&self) -> bool {
        self.in_flight.load(Relaxed) == 0 && !self.has_switched.load(Relaxed)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
}

/// A request in flight, to the end of its response body.
pub(super) struct InFlight {
    link: Arc<Link>,
    sweeps: Arc<AtomicU32>,
}

impl InFlight {
    fn new(link: &Arc<Link>, sweeps: &Arc<AtomicU32>) -> Self {
        link.in_flight.fetch_add(1, Relaxed);
        Self {
            link: Arc::clone(link),
            sweeps: Arc::clone(sweeps),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // The stamp first: who sees no request in flight must see when the last one ended. Both
        // are read by a sweep that comes seconds later, so no ordering is needed.
        self.link
            .idle_since
            .store(self.sweeps.load(Relaxed), Relaxed);
        self.link.in_flight.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").finish_non_exhaustive()
    }
}

/// What a response body over HTTP/2 has handed to hyper. As long as the client grants the stream no
/// window, hyper keeps it and does not poll the body again.
pub(super) struct Handed {
    link: Arc<Link>,
    sweeps: Arc<AtomicU32>,
    since: Option<u32>,
}

impl Handed {
    fn new(InFlight { link, sweeps }: &InFlight) -> Self {
        let mut handed = Self {
            link: Arc::clone(link),
            sweeps: Arc::clone(sweeps),
            since: None,
        };
        // Hyper may want a window before it asks for the first frame.
        handed.out();
        handed
    }

    /// A frame is handed out.
    pub(super) fn out(&mut self) {
        let sweep = self.sweeps.load(Relaxed);
        self.link.stalls.begin(sweep);
        self.since = Some(sweep);
    }

    /// Hyper asks for more: the client has taken the frame.
    pub(super) fn taken(&mut self) {
        if let Some(sweep) = self.since.take() {
            self.link.stalls.end(sweep);
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.taken();
    }
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").finish_non_exhaustive()
    }
}

/// The service of one connection, as hyper wants it.
pub(super) struct Counted<S> {
    /// One connection calls it at a time.
    service: RefCell<S>,
    link: Arc<Link>,
    sweeps: Arc<AtomicU32>,
    refusals: Arc<Refusals>,
}

impl<S> Counted<S> {
    pub(super) fn new(
        service: S,
        link: Arc<Link>,
        sweeps: Arc<AtomicU32>,
        refusals: Arc<Refusals>,
    ) -> Self {
        Self {
            service: RefCell::new(service),
            link,
            sweeps,
            refusals,
        }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: ServeBody,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = CountedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        if is_http2 {
            self.link.is_http2.store(true, Relaxed);
        }
        CountedFuture {
            is_http2,
            // A service that must be polled ready first has to be behind something that does it.
            inner: self.service.borrow_mut().call(request),
            in_flight: Some(InFlight::new(&self.link, &self.sweeps)),
            refusals: Arc::clone(&self.refusals),
        }
    }
}

pin_project! {
    pub(super) struct CountedFuture<F> {
        #[pin]
        inner: F,
        in_flight: Option<InFlight>,
        refusals: Arc<Refusals>,
        is_http2: bool,
    }
}

impl<F, B> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body,
{
    type Output = Result<Response<ResponseBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.inner.poll(cx).map_ok(|mut response| {
            this.refusals.observe(&response);
            let in_flight = this.in_flight.take();
            if response.status() == StatusCode::SWITCHING_PROTOCOLS
                && let Some(InFlight { link, .. }) = &in_flight
            {
                link.has_switched.store(true, Relaxed);
            }
            if in_flight
                .as_ref()
                .is_some_and(|counted| counted.link.is_leaving())
                && !*this.is_http2
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            let over_http2 = in_flight.as_ref().filter(|_| *this.is_http2);
            let handed = over_http2.map(Handed::new);
            response.map(|body| ResponseBody::new(body, in_flight, handed))
        })
    }
}

/// How often a client of HTTP/2 is asked whether it is still there, and for how long it may take
/// to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How both versions are spoken.
#[derive(Debug)]
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    pub(super) fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // The sweep ends who dawdles, without a timer for each head.
            .header_read_timeout(None);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        Self { http1, http2 }
    }
}

pin_project! {
    /// Serves a connection; ends when the client or the server ends it.
    pub(super) struct Connection<S, B>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        B: ServeBody,
    {
        #[pin]
        served: Served<S, B>,
        link: Arc<Link>,
        seen: u8,
        registered: bool,
    }
}

pin_project! {
    #[project = ServedProj]
    enum Served<S, B>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        B: ServeBody,
    {
        // The first bytes tell what is spoken.
        Unknown { begun: Option<Begun<S>> },
        Http1 { #[pin] inner: http1::UpgradeableConnection<TokioIo<Socket>, Counted<S>> },
        // Boxed: it is larger, and there are fewer.
        Http2 { inner: Pin<Box<http2::Connection<TokioIo<Socket>, Counted<S>, TokioExecutor>>> },
    }
}

/// What a connection is made of, once it is known what is spoken.
struct Begun<S> {
    socket: Socket,
    service: Counted<S>,
    protocols: Arc<Protocols>,
}

impl<S, B> Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: ServeBody,
{
    pub(super) fn new(
        protocols: &Arc<Protocols>,
        stream: TcpStream,
        slot: OwnedSemaphorePermit,
        service: Counted<S>,
    ) -> Self {
        let link = Arc::clone(&service.link);
        let sweeps = Arc::clone(&service.sweeps);
        let begun = Begun {
            socket: Socket::new(stream, slot, Arc::clone(&link), sweeps),
            service,
            protocols: Arc::clone(protocols),
        };
        Self {
            served: Served::Unknown { begun: Some(begun) },
            link,
            seen: 0,
            registered: false,
        }
    }
}

impl<S, B> Served<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: ServeBody,
{
    fn begin(begun: Begun<S>, spoken: Spoken) -> Self {
        let Begun {
            socket,
            service,
            protocols,
        } = begun;
        let socket = TokioIo::new(socket);
        match spoken {
            Spoken::Http1 => {
                let inner = protocols.http1.serve_connection(socket, service);
                let inner = inner.with_upgrades();
                Self::Http1 { inner }
            }
            Spoken::Http2 => {
                let inner = Box::pin(protocols.http2.serve_connection(socket, service));
                Self::Http2 { inner }
            }
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            match self.as_mut().project() {
                ServedProj::Unknown { begun } => {
                    let unknown = begun.as_mut().expect("it is taken when it is known");
                    let spoken = ready!(unknown.socket.poll_spoken(cx))?;
                    let begun = begun.take().expect("it was there just now");
                    self.set(Self::begin(begun, spoken));
                }
                ServedProj::Http1 { inner } => return inner.poll(cx).map_err(Into::into),
                ServedProj::Http2 { inner } => return inner.as_mut().poll(cx).map_err(Into::into),
            }
        }
    }
}

impl<S, B> Future for Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: ServeBody,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            // The waker of a task does not change, but a signal takes it: from the first one on
            // it is left again each time, and the signal looked at once more behind it.
            if *this.seen > 0 || !std::mem::replace(this.registered, true) {
                this.link.waker.register(cx.waker());
            }
            let signal = this.link.signal.load(Relaxed);
            if signal == *this.seen {
                break;
            }
            *this.seen = signal;
            match (signal, this.served.as_mut().project()) {
                (LEAVE, _) => {}
                (FINISH, ServedProj::Unknown { .. }) if this.link.came_late.load(Relaxed) => {}
                (FINISH | END, ServedProj::Http1 { inner }) => inner.graceful_shutdown(),
                (FINISH | END, ServedProj::Http2 { inner }) => inner.as_mut().graceful_shutdown(),
                // It has not said enough to be asked anything.
                _ => return Poll::Ready(Ok(())),
            }
        }
        this.served.poll(cx)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use http_body_util::Full;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::Semaphore,
    };

    /// What a client hears whose connection is told so before its request is there.
    async fn heard(tell: impl Fn(&Link)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let link = Arc::new(Link::new(0));
        tell(&link);
        let service = tower::service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let service = Counted::new(service, link, Arc::default(), Arc::default());
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let protocols = Arc::new(Protocols::new());
        let connection = Connection::new(&protocols, stream, slot, service);
        let connection = tokio::spawn(connection);
        tokio::task::yield_now().await;
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        // A connection that was closed may be reset.
        client.read_to_string(&mut text).await.ok();
        connection.await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn who_came_while_the_server_left_may_ask_yet() {
        let text = heard(|link| {
            link.come_late();
            link.finish();
        })
        .await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("connection: close\r\n"), "{text}");

        let silent = heard(|link| {
            link.leave();
            link.finish();
        });
        assert_eq!(silent.await, "");
        let too_late = heard(|link| {
            link.come_late();
            link.finish();
            link.end();
        });
        assert_eq!(too_late.await, "");
    }
}
