//! What is known of the health of endpoints, and what follows from it.
//!
//! Active checks say what they [found](Verdict); requests tell by how they end, and who is an
//! [`Outlier`] by that is ejected for a while. Both are kept apart, and together they make the
//! [`Standing`] of an endpoint, by which a cluster picks: healthy ones first, then those that
//! nobody has checked yet, and the others not at all, unless so few are left that the cluster
//! panics.
//!
//! Active checks that pass do not end an ejection: an endpoint may answer checks and fail requests.
//!
//! Everything here is pure: the time comes in. What a request does as it ends are a few atomics;
//! the one writer of a cluster is called by a bell and decides.

mod bell;
mod breaker;
mod cause;
mod detector;
mod drain;
mod finding;
mod gate;
mod gradient;
mod hearsay;
mod outlier;
mod oversight;
mod percent;
mod rise_fall;
mod schedule;
mod standing;
mod streak;
mod trip;
mod window;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub(crate) use bell::Bell;
pub(crate) use breaker::{Admission, Ending, Pass, Rejection};
pub use breaker::{Breaker, Limits, Resource, Usage};
pub use cause::Cause;
use detector::Part;
pub(crate) use detector::{Occasion, Subject, outliers};
use drain::Drain;
pub(crate) use drain::{DrainTold, DrainTurn, DrainWord, FAREWELL, Wish};
pub use finding::Finding;
use gate::Gate;
pub(crate) use gate::Permit;
pub use gradient::AdaptiveConcurrency;
pub(crate) use hearsay::Hearsay;
use hearsay::Told;
pub use outlier::{FailurePercentage, Outlier, SuccessFloor, SuccessRate};
pub(crate) use oversight::Oversight;
pub use percent::Percent;
pub(crate) use rise_fall::{Opinion, Thresholds};
pub(crate) use schedule::{Pace, Schedule};
pub use standing::{Standing, Verdict};
use streak::Streak;
use window::Window;
pub(crate) use window::{BUCKETS, Counts};

use crate::{
    outcome::Fault,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
};

/// The longest `Retry-After` that is believed: 300 s, as linkerd has it.
pub(crate) const LONGEST_QUIET: Duration = Duration::from_secs(300);
pub use trip::{BreakerState, TripRule};

/// What is known of the health of one endpoint; it survives every update of the list that keeps
/// the endpoint's identity.
#[derive(Debug)]
pub struct Health {
    epoch: Instant,
    /// What active checks said last, as a code.
    verdict: AtomicU8,
    streak: Streak,
    gate: Gate,
    /// The microsecond until which it asked to be left alone.
    quiet_until: AtomicU64,
    /// Requests that were throttled, which are among those that ended well.
    throttled: AtomicU64,
    /// What the other nodes say.
    told: Told,
    /// Whether it is to get no new requests, as the writer saw it last.
    is_draining: AtomicBool,
    record: Mutex<Record>,
}

/// What requests do not touch, unless they fail.
#[derive(Debug, Default)]
struct Record {
    /// What the checks said with their verdict.
    finding: Option<Arc<str>>,
    last: Option<Fault>,
    /// How many buckets have ended since that.
    age: u8,
    window: Window,
    /// How often it was ejected, less the intervals that it got through since.
    ejections: u32,
    /// Why it is ejected.
    cause: Option<Cause>,
    /// An ejection that nobody was told of.
    news: Option<Ejection>,
    /// The standing that was last told of.
    told: Option<Standing>,
    /// When it was let in again, after it was found unhealthy or ejected.
    readmitted: Option<Instant>,
    /// What the probes of this node's own say.
    probed: Option<Probed>,
    /// For how many buckets others have condemned it.
    condemned: u8,
    /// How its requests ended at all nodes.
    pooled: Option<Counts>,
    /// A trial that nobody was told of.
    has_begun_trial: bool,
    /// What is known of its leave.
    drain: Drain,
}

/// What the probes of this node's own say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) verdict: Verdict,
    /// Whether the last one passed.
    pub(crate) has_passed: bool,
    /// When that was.
    pub(crate) at: Instant,
}

/// How an endpoint is ejected, as other nodes are to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ejected {
    /// From when on it may be tried.
    pub(crate) until: Instant,
    pub(crate) times: u32,
    /// Whether this node saw the reason itself.
    pub(crate) is_own: bool,
    pub(crate) is_on_trial: bool,
}

/// An ejection, to be told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ejection {
    pub(crate) cause: Cause,
    pub(crate) span: Duration,
    pub(crate) times: u32,
}

/// A change of standing, to be told of.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) from: Standing,
    pub(crate) to: Standing,
    pub(crate) reason: Arc<str>,
}

impl Health {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            verdict: AtomicU8::new(Verdict::Unknown.code()),
            streak: Streak::new(),
            gate: Gate::new(),
            quiet_until: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            told: Told::new(),
            is_draining: AtomicBool::new(false),
            record: Mutex::default(),
        }
    }

    /// What active checks said last.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::of_code(self.verdict.load(Relaxed))
    }

    /// Until when the endpoint asked to be left alone, this node or another one of the cluster;
    /// `None` when that is over.
    #[must_use]
    pub fn quiet_until(&self, now: Instant) -> Option<Instant> {
        let until = self.quiet_until.load(Relaxed);
        self.later(until.max(self.told.quiet_until()), now)
    }

    /// Until when it asked this node.
    pub(crate) fn own_quiet_until(&self, now: Instant) -> Option<Instant> {
        self.later(self.quiet_until.load(Relaxed), now)
    }

    fn later(&self, until: u64, now: Instant) -> Option<Instant> {
        (until > self.micros(now)).then(|| self.epoch + Duration::from_micros(until))
    }

    /// From when on an ejected endpoint may be tried again; `None` when it is not ejected.
    #[must_use]
    pub fn ejected_until(&self) -> Option<Instant> {
        let until = self.gate.shut_until()?;
        Some(self.epoch + Duration::from_micros(until))
    }

    /// Since when anything was to be known of it.
    pub(crate) fn known_since(&self) -> Instant {
        self.epoch
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_micros() as u64
    }

    pub(crate) fn standing(&self, oversight: &Oversight, now: Instant) -> Standing {
        let verdict = oversight.counted(self.verdict());
        if verdict == Verdict::Unhealthy {
            Standing::Unhealthy
        } else if !self.gate.is_open() {
            Standing::Ejected
        } else if self.quiet_until(now).is_some() {
            Standing::Quiet
        } else if verdict == Verdict::Unknown {
            Standing::Unknown
        } else {
            Standing::Healthy
        }
    }

    /// Why it stands as it does, in words; `None` when nothing speaks against it.
    pub(crate) fn reason(&self, oversight: &Oversight, now: Instant) -> Option<Arc<str>> {
        match self.standing(oversight, now) {
            Standing::Quiet => Some("it asked to be left alone: retry-after".into()),
            Standing::Ejected => {
                let cause = self.record.lock().cause?;
                Some(cause.to_string().into())
            }
            standing => {
                let finding = self.record.lock().finding.clone();
                let finding = finding.filter(|_| oversight.has_checks());
                match standing {
                    Standing::Unknown => {
                        Some(finding.unwrap_or_else(|| "no check has ended yet".into()))
                    }
                    _ => finding,
                }
            }
        }
    }
}

/// What requests tell.
impl Health {
    /// A request succeeded.
    pub(crate) fn succeeded(&self) {
        self.streak.end();
        self.told.refute();
    }

    /// A request failed. While the endpoint is ejected, only its trials say anything new.
    pub(crate) fn failed(&self, fault: Fault, oversight: &Oversight) {
        let Some(rules) = oversight.outlier() else {
            return;
        };
        if !self.gate.is_open() {
            return;
        }
        let mut record = self.record.lock();
        (record.last, record.age) = (Some(fault), 0);
        drop(record);
        let is_suspected = self.told.hearsay() != Hearsay::None;
        if rules.is_reached(self.streak.fail(fault)) || is_suspected {
            oversight.bell().ring();
        }
    }

    /// A request was throttled: that counts in rates, and neither makes nor ends a row.
    pub(crate) fn throttled(&self) {
        self.throttled.fetch_add(1, Relaxed);
    }

    /// The endpoint asked to be left alone for so long.
    pub(crate) fn quiet(&self, span: Duration, oversight: &Oversight, now: Instant) {
        let until = self.micros(now + span.min(LONGEST_QUIET));
        if self.quiet_until.fetch_max(until, Relaxed) < until {
            oversight.bell().ring();
        }
    }

    /// The right to send it a request on trial: its ejection is over, no other trial is under way,
    /// and neither it nor active checks speak against it.
    pub(crate) fn try_trial(&self, oversight: &Oversight, now: Instant) -> Option<Permit> {
        let is_welcome = oversight.counted(self.verdict()) != Verdict::Unhealthy
            && self.quiet_until(now).is_none();
        let micros = self.micros(now);
        if !is_welcome || self.told.is_held(micros) {
            return None;
        }
        let permit = self.gate.try_trial(micros)?;
        self.record.lock().has_begun_trial = true;
        oversight.bell().ring();
        Some(permit)
    }

    /// The trial succeeded.
    pub(crate) fn pass_trial(&self, permit: &Permit, counters: Counts, oversight: &Oversight) {
        if self.gate.pass(permit) {
            self.start_anew(counters);
            oversight.bell().ring();
        }
    }

    /// The trial failed; without a fault, it was throttled.
    pub(crate) fn fail_trial(
        &self,
        permit: &Permit,
        fault: Option<Fault>,
        oversight: &Oversight,
        now: Instant,
    ) {
        let Some(rules) = oversight.outlier() else {
            // Whoever took the rules away has let everybody in.
            return;
        };
        let mut record = self.record.lock();
        let trial = Cause::Trial(fault);
        let cause = record.cause.map_or(trial, |cause| cause.after_trial(fault));
        let ejection = record.ejection(cause, &rules);
        let until = self.micros(now + ejection.span);
        if self.gate.fail(permit, until) {
            record.eject(ejection);
            drop(record);
            oversight.bell().ring();
        }
    }

    /// The trial said nothing: the next request is one.
    pub(crate) fn give_back_trial(&self, permit: &Permit) {
        self.gate.give_back(permit);
    }

    fn start_anew(&self, counters: Counts) {
        self.streak.end();
        let mut record = self.record.lock();
        record.window.clear(counters);
        record.last = None;
        record.cause = None;
        record.condemned = 0;
    }
}

/// What the other nodes tell, and are told.
impl Health {
    /// Takes how much the word of others weighs. Who was ejected on nothing but their word is let
    /// in when they take it back.
    pub(crate) fn hear(&self, hearsay: Hearsay, counters: Counts, oversight: &Oversight) {
        let is_new = self.told.set(hearsay);
        let is_acquitted = hearsay == Hearsay::None
            && matches!(self.record.lock().cause, Some(Cause::Quorum { .. }))
            && !self.gate.is_open();
        if is_acquitted {
            self.gate.open();
            self.start_anew(counters);
        }
        if is_new || is_acquitted {
            oversight.bell().ring();
        }
    }

    /// Takes until when others were asked to leave it alone.
    pub(crate) fn hear_quiet(&self, until: Instant, oversight: &Oversight, now: Instant) {
        let until = self.micros(until.min(now + LONGEST_QUIET));
        if until > self.micros(now) && self.told.set_quiet(until) {
            oversight.bell().ring();
        }
    }

    /// Leaves trials to other nodes until then.
    pub(crate) fn hold_trials(&self, until: Option<Instant>) {
        self.told
            .hold_until(until.map_or(0, |until| self.micros(until)));
    }

    /// Lets the next trial be tried now.
    pub(crate) fn hasten_trial(&self, now: Instant) {
        self.told.hold_until(0);
        self.gate.hasten(self.micros(now));
    }

    /// Leaves probes to other nodes from now on, or does not.
    pub(crate) fn leave_probes(&self, are_left: bool) {
        self.told.set_probed(are_left);
    }

    /// Whether others probe it, and this node does not.
    pub(crate) fn is_probed_by_others(&self) -> bool {
        self.told.is_probed()
    }

    /// A probe of this node's own has ended.
    pub(crate) fn probed(&self, probed: Probed) {
        self.record.lock().probed = Some(probed);
    }

    /// What the probes of this node's own say.
    pub(crate) fn own_probes(&self) -> Option<Probed> {
        self.record.lock().probed
    }

    /// Takes how its requests ended at all nodes in the last interval; `None` when nobody knows.
    pub(crate) fn pool(&self, counts: Option<Counts>) {
        self.record.lock().pooled = counts;
    }

    /// How its requests ended here in the last interval.
    pub(crate) fn recent(&self) -> Counts {
        self.record.lock().window.sum()
    }

    /// How it is ejected, if it is.
    pub(crate) fn ejected(&self) -> Option<Ejected> {
        let until = self.ejected_until()?;
        let record = self.record.lock();
        Some(Ejected {
            until,
            times: record.ejections,
            is_own: record.cause.is_none_or(Cause::is_own),
            is_on_trial: self.gate.is_on_trial(),
        })
    }
}

/// Whether it is about to leave.
impl Health {
    /// Why it takes no new requests though discovery lists it, in words; `None` when it takes some.
    #[must_use]
    pub fn draining(&self, now: Instant) -> Option<Arc<str>> {
        let why = self.record.lock().drain.why(now)?;
        Some(why.to_string().into())
    }

    /// Somebody wants it to leave, or to stay after all.
    pub(crate) fn wish(&self, wish: Wish, oversight: &Oversight, now: Instant) {
        self.drain(|drain| drain.ask(wish, now), oversight, now);
    }

    /// It said at `at` that it leaves, which holds for this span.
    pub(crate) fn leaves(&self, at: Instant, span: Duration, oversight: &Oversight, now: Instant) {
        self.drain(|drain| drain.answer(at, now + span), oversight, now);
    }

    /// A probe that began at this time found it well.
    pub(crate) fn stays(&self, since: Instant, oversight: &Oversight, now: Instant) {
        self.drain(|drain| drain.is_well(since), oversight, now);
    }

    /// Takes what the other nodes say of its leave.
    pub(crate) fn hear_leave(&self, told: DrainTold, oversight: &Oversight, now: Instant) {
        self.drain(|drain| drain.hear(told), oversight, now);
    }

    fn drain(&self, change: impl FnOnce(&mut Drain), oversight: &Oversight, now: Instant) {
        let mut record = self.record.lock();
        change(&mut record.drain);
        let drains = record.drain.why(now).is_some();
        drop(record);
        if drains != self.is_draining() {
            oversight.bell().ring();
        }
    }

    /// What this node knows of its leave itself, and since when.
    pub(crate) fn leave(&self, now: Instant) -> [Option<(DrainWord, Instant)>; 2] {
        self.record.lock().drain.words(now)
    }

    /// Whether it takes no new requests, as the writer saw it last.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Whether that changed since the last time, for the writer.
    pub(crate) fn drain_turn(&self, now: Instant) -> Option<DrainTurn> {
        let why = self.record.lock().drain.why(now);
        let was_draining = self.is_draining.swap(why.is_some(), Relaxed);
        (was_draining != why.is_some()).then(|| why.map_or(DrainTurn::Resumes, DrainTurn::Drains))
    }

    /// When it takes requests again, if nothing happens.
    pub(crate) fn drain_ends(&self, now: Instant) -> Option<Instant> {
        self.record.lock().drain.ends(now)
    }
}

/// What active checks tell.
impl Health {
    /// Takes what active checks say; returns whether that is news.
    pub(crate) fn check(&self, verdict: Verdict, finding: Arc<str>) -> bool {
        let mut record = self.record.lock();
        record.finding = Some(finding);
        self.verdict.swap(verdict.code(), Relaxed) != verdict.code()
    }

    /// Forgets what active checks said.
    pub(crate) fn forget_checks(&self) {
        let mut record = self.record.lock();
        record.finding = None;
        self.verdict.store(Verdict::Unknown.code(), Relaxed);
    }
}

/// What the one writer does.
impl Health {
    /// The counters of requests, given those that ended well, throttled ones among them, and those
    /// that failed.
    pub(crate) fn counts(&self, successes: u64, failures: u64) -> Counts {
        let throttled = self.throttled.load(Relaxed);
        Counts {
            good: successes.saturating_sub(throttled),
            bad: failures + throttled,
        }
    }

    /// Ends a bucket of time.
    pub(crate) fn end_bucket(&self, counters: Counts) {
        let mut record = self.record.lock();
        record.condemned = match self.told.hearsay() {
            Hearsay::Condemned { .. } => record.condemned.saturating_add(1),
            _ => 0,
        };
        record.age = record.age.saturating_add(1);
        if self.gate.is_open() {
            record.window.end_bucket(counters);
        } else {
            record.window.clear(counters);
        }
    }

    /// Ends an interval: who got through it without being ejected is a bit better than before.
    pub(crate) fn end_interval(&self) {
        if self.gate.is_open() {
            let mut record = self.record.lock();
            record.ejections = record.ejections.saturating_sub(1);
        }
    }

    pub(crate) fn subject(&self, oversight: &Oversight) -> Subject {
        let record = self.record.lock();
        let part = if !self.gate.is_open() {
            Part::Ejected
        } else if oversight.counted(self.verdict()) == Verdict::Unhealthy {
            Part::Out
        } else {
            Part::Usable
        };
        Subject {
            part,
            rows: self.streak.rows(),
            last: record.last,
            ended: record.window.sum(),
            pooled: record.pooled,
            hearsay: self.told.hearsay(),
            age: record.age,
            condemned: record.condemned,
        }
    }

    pub(crate) fn eject(&self, cause: Cause, rules: &Outlier, now: Instant) {
        let mut record = self.record.lock();
        let ejection = record.ejection(cause, rules);
        record.eject(ejection);
        self.gate.shut(self.micros(now + ejection.span));
    }

    /// Lets it in, because the rules by which it was ejected are gone.
    pub(crate) fn readmit(&self, counters: Counts) {
        self.gate.open();
        self.start_anew(counters);
        self.record.lock().ejections = 0;
    }

    /// The ejection since the last time, when there was one.
    pub(crate) fn take_ejection(&self) -> Option<Ejection> {
        self.record.lock().news.take()
    }

    /// Whether a trial began since the last time.
    pub(crate) fn take_trial(&self) -> bool {
        std::mem::take(&mut self.record.lock().has_begun_trial)
    }

    /// The change of standing since the last time, when there is one.
    pub(crate) fn turn(&self, oversight: &Oversight, now: Instant) -> Option<Turn> {
        let to = self.standing(oversight, now);
        let before = self.record.lock().told.replace(to);
        let from = before.unwrap_or_else(|| match oversight.counted(Verdict::Unknown) {
            Verdict::Healthy => Standing::Healthy,
            _ => Standing::Unknown,
        });
        if from == to {
            return None;
        }
        if !from.is_usable() && to.is_usable() {
            self.record.lock().readmitted = Some(now);
        }
        let reason = match (from, to) {
            (Standing::Ejected, Standing::Healthy | Standing::Unknown) => {
                "the request on trial succeeded".into()
            }
            (Standing::Quiet, Standing::Healthy | Standing::Unknown) => {
                "the time that it asked for is over".into()
            }
            _ => self
                .reason(oversight, now)
                .unwrap_or_else(|| "nothing speaks against it any more".into()),
        };
        Some(Turn { from, to, reason })
    }

    /// When it was last let in again, after it was found unhealthy or ejected.
    pub(crate) fn readmitted(&self) -> Option<Instant> {
        self.record.lock().readmitted
    }

    /// Takes the standing as it is for told.
    pub(crate) fn hush(&self, oversight: &Oversight, now: Instant) {
        let standing = self.standing(oversight, now);
        self.record.lock().told = Some(standing);
    }
}

impl Record {
    /// The next ejection. Once more makes it no longer, it does not count up either: who gets
    /// better is back at the base soon. Nor does one count that only confirms what others said.
    fn ejection(&self, cause: Cause, rules: &Outlier) -> Ejection {
        let is_told = self.cause.is_some_and(|cause| !cause.is_own());
        let (before, next) = match self.ejections {
            times if is_told => (times, times.max(1)),
            times => (times, times.saturating_add(1)),
        };
        let span = rules.span(next);
        let times = if before > 0 && rules.span(before) >= span {
            before
        } else {
            next
        };
        Ejection { cause, span, times }
    }

    fn eject(&mut self, ejection: Ejection) {
        self.ejections = ejection.times;
        self.cause = Some(ejection.cause);
        self.news = Some(ejection);
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
