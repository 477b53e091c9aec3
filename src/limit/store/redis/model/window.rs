//! `window.lua` in Rust.

use super::{FAR, WRITES};
use crate::limit::store::redis::{
    frame::{Frame, Kind, Taking},
    tally::{Answer, Statement},
};

/// The value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    id: u64,
    before: u64,
    taken: u64,
    generation: u64,
    healed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    frame: Frame,
    told: Statement,
    state: State,
    end: u64,
    is_dirty: bool,
    knows: bool,
}

impl Key {
    pub(super) fn open(
        value: Option<State>,
        frame: Frame,
        told: Statement,
        new: u64,
        now: u64,
    ) -> Self {
        let window = frame.window(now);
        let fresh = State {
            id: window.id,
            before: 0,
            taken: 0,
            generation: new * WRITES,
            healed: 0,
        };
        let mut key = Self {
            frame,
            told,
            state: value.unwrap_or(fresh),
            end: window.end,
            is_dirty: false,
            knows: false,
        };
        key.roll(window, now);
        key.account(new, now);
        key.owe(now);
        key.refund();
        key
    }

    fn roll(&mut self, window: Taking, now: u64) {
        let state = &mut self.state;
        match self.frame.kind {
            Kind::Fixed { length } => {
                if state.id + length <= now {
                    (state.taken, state.healed) = (0, 0);
                }
                if state.taken == 0 || state.id > now {
                    state.id = now;
                }
                self.end = state.id + length;
            }
            kind => {
                let is_sliding = matches!(kind, Kind::Sliding { .. });
                if window.id > state.id {
                    let is_next = window.id == state.id + 1;
                    state.before = if is_sliding && is_next {
                        state.taken
                    } else {
                        0
                    };
                    (state.id, state.taken, state.healed) = (window.id, 0, 0);
                } else if is_sliding || state.id > window.id + 1 {
                    state.id = window.id;
                }
            }
        }
    }

    fn account(&mut self, new: u64, now: u64) {
        let (told, state) = (self.told, &mut self.state);
        if told.reset == 1 {
            (state.before, state.taken) = (0, 0);
            (state.generation, state.healed) = (new * WRITES, FAR);
            self.is_dirty = true;
            return;
        }
        if told.known == 0 {
            return;
        }
        if told.known / WRITES == state.generation / WRITES {
            let lost = told.known.wrapping_sub(state.generation) % WRITES;
            self.knows = lost == 0 || lost > WRITES / 2;
            if !self.knows {
                state.generation = new * WRITES;
                self.is_dirty = true;
                if state.healed != FAR {
                    state.healed = state.taken;
                }
            }
        }
        if self.knows || state.healed == FAR {
            return;
        }
        let same = match self.frame.kind {
            Kind::Fixed { length } => told.mark <= now && told.mark + length > now && told.hint > 0,
            _ => told.mark == state.id,
        };
        if same && told.hint > state.healed {
            if let Kind::Fixed { length } = self.frame.kind
                && told.mark < state.id
            {
                state.id = told.mark;
                self.end = told.mark + length;
            }
            let healed = state.taken + told.hint - state.healed;
            state.taken = healed.min(2 * self.frame.amount);
            state.healed = told.hint;
            self.is_dirty = true;
        }
        if matches!(self.frame.kind, Kind::Sliding { .. }) {
            let before = match same {
                true => told.earlier,
                false if told.mark + 1 == state.id => told.hint,
                false => 0,
            };
            if before > state.before {
                state.before = before;
                self.is_dirty = true;
            }
        }
    }

    fn owe(&mut self, now: u64) {
        let (owed, lowest) = (self.told.owed, 2 * self.frame.amount);
        if owed == 0 {
            return;
        }
        let then = now - self.told.age;
        let debt = |taken: u64| taken.max((taken + owed).min(lowest));
        let state = &mut self.state;
        match self.frame.kind {
            Kind::Fixed { length } if self.told.age >= length => return,
            Kind::Fixed { length } => {
                if state.taken == 0 {
                    state.id = then;
                    self.end = then + length;
                }
                state.taken = debt(state.taken);
            }
            kind => {
                let number = self.frame.window(then).id;
                if number >= state.id {
                    state.taken = debt(state.taken);
                } else if matches!(kind, Kind::Sliding { .. }) && number + 1 == state.id {
                    state.before = debt(state.before);
                } else {
                    return;
                }
            }
        }
        self.is_dirty = true;
    }

    fn refund(&mut self) {
        let (told, state) = (self.told, &mut self.state);
        if told.refund == 0 || !self.knows {
            return;
        }
        let is_sliding = matches!(self.frame.kind, Kind::Sliding { .. });
        if told.of == state.id {
            state.taken = state.taken.saturating_sub(told.refund);
        } else if is_sliding && told.of + 1 == state.id {
            state.before = state.before.saturating_sub(told.refund);
        } else {
            return;
        }
        self.is_dirty = true;
    }

    fn taking(&self) -> Taking {
        Taking {
            id: self.state.id,
            before: self.state.before,
            taken: self.state.taken,
            end: self.end,
        }
    }

    pub(super) fn times(&self, cost: u64, most: u64, now: u64) -> u64 {
        match cost {
            0 => most,
            cost => most.min(self.frame.free(self.taking(), now) / cost),
        }
    }

    pub(super) fn charge(&mut self, cost: u64) {
        self.state.taken += cost;
        self.is_dirty |= cost > 0;
    }

    /// What it says, and what is kept until when, where that has changed.
    pub(super) fn close(mut self, now: u64) -> (Answer, Option<(State, u64)>) {
        let free = self.frame.free(self.taking(), now);
        let added = self.told.want.min(free / (2 * self.told.nodes));
        self.charge(added);
        if self.is_dirty {
            let (life, writes) = (
                self.state.generation / WRITES,
                self.state.generation % WRITES,
            );
            self.state.generation = life * WRITES + (writes + 1) % WRITES;
        }
        let last = match self.frame.kind {
            Kind::Sliding { length, .. } => self.end + length,
            _ => self.end,
        };
        let answer = Answer {
            taking: self.taking(),
            generation: self.state.generation,
            added,
        };
        (answer, self.is_dirty.then_some((self.state, last)))
    }
}
