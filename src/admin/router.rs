//! The routes of the admin router.

use std::net::IpAddr;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE},
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post},
};
use serde_json::{Value, json};

use super::{Admin, Readiness};
use crate::{
    cluster::{Cluster, NoSuchEndpoint, NotSuspected},
    endpoint::EndpointId,
    head::LEAVES,
};

pub(super) fn router(admin: Admin) -> Router {
    let guarded = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/alerts", get(alerts))
        .route("/clusters", get(clusters))
        .route("/config", get(config))
        .route("/nodes", get(nodes))
        .route("/limits/{name}/", limit())
        .route("/limits/{name}/{*key}", limit())
        .route("/drain", post(drain))
        .route("/resume", post(resume))
        .route("/suspect", post(suspect))
        .route("/cache/invalidate", post(super::cache::invalidate))
        .layer(middleware::from_fn_with_state(admin.clone(), authorize));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .fallback(async || {
            let text =
                "not found; try /alerts, /clusters, /config, /healthz, /limits/NAME/KEY, /metrics, /nodes, /readyz, \
                 POST /cache/invalidate, POST /drain, POST /resume, POST /suspect\n";
            (StatusCode::NOT_FOUND, text)
        })
        .with_state(admin)
}

fn limit() -> MethodRouter<Admin> {
    get(super::limits::limit).delete(super::limits::limit)
}

async fn index() -> &'static str {
    "GET /healthz /readyz /metrics /alerts /clusters /config /nodes /limits/NAME/KEY, POST /cache/invalidate /drain /resume /suspect\n"
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let readiness = admin.readiness();
    let status = match readiness {
        Readiness::Ready => StatusCode::OK,
        Readiness::Starting | Readiness::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = (status, format!("{}\n", readiness.as_str())).into_response();
    if readiness == Readiness::Draining {
        let headers = response.headers_mut();
        headers.insert(LEAVES, HeaderValue::from_static("true"));
    }
    response
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let text = super::metrics::render(&admin);
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

async fn alerts(State(admin): State<Admin>) -> Response {
    let monitor = admin.shared.monitor.lock().clone();
    json_response(&super::alerts::render(monitor.as_ref()))
}

async fn clusters(State(admin): State<Admin>) -> Response {
    json_response(&super::clusters::render(&admin.shared.clusters.load()))
}

async fn nodes(State(admin): State<Admin>) -> Response {
    let membership = admin.shared.membership.lock().clone();
    json_response(&super::nodes::render(membership.as_ref()))
}

async fn config(State(admin): State<Admin>) -> Response {
    let status = admin.config();
    json_response(&json!({
        "node": *admin.shared.node.lock(),
        "version": status.version,
        "source": status.source,
        "refused": status.refused,
        "rejected": status.rejected,
        "restart_needed": status.restart_needed,
    }))
}

/// Drains an endpoint where the body names one, and the node where there is none.
async fn drain(State(admin): State<Admin>, body: Bytes) -> Response {
    if !is_nothing(&body) {
        return wish(&admin, &body, "draining\n", Cluster::drain);
    }
    admin.set_readiness(Readiness::Draining);
    admin.shared.drain.send_replace(true);
    (StatusCode::ACCEPTED, "draining\n").into_response()
}

/// Gives an endpoint requests again.
async fn resume(State(admin): State<Admin>, body: Bytes) -> Response {
    wish(&admin, &body, "resuming\n", Cluster::resume)
}

/// Whether a body says nothing, as a client may that has to send one.
fn is_nothing(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"" | b"{}" | b"null")
}

fn wish(
    admin: &Admin,
    body: &[u8],
    done: &'static str,
    wish: fn(&Cluster, &EndpointId) -> Result<(), NoSuchEndpoint>,
) -> Response {
    let (cluster, endpoint) = match named(admin, body) {
        Ok(named) => named,
        Err(response) => return *response,
    };
    match wish(&cluster, &endpoint) {
        Ok(()) => (StatusCode::ACCEPTED, done).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    }
}

/// Has an endpoint probed at once; what comes of it is the verdict of the probe.
async fn suspect(State(admin): State<Admin>, body: Bytes) -> Response {
    let (cluster, endpoint) = match named(&admin, &body) {
        Ok(named) => named,
        Err(response) => return *response,
    };
    match cluster.suspect(&endpoint) {
        Ok(()) => (StatusCode::ACCEPTED, "probing\n").into_response(),
        Err(error) => {
            let status = match error {
                NotSuspected::NoChecks => StatusCode::CONFLICT,
                _ => StatusCode::NOT_FOUND,
            };
            (status, format!("{error}\n")).into_response()
        }
    }
}

/// The cluster that a body names, and the name of its endpoint.
fn named(admin: &Admin, body: &[u8]) -> Result<(Cluster, EndpointId), Box<Response>> {
    let Some((cluster, endpoint)) = names(body) else {
        let text =
            "expected JSON such as {\"cluster\": \"users\", \"endpoint\": \"127.0.0.1:9001\"}\n";
        return Err(Box::new((StatusCode::BAD_REQUEST, text).into_response()));
    };
    let clusters = admin.shared.clusters.load();
    let found = clusters.iter().find(|found| **found.name() == *cluster);
    match found {
        Some(found) => Ok((found.clone(), endpoint.into())),
        None => {
            let text = format!("no cluster {cluster}\n");
            Err(Box::new((StatusCode::NOT_FOUND, text).into_response()))
        }
    }
}

/// The cluster and the endpoint that a body names.
fn names(body: &[u8]) -> Option<(String, String)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let name = |key| Some(body.get(key)?.as_str()?.to_owned());
    Some((name("cluster")?, name("endpoint")?))
}

pub(super) fn json_response(value: &Value) -> Response {
    let mut response = Response::new(Body::from(format!("{value:#}\n")));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Lets through who shows the token, when there is one.
async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let token = admin.shared.token.lock().clone();
    let shown = request.headers().get(AUTHORIZATION).and_then(shown_token);
    let is_allowed = match &token {
        // Without a token, a page in a browser on this machine must not drain the node.
        None if is_cross_site(&request) => {
            let text = "refused: the request comes from another site\n";
            return (StatusCode::FORBIDDEN, text).into_response();
        }
        // Nor must one read it by a name of its own that it points at this machine.
        None if !is_local_name(&request) => {
            let text = "refused: without an admin token, the host is an address or localhost\n";
            return (StatusCode::FORBIDDEN, text).into_response();
        }
        None => true,
        Some(token) => shown.is_some_and(|shown| equal(shown, token.as_bytes())),
    };
    if is_allowed {
        return next.run(request).await;
    }
    let challenge = [(WWW_AUTHENTICATE, "Bearer")];
    (
        StatusCode::UNAUTHORIZED,
        challenge,
        "the admin token is missing or wrong\n",
    )
        .into_response()
}

/// The token of a field; the name of its scheme is in any case (RFC 9110 section 11.1).
fn shown_token(field: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = field.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii_start())
}

/// Whether a browser sends a request that changes something on behalf of another page.
fn is_cross_site(request: &Request) -> bool {
    let headers = request.headers();
    let is_from_elsewhere = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none");
    !request.method().is_safe() && (headers.contains_key(ORIGIN) || is_from_elsewhere)
}

/// Whether the request names its host as an address or as `localhost`, which no DNS server answers
/// for. One without a host does not come from a browser.
fn is_local_name(request: &Request) -> bool {
    let in_header = || request.headers().get(HOST).map(HeaderValue::as_bytes);
    let in_uri = request.uri().authority().map(|it| it.as_str().as_bytes());
    let Some(host) = in_uri.or_else(in_header) else {
        return true;
    };
    let Some(authority) = Authority::try_from(host).ok() else {
        return false;
    };
    let name = authority.host().trim_end_matches('.');
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

/// Takes the same time wherever the texts differ.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let differ = one
        .iter()
        .zip(other)
        .fold(0, |differ, (a, b)| differ | (a ^ b));
    one.len() == other.len() && differ == 0
}
