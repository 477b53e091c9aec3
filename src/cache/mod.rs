//! A cache of two levels whose invalidations hold.
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
//! # How
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
//! # Lookups
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

mod early;
mod entry;
mod fill;
mod flight;
mod get;
mod invalidate;
mod key;
mod level1;
mod lookup;
mod scope;
mod seek;
mod sight;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod simulation;
pub mod store;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
mod tiered;
mod value;
mod version;
mod view;
mod watermark;

pub use self::{
    entry::{Hit, Level},
    fill::{Fill, Filled, Keep},
    get::Answer,
    invalidate::{Acknowledge, Acknowledged, NotAcknowledged},
    key::Key,
    lookup::{Bypass, Lookup, Verdict},
    scope::Scope,
    tiered::{Partition, TieredCache, Weight},
    value::{Encoded, Value},
    version::{Epoch, News, Purge, Stamp},
};
