//! Parts of a cluster by what its endpoints say of themselves: a pure function.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{endpoint::Endpoint, member::Member};

/// A request extension: the attributes that the endpoint of a request must have.
///
/// It counts in a cluster that was told to [divide](super::Cluster::set_subsets) its endpoints by
/// the same keys, and goes before the subset of a
/// [`BalanceLayer`](https://docs.rs/tower-gateway/latest/tower_gateway/balance/struct.BalanceLayer.html).
/// No header sets it: a client cannot choose unless the application lets it. Clones are cheap.
///
/// # Examples
///
/// ```
/// use tower_gateway::cluster::Subset;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Subset::new([("version", "v2")]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subset {
    /// By key.
    pairs: Arc<[(Arc<str>, Arc<str>)]>,
}

impl Subset {
    /// The endpoints with these attributes. Of pairs with the same key, the last one counts.
    #[must_use]
    pub fn new<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<Arc<str>>,
        V: Into<Arc<str>>,
    {
        let pairs = pairs.into_iter();
        let pairs = pairs.map(|(key, value)| (key.into(), value.into()));
        let pairs: BTreeMap<Arc<str>, Arc<str>> = pairs.collect();
        Self {
            pairs: pairs.into_iter().collect(),
        }
    }

    /// The keys and their values, sorted.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether an endpoint has these attributes.
    #[must_use]
    pub fn holds(&self, endpoint: &Endpoint) -> bool {
        let has = |(key, value): &(Arc<str>, Arc<str>)| endpoint.metadata.get(key) == Some(value);
        self.pairs.iter().all(has)
    }
}

/// `stage=prod, version=v2`
impl fmt::Display for Subset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (key, value)) in self.pairs().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// Where a request goes whose subset has no usable endpoint, or does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubsetFallback {
    /// To any endpoint.
    #[default]
    Any,
    /// Nowhere: the answer is a 503.
    Refuse,
    /// To this subset; when that has no usable endpoint either, the answer is a 503.
    Default(Subset),
}

/// By which attributes a cluster is divided, so that requests can ask for a [`Subset`] of it.
///
/// Endpoints that have all keys of a selector are divided by their values. Each combination has a
/// picker of its own, over its own priorities, zones and [aperture](super::Aperture), made ahead of
/// the requests. There are at most [256](Self::MAX_COMBINATIONS) of them: of more, the first ones by
/// keys and values are taken, and the others count as having no endpoint. An endpoint is in at most
/// one combination for each selector.
///
/// A subset without a usable endpoint does not exist for its requests, so that there is panic
/// within a subset only where some of its endpoints are usable.
///
/// # Defaults
///
/// - `fallback`: any endpoint
///
/// # Examples
///
/// ```
/// use tower_gateway::{
///     cluster::{Cluster, SubsetFallback, Subsets},
///     pick::RoundRobin,
/// };
///
/// let users = Cluster::fixed("users", RoundRobin::new(), []);
/// let subsets = Subsets::new()
///     .by(["version"])?
///     .by(["version", "stage"])?
///     .fallback(SubsetFallback::Refuse);
/// users.set_subsets(Some(subsets));
/// # Ok::<(), tower_gateway::cluster::InvalidSelector>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subsets {
    selectors: BTreeSet<Selector>,
    fallback: SubsetFallback,
}

/// Keys, sorted.
type Selector = Box<[Arc<str>]>;

/// Keys that a cluster is not divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSelector {
    /// It has no key, or too many.
    #[error("expected 1 to {max} keys, found {0}", max = Subsets::MAX_KEYS)]
    Keys(usize),
    /// There are too many selectors.
    #[error("expected at most {max} selectors, found one more", max = Subsets::MAX_SELECTORS)]
    Selectors,
}

/// The members of each combination, and how many combinations were left out.
pub(super) struct Divided {
    pub(super) parts: BTreeMap<Subset, Vec<Arc<Member>>>,
    pub(super) left_out: usize,
}

impl Subsets {
    /// The most keys of a selector.
    pub const MAX_KEYS: usize = 8;
    /// The most selectors.
    pub const MAX_SELECTORS: usize = 16;
    /// The most combinations of values that have pickers.
    pub const MAX_COMBINATIONS: usize = 256;

    /// No subsets yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Divides by these keys, too.
    ///
    /// # Errors
    ///
    /// When there is no key, or there are more than [8](Self::MAX_KEYS), or it would be the 17th
    /// selector.
    pub fn by<K: Into<Arc<str>>>(
        mut self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Self, InvalidSelector> {
        let keys: BTreeSet<Arc<str>> = keys.into_iter().map(Into::into).collect();
        if keys.is_empty() || keys.len() > Self::MAX_KEYS {
            return Err(InvalidSelector::Keys(keys.len()));
        }
        self.selectors.insert(keys.into_iter().collect());
        if self.selectors.len() > Self::MAX_SELECTORS {
            return Err(InvalidSelector::Selectors);
        }
        Ok(self)
    }

    /// Sets where a request goes whose subset has no usable endpoint.
    #[must_use]
    pub fn fallback(mut self, fallback: SubsetFallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Whether a selector has just the keys of this subset.
    #[must_use]
    pub fn knows(&self, subset: &Subset) -> bool {
        let keys = || subset.pairs.iter().map(|(key, _)| key);
        self.selectors
            .iter()
            .any(|selector| selector.iter().eq(keys()))
    }

    /// The keys of each selector, sorted.
    pub fn selectors(&self) -> impl Iterator<Item = &[Arc<str>]> {
        self.selectors.iter().map(|selector| &**selector)
    }

    pub(super) fn default_subset(&self) -> Option<&Subset> {
        match &self.fallback {
            SubsetFallback::Default(subset) => Some(subset),
            SubsetFallback::Any | SubsetFallback::Refuse => None,
        }
    }

    pub(super) fn refuses(&self) -> bool {
        !matches!(self.fallback, SubsetFallback::Any)
    }

    /// Puts members together by their values. The default subset is never left out.
    pub(super) fn divide(&self, members: &[Arc<Member>]) -> Divided {
        let mut parts: BTreeMap<Subset, Vec<Arc<Member>>> = BTreeMap::new();
        for selector in &self.selectors {
            for member in members {
                if let Some(subset) = combination(selector, member.endpoint()) {
                    parts.entry(subset).or_default().push(Arc::clone(member));
                }
            }
        }
        let found = parts.len();
        while parts.len() > Self::MAX_COMBINATIONS {
            parts.pop_last();
        }
        let left_out = found - parts.len();
        if let Some(subset) = self.default_subset() {
            let held = || {
                members
                    .iter()
                    .filter(|member| subset.holds(member.endpoint()))
            };
            let part = parts.entry(subset.clone());
            part.or_insert_with(|| held().cloned().collect());
        }
        Divided { parts, left_out }
    }
}

/// The values of an endpoint for these keys, when it has all of them.
fn combination(selector: &Selector, endpoint: &Endpoint) -> Option<Subset> {
    let value = |key: &Arc<str>| Some((Arc::clone(key), Arc::clone(endpoint.metadata.get(key)?)));
    let pairs: Option<Arc<[_]>> = selector.iter().map(value).collect();
    pairs.map(|pairs| Subset { pairs })
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(id: usize, attributes: &[(&str, &str)]) -> Arc<Member> {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        let mut endpoint = endpoint.id(id.to_string());
        for (key, value) in attributes {
            endpoint = endpoint.metadata(*key, *value);
        }
        Arc::new(Member::new(
            Arc::new(endpoint),
            Arc::default(),
            crate::time::now(),
        ))
    }

    fn ids(members: &[Arc<Member>]) -> Vec<&str> {
        members
            .iter()
            .map(|member| member.endpoint().id.as_str())
            .collect()
    }

    #[test]
    fn members_are_divided_by_the_values_of_each_selector() {
        let members = [
            member(0, &[("version", "v1"), ("stage", "prod")]),
            member(1, &[("version", "v2"), ("stage", "prod")]),
            member(2, &[("version", "v2"), ("stage", "canary"), ("rack", "7")]),
            member(3, &[("stage", "prod")]),
        ];
        let subsets = Subsets::new().by(["version"]).unwrap();
        let subsets = subsets.by(["version", "stage"]).unwrap();
        let divided = subsets.divide(&members);
        let parts: Vec<_> = divided
            .parts
            .iter()
            .map(|(s, m)| (s.to_string(), ids(m)))
            .collect();
        assert_eq!(
            parts,
            [
                ("stage=canary, version=v2".to_owned(), vec!["2"]),
                ("stage=prod, version=v1".to_owned(), vec!["0"]),
                ("stage=prod, version=v2".to_owned(), vec!["1"]),
                ("version=v1".to_owned(), vec!["0"]),
                ("version=v2".to_owned(), vec!["1", "2"]),
            ]
        );
        assert_eq!(divided.left_out, 0);
    }

    #[test]
    fn the_order_of_the_pairs_does_not_count() {
        let one = Subset::new([("stage", "prod"), ("version", "v2")]);
        let other = Subset::new([("version", "v1"), ("version", "v2"), ("stage", "prod")]);
        assert_eq!(one, other);
        let subsets = Subsets::new().by(["version", "stage"]).unwrap();
        assert!(subsets.knows(&one));
        assert!(!subsets.knows(&Subset::new([("version", "v2")])));
    }

    #[test]
    fn what_is_beyond_the_bounds_is_refused() {
        let keys = |count: usize| (0..count).map(|key| key.to_string());
        assert_eq!(Subsets::new().by(keys(0)), Err(InvalidSelector::Keys(0)));
        let error = Subsets::new().by(keys(9)).unwrap_err();
        assert_eq!(error.to_string(), "expected 1 to 8 keys, found 9");
        let full = keys(16)
            .try_fold(Subsets::new(), |subsets, key| subsets.by([key]))
            .unwrap();
        assert!(full.clone().by(["3"]).is_ok());
        assert_eq!(full.by(["another"]), Err(InvalidSelector::Selectors));
    }

    #[test]
    fn more_combinations_than_the_bound_are_left_out_in_order() {
        let members: Vec<_> = (0..300)
            .map(|id| member(id, &[("user", &format!("{id:03}"))]))
            .collect();
        let last = Subset::new([("user", "299")]);
        let subsets = Subsets::new().by(["user"]).unwrap();
        let divided = subsets.divide(&members);
        assert_eq!((divided.parts.len(), divided.left_out), (256, 44));
        assert!(divided.parts.contains_key(&Subset::new([("user", "255")])));
        assert!(!divided.parts.contains_key(&last));
        let subsets = subsets.fallback(SubsetFallback::Default(last.clone()));
        assert_eq!(subsets.divide(&members).parts[&last].len(), 1);
    }

    #[test]
    fn a_default_needs_no_selector_and_may_be_empty() {
        let members = [member(0, &[("tier", "spare")]), member(1, &[])];
        let spare = Subset::new([("tier", "spare")]);
        let subsets = Subsets::new().fallback(SubsetFallback::Default(spare.clone()));
        assert_eq!(ids(&subsets.divide(&members).parts[&spare]), ["0"]);
        assert!(subsets.divide(&[]).parts[&spare].is_empty());
    }

    proptest! {
        #[test]
        fn a_part_has_the_members_that_its_subset_holds(
            values in proptest::collection::vec((0_u8..3, 0_u8..3, any::<bool>()), 0..20),
        ) {
            let members: Vec<_> = values.iter().enumerate().map(|(id, (a, b, has_both))| {
                let (a, b) = (a.to_string(), b.to_string());
                let pairs = [("a", &*a), ("b", &*b)];
                member(id, if *has_both { &pairs } else { &pairs[..1] })
            }).collect();
            let subsets = Subsets::new().by(["b", "a"]).unwrap().by(["a"]).unwrap().by(["c"]).unwrap();
            let divided = subsets.divide(&members);
            for (subset, part) in &divided.parts {
                let held: Vec<_> = members.iter().filter(|m| subset.holds(m.endpoint())).cloned().collect();
                prop_assert_eq!(ids(part), ids(&held));
                prop_assert!(!part.is_empty() && subsets.knows(subset));
            }
            let of_selectors: usize = divided.parts.values().map(Vec::len).sum();
            let both = values.iter().filter(|(_, _, has_both)| *has_both).count();
            prop_assert_eq!(of_selectors, members.len() + both);
        }
    }
}
