//! Endpoints from any stream of lists.

use std::{fmt, mem, sync::Arc};

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use parking_lot::Mutex;

use super::{
    BackendError, Cursor, DiscoveryBackend, Guard, IntoListing, Listing, RawEvent, ServiceName,
};

type Lists = BoxStream<'static, Result<Listing, BackendError>>;

/// A backend that takes whole lists from a stream: of lists, or of results of lists.
///
/// It feeds one service at a time. When the stream ends, its last list stays and is stale.
///
/// ```
/// use futures_util::stream;
/// use tower_gateway::{Endpoint, discover::{self, Discovery}};
///
/// let endpoint: Endpoint = "127.0.0.1:8080".parse().unwrap();
/// let lists = stream::iter([vec![], vec![endpoint]]);
/// let discovery = Discovery::new(discover::from_stream(lists));
/// ```
pub fn from_stream<S>(lists: S) -> FromStream
where
    S: Stream + Send + 'static,
    S::Item: IntoListing,
{
    let lists = lists.map(IntoListing::into_listing).boxed();
    FromStream {
        slot: Arc::new(Mutex::new(Slot {
            place: Place::Here(lists),
            last: None,
        })),
    }
}

/// The backend of [`from_stream`].
pub struct FromStream {
    slot: Arc<Mutex<Slot>>,
}

/// The stream, between the connections that read from it.
struct Slot {
    place: Place,
    /// What the next connection starts with.
    last: Option<Listing>,
}

enum Place {
    Here(Lists),
    Lent,
    Ended,
}

/// The stream while a connection reads from it; it goes back when the connection is dropped.
struct Loan {
    lists: Option<Lists>,
    slot: Arc<Mutex<Slot>>,
}

impl Loan {
    async fn next(&mut self) -> Option<Result<RawEvent, BackendError>> {
        let said = self.lists.as_mut()?.next().await;
        let mut slot = self.slot.lock();
        match said {
            Some(Ok(listing)) => {
                slot.last = Some(listing.clone());
                Some(Ok(RawEvent::Reset(listing)))
            }
            Some(Err(error)) => Some(Err(error)),
            None => {
                slot.place = Place::Ended;
                self.lists = None;
                Some(Err(ended()))
            }
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(lists) = self.lists.take() {
            self.slot.lock().place = Place::Here(lists);
        }
    }
}

fn ended() -> BackendError {
    BackendError::Transient("the stream of lists ended".into())
}

impl DiscoveryBackend for FromStream {
    fn connect(
        &self,
        _service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let mut slot = self.slot.lock();
        let last = slot.last.clone().map(|last| Ok(RawEvent::Reset(last)));
        let last = stream::iter(last);
        match mem::replace(&mut slot.place, Place::Lent) {
            Place::Here(lists) => {
                let loan = Loan {
                    lists: Some(lists),
                    slot: Arc::clone(&self.slot),
                };
                let lists = stream::unfold(loan, |mut loan| async {
                    loan.next().await.map(|said| (said, loan))
                });
                last.chain(lists).chain(stream::pending()).boxed()
            }
            Place::Lent => {
                let error = "the stream of lists feeds another service already".into();
                stream::iter([Err(BackendError::Config(error))]).boxed()
            }
            Place::Ended => {
                slot.place = Place::Ended;
                let ended = stream::iter([Err(ended())]);
                last.chain(ended).chain(stream::pending()).boxed()
            }
        }
    }

    fn guard(&self) -> Guard {
        Guard::authoritative()
    }
}

impl fmt::Debug for FromStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromStream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::{
        discover::{Discovery, ServiceDiscovery as _, Snapshot},
        endpoint::Endpoint,
    };

    fn endpoints(count: usize) -> Vec<Endpoint> {
        let address = |i| format!("10.0.0.1:{}", i + 1);
        (0..count).map(|i| address(i).parse().unwrap()).collect()
    }

    fn told(snapshot: &Snapshot) -> (&'static str, usize) {
        (snapshot.state.as_str(), snapshot.endpoints.len())
    }

    #[tokio::test(start_paused = true)]
    async fn every_list_of_the_stream_is_believed_and_its_end_is_stale() {
        let (lists, receiver) = mpsc::unbounded_channel::<Result<_, &str>>();
        let lists_of = UnboundedReceiverStream::new(receiver);
        let mut watch = Discovery::new(from_stream(lists_of)).watch(&"users".into());
        lists.send(Ok(endpoints(6))).unwrap();
        assert_eq!(told(&*watch.ready().await), ("live", 6));
        lists.send(Ok(endpoints(1))).unwrap();
        assert_eq!(told(&*watch.changed().await), ("live", 1));
        lists.send(Err("garbled")).unwrap();
        assert_eq!(told(&*watch.changed().await), ("stale", 1));
        lists.send(Ok(endpoints(1))).unwrap();
        assert_eq!(told(&*watch.changed().await), ("live", 1));
        drop(lists);
        assert_eq!(told(&*watch.changed().await), ("stale", 1));
        assert_eq!(watch.stats().errors, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_is_handed_on_with_its_last_list() {
        let (lists, receiver) = mpsc::unbounded_channel();
        let discovery = Discovery::new(from_stream(UnboundedReceiverStream::new(receiver)));
        let mut users = discovery.watch(&"users".into());
        lists.send(endpoints(2)).unwrap();
        users.ready().await;
        let mut orders = discovery.watch(&"orders".into());
        let refused = orders.changed().await;
        assert_eq!(told(&refused), ("pending", 0));
        assert!(
            refused
                .reason
                .as_deref()
                .unwrap()
                .contains("another service")
        );
        drop(users);
        assert_eq!(told(&*orders.ready().await), ("live", 2));
        lists.send(endpoints(3)).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(told(&orders.current()), ("live", 3));
    }
}
