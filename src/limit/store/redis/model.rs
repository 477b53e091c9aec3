//! The script in Rust.

mod slots;
mod window;

use std::collections::HashMap;

use super::{
    account::{Answer, Statement},
    batch::{Batch, Grant, Group, Heard, Part, Reply, Told},
    pace::{Mark, Pace},
};

const EPOCH: u64 = 10_000_000;
const FAR: u64 = 9_000_000_000_000_000;
const AHEAD: u64 = 400_000;
/// How often a key is written until that is counted from the beginning again.
pub(super) const WRITES: u64 = 1 << 30;
/// How far the server's word for the end of a value may be from its time.
const MILLISECONDS: u64 = 50 * 10_000;

/// The value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    arrival: Mark,
    generation: u64,
    healed: u64,
    since: u64,
    epoch: u64,
    cur: u64,
    prev: u64,
}

/// What the server has.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// With when they end.
    values: HashMap<usize, (Value, u64)>,
}

#[derive(Clone, Debug)]
enum Value {
    Bucket(State),
    Window(window::State),
    Slots(Vec<slots::Lease>),
}

enum Any {
    Bucket(Key),
    Window(window::Key),
    Slots(slots::Key),
}

impl Any {
    fn open(value: Option<Value>, told: &Told, new: u64, now: u64) -> Self {
        match *told {
            Told::Bucket(pace, told) => {
                let state = match value {
                    Some(Value::Bucket(state)) => Some(state),
                    _ => None,
                };
                let mut key = Key::load(state, pace, told, new, now);
                key.account(now);
                key.owe(now);
                Self::Bucket(key)
            }
            Told::Window(frame, told) => {
                let state = match value {
                    Some(Value::Window(state)) => Some(state),
                    _ => None,
                };
                Self::Window(window::Key::open(state, frame, told, new, now))
            }
            Told::Slots(told) => {
                let leases = match value {
                    Some(Value::Slots(leases)) => leases,
                    _ => Vec::new(),
                };
                Self::Slots(slots::Key::open(leases, told, now))
            }
        }
    }

    fn times(&self, cost: u64, most: u64, now: u64) -> u64 {
        match self {
            Self::Bucket(key) => key.times(cost, most, now),
            Self::Window(key) => key.times(cost, most, now),
            Self::Slots(key) => key.times(cost, most),
        }
    }

    fn charge(&mut self, tokens: u64, now: u64) {
        match self {
            Self::Bucket(key) => key.charge(tokens, now),
            Self::Window(key) => key.charge(tokens),
            Self::Slots(key) => key.charge(tokens),
        }
    }

    fn book(&mut self, most: u64, now: u64) -> u64 {
        let Self::Bucket(key) = self else { return 0 };
        if key.held() > 0 {
            return 0;
        }
        let booked = key.times(1, most, now + AHEAD);
        let booked = if booked > 1 { booked } else { 0 };
        key.charge(booked, now);
        booked
    }

    /// What it says, and what becomes of the value, where it changes.
    fn close(self, now: u64) -> (Heard, Option<(Value, u64)>) {
        match self {
            Self::Bucket(key) => {
                let (answer, kept) = key.close(now);
                (
                    Heard::Bucket(answer),
                    kept.map(|(state, end)| (Value::Bucket(state), end)),
                )
            }
            Self::Window(key) => {
                let (answer, kept) = key.close(now);
                (
                    Heard::Window(answer),
                    kept.map(|(state, end)| (Value::Window(state), end)),
                )
            }
            Self::Slots(key) => {
                let (answer, kept) = key.close(now);
                (
                    Heard::Slots(answer),
                    kept.map(|(leases, end)| (Value::Slots(leases), end)),
                )
            }
        }
    }
}

struct Key {
    pace: Pace,
    told: Statement,
    state: State,
    is_missing: bool,
    is_dirty: bool,
    furthest: u64,
    claim: u64,
    /// The generation of a new life.
    new: u64,
}

impl Key {
    fn held(&self) -> u64 {
        self.state.cur + self.state.prev
    }

    fn horizon(&self, now: u64) -> Mark {
        let room = self.pace.capacity.saturating_sub(self.held());
        self.pace.plus(Mark::at(now), room)
    }

    fn times(&self, cost: u64, most: u64, now: u64) -> u64 {
        if cost == 0 {
            return most;
        }
        let level = self.pace.tokens(self.state.arrival, self.horizon(now));
        most.min(level / cost)
    }

    fn charge(&mut self, tokens: u64, now: u64) {
        if tokens > 0 {
            if self.state.arrival == Mark::at(now) {
                self.state.since = now;
            }
            self.state.arrival = self.pace.plus(self.state.arrival, tokens);
            self.is_dirty = true;
        }
    }

    fn spare(&self, tokens: u64, now: u64) -> u64 {
        let kept = self.pace.capacity.saturating_sub(self.held()) / 4;
        self.times(1, tokens + kept, now).saturating_sub(kept)
    }

    fn load(value: Option<State>, pace: Pace, told: Statement, new: u64, now: u64) -> Self {
        let epoch = now / EPOCH;
        let fresh = State {
            arrival: Mark::at(now),
            generation: new * WRITES,
            healed: now,
            since: now,
            epoch,
            cur: 0,
            prev: 0,
        };
        let mut key = Self {
            pace,
            told,
            state: value.unwrap_or(fresh),
            is_missing: value.is_none(),
            is_dirty: false,
            furthest: pace.plus(Mark::at(now), 2 * pace.capacity).whole + AHEAD,
            claim: 0,
            new: new * WRITES,
        };
        key.state.arrival.part = key.state.arrival.part.min(pace.amount - 1);
        while key.state.epoch < epoch && key.held() > 0 {
            key.state.epoch += 1;
            if key.state.prev > 0 {
                let end = key.state.epoch * EPOCH;
                if key.state.arrival.whole < end {
                    key.state.arrival = Mark::at(end);
                }
                key.state.arrival = pace.plus(key.state.arrival, key.state.prev);
            }
            key.state.prev = std::mem::take(&mut key.state.cur);
            key.is_dirty = true;
        }
        key.state.epoch = key.state.epoch.max(epoch);
        if key.state.arrival.whole < now {
            key.state.arrival = Mark::at(now);
        }
        if key.state.arrival.whole > key.furthest {
            key.state.arrival = Mark::at(key.furthest);
            key.is_dirty = true;
        }
        key
    }

    fn knows(&mut self) -> bool {
        let state = &mut self.state;
        if self.told.known / WRITES != state.generation / WRITES {
            return false;
        }
        let lost = self.told.known.wrapping_sub(state.generation) % WRITES;
        if lost == 0 || lost > WRITES / 2 {
            return true;
        }
        state.generation = self.new;
        self.is_dirty = true;
        if state.healed != FAR {
            state.healed = state.arrival.whole;
        }
        false
    }

    fn account(&mut self, now: u64) {
        let told = self.told;
        if told.reset == 1 {
            self.state.arrival = Mark::at(now);
            self.state.since = now;
            self.state.healed = FAR;
            self.is_dirty = true;
        }
        if told.known == 0 {
            return;
        }
        let knows = self.knows();
        let state = &mut self.state;
        if knows {
            if told.size > 0 && told.epoch == state.epoch && state.cur >= told.size {
                self.claim = told.size;
            } else if told.size > 0 && told.epoch + 1 == state.epoch && state.prev >= told.size {
                state.prev -= told.size;
                state.cur += told.size;
                self.claim = told.size;
                self.is_dirty = true;
            }
            return;
        }
        let hint = told.hint.min(self.furthest);
        if hint > state.healed {
            let healed = state.arrival.whole + (hint - state.healed);
            state.arrival.whole = self.furthest.min(healed);
            state.healed = hint;
            self.is_dirty = true;
        }
        if told.size > 0 && told.epoch + 1 >= state.epoch {
            let room = (self.pace.capacity / 4).saturating_sub(state.cur + state.prev);
            state.cur += if self.is_missing {
                room
            } else {
                told.size.min(room)
            };
            self.is_dirty = true;
        }
    }

    fn owe(&mut self, now: u64) {
        if self.told.owed == 0 {
            return;
        }
        let lowest = self.pace.plus(Mark::at(now), 2 * self.pace.capacity).whole;
        let before = self.state.arrival;
        self.charge(self.told.owed, now);
        if self.state.arrival.whole >= lowest {
            self.state.arrival = if before.whole > lowest {
                before
            } else {
                Mark::at(lowest)
            };
        }
    }

    fn refill(&mut self, now: u64) -> u64 {
        let told = self.told;
        if self.claim > 0 && told.release == 1 {
            self.state.cur -= self.claim;
            self.charge(told.spent, now);
            self.claim = 0;
            self.is_dirty = true;
            return 0;
        }
        let mut added = 0;
        if self.claim > 0 && told.spent > 0 {
            added = told.spent.min(self.spare(told.spent, now));
            let less = told.spent - added;
            self.charge(told.spent, now);
            self.state.cur -= less;
            self.claim -= less;
        }
        if told.want > self.claim {
            let room = (self.pace.capacity / 4).saturating_sub(self.held());
            let more = (told.want - self.claim).min(room);
            let more = if more > 0 {
                more.min(self.spare(more, now))
            } else {
                0
            };
            if more > 0 {
                self.state.cur += more;
                self.claim += more;
                added += more;
                self.is_dirty = true;
            }
        }
        added
    }

    fn settle(&mut self, now: u64) {
        let told = self.told;
        let is_owed = i128::from(now) - i128::from(told.age) >= i128::from(self.state.since);
        if told.refund > 0 && self.state.arrival.whole > now && is_owed {
            let back = self.pace.plus(Mark::default(), told.refund);
            let arrival = self.state.arrival;
            let borrows = arrival.part < back.part;
            let whole = arrival
                .whole
                .saturating_sub(back.whole + u64::from(borrows));
            let part = arrival.part + if borrows { self.pace.amount } else { 0 } - back.part;
            self.state.arrival = if whole < now {
                Mark::at(now)
            } else {
                Mark { whole, part }
            };
            self.is_dirty = true;
        }
    }

    /// Until when the value is kept.
    fn full(&self) -> Mark {
        let mut full = self.state.arrival;
        if self.held() > 0 {
            let end = full.whole.max((self.state.epoch + 2) * EPOCH);
            full.whole = self.pace.plus(Mark::at(end), self.held()).whole;
        }
        if self.state.healed == FAR {
            full.whole = full.whole.max(self.furthest);
        }
        full
    }

    fn close(mut self, now: u64) -> (Answer, Option<(State, u64)>) {
        let claim = self.claim;
        let added = self.refill(now);
        self.settle(now);
        let full = self.full();
        let end = if full > Mark::at(now) { full.whole } else { 0 };
        if self.is_dirty && end > 0 {
            let generation = self.state.generation;
            let (life, writes) = (generation / WRITES, generation % WRITES);
            self.state.generation = life * WRITES + (writes + 1) % WRITES;
        }
        let answer = Answer {
            arrival: self.state.arrival,
            generation: self.state.generation,
            held: self.held(),
            claim,
            size: self.claim,
            added,
            epoch: self.state.epoch,
        };
        (answer, self.is_dirty.then_some((self.state, end)))
    }
}

impl Model {
    /// Whether somebody who knows nothing would be admitted now.
    pub(super) fn admits(&self, name: usize, pace: Pace, cost: u64, now: u64) -> bool {
        let part = Part {
            key: 0,
            cost,
            is_shadow: false,
        };
        let batch = Batch {
            generation: 1,
            keys: vec![Told::Bucket(pace, Statement::default())],
            groups: vec![Group {
                count: 1,
                book: 0,
                asks: vec![part],
            }],
        };
        self.clone().run(&[name], &batch, now).grants[0].admitted > 0
    }

    /// What nodes hold of a key now.
    pub(super) fn held(&self, name: usize, pace: Pace, now: u64) -> u64 {
        let batch = Batch {
            generation: 1,
            keys: vec![Told::Bucket(pace, Statement::default())],
            groups: Vec::new(),
        };
        match self.clone().run(&[name], &batch, now).keys[0] {
            Heard::Bucket(answer) => answer.held,
            _ => 0,
        }
    }

    /// Whether a value ends about now, so that nobody here knows whether it is still there.
    pub(super) fn ends_about(&self, name: usize, now: u64) -> bool {
        let value = self.values.get(&name);
        value.is_some_and(|(_, end)| end.abs_diff(now) < MILLISECONDS)
    }

    /// Takes the server's word for whether a value is still there that ends about now. The server
    /// counts whole milliseconds, from when it comes to the command rather than to the script.
    pub(super) fn ends_as(&mut self, name: usize, is_there: bool, now: u64) {
        if self.ends_about(name, now)
            && let Some((_, end)) = self.values.get_mut(&name)
        {
            *end = now + u64::from(is_there);
        }
    }

    /// Runs a batch over the keys of these numbers.
    pub(super) fn run(&mut self, names: &[usize], batch: &Batch, now: u64) -> Reply {
        self.values.retain(|_, (_, end)| *end > now);
        let mut keys: Vec<Any> = names
            .iter()
            .zip(&batch.keys)
            .map(|(name, told)| {
                let value = self.values.get(name).map(|(value, _)| value.clone());
                Any::open(value, told, batch.generation, now)
            })
            .collect();
        let mut grants = Vec::new();
        for group in &batch.groups {
            let each: Vec<u64> = group
                .asks
                .iter()
                .map(|part| keys[part.key].times(part.cost, group.count, now))
                .collect();
            let enforced = group.asks.iter().filter(|part| !part.is_shadow);
            let mut admitted = group.count;
            for (part, each) in group.asks.iter().zip(&each) {
                if !part.is_shadow {
                    admitted = admitted.min(*each);
                }
            }
            let sums = |n: u64| {
                let mut sums: HashMap<usize, u64> = HashMap::new();
                for part in enforced.clone() {
                    *sums.entry(part.key).or_default() += part.cost * n;
                }
                sums
            };
            while admitted > 0
                && sums(admitted)
                    .iter()
                    .any(|(key, sum)| *sum > 0 && keys[*key].times(1, *sum, now) < *sum)
            {
                admitted -= 1;
            }
            for part in group.asks.iter().filter(|part| !part.is_shadow) {
                keys[part.key].charge(part.cost * admitted, now);
            }
            for part in group.asks.iter().filter(|part| part.is_shadow) {
                let times = keys[part.key].times(part.cost, admitted, now);
                keys[part.key].charge(part.cost * times, now);
            }
            let booked = match group.book > 0 && admitted < group.count {
                true => keys[group.asks[0].key].book(group.book, now),
                false => 0,
            };
            grants.push(Grant {
                admitted,
                booked,
                each,
            });
        }
        let mut answers = Vec::new();
        for (name, key) in names.iter().zip(keys) {
            let (answer, kept) = key.close(now);
            match kept {
                Some((value, end)) if end > 0 => {
                    let millis = (end - now + 1).div_ceil(10_000);
                    self.values.insert(*name, (value, now + millis * 10_000));
                }
                Some(_) => drop(self.values.remove(name)),
                None => {}
            }
            answers.push(answer);
        }
        Reply {
            now,
            keys: answers,
            grants,
        }
    }
}
