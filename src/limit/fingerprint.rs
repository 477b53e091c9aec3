//! Keys of any length as 128 bits.

use std::{fmt, hash::Hasher as _};

use siphasher::{
    sip::SipHasher24,
    sip128::{Hasher128 as _, SipHasher13},
};

use super::quota::Rule;

/// A limit and a key of it, as 128 bits: a key that a client makes as long as it can costs no more
/// memory than another, and what is kept, here or in a store, does not tell the key.
///
/// It is SipHash-1-3 with fixed keys, so that all nodes of a cluster agree, and a client that knows
/// the function still finds no two keys of one fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u128);

impl Fingerprint {
    pub(super) const ZERO: Self = Self(0);

    /// The number.
    #[must_use]
    pub fn get(self) -> u128 {
        self.0
    }

    /// What tells two of them apart and does not tell what they are, without the secret.
    pub(super) fn hidden(self, secret: Secret) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&secret.0);
        hasher.write(&self.0.to_le_bytes());
        hasher.finish()
    }
}

/// By which fingerprints are hidden. Nothing shows it.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub(super) [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<u128> for Fingerprint {
    fn from(number: u128) -> Self {
        Self(number)
    }
}

/// In hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

const KEYS: [u64; 2] = [0x746f_7765_722d_6761, 0x7465_7761_792d_726c];

/// A fingerprint in the making. Parts are framed: `ab`, `c` and `a`, `bc` are two keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Print(SipHasher13);

impl Print {
    /// The beginning that all keys of a limit have.
    pub(super) fn of_limit(name: &str) -> Self {
        let [one, other] = KEYS;
        let mut print = Self(SipHasher13::new_with_keys(one, other));
        print.part(name.as_bytes());
        print
    }

    pub(super) fn part(&mut self, part: &[u8]) {
        // Numbers count as their bytes in memory, and are cheaper than slices.
        self.0.write_u64((part.len() as u64).to_le());
        match part.try_into() {
            Ok(address) => self.0.write_u32(u32::from_ne_bytes(address)),
            Err(_) => self.0.write(part),
        }
    }

    /// The fingerprint under a rule: what one algorithm keeps means nothing to another.
    pub(super) fn finish(mut self, rule: Rule) -> Fingerprint {
        let rule = match rule {
            Rule::Gcra => 0,
            Rule::SlidingWindow => 1,
            Rule::FixedWindow => 2,
            Rule::Concurrency => 3,
            Rule::CalendarWindow(calendar) => calendar.tag(),
        };
        self.0.write_u8(rule);
        Fingerprint(self.0.finish128().as_u128())
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::limit::calendar::Calendar;
    use std::collections::HashSet;

    #[test]
    fn parts_are_bytes_behind_their_number_in_eight_bytes() {
        for part in [&b""[..], b"123", b"1234", b"12345678"] {
            let mut print = Print::of_limit("a");
            print.part(part);
            let mut hasher = SipHasher13::new_with_keys(KEYS[0], KEYS[1]);
            for part in [&b"a"[..], part] {
                hasher.write(&(part.len() as u64).to_le_bytes());
                hasher.write(part);
            }
            hasher.write(&[0]);
            let expected = hasher.finish128().as_u128();
            assert_eq!(print.finish(Rule::Gcra).get(), expected);
        }
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        let print = |limit: &str, parts: &[&str], rule| {
            let mut print = Print::of_limit(limit);
            for part in parts {
                print.part(part.as_bytes());
            }
            print.finish(rule)
        };
        let prints = HashSet::from([
            print("a", &[], Rule::Gcra),
            print("a", &[""], Rule::Gcra),
            print("a", &["bc"], Rule::Gcra),
            print("a", &["bc"], Rule::FixedWindow),
            print("a", &["bc"], Rule::CalendarWindow(Calendar::day())),
            print("a", &["bc"], Rule::CalendarWindow(Calendar::month())),
            print("ab", &["c"], Rule::Gcra),
            print("a", &["b", "c"], Rule::Gcra),
            print("a", &["", "bc"], Rule::Gcra),
            print("a", &["bc", ""], Rule::Gcra),
        ]);
        assert_eq!(prints.len(), 10);
    }

    #[test]
    fn who_does_not_know_the_secret_learns_nothing() {
        let (one, other) = (Fingerprint::from(1), Fingerprint::from(2));
        let (secret, another) = (Secret([7; 16]), Secret([8; 16]));
        assert_eq!(one.hidden(secret), one.hidden(secret));
        assert_ne!(one.hidden(secret), other.hidden(secret));
        assert_ne!(one.hidden(secret), one.hidden(another));
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    /// Nodes of different versions count together.
    #[test]
    fn a_fingerprint_is_the_same_everywhere() {
        let mut print = Print::of_limit("per-client");
        print.part(b"10.0.0.1");
        let expected = "9b5a4dc99df2be98d91843cfc09d0d9d";
        assert_eq!(print.finish(Rule::Gcra).to_string(), expected);
    }
}
