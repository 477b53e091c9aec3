//! A backend that says what a test tells it to.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{BackendError, Cursor, DiscoveryBackend, Guard, RawEvent, ServiceName};

type Said = Result<RawEvent, BackendError>;

/// Clones share the script.
#[derive(Clone, Default)]
pub(crate) struct Script {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// What the next connections say first, and whether they end after it.
    openings: Vec<(Vec<Said>, bool)>,
    connections: Vec<Connection>,
    guard: Guard,
}

struct Connection {
    service: ServiceName,
    from: Option<Cursor>,
    line: Option<mpsc::UnboundedSender<Said>>,
}

impl Script {
    pub(crate) fn guarded(guard: Guard) -> Self {
        let script = Self::default();
        script.shared.lock().guard = guard;
        script
    }

    /// A connection says this at once and stays open.
    pub(crate) fn opens_with(&self, said: impl IntoIterator<Item = Said>) -> &Self {
        self.opening(said, false)
    }

    /// A connection says this at once and ends.
    pub(crate) fn ends_with(&self, said: impl IntoIterator<Item = Said>) -> &Self {
        self.opening(said, true)
    }

    fn opening(&self, said: impl IntoIterator<Item = Said>, ends: bool) -> &Self {
        let said = said.into_iter().collect();
        self.shared.lock().openings.insert(0, (said, ends));
        self
    }

    /// The newest connection says this.
    pub(crate) fn say(&self, said: Said) {
        let shared = self.shared.lock();
        let newest = shared.connections.last().expect("a connection");
        let line = newest.line.as_ref().expect("an open connection");
        line.send(said).expect("a connection that is listened to");
    }

    /// The newest connection ends.
    pub(crate) fn hang_up(&self) {
        self.shared
            .lock()
            .connections
            .last_mut()
            .expect("a connection")
            .line = None;
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// Where the newest connection went on from.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let shared = self.shared.lock();
        shared
            .connections
            .last()
            .expect("a connection")
            .from
            .clone()
    }

    /// The services with a connection that is listened to.
    pub(crate) fn open(&self) -> Vec<String> {
        let shared = self.shared.lock();
        let open = shared.connections.iter().filter(|connection| {
            let line = connection.line.as_ref();
            line.is_some_and(|line| !line.is_closed())
        });
        open.map(|connection| connection.service.to_string())
            .collect()
    }
}

impl DiscoveryBackend for Script {
    fn connect(&self, service: &ServiceName, from: Option<Cursor>) -> BoxStream<'static, Said> {
        let (line, said) = mpsc::unbounded_channel();
        let mut shared = self.shared.lock();
        let (opening, ends) = shared.openings.pop().unwrap_or_default();
        for said in opening {
            line.send(said).expect("the receiver is here");
        }
        shared.connections.push(Connection {
            service: service.clone(),
            from,
            line: (!ends).then_some(line),
        });
        UnboundedReceiverStream::new(said).boxed()
    }

    fn guard(&self) -> Guard {
        self.shared.lock().guard.clone()
    }
}
