//! The cache for whatever is not HTTP: look up, or fill.

use std::time::Duration;

use super::{
    entry::Hit,
    fill::{HIT_FOR_MISS, Keep},
    key::Key,
    lookup::{Lookup, Verdict},
    scope::Scope,
    tiered::TieredCache,
    value::Value,
};

/// By how much a time to live is shortened at most.
const JITTER: f64 = 0.1;

/// What a fill came to: a value, and whether and for how long it is kept.
#[derive(Debug)]
pub struct Answer<V> {
    value: V,
    keep: Kept,
}

#[derive(Debug)]
enum Kept {
    For { keep: Keep, scopes: Vec<Scope> },
    Not { pass: Duration },
}

impl<V> Answer<V> {
    /// A value to keep.
    #[must_use]
    pub fn new(value: V, keep: Keep) -> Self {
        let scopes = Vec::new();
        Self {
            value,
            keep: Kept::For { keep, scopes },
        }
    }

    /// A value to share with nobody. For the time given every request fills for itself alone.
    #[must_use]
    pub fn uncacheable(value: V, pass: Duration) -> Self {
        Self {
            value,
            keep: Kept::Not { pass },
        }
    }

    /// In this scope as well as in those of its key and of all.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        if let Kept::For { scopes, .. } = &mut self.keep {
            scopes.push(scope);
        }
        self
    }
}

impl<V: Value> TieredCache<V> {
    /// Gives what is kept under the key, or fills it.
    ///
    /// However many ask at once, one fills, in this process and over the nodes that share the
    /// store; but nobody waits for what is stale when it is new (`Keep::new(Duration::ZERO)`), once
    /// that was seen. Times to live are shortened by up to a tenth at random, and who asks late in
    /// them may be chosen to fill early (XFetch) while others go on being served.
    ///
    /// A negative answer is a value too: make it an [`Option`], with a [`Keep`] of its own.
    ///
    /// # Errors
    ///
    /// That of `fill`, unless something stale may stand in, see [`Keep::stale`]. Errors are shared
    /// with nobody: whoever waited fills in turn.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it lets somebody else fill.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use tower_gateway::cache::{Acknowledge, Answer, Keep, Key, Purge, Scope, TieredCache};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache = TieredCache::<String>::new(64 << 20);
    /// let key = Key::new("user/7");
    /// let name = async || {
    ///     let keep = Keep::new(Duration::from_secs(60));
    ///     Ok::<_, Infallible>(Answer::new("Ada".to_owned(), keep).scope(Scope::tag("users")))
    /// };
    /// assert_eq!(cache.get_or_fill(&key, name).await?.value(), "Ada");
    ///
    /// let scopes = [Scope::tag("users")];
    /// cache.invalidate(&scopes, Purge::Hard, Acknowledge::Stored).await?;
    /// assert!(cache.peek(&key).is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_fill<F, E>(&self, key: &Key, fill: F) -> Result<Hit<V>, E>
    where
        F: AsyncFnOnce() -> Result<Answer<V>, E>,
    {
        let (turn, stale) = match self.lookup(key, judge).await {
            Lookup::Fresh(hit) | Lookup::Refresh(hit, None) => return Ok(hit),
            Lookup::Refresh(hit, Some(turn)) => (Some(turn), Some(hit)),
            Lookup::Fill(turn) => {
                let stale = turn.stale().cloned();
                (Some(turn), stale)
            }
            Lookup::Bypass { stale, .. } => (None, stale),
        };
        let answer = match (fill().await, stale) {
            (Ok(answer), _) => answer,
            (Err(_), Some(stale)) => return Ok(stale),
            (Err(error), None) => return Err(error),
        };
        let Some(turn) = turn else {
            return Ok(Hit::alone(answer.value));
        };
        let pass = match answer.keep {
            Kept::For { keep, scopes } => {
                let keep = keep.jittered(JITTER, fastrand::f64());
                if !keep.is_nothing() {
                    return Ok(turn.store(answer.value, scopes, keep).await.into_hit());
                }
                // Whoever waits would find nothing, one after the other.
                HIT_FOR_MISS
            }
            Kept::Not { pass } => pass,
        };
        turn.pass(pass);
        Ok(Hit::alone(answer.value))
    }
}

/// What is neither stale nor, by the dice, to be filled early is fresh.
fn judge<V>(hit: &Hit<V>) -> Verdict {
    let left = hit.fresh_for();
    if hit.entry.is_never_fresh() {
        Verdict::NeverFresh
    } else if left.is_zero() || hit.is_due_early(left) {
        Verdict::Stale
    } else {
        Verdict::Fresh
    }
}
