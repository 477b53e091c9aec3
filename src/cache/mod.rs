//! A cache of two levels whose invalidations hold, and a layer that answers HTTP from it.
//!
//! [`CacheLayer`] is a shared cache by RFC 9111 over an [`HttpCache`]; what is [below](#two-levels)
//! it knows nothing of HTTP and is of use without it.
//!
//! # HTTP
//!
//! - **Stored** are whole responses to GET that may be shared: not `private`, not `no-store`, none
//!   with `Set-Cookie`, none that vary by the cookie, and none to a request with `Authorization`
//!   unless they say that they are for everybody. `CDN-Cache-Control` (RFC 9213) comes before
//!   `Cache-Control`. A response passes to its client while it is stored, and is stored once it is
//!   whole.
//! - **Fresh** they are by what they say, else by a tenth of their age (RFC 9111 section 4.2.2),
//!   else for [`default_ttl`](CacheLayer::default_ttl). Stale ones are validated; they are served
//!   while that goes on, or when the origin fails or does not answer in the time of a
//!   [timeout layer](crate::timeout) above, as far as they allow it (RFC 5861). A response
//!   with `s-maxage` that also says how stale it may become is taken by its word.
//! - **Keys** are scheme, host and exact path and query; what varies is told apart below that.
//!   Fields such as `X-Forwarded-Host` that say more than the key are told apart, too. A GET with a
//!   body, an upgrade, or a method or URL in disguise goes past the cache.
//! - **Answers** to conditions, single ranges and HEAD are made from what is stored.
//! - **Misses** of many clients at once are one request. Nobody gets the answer to another one that
//!   may not be shared; once that was seen, nobody waits for the like for two seconds, nor for
//!   what is validated for every request (`no-cache`). When the client leaves that was first, its
//!   request goes on for those who wait, and when it reads slowly, they do not wait for that.
//! - **Invalidated** are, on every node: the URL of an unsafe method that did not fail, and of its
//!   `Location` and `Content-Location`, also where the store is away then, as soon as it is back;
//!   the groups that it names (RFC 9875); what
//!   [`HttpCache::invalidate`] is told, by URL, tag, host or altogether.
//! - **`Cache-Status`** (RFC 9211) says what was done: `tower-gateway; hit; detail=l1` (or `l2`),
//!   or `fwd=uri-miss`, `vary-miss`, `stale`, `request` or `bypass`, with `stored`, `collapsed` and
//!   `ttl`.
//!
//! Parts are answered, but not stored, and trailers are not either. `1xx` responses end at the
//! client that the origin is asked with: hyper's server can send none of them.
//!
//! ```
//! use tower::{Layer, service_fn};
//! use tower_gateway::cache::{CacheLayer, HttpCache};
//! # use bytes::Bytes;
//! # use http_body_util::Full;
//!
//! let origin = service_fn(async |_: http::Request<Full<Bytes>>| {
//!     Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from("hello")))
//! });
//! let service = CacheLayer::new(HttpCache::new(64 << 20)).layer(origin);
//! ```
//!
//! With options, and an invalidation that every node obeys when it is acknowledged:
//!
//! ```
//! use std::time::Duration;
//! use http::HeaderName;
//! use tower_gateway::cache::{Acknowledge, CacheLayer, HttpCache, QueryRules, Scope};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = HttpCache::new(64 << 20).max_staleness(Duration::from_millis(250));
//! let layer = CacheLayer::new(cache.clone())
//!     .default_ttl(Duration::from_secs(5))
//!     .max_object(4 << 20)
//!     .tags_header(HeaderName::from_static("surrogate-key"))
//!     .query(QueryRules::new().sort().drop("utm_*"));
//!
//! let mut scopes = cache.scopes_of("https://example.com/news")?;
//! scopes.push(Scope::tag("headlines"));
//! cache.invalidate(&scopes, Acknowledge::Everywhere).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Two levels
//!
//! Level 1 is values in this process; level 2 is a [store](store::Level2) that the nodes of a
//! cluster share, or this process alone. What is promised:
//!
//! - Once [`invalidate`](TieredCache::invalidate) is acknowledged, no lookup that begins later gets
//!   anything older from level 2 or from a fill: at once. From the level 1 of another node: no
//!   later than [`max_staleness`](TieredCache::max_staleness), or at once too if the
//!   acknowledgement was asked of [every node](Acknowledge::Everywhere).
//! - Nothing older is ever stored, however slow its fill was.
//! - No clock decides that. A store that lost its state, was flushed, restarted from an old file or
//!   replaced by a replica makes a cold cache, never a stale one.
//! - A store that is out of reach fails invalidations, honestly, and requests [go past
//!   it](Partition).
//!
//! ## How
//!
//! Every shard of the store counts its invalidations, and keeps the number of the last one of each
//! [scope](Scope) as its tombstone. A fill reads the number before it asks the origin. The store
//! refuses a value if a tombstone of its scopes is above the number of its fill; a reader refuses
//! an entry alike. Numbers live in an epoch, which changes when they may have been lost.
//!
//! A node follows the numbers: it asks for news every third of the smallest bound, and at once when
//! the store hints at any. An entry of level 1 is served if the last news that were applied were
//! asked for within the bound, and it holds by what they said. For most hits that is two atomic
//! loads.
//!
//! Tombstones are bounded. Those of keys are forgotten first, when there are more than 10,000 in a
//! shard: what they took was deleted with the invalidation, so nothing is lost but the right of fills
//! that take longer than a minute to be stored. Above 100,000 the oldest of all are forgotten, and
//! with them whatever is as old.
//!
//! What is promised can be watched: [`audit`](TieredCache::audit) has a share of the hits in level 1
//! looked at again, and counts those that should not have been.
//!
//! ## Lookups
//!
//! [`get_or_fill`](TieredCache::get_or_fill) is all that most need. Whoever decides about freshness
//! at each lookup, as HTTP does, uses its parts:
//!
//! 1. [`peek`](TieredCache::peek) is level 1 alone, and does not wait.
//! 2. [`lookup`](TieredCache::lookup) shows every entry that holds to a closure, which says whether
//!    it is [fresh](Verdict), and comes to an entry, or to the right to fill it, or to neither.
//! 3. A [`Fill`] is taken before the origin is asked. A body may stream to its client meanwhile;
//!    when it is whole, [`Fill::store`] stores it under the number that the fill carries, and gives
//!    it to those who wait, if the store took it. [`Fill::pass`] lets them go instead.
//!
//! A request joins a fill of another only until the store is asked to take it, and gets what came
//! only if the store did. So a joined answer is never older than an invalidation that was
//! acknowledged before the request.
//!
//! ```
//! use std::time::Duration;
//! use tower_gateway::cache::{Keep, Key, Lookup, TieredCache, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let cache = TieredCache::<String>::new(64 << 20).max_staleness(Duration::ZERO);
//! let key = Key::new("https://example.com/").variant("accept-language=en");
//! let fresh = |age: Duration| match age.as_secs() {
//!     0..60 => Verdict::Fresh,
//!     60..90 => Verdict::Refresh,
//!     _ => Verdict::Stale,
//! };
//! match cache.lookup(&key, |hit| fresh(hit.age())).await {
//!     Lookup::Fresh(hit) | Lookup::Refresh(hit, None) => println!("{}", hit.value()),
//!     Lookup::Fill(fill) => {
//!         let value = "from the origin".to_owned();
//!         let keep = Keep::new(Duration::from_secs(60)).stale(Duration::from_secs(600));
//!         let filled = fill.store(value, [], keep).await;
//!         assert!(filled.is_stored());
//!     }
//!     _ => println!("ask the origin for this request alone"),
//! }
//! # }
//! ```

mod answer;
mod ask;
mod audit;
pub mod body;
mod early;
mod entry;
mod fill;
mod filling;
mod flight;
pub mod future;
mod get;
mod http;
mod http_cache;
mod invalidate;
mod key;
mod layer;
mod lead;
mod level1;
mod lookup;
mod past;
mod resource;
mod scope;
mod seek;
mod service;
mod shelter;
mod sight;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod simulation;
mod stats;
pub mod store;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
mod tick;
mod tiered;
mod value;
mod version;
mod view;
mod wanted;
mod watermark;

#[cfg_attr(
    not(feature = "config"),
    allow(unused_imports, reason = "routes of a node have a cache or none")
)]
pub(crate) use self::service::Concern;
pub use self::{
    audit::Audited,
    entry::{Hit, Level},
    fill::{Fill, Filled, Keep},
    flight::Audience,
    get::Answer,
    http::key::QueryRules,
    http_cache::{HttpCache, InvalidUrl},
    invalidate::{Acknowledge, Acknowledged, NotAcknowledged},
    key::Key,
    layer::CacheLayer,
    lookup::{Bypass, Lookup, Verdict},
    resource::Resource,
    scope::Scope,
    service::Cache,
    stats::{Kept, Outcome, Stats},
    tiered::{Partition, TieredCache, Weight},
    value::{Encoded, Value},
    version::{Epoch, News, Purge, Stamp},
};
