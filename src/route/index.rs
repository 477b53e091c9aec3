//! Which routes of many are worth a look.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::{host::HostPattern, matching::Match};

/// Routes by the host and the path prefix that they ask for. Two of the same hash share a list: who
/// asks looks at the conditions all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    lists: HashMap<u64, Vec<u32>, BuildHasherDefault<Hashed>>,
    has_hosts: bool,
}

impl Index {
    /// Of these routes in their order.
    pub(super) fn new<'m>(routes: impl Iterator<Item = &'m Match>) -> Self {
        let mut index = Self::default();
        for (number, condition) in routes.enumerate() {
            let host = condition.exact_host().map_or(Hash::NEW, Hash::of_host);
            index.has_hosts |= condition.exact_host().is_some();
            let prefix = condition.telling_prefix().unwrap_or_default();
            let list = index.lists.entry(host.with_path(prefix)).or_default();
            list.push(number as u32);
        }
        index
    }

    /// The first of the routes for this host, without its port, and path that `takes` the request.
    pub(super) fn first(
        &self,
        host: &str,
        path: &str,
        takes: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut first = usize::MAX;
        let mut look = |key: u64| {
            let numbers = self.lists.get(&key).into_iter().flatten();
            let numbers = numbers.map(|number| *number as usize);
            let mut earlier = numbers.take_while(|number| *number < first);
            if let Some(number) = earlier.find(|number| takes(*number)) {
                first = number;
            }
        };
        Hash::NEW.each_prefix(path, &mut look);
        if self.has_hosts {
            Hash::of_host(host).each_prefix(path, &mut look);
        }
        (first < usize::MAX).then_some(first)
    }
}

impl Match {
    /// The one host that is asked for.
    fn exact_host(&self) -> Option<&str> {
        let host = self.host_pattern().map(HostPattern::as_str);
        host.filter(|host| !host.starts_with('*'))
    }

    /// The prefix, unless every path has it.
    fn telling_prefix(&self) -> Option<&str> {
        self.prefix().filter(|prefix| *prefix != "/")
    }
}

/// A hash in the making (FNV-1a): that of a path has those of its prefixes on its way.
#[derive(Clone, Copy, Debug)]
struct Hash(u64);

impl Hash {
    const NEW: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// Of a host in whatever case; ended by what stands in none.
    fn of_host(host: &str) -> Self {
        let mut hash = Self::NEW;
        host.bytes()
            .for_each(|byte| hash.add(byte.to_ascii_lowercase()));
        hash.add(0);
        hash
    }

    fn with_path(mut self, path: &str) -> u64 {
        path.bytes().for_each(|byte| self.add(byte));
        self.finish()
    }

    /// The tables of std look at the first and the last bits, of which FNV mixes the first little.
    fn finish(self) -> u64 {
        self.0 ^ self.0.rotate_left(32)
    }

    /// What a prefix of this path may be: nothing, what ends before or with a slash, or all of it.
    fn each_prefix(mut self, path: &str, mut look: impl FnMut(u64)) {
        look(self.finish());
        for (at, byte) in path.bytes().enumerate() {
            if byte == b'/' && at > 0 {
                look(self.finish());
                self.add(byte);
                look(self.finish());
            } else {
                self.add(byte);
            }
        }
        if !path.ends_with('/') && !path.is_empty() {
            look(self.finish());
        }
    }
}

/// Takes what is a hash already.
#[derive(Clone, Copy, Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
