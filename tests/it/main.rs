//! The integration tests: one binary, one module a subject. Most run over real sockets.

#![cfg(feature = "config")]
#![allow(clippy::unwrap_used, reason = "in a test that is how to stop")]

mod admin;
mod affinity;
mod alerts;
mod allocations;
mod architecture;
mod attempts;
mod breaker;
mod cache;
mod cache_failover;
mod cache_http;
mod cache_rules;
mod chaos;
mod check;
mod clients;
mod destination;
mod discover;
mod dns;
mod drain;
mod etcd;
mod failover;
mod failure;
mod forwarding;
mod grpc;
mod health;
mod http1;
mod http2;
mod kill;
mod layers;
mod limit;
mod limit_redis;
mod limit_shared;
mod load_report;
mod nginx;
mod nodes;
mod observability;
mod outlier;
mod partition;
mod policy;
mod pool;
mod readme;
mod redis;
mod reload;
mod smuggling;
mod sticky;
mod store;
mod stream;
mod structure;
mod support;
mod tls;
mod together;
mod verdicts;
mod websocket;
mod weights;
