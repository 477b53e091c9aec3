//! How the endpoints of a cluster are checked.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    ops::RangeInclusive,
    time::Duration,
};

use http::uri::{Authority, PathAndQuery};

use crate::yaml::{Fields, Mistakes, Value, number, one_of, positive_duration, text};

/// More probes than this at a time have no descriptors.
const MOST_PROBES: usize = 65_536;

/// Checks of the endpoints of a cluster.
///
/// # Defaults
///
/// - `port`: that of the endpoint
/// - `interval`: 5 s
/// - `fast_interval`: 1 s, while the verdict may turn
/// - `timeout`: 1 s
/// - `rise`: 2
/// - `fall`: 3
/// - `concurrency`: 512
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthSettings {
    /// What is asked.
    pub check: CheckSettings,
    /// The port that is asked, when it is not that of the endpoint.
    pub port: Option<u16>,
    /// From one probe to the next.
    pub interval: Duration,
    /// From one probe to the next while the verdict may turn.
    pub fast_interval: Duration,
    /// How long an endpoint may take to answer.
    pub timeout: Duration,
    /// Passes in a row that make an unhealthy endpoint healthy.
    pub rise: NonZeroU32,
    /// Failures in a row that make a healthy endpoint unhealthy.
    pub fall: NonZeroU32,
    /// How many probes of the cluster may be under way at a time.
    pub concurrency: NonZeroUsize,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckSettings {
    /// A GET request.
    Http {
        /// The path, with its query; `/` by default.
        path: PathAndQuery,
        /// What `Host` says; the address of the endpoint by default.
        host: Option<Authority>,
        /// Which statuses are well: 200 to 299 by default.
        expect_status: RangeInclusive<u16>,
        /// Which statuses say that the endpoint is about to leave; none by default.
        drain_status: Option<RangeInclusive<u16>>,
        /// How the body has to begin; nothing by default.
        expect_body: String,
    },
    /// A connection.
    Tcp,
    /// The health service of gRPC.
    Grpc {
        /// The service that is asked for; empty, the server as a whole, by default.
        service: String,
        /// What `:authority` says; the address of the endpoint by default.
        host: Option<Authority>,
    },
}

pub(super) fn health(value: &Value<'_>) -> Result<HealthSettings, Mistakes> {
    #[derive(Clone, Copy)]
    enum Kind {
        Http,
        Tcp,
        Grpc,
    }
    let mut fields = value.fields()?;
    let kind = one_of(&[
        ("http", Kind::Http),
        ("tcp", Kind::Tcp),
        ("grpc", Kind::Grpc),
    ]);
    let check = match fields.required("type", kind) {
        // Which other keys are known depends on the type.
        None => return fields.abandon(None),
        Some(Kind::Http) => http(&mut fields),
        Some(Kind::Tcp) => CheckSettings::Tcp,
        Some(Kind::Grpc) => {
            let service = fields.optional("service", text);
            CheckSettings::Grpc {
                service: service.unwrap_or_default(),
                host: fields.optional("host", host),
            }
        }
    };
    let two = NonZeroU32::MIN.saturating_add(1);
    let settings = HealthSettings {
        check,
        port: fields.optional("port", number(1..=65_535_u16)),
        interval: duration(&mut fields, "interval", Duration::from_secs(5)),
        fast_interval: duration(&mut fields, "fast_interval", Duration::from_secs(1)),
        timeout: duration(&mut fields, "timeout", Duration::from_secs(1)),
        rise: count(&mut fields, "rise", two),
        fall: count(&mut fields, "fall", two.saturating_add(1)),
        concurrency: fields
            .optional("concurrency", number(1..=MOST_PROBES))
            .and_then(NonZeroUsize::new)
            .unwrap_or(const { NonZeroUsize::new(512).expect("it is not zero") }),
    };
    fields.finish(Some(settings))
}

fn http(fields: &mut Fields<'_>) -> CheckSettings {
    let path = fields.optional("path", path);
    let expect_status = fields.optional("expect_status", statuses);
    let drain_status = fields.optional("drain_status", statuses);
    let expect_body = fields.optional("expect_body", text);
    CheckSettings::Http {
        path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
        host: fields.optional("host", host),
        expect_status: expect_status.unwrap_or(200..=299),
        drain_status,
        expect_body: expect_body.unwrap_or_default(),
    }
}

fn duration(fields: &mut Fields<'_>, key: &'static str, default: Duration) -> Duration {
    fields.optional(key, positive_duration).unwrap_or(default)
}

fn count(fields: &mut Fields<'_>, key: &'static str, default: NonZeroU32) -> NonZeroU32 {
    let count = fields.optional(key, number(1..=1000_u32));
    count.and_then(NonZeroU32::new).unwrap_or(default)
}

fn path(value: &Value<'_>) -> Result<PathAndQuery, Mistakes> {
    let path = text(value)?;
    let parsed = path.starts_with('/').then(|| path.parse().ok()).flatten();
    parsed.ok_or_else(|| value.expected("a path that begins with a slash, such as /health"))
}

fn host(value: &Value<'_>) -> Result<Authority, Mistakes> {
    let host = text(value)?.parse::<Authority>().ok();
    host.filter(|host| !host.as_str().contains('@'))
        .ok_or_else(|| value.expected("a host, such as users.internal"))
}

/// `200`, or `200-399`.
fn statuses(value: &Value<'_>) -> Result<RangeInclusive<u16>, Mistakes> {
    let status = |text: &str| {
        let is_status = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_status.then(|| text.parse().ok()).flatten()
    };
    let text = text(value)?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    match (status(first.trim()), status(last.trim())) {
        (Some(first), Some(last)) if 100 <= first && first <= last && last <= 599 => {
            Ok(first..=last)
        }
        _ => Err(value.expected("a status such as 200, or a range such as 200-399")),
    }
}
