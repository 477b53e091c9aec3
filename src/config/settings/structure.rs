//! Which part of a cluster takes a request: zones, subsets, and some of a large set.

use std::{collections::BTreeMap, num::NonZeroUsize};

use super::Reader;
use crate::{
    cluster::{Subset, SubsetFallback, Subsets},
    yaml::{Data, Mistakes, Value, boolean, number, one_of, text},
};

/// More nodes than this are no gateway.
const MOST_NODES: u32 = 1_000_000;

/// More endpoints than this are no cluster.
const MOST_ENDPOINTS: usize = 1_000_000;

/// How requests prefer the zone of the node.
///
/// # Defaults
///
/// - `min_endpoints`: 6
/// - `nodes`: not known
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZoneSettings {
    /// How many endpoints a priority has at least for zones to count.
    pub min_endpoints: usize,
    /// How many nodes there are in each zone.
    pub nodes: ZoneNodes,
}

/// How many nodes there are in each zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZoneNodes {
    /// Nobody knows.
    #[default]
    Unknown,
    /// So many.
    Counted(BTreeMap<String, u32>),
    /// As many as are registered: `nodes: registered`.
    Registered,
}

/// How many of the endpoints of a large set this node talks to, and which.
///
/// # Defaults
///
/// - `by`: the name of the node
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubsetSettings {
    /// How many at least.
    pub size: NonZeroUsize,
    /// What chooses them.
    pub by: SubsetBy,
}

/// What chooses the endpoints that a node talks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubsetBy {
    /// The name of the node.
    #[default]
    Name,
    /// The place of the node among all that are registered.
    Position,
}

impl Reader<'_> {
    /// `true`, `false` or how.
    pub(super) fn zone_aware(self, value: &Value<'_>) -> Result<Option<ZoneSettings>, Mistakes> {
        let zones = if matches!(value.data(), Data::Mapping(_)) {
            Some(self.zones(value)?)
        } else {
            boolean(value)?.then_some(ZoneSettings {
                min_endpoints: 6,
                nodes: ZoneNodes::Unknown,
            })
        };
        if zones.is_some() && !self.has_zone {
            return Err(value.wrong("expected zone in node, found none"));
        }
        Ok(zones)
    }

    fn zones(self, value: &Value<'_>) -> Result<ZoneSettings, Mistakes> {
        let mut fields = value.fields()?;
        let min_endpoints = fields.optional("min_endpoints", number(1..=MOST_ENDPOINTS));
        let nodes = fields.optional("nodes", |nodes| {
            if matches!(nodes.scalar(), Some(("registered", _))) {
                self.is_registered(nodes)?;
                return Ok(ZoneNodes::Registered);
            }
            let counts =
                nodes.map(|zone, count| Ok((zone.to_owned(), number(0..=MOST_NODES)(count)?)));
            counts.map(|counts| ZoneNodes::Counted(counts.into_iter().collect()))
        });
        fields.finish(Some(ZoneSettings {
            min_endpoints: min_endpoints.unwrap_or(6),
            nodes: nodes.unwrap_or_default(),
        }))
    }

    /// How many endpoints of a large set this node talks to: a number, or how many and which.
    pub(super) fn subset_size(self, value: &Value<'_>) -> Result<SubsetSettings, Mistakes> {
        if !matches!(value.data(), Data::Mapping(_)) {
            return Ok(SubsetSettings {
                size: size(value)?,
                by: SubsetBy::Name,
            });
        }
        let mut fields = value.fields()?;
        let size = fields.required("size", size);
        let known = one_of(&[("name", SubsetBy::Name), ("position", SubsetBy::Position)]);
        let by = fields.optional("by", |value| {
            let by = known(value)?;
            if by == SubsetBy::Position {
                self.is_registered(value)?;
            }
            Ok(by)
        });
        fields.finish(size.map(|size| SubsetSettings {
            size,
            by: by.unwrap_or_default(),
        }))
    }

    /// Whether the node is one of several that know of each other.
    fn is_registered(self, value: &Value<'_>) -> Result<(), Mistakes> {
        match self.has_register {
            true => Ok(()),
            false => Err(value.wrong("expected register in node, found none")),
        }
    }
}

fn size(value: &Value<'_>) -> Result<NonZeroUsize, Mistakes> {
    let size = number(1..=MOST_ENDPOINTS)(value)?;
    NonZeroUsize::new(size).ok_or_else(|| value.expected("a number of at least 1"))
}

pub(super) fn subsets(value: &Value<'_>) -> Result<Subsets, Mistakes> {
    let mut fields = value.fields()?;
    let by = fields.required("by", |by| {
        let selectors = by.list(|item| Ok((keys(item)?, item.clone())))?;
        let mut subsets = Subsets::new();
        for (keys, item) in selectors {
            let divided = subsets.by(keys);
            subsets = divided.map_err(|invalid| item.wrong(invalid.to_string()))?;
        }
        if subsets.selectors().next().is_none() {
            return Err(by.wrong("expected at least one key, found an empty list"));
        }
        Ok(subsets)
    });
    let fallback = fields.optional("fallback", fallback).unwrap_or_default();
    fields.finish(by.map(|subsets| subsets.fallback(fallback)))
}

/// One key, or several that count together.
fn keys(value: &Value<'_>) -> Result<Vec<String>, Mistakes> {
    if matches!(value.data(), Data::Sequence(_)) {
        value.list(text)
    } else {
        Ok(vec![text(value)?])
    }
}

fn fallback(value: &Value<'_>) -> Result<SubsetFallback, Mistakes> {
    if matches!(value.data(), Data::Mapping(_)) {
        return Ok(SubsetFallback::Default(subset(value)?));
    }
    match value.scalar() {
        Some(("any", _)) => Ok(SubsetFallback::Any),
        Some(("none", _)) => Ok(SubsetFallback::Refuse),
        _ => Err(value.expected("any, none or a subset, such as { version: v1 }")),
    }
}

/// Keys and values of metadata.
fn subset(value: &Value<'_>) -> Result<Subset, Mistakes> {
    let pairs = value.map(|key, value| Ok((key.to_owned(), text(value)?)))?;
    if pairs.is_empty() {
        return Err(value.wrong("expected at least one key, found an empty mapping"));
    }
    Ok(Subset::new(pairs))
}

/// The subset of a route to the cluster of this name, which is divided in these ways.
pub(super) fn subset_of(
    value: &Value<'_>,
    cluster: &str,
    subsets: Option<&Subsets>,
) -> Result<Subset, Mistakes> {
    let subset = subset(value)?;
    let Some(subsets) = subsets else {
        let what = format!("expected subsets in cluster {cluster}, found none");
        return Err(value.wrong(what));
    };
    if subsets.knows(&subset) {
        return Ok(subset);
    }
    let known: Vec<_> = subsets.selectors().map(|keys| keys.join(" and ")).collect();
    let found: Vec<_> = subset.pairs().map(|(key, _)| key).collect();
    let what = format!(
        "expected the keys of a subset of cluster {cluster}: {}; found {}",
        known.join(", or "),
        found.join(" and ")
    );
    Err(value.wrong(what))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Settings;

    /// The mistakes of a file with these keys of the node, of the cluster, on line 3, and of its
    /// route, on line 5.
    fn mistakes(node: &str, cluster: &str, route: &str) -> Vec<String> {
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\"{node} }}\nclusters:\n  web: {{ discovery: {{ type: file, path: a }}{cluster} }}\nroutes:\n  - {{ match: {{}}, {route} }}\n"
        );
        match Settings::parse(&text, Path::new("g.yaml"), &[]) {
            Ok(_) => Vec::new(),
            Err(error) => error.to_string().lines().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn a_zone_aware_cluster_needs_the_zone_of_the_node() {
        for (node, zone_aware, expected) in [
            (", zone: a", "true", ""),
            ("", "false", ""),
            (", zone: a", "{ min_endpoints: 2 }", ""),
            ("", "true", "zone_aware: expected zone in node, found none"),
            ("", "{}", "zone_aware: expected zone in node, found none"),
            (
                ", zone: a",
                "yes",
                "zone_aware: expected true or false, found \"yes\"",
            ),
            (
                ", zone: a",
                "{ nodes: { a: many } }",
                "zone_aware.nodes.a: expected a number from 0 to 1000000, found \"many\"",
            ),
        ] {
            let found = mistakes(node, &format!(", zone_aware: {zone_aware}"), "cluster: web");
            let expected = match expected {
                "" => vec![],
                mistake => vec![format!("g.yaml:3: clusters.web.{mistake}")],
            };
            assert_eq!(found, expected, "{node} {zone_aware}");
        }
        // Nobody knows whether a wrong node has a zone.
        let found = mistakes(", zone: [], drain: 1", ", zone_aware: true", "cluster: web");
        assert!(
            found
                .iter()
                .all(|mistake| mistake.starts_with("g.yaml:1: node.")),
            "{found:?}"
        );
    }

    #[test]
    fn subsets_are_checked() {
        for (subsets, expected) in [
            ("{ by: [ version ], fallback: none }", ""),
            ("{}", "subsets.by: expected a list, found nothing"),
            (
                "{ by: [] }",
                "subsets.by: expected at least one key, found an empty list",
            ),
            (
                "{ by: [ [] ] }",
                "subsets.by[0]: expected 1 to 8 keys, found 0",
            ),
            (
                "{ by: [ a ], fallback: some }",
                "subsets.fallback: expected any, none or a subset, such as { version: v1 }, found \"some\"",
            ),
            (
                "{ by: [ a ], fallback: {} }",
                "subsets.fallback: expected at least one key, found an empty mapping",
            ),
            (
                "{ by: [ a ], fallback: { a: [] } }",
                "subsets.fallback.a: expected a text, found a list",
            ),
        ] {
            let found = mistakes("", &format!(", subsets: {subsets}"), "cluster: web");
            let expected = match expected {
                "" => vec![],
                mistake => vec![format!("g.yaml:3: clusters.web.{mistake}")],
            };
            assert_eq!(found, expected, "{subsets}");
        }
        let found = mistakes("", ", subset_size: 0", "cluster: web");
        let expected =
            "g.yaml:3: clusters.web.subset_size: expected a number from 1 to 1000000, found \"0\"";
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_route_names_a_subset_that_its_cluster_has() {
        const BY: &str = ", subsets: { by: [ version, [ version, stage ] ] }";
        let known =
            "expected the keys of a subset of cluster web: stage and version, or version; found";
        for (cluster, route, expected) in [
            (
                BY,
                "cluster: web, subset: { stage: a, version: v2 }",
                String::new(),
            ),
            (
                BY,
                "clusters: [ { name: web, weight: 9, subset: { version: v1 } }, { name: web, subset: { version: v2 } } ]",
                String::new(),
            ),
            (
                BY,
                "cluster: web, subset: { stage: a }",
                format!(".subset: {known} stage"),
            ),
            (
                "",
                "cluster: web, subset: { version: v2 }",
                ".subset: expected subsets in cluster web, found none".into(),
            ),
            (
                BY,
                "clusters: [ { name: web } ], subset: { version: v2 }",
                ".subset: expected subset in each item of clusters, found it beside them".into(),
            ),
            (
                BY,
                "clusters: [ { name: web, subset: { a: b } } ]",
                format!(".clusters[0].subset: {known} a"),
            ),
            (
                BY,
                "clusters: [ { name: web, subset: { version: v1 } }, { name: web, subset: { version: v1 } } ]",
                ".clusters[1].name: expected each cluster once, found \"web\" again".into(),
            ),
        ] {
            let found = mistakes("", cluster, route);
            let expected = match &*expected {
                "" => vec![],
                mistake => vec![format!("g.yaml:5: routes[0]{mistake}")],
            };
            assert_eq!(found, expected, "{route}");
        }
        // A cluster with a mistake of its own is one mistake.
        let found = mistakes("", ", subsets: {}", "cluster: web, subset: { version: v2 }");
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
