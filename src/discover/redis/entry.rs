//! What the records of a group say, and what became of them. PURE.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::{Listing, RawEvent, Refused, listing};
use crate::{
    endpoint::{Endpoint, EndpointId},
    yaml::{self, Value},
};

/// All that was read of a group at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// What stands until everything is lost.
    pub(super) epoch: Bytes,
    /// The instances of the set, and their records; one whose time is over has none.
    pub(super) instances: BTreeMap<String, Option<Bytes>>,
}

impl Records {
    /// The endpoints of those that live.
    pub(super) fn listing(&self) -> Listing {
        let mut endpoints = Vec::new();
        let mut refused = Vec::new();
        for (instance, record) in self.living() {
            match endpoint(record) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(reason) => refused.push(Refused::new(instance, reason)),
            }
        }
        Listing::new(endpoints).refused(refused)
    }

    /// Those that were taken off the set since `before`, thus by somebody's will.
    pub(super) fn departures(&self, before: &Self) -> Vec<RawEvent> {
        let gone = before
            .living()
            .filter(|(instance, _)| !self.instances.contains_key(*instance));
        let gone = gone.filter_map(|(_, record)| endpoint(record).ok());
        gone.map(|endpoint| RawEvent::Remove(endpoint.id)).collect()
    }

    /// What is to be told after `before` was.
    pub(super) fn events(&self, before: &Self) -> Vec<RawEvent> {
        if self == before {
            return vec![RawEvent::Alive(None)];
        }
        let mut events = self.departures(before);
        let listing = self.listing();
        let ids: Vec<&EndpointId> = listing.endpoints.iter().map(|one| &one.id).collect();
        // An instance that moved took its id along.
        events.retain(|event| !matches!(event, RawEvent::Remove(id) if ids.contains(&id)));
        if self.instances.is_empty() {
            // Each went by itself, and none is left: that is not the same as an empty list.
            return events;
        }
        events.push(RawEvent::Reset(listing));
        events
    }

    fn living(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let instances = self.instances.iter();
        instances.filter_map(|(instance, record)| Some((instance.as_str(), record.as_ref()?)))
    }
}

fn endpoint(record: &[u8]) -> Result<Endpoint, String> {
    let text = std::str::from_utf8(record).map_err(|_| "expected UTF-8".to_owned())?;
    let tree = yaml::parse(text);
    let endpoint = tree.and_then(|tree| listing::endpoint(&Value::root(&tree)));
    endpoint.map_err(|mistakes| mistakes.to_string().replace('\n', "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(instances: &[(&str, Option<&'static str>)]) -> Records {
        let instances = instances.iter();
        Records {
            epoch: "e".into(),
            instances: instances
                .map(|(name, record)| (name.to_string(), record.map(Bytes::from)))
                .collect(),
        }
    }

    const A: &str = r#"{"address":"a:1","id":"one"}"#;
    const B: &str = r#"{"address":"b:2"}"#;

    fn ids(listing: &Listing) -> Vec<&str> {
        let endpoints = listing.endpoints.iter();
        endpoints.map(|endpoint| endpoint.id.as_str()).collect()
    }

    #[test]
    fn those_that_live_are_listed() {
        let records = records(&[
            ("a:1", Some(A)),
            ("b:2", Some(B)),
            ("c:3", None),
            ("d:4", Some("?")),
        ]);
        let listing = records.listing();
        assert_eq!(ids(&listing), ["one", "b:2"]);
        assert_eq!(&*listing.refused[0].entry, "d:4");
        assert_eq!(listing.refused.len(), 1);
    }

    #[test]
    fn who_leaves_the_set_goes_by_itself_and_who_falls_silent_is_missing() {
        let before = records(&[("a:1", Some(A)), ("b:2", Some(B))]);
        assert_eq!(before.events(&before), [RawEvent::Alive(None)]);
        let left = records(&[("b:2", Some(B))]).events(&before);
        assert_eq!(left[0], RawEvent::Remove("one".into()));
        assert!(matches!(&left[1], RawEvent::Reset(list) if ids(list) == ["b:2"]));
        let silent = records(&[("a:1", None), ("b:2", Some(B))]).events(&before);
        assert!(matches!(&silent[..], [RawEvent::Reset(list)] if ids(list) == ["b:2"]));
        let last = records(&[]).events(&records(&[("b:2", Some(B))]));
        assert_eq!(last, [RawEvent::Remove("b:2".into())]);
        let all_silent = records(&[("b:2", None)]).events(&records(&[("b:2", Some(B))]));
        assert!(matches!(&all_silent[..], [RawEvent::Reset(list)] if list.endpoints.is_empty()));
    }

    #[test]
    fn an_instance_that_moves_does_not_go() {
        let moved = records(&[("c:3", Some(A))]).events(&records(&[("a:1", Some(A))]));
        assert!(matches!(&moved[..], [RawEvent::Reset(list)] if ids(list) == ["one"]));
    }
}
