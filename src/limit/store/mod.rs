//! Where the counts are kept: the [`Store`] trait, and the [`Memory`] of this process.
//!
//! # The contract of a store
//!
//! The store applies the decision; whoever asks only carries it out. It is asked about all limits
//! of a request at once, and holds to this:
//!
//! - **All or nothing.** When one of the enforced asks is not admitted, none is charged. Asks in
//!   [shadow](super::Mode::Shadow) are charged with the others, those of them that admit; they
//!   never keep the others from being charged.
//! - **Every ask gets its [`Level`]**, also those after one that denies: the reader of the answer
//!   learns the longest wait at once. Levels of asks that admit but were not charged, because
//!   another denied, tell what is left without the charge.
//! - **Exact.** What is admitted in any stretch of time is at most `burst + rate × length` for
//!   GCRA, and what the window says for windows. Whatever a store does to be fast, such as reserves
//!   of each node, keeps to that.
//! - **`retry_after` and `reset` are never too early.**
//! - **Two ways to ask.** [`try_decide`](Store::try_decide) never waits, allocates or blocks: the
//!   answer of a store in memory, and of what a remote store knows for certain. Where it does not
//!   know it answers `None` and has charged nothing; then [`decide`](Store::decide) is called with
//!   the same asks.
//! - **A bounded time.** [`decide`](Store::decide) has an answer by its `deadline`, or by the
//!   store's own budget where that is sooner: one that cannot be reached by then decides by
//!   [`OnStoreFailure`](super::OnStoreFailure) and says so by
//!   [`Source::Degraded`](super::Source::Degraded). It never fails.
//! - **Dropped futures lose nothing.** A charge that a dropped [`decide`](Store::decide) has
//!   brought about may stay, never more than once; slots that nobody got to know of are given back.
//! - **Patience.** An ask may say how long its caller waits for tokens. A store that can book
//!   ahead answers [`Decision::Wait`], in the order in which it was asked;
//!   for any other [`Decision::Deny`] is right, and the caller asks again.
//! - **The quota is that of the ask.** Another ask for the same fingerprint may have another one,
//!   after a reload or by a dynamic quota: what was taken stays taken, no lowered limit leaves a
//!   key beyond the new time from empty to full, and a raised one holds at once.
//! - **Concurrency.** Under [`Rule::Concurrency`](super::Rule::Concurrency) the cost is held until
//!   it is [settled](Store::settle) with 0. What a node holds ends with the node.

mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::{
    fmt,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

pub use memory::Memory;
#[cfg(feature = "redis")]
pub use redis::Redis;

use super::ask::{Ask, Decision, Level};
use crate::error::BoxError;

/// The most limits that a request can have.
pub const MAX_ASKS: usize = 8;

/// Keeps the counts and decides by them; see the [contract](self).
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Decides at once, if that is possible: writes the level of every ask and returns what they
    /// decide together ([`Decision::of`]). `None` where the store must be waited for; then nothing
    /// was charged, and the levels mean nothing.
    ///
    /// There are at most [`MAX_ASKS`], and as many levels. `patience` is how long the caller waits
    /// for tokens; zero for an answer now.
    fn try_decide(
        &self,
        asks: &[Ask],
        levels: &mut [Level],
        patience: Duration,
        now: Instant,
    ) -> Option<Decision>;

    /// Decides, with an answer by the deadline. The future is the only thing that is boxed.
    fn decide(
        &self,
        asks: Vec<Ask>,
        patience: Duration,
        deadline: Option<Instant>,
    ) -> BoxFuture<'static, Decided>;

    /// Replaces the cost of an ask that was charged by what it was in the end. It returns at once;
    /// a store elsewhere hears of it in time.
    ///
    /// Less is a refund: it never lifts a key above its capacity, and brings nothing back of a
    /// window that is over, or of a bucket that was full since the charge. More is a debt: it is
    /// charged although there may not be enough, up to one capacity below empty. Of concurrency it
    /// is how slots are given back.
    fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant);

    /// How a key stands; charges nothing, and the cost does not count.
    fn peek(&self, ask: Ask) -> BoxFuture<'static, Result<Level, StoreError>>;

    /// Forgets what was taken from a key, everywhere.
    fn reset(&self, ask: Ask) -> BoxFuture<'static, Result<(), StoreError>>;

    /// How often the store could not be asked, since it began.
    fn errors(&self) -> u64 {
        0
    }
}

/// What a store has decided about several asks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decided {
    /// What they decide together.
    pub decision: Decision,
    /// The level of each ask, in their order.
    pub levels: Vec<Level>,
}

impl Decided {
    /// What these levels decide.
    #[must_use]
    pub fn new(asks: &[Ask], levels: Vec<Level>) -> Self {
        Self {
            decision: Decision::of(asks, &levels),
            levels,
        }
    }
}

/// A store elsewhere cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the store of the limits cannot be asked")]
pub struct StoreError {
    source: BoxError,
}

impl StoreError {
    /// With the cause.
    #[must_use]
    pub fn caused_by(source: impl Into<BoxError>) -> Self {
        Self {
            source: source.into(),
        }
    }
}
