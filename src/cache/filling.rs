//! A body on its way to a client and into the cache.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    Fill, Keep, Scope,
    flight::Audience,
    http::freshness::Freshness,
    http_cache::HttpCache,
    resource::{Content, Resource, Stored},
    stats::Kept,
};
use crate::time;

/// How long what no client waits for may take.
pub(super) const BACKGROUND: Duration = Duration::from_secs(60);

/// A response head that is stored once its body is whole.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) cache: HttpCache,
    pub(super) fill: Fill<Resource>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) freshness: Freshness,
    pub(super) scopes: Vec<Scope>,
    /// Its age when it was received, and for how long from then on it is worth keeping.
    pub(super) age: Duration,
    pub(super) keep: Duration,
    pub(super) received: Instant,
}

impl Draft {
    /// Stores the response, and returns it as it is stored. Whether it was is counted.
    pub(super) async fn store(self, content: Content) -> super::Filled<Resource> {
        let resource = Resource::response(Stored::new(
            self.status,
            self.headers,
            content,
            &self.freshness,
        ));
        let lifetime = self.freshness.lifetime;
        let since = time::now().saturating_duration_since(self.received);
        let stale = (self.keep + self.age).saturating_sub(lifetime);
        let keep = Keep::new(lifetime).stale(stale).age(self.age + since);
        let filled = self.fill.store(resource, self.scopes, keep).await;
        self.cache.stats().keep(if filled.is_stored() {
            Kept::Stored
        } else {
            Kept::Refused
        });
        filled
    }

    fn give_up(self, kept: Kept) {
        self.cache.stats().keep(kept);
        self.fill.pass(Duration::ZERO);
    }
}

/// A body that is collected as it passes. When its client leaves and others wait for it, it goes
/// on without one.
pub(super) struct Filling<B> {
    /// None once somebody else took it over.
    work: Option<Pin<Box<Work<B>>>>,
    /// Takes it over when nobody polls any more.
    finish: fn(Pin<Box<Work<B>>>),
}

pin_project! {
    struct Work<B> {
        #[pin]
        inner: B,
        state: State,
    }
}

enum State {
    Collecting(Box<Collecting>),
    /// The body is whole; its last frame waits until it is stored, so that whoever has read it
    /// finds it in the cache.
    Storing {
        store: BoxFuture<'static, ()>,
        last: Option<Frame<Bytes>>,
    },
    /// Nothing is collected any more.
    Passing,
    Ended,
}

struct Collecting {
    draft: Draft,
    audience: Audience<Resource>,
    chunks: Vec<Bytes>,
    received: usize,
    /// As the head says.
    expected: Option<usize>,
    most: usize,
}

/// What a frame means for the collection.
enum Step {
    More,
    Whole,
    Broken(Kept),
}

impl Collecting {
    fn take(&mut self, frame: &Frame<Bytes>, is_end: bool) -> Step {
        let Some(chunk) = frame.data_ref() else {
            // Trailers end a body; they are not stored (RFC 9111 section 3.1).
            return self.end();
        };
        self.received += chunk.len();
        if self.received > self.most {
            return Step::Broken(Kept::TooLarge);
        }
        self.chunks.push(chunk.clone());
        match self.expected {
            Some(expected) if self.received > expected => Step::Broken(Kept::Incomplete),
            Some(expected) if self.received == expected => Step::Whole,
            _ if is_end => self.end(),
            _ => Step::More,
        }
    }

    fn end(&self) -> Step {
        match self.expected {
            Some(expected) if expected != self.received => Step::Broken(Kept::Incomplete),
            _ => Step::Whole,
        }
    }

    fn store(self) -> BoxFuture<'static, ()> {
        let content = Content::Pieces(self.chunks);
        self.draft.store(content).map(drop).boxed()
    }
}

impl<B> Filling<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    pub(super) fn new(inner: B, draft: Draft, expected: Option<usize>, most: usize) -> Self {
        let collecting = Collecting {
            audience: draft.fill.audience(),
            draft,
            chunks: Vec::new(),
            received: 0,
            expected,
            most,
        };
        let work = Work {
            inner,
            state: State::Collecting(Box::new(collecting)),
        };
        Self {
            work: Some(Box::pin(work)),
            finish,
        }
    }

    /// Goes on without a client.
    pub(super) fn detach(mut self) {
        if let Some(work) = self.work.take() {
            finish(work);
        }
    }
}

/// Goes on in the background, to the end or for as long as that may take.
fn finish<B>(mut work: Pin<Box<Work<B>>>)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(async move {
        let until = time::after(time::now(), BACKGROUND);
        let rest = async {
            while !matches!(work.state, State::Passing | State::Ended) {
                if poll_fn(|cx| work.as_mut().poll_frame(cx)).await.is_none() {
                    break;
                }
            }
        };
        let rest = std::pin::pin!(rest);
        let limit = std::pin::pin!(time::sleep_until(until));
        futures_util::future::select(rest, limit).await;
    });
}

impl<B> Work<B>
where
    B: Body<Data = Bytes>,
{
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        loop {
            match this.state {
                State::Collecting(collecting) => {
                    let frame = ready!(this.inner.as_mut().poll_frame(cx));
                    let step = match &frame {
                        Some(Ok(frame)) => collecting.take(frame, this.inner.is_end_stream()),
                        Some(Err(_)) => Step::Broken(Kept::Incomplete),
                        None => collecting.end(),
                    };
                    let next = match &frame {
                        Some(Ok(_)) => State::Passing,
                        Some(Err(_)) | None => State::Ended,
                    };
                    if matches!(step, Step::More) {
                        return Poll::Ready(frame);
                    }
                    let State::Collecting(collecting) = mem::replace(this.state, next) else {
                        unreachable!("it was collecting a moment ago");
                    };
                    if let Step::Broken(kept) = step {
                        collecting.draft.give_up(kept);
                        return Poll::Ready(frame);
                    }
                    *this.state = State::Storing {
                        store: collecting.store(),
                        last: frame.and_then(Result::ok),
                    };
                }
                State::Storing { store, last } => {
                    ready!(store.as_mut().poll(cx));
                    let last = last.take();
                    *this.state = match last {
                        Some(_) => State::Passing,
                        None => State::Ended,
                    };
                    return Poll::Ready(last.map(Ok));
                }
                State::Passing if this.inner.is_end_stream() => *this.state = State::Ended,
                State::Passing => return this.inner.as_mut().poll_frame(cx),
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl<B: Body<Data = Bytes>> Filling<B> {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.work {
            Some(work) => work.as_mut().poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.work.as_ref().is_none_or(|work| match work.state {
            State::Collecting(_) | State::Storing { .. } => false,
            State::Passing => work.inner.is_end_stream(),
            State::Ended => true,
        })
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let Some(work) = &self.work else {
            return SizeHint::with_exact(0);
        };
        match &work.state {
            State::Storing { last, .. } => {
                let held = last.as_ref().and_then(Frame::data_ref);
                SizeHint::with_exact(held.map_or(0, Bytes::len) as u64)
            }
            State::Collecting(_) | State::Passing => work.inner.size_hint(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl<B> Drop for Filling<B> {
    fn drop(&mut self) {
        let goes_on = |work: &mut Pin<Box<Work<B>>>| match &work.state {
            State::Collecting(collecting) => collecting.audience.is_waiting(),
            State::Storing { .. } => true,
            State::Passing | State::Ended => false,
        };
        if let Some(work) = self.work.take_if(goes_on) {
            (self.finish)(work);
        }
    }
}
