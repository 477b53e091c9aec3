//! How a cluster chooses among its endpoints.

use super::{
    Place, Reader,
    affinity::{self, AffinityPolicy, AffinitySettings},
};
use crate::{
    balance::HashKey,
    pick::LeastRequest,
    yaml::{Mistakes, Value, number, one_of, text},
};

/// How a cluster chooses among its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicySettings {
    /// One after the other, whatever their weights.
    #[default]
    RoundRobin,
    /// One after the other, in proportion to their weights.
    WeightedRoundRobin,
    /// Any of them.
    Random,
    /// Any of them, in proportion to their weights.
    WeightedRandom,
    /// Of a few of them the one with the fewest requests in flight.
    LeastRequest {
        /// How many are compared: 2 to 10, default 2.
        choices: usize,
    },
    /// Of two of them the one that will answer sooner.
    ResponseTime,
    /// One after the other, as often as their own reports of load say.
    ReportedLoad,
    /// The same one for requests with the same key.
    Affinity(AffinitySettings),
    /// A policy of the application.
    Named {
        /// The name, one of those given to [`Settings::parse`](super::Settings::parse).
        name: String,
        /// What of a request is hashed for it.
        hash_key: Option<HashKey>,
        /// What else the file says, in its order.
        options: Vec<PolicyOption>,
        /// Where the policy is named.
        place: Place,
    },
}

/// An option of a policy of the application, as it is written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PolicyOption {
    /// The key.
    pub key: String,
    /// The value, without its quotes.
    pub text: String,
    /// The line, for a message of the policy.
    pub line: usize,
}

/// Where an option stands does not change what it says: a new comment above it is no new policy.
impl PartialEq for PolicyOption {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.text == other.text
    }
}

impl Eq for PolicyOption {}

#[derive(Clone, Copy)]
enum Kind {
    RoundRobin,
    WeightedRoundRobin,
    Random,
    WeightedRandom,
    LeastRequest,
    ResponseTime,
    ReportedLoad,
    Affinity(AffinityPolicy),
    Named,
}

impl Reader<'_> {
    pub(super) fn policy(self, value: &Value<'_>) -> Result<PolicySettings, Mistakes> {
        let mut words = vec![
            ("round_robin", Kind::RoundRobin),
            ("weighted_round_robin", Kind::WeightedRoundRobin),
            ("random", Kind::Random),
            ("weighted_random", Kind::WeightedRandom),
            ("least_request", Kind::LeastRequest),
            ("response_time", Kind::ResponseTime),
            ("reported_load", Kind::ReportedLoad),
            (
                "ring_hash",
                Kind::Affinity(AffinityPolicy::RingHash { points: None }),
            ),
            (
                "maglev",
                Kind::Affinity(AffinityPolicy::Maglev { table_size: None }),
            ),
            ("rendezvous", Kind::Affinity(AffinityPolicy::Rendezvous)),
        ];
        words.extend(self.policies.iter().map(|name| (*name, Kind::Named)));

        let mut fields = value.fields()?;
        let kind = fields.required("type", |kind| Ok((one_of(&words)(kind)?, text(kind)?)));
        let Some((kind, name)) = kind else {
            // Which other keys are known depends on the type.
            return fields.abandon(None);
        };
        let policy = match kind {
            Kind::RoundRobin => PolicySettings::RoundRobin,
            Kind::WeightedRoundRobin => PolicySettings::WeightedRoundRobin,
            Kind::Random => PolicySettings::Random,
            Kind::WeightedRandom => PolicySettings::WeightedRandom,
            Kind::LeastRequest => {
                let choices = fields.optional("choices", number(2..=LeastRequest::MAX_CHOICES));
                PolicySettings::LeastRequest {
                    choices: choices.unwrap_or(2),
                }
            }
            Kind::ResponseTime => PolicySettings::ResponseTime,
            Kind::ReportedLoad => PolicySettings::ReportedLoad,
            Kind::Affinity(policy) => PolicySettings::Affinity(affinity::read(policy, &mut fields)),
            Kind::Named => {
                let hash_key = fields.optional("hash_key", affinity::hash_key);
                let mut options = Vec::new();
                for (key, value) in fields.rest() {
                    let text = fields.keep(text(&value));
                    options.extend(text.map(|text| PolicyOption {
                        key: key.to_owned(),
                        text,
                        line: value.line(),
                    }));
                }
                let place = Place::of(value);
                PolicySettings::Named {
                    name,
                    hash_key,
                    options,
                    place,
                }
            }
        };
        fields.finish(Some(policy))
    }
}
