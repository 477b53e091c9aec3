//! The answer to who is denied.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, header::RETRY_AFTER};

use super::{ask::Decision, field::seconds, limiter::View, status};
use crate::refusal::{Dialect, Reason, Refusal, json_string};

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// 429, or 503 where the store cannot be asked; RESOURCE_EXHAUSTED and UNAVAILABLE for gRPC. The
/// client is told to wait so much longer than it must.
pub(super) fn refuse<B: From<Bytes>>(
    view: View<'_>,
    dialect: Dialect,
    longer: Duration,
) -> Response<B> {
    let refusal = match view.decision {
        Decision::Unavailable { .. } => {
            Refusal::new(Reason::Overloaded, "the limit cannot be checked now")
        }
        Decision::Never => Refusal::new(
            Reason::RateLimited,
            "the request takes more than the limit ever admits",
        ),
        _ => Refusal::new(Reason::RateLimited, "the limit is reached"),
    };
    let retry_after = view.decision.retry_after();
    let retry_after = retry_after.map(|span| span.saturating_add(longer));
    match dialect {
        Dialect::Http => {
            let mut response = refusal.into_problem(&members(view));
            if let Some(span) = retry_after {
                let seconds = seconds(span).max(1);
                let headers = response.headers_mut();
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        Dialect::Grpc => {
            let code = refusal.reason().grpc_status();
            let limits = view.denying().map(|(limit, ..)| &**limit.name());
            let details = status::details(code, refusal.detail(), retry_after, limits);
            let pushback = match retry_after {
                Some(span) => HeaderValue::from(span.as_nanos().div_ceil(1_000_000) as u64),
                // Not to be tried again (gRFC A6).
                None => HeaderValue::from_static("-1"),
            };
            let mut response = refusal.into_response(dialect);
            let headers = response.headers_mut();
            headers.insert(PUSHBACK, pushback);
            headers.insert(DETAILS, details);
            response
        }
    }
}

/// The members of the problem document that the draft of the fields adds.
fn members(view: View<'_>) -> String {
    let kind = match view.decision {
        Decision::Unavailable { .. } => "temporary-reduced-capacity",
        _ => "quota-exceeded",
    };
    let mut members =
        format!(r#","type":"https://iana.org/assignments/http-problem-types#{kind}""#);
    members.push_str(r#","violated-policies":["#);
    for (position, (limit, ..)) in view.denying().enumerate() {
        if position > 0 {
            members.push(',');
        }
        json_string(&mut members, limit.name());
    }
    members.push(']');
    members
}
