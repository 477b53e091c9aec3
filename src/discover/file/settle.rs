//! When a file that changes holds still. PURE.

use std::time::SystemTime;

/// What tells two states of a file apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) modified: Option<SystemTime>,
    pub(super) length: u64,
    /// Which file it is, where the system tells.
    pub(super) file: Option<(u64, u64)>,
    /// When its owner, mode or place changed, where the system tells.
    pub(super) changed: Option<(i64, i64)>,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    File(Mark),
    /// No file, and why.
    Nothing(String),
}

/// Decides from looks at regular intervals when a file is to be read.
#[derive(Debug, Default)]
pub(super) struct Settle {
    taken: Option<Seen>,
    /// What is there now, and how many looks in a row found it.
    candidate: Option<(Seen, u32)>,
}

/// A file that was renamed into place was finished before; it must hold still for one look.
const RENAMED: u32 = 1;

/// A file that is written in place may be written slowly.
const IN_PLACE: u32 = 3;

impl Settle {
    /// Whether nothing was looked at yet.
    pub(super) fn is_new(&self) -> bool {
        self.taken.is_none() && self.candidate.is_none()
    }

    /// Takes what a look found, and whether that is a file at rest: not written to for longer than
    /// any pause of a writer. Says whether it is to be read, or reported, now.
    pub(super) fn look(&mut self, seen: Seen, at_rest: bool) -> bool {
        if self.taken.as_ref() == Some(&seen) {
            self.candidate = None;
            return false;
        }
        let still = match &self.candidate {
            Some((before, still)) if *before == seen => still + 1,
            _ => 0,
        };
        let enough = match (&self.taken, &seen) {
            // The start of a process does not wait for a file that is no longer written.
            (None, Seen::File(_)) if at_rest => 0,
            (None, Seen::Nothing(_)) => 0,
            (Some(Seen::File(old)), Seen::File(new)) if old.file != new.file => RENAMED,
            (_, Seen::File(_)) => IN_PLACE,
            (Some(_), Seen::Nothing(_)) => RENAMED,
        };
        if still < enough {
            self.candidate = Some((seen, still));
            return false;
        }
        self.taken = Some(seen);
        self.candidate = None;
        true
    }

    /// What was to be read could not be: it is looked at as if it were new.
    pub(super) fn forget(&mut self) {
        self.candidate = self.taken.take().map(|taken| (taken, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64, length: u64) -> Seen {
        Seen::File(Mark {
            modified: None,
            length,
            file: Some((1, inode)),
            changed: None,
        })
    }

    fn nothing() -> Seen {
        Seen::Nothing("no such file".to_owned())
    }

    /// After how many looks each of them is read.
    fn looks(settle: &mut Settle, seen: &[Seen]) -> Vec<bool> {
        seen.iter()
            .map(|seen| settle.look(seen.clone(), false))
            .collect()
    }

    #[test]
    fn a_file_at_rest_is_read_at_once_and_one_that_is_being_written_is_not() {
        assert!(Settle::default().look(file(1, 7), true));
        let read = looks(
            &mut Settle::default(),
            &[file(1, 7), file(1, 7), file(1, 7), file(1, 7)],
        );
        assert_eq!(read, [false, false, false, true]);
    }

    #[test]
    fn a_file_that_is_written_is_read_when_it_holds_still() {
        let mut settle = Settle::default();
        settle.look(file(1, 7), true);
        let written = [0, 3, 9, 9, 9, 9, 9].map(|length| file(1, length));
        let read = looks(&mut settle, &written);
        assert_eq!(read, [false, false, false, false, false, true, false]);
    }

    #[test]
    fn a_renamed_file_is_read_after_one_look_more() {
        let mut settle = Settle::default();
        settle.look(file(1, 7), true);
        assert_eq!(looks(&mut settle, &[file(2, 7), file(2, 7)]), [false, true]);
    }

    #[test]
    fn a_file_that_is_missing_for_a_moment_is_not_missing() {
        let mut settle = Settle::default();
        settle.look(file(1, 7), true);
        assert_eq!(
            looks(&mut settle, &[nothing(), file(1, 7), nothing()]),
            [false; 3]
        );
        assert_eq!(looks(&mut settle, &[nothing(), nothing()]), [true, false]);
    }

    #[test]
    fn what_could_not_be_read_is_tried_again() {
        let mut settle = Settle::default();
        assert!(settle.look(file(1, 7), true));
        settle.forget();
        assert!(settle.look(file(1, 7), true));
    }
}
