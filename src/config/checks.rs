//! The active checks of a cluster.

use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::Full;

use super::{
    plan::Tls,
    settings::{CheckSettings, ClusterSettings, HealthSettings, Protocol},
};
use crate::{
    check::{Checks, GrpcCheck, HttpCheck, TcpCheck},
    upstream::Upstream,
};

/// The checks of a cluster, over connections like those of its requests.
pub(super) fn checks(settings: &ClusterSettings, tls: Option<&Tls>) -> Option<Checks> {
    let health = settings.health.as_ref()?;
    let scheme = match tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    };
    let checks = match &health.check {
        CheckSettings::Http {
            path,
            host,
            expect_status,
            drain_status,
            expect_body,
        } => {
            let client = check_client(health, settings.protocol, tls);
            let mut check = HttpCheck::new(client, path.clone())
                .scheme(scheme)
                .expect_status(expect_status.clone())
                .expect_body(expect_body.clone());
            if let Some(statuses) = drain_status {
                check = check.drain_status(statuses.clone());
            }
            if let Some(host) = host {
                check = check.host(host.clone());
            }
            if let Some(port) = health.port {
                check = check.port(port);
            }
            Checks::new(check)
        }
        CheckSettings::Tcp => Checks::new(match health.port {
            Some(port) => TcpCheck::new().port(port),
            None => TcpCheck::new(),
        }),
        CheckSettings::Grpc { service, host } => {
            // gRPC is spoken over HTTP/2 alone, whatever the rest of the cluster speaks.
            let client = check_client(health, Protocol::Http2, tls);
            let mut check = GrpcCheck::new(client).scheme(scheme).service(service);
            if let Some(host) = host {
                check = check.host(host.clone());
            }
            if let Some(port) = health.port {
                check = check.port(port);
            }
            Checks::new(check)
        }
    };
    let checks = checks
        .interval(health.interval)
        .fast_interval(health.fast_interval)
        .timeout(health.timeout)
        .rise(health.rise)
        .fall(health.fall)
        .concurrency(health.concurrency);
    Some(checks)
}

/// A client that keeps one connection to each endpoint from probe to probe.
fn check_client(
    health: &HealthSettings,
    protocol: Protocol,
    tls: Option<&Tls>,
) -> Upstream<Full<Bytes>> {
    let client = Upstream::new()
        .protocol(protocol.into())
        // The check itself keeps the time, and better.
        .connect_timeout(health.timeout.saturating_mul(2))
        .idle_connections(1)
        .idle_timeout(health.interval.saturating_mul(4));
    match tls {
        Some(tls) => client.connector(tls.connector.clone().protocol(protocol.into())),
        None => client,
    }
}
