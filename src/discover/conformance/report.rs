//! What a run of the kit found.

use std::fmt;

use super::bench::Miss;

/// How each rule ended.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The rules, in the order in which they ran, and how they ended.
    pub rules: Vec<(&'static str, Outcome)>,
}

/// How a rule ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The backend keeps it.
    Passed,
    /// The source cannot do what the rule needs.
    Skipped(String),
    /// The backend breaks it.
    Failed(String),
}

impl Report {
    pub(super) fn add(&mut self, rule: &'static str, verdict: Result<(), Miss>) {
        let outcome = match verdict {
            Ok(()) => Outcome::Passed,
            Err(Miss::Skipped(what)) => Outcome::Skipped(what),
            Err(Miss::Failed(why)) => Outcome::Failed(why),
        };
        self.rules.push((rule, outcome));
    }

    /// The rules that the backend breaks.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> {
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        self.named(failed)
    }

    /// The rules that could not be tried.
    pub fn skipped(&self) -> impl Iterator<Item = &'static str> {
        let skipped = |outcome: &Outcome| matches!(outcome, Outcome::Skipped(_));
        self.named(skipped)
    }

    fn named(&self, which: impl Fn(&Outcome) -> bool) -> impl Iterator<Item = &'static str> {
        let rules = self.rules.iter();
        rules
            .filter(move |(_, outcome)| which(outcome))
            .map(|(rule, _)| *rule)
    }

    /// Ends the test when the backend breaks a rule.
    ///
    /// # Panics
    ///
    /// When a rule failed, with the whole report.
    pub fn assert(&self) {
        assert!(self.failed().next().is_none(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rule, outcome) in &self.rules {
            match outcome {
                Outcome::Passed => writeln!(f, "passed   {rule}")?,
                Outcome::Skipped(what) => writeln!(f, "skipped  {rule}: the source cannot {what}")?,
                Outcome::Failed(why) => writeln!(f, "FAILED   {rule}: {why}")?,
            }
        }
        Ok(())
    }
}
