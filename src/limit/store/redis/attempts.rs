//! How often a key is asked for lately.

/// Attempts are counted over windows of 2^27 nanoseconds, which are 134 ms, and in which of their
/// sixteen parts they come.
const WINDOW: u32 = 27;
const PART: u32 = WINDOW - 4;

/// How often a key is asked for; times are nanoseconds since the store began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts {
    window: u64,
    count: u64,
    /// The parts of the window in which there were some.
    parts: u16,
    before: u64,
    parts_before: u16,
}

impl Attempts {
    pub(super) fn add(&mut self, now: u64) {
        self.turn(now);
        self.count += 1;
        self.parts |= 1 << ((now >> PART) % 16);
    }

    fn turn(&mut self, now: u64) {
        let window = now >> WINDOW;
        if window != self.window {
            let last = std::mem::take(self);
            if window == last.window + 1 {
                self.before = last.count;
                self.parts_before = last.parts;
            }
            self.window = window;
        }
    }

    /// How many came in the window before the one of the last attempt.
    pub(super) fn before(&self) -> u64 {
        self.before
    }

    /// How many come in a window when they come all the time. Who comes in bursts leaves a reserve
    /// idle in between, for which others are denied.
    pub(super) fn steady(&mut self, now: u64) -> u64 {
        self.turn(now);
        let spread = u64::from(self.parts_before.count_ones());
        if 2 * spread >= self.before.min(8) {
            self.before
        } else {
            0
        }
    }

    /// How many come in a window.
    pub(super) fn rate(&mut self, now: u64) -> u64 {
        self.turn(now);
        self.before.max(self.count)
    }

    /// Whether none came in this part of a window and in the six before it, which are 50 ms.
    pub(super) fn are_over(&mut self, now: u64) -> bool {
        self.turn(now);
        let both = u32::from(self.parts) << 16 | u32::from(self.parts_before);
        both >> (16 + (now >> PART) % 16 - 6) == 0
    }
}
