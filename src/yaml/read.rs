//! Reading typed values out of the tree.

use std::fmt;

use super::{
    document::{Data, Node},
    near::nearest,
};

/// The longest part of a wrong text that is repeated in a message.
const SHOWN: usize = 60;

/// One thing that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Counted from 1.
    pub(crate) line: usize,
    /// `clusters.users.balance.type`; empty where the whole document is meant.
    pub(crate) path: String,
    /// What was expected and what was found.
    pub(crate) what: String,
}

impl Mistake {
    /// The mistake without its line: `path: what`.
    pub(crate) fn reason(&self) -> String {
        if self.path.is_empty() {
            return self.what.clone();
        }
        format!("{}: {}", self.path, self.what)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason())
    }
}

/// What is wrong in a file: never empty. Prints one line a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(crate) fn into_vec(self) -> Vec<Mistake> {
        self.0
    }

    fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

/// All values, or all mistakes.
pub(crate) fn collect<T>(
    results: impl IntoIterator<Item = Result<T, Mistakes>>,
) -> Result<Vec<T>, Mistakes> {
    let mut values = Vec::new();
    let mut mistakes = Mistakes(Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(more) => mistakes.extend(more),
        }
    }
    if mistakes.0.is_empty() {
        Ok(values)
    } else {
        Err(mistakes)
    }
}

/// A node and the path to it.
#[derive(Clone, Debug)]
pub(crate) struct Value<'a> {
    node: &'a Node,
    path: String,
}

impl<'a> Value<'a> {
    /// The whole document.
    pub(crate) fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    /// The same node as the beginning of paths.
    pub(crate) fn as_root(&self) -> Self {
        Self::root(self.node)
    }

    pub(crate) fn line(&self) -> usize {
        self.node.line
    }

    /// The keys that lead here, such as `clusters.users.tls.ca`.
    pub(crate) fn key(&self) -> &str {
        &self.path
    }

    pub(crate) fn data(&self) -> &'a Data {
        &self.node.data
    }

    /// The text of a scalar, and whether it stands without quotes.
    pub(crate) fn scalar(&self) -> Option<(&'a str, bool)> {
        match &self.node.data {
            Data::Scalar { text, plain } => Some((text, *plain)),
            _ => None,
        }
    }

    /// The mistake at this node: `expected …, found …`.
    pub(crate) fn expected(&self, expected: impl fmt::Display) -> Mistakes {
        self.wrong(format!("expected {expected}, found {}", self.found()))
    }

    /// A mistake at this node, in these words.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> Mistakes {
        Mistakes::from(Mistake {
            line: self.node.line,
            path: self.path.clone(),
            what: what.into(),
        })
    }

    /// What stands here, for `found …`.
    pub(super) fn found(&self) -> String {
        match &self.node.data {
            Data::Null => "nothing".into(),
            Data::Sequence(_) => "a list".into(),
            Data::Mapping(_) => "a mapping".into(),
            Data::Scalar { text, plain } => {
                // `8080` and `"8080"` differ where a number is expected.
                let quoted = if *plain { "" } else { "the quoted " };
                format!("{quoted}{:?}", shown(text))
            }
        }
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Result<Vec<Self>, Mistakes> {
        let Data::Sequence(items) = &self.node.data else {
            return Err(self.expected("a list"));
        };
        let items = items.iter().enumerate().map(|(i, node)| Self {
            node,
            path: format!("{}[{i}]", self.path),
        });
        Ok(items.collect())
    }

    /// Reads every item of a list.
    pub(crate) fn list<T>(
        &self,
        read: impl FnMut(&Self) -> Result<T, Mistakes>,
    ) -> Result<Vec<T>, Mistakes> {
        let items = self.items()?;
        collect(items.iter().map(read))
    }

    /// The entries of a mapping whose keys are free names.
    pub(crate) fn entries(&self) -> Result<Vec<(&'a str, Self)>, Mistakes> {
        let Data::Mapping(pairs) = &self.node.data else {
            return Err(self.expected("a mapping"));
        };
        let entries = pairs
            .iter()
            .map(|(key, node)| (key.text.as_str(), self.child(&key.text, node)));
        Ok(entries.collect())
    }

    /// Reads every entry of a mapping whose keys are free names.
    pub(crate) fn map<T>(
        &self,
        mut read: impl FnMut(&'a str, &Self) -> Result<T, Mistakes>,
    ) -> Result<Vec<T>, Mistakes> {
        let entries = self.entries()?;
        collect(entries.iter().map(|(key, value)| read(key, value)))
    }

    /// The mapping, read key by key.
    pub(crate) fn fields(&self) -> Result<Fields<'a>, Mistakes> {
        let Data::Mapping(pairs) = &self.node.data else {
            return Err(self.expected("a mapping"));
        };
        Ok(Fields {
            value: self.clone(),
            left: pairs
                .iter()
                .map(|(key, node)| (key.line, key.text.as_str(), node))
                .collect(),
            known: Vec::new(),
            mistakes: Mistakes(Vec::new()),
        })
    }

    fn child<'n>(&self, key: &str, node: &'n Node) -> Value<'n> {
        Value {
            node,
            path: join(&self.path, key),
        }
    }
}

/// As much of a text as a message repeats.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The end of a message that knows better.
pub(super) fn did_you_mean(word: Option<&str>) -> String {
    word.map_or_else(String::new, |word| format!("; did you mean {word:?}?"))
}

/// `path.key`; a key that would blur the path stands in quotes.
fn join(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let dot = if path.is_empty() { "" } else { "." };
    if !key.is_empty() && key.chars().all(is_bare) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}{dot}{:?}", shown(key))
    }
}

/// A mapping that is read key by key. [`finish`](Self::finish) refuses what nobody asked for.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    value: Value<'a>,
    left: Vec<(usize, &'a str, &'a Node)>,
    known: Vec<&'static str>,
    mistakes: Mistakes,
}

impl<'a> Fields<'a> {
    /// Reads a key that must be there. `None` is a mistake that [`finish`](Self::finish) reports.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'_>) -> Result<T, Mistakes>,
    ) -> Option<T> {
        if let Some(value) = self.value(key) {
            return self.keep(read(&value));
        }
        // The reader of a missing value says best what it expected.
        let missing = Node {
            line: self.value.line(),
            data: Data::Null,
        };
        let missing = self.value.child(key, &missing);
        let result = read(&missing).and_then(|_| Err(missing.expected("a value")));
        self.keep(result)
    }

    /// Reads a key that may be absent.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'_>) -> Result<T, Mistakes>,
    ) -> Option<T> {
        let value = self.value(key)?;
        self.keep(read(&value))
    }

    /// Takes the value of a key, for a reader of its own.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let at = self.left.iter().position(|(_, text, _)| *text == key)?;
        let (_, _, node) = self.left.remove(at);
        Some(self.value.child(key, node))
    }

    /// Takes every key that was not asked for yet, for a mapping with names of its own.
    pub(crate) fn rest(&mut self) -> Vec<(&'a str, Value<'a>)> {
        let left = std::mem::take(&mut self.left);
        left.into_iter()
            .map(|(_, key, node)| (key, self.value.child(key, node)))
            .collect()
    }

    /// Keeps the mistakes of a result.
    pub(crate) fn keep<T>(&mut self, result: Result<T, Mistakes>) -> Option<T> {
        result
            .map_err(|mistakes| self.mistakes.extend(mistakes))
            .ok()
    }

    /// Whether everything was right so far.
    pub(crate) fn is_right(&self) -> bool {
        self.mistakes.0.is_empty()
    }

    /// Ends the reading: `built` if every key was known and right. It is `None` only where a
    /// required key was.
    pub(crate) fn finish<T>(mut self, built: Option<T>) -> Result<T, Mistakes> {
        for (line, key, _) in std::mem::take(&mut self.left) {
            let unknown = Mistake {
                line,
                path: join(&self.value.path, key),
                what: self.unknown(key),
            };
            self.mistakes.0.push(unknown);
        }
        self.abandon(built)
    }

    /// Ends the reading without a look at the other keys: where the key that says which others are
    /// known is itself wrong.
    pub(crate) fn abandon<T>(self, built: Option<T>) -> Result<T, Mistakes> {
        match built {
            Some(built) if self.mistakes.0.is_empty() => Ok(built),
            Some(_) => Err(self.mistakes),
            None => {
                assert!(!self.mistakes.0.is_empty(), "nothing built, nothing wrong");
                Err(self.mistakes)
            }
        }
    }

    fn unknown(&self, key: &str) -> String {
        let known = self.known.join(", ");
        let hint = nearest(key, self.known.iter().copied());
        format!(
            "expected one of {known}, found the unknown key {:?}{}",
            shown(key),
            did_you_mean(hint)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{document::parse, duration, number, text},
        *,
    };
    use std::time::Duration;

    #[derive(Debug, PartialEq)]
    struct Probe {
        path: String,
        interval: Duration,
        rise: Option<u32>,
    }

    fn probe(value: &Value<'_>) -> Result<Probe, Mistakes> {
        let mut fields = value.fields()?;
        let path = fields.required("path", text);
        let interval = fields.required("interval", duration);
        let rise = fields.optional("rise", number(1..=10_u32));
        let built = path.zip(interval).map(|(path, interval)| Probe {
            path,
            interval,
            rise,
        });
        fields.finish(built)
    }

    fn read(file: &str) -> Result<Probe, String> {
        let tree = parse(file).unwrap();
        probe(&Value::root(&tree)).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_mapping_is_read_key_by_key() {
        assert_eq!(
            read(
                "rise: 2
path: /health
interval: 5s
"
            ),
            Ok(Probe {
                path: "/health".into(),
                interval: Duration::from_secs(5),
                rise: Some(2),
            })
        );
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        for (file, message) in [
            (
                "path: /\n",
                "line 1: interval: expected a duration such as 250ms, 30s, 5m or 1h, found nothing",
            ),
            (
                "path: []\ninterval: 5\nrise: 0\n",
                "line 1: path: expected a text, found a list\n\
                 line 2: interval: expected a duration such as 250ms, 30s, 5m or 1h, found \"5\"\n\
                 line 3: rise: expected a number from 1 to 10, found \"0\"",
            ),
            (
                "path: /\ninterval: 5s\nrice: 2\nfall: 3\n",
                "line 3: rice: expected one of path, interval, rise, found the unknown key \"rice\"; \
                 did you mean \"rise\"?\n\
                 line 4: fall: expected one of path, interval, rise, found the unknown key \"fall\"",
            ),
            ("- 1\n", "line 1: expected a mapping, found a list"),
            ("", "line 1: expected a mapping, found nothing"),
        ] {
            assert_eq!(read(file), Err(message.into()), "{file}");
        }
    }

    #[test]
    fn paths_name_keys_and_positions() {
        let tree = parse("a:\n  b.c:\n    - x\n    - [1, {d: y}]\n").unwrap();
        let root = Value::root(&tree);
        let mistakes = root
            .map(|_, a| a.map(|_, list| list.list(|item| item.list(probe))))
            .unwrap_err();
        assert_eq!(
            mistakes.to_string().lines().collect::<Vec<_>>(),
            [
                "line 3: a.\"b.c\"[0]: expected a list, found \"x\"",
                "line 4: a.\"b.c\"[1][0]: expected a mapping, found \"1\"",
                "line 4: a.\"b.c\"[1][1].path: expected a text, found nothing",
                "line 4: a.\"b.c\"[1][1].interval: expected a duration such as 250ms, 30s, 5m or 1h, found nothing",
                "line 4: a.\"b.c\"[1][1].d: expected one of path, interval, rise, found the unknown key \"d\"",
            ]
        );
    }

    #[test]
    fn a_long_text_is_cut() {
        let tree = parse(&"x".repeat(1000)).unwrap();
        let message = Value::root(&tree).expected("a list").to_string();
        assert_eq!(
            message,
            format!("line 1: expected a list, found \"{}…\"", "x".repeat(SHOWN))
        );
    }

    #[test]
    fn the_rest_is_nobodys_mistake() {
        let tree = parse("a: 1\nb: 2\n").unwrap();
        let mut fields = Value::root(&tree).fields().unwrap();
        assert_eq!(fields.optional("a", number(0..=9_u8)), Some(1));
        let rest = fields.rest();
        assert_eq!((rest.len(), rest[0].0, rest[0].1.line()), (1, "b", 2));
        assert_eq!(fields.finish(Some(())), Ok(()));
    }
}
