//! What the script is told, and what it answers.

use super::{
    account::{Answer, Statement},
    frame::{Frame, Taking},
    hold,
    pace::{Mark, Pace},
    tally,
};

/// What the script is told of a key, by the rule of its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Bucket(Pace, Statement),
    Window(Frame, tally::Statement),
    Slots(hold::Statement),
}

/// What the script says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Bucket(Answer),
    Window(tally::Answer),
    Slots(hold::Answer),
}

/// Requests that ask for the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) count: u64,
    pub(super) book: u64,
    pub(super) asks: Vec<Part>,
}

/// One ask of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The position of the key in the batch.
    pub(super) key: usize,
    pub(super) cost: u64,
    pub(super) is_shadow: bool,
}

/// What one call asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// The generation of keys that are new, in 23 bits.
    pub(super) generation: u64,
    pub(super) keys: Vec<Told>,
    pub(super) groups: Vec<Group>,
}

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// How many of it are admitted.
    pub(super) admitted: u64,
    pub(super) booked: u64,
    /// How many each ask alone would admit.
    pub(super) each: Vec<u64>,
}

/// What one call answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) now: u64,
    pub(super) keys: Vec<Heard>,
    pub(super) grants: Vec<Grant>,
}

impl Told {
    fn arguments(&self, numbers: &mut Vec<u64>) {
        match self {
            Self::Bucket(pace, told) => {
                numbers.extend([0, pace.whole, pace.part, pace.amount, pace.capacity]);
                numbers.extend([told.known, told.hint, told.size, told.epoch, told.spent]);
                numbers.extend([told.release, told.want, told.owed, told.refund, told.age]);
                numbers.push(told.reset);
            }
            Self::Window(frame, told) => {
                numbers.extend(frame.arguments());
                numbers.extend([told.known, told.mark, told.earlier, told.hint]);
                numbers.extend([told.owed, told.age, told.refund, told.of]);
                numbers.extend([told.want, told.nodes, told.reset]);
            }
            Self::Slots(told) => {
                numbers.extend([4, told.amount, told.node, told.turn, told.lease]);
                numbers.extend([told.hold, told.used, told.want, told.nodes, told.reset]);
            }
        }
    }

    fn heard(&self, mut next: impl FnMut() -> Option<u64>) -> Option<Heard> {
        Some(match self {
            Self::Bucket(..) => Heard::Bucket(Answer {
                arrival: Mark {
                    whole: next()?,
                    part: next()?,
                },
                generation: next()?,
                held: next()?,
                claim: next()?,
                size: next()?,
                added: next()?,
                epoch: next()?,
            }),
            Self::Window(..) => {
                let (id, before, taken) = (next()?, next()?, next()?);
                let (generation, end) = (next()?, next()?);
                Heard::Window(tally::Answer {
                    taking: Taking {
                        id,
                        before,
                        taken,
                        end,
                    },
                    generation,
                    added: next()?,
                })
            }
            Self::Slots(_) => Heard::Slots(hold::Answer {
                size: next()?,
                others: next()?,
            }),
        })
    }
}

impl Batch {
    /// The arguments of the script.
    pub(super) fn arguments(&self) -> Vec<u64> {
        let mut numbers = vec![self.generation];
        for told in &self.keys {
            told.arguments(&mut numbers);
        }
        numbers.push(self.groups.len() as u64);
        for group in &self.groups {
            numbers.extend([group.count, group.book, group.asks.len() as u64]);
            for part in &group.asks {
                numbers.extend([part.key as u64 + 1, part.cost, u64::from(part.is_shadow)]);
            }
        }
        numbers
    }

    /// The answer of the script; `None` where it is none.
    pub(super) fn reply(&self, numbers: impl IntoIterator<Item = u64>) -> Option<Reply> {
        let mut numbers = numbers.into_iter();
        let mut next = || numbers.next();
        let now = next()?;
        let mut keys = Vec::with_capacity(self.keys.len());
        for told in &self.keys {
            keys.push(told.heard(&mut next)?);
        }
        let mut grants = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            grants.push(Grant {
                admitted: next()?,
                booked: next()?,
                each: group.asks.iter().map(|_| next()).collect::<Option<_>>()?,
            });
        }
        Some(Reply { now, keys, grants })
    }
}
