//! How the key of a request becomes a number.

use twox_hash::XxHash64;

/// How the key of a request becomes the hash of a [`Pick`](super::Pick). A policy says which one
/// it [wants](super::Policy::hasher).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyHasher {
    /// XXH64 with seed 0, as Envoy and gRPC have it.
    #[default]
    Xxh64,
    /// CRC-32 of IEEE 802.3, in the low 32 bits: as nginx has it for `hash … consistent`.
    Crc32,
}

impl KeyHasher {
    /// The hash of a key.
    #[must_use]
    pub fn hash(self, key: &[u8]) -> u64 {
        match self {
            Self::Xxh64 => XxHash64::oneshot(0, key),
            Self::Crc32 => u64::from(crc32fast::hash(key)),
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hashed_as_published() {
        // xxHash's own vectors for seed 0, and the check value of CRC-32.
        assert_eq!(KeyHasher::Xxh64.hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(KeyHasher::Xxh64.hash(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(KeyHasher::Xxh64.hash(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(KeyHasher::Crc32.hash(b"123456789"), 0xcbf4_3926);
    }
}
