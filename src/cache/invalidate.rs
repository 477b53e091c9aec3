//! Invalidations, and what they promise once they are acknowledged.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;

use super::{
    scope::Scope,
    store::{Invalidated, Seen, Unavailable},
    tiered::TieredCache,
    value::Value,
    version::Purge,
};
use crate::time;

/// How long an acknowledgement by every node is waited for, at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at what the nodes have applied.
const PAUSE: Duration = Duration::from_millis(20);

/// What has to hold before an invalidation is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledge {
    /// The store has it: level 2 and fills obey it at once, level 1 of this node too, and that of
    /// other nodes within their staleness bound.
    Stored,
    /// As `Stored`, and so many replicas of the store have it: it survives a failover to one of
    /// them.
    Replicated(u32),
    /// As `Stored`, and the level 1 of every node obeys it. A node that is silent delays it for as
    /// long as it may serve without having heard, and so does a store that lost its numbers: nodes
    /// that it forgot may serve for as long as those that it knows.
    Everywhere,
}

/// An invalidation that holds as it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledged {
    /// What holds.
    pub level: Acknowledge,
}

/// An invalidation that does not hold as it was asked to.
///
/// This node's own level 1 obeys it in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotAcknowledged {
    /// The store, or a shard of it, did not answer: it may have the invalidation or not.
    #[error("the store cannot be told of the invalidation")]
    Unavailable(#[source] Unavailable),
    /// The store has it, and fewer replicas than were asked for.
    #[error("{replicas} replicas of the store have the invalidation, fewer than asked for")]
    NotReplicated {
        /// Replicas that have it.
        replicas: u32,
    },
    /// The store has it, and a node may still serve what it took.
    #[error("a node may not have heard of the invalidation")]
    NotEverywhere,
}

impl<V: Value> TieredCache<V> {
    /// Invalidates what is in any of the scopes, and waits until that holds as asked.
    ///
    /// Once it is acknowledged, no lookup that begins later gets anything older from level 2 or
    /// from a fill; when level 1 obeys is what `acknowledge` says. The cost does not depend on how
    /// many entries there are.
    ///
    /// # Errors
    ///
    /// [`NotAcknowledged`] when that cannot be had. It is not tried again later.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may or may not have happened.
    pub async fn invalidate(
        &self,
        scopes: &[Scope],
        purge: Purge,
        acknowledge: Acknowledge,
    ) -> Result<Acknowledged, NotAcknowledged> {
        self.shared.sight.follow();
        if scopes.is_empty() {
            return Ok(Acknowledged { level: acknowledge });
        }
        let replicas = match acknowledge {
            Acknowledge::Replicated(replicas) => replicas,
            Acknowledge::Stored | Acknowledge::Everywhere => 0,
        };
        let by_shard = self.by_shard(scopes);
        let answers = by_shard.iter().map(async |(number, scopes)| {
            let sight = &self.shared.sight;
            let answer = sight.store.invalidate(*number, scopes, purge, replicas);
            let answer = answer.await;
            match &answer {
                Ok(done) => sight.invalidated(*number, done.stamp, scopes, purge),
                Err(_) => sight.drop_here(*number, scopes),
            }
            Ok((*number, answer?))
        });
        let answers: Result<Vec<_>, _> = join_all(answers).await.into_iter().collect();
        let done = answers.map_err(NotAcknowledged::Unavailable)?;
        let fewest = done.iter().map(|(_, done)| done.replicas).min();
        let fewest = fewest.unwrap_or(replicas);
        if fewest < replicas {
            return Err(NotAcknowledged::NotReplicated { replicas: fewest });
        }
        if acknowledge == Acknowledge::Everywhere {
            let everywhere = done
                .iter()
                .map(|(number, done)| self.everywhere(*number, *done));
            let everywhere: Result<(), _> = join_all(everywhere).await.into_iter().collect();
            everywhere?;
        }
        Ok(Acknowledged { level: acknowledge })
    }

    /// Invalidates what a request has changed, which holds whatever becomes of this: where the store
    /// cannot be told now, it is told as soon as it can be, and before this node reads anything from
    /// it.
    ///
    /// # Errors
    ///
    /// When other nodes may serve what is invalidated until then.
    pub(super) async fn invalidate_changed(&self, scopes: &[Scope]) -> Result<(), NotAcknowledged> {
        let done = self.invalidate(scopes, Purge::Hard, Acknowledge::Stored);
        let done = done.await.map(drop);
        if done.is_err() {
            for (number, scopes) in self.by_shard(scopes) {
                self.shared.sight.owe(number, &scopes);
            }
        }
        done
    }

    /// A primary key is in its own shard, anything else may be in all of them.
    fn by_shard(&self, scopes: &[Scope]) -> BTreeMap<u16, Vec<Scope>> {
        let sight = &self.shared.sight;
        let mut by_shard = BTreeMap::<u16, Vec<Scope>>::new();
        for scope in scopes {
            let shards = match scope.primary() {
                Some(primary) => {
                    let shard = sight.shard_of(primary);
                    shard..shard + 1
                }
                None => sight.numbers(),
            };
            for shard in shards {
                by_shard.entry(shard).or_default().push(scope.clone());
            }
        }
        by_shard
    }

    /// Waits until every node that may serve has applied an invalidation, or may no longer serve.
    ///
    /// A node serves for so long, as it told the store, after the last news that it asked for. If
    /// those were before the invalidation it stops within that time of it, by anybody's clock.
    ///
    /// A new epoch does not know the nodes that serve by the one before it. They stop within the
    /// same time of the change, which was before this node heard of it.
    async fn everywhere(&self, number: u16, done: Invalidated) -> Result<(), NotAcknowledged> {
        let sight = &self.shared.sight;
        let start = time::now();
        loop {
            let nodes = sight.store.nodes(number).await;
            let nodes = nodes.map_err(NotAcknowledged::Unavailable)?;
            if nodes.epoch != done.stamp.epoch {
                // Who was known is lost, and with it who might still serve.
                return Err(NotAcknowledged::NotEverywhere);
            }
            let waited = time::now().saturating_duration_since(start);
            let is_behind = |node: &&Seen| nodes.is_behind(node, done.stamp.sequence);
            let (silent, behind): (Vec<_>, Vec<_>) = nodes
                .seen
                .iter()
                .filter(is_behind)
                .partition(|node| waited > with_drift(node.serves));
            let longest = nodes.seen.iter().map(|node| node.serves).max();
            let longest = longest.unwrap_or_default().max(sight.serves());
            let known = sight.shard(number).view.lock().known_since(nodes.epoch);
            let is_settled = known.is_some_and(|known| {
                time::now().saturating_duration_since(known) > with_drift(longest)
            });
            if behind.is_empty() && is_settled {
                for node in silent {
                    // At worst the next one waits for it again.
                    if let Err(unavailable) = sight.store.forget(number, node).await {
                        tracing::debug!(error = %unavailable, "a silent node is not forgotten");
                    }
                }
                return Ok(());
            }
            if waited >= PATIENCE {
                return Err(NotAcknowledged::NotEverywhere);
            }
            time::sleep_until(time::after(time::now(), PAUSE)).await;
        }
    }
}

/// Clocks of two nodes do not run alike.
fn with_drift(span: Duration) -> Duration {
    span + span / 100 + Duration::from_millis(10)
}
