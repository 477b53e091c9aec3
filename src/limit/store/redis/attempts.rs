//! How often a key is asked for lately.

/// Attempts are counted over windows of 2^27 nanoseconds, which are 134 ms.
const WINDOW: u32 = 27;

/// How often a key is asked for; times are nanoseconds since the store began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts {
    window: u64,
    count: u64,
    before: u64,
}

impl Attempts {
    pub(super) fn add(&mut self, now: u64) {
        self.turn(now);
        self.count += 1;
    }

    fn turn(&mut self, now: u64) {
        let window = now >> WINDOW;
        if window != self.window {
            self.before = if window == self.window + 1 {
                self.count
            } else {
                0
            };
            self.window = window;
            self.count = 0;
        }
    }

    /// How many come in a window when they come all the time: after a burst a reserve would lie
    /// idle.
    pub(super) fn steady(&mut self, now: u64) -> u64 {
        self.turn(now);
        self.before
    }

    /// How many come in a window.
    pub(super) fn rate(&mut self, now: u64) -> u64 {
        self.turn(now);
        self.before.max(self.count)
    }
}
