//! Which keys had bodies that are got beside the script, so that the next time both are asked for
//! at once.

use crate::{
    cache::key::Key,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Keys are told apart by so many bits of a hash. Those that share one only cost a command more.
const BITS: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Large {
    bits: Box<[AtomicU64]>,
}

impl Large {
    pub(super) fn new() -> Self {
        Self {
            bits: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) fn note(&self, key: &Key) {
        let (word, bit) = place(key);
        self.bits[word].fetch_or(bit, Relaxed);
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        let (word, bit) = place(key);
        self.bits[word].load(Relaxed) & bit != 0
    }
}

fn place(key: &Key) -> (usize, u64) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.primary().as_bytes());
    hasher.update(key.variant_name().as_bytes());
    let bit = hasher.finalize() as usize % BITS;
    (bit / 64, 1 << (bit % 64))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known() {
        let large = Large::new();
        let keys: Vec<Key> = (0..100).map(|n| Key::new(&n.to_string())).collect();
        for key in &keys[..50] {
            large.note(key);
        }
        assert!(keys[..50].iter().all(|key| large.has(key)));
        assert!(keys[50..].iter().any(|key| !large.has(key)));
    }
}
