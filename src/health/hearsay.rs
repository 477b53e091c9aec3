//! What the other nodes say of an endpoint, until this one knows better.

use crate::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// How much the word of the others weighs. The edition tells one word from the next: one that was
/// refuted here does not come back by being said again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hearsay {
    /// Nobody says anything.
    #[default]
    None,
    /// Others ejected it: one failure here is enough.
    Suspected { nodes: u16, edition: u32 },
    /// So many that it is ejected here too, unless a request succeeds.
    Condemned { nodes: u16, edition: u32 },
}

const NONE: u64 = 0;
const SUSPECTED: u64 = 1;
const CONDEMNED: u64 = 2;
const REFUTED: u64 = 3;

/// Time by which two tellings of the same end may differ, in microseconds.
const SLACK: u64 = 1_000_000;

/// The cells of it. One node writes what is said, and any request that succeeds refutes it.
#[derive(Debug)]
pub(super) struct Told {
    /// Whether there is anything to refute: all that a success reads.
    is_any: AtomicBool,
    /// The edition, how many nodes, and how much it weighs.
    word: AtomicU64,
    /// The microsecond until which others were asked to leave it alone.
    quiet_until: AtomicU64,
    /// The latest such time that a success has refuted.
    refuted_quiet: AtomicU64,
    /// The microsecond until which a trial is left to others.
    hold_until: AtomicU64,
    /// Whether others probe it, and this node does not.
    is_probed: AtomicBool,
}

fn pack(hearsay: Hearsay) -> u64 {
    let pack =
        |level, nodes: u16, edition: u32| u64::from(edition) << 32 | u64::from(nodes) << 8 | level;
    match hearsay {
        Hearsay::None => NONE,
        Hearsay::Suspected { nodes, edition } => pack(SUSPECTED, nodes, edition),
        Hearsay::Condemned { nodes, edition } => pack(CONDEMNED, nodes, edition),
    }
}

fn level(word: u64) -> u64 {
    word & 0xff
}

fn edition(word: u64) -> u64 {
    word >> 32
}

impl Told {
    pub(super) fn new() -> Self {
        Self {
            is_any: AtomicBool::new(false),
            word: AtomicU64::new(NONE),
            quiet_until: AtomicU64::new(0),
            refuted_quiet: AtomicU64::new(0),
            hold_until: AtomicU64::new(0),
            is_probed: AtomicBool::new(false),
        }
    }

    /// Takes what the others say; returns whether it is new.
    pub(super) fn set(&self, hearsay: Hearsay) -> bool {
        let next = pack(hearsay);
        let taken = self.word.fetch_update(AcqRel, Acquire, |word| {
            let is_refuted = level(word) == REFUTED && edition(word) == edition(next);
            (word != next && !(is_refuted && next != NONE)).then_some(next)
        });
        if taken.is_ok() && next != NONE {
            // Pairs with the swap in `refute`: who sees it sees the word.
            self.is_any.store(true, Release);
        }
        taken.is_ok()
    }

    pub(super) fn hearsay(&self) -> Hearsay {
        let word = self.word.load(Relaxed);
        let (nodes, edition) = ((word >> 8) as u16, edition(word) as u32);
        match level(word) {
            SUSPECTED => Hearsay::Suspected { nodes, edition },
            CONDEMNED => Hearsay::Condemned { nodes, edition },
            _ => Hearsay::None,
        }
    }

    /// Takes until when others were asked to leave it alone; returns whether that is later than
    /// what is known.
    pub(super) fn set_quiet(&self, until: u64) -> bool {
        if until <= self.refuted_quiet.load(Relaxed).saturating_add(SLACK) {
            return false;
        }
        let is_later = self.quiet_until.fetch_max(until, AcqRel) < until;
        if is_later {
            self.is_any.store(true, Release);
        }
        is_later
    }

    pub(super) fn quiet_until(&self) -> u64 {
        self.quiet_until.load(Relaxed)
    }

    /// A request succeeded here: that counts for more.
    pub(super) fn refute(&self) {
        // Pairs with the store in `set`: who takes it back sees the word that came before.
        if self.is_any.load(Relaxed) && self.is_any.swap(false, AcqRel) {
            let refuted = |word| (level(word) != NONE).then_some(word & !0xff | REFUTED);
            self.word.fetch_update(AcqRel, Acquire, refuted).ok();
            let quiet = self.quiet_until.swap(0, AcqRel);
            self.refuted_quiet.fetch_max(quiet, Relaxed);
        }
    }

    /// Leaves trials to others until this microsecond.
    pub(super) fn hold_until(&self, until: u64) {
        self.hold_until.store(until, Relaxed);
    }

    pub(super) fn is_held(&self, now: u64) -> bool {
        now < self.hold_until.load(Relaxed)
    }

    /// Leaves probes to others, or not.
    pub(super) fn set_probed(&self, is_probed: bool) {
        self.is_probed.store(is_probed, Relaxed);
    }

    pub(super) fn is_probed(&self) -> bool {
        self.is_probed.load(Relaxed)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    fn suspected(edition: u32) -> Hearsay {
        Hearsay::Suspected { nodes: 2, edition }
    }

    #[test]
    fn a_success_refutes_one_edition_and_not_the_next() {
        let told = Told::new();
        told.refute();
        assert!(told.set(suspected(1)));
        assert!(!told.set(suspected(1)), "no news");
        assert_eq!(told.hearsay(), suspected(1));
        told.refute();
        assert_eq!(told.hearsay(), Hearsay::None);
        assert!(!told.set(suspected(1)), "said again");
        let condemned = |edition| Hearsay::Condemned { nodes: 9, edition };
        assert!(!told.set(condemned(1)));
        assert!(told.set(condemned(2)));
        assert_eq!(told.hearsay(), condemned(2));
        assert!(told.set(Hearsay::None));
        assert!(!told.set(Hearsay::None));
        assert_eq!(told.hearsay(), Hearsay::None);
    }

    #[test]
    fn a_success_ends_what_others_were_asked() {
        let told = Told::new();
        assert!(told.set_quiet(9_000_000));
        assert!(!told.set_quiet(8_000_000));
        told.refute();
        assert_eq!(told.quiet_until(), 0);
        assert!(!told.set_quiet(9_500_000), "the same time, told again");
        assert!(told.set_quiet(20_000_000));
        assert_eq!(told.quiet_until(), 20_000_000);
    }

    #[test]
    fn trials_are_held_until_a_time() {
        let told = Told::new();
        assert!(!told.is_held(0));
        told.hold_until(10);
        assert!(told.is_held(9) && !told.is_held(10));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn a_success_beside_a_new_word_leaves_the_word_or_refutes_it_for_good() {
        loom::model(|| {
            let told = Arc::new(Told::new());
            let word = |edition| Hearsay::Suspected { nodes: 1, edition };
            told.set(word(1));
            let other = Arc::clone(&told);
            let succeeding = thread::spawn(move || other.refute());
            told.set(word(2));
            succeeding.join().unwrap();
            let left = told.hearsay();
            assert!(left == word(2) || left == Hearsay::None);
            // Whatever came first, the next success refutes what is left.
            told.refute();
            assert_eq!(told.hearsay(), Hearsay::None);
        });
    }
}
