//! Work that goes on when its client leaves, as long as others wait for it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, select};
use http::Response;
use http_body::Body;

use super::{body::ResponseBody, filling::BACKGROUND, flight::Audience, resource::Resource};
use crate::time;

/// What the origin is asked for, with what follows its answer.
pub(super) type Exchange<R, E> = BoxFuture<'static, Result<Response<ResponseBody<R>>, E>>;

/// Goes on in the background: the answer is stored, and nobody gets it.
pub(super) fn in_background<R, E>(exchange: Exchange<R, E>)
where
    R: Body<Data = Bytes> + Send + 'static,
    E: Send + 'static,
{
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(async move {
        let until = time::after(time::now(), BACKGROUND);
        let work = Box::pin(async {
            if let Ok(response) = exchange.await {
                response.into_body().detach();
            }
        });
        select(work, Box::pin(time::sleep_until(until))).await;
    });
}

/// An exchange that outlives its client when others wait for it.
pub(super) struct Sheltered<R, E> {
    /// None once it is over, or somebody else took it over.
    exchange: Option<Exchange<R, E>>,
    audience: Audience<Resource>,
    take_over: fn(Exchange<R, E>),
}

impl<R, E> Sheltered<R, E>
where
    R: Body<Data = Bytes> + Send + 'static,
    E: Send + 'static,
{
    pub(super) fn new(exchange: Exchange<R, E>, audience: Audience<Resource>) -> Self {
        Self {
            exchange: Some(exchange),
            audience,
            take_over: in_background,
        }
    }
}

impl<R, E> Future for Sheltered<R, E> {
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let exchange = self.exchange.as_mut().expect("polled after it was ready");
        let result = exchange.as_mut().poll(cx);
        if result.is_ready() {
            self.exchange = None;
        }
        result
    }
}

impl<R, E> Drop for Sheltered<R, E> {
    fn drop(&mut self) {
        if self.audience.is_waiting()
            && let Some(exchange) = self.exchange.take()
        {
            (self.take_over)(exchange);
        }
    }
}
