//! A watch as tower's `Discover`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tower::discover::Change;

use super::{Diff, ServiceWatch, Snapshot};
use crate::endpoint::{Endpoint, EndpointId};

type Changes<S> = BoxStream<'static, Result<Change<EndpointId, S>, Infallible>>;

/// The endpoints of a service as a [`tower::discover::Discover`], which never ends and never fails.
///
/// An endpoint of which any attribute changed is inserted anew, because tower's changes carry no
/// attributes. What came is told before what went.
pub struct Endpoints<S> {
    changes: Changes<S>,
}

impl ServiceWatch {
    /// The endpoints as a [`tower::discover::Discover`] of the services that `make` makes of them.
    #[must_use]
    pub fn into_discover<S, F>(self, make: F) -> Endpoints<S>
    where
        F: FnMut(&Arc<Endpoint>) -> S + Send + 'static,
        S: Send + 'static,
    {
        let changes = stream::unfold(
            (self, make, None::<Arc<Snapshot>>),
            |(mut watch, mut make, told)| async move {
                let snapshot = match &told {
                    None => watch.current(),
                    Some(_) => watch.changed().await,
                };
                let diff = match &told {
                    None => Diff::all(&snapshot),
                    Some(told) => snapshot.diff(told),
                };
                let came = diff.added.iter().chain(&diff.updated);
                let mut changes: VecDeque<_> = came
                    .map(|endpoint| Ok(Change::Insert(endpoint.id.clone(), make(endpoint))))
                    .collect();
                let went = diff.removed.iter();
                changes.extend(went.map(|endpoint| Ok(Change::Remove(endpoint.id.clone()))));
                Some((stream::iter(changes), (watch, make, Some(snapshot))))
            },
        );
        Endpoints {
            changes: changes.flatten().boxed(),
        }
    }
}

impl<S> Stream for Endpoints<S> {
    type Item = Result<Change<EndpointId, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl<S> fmt::Debug for Endpoints<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tower::discover::Discover;

    use super::*;
    use crate::discover::{Discovery, Listing, RawEvent, ServiceDiscovery as _, script::Script};

    fn endpoint(id: &str) -> Endpoint {
        let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
        endpoint.id(id)
    }

    /// The changes that are there now, as `+id weight` and `-id`.
    fn told(
        discover: &mut (
                 impl Discover<Key = EndpointId, Service = u32, Error = Infallible>
                 + Stream<Item = Result<Change<EndpointId, u32>, Infallible>>
                 + Unpin
             ),
    ) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(change) = discover.next().now_or_never() {
            told.push(match change.expect("it never ends").unwrap() {
                Change::Insert(id, weight) => format!("+{id} {weight}"),
                Change::Remove(id) => format!("-{id}"),
            });
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn changes_come_as_inserts_and_removes_and_never_end() {
        let script = Script::default();
        script.opens_with([Ok(RawEvent::Reset(Listing::new([
            endpoint("a"),
            endpoint("b"),
            endpoint("c"),
        ])))]);
        let mut watch = Discovery::new(script.clone()).watch(&"users".into());
        watch.ready().await;
        let mut discover = watch.into_discover(|endpoint| endpoint.weight);
        assert_eq!(told(&mut discover), ["+a 1", "+b 1", "+c 1"]);
        assert!(told(&mut discover).is_empty());
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        script.say(Ok(RawEvent::Reset(Listing::new([
            endpoint("d"),
            endpoint("b"),
            endpoint("c").weight(7),
        ]))));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(told(&mut discover), ["+d 1", "+c 7", "-a"]);
        script.say(Err(crate::discover::BackendError::Transient("away".into())));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(told(&mut discover).is_empty());
    }
}
