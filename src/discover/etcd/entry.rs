//! What a key says. PURE.

use std::collections::HashMap;

use super::super::{RawEvent, Refused, listing};
use crate::{
    endpoint::{Endpoint, EndpointId},
    etcd::{Change, KeyValue},
    yaml::{self, Value},
};

/// What the keys of a service begin with.
#[derive(Clone, Debug)]
pub(super) struct Prefix(String);

impl Prefix {
    pub(super) fn new(prefix: String) -> Self {
        Self(prefix)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The good entries, and the others. Of two keys with the same id the first counts.
    pub(super) fn endpoints(&self, pairs: &[KeyValue]) -> (Vec<Endpoint>, Vec<Refused>) {
        let mut good: Vec<Endpoint> = Vec::new();
        let mut refused = Vec::new();
        let mut taken = std::collections::HashSet::new();
        for pair in pairs {
            match self.endpoint(pair) {
                Ok(endpoint) if taken.insert(endpoint.id.clone()) => good.push(endpoint),
                Ok(endpoint) => {
                    let reason = format!(
                        "expected an id of its own, found {:?} again",
                        endpoint.id.as_str()
                    );
                    refused.push(Refused::new(self.name(pair), reason));
                }
                Err(mistakes) => refused.push(mistakes),
            }
        }
        (good, refused)
    }

    /// What a change means. A key whose value takes another id was another endpoint before.
    pub(super) fn events(&self, change: &Change) -> Vec<RawEvent> {
        let before = change.previous.as_ref();
        let before = before.and_then(|pair| self.endpoint(pair).ok());
        let before = before.map(|endpoint| endpoint.id);
        if change.is_deleted {
            let id = before.unwrap_or_else(|| self.id(&change.pair));
            return vec![RawEvent::Remove(id)];
        }
        match self.endpoint(&change.pair) {
            Ok(endpoint) => {
                let renamed = before.filter(|before| *before != endpoint.id);
                let renamed = renamed.map(RawEvent::Remove).into_iter();
                renamed.chain([RawEvent::Upsert(endpoint)]).collect()
            }
            Err(refused) => vec![RawEvent::Refuse(refused)],
        }
    }

    fn endpoint(&self, pair: &KeyValue) -> Result<Endpoint, Refused> {
        let refuse = |reason: String| Refused::new(self.name(pair), reason);
        let text = std::str::from_utf8(&pair.value);
        let text = text.map_err(|_| refuse("expected UTF-8".to_owned()))?;
        let tree = yaml::parse(text);
        let endpoint = tree.and_then(|tree| {
            let value = Value::root(&tree);
            let mut endpoint = listing::endpoint(&value)?;
            if endpoint.id.as_str() == endpoint.address.as_str() {
                endpoint.id = self.id(pair);
            }
            Ok(endpoint)
        });
        endpoint.map_err(|mistakes| refuse(mistakes.to_string().replace('\n', "; ")))
    }

    /// The rest of the key.
    fn id(&self, pair: &KeyValue) -> EndpointId {
        let rest = pair.key.strip_prefix(self.0.as_bytes());
        let rest = rest.filter(|rest| !rest.is_empty());
        let rest = rest.unwrap_or(&pair.key);
        EndpointId::from(&*String::from_utf8_lossy(rest))
    }

    fn name(&self, pair: &KeyValue) -> String {
        self.id(pair).to_string()
    }
}

/// Which id each key takes. Ids are meant to be one key's own, but keys are written by anybody.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_key: HashMap<Vec<u8>, EndpointId>,
    /// The keys of each id.
    keys: HashMap<EndpointId, u32>,
}

/// Whether an id is one key's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Sole,
    /// What becomes of the endpoint, only the whole list says.
    Contested,
}

impl Names {
    pub(super) fn of(prefix: &Prefix, pairs: &[KeyValue]) -> Self {
        let mut names = Self::default();
        for pair in pairs {
            if let Ok(endpoint) = prefix.endpoint(pair) {
                names.take(&pair.key, endpoint.id);
            }
        }
        names
    }

    /// Takes a change, which means these events.
    pub(super) fn change(&mut self, key: &[u8], events: &[RawEvent]) -> Claim {
        let mut claim = Claim::Sole;
        for event in events {
            let next = match event {
                RawEvent::Remove(_) => None,
                RawEvent::Upsert(endpoint) => Some(endpoint.id.clone()),
                // What the key was before stays.
                _ => continue,
            };
            let before = self.leave(key);
            let after = next.map_or(0, |id| self.take(key, id));
            if before > 0 || after > 1 {
                claim = Claim::Contested;
            }
        }
        claim
    }

    /// How many keys have the id now.
    fn take(&mut self, key: &[u8], id: EndpointId) -> u32 {
        self.by_key.insert(key.to_vec(), id.clone());
        let keys = self.keys.entry(id).or_default();
        *keys += 1;
        *keys
    }

    /// How many other keys have the id that this one had.
    fn leave(&mut self, key: &[u8]) -> u32 {
        let Some(id) = self.by_key.remove(key) else {
            return 0;
        };
        let Some(keys) = self.keys.get_mut(&id) else {
            return 0;
        };
        *keys -= 1;
        let left = *keys;
        if left == 0 {
            self.keys.remove(&id);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            mod_revision: 1,
            lease: 0,
        }
    }

    fn prefix() -> Prefix {
        Prefix::new("/s/users/".to_owned())
    }

    fn change(value: Option<&str>, previous: Option<&str>) -> Change {
        Change {
            pair: pair("/s/users/1", value.unwrap_or_default()),
            is_deleted: value.is_none(),
            previous: previous.map(|previous| pair("/s/users/1", previous)),
        }
    }

    const ONE: &str = r#"{"address":"127.0.0.1:9001"}"#;
    const NAMED: &str = r#"{"address":"127.0.0.1:9001","id":"named"}"#;

    #[test]
    fn the_id_is_that_of_the_value_or_the_rest_of_the_key() {
        let pairs = [
            pair("/s/users/1", ONE),
            pair("/s/users/2", NAMED),
            pair("/s/users/3", NAMED),
            pair("/s/users/4", r#"{"adress":"127.0.0.1:9001"}"#),
            pair("/s/users/5", "\u{0}"),
        ];
        let (good, refused) = prefix().endpoints(&pairs);
        let ids: Vec<_> = good.iter().map(|endpoint| endpoint.id.as_str()).collect();
        assert_eq!(ids, ["1", "named"]);
        let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(
            refused[0],
            "3: expected an id of its own, found \"named\" again"
        );
        assert!(refused[1].starts_with("4: line 1"), "{refused:?}");
        assert!(refused[1].contains("adress"), "{refused:?}");
        assert_eq!(refused.len(), 3, "{refused:?}");
    }

    #[test]
    fn an_id_of_two_keys_is_contested_until_it_is_one_keys_own() {
        let prefix = prefix();
        let pairs = [pair("/s/users/1", NAMED), pair("/s/users/2", ONE)];
        let mut names = Names::of(&prefix, &pairs);
        let mut told = |key: &str, value: Option<&str>, previous: Option<&str>| {
            let change = Change {
                pair: pair(key, value.unwrap_or_default()),
                is_deleted: value.is_none(),
                previous: previous.map(|previous| pair(key, previous)),
            };
            names.change(key.as_bytes(), &prefix.events(&change))
        };
        for (key, value, previous, expected) in [
            ("/s/users/2", Some(ONE), Some(ONE), Claim::Sole),
            ("/s/users/2", Some(NAMED), Some(ONE), Claim::Contested),
            ("/s/users/1", Some("{"), Some(NAMED), Claim::Sole),
            ("/s/users/1", Some(NAMED), Some("{"), Claim::Contested),
            ("/s/users/2", None, Some(NAMED), Claim::Contested),
            ("/s/users/1", Some(NAMED), Some(NAMED), Claim::Sole),
            ("/s/users/named", Some(ONE), None, Claim::Contested),
            ("/s/users/named", None, Some(ONE), Claim::Contested),
            ("/s/users/1", None, Some(NAMED), Claim::Sole),
            ("/s/users/3", None, Some(ONE), Claim::Sole),
        ] {
            assert_eq!(told(key, value, previous), expected, "{key} {value:?}");
        }
        assert!(names.by_key.is_empty() && names.keys.is_empty());
    }

    #[test]
    fn a_change_is_told_by_id() {
        let removed = |id: &str| RawEvent::Remove(id.into());
        let prefix = prefix();
        assert_eq!(
            prefix.events(&change(None, Some(NAMED))),
            [removed("named")]
        );
        assert_eq!(prefix.events(&change(None, Some(ONE))), [removed("1")]);
        assert_eq!(
            prefix.events(&change(None, Some("garbled"))),
            [removed("1")]
        );
        let renamed = prefix.events(&change(Some(NAMED), Some(ONE)));
        assert_eq!(renamed[0], removed("1"));
        assert!(
            matches!(&renamed[1], RawEvent::Upsert(endpoint) if endpoint.id.as_str() == "named")
        );
        assert_eq!(prefix.events(&change(Some(ONE), Some(ONE))).len(), 1);
        assert!(matches!(
            prefix.events(&change(Some("[]"), Some(ONE)))[..],
            [RawEvent::Refuse(_)]
        ));
    }
}
