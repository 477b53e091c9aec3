//! Threads that serve connections, each with a runtime of its own.

use std::{
    fmt, io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    time::timeout,
};

use crate::worker::Worker;

/// How often a worker wakes up without a reason. A timer that comes before all others has tokio
/// wake the runtime by a system call, even from the thread that is at it; with this one ahead,
/// those of requests do not.
const BEAT: Duration = Duration::from_millis(100);

/// Threads that serve connections, each with a single-threaded runtime of its own (thread per
/// core). Clones share them; they end with the last clone, and with the last
/// [`Server`](super::Server) on them, and cut what they still serve.
///
/// A connection of a client stays with the worker that took it. Its requests, the connections to
/// endpoints that they use, and every task that they spawn are driven by that thread alone: no
/// other one has to be woken, and nothing is handed over.
///
/// - Each worker has: its runtime with tasks, timers and sockets; where the system can spread
///   clients over several sockets of one address (`SO_REUSEPORT`, on Linux), a socket that accepts;
///   the idle connections of each `Upstream`, and those over HTTP/2.
/// - All of them share: clusters with what is known of their endpoints, limits, the cache, and
///   every bound, on connections of clients as on those to endpoints. Where a bound keeps a worker
///   from making a connection, it uses an idle one of another worker.
///
/// What follows endpoints, checks them and answers operators belongs on a runtime beside them, on
/// which the application starts it.
///
/// # When to use which
///
/// A runtime of tokio with several threads moves tasks to threads that have nothing to do. That is
/// better where requests cost the gateway much computing, or some block their thread: a worker that
/// is held up holds up all of its connections. Workers are better for a proxy, whose requests are
/// short: they need less CPU time for each. A worker gets about as many connections as any other,
/// which is about as much work where there are more connections than a few.
///
/// # Examples
///
#[cfg_attr(feature = "client", doc = "```no_run")]
#[cfg_attr(not(feature = "client"), doc = "```ignore")]
/// # use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_gateway::{
///     BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, Upstream,
///     node::{Listener, Workers}, pick::RoundRobin,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let endpoint = Endpoint::new("127.0.0.1:9001".parse::<std::net::SocketAddr>()?);
/// let users = Cluster::fixed("users", RoundRobin::new(), [endpoint]);
/// let gateway = ServiceBuilder::new()
///     .layer(ErrorResponseLayer::new())
///     .layer(BalanceLayer::new(users))
///     .service(Upstream::new());
///
/// let workers = Workers::per_core()?;
/// let listener = Listener::bind("0.0.0.0:8080".parse()?).await?;
/// let server = listener.serve_on(&workers, move |_| gateway.clone())?;
///
/// tokio::signal::ctrl_c().await?;
/// server.drain(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Workers {
    threads: Arc<[Thread]>,
    /// The threads go on until this is dropped.
    _running: watch::Sender<()>,
}

/// One worker, as the others see it.
#[derive(Debug)]
struct Thread {
    runtime: Handle,
    /// The connections of clients that it has.
    connections: AtomicUsize,
}

impl Workers {
    /// Starts so many workers.
    ///
    /// # Errors
    ///
    /// When the operating system has no thread or no descriptor for one.
    pub fn start(threads: NonZeroUsize) -> io::Result<Self> {
        let (running, over) = watch::channel(());
        let threads: io::Result<Arc<[Thread]>> = (0..threads.get())
            .map(|number| start(number, over.clone()))
            .collect();
        Ok(Self {
            threads: threads?,
            _running: running,
        })
    }

    /// Starts as many workers as the process has cores to run on.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); or when the operating system does not tell how many those are.
    pub fn per_core() -> io::Result<Self> {
        Self::start(thread::available_parallelism()?)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        (0..self.threads.len()).map(|at| Place {
            threads: Arc::clone(&self.threads),
            at,
        })
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

fn start(number: usize, mut over: watch::Receiver<()>) -> io::Result<Thread> {
    let (tell, told) = mpsc::sync_channel(1);
    let serve = move || {
        Worker::begin();
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(tell.send(Err(error))),
        };
        drop(tell.send(Ok(runtime.handle().clone())));
        runtime.block_on(async {
            // What ends it is an error: the sender is gone.
            while timeout(BEAT, over.changed()).await.is_err() {}
        });
    };
    thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(serve)?;
    Ok(Thread {
        runtime: told.recv().expect("a worker tells how it started")?,
        connections: AtomicUsize::new(0),
    })
}

/// One of the workers, among the others.
#[derive(Clone, Debug)]
pub(super) struct Place {
    threads: Arc<[Thread]>,
    at: usize,
}

impl Place {
    pub(super) fn runtime(&self) -> &Handle {
        &self.threads[self.at].runtime
    }

    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.at == other.at
    }

    /// A seat for a connection that was accepted here: here, unless another worker has clearly
    /// fewer.
    pub(super) fn seat(&self) -> Seat {
        let connections = |at: &usize| self.threads[*at].connections.load(Relaxed);
        let least = (0..self.threads.len()).min_by_key(connections);
        let at = least
            .filter(|least| is_clearly_less(connections(least), connections(&self.at)))
            .unwrap_or(self.at);
        self.threads[at].connections.fetch_add(1, Relaxed);
        Seat(Self {
            threads: Arc::clone(&self.threads),
            at,
        })
    }
}

/// The system spreads connections by a hash of their addresses. Of many, all workers have about the
/// same number; of a few, one may have all.
fn is_clearly_less(least: usize, own: usize) -> bool {
    own > least + least / 8
}

/// A connection of a client at its worker.
#[derive(Debug)]
pub(super) struct Seat(Place);

impl Seat {
    pub(super) fn place(&self) -> &Place {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Place { threads, at } = &self.0;
        threads[*at].connections.fetch_sub(1, Relaxed);
    }
}
