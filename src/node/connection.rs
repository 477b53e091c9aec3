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
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, DATE},
};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use tower::Service;

use super::{
    body::ResponseBody,
    socket::{Blocked, Socket, Spoken},
    stall::Stalls,
    today,
};
use crate::{error::BoxError, refusal::Refusals, time::Turn};

/// A response body that can be served.
pub trait ServeBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static> ServeBody for B {}

/// What the server and a connection know of each other. The server tells a connection to stop by
/// a signal and a wake-up, so that a connection that goes on pays one load for it.
#[derive(Debug, Default)]
pub(super) struct Link {
    signal: AtomicU8,
    /// That of the connection's task, which does not change.
    waker: Mutex<Option<Waker>>,
    in_flight: AtomicU32,
    is_http2: AtomicBool,
    /// Whether it was accepted by a server that was leaving already.
    came_late: AtomicBool,
    /// Whether it has left HTTP, for a tunnel.
    has_switched: AtomicBool,
    quiet: AtomicU8,
    /// Whether the last request had a body, of which not all may have been read.
    had_body: AtomicBool,
    /// Whether the connection counts on a look to wake it.
    wants_nudge: AtomicBool,
    /// Whether nobody looks at it any more.
    is_unwatched: AtomicBool,
    /// The sweep in which the last request ended.
    idle_since: AtomicU32,
    pub(super) blocked: Blocked,
    pub(super) stalls: Stalls,
    /// How many sweeps there were, of all connections.
    sweeps: Arc<AtomicU32>,
    /// What was refused, of all connections.
    refusals: Arc<Refusals>,
}

/// Go on.
const NOTHING: u8 = 0;
/// Keep nothing but the socket while there is nothing to do.
const REST: u8 = 1;
/// Say with each HTTP/1.1 response that it is the last one.
const LEAVE: u8 = 2;
/// Finish what is in flight and close. Who came late and has said nothing yet is about to ask.
const FINISH: u8 = 3;
/// Finish what is in flight and close, whoever it is.
const END: u8 = 4;
/// Close now.
const CLOSE: u8 = 5;

/// There was a request since the last look at the connection.
const BUSY: u8 = 0;
/// There was none.
const QUIET: u8 = 1;
/// There was none, and the connection was told to rest.
const RESTING: u8 = 2;

impl Link {
    pub(super) fn new(sweeps: Arc<AtomicU32>, refusals: Arc<Refusals>) -> Self {
        Self {
            idle_since: AtomicU32::new(sweeps.load(Relaxed)),
            sweeps,
            refusals,
            ..Self::default()
        }
    }

    /// The sweep at this time.
    pub(super) fn sweep(&self) -> u32 {
        self.sweeps.load(Relaxed)
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
        self.wake();
    }

    /// Tells the connection to finish what is in flight and close, also when it has said nothing.
    pub(super) fn end(&self) {
        self.signal.fetch_max(END, Relaxed);
        self.wake();
    }

    /// Tells the connection to close now.
    pub(super) fn close(&self) {
        self.signal.store(CLOSE, Relaxed);
        self.wake();
    }

    /// Wakes a connection that counts on it, and tells one to rest when there was no request since
    /// the look before, once until the next request.
    pub(super) fn look(&self) {
        if self.wants_nudge.swap(false, Relaxed) {
            self.wake();
        }
        match self.quiet.load(Relaxed) {
            BUSY => self.quiet.store(QUIET, Relaxed),
            QUIET if self.in_flight.load(Relaxed) == 0 => {
                self.quiet.store(RESTING, Relaxed);
                self.signal.fetch_max(REST, Relaxed);
                self.wake();
            }
            _ => {}
        }
    }

    /// Nobody looks at the connection from now on.
    pub(super) fn unwatch(&self) {
        self.is_unwatched.store(true, Relaxed);
        self.wake();
    }

    /// The signal was stored before. Either it finds the waker, or who leaves the waker behind it
    /// finds the signal.
    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }

    /// The connection was told to rest, and has heard it.
    fn rested(&self) {
        // A further signal that came meanwhile stands.
        let rested = self
            .signal
            .compare_exchange(REST, NOTHING, Relaxed, Relaxed);
        rested.ok();
    }

    /// Whether nothing is under way, as far as HTTP/1.1 goes: what was answered is also written.
    fn is_still(&self) -> bool {
        self.in_flight.load(Relaxed) == 0
            && !self.had_body.load(Relaxed)
            && !self.blocked.is_blocked()
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
}

impl InFlight {
    fn new(link: &Arc<Link>) -> Self {
        link.in_flight.fetch_add(1, Relaxed);
        Self {
            link: Arc::clone(link),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // The stamp first: who sees no request in flight must see when the last one ended. Both
        // are read by a sweep that comes seconds later, so no ordering is needed.
        self.link.idle_since.store(self.link.sweep(), Relaxed);
        self.link.quiet.store(BUSY, Relaxed);
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
    since: Option<u32>,
}

impl Handed {
    fn new(InFlight { link }: &InFlight) -> Self {
        let mut handed = Self {
            link: Arc::clone(link),
            since: None,
        };
        // Hyper may want a window before it asks for the first frame.
        handed.out();
        handed
    }

    /// A frame is handed out.
    pub(super) fn out(&mut self) {
        let sweep = self.link.sweep();
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
}

impl<S> Counted<S> {
    pub(super) fn new(service: S, link: Arc<Link>) -> Self {
        Self {
            service: RefCell::new(service),
            link,
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
        let has_body = !request.body().is_end_stream();
        self.link.had_body.store(has_body, Relaxed);
        CountedFuture {
            is_http2,
            // A service that must be polled ready first has to be behind something that does it.
            inner: self.service.borrow_mut().call(request),
            in_flight: Some(InFlight::new(&self.link)),
        }
    }
}

/// The service of a connection of HTTP/2. Its futures are boxed: hyper moves each several times on
/// its way into a task.
pub(super) struct Streams<S>(Counted<S>);

impl<S, B> hyper::service::Service<Request<Incoming>> for Streams<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: ServeBody,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = Pin<Box<CountedFuture<S::Future>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}

pin_project! {
    pub(super) struct CountedFuture<F> {
        #[pin]
        inner: F,
        in_flight: Option<InFlight>,
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
        let mut response = match ready!(this.inner.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let in_flight = this.in_flight.take().expect("polled after it was ready");
        let link = &in_flight.link;
        link.refusals.observe(&response);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            link.has_switched.store(true, Relaxed);
        } else if link.is_leaving() && !*this.is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if *this.is_http2 && !response.headers().contains_key(DATE) {
            response.headers_mut().insert(DATE, today::now());
        }
        let handed = (*this.is_http2).then(|| Handed::new(&in_flight));
        Poll::Ready(Ok(
            response.map(|body| ResponseBody::new(body, in_flight, handed))
        ))
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
            // Hyper makes room for another field to set it, also where it is set already, and
            // maps are full more often than not.
            .auto_date_header(false)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        Self { http1, http2 }
    }
}

/// Serves a connection; ends when the client or the server ends it.
pub(super) struct Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: ServeBody,
{
    served: Served<S, B>,
    link: Arc<Link>,
    protocols: Arc<Protocols>,
    seen: u8,
    registered: bool,
}

// What is pinned is boxed.
impl<S, B> Unpin for Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: ServeBody,
{
}

type Http1<S> = http1::UpgradeableConnection<TokioIo<Socket>, Counted<S>>;
type Http2<S> = http2::Connection<TokioIo<Socket>, Streams<S>, TokioExecutor>;

/// What is spoken. Boxed, so that a connection that is not is small.
enum Served<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: ServeBody,
{
    /// The first bytes tell what is spoken.
    Unknown(Begun<S>),
    /// HTTP/1.1 goes on when the client says more.
    Resting(Begun<S>),
    Http1(Box<Http1<S>>),
    Http2(Pin<Box<Http2<S>>>),
    /// It is going over from one to another.
    Moving,
}

/// What a connection is made of while it is not spoken on.
struct Begun<S> {
    socket: Socket,
    service: Counted<S>,
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
        let begun = Begun {
            socket: Socket::new(stream, slot, Arc::clone(&link)),
            service,
        };
        Self {
            served: Served::Unknown(begun),
            link,
            protocols: Arc::clone(protocols),
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
    fn begin(begun: Begun<S>, spoken: Spoken, protocols: &Protocols) -> Self {
        let Begun { socket, service } = begun;
        let socket = TokioIo::new(socket);
        match spoken {
            Spoken::Http1 => {
                let inner = protocols.http1.serve_connection(socket, service);
                Self::Http1(Box::new(inner.with_upgrades()))
            }
            Spoken::Http2 => {
                let inner = protocols.http2.serve_connection(socket, Streams(service));
                Self::Http2(Box::pin(inner))
            }
        }
    }

    /// Goes on from what a connection that was not spoken on is made of.
    fn go_on(&mut self, spoken: Spoken, protocols: &Protocols) {
        *self = match std::mem::replace(self, Self::Moving) {
            Self::Unknown(begun) | Self::Resting(begun) => Self::begin(begun, spoken, protocols),
            spoken_on => spoken_on,
        };
    }

    /// Gives back all that HTTP/1.1 keeps, between two requests.
    fn rest(&mut self, link: &Link) {
        if !link.is_still() {
            return;
        }
        *self = match std::mem::replace(self, Self::Moving) {
            Self::Http1(inner) => {
                let parts = inner
                    .into_parts()
                    .expect("a connection that left HTTP has ended");
                let mut socket = parts.io.into_inner();
                socket.unread(parts.read_buf);
                Self::Resting(Begun {
                    socket,
                    service: parts.service,
                })
            }
            other => other,
        };
    }

    fn poll(&mut self, protocols: &Protocols, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            let spoken = match self {
                Self::Unknown(begun) => ready!(begun.socket.poll_spoken(cx))?,
                Self::Resting(begun) => {
                    ready!(begun.socket.poll_more(cx))?;
                    Spoken::Http1
                }
                Self::Http1(inner) => return Pin::new(&mut **inner).poll(cx).map_err(Into::into),
                Self::Http2(inner) => return inner.as_mut().poll(cx).map_err(Into::into),
                Self::Moving => unreachable!("it went over in one go"),
            };
            self.go_on(spoken, protocols);
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
        let this = self.get_mut();
        if !std::mem::replace(&mut this.registered, true) {
            *this.link.waker.lock() = Some(cx.waker().clone());
        }
        let signal = this.link.signal.load(Relaxed);
        if signal != this.seen {
            this.seen = signal;
            match (signal, &mut this.served) {
                (REST, served) => {
                    served.rest(&this.link);
                    this.seen = NOTHING;
                    this.link.rested();
                }
                (LEAVE, _) => {}
                (FINISH, Served::Unknown(_)) if this.link.came_late.load(Relaxed) => {}
                (FINISH | END, Served::Http1(inner)) => Pin::new(&mut **inner).graceful_shutdown(),
                (FINISH | END, Served::Http2(inner)) => inner.as_mut().graceful_shutdown(),
                // There is nothing to be finished.
                _ => return Poll::Ready(Ok(())),
            }
        }
        if this.link.is_unwatched.load(Relaxed) {
            return this.served.poll(&this.protocols, cx);
        }
        let turn = Turn::nudged(cx.waker());
        let polled = this.served.poll(&this.protocols, cx);
        if turn.end() {
            this.link.wants_nudge.store(true, Relaxed);
        }
        polled
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::time::{self, Timer};
    use http_body_util::{BodyExt as _, Full};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::Semaphore,
    };
    use tower::util::BoxCloneService;

    type Answering = BoxCloneService<Request<Incoming>, Response<Full<Bytes>>, Infallible>;

    /// A connection that is polled by hand, and its client.
    struct Pair {
        connection: Connection<Answering, Full<Bytes>>,
        client: TcpStream,
    }

    /// Answers with the path; `/upgrade` switches to an echo, `/early` leaves the request body,
    /// `/late` waits for a timer.
    fn answering() -> Answering {
        let answer = async |request: Request<Incoming>| {
            let path = Bytes::copy_from_slice(request.uri().path().as_bytes());
            let mut response = Response::new(Full::new(path.clone()));
            match &path[..] {
                b"/upgrade" => {
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    *response.body_mut() = Full::default();
                    tokio::spawn(async move {
                        let upgraded = hyper::upgrade::on(request).await.unwrap();
                        let mut upgraded = TokioIo::new(upgraded);
                        let mut said = [0; 3];
                        upgraded.read_exact(&mut said).await.unwrap();
                        upgraded.write_all(&said).await.unwrap();
                    });
                }
                b"/early" => {
                    tokio::spawn(request.into_body().collect());
                }
                b"/late" => {
                    let mut timer = Timer::default();
                    let at = time::now() + 2 * time::NUDGE + Duration::from_millis(100);
                    std::future::poll_fn(|cx| timer.poll_until(at, cx)).await;
                }
                _ => {}
            }
            Ok(response)
        };
        BoxCloneService::new(tower::service_fn(answer))
    }

    impl Pair {
        async fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let slots = Arc::new(Semaphore::new(1));
            let slot = slots.acquire_owned().await.unwrap();
            let counted = Counted::new(answering(), Arc::default());
            let protocols = Arc::new(Protocols::new());
            Self {
                connection: Connection::new(&protocols, stream, slot, counted),
                client,
            }
        }

        /// Lets the connection work while the client does.
        async fn while_served<T>(&mut self, client: impl AsyncFnOnce(&mut TcpStream) -> T) -> T {
            let work = client(&mut self.client);
            tokio::select! {
                biased;
                done = work => done,
                ended = &mut self.connection => panic!("{ended:?}"),
            }
        }

        async fn send(&mut self, bytes: &str) {
            self.while_served(async |client| {
                client.write_all(bytes.as_bytes()).await.unwrap();
                // It is read when nothing else is to be done.
                tokio::time::sleep(Duration::from_millis(20)).await;
            })
            .await;
        }

        /// Reads up to the end of an answer that ends with this.
        async fn read(&mut self, end: &str) -> String {
            self.while_served(async |client| {
                let mut answer = Vec::new();
                while !answer.ends_with(end.as_bytes()) {
                    let mut bytes = [0; 1000];
                    let read = client.read(&mut bytes).await.unwrap();
                    assert!(read > 0, "{answer:?}");
                    answer.extend_from_slice(&bytes[..read]);
                }
                String::from_utf8(answer).unwrap()
            })
            .await
        }

        async fn ask(&mut self, path: &str) {
            self.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
                .await;
            let answer = self.read(path).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(!answer.contains("connection:"), "{answer}");
        }

        /// Whether it rests after two looks.
        async fn rests(&mut self) -> bool {
            let link = Arc::clone(&self.connection.link);
            link.look();
            link.look();
            self.while_served(async |_| tokio::task::yield_now().await)
                .await;
            matches!(self.connection.served, Served::Resting(_))
        }
    }

    #[tokio::test]
    async fn a_quiet_connection_keeps_nothing_and_goes_on() {
        let mut pair = Pair::new().await;
        assert!(!pair.rests().await, "nothing is known of it yet");
        for path in ["/a", "/b", "/c"] {
            pair.ask(path).await;
            assert!(pair.rests().await);
        }
        // It is told once.
        assert!(pair.rests().await);
        assert_eq!(pair.connection.link.signal.load(Relaxed), NOTHING);
        pair.ask("/d").await;
        assert!(matches!(pair.connection.served, Served::Http1(_)));
        // Leaving is said as ever.
        assert!(pair.rests().await);
        pair.connection.link.leave();
        let ask = b"GET /e HTTP/1.1\r\nhost: a\r\n\r\n";
        pair.client.write_all(ask).await.unwrap();
        let mut answer = String::new();
        let (ended, read) = tokio::join!(
            &mut pair.connection,
            pair.client.read_to_string(&mut answer)
        );
        ended.unwrap();
        read.unwrap();
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn what_was_said_of_the_next_request_is_not_lost() {
        let mut pair = Pair::new().await;
        pair.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HT")
            .await;
        pair.read("/a").await;
        assert!(!pair.rests().await, "it waits for the rest of a head");
        pair.send("TP/1.1\r\nhost: a\r\n\r\n").await;
        pair.read("/b").await;
        assert!(pair.rests().await);
        // What has come while it went to rest is read.
        pair.client
            .write_all(b"GET /c HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        pair.read("/c").await;
    }

    #[tokio::test]
    async fn a_request_body_that_is_still_on_its_way_keeps_it_awake() {
        let mut pair = Pair::new().await;
        pair.send("POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab")
            .await;
        pair.read("/early").await;
        assert!(!pair.rests().await);
        pair.send("cdGET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        pair.read("/a").await;
        assert!(pair.rests().await);
    }

    #[tokio::test]
    async fn it_leaves_http_after_a_rest() {
        let mut pair = Pair::new().await;
        pair.ask("/a").await;
        assert!(pair.rests().await);
        let ask = "GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        pair.client.write_all(ask.as_bytes()).await.unwrap();
        (&mut pair.connection).await.unwrap();
        pair.client.write_all(b"abc").await.unwrap();
        let mut answer = String::new();
        pair.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_next_look_or_by_the_last() {
        for last in [false, true] {
            let mut pair = Pair::new().await;
            pair.send("GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let link = Arc::clone(&pair.connection.link);
            assert!(link.wants_nudge.load(Relaxed));
            match last {
                true => link.unwatch(),
                false => link.look(),
            }
            pair.read("/late").await;
        }
    }

    #[tokio::test]
    async fn either_side_ends_it_while_it_rests() {
        for side in ["client", "finish", "close", "expire"] {
            let mut pair = Pair::new().await;
            pair.ask("/a").await;
            assert!(pair.rests().await);
            let Pair {
                mut connection,
                mut client,
            } = pair;
            // It moves to another task.
            connection.registered = false;
            let link = Arc::clone(&connection.link);
            let ended = tokio::spawn(connection);
            tokio::task::yield_now().await;
            match side {
                "client" => client.shutdown().await.unwrap(),
                "finish" => link.finish(),
                "close" => link.close(),
                _ => link.expire(4, 4),
            }
            ended.await.unwrap().unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "{side}");
        }
    }

    /// What a client hears whose connection is told so before its request is there.
    async fn heard(tell: impl Fn(&Link)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let link = Arc::default();
        tell(&link);
        let service = tower::service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let service = Counted::new(service, link);
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
