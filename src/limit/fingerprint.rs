//! Keys of any length as 128 bits.

use std::{fmt, hash::Hasher as _};

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// A limit and a key of it, as 128 bits: a key that a client makes as long as it can costs no more
/// memory than another, and what is kept, here or in a store, does not tell the key.
///
/// It is SipHash-1-3 with fixed keys, so that all nodes of a cluster agree, and a client that knows
/// the function still finds no two keys of one fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// The number.
    #[must_use]
    pub fn get(self) -> u128 {
        self.0
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

/// A fingerprint in the making. Parts are framed: `ab`, `c` and `a`, `bc` are two keys.
#[derive(Clone, Debug)]
pub(super) struct Print(SipHasher13);

impl Print {
    /// The beginning that all keys of a limit have.
    pub(super) fn of_limit(name: &str) -> Self {
        let mut print = Self(SipHasher13::new_with_keys(
            0x746f_7765_722d_6761,
            0x7465_7761_792d_726c,
        ));
        print.part(name.as_bytes());
        print
    }

    /// A part that the request has.
    pub(super) fn part(&mut self, part: &[u8]) {
        self.0.write(&(part.len() as u64 + 1).to_le_bytes());
        self.0.write(part);
    }

    /// A part that it does not have.
    pub(super) fn missing(&mut self) {
        self.0.write(&0_u64.to_le_bytes());
    }

    pub(super) fn finish(&self) -> Fingerprint {
        Fingerprint(self.0.finish128().as_u128())
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn parts_do_not_run_into_one_another() {
        let print = |limit: &str, parts: &[Option<&str>]| {
            let mut print = Print::of_limit(limit);
            for part in parts {
                match part {
                    Some(part) => print.part(part.as_bytes()),
                    None => print.missing(),
                }
            }
            print.finish()
        };
        let prints = HashSet::from([
            print("a", &[]),
            print("a", &[Some("")]),
            print("a", &[None]),
            print("a", &[Some("bc")]),
            print("ab", &[Some("c")]),
            print("a", &[Some("b"), Some("c")]),
            print("a", &[None, Some("bc")]),
            print("a", &[Some("bc"), None]),
        ]);
        assert_eq!(prints.len(), 8);
    }

    /// Nodes of different versions count together.
    #[test]
    fn a_fingerprint_is_the_same_everywhere() {
        let mut print = Print::of_limit("per-client");
        print.part(b"10.0.0.1");
        assert_eq!(print.finish().to_string(), "");
    }
}
