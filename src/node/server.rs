//! A listener at work: it accepts, sweeps idle connections, and drains.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt, io, iter,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
};
use tower::Service;

use super::{
    Listener, Workers,
    connection::{Connection, Counted, Link, Protocols, ServeBody},
    spread::siblings,
    workers::{Place, Seat},
};
use crate::{refusal::Refusals, time};

/// Sweeps in one keep-alive time.
const SWEEPS: u32 = 4;

/// How long a connection is silent before the operating system asks whether the client is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long a server that drains goes on to accept and to serve idle connections.
const LEAVING: Duration = Duration::from_secs(1);

/// How long the one who accepts looks out, when he is told to stop, for who is in the backlog: the
/// operating system tells of it in its own time.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// A running server. Dropping it stops accepting; connections that are open go on.
pub struct Server {
    connections: Arc<Connections>,
    /// Ends the tasks that accept.
    stop: watch::Sender<bool>,
    accept: Vec<JoinHandle<()>>,
    sweep: JoinHandle<()>,
    /// They go on for as long as they serve.
    _workers: Option<Workers>,
}

/// The open connections.
struct Connections {
    links: Mutex<Links>,
    /// How many there are.
    open: watch::Sender<usize>,
    sweeps: Arc<AtomicU32>,
    refusals: Arc<Refusals>,
}

#[derive(Default)]
struct Links {
    next: u64,
    by_number: HashMap<u64, Arc<Link>>,
    stage: Stage,
    /// Whether nobody looks at the connections any more.
    is_unwatched: bool,
}

/// How far the server is on its way out, for connections that are accepted late.
#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Serve,
    /// A connection says with its first response that it is the last one.
    Leave,
    /// Who comes now is too late.
    Close,
}

impl Server {
    pub(super) fn start<M, S, B>(listener: Listener, make: M) -> Self
    where
        M: Fn(SocketAddr) -> S + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        let ground = Ground::new(listener.max_connections);
        let (stop, stopped) = watch::channel(false);
        let sweep = tokio::spawn(ground.sweep(listener.keep_alive));
        let acceptor = Acceptor {
            socket: listener.socket,
            make,
            ground: ground.clone(),
            place: None,
        };
        Self {
            connections: ground.connections,
            stop,
            accept: vec![tokio::spawn(acceptor.run(stopped))],
            sweep,
            _workers: None,
        }
    }

    pub(super) fn start_on<M, S, B>(
        listener: Listener,
        workers: &Workers,
        make: M,
    ) -> io::Result<Self>
    where
        M: Fn(SocketAddr) -> S + Clone + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        let first = listener.socket.into_std()?;
        let further = siblings(&first, workers.count() - 1).unwrap_or_else(|error| {
            tracing::warn!(event = "one_socket", %error, "one worker accepts for all");
            Vec::new()
        });
        let ground = Ground::new(listener.max_connections);
        let (stop, stopped) = watch::channel(false);
        let mut accept = Vec::new();
        for (socket, place) in iter::once(first).chain(further).zip(workers.places()) {
            let runtime = place.runtime().clone();
            let entered = runtime.enter();
            let acceptor = Acceptor {
                socket: TcpListener::from_std(socket)?,
                make: make.clone(),
                ground: ground.clone(),
                place: Some(place),
            };
            accept.push(runtime.spawn(acceptor.run(stopped.clone())));
            drop(entered);
        }
        let place = workers.places().next().expect("there is one at least");
        let sweep = place.runtime().spawn(ground.sweep(listener.keep_alive));
        Ok(Self {
            connections: ground.connections,
            stop,
            accept,
            sweep,
            _workers: Some(workers.clone()),
        })
    }

    /// The number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.connections.open.borrow()
    }

    /// The number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let links = self.connections.links.lock();
        links
            .by_number
            .values()
            .map(|link| u64::from(link.in_flight()))
            .sum()
    }

    /// How many requests were refused.
    #[must_use]
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.connections.refusals
    }

    /// Lets every connection finish what it has in flight, and stops accepting. After `limit` the
    /// rest is closed; returns how many connections that were.
    ///
    /// When there are connections, clients are still served for a second, also on new ones, and
    /// each response over HTTP/1.1 says that it is the last one: an idle connection that was closed
    /// at once could meet a request that is already on its way. Whoever stops to connect within
    /// that second loses no request.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the server as far as it came; a second one goes on from there.
    pub async fn drain(&self, limit: Duration) -> usize {
        let until = time::after(time::now(), limit);
        self.connections.each(Stage::Leave, Link::leave);
        // Clients that are told to leave come back while nobody else knows that they should not.
        if self.connections() > 0 {
            let leaving = until.min(time::now() + LEAVING);
            tokio::time::sleep_until(leaving.into()).await;
        }
        self.stop.send_replace(true);
        self.connections.each(Stage::Leave, Link::finish);
        // Who is in the backlog gets a moment to ask: a connection that is told to finish before
        // its first byte was read would be reset. Those who accept drop their ends when they stop.
        let accepted = tokio::time::timeout_at(until.into(), self.stop.closed()).await;
        let late = until.min(time::now() + LEAVING);
        if accepted.is_ok() && self.empty(late).await {
            return 0;
        }
        self.connections.each(Stage::Leave, Link::end);
        if self.empty(until).await {
            return 0;
        }
        let left = self.connections();
        self.connections.each(Stage::Close, Link::close);
        left
    }

    /// Waits until no connection is open; `false` when some still are at that time.
    async fn empty(&self, until: Instant) -> bool {
        let mut open = self.connections.open.subscribe();
        let empty = open.wait_for(|open| *open == 0);
        tokio::time::timeout_at(until.into(), empty).await.is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.iter().for_each(JoinHandle::abort);
        self.sweep.abort();
        self.connections.unwatch();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Connections {
    fn add(&self) -> (u64, Arc<Link>) {
        let link = Link::new(Arc::clone(&self.sweeps), Arc::clone(&self.refusals));
        let link = Arc::new(link);
        let mut links = self.links.lock();
        let number = links.next;
        links.next += 1;
        links.by_number.insert(number, Arc::clone(&link));
        if links.is_unwatched {
            link.unwatch();
        }
        match links.stage {
            Stage::Serve => {}
            Stage::Leave => link.come_late(),
            Stage::Close => link.close(),
        }
        self.open.send_replace(links.by_number.len());
        (number, link)
    }

    fn remove(&self, number: u64) {
        let mut links = self.links.lock();
        links.by_number.remove(&number);
        self.open.send_replace(links.by_number.len());
    }

    /// Tells every connection, also those that come yet, that nobody looks at it any more.
    fn unwatch(&self) {
        let mut links = self.links.lock();
        links.is_unwatched = true;
        links.by_number.values().for_each(|link| link.unwatch());
    }

    /// Tells every connection to stop, and sets the stage for those that come yet.
    fn each(&self, stage: Stage, tell: impl Fn(&Link)) {
        let mut links = self.links.lock();
        links.stage = stage;
        links.by_number.values().for_each(|link| tell(link));
    }
}

/// Takes a connection off the list when it ends, also by a panic.
struct Entry {
    number: u64,
    connections: Arc<Connections>,
    /// Where it is, among workers.
    seat: Option<Seat>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.remove(self.number);
    }
}

/// What all who accept for a server have in common.
#[derive(Clone)]
struct Ground {
    connections: Arc<Connections>,
    slots: Arc<Semaphore>,
}

impl Ground {
    fn new(max_connections: usize) -> Self {
        let connections = Connections {
            links: Mutex::default(),
            open: watch::Sender::new(0),
            sweeps: Arc::default(),
            refusals: Arc::default(),
        };
        Self {
            connections: Arc::new(connections),
            slots: Arc::new(Semaphore::new(max_connections)),
        }
    }

    fn sweep(&self, keep_alive: Duration) -> impl Future<Output = ()> + use<> {
        sweep(Arc::clone(&self.connections), keep_alive)
    }
}

/// Takes connections from one socket.
struct Acceptor<M> {
    socket: TcpListener,
    make: M,
    ground: Ground,
    /// The worker that it runs on; none on the runtime of an application.
    place: Option<Place>,
}

impl<M> Acceptor<M> {
    async fn run<S, B>(self, mut stopped: watch::Receiver<bool>)
    where
        M: Fn(SocketAddr) -> S,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        let protocols = Arc::new(Protocols::new());
        let mut over = pin!(async {
            // A server that was dropped wants no more clients either.
            stopped.wait_for(|stopped| *stopped).await.ok();
            tokio::time::sleep(LAST_LOOK).await;
        });
        loop {
            let accepted = tokio::select! {
                // Who is in the backlog of the operating system is served yet: it would be reset.
                biased;
                accepted = self.socket.accept() => accepted,
                () = over.as_mut() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    rest_after(&error).await;
                    continue;
                }
            };
            // Not before: who waits for a client must not keep a slot from another one's.
            let slot = tokio::select! {
                // A free slot is for who is there.
                biased;
                slot = Arc::clone(&self.ground.slots).acquire_owned() => slot,
                () = over.as_mut() => return,
            };
            let slot = slot.expect("it is never closed");
            if let Err(error) = self.begin(stream, peer, slot, &protocols) {
                tracing::debug!(%error, "connection of a client closed at once");
            }
        }
    }

    /// Serves a connection in a task of its own.
    fn begin<S, B>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
        protocols: &Arc<Protocols>,
    ) -> io::Result<()>
    where
        M: Fn(SocketAddr) -> S,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        prepare(&stream)?;
        let connections = &self.ground.connections;
        let (number, link) = connections.add();
        let entry = Entry {
            number,
            connections: Arc::clone(connections),
            seat: self.place.as_ref().map(Place::seat),
        };
        let service = Counted::new((self.make)(peer), link);
        let protocols = Arc::clone(protocols);
        let serve = move |stream| async move {
            if let Err(error) = Connection::new(&protocols, stream, slot, service).await {
                tracing::debug!(event = "client_connection", %peer, %error, "connection ended");
            }
        };
        match (entry.seat.as_ref().map(Seat::place), &self.place) {
            (Some(there), Some(here)) if !there.is_at(here) => {
                // The runtime that drives the socket is the one that serves it.
                let stream = stream.into_std()?;
                let runtime = there.runtime().clone();
                runtime.spawn(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => serve(stream).await,
                        Err(error) => tracing::debug!(%error, "connection of a client was lost"),
                    }
                    drop(entry);
                });
            }
            _ => {
                tokio::spawn(async move {
                    serve(stream).await;
                    drop(entry);
                });
            }
        }
        Ok(())
    }
}

/// HTTP sends in whole pieces; and a client that went away without a word in the middle of a tunnel
/// is noticed by the operating system alone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

/// An error of one connection costs nothing; one of the whole process, such as no descriptors
/// left, does not go away by asking again at once.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    ) {
        return;
    }
    tracing::error!(event = "accept_failed", %error, "no new connections for a moment");
    tokio::time::sleep(Duration::from_millis(250)).await;
}

async fn sweep(connections: Arc<Connections>, keep_alive: Duration) {
    let expire = async {
        loop {
            tokio::time::sleep(keep_alive / SWEEPS).await;
            let sweep = connections.sweeps.fetch_add(1, Relaxed).wrapping_add(1);
            let links = connections.links.lock();
            for link in links.by_number.values() {
                link.expire(sweep, SWEEPS);
            }
        }
    };
    let look = async {
        loop {
            tokio::time::sleep(time::NUDGE).await;
            let links = connections.links.lock();
            links.by_number.values().for_each(|link| link.look());
        }
    };
    tokio::join!(expire, look);
}
