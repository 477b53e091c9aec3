//! The settings of a route.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, header};

use super::{
    CacheSettings, ClusterSettings, cache,
    failover::{self, FailoverSettings},
    limit::{self, LimitSettings},
    structure::subset_of,
};
use crate::{
    cluster::Subset,
    route::Match,
    yaml::{Mistakes, Value, number, one_of, positive_duration, text},
};

/// The settings of a route.
///
/// # Defaults
///
/// - `timeout`, `idle_timeout`: 60 s
/// - `rate_limit`: none
/// - `failover`: none, which stands for requests that were never written alone
/// - `cache`: none
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteSettings {
    /// Which requests it takes.
    pub matching: Match,
    /// Where they go. Never empty; at least one weight is positive.
    pub clusters: Vec<Share>,
    /// The longest time from the head of the request to the head of the response, over all
    /// attempts.
    pub timeout: Duration,
    /// The longest time without a byte of a body, either way.
    pub idle_timeout: Duration,
    /// The limits, of which all must admit a request.
    pub rate_limit: Vec<LimitSettings>,
    /// When requests are sent again, beyond those that were never written.
    pub failover: Option<FailoverSettings>,
    /// What is kept of its responses.
    pub cache: Option<CacheSettings>,
}

/// A cluster and its share of a route.
///
/// # Defaults
///
/// - `weight`: 1
/// - `subset`: none, every endpoint
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Share {
    /// The name of a cluster of the same file.
    pub cluster: String,
    /// The share, relative to the other clusters of the route; 0 gets nothing.
    pub weight: u32,
    /// The part of the cluster.
    pub subset: Option<Subset>,
}

/// The clusters that a route may name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'k> {
    pub(super) names: &'k [&'k str],
    /// `None` when any of them has a mistake.
    pub(super) clusters: Option<&'k BTreeMap<String, ClusterSettings>>,
}

/// Reads a route to some of these clusters.
pub(super) fn read(value: &Value<'_>, known: Known<'_>) -> Result<RouteSettings, Mistakes> {
    let mut fields = value.fields()?;
    let matching = fields.required("match", matching);
    let one = fields.value("cluster");
    let many = fields.value("clusters");
    let part = fields.value("subset");
    let shares = match (one, many) {
        (Some(one), None) => fields.keep(cluster(&one, known)).map(|cluster| {
            let subset = part.and_then(|part| fields.keep(known.subset(&part, &cluster)));
            vec![Share {
                cluster,
                weight: 1,
                subset: subset.flatten(),
            }]
        }),
        (None, Some(many)) => {
            if let Some(part) = part {
                fields.keep::<()>(Err(
                    part.wrong("expected subset in each item of clusters, found it beside them")
                ));
            }
            fields.keep(shares(&many, known))
        }
        (Some(_), Some(many)) => {
            fields.keep(Err(many.wrong("expected cluster or clusters, found both")))
        }
        (None, None) => fields.keep(Err(
            value.wrong("expected cluster or clusters, found neither")
        )),
    };
    let timeout = fields.optional("timeout", positive_duration);
    let idle_timeout = fields.optional("idle_timeout", positive_duration);
    let rate_limit = fields.optional("rate_limit", limit::read);
    let failover = fields.optional("failover", |value| {
        failover::read(value, known, shares.as_deref().unwrap_or_default())
    });
    let cache = fields.optional("cache", cache::read);
    let route = matching
        .zip(shares)
        .map(|(matching, clusters)| RouteSettings {
            matching,
            clusters,
            timeout: timeout.unwrap_or(Duration::from_secs(60)),
            idle_timeout: idle_timeout.unwrap_or(Duration::from_secs(60)),
            rate_limit: rate_limit.unwrap_or_default(),
            failover,
            cache,
        });
    fields.finish(route)
}

impl Known<'_> {
    /// The subset of a cluster. `None` when it is not known which there are.
    fn subset(self, value: &Value<'_>, cluster: &str) -> Result<Option<Subset>, Mistakes> {
        let Some(settings) = self.clusters.and_then(|clusters| clusters.get(cluster)) else {
            return Ok(None);
        };
        subset_of(value, cluster, settings.subsets.as_ref()).map(Some)
    }
}

pub(super) fn cluster(value: &Value<'_>, known: Known<'_>) -> Result<String, Mistakes> {
    if known.names.is_empty() {
        return Err(value.expected("a cluster of this file, which has none"));
    }
    let known: Vec<(&str, &str)> = known.names.iter().map(|name| (*name, *name)).collect();
    one_of(&known)(value).map(str::to_owned)
}

fn shares(value: &Value<'_>, known: Known<'_>) -> Result<Vec<Share>, Mistakes> {
    let mut seen = HashSet::new();
    let shares = value.list(|item| {
        let mut fields = item.fields()?;
        let part = fields.value("subset");
        let share = fields.required("name", |name| {
            let cluster = cluster(name, known)?;
            let subset = part.map(|part| known.subset(&part, &cluster)).transpose()?;
            let share = (cluster, subset.flatten());
            if seen.insert(share.clone()) {
                return Ok(share);
            }
            let (cluster, _) = share;
            Err(name.wrong(format!(
                "expected each cluster once, found {cluster:?} again"
            )))
        });
        let weight = fields.optional("weight", number(0..=u32::MAX)).unwrap_or(1);
        fields.finish(share.map(|(cluster, subset)| Share {
            cluster,
            weight,
            subset,
        }))
    })?;
    if shares.iter().all(|share| share.weight == 0) {
        return Err(value.wrong("expected at least one cluster with a weight above 0, found none"));
    }
    Ok(shares)
}

fn matching(value: &Value<'_>) -> Result<Match, Mistakes> {
    let mut fields = value.fields()?;
    let host = fields.optional("host", |value| {
        let expected = "a host without a port, such as api.example.com or *.example.com";
        text(value)?.parse().map_err(|_| value.expected(expected))
    });
    let prefix = fields.optional("path_prefix", |value| {
        let expected = "a path that begins with a slash and has no query, such as /api";
        text(value)?.parse().map_err(|_| value.expected(expected))
    });
    let methods = fields.optional("methods", |methods| {
        let list = methods.list(method)?;
        if list.is_empty() {
            return Err(methods.wrong("expected at least one method, found an empty list"));
        }
        Ok(list)
    });
    let headers = fields.optional("headers", |headers| headers.map(header));

    let mut matching = Match::any();
    if let Some(host) = host {
        matching = matching.host(host);
    }
    if let Some(prefix) = prefix {
        matching = matching.path_prefix(prefix);
    }
    for method in methods.unwrap_or_default() {
        matching = matching.method(method);
    }
    for (name, value) in headers.unwrap_or_default() {
        matching = matching.header(name, value);
    }
    fields.finish(Some(matching))
}

/// Methods are case-sensitive (RFC 9110, 9.1): `get` is a valid method that nobody sends.
fn method(value: &Value<'_>) -> Result<Method, Mistakes> {
    let method = text(value)?;
    if !method.bytes().any(|byte| byte.is_ascii_lowercase())
        && let Ok(method) = Method::from_bytes(method.as_bytes())
    {
        return Ok(method);
    }
    Err(value.expected("a method in capital letters, such as GET"))
}

fn header(name: &str, value: &Value<'_>) -> Result<(HeaderName, HeaderValue), Mistakes> {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err(value.wrong(format!("expected the name of a header, found {name:?}")));
    };
    if name == header::HOST {
        // HTTP/2 has no such header: the condition would depend on the version.
        return Err(value.wrong("expected host of match instead, found the header host"));
    }
    let Ok(text) = HeaderValue::from_str(&text(value)?) else {
        return Err(value.expected("the value of a header"));
    };
    Ok((name, text))
}
