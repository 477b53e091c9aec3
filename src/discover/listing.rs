//! A list of endpoints, as files and stores hold it.
//!
//! ```yaml
//! - { address: "127.0.0.1:9001", id: users-1, weight: 100, zone: a, priority: 0, metadata: { version: v2 } }
//! - { address: "127.0.0.1:9002", draining: true }
//! ```
//!
//! Discovery reads it entry by entry: one bad entry costs that endpoint, not the list. The
//! configuration file is read strictly: whoever writes it is there to correct it.

use std::{collections::HashMap, fmt};

use crate::{
    endpoint::{Address, Endpoint, EndpointId},
    yaml::{Data, Mistakes, Node, Value, boolean, collect, number, text},
};

/// An entry that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The line of the mistake, counted from 1.
    pub(crate) line: usize,
    /// The identity or address, as far as it can be read; else the position in the list: `[2]`.
    pub(crate) entry: String,
    /// What was expected and what was found.
    pub(crate) reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.entry, self.reason)
    }
}

/// Reads the good entries of a list and names the others.
///
/// # Errors
///
/// When the node is not a list: then nothing is known of the endpoints.
pub(crate) fn endpoints(list: &Node) -> Result<(Vec<Endpoint>, Vec<Refused>), Mistakes> {
    let mut good = Vec::new();
    let mut refused = Vec::new();
    let mut seen = Seen::default();
    for (position, item) in Value::root(list).items()?.iter().enumerate() {
        match seen.endpoint(&item.as_root()) {
            Ok(endpoint) => good.push(endpoint),
            Err(mistakes) => {
                let entry = name(item.data()).unwrap_or_else(|| format!("[{position}]"));
                refused.extend(mistakes.into_vec().into_iter().map(|mistake| Refused {
                    line: mistake.line,
                    entry: entry.clone(),
                    reason: mistake.reason(),
                }));
            }
        }
    }
    Ok((good, refused))
}

/// Reads a list of which every entry must be good.
///
/// # Errors
///
/// Every mistake of every entry.
#[cfg_attr(
    not(feature = "config"),
    allow(dead_code, reason = "lists stand in the configuration file alone")
)]
pub(crate) fn every_endpoint(list: &Value<'_>) -> Result<Vec<Endpoint>, Mistakes> {
    let items = list.items()?;
    let mut seen = Seen::default();
    collect(items.iter().map(|item| seen.endpoint(item)))
}

/// Reads one endpoint.
///
/// # Errors
///
/// Every mistake of the entry.
pub(crate) fn endpoint(entry: &Value<'_>) -> Result<Endpoint, Mistakes> {
    let mut fields = entry.fields()?;
    let address = fields.required("address", address);
    let id = fields.optional("id", text);
    let weight = fields.optional("weight", number(0..=u32::MAX));
    let zone = fields.optional("zone", text);
    let priority = fields.optional("priority", number(0..=u32::MAX));
    let metadata = fields.optional("metadata", |metadata| {
        metadata.map(|key, value| Ok((key.to_owned(), text(value)?)))
    });
    let draining = fields.optional("draining", boolean);

    let endpoint = address.map(|address| {
        let mut endpoint = Endpoint::new(address);
        if let Some(id) = id {
            endpoint.id = EndpointId::from(id);
        }
        endpoint.weight = weight.unwrap_or(endpoint.weight);
        endpoint.zone = zone.map(Into::into);
        endpoint.priority = priority.unwrap_or(endpoint.priority);
        let pairs = metadata.unwrap_or_default().into_iter();
        endpoint.metadata = pairs.map(|(k, v)| (k.into(), v.into())).collect();
        endpoint.draining = draining.unwrap_or(endpoint.draining);
        endpoint
    });
    fields.finish(endpoint)
}

/// An endpoint as JSON, in the words that [`endpoint`] reads.
pub(crate) fn json(endpoint: &Endpoint) -> serde_json::Value {
    let metadata = endpoint.metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_string(), (**value).into()));
    let mut json = serde_json::json!({
        "id": endpoint.id.as_str(),
        "address": endpoint.address.as_str(),
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "metadata": metadata.collect::<serde_json::Map<_, _>>(),
        "draining": endpoint.draining,
    });
    if let Some(zone) = &endpoint.zone {
        json["zone"] = (**zone).into();
    }
    json
}

/// Reads an address.
///
/// # Errors
///
/// When it is none.
pub(crate) fn address(value: &Value<'_>) -> Result<Address, Mistakes> {
    text(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            value.expected("host:port, such as 127.0.0.1:8080, [::1]:8080 or users.internal:80")
        })
}

/// The identities read so far: a second endpoint of the same name would take over the state of the
/// first, so it is refused.
#[derive(Default)]
struct Seen {
    lines: HashMap<EndpointId, usize>,
}

impl Seen {
    fn endpoint(&mut self, entry: &Value<'_>) -> Result<Endpoint, Mistakes> {
        let endpoint = endpoint(entry)?;
        if let Some(line) = self.lines.get(&endpoint.id) {
            let id = endpoint.id.as_str();
            return Err(entry.wrong(format!(
                "expected an id of its own, found {id:?} again after line {line}"
            )));
        }
        self.lines.insert(endpoint.id.clone(), entry.line());
        Ok(endpoint)
    }
}

/// What a bad entry is called, if it says so.
fn name(data: &Data) -> Option<String> {
    let Data::Mapping(pairs) = data else {
        return None;
    };
    ["id", "address"].iter().find_map(|wanted| {
        let (_, value) = pairs.iter().find(|(key, _)| key.text == *wanted)?;
        match &value.data {
            // It ends in a log: no line breaks, and no megabytes.
            Data::Scalar { text, .. } if !text.is_empty() => {
                Some(text.chars().take(60).flat_map(char::escape_debug).collect())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;
    use proptest::prelude::*;

    const ALL_KEYS: &str = r#"
- id: users-1
  address: "127.0.0.1:9001"
  weight: 100
  zone: a
  priority: 2
  metadata: { version: v2, build: 7 }
  draining: true
- { address: "users.internal:9002" }
"#;

    fn read(file: &str) -> (Vec<Endpoint>, Vec<String>) {
        let (endpoints, refused) = endpoints(&parse(file).unwrap()).unwrap();
        (endpoints, refused.iter().map(ToString::to_string).collect())
    }

    fn all_keys() -> Vec<Endpoint> {
        let address: Address = "127.0.0.1:9001".parse().unwrap();
        vec![
            Endpoint::new(address)
                .id("users-1")
                .weight(100)
                .zone("a")
                .priority(2)
                .metadata("version", "v2")
                .metadata("build", "7")
                .draining(),
            "users.internal:9002".parse().unwrap(),
        ]
    }

    #[test]
    fn every_key_is_read() {
        assert_eq!(read(ALL_KEYS), (all_keys(), vec![]));
        let tree = parse(ALL_KEYS).unwrap();
        assert_eq!(every_endpoint(&Value::root(&tree)), Ok(all_keys()));
    }

    #[test]
    fn what_is_written_is_read() {
        for endpoint in all_keys() {
            let tree = parse(&json(&endpoint).to_string()).unwrap();
            assert_eq!(super::endpoint(&Value::root(&tree)), Ok(endpoint));
        }
    }

    #[test]
    fn json_is_read_alike() {
        let json = serde_json::json!([
            {
                "id": "users-1", "address": "127.0.0.1:9001", "weight": 100, "zone": "a",
                "priority": 2, "metadata": { "version": "v2", "build": "7" }, "draining": true,
            },
            { "address": "users.internal:9002" },
        ]);
        for json in [
            json.to_string(),
            serde_json::to_string_pretty(&json).unwrap(),
        ] {
            assert_eq!(read(&json), (all_keys(), vec![]));
        }
    }

    #[test]
    fn a_bad_entry_costs_itself_alone() {
        let file = "
- { address: a:1 }
- { address: nowhere }
- { address: b:2, wieght: 5 }
- { address: c:3, weight: heavy }
- { id: d, address: d:4 }
- { id: d, address: e:5 }
- just-text
- { weight: 1 }
- { id: f, address: f:6, metadata: [x] }
- { address: g:7 }
";
        let (endpoints, refused) = read(file);
        let ids: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.id.as_str())
            .collect();
        assert_eq!(ids, ["a:1", "d", "g:7"]);
        assert_eq!(
            refused,
            [
                "line 3: nowhere: address: expected host:port, such as 127.0.0.1:8080, \
                 [::1]:8080 or users.internal:80, found \"nowhere\"",
                "line 4: b:2: wieght: expected one of address, id, weight, zone, priority, \
                 metadata, draining, found the unknown key \"wieght\"; did you mean \"weight\"?",
                "line 5: c:3: weight: expected a number from 0 to 4294967295, found \"heavy\"",
                "line 7: d: expected an id of its own, found \"d\" again after line 6",
                "line 8: [6]: expected a mapping, found \"just-text\"",
                "line 9: [7]: address: expected host:port, such as 127.0.0.1:8080, \
                 [::1]:8080 or users.internal:80, found nothing",
                "line 10: f: metadata: expected a mapping, found a list",
            ]
        );
    }

    #[test]
    fn a_bad_entry_does_not_claim_its_id() {
        let (endpoints, refused) = read("- { id: a, address: x }\n- { id: a, address: a:1 }\n");
        assert_eq!((endpoints.len(), refused.len()), (1, 1));
    }

    #[test]
    fn the_name_of_a_bad_entry_is_fit_for_a_log() {
        let long = "x".repeat(1000);
        for (id, entry) in [("a\\nb", "a\\nb"), (&long, &long[..60])] {
            let tree = parse(&format!("- {{ id: \"{id}\" }}\n")).unwrap();
            let (_, refused) = endpoints(&tree).unwrap();
            assert_eq!(refused[0].entry, entry);
        }
    }

    #[test]
    fn the_strict_reading_refuses_the_list_and_names_every_mistake() {
        let tree = parse("- { address: a:1 }\n- { address: a }\n- { address: a:1 }\n").unwrap();
        let mistakes = every_endpoint(&Value::root(&tree)).unwrap_err().to_string();
        assert_eq!(
            mistakes.lines().collect::<Vec<_>>(),
            [
                "line 2: [1].address: expected host:port, such as 127.0.0.1:8080, [::1]:8080 or \
                 users.internal:80, found \"a\"",
                "line 3: [2]: expected an id of its own, found \"a:1\" again after line 1",
            ]
        );
    }

    #[test]
    fn what_is_no_list_is_an_error_of_the_whole() {
        for (file, message) in [
            ("", "line 1: expected a list, found nothing"),
            ("address: a:1", "line 1: expected a list, found a mapping"),
            ("text", "line 1: expected a list, found \"text\""),
        ] {
            let mistakes = endpoints(&parse(file).unwrap()).unwrap_err();
            assert_eq!(mistakes.to_string(), message);
        }
        assert_eq!(read("[]"), (vec![], vec![]));
    }

    proptest! {
        /// Whatever happens to a valid file, it is read, or refused in words.
        #[test]
        fn no_damage_to_a_list_panics(
            at in 0..ALL_KEYS.len(),
            gone in 0..9_usize,
            new in "[-a-z0-9:{},\\[\\]\"'&*!~ \n]{0,6}",
        ) {
            let end = (at + gone).min(ALL_KEYS.len());
            let file = format!("{}{new}{}", &ALL_KEYS[..at], &ALL_KEYS[end..]);
            match parse(&file).and_then(|tree| endpoints(&tree)) {
                Ok((good, refused)) => prop_assert!(good.len() + refused.len() <= 60),
                Err(mistakes) => prop_assert!(!mistakes.to_string().is_empty()),
            }
        }
    }
}
