//! What is said, as bytes.
//!
//! ```text
//! item: tag u8, length u32, body        as many as there are; unknown tags are passed over
//! ```
//!
//! A body begins with the cluster, u64, but for that of `LEAVING`. Numbers are big-endian.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{Instance, Topic};
use crate::{
    health::{Counts, DrainWord, Verdict, Wish},
    store::{Envelope, Malformed},
};

/// Entries of an item, at most. Whoever has more to say says the first of them.
pub(super) const MOST_ENTRIES: usize = 1_000;

/// Ejections that a node says, at most: a quarter of 8,000 endpoints.
pub(super) const MOST_EJECTIONS: usize = 2_000;

const EJECTED: u8 = 1;
const QUIET: u8 = 2;
const PROBED: u8 = 3;
const TALLY: u8 = 4;
const REQUESTS: u8 = 5;
const AGES: u8 = 6;
const SUSPECT: u8 = 7;
const LEAVING: u8 = 8;
const DRAINS: u8 = 9;
const AILING: u8 = 10;

const DRAIN: u8 = 1;
const RESUME: u8 = 2;
const ANSWERED: u8 = 3;
const LISTED: u8 = 4;

/// One thing that a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// All that it has ejected by what it saw itself.
    Ejected { topic: Topic, all: Vec<Ejection> },
    /// Endpoints that asked to be left alone for so long.
    Quiet {
        topic: Topic,
        some: Vec<(Instance, Duration)>,
    },
    /// What its own probes found.
    Probed {
        topic: Topic,
        some: Vec<(Instance, Verdict)>,
    },
    /// How requests ended of late at endpoints of which somebody says ill.
    Tally { topic: Topic, some: Vec<Tally> },
    /// How many requests there were of late, and how they ended at all other endpoints.
    Requests { topic: Topic, sum: Sum },
    /// How long ago endpoints joined.
    Ages {
        topic: Topic,
        some: Vec<(Instance, Duration)>,
    },
    /// Somebody suspects an endpoint.
    Suspect { topic: Topic, instance: Instance },
    /// The node goes.
    Leaving,
    /// All that it knows itself of endpoints that are about to leave.
    Drains { topic: Topic, all: Vec<Farewell> },
    /// It is the node that is ill: what it said of its ejections says nothing of the endpoints.
    Ailing { topic: Topic },
}

/// An endpoint that is about to leave, or after all is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Farewell {
    pub(crate) instance: Instance,
    pub(crate) word: DrainWord,
    /// How long ago it was said.
    pub(crate) age: Duration,
}

/// An ejection by what a node saw itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ejection {
    pub(crate) instance: Instance,
    /// How long it is until it may be tried.
    pub(crate) left: Duration,
    pub(crate) times: u16,
    pub(crate) is_on_trial: bool,
}

/// How requests ended at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) instance: Instance,
    /// In the last interval.
    pub(crate) counts: Counts,
    /// Whether they went on to succeed after somebody said ill of it.
    pub(crate) objects: bool,
}

/// What a node has had of late in a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) requests: u64,
    /// Requests that ended well at endpoints of which nobody says ill.
    pub(crate) good: u64,
    /// How many endpoints those are.
    pub(crate) endpoints: u32,
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn span(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

impl Item {
    /// The cluster that it is about; `None` when it is about none.
    pub(super) fn topic(&self) -> Option<Topic> {
        match self {
            Self::Ejected { topic, .. }
            | Self::Quiet { topic, .. }
            | Self::Probed { topic, .. }
            | Self::Tally { topic, .. }
            | Self::Requests { topic, .. }
            | Self::Ages { topic, .. }
            | Self::Suspect { topic, .. }
            | Self::Drains { topic, .. }
            | Self::Ailing { topic } => Some(*topic),
            Self::Leaving => None,
        }
    }

    fn put(&self, body: &mut BytesMut) -> u8 {
        let spans = |body: &mut BytesMut, topic: Topic, some: &[(Instance, Duration)]| {
            body.put_u64(topic.0);
            for (instance, span) in some {
                body.put_u64(instance.0);
                body.put_u32(millis(*span));
            }
        };
        match self {
            Self::Ejected { topic, all } => {
                body.put_u64(topic.0);
                for one in all {
                    body.put_u64(one.instance.0);
                    body.put_u32(millis(one.left));
                    body.put_u16(one.times);
                    body.put_u8(one.is_on_trial.into());
                }
                EJECTED
            }
            Self::Quiet { topic, some } => {
                spans(body, *topic, some);
                QUIET
            }
            Self::Ages { topic, some } => {
                spans(body, *topic, some);
                AGES
            }
            Self::Probed { topic, some } => {
                body.put_u64(topic.0);
                for (instance, verdict) in some {
                    body.put_u64(instance.0);
                    body.put_u8((*verdict == Verdict::Healthy).into());
                }
                PROBED
            }
            Self::Tally { topic, some } => {
                body.put_u64(topic.0);
                for one in some {
                    body.put_u64(one.instance.0);
                    for count in [one.counts.good, one.counts.bad] {
                        body.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
                    }
                    body.put_u8(one.objects.into());
                }
                TALLY
            }
            Self::Requests { topic, sum } => {
                body.put_u64(topic.0);
                body.put_u64(sum.requests);
                body.put_u64(sum.good);
                body.put_u32(sum.endpoints);
                REQUESTS
            }
            Self::Suspect { topic, instance } => {
                body.put_u64(topic.0);
                body.put_u64(instance.0);
                SUSPECT
            }
            Self::Leaving => LEAVING,
            Self::Ailing { topic } => {
                body.put_u64(topic.0);
                AILING
            }
            Self::Drains { topic, all } => {
                body.put_u64(topic.0);
                for one in all {
                    body.put_u64(one.instance.0);
                    body.put_u8(match one.word {
                        DrainWord::Wished(Wish::Drain) => DRAIN,
                        DrainWord::Wished(Wish::Resume) => RESUME,
                        DrainWord::Answered => ANSWERED,
                        DrainWord::Listed => LISTED,
                    });
                    body.put_u32(millis(one.age));
                }
                DRAINS
            }
        }
    }

    /// Payloads of messages that say all this, in this order.
    pub(crate) fn payloads(items: &[Self]) -> Vec<Bytes> {
        let mut payloads = Vec::new();
        let (mut payload, mut body) = (BytesMut::new(), BytesMut::new());
        for item in items {
            body.clear();
            let tag = item.put(&mut body);
            if payload.len() + 5 + body.len() > Envelope::MOST_PAYLOAD {
                payloads.push(payload.split().freeze());
            }
            payload.put_u8(tag);
            payload.put_u32(body.len() as u32);
            payload.put_slice(&body);
        }
        if !payload.is_empty() {
            payloads.push(payload.freeze());
        }
        payloads
    }

    /// Reads a payload.
    pub(super) fn read(mut payload: Bytes) -> Result<Vec<Self>, Malformed> {
        let mut items = Vec::new();
        while !payload.is_empty() {
            let tag = payload.get_u8();
            let length = payload.try_get_u32().map_err(|_| Malformed::Torn)? as usize;
            if payload.len() < length {
                return Err(Malformed::Torn);
            }
            let mut body = payload.split_to(length);
            if (EJECTED..=AILING).contains(&tag) {
                items.push(Self::body(tag, &mut body).ok_or(Malformed::Torn)?);
            }
        }
        Ok(items)
    }

    fn body(tag: u8, body: &mut Bytes) -> Option<Self> {
        if tag == LEAVING {
            return Some(Self::Leaving);
        }
        let topic = Topic(body.try_get_u64().ok()?);
        Some(match tag {
            EJECTED => Self::Ejected {
                topic,
                all: entries(body, |body| {
                    Some(Ejection {
                        instance: Instance(body.try_get_u64().ok()?),
                        left: span(body.try_get_u32().ok()?),
                        times: body.try_get_u16().ok()?,
                        is_on_trial: body.try_get_u8().ok()? == 1,
                    })
                })?,
            },
            QUIET => Self::Quiet {
                topic,
                some: spans(body)?,
            },
            AGES => Self::Ages {
                topic,
                some: spans(body)?,
            },
            PROBED => Self::Probed {
                topic,
                some: entries(body, |body| {
                    let instance = Instance(body.try_get_u64().ok()?);
                    let verdict = match body.try_get_u8().ok()? {
                        0 => Verdict::Unhealthy,
                        _ => Verdict::Healthy,
                    };
                    Some((instance, verdict))
                })?,
            },
            TALLY => Self::Tally {
                topic,
                some: entries(body, |body| {
                    Some(Tally {
                        instance: Instance(body.try_get_u64().ok()?),
                        counts: Counts {
                            good: body.try_get_u32().ok()?.into(),
                            bad: body.try_get_u32().ok()?.into(),
                        },
                        objects: body.try_get_u8().ok()? == 1,
                    })
                })?,
            },
            REQUESTS => Self::Requests {
                topic,
                sum: Sum {
                    requests: body.try_get_u64().ok()?,
                    good: body.try_get_u64().ok()?,
                    endpoints: body.try_get_u32().ok()?,
                },
            },
            DRAINS => Self::Drains {
                topic,
                all: entries(body, farewell)?.into_iter().flatten().collect(),
            },
            AILING => Self::Ailing { topic },
            _ => Self::Suspect {
                topic,
                instance: Instance(body.try_get_u64().ok()?),
            },
        })
    }
}

fn spans(body: &mut Bytes) -> Option<Vec<(Instance, Duration)>> {
    entries(body, |body| {
        let instance = Instance(body.try_get_u64().ok()?);
        Some((instance, span(body.try_get_u32().ok()?)))
    })
}

/// One of a kind that is not known yet says nothing.
fn farewell(body: &mut Bytes) -> Option<Option<Farewell>> {
    let instance = Instance(body.try_get_u64().ok()?);
    let word = match body.try_get_u8().ok()? {
        DRAIN => Some(DrainWord::Wished(Wish::Drain)),
        RESUME => Some(DrainWord::Wished(Wish::Resume)),
        ANSWERED => Some(DrainWord::Answered),
        LISTED => Some(DrainWord::Listed),
        _ => None,
    };
    let age = span(body.try_get_u32().ok()?);
    Some(word.map(|word| Farewell {
        instance,
        word,
        age,
    }))
}

/// Entries to the end of a body; the bound of a message bounds them.
fn entries<T>(body: &mut Bytes, read: impl Fn(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        entries.push(read(body)?);
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item() -> impl Strategy<Value = Item> {
        let topic = any::<u64>().prop_map(Topic);
        let instance = any::<u64>().prop_map(Instance);
        let spans = || {
            let one = (any::<u64>().prop_map(Instance), any::<u32>().prop_map(span));
            proptest::collection::vec(one, 0..20)
        };
        let ejection = (any::<u64>(), any::<u32>(), any::<u16>(), any::<bool>());
        let ejection = ejection.prop_map(|(instance, left, times, is_on_trial)| Ejection {
            instance: Instance(instance),
            left: span(left),
            times,
            is_on_trial,
        });
        let verdict = prop_oneof![Just(Verdict::Healthy), Just(Verdict::Unhealthy)];
        let probed = (any::<u64>().prop_map(Instance), verdict);
        let tally = (any::<u64>(), any::<u32>(), any::<u32>(), any::<bool>());
        let tally = tally.prop_map(|(id, good, bad, objects)| Tally {
            instance: Instance(id),
            counts: Counts {
                good: good.into(),
                bad: bad.into(),
            },
            objects,
        });
        let word = prop_oneof![
            Just(DrainWord::Wished(Wish::Drain)),
            Just(DrainWord::Wished(Wish::Resume)),
            Just(DrainWord::Answered),
            Just(DrainWord::Listed),
        ];
        let farewell = (any::<u64>(), word, any::<u32>());
        let farewell = farewell.prop_map(|(instance, word, age)| Farewell {
            instance: Instance(instance),
            word,
            age: span(age),
        });
        let sum = (any::<u64>(), any::<u64>(), any::<u32>());
        let sum = sum.prop_map(|(requests, good, endpoints)| Sum {
            requests,
            good,
            endpoints,
        });
        prop_oneof![
            (topic.clone(), proptest::collection::vec(ejection, 0..20))
                .prop_map(|(topic, all)| Item::Ejected { topic, all }),
            (topic.clone(), spans()).prop_map(|(topic, some)| Item::Quiet { topic, some }),
            (topic.clone(), spans()).prop_map(|(topic, some)| Item::Ages { topic, some }),
            (topic.clone(), proptest::collection::vec(probed, 0..2_500))
                .prop_map(|(topic, some)| Item::Probed { topic, some }),
            (topic.clone(), proptest::collection::vec(tally, 0..20))
                .prop_map(|(topic, some)| Item::Tally { topic, some }),
            (topic.clone(), sum).prop_map(|(topic, sum)| Item::Requests { topic, sum }),
            (topic.clone(), instance)
                .prop_map(|(topic, instance)| Item::Suspect { topic, instance }),
            Just(Item::Leaving),
            topic.clone().prop_map(|topic| Item::Ailing { topic }),
            (topic, proptest::collection::vec(farewell, 0..20))
                .prop_map(|(topic, all)| Item::Drains { topic, all }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_read(items in proptest::collection::vec(item(), 0..8)) {
            let mut read = Vec::new();
            for payload in Item::payloads(&items) {
                prop_assert!(payload.len() <= Envelope::MOST_PAYLOAD);
                read.extend(Item::read(payload).unwrap());
            }
            prop_assert_eq!(read, items);
        }

        #[test]
        fn garbage_is_refused_and_no_harm(garbage: Vec<u8>) {
            drop(Item::read(garbage.into()));
        }
    }

    #[test]
    fn what_later_versions_say_is_passed_over() {
        let mut payload = BytesMut::from(&[99, 0, 0, 0, 2, 7, 7][..]);
        payload.extend_from_slice(&Item::payloads(&[Item::Leaving])[0]);
        assert_eq!(Item::read(payload.freeze()).unwrap(), [Item::Leaving]);
        let torn = Bytes::from_static(&[LEAVING, 0, 0, 0, 9]);
        assert_eq!(Item::read(torn), Err(Malformed::Torn));
        // Of an endpoint that leaves in a way that is not known yet, nothing is known.
        let topic = Topic(7);
        let word = DrainWord::Listed;
        let all = [1, 2].map(|instance| Farewell {
            instance: Instance(instance),
            word,
            age: Duration::ZERO,
        });
        let all = all.to_vec();
        let mut payload = BytesMut::from(&*Item::payloads(&[Item::Drains { topic, all }])[0]);
        // Tag and length, the cluster, the first endpoint.
        payload[5 + 8 + 8] = 77;
        let read = Item::read(payload.freeze()).unwrap();
        assert!(
            matches!(&read[..], [Item::Drains { all, .. }] if all.len() == 1),
            "{read:?}"
        );
    }
}
