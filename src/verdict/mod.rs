//! What the nodes of a cluster tell each other of endpoints, and what follows from it.
//!
//! Local evidence decides; what others say biases or bounds. Everything that is said has an origin
//! and a time for which it holds after receipt, is the whole of what the origin has to say of its
//! kind or stands for itself, and is repeated: a message that is lost, late, doubled or out of order
//! changes nothing for longer than a [`PERIOD`]. No clock of a node decides: ends are told as spans.
//! What a node knows only from others it never passes on: it says of an endpoint that it ejected it
//! by its own rules, or after two of its own requests in a row failed there, the last of them on
//! trial. So words cannot feed themselves, whoever repeats them.
//!
//! | | what is said | what follows at another node |
//! |---|---|---|
//! | ejections | those that the node saw the reason for itself | *suspicion*: one failure is enough. Whoever ejects by that looks a second time, a second to some later, one after the other: where that fails too, it is a voice more. With two voices or more, and more of them than nodes where requests succeed: ejection, unless one succeeds here within a second or two. Voices of another zone count as one, and one that accuses more than a quarter of the endpoints as none |
//! | ailing | that most of what the node asks for fails, or at more than a quarter of the endpoints: it speaks of itself | nothing that it said of ejections counts, and it says none (see `ailing`) |
//! | trials | that one is under way, and by the ejections how it ended | the others leave theirs: the one whose hash of node, endpoint and round is lowest goes first, the next a [patience](PATIENCE) later. Where one failed, whoever has tried it before waits out the time of the last. A node leaves no more than three in a row to others. After one that passes, each node tries for itself. Of those who ejected it on the word of enough, one makes sure about every two minutes |
//! | quiet | endpoints that asked to be left alone | they are, for what is left of that time |
//! | probes | what the node's own probes found | an endpoint is probed by the two nodes whose hashes are lowest, of two zones where there are; one that passes anywhere is well; that it is not takes two voices and one probe of a node's own. A node probes for itself where nobody told for two intervals, where its requests fail, and where what it saw differs |
//! | tallies | that requests succeed at an endpoint that others ejected; where rates are compared, how they ended at all of which somebody says ill | whoever has them succeed objects. Rates are compared over all nodes; to eject, a node's own requests have to agree |
//! | requests | how many there were | the minimum of retry budgets is divided by them |
//! | ages | how long ago endpoints joined | a slow start begins with the first sight of any node |
//! | suspects | that somebody suspects an endpoint | who is in charge of it probes it at once |
//! | drains | endpoints that somebody wants to leave, or to stay after all, that say themselves that they leave, or of which discovery has said so of late | they get no new requests. Of what people want, the last word counts, wherever it was said; what the endpoint said is over for a node whose own probe finds it well |
//! | leaving | that the node goes | what it said is forgotten |
//!
//! # Bounds
//!
//! - A node says one message a [`PERIOD`] and one more where something changed, at most ten a second.
//!   It says 2,000 ejections at most, and none while it is ill itself: a partition makes nobody
//!   accuse the endpoints that it hides.
//! - An endpoint is contested by as many objections as there are voices and five more, give or take
//!   those that cross on their way.
//! - Of each other node, a node keeps one voice for each endpoint that it accuses, which are a quarter
//!   of all at most before nobody heeds them: a fifth of 5,000 endpoints that are really down make
//!   each of 200 nodes say 3 kB a second, hear 600 kB, and keep some 20 MB.
//! - It looks at its endpoints once a second, and up to ten times where there is news; each look takes
//!   time in proportion to them.
//!
//! This is the pure core; what listens and speaks is `node::Verdicts`.

mod ailing;
mod council;
mod drains;
mod item;
mod local;
mod nodes;
mod rumour;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod simulation;
mod speech;
mod talk;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
mod turns;
mod watched;

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use twox_hash::XxHash64;

pub(crate) use council::{Council, Heard};
pub(crate) use drains::Leaving;
pub(crate) use item::Item;
pub(crate) use local::{Advice, Lead, Local, Rules, Trial};
pub(crate) use speech::Occasion;

use crate::endpoint::Endpoint;

/// How often a node says everything that it has to say.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);

/// How long what is said holds after receipt.
pub(crate) const HOLDS: Duration = Duration::from_secs(15);

/// How long a node that is next in turn waits for the one before it to begin a trial.
const PATIENCE: Duration = Duration::from_secs(1);

/// A cluster of endpoints, by the hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Topic(u64);

impl Topic {
    /// The cluster of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self(XxHash64::oneshot(0, name.as_bytes()))
    }
}

/// An endpoint at its address, by the hash of both: another address is another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Instance(u64);

/// A map by endpoints, which are hashes already, and a set of them.
type ByInstance<T> = HashMap<Instance, T, BuildHasherDefault<Plain>>;
type Instances = HashSet<Instance, BuildHasherDefault<Plain>>;

/// Takes a number that is a hash for one.
#[derive(Debug, Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash64::oneshot(self.0, bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl Instance {
    /// That of an endpoint.
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let address = XxHash64::oneshot(0, endpoint.address.as_str().as_bytes());
        Self(XxHash64::oneshot(address, endpoint.id.as_str().as_bytes()))
    }
}
