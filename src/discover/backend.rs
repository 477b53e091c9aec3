//! What the author of a backend writes: the protocol, and nothing else.

use std::{fmt, sync::Arc};

use futures_util::{future::BoxFuture, stream::BoxStream};

use super::{Guard, ServiceName};
use crate::{
    endpoint::{Endpoint, EndpointId},
    error::BoxError,
};

/// A source of endpoint lists that speaks one protocol.
///
/// The driver, [`Discovery`](super::Discovery), does everything around it: reconnecting, back-off,
/// guards, debounce, the last good list. A backend reports what it sees, at once and unfiltered.
pub trait DiscoveryBackend: Send + Sync + 'static {
    /// Follows a service, from a cursor of an earlier connection or from the start.
    ///
    /// Without a cursor the first event is a [`RawEvent::Reset`] or a [`RawEvent::Absent`]; what
    /// changed since follows without a gap. With a cursor the events after it follow, or
    /// [`BackendError::CursorLost`] when the source has forgotten it; when there are none yet, a
    /// [`RawEvent::Alive`] says that the connection stands, for nothing else ends an outage.
    ///
    /// The stream may go on after an error, when the backend recovers by itself; when it ends, the
    /// driver connects again after a back-off. A stream may be idle for ever. A poll that timed out
    /// without news is [`RawEvent::Alive`], never an error. Dropping the stream ends the connection.
    fn connect(
        &self,
        service: &ServiceName,
        from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>>;

    /// The services that the source knows.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] unless the backend can list them.
    fn services(&self) -> BoxFuture<'_, Result<Vec<ServiceName>, BackendError>> {
        Box::pin(async { Err(BackendError::Unsupported) })
    }

    /// How much a single message of this source is trusted.
    fn guard(&self) -> Guard {
        Guard::default()
    }
}

impl<B: DiscoveryBackend + ?Sized> DiscoveryBackend for Arc<B> {
    fn connect(
        &self,
        service: &ServiceName,
        from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        (**self).connect(service, from)
    }

    fn services(&self) -> BoxFuture<'_, Result<Vec<ServiceName>, BackendError>> {
        (**self).services()
    }

    fn guard(&self) -> Guard {
        (**self).guard()
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawEvent {
    /// The whole list, as of now.
    Reset(Listing),
    /// An endpoint came, or changed.
    Upsert(Endpoint),
    /// An endpoint went, by its own or an operator's will: such removals may empty the list.
    Remove(EndpointId),
    /// An entry changed into something unusable. The endpoint that it was stays, as it was.
    Refuse(Refused),
    /// The source knows no such service, which is not the same as a service without endpoints.
    Absent,
    /// The source answered, and everything up to this cursor was told. After changes it moves the
    /// cursor on: without it the next connection tells them once more.
    Alive(Option<Cursor>),
}

/// A whole list, as a source gives it.
///
/// # Defaults
///
/// - `cursor`: none; the next connection starts with a list
/// - `refused`: none
/// - `trusted`: false
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// The endpoints, in any order.
    pub endpoints: Vec<Endpoint>,
    /// Where to go on from.
    pub cursor: Option<Cursor>,
    /// The entries that could not be used. An endpoint that one of them is of stays as it was.
    pub refused: Vec<Refused>,
    /// Whether the source proved that the list may be empty.
    pub trusted: bool,
}

impl Listing {
    /// A list of these endpoints.
    #[must_use]
    pub fn new(endpoints: impl Into<Vec<Endpoint>>) -> Self {
        Self {
            endpoints: endpoints.into(),
            ..Self::default()
        }
    }

    /// Says where the next connection goes on from.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<Cursor>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Names the entries that could not be used.
    #[must_use]
    pub fn refused(mut self, refused: impl Into<Vec<Refused>>) -> Self {
        self.refused = refused.into();
        self
    }

    /// Says that the list may be believed even when it is empty: the backend has seen every
    /// endpoint deregister, within the same epoch of its cursor.
    #[must_use]
    pub fn trusted(mut self) -> Self {
        self.trusted = true;
        self
    }
}

impl From<Vec<Endpoint>> for Listing {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        Self::new(endpoints)
    }
}

/// An entry of a source that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Refused {
    /// Which entry: its key or id, or its place in the list.
    pub entry: Arc<str>,
    /// What is wrong with it.
    pub reason: Arc<str>,
    /// The endpoint that it is of, as far as it says so by its id or else its address. Without, it
    /// is that of the same id as the entry, if any.
    pub endpoint: Option<Arc<str>>,
}

impl Refused {
    /// A refused entry and what is wrong with it.
    #[must_use]
    pub fn new(entry: impl Into<Arc<str>>, reason: impl Into<Arc<str>>) -> Self {
        Self {
            entry: entry.into(),
            reason: reason.into(),
            endpoint: None,
        }
    }

    /// Names the endpoint that the entry is of, by its id or address: if it is known, it stays as it
    /// was when it was last good.
    #[must_use]
    pub fn of(mut self, endpoint: impl Into<Arc<str>>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The id or the address of the endpoint that the entry is of.
    pub(super) fn subject(&self) -> &str {
        self.endpoint.as_ref().unwrap_or(&self.entry)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.entry, self.reason)
    }
}

/// A place in the history of a source: an etcd revision, a Consul index, a resource version.
///
/// Only the backend that made it reads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// The cursor as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Cursor {
    fn from(cursor: &str) -> Self {
        Self(cursor.into())
    }
}

impl From<String> for Cursor {
    fn from(cursor: String) -> Self {
        Self(cursor.into())
    }
}

impl From<u64> for Cursor {
    fn from(cursor: u64) -> Self {
        Self(cursor.to_string().into())
    }
}

/// Why a source gave no list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The source cannot be reached or is not well; it may be better soon.
    #[error("the source is not available")]
    Transient(#[source] BoxError),
    /// The source answered, and its answer is no list: garbled, or not permitted.
    #[error("the source has no usable list")]
    Data(#[source] BoxError),
    /// The source has forgotten the cursor; the list must be read again.
    #[error("the cursor is no longer known to the source")]
    CursorLost,
    /// The backend is set up wrongly; trying again will not help soon.
    #[error("the backend is set up wrongly")]
    Config(#[source] BoxError),
    /// The source cannot do this.
    #[error("the source cannot do this")]
    Unsupported,
}

impl BackendError {
    /// The error and its causes in one line.
    pub(crate) fn reason(&self) -> String {
        use std::{error::Error as _, fmt::Write as _};

        let mut reason = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            write!(reason, ": {error}").expect("a string takes what is written");
            source = error.source();
        }
        reason
    }
}
