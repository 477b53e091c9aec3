//! A body on its way to a client and into the cache.

use std::{
    any::Any,
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Either, select},
};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::mpsc;

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
/// on without one; when its client is slow to read, nobody waits for that.
pub(super) struct Filling<B> {
    source: Arc<Mutex<Source<B>>>,
    /// Takes it over when nobody polls any more.
    finish: fn(Pin<Box<Work<B>>>),
}

/// Where the client of a body has it from.
enum Source<B> {
    /// The body itself, which comes no sooner than it is read.
    Own {
        work: Pin<Box<Work<B>>>,
        /// Who reads it.
        reader: Option<Waker>,
    },
    /// A task that reads for all, until there is nothing to collect any more.
    Driven {
        frames: mpsc::UnboundedReceiver<Passed<B>>,
        /// Of the body, if that is known.
        left: Option<u64>,
    },
    /// Somebody else took it over, or it is read.
    Over,
}

/// What a task hands to the client.
enum Passed<B> {
    Frame(Frame<Bytes>),
    /// The error of the body.
    Failed(Box<dyn Any + Send>),
    /// The rest.
    Work(Pin<Box<Work<B>>>),
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
    B::Error: Send,
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
        let audience = collecting.draft.fill.audience();
        let work = Work {
            inner,
            state: State::Collecting(Box::new(collecting)),
        };
        let source = Arc::new(Mutex::new(Source::Own {
            work: Box::pin(work),
            reader: None,
        }));
        let drives = Arc::downgrade(&source);
        audience.when_waiting(move || {
            if let Some(source) = drives.upgrade() {
                drive(&source);
            }
        });
        Self { source, finish }
    }
}

impl<B> Filling<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    /// Goes on without a client.
    pub(super) fn detach(self) {
        let source = mem::replace(&mut *self.source.lock(), Source::Over);
        match source {
            Source::Own { work, .. } => (self.finish)(work),
            Source::Driven { mut frames, .. } => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move { while frames.recv().await.is_some() {} });
                }
            }
            Source::Over => {}
        }
    }
}

/// Has a task read the body, now that others wait for it: they must not wait for its client.
fn drive<B>(source: &Mutex<Source<B>>)
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
{
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let mut source = source.lock();
    match mem::replace(&mut *source, Source::Over) {
        Source::Own { work, reader } if work.is_filling() => {
            let (sender, frames) = mpsc::unbounded_channel();
            let left = work.inner.size_hint().exact();
            *source = Source::Driven { frames, left };
            drop(source);
            runtime.spawn(read_for_all(work, sender));
            if let Some(reader) = reader {
                reader.wake();
            }
        }
        other => *source = other,
    }
}

/// Reads the body for as long as it is collected, then leaves it to its client. What the client has
/// not read yet is no more than is collected.
async fn read_for_all<B>(mut work: Pin<Box<Work<B>>>, client: mpsc::UnboundedSender<Passed<B>>)
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
{
    let until = time::after(time::now(), BACKGROUND);
    let mut limit = std::pin::pin!(time::sleep_until(until));
    while work.is_filling() {
        let frame = poll_fn(|cx| work.as_mut().poll_frame(cx));
        let Either::Left((frame, _)) = select(frame, limit.as_mut()).await else {
            break;
        };
        let passed = match frame {
            Some(Ok(frame)) => Passed::Frame(frame),
            Some(Err(error)) => Passed::Failed(Box::new(error)),
            None => break,
        };
        let is_read = client.send(passed).is_ok();
        if !is_read && !work.is_awaited() {
            return;
        }
    }
    // An error says that the client is gone.
    drop(client.send(Passed::Work(work)));
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
            while work.is_filling() {
                if poll_fn(|cx| work.as_mut().poll_frame(cx)).await.is_none() {
                    break;
                }
            }
        };
        let rest = std::pin::pin!(rest);
        let limit = std::pin::pin!(time::sleep_until(until));
        select(rest, limit).await;
    });
}

impl<B> Work<B> {
    /// Whether anything comes of it beside what its client reads.
    fn is_filling(&self) -> bool {
        matches!(self.state, State::Collecting(_) | State::Storing { .. })
    }

    /// Whether anybody beside its client waits for it.
    fn is_awaited(&self) -> bool {
        match &self.state {
            State::Collecting(collecting) => collecting.audience.is_waiting(),
            State::Storing { .. } => true,
            State::Passing | State::Ended => false,
        }
    }
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

impl<B: Body<Data = Bytes>> Work<B> {
    fn is_end_stream(&self) -> bool {
        match self.state {
            State::Collecting(_) | State::Storing { .. } => false,
            State::Passing => self.inner.is_end_stream(),
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Storing { last, .. } => {
                let held = last.as_ref().and_then(Frame::data_ref);
                SizeHint::with_exact(held.map_or(0, Bytes::len) as u64)
            }
            State::Collecting(_) | State::Passing => self.inner.size_hint(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl<B> Filling<B>
where
    B: Body<Data = Bytes> + 'static,
{
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut source = self.source.lock();
        loop {
            match &mut *source {
                Source::Own { work, reader } => {
                    let frame = work.as_mut().poll_frame(cx);
                    if frame.is_pending()
                        && !reader.as_ref().is_some_and(|one| one.will_wake(cx.waker()))
                    {
                        *reader = Some(cx.waker().clone());
                    }
                    return frame;
                }
                Source::Driven { frames, left } => match ready!(frames.poll_recv(cx)) {
                    Some(Passed::Frame(frame)) => {
                        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                        *left = left.map(|left| left.saturating_sub(length));
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some(Passed::Failed(error)) => {
                        *source = Source::Over;
                        let error = error.downcast().expect("only errors of the body are sent");
                        return Poll::Ready(Some(Err(*error)));
                    }
                    Some(Passed::Work(work)) => *source = Source::Own { work, reader: None },
                    // The task is gone with its runtime. What is missing must not look like the end.
                    None => return Poll::Pending,
                },
                Source::Over => return Poll::Ready(None),
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match &*self.source.lock() {
            Source::Own { work, .. } => work.is_end_stream(),
            Source::Driven { .. } => false,
            Source::Over => true,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &*self.source.lock() {
            Source::Own { work, .. } => work.size_hint(),
            Source::Driven { left, .. } => {
                left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Source::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B> Drop for Filling<B> {
    fn drop(&mut self) {
        // A task that reads for all goes on for as long as somebody waits.
        let source = mem::replace(&mut *self.source.lock(), Source::Over);
        if let Source::Own { work, .. } = source
            && work.is_awaited()
        {
            (self.finish)(work);
        }
    }
}
