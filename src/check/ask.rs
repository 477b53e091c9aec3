//! One request to one endpoint, by a client of the application's choice.

use std::{error::Error, future::poll_fn, pin::pin, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{HOST, USER_AGENT},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use tower::Service;

use super::{Finding, system};
use crate::{
    error::{BoxError, TransportError, TransportErrorKind},
    head::LEAVES,
    load::Totals,
    member::{Chosen, Member, Owner},
    time,
};

/// What checks call themselves.
const AGENT: HeaderValue = HeaderValue::from_static("tower-gateway-check");

/// The most of an answer that is read: a longer one costs its connection.
const LONGEST: usize = 64 * 1024;

/// Says who asks, and which host is meant when it is not the endpoint itself.
pub(super) fn introduce(headers: &mut HeaderMap, host: Option<&Authority>) {
    headers.insert(USER_AGENT, AGENT);
    if let Some(host) = host {
        let host = HeaderValue::from_str(host.as_str());
        headers.insert(HOST, host.expect("an authority is a header value"));
    }
}

/// Where and how endpoints are asked.
#[derive(Clone, Debug)]
pub(super) struct Asker<S> {
    client: S,
    pub(super) scheme: Scheme,
    port: Option<u16>,
    /// In its name, endpoints have a twin at the other port.
    owner: Owner,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// As much of it as is worth reading.
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

impl<S> Asker<S> {
    pub(super) fn new(client: S) -> Self {
        Self {
            client,
            scheme: Scheme::HTTP,
            port: None,
            owner: Owner::default(),
        }
    }

    pub(super) fn set_port(&mut self, port: u16) {
        self.port = Some(port);
        self.owner = Owner::default();
    }

    /// The member itself, or its twin at the other port.
    fn target(&self, member: &Arc<Member>) -> Arc<Member> {
        let Some(port) = self.port else {
            return Arc::clone(member);
        };
        member.attachment(&self.owner, || {
            let mut endpoint = member.endpoint().as_ref().clone();
            endpoint.address = endpoint.address.at_port(port);
            Member::new(Arc::new(endpoint), Arc::new(Totals::default()), time::now())
        })
    }

    /// Makes of a request what balance would have made of it.
    fn prepare(
        &self,
        member: &Arc<Member>,
        path: PathAndQuery,
        request: &mut Request<Full<Bytes>>,
    ) {
        let target = self.target(member);
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(target.endpoint().address.authority().clone())
            .path_and_query(path)
            .build();
        *request.uri_mut() = uri.expect("scheme, authority and path are a whole URI");
        request.extensions_mut().insert(Chosen::new(target, None));
    }

    /// Sends the request to the member. What fails instead is what that says of the endpoint.
    pub(super) fn ask<B>(
        &self,
        member: &Arc<Member>,
        path: PathAndQuery,
        mut request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Answer, Finding>> + Send + use<S, B>
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.prepare(member, path, &mut request);
        let mut client = self.client.clone();
        async move {
            let ready = poll_fn(|cx| client.poll_ready(cx)).await;
            ready.map_err(|error| failed(&error.into()))?;
            let response = client.call(request).await;
            let response = response.map_err(|error| failed(&error.into()))?;
            let leaves = response.headers().contains_key(&LEAVES);
            let answer = read(response).await?;
            match leaves {
                true => Err(Finding::draining("it says that it leaves")),
                false => Ok(answer),
            }
        }
    }
}

async fn read<B: Body<Error: Into<BoxError>>>(response: Response<B>) -> Result<Answer, Finding> {
    let (head, body) = response.into_parts();
    let mut body = pin!(body);
    let mut read = BytesMut::new();
    let mut trailers = HeaderMap::new();
    // Read to its end, an answer leaves its connection for the next probe.
    while read.len() < LONGEST
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| failed(&error.into()))?;
        match frame.into_data() {
            Ok(mut data) => {
                while data.has_remaining() {
                    let chunk = data.chunk();
                    let length = chunk.len();
                    read.extend_from_slice(chunk);
                    data.advance(length);
                }
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: read.freeze(),
        trailers,
    })
}

/// What it says of an endpoint that it could not be asked.
fn failed(error: &BoxError) -> Finding {
    if let Some(finding) = io_error(&**error) {
        return finding;
    }
    let Some(transport) = TransportError::find(error) else {
        return Finding::fail(error.to_string());
    };
    let kind = transport.kind();
    let reason = match transport.source() {
        Some(source) => format!("{}: {source}", kind.description()),
        None => kind.description().to_owned(),
    };
    match kind {
        // The client's own bound.
        TransportErrorKind::Overloaded | TransportErrorKind::NoEndpoint => {
            Finding::inconclusive(reason)
        }
        _ => Finding::fail(reason),
    }
}

/// What the operating system said, if it was asked.
fn io_error(error: &(dyn Error + 'static)) -> Option<Finding> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(system::found(error));
        }
        next = error.source();
    }
    None
}
