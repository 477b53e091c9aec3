//! Alerts as HTTP requests.

use std::{fmt, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT},
    uri::Scheme,
};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use tower::Service;

use super::{Alert, Alerter, DeliveryError, Template};
use crate::{
    endpoint::{Address, Endpoint},
    error::BoxError,
    load::Totals,
    member::{Chosen, Member},
    time,
};

const AGENT: HeaderValue = HeaderValue::from_static("tower-gateway-alert");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The most of an answer that is read.
const LONGEST: usize = 64 * 1024;

/// The most of an answer that is repeated in the log.
const SHOWN: usize = 200;

/// Tells a receiver by a POST request, whose body is the [alert as JSON](Alert::to_json) or a
/// [`Template`].
///
/// Any answer of 2xx is a yes. After 408, 425, 429, 5xx, or none, the receiver is told again; any
/// other answer is a no, a redirect as well. What is told twice has the same `at`.
///
/// The client is any service that takes a request with an absolute URI; `Upstream`, with a
/// `TlsConnector` for `https`, is one.
///
/// # Defaults
///
/// - `body`: the alert as JSON
/// - `header`: `content-type: application/json`
/// - `timeout`: 5 s to the end of the answer
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "client")] {
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// use tower_gateway::{Upstream, monitor::{Template, Webhook}};
///
/// let url = "http://chat.example/hooks/42".parse()?;
/// let chat = Webhook::new(Upstream::<Full<Bytes>>::new(), url)?
///     .body(Template::new(r#"{"text": "{{text}}"}"#)?);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Webhook<S> {
    client: S,
    uri: Uri,
    name: Arc<str>,
    /// What an `Upstream` finds its connections by.
    receiver: Arc<Member>,
    body: Option<Template>,
    headers: HeaderMap,
    timeout: Duration,
}

/// A URL that is none of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a URL such as https://alerts.example/hook, without a user in it")]
pub struct InvalidWebhook(());

impl<S> Webhook<S> {
    /// A receiver at this URL.
    ///
    /// # Errors
    ///
    /// When the URL is not an absolute one of `http` or `https`, or has a user in it.
    pub fn new(client: S, url: Uri) -> Result<Self, InvalidWebhook> {
        let authority = url.authority().ok_or(InvalidWebhook(()))?;
        let default_port = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => 80,
            Some(scheme) if *scheme == Scheme::HTTPS => 443,
            _ => return Err(InvalidWebhook(())),
        };
        if authority.as_str().contains('@') {
            return Err(InvalidWebhook(()));
        }
        let port = authority.port_u16().unwrap_or(default_port);
        let address = format!("{}:{port}", authority.host());
        let address: Address = address.parse().map_err(|_| InvalidWebhook(()))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidWebhook(()))?;
        let name = format!("webhook {authority}").into();
        let receiver = Endpoint::new(address);
        let totals = Arc::new(Totals::default());
        let receiver = Member::new(Arc::new(receiver), totals, time::now());
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(USER_AGENT, AGENT);
        Ok(Self {
            client,
            uri: url,
            name,
            receiver: Arc::new(receiver),
            body: None,
            headers,
            timeout: Duration::from_secs(5),
        })
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, template: Template) -> Self {
        self.body = Some(template);
        self
    }

    /// Sets a header field, such as `authorization`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sets how long the receiver may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn request(&self, alert: &Alert) -> Request<Full<Bytes>> {
        let body = match &self.body {
            Some(template) => template.fill(alert),
            None => alert.to_json(),
        };
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let chosen = Chosen::new(Arc::clone(&self.receiver), None);
        request.extensions_mut().insert(chosen);
        request
    }
}

impl<S, B> Alerter for Webhook<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>> {
        let (mut client, request) = (self.client.clone(), self.request(alert));
        let told = async move {
            let ready = poll_fn(|cx| client.poll_ready(cx)).await;
            ready.map_err(DeliveryError::unreachable)?;
            let response = client.call(request).await;
            let (head, body) = response.map_err(DeliveryError::unreachable)?.into_parts();
            // Read to its end, an answer leaves its connection for the next alert. That it could
            // not be read changes nothing.
            let body = Limited::new(pin!(body), LONGEST).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes);
            judge(head.status, &head.headers, &body.unwrap_or_default())
        };
        let told = tokio::time::timeout(self.timeout, told);
        Box::pin(async {
            told.await
                .unwrap_or_else(|late| Err(DeliveryError::unreachable(late)))
        })
    }
}

fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), DeliveryError> {
    if status.is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(body);
    let shown: String = text
        .chars()
        .filter(|one| !one.is_control())
        .take(SHOWN)
        .collect();
    let source = format!("status {}: {shown}", status.as_u16()).into();
    let is_for_now = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    if !is_for_now {
        return Err(DeliveryError::Refused(source));
    }
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    Err(DeliveryError::Unreachable {
        source,
        retry_after: seconds
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs),
    })
}

/// The path of a URL may be as secret as a password.
impl<S> fmt::Debug for Webhook<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::monitor::alert::tests::alert;
    use parking_lot::Mutex;
    use std::convert::Infallible;
    use tower::service_fn;

    type Seen = Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>;

    /// A receiver that answers with this status, after so many seconds.
    fn receiver(
        status: u16,
        seconds: u64,
    ) -> (
        Seen,
        impl Service<
            Request<Full<Bytes>>,
            Response = Response<Full<Bytes>>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + Sync,
    ) {
        let seen = Seen::default();
        let noted = Arc::clone(&seen);
        let service = service_fn(move |request: Request<Full<Bytes>>| {
            let noted = Arc::clone(&noted);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                noted.lock().push((head, body));
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let response = Response::builder()
                    .status(status)
                    .header("retry-after", "7");
                Ok::<_, Infallible>(response.body(Full::from("no such\nhook")).unwrap())
            }
        });
        (seen, service)
    }

    const URL: &str = "https://alerts.example/hook?a=b";

    #[tokio::test(start_paused = true)]
    async fn a_receiver_gets_json_or_what_a_template_makes() {
        let (seen, client) = receiver(204, 0);
        let webhook = Webhook::new(client, URL.parse().unwrap()).unwrap();
        webhook.tell(&alert()).await.unwrap();
        let template = Template::new("{{rule}}").unwrap();
        let token = HeaderValue::from_static("Bearer s3cret");
        let plain = HeaderValue::from_static("text/plain");
        let webhook = webhook.body(template).header(CONTENT_TYPE, plain);
        let webhook = webhook.header(http::header::AUTHORIZATION, token);
        webhook.tell(&alert()).await.unwrap();
        assert_eq!(webhook.name(), "webhook alerts.example");
        assert!(!format!("{webhook:?}").contains("hook?"));

        let seen = seen.lock();
        let (head, body) = &seen[0];
        assert_eq!(
            (head.method.as_str(), head.uri.to_string()),
            ("POST", URL.to_owned())
        );
        assert_eq!(head.headers[HOST], "alerts.example");
        assert_eq!(head.headers[CONTENT_TYPE], "application/json");
        let chosen = head.extensions.get::<Chosen>().unwrap();
        assert_eq!(
            chosen.member().endpoint().address.as_str(),
            "alerts.example:443"
        );
        assert_eq!(*body, alert().to_json());
        let (head, body) = &seen[1];
        assert_eq!(head.headers[CONTENT_TYPE], "text/plain");
        assert_eq!(head.headers["authorization"], "Bearer s3cret");
        assert_eq!(*body, "high_error_rate");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_whether_to_come_again() {
        for (status, is_for_now) in [
            (500, true),
            (429, true),
            (408, true),
            (404, false),
            (302, false),
        ] {
            let (_, client) = receiver(status, 0);
            let webhook = Webhook::new(client, URL.parse().unwrap()).unwrap();
            match webhook.tell(&alert()).await.unwrap_err() {
                DeliveryError::Unreachable {
                    source,
                    retry_after,
                } => {
                    assert!(is_for_now, "{status}");
                    assert_eq!(source.to_string(), format!("status {status}: no suchhook"));
                    assert_eq!(retry_after, Some(Duration::from_secs(7)));
                }
                DeliveryError::Refused(_) => assert!(!is_for_now, "{status}"),
            }
        }
        let (_, client) = receiver(200, 6);
        let webhook = Webhook::new(client, URL.parse().unwrap()).unwrap();
        let late = webhook.tell(&alert()).await.unwrap_err();
        assert!(matches!(late, DeliveryError::Unreachable { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_long_answer_a_part_is_read_and_a_line_is_shown() {
        let read = Arc::new(Mutex::new(0));
        let noted = Arc::clone(&read);
        let client = service_fn(move |_: Request<Full<Bytes>>| {
            let noted = Arc::clone(&noted);
            let pieces = (0..1_000).map(move |_| {
                *noted.lock() += 1;
                let piece = Bytes::from(vec![b'x'; LONGEST / 4]);
                Ok::<_, Infallible>(http_body::Frame::data(piece))
            });
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let webhook = Webhook::new(client, URL.parse().unwrap()).unwrap();
        webhook.tell(&alert()).await.unwrap();
        assert_eq!(*read.lock(), 5);
        let long = vec![b'x'; LONGEST];
        let error = judge(StatusCode::NOT_FOUND, &HeaderMap::new(), &long).unwrap_err();
        assert!(error.to_string().len() < SHOWN + 100, "{error}");
    }

    #[test]
    fn a_url_is_absolute_and_without_a_user() {
        for url in ["/hook", "ftp://a/", "http://me:secret@a/", "a:80"] {
            let url = url.parse().unwrap();
            assert_eq!(Webhook::new((), url).unwrap_err(), InvalidWebhook(()));
        }
        for (url, address) in [
            ("http://a", "a:80"),
            ("https://[::1]/x", "[::1]:443"),
            ("http://127.0.0.1:9/alert", "127.0.0.1:9"),
        ] {
            let webhook = Webhook::new((), url.parse().unwrap()).unwrap();
            assert_eq!(webhook.receiver.endpoint().address.as_str(), address);
        }
    }
}
