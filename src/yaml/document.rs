//! A text of YAML as a tree of nodes with their lines.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::read::{Mistake, Mistakes};

/// The longest text that is read.
const MAX_BYTES: usize = 4 << 20;
/// The most nodes of a tree, with what aliases add.
const MAX_NODES: usize = 500_000;
/// The most bytes that anchors and aliases may copy.
const MAX_COPIED_BYTES: usize = 1 << 20;
/// The deepest nesting; it also bounds the recursion of everything that walks the tree.
const MAX_DEPTH: usize = 64;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Where a reader of the file looks for it, counted from 1: a collection or nothing stands at
    /// its key, a scalar where it is written.
    pub(crate) line: usize,
    pub(crate) data: Data,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Null,
    /// A text; numbers and booleans are plain ones.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// The keys in the order of the file, each once.
    Mapping(Vec<(Key, Node)>),
}

/// The key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Reads the one document of a text. An empty text is a null node.
pub(crate) fn parse(text: &str) -> Result<Node, Mistakes> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        return Err(mistake(
            1,
            format!(
                "expected at most {MAX_BYTES} bytes, found {} bytes",
                text.len()
            ),
        ));
    }
    refuse_control_characters(text)?;

    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => tree.take(event, span)?,
            Err(error) => {
                // A text that ends too early is wrong behind its last line.
                let last = text.lines().count().max(1);
                let what = format!("expected YAML: {}", error.info());
                return Err(mistake(error.marker().line().min(last), what));
            }
        }
    }
    Ok(tree.root.unwrap_or(Node {
        line: 1,
        data: Data::Null,
    }))
}

fn mistake(line: usize, what: impl Into<String>) -> Mistakes {
    Mistakes::from(Mistake {
        line,
        path: String::new(),
        what: what.into(),
    })
}

/// YAML 1.2.2, 5.1 allows none of these (DEL it does, in quotes); the parser would take a NUL for
/// the end of the text and drop the rest in silence.
fn refuse_control_characters(text: &str) -> Result<(), Mistakes> {
    let Some(at) = text.find(|c: char| c < ' ' && !matches!(c, '\t' | '\n' | '\r')) else {
        return Ok(());
    };
    let line = 1 + text[..at].matches('\n').count();
    let found = text[at..].chars().next().unwrap_or_default();
    Err(mistake(
        line,
        format!("expected text, found the control character {found:?}"),
    ))
}

/// The tree while it grows.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    budget: Budget,
    anchors: HashMap<usize, Anchored>,
}

/// A collection that is not closed yet.
struct Open {
    line: usize,
    /// Zero where there is none.
    anchor: usize,
    data: OpenData,
    /// How deep the deepest finished child reaches.
    height: usize,
}

enum OpenData {
    Sequence(Vec<Node>),
    Mapping {
        pairs: Vec<(Key, Node)>,
        key: Option<Key>,
    },
}

/// What an alias stands for.
struct Anchored {
    node: Node,
    height: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistakes> {
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(mistake(line, "expected one document, found a second one"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(line, tag.is_some())?;
                let plain = style == ScalarStyle::Plain;
                let data = if plain && is_null(&text) {
                    Data::Null
                } else {
                    Data::Scalar {
                        text: text.into_owned(),
                        plain,
                    }
                };
                self.finished(Node { line, data }, anchor, 1)?;
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(line, tag.is_some())?;
                self.opened(line, anchor, OpenData::Sequence(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(line, tag.is_some())?;
                let data = OpenData::Mapping {
                    pairs: Vec::new(),
                    key: None,
                };
                self.opened(line, anchor, data)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.closed()?,
            Event::Alias(anchor) => self.aliased(line, anchor)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn opened(&mut self, line: usize, anchor: usize, data: OpenData) -> Result<(), Mistakes> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(line));
        }
        self.open.push(Open {
            line,
            anchor,
            data,
            height: 0,
        });
        Ok(())
    }

    fn closed(&mut self) -> Result<(), Mistakes> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let data = match open.data {
            OpenData::Sequence(items) => Data::Sequence(items),
            OpenData::Mapping { pairs, .. } => {
                refuse_duplicates(&pairs)?;
                Data::Mapping(pairs)
            }
        };
        let line = open.line;
        self.finished(Node { line, data }, open.anchor, open.height + 1)
    }

    fn aliased(&mut self, line: usize, anchor: usize) -> Result<(), Mistakes> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(mistake(
                line,
                "expected an alias of a finished node, found one of a node around it",
            ));
        };
        let height = anchored.height;
        if self.open.len() + height > MAX_DEPTH {
            return Err(too_deep(line));
        }
        let node = self.budget.copy(line, &anchored.node)?;
        self.finished(node, 0, height)
    }

    /// Puts a finished node where it belongs.
    fn finished(&mut self, mut node: Node, anchor: usize, height: usize) -> Result<(), Mistakes> {
        self.budget.add(node.line, 1)?;
        if anchor != 0 {
            let node = self.budget.copy(node.line, &node)?;
            self.anchors.insert(anchor, Anchored { node, height });
        }
        let Some(open) = self.open.last_mut() else {
            self.root.get_or_insert(node);
            return Ok(());
        };
        open.height = open.height.max(height);
        match &mut open.data {
            OpenData::Sequence(items) => items.push(node),
            OpenData::Mapping { pairs, key } => match key.take() {
                None => *key = Some(key_of(node)?),
                Some(key) => {
                    if !matches!(node.data, Data::Scalar { .. }) {
                        node.line = key.line;
                    }
                    pairs.push((key, node));
                }
            },
        }
        Ok(())
    }
}

/// What the tree and its copies may still cost.
#[derive(Default)]
struct Budget {
    nodes: usize,
    copied_bytes: usize,
}

impl Budget {
    fn add(&mut self, line: usize, nodes: usize) -> Result<(), Mistakes> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            let what = format!("expected at most {MAX_NODES} values, found more");
            return Err(mistake(line, what));
        }
        Ok(())
    }

    /// Copies a subtree, counted before: a few lines of aliases of aliases name billions of nodes.
    fn copy(&mut self, line: usize, node: &Node) -> Result<Node, Mistakes> {
        let size = Size::of(node);
        self.add(line, size.nodes)?;
        self.copied_bytes += size.bytes;
        if self.copied_bytes > MAX_COPIED_BYTES {
            let what = format!(
                "expected at most {MAX_COPIED_BYTES} bytes in anchors and aliases, found more"
            );
            return Err(mistake(line, what));
        }
        Ok(node.clone())
    }
}

/// How much a subtree holds.
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn of(node: &Node) -> Self {
        let mut size = Self { nodes: 0, bytes: 0 };
        size.add(node);
        size
    }

    fn add(&mut self, node: &Node) {
        self.nodes += 1;
        match &node.data {
            Data::Null => {}
            Data::Scalar { text, .. } => self.bytes += text.len(),
            Data::Sequence(items) => items.iter().for_each(|item| self.add(item)),
            Data::Mapping(pairs) => {
                for (key, node) in pairs {
                    self.bytes += key.text.len();
                    self.add(node);
                }
            }
        }
    }
}

/// The null of the core schema (YAML 1.2.2, 10.3.2).
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn key_of(node: Node) -> Result<Key, Mistakes> {
    let line = node.line;
    match node.data {
        // Merge keys are YAML 1.1; taken for a name they would be a cluster called `<<`.
        Data::Scalar { text, plain: true } if text == "<<" => Err(mistake(
            line,
            "expected a key, found `<<`: merge keys are not part of YAML 1.2",
        )),
        Data::Scalar { text, .. } => Ok(Key { line, text }),
        Data::Null => Err(mistake(line, "expected a key, found nothing")),
        Data::Sequence(_) => Err(mistake(line, "expected a key, found a list")),
        Data::Mapping(_) => Err(mistake(line, "expected a key, found a mapping")),
    }
}

fn refuse_tag(line: usize, tagged: bool) -> Result<(), Mistakes> {
    if tagged {
        return Err(mistake(line, "expected a plain value, found a tag (`!`)"));
    }
    Ok(())
}

fn too_deep(line: usize) -> Mistakes {
    mistake(
        line,
        format!("expected at most {MAX_DEPTH} levels of nesting, found more"),
    )
}

fn refuse_duplicates(pairs: &[(Key, Node)]) -> Result<(), Mistakes> {
    let mut first = HashMap::with_capacity(pairs.len());
    for (key, _) in pairs {
        if let Some(line) = first.insert(key.text.as_str(), key.line) {
            let what = format!(
                "expected each key once, found {:?} again after line {line}",
                key.text
            );
            return Err(mistake(key.line, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    fn plain(line: usize, text: &str) -> Node {
        Node {
            line,
            data: Data::Scalar {
                text: text.into(),
                plain: true,
            },
        }
    }

    fn key(line: usize, text: &str) -> Key {
        Key {
            line,
            text: text.into(),
        }
    }

    #[test]
    fn every_node_knows_its_line() {
        let tree = parse("# a comment\na: 1\nb:\n  - x\n  - {c: d}\ne:\n").unwrap();
        let inner = Node {
            line: 5,
            data: Data::Mapping(vec![(key(5, "c"), plain(5, "d"))]),
        };
        let list = Node {
            line: 3,
            data: Data::Sequence(vec![plain(4, "x"), inner]),
        };
        let nothing = Node {
            line: 6,
            data: Data::Null,
        };
        assert_eq!(
            tree,
            Node {
                line: 2,
                data: Data::Mapping(vec![
                    (key(2, "a"), plain(2, "1")),
                    (key(3, "b"), list),
                    (key(6, "e"), nothing),
                ])
            }
        );
    }

    #[test]
    fn lines_survive_carriage_returns_and_a_byte_order_mark() {
        let Data::Mapping(pairs) = parse("\u{feff}a: 1\r\n\r\nb: 2\r\n").unwrap().data else {
            panic!("no mapping");
        };
        let keys: Vec<_> = pairs
            .iter()
            .map(|(key, _)| (key.line, &*key.text))
            .collect();
        assert_eq!(keys, [(1, "a"), (3, "b")]);
    }

    #[test]
    fn json_is_yaml() {
        let json = "[\n\t{\"a\":\"b\",\t\"c\": [1, true, null, \"\\u00e9\\/\"]},\n\t{}\n]\n";
        let yaml = "- {a: \"b\", c: [1, true, ~, \"é/\"]}\n- {}\n";
        let (json, yaml) = (parse(json).unwrap(), parse(yaml).unwrap());
        let (Data::Sequence(json), Data::Sequence(yaml)) = (json.data, yaml.data) else {
            panic!("no lists");
        };
        assert_eq!(json[1].line, 3);
        let (Data::Mapping(json), Data::Mapping(yaml)) = (&json[0].data, &yaml[0].data) else {
            panic!("no mappings");
        };
        assert_eq!(json[0].1.data, yaml[0].1.data);
        let (Data::Sequence(json), Data::Sequence(yaml)) = (&json[1].1.data, &yaml[1].1.data)
        else {
            panic!("no lists");
        };
        assert!(json.iter().zip(yaml).all(|(a, b)| a.data == b.data));
    }

    #[test]
    fn nothing_is_null() {
        for text in ["", "# only a comment\n", "---\n", "~", "null"] {
            assert_eq!(parse(text).unwrap().data, Data::Null, "{text:?}");
        }
        assert_ne!(parse("\"\"").unwrap().data, Data::Null);
    }

    #[test]
    fn an_alias_is_a_copy() {
        let tree = parse("a: &x {b: c}\nd: *x\n").unwrap();
        let Data::Mapping(pairs) = tree.data else {
            panic!("no mapping");
        };
        assert_eq!(pairs[0].1.data, pairs[1].1.data);
        assert_eq!(pairs[1].1.line, 2);
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_line() {
        for (text, message) in [
            (
                "a: 1\nb: 2\na: 3\n",
                "line 3: expected each key once, found \"a\" again after line 1",
            ),
            (
                "a: 1\n---\nb: 2\n",
                "line 2: expected one document, found a second one",
            ),
            (
                "a: 1\nb: !x 2\n",
                "line 2: expected a plain value, found a tag (`!`)",
            ),
            (
                "a: &x 1\nb: {<<: *x}\n",
                "line 2: expected a key, found `<<`: merge keys are not part of YAML 1.2",
            ),
            ("[a]: 1\n", "line 1: expected a key, found a list"),
            ("? {a: b}\n: 1\n", "line 1: expected a key, found a mapping"),
            ("~: 1\n", "line 1: expected a key, found nothing"),
            (
                "a: 1\nb: \0 2\n",
                "line 2: expected text, found the control character '\\0'",
            ),
            (
                "a: &x [ *x ]\n",
                "line 1: expected an alias of a finished node, found one of a node around it",
            ),
        ] {
            assert_eq!(refused(text), message, "{text:?}");
        }
        for text in [
            "a: [1, 2\n",
            "a: 1\n b: 2\n",
            "a: *x\n",
            "\"a",
            "}",
            "a: 'b' c\n",
            "\"\\ud83d\\ude00\"",
        ] {
            let message = refused(text);
            assert!(message.contains(": expected YAML: "), "{text:?}: {message}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert_eq!(
            refused(&deep(MAX_DEPTH + 1)),
            "line 1: expected at most 64 levels of nesting, found more"
        );
        assert!(refused(&"- ".repeat(100_000)).contains("levels of nesting"));
        assert!(refused(&"? ".repeat(100_000)).contains("levels of nesting"));

        let wide = "- a\n".repeat(MAX_NODES + 1);
        assert_eq!(
            refused(&wide),
            "line 500001: expected at most 500000 values, found more"
        );
        assert_eq!(
            refused(&"#".repeat(MAX_BYTES + 1)),
            "line 1: expected at most 4194304 bytes, found 4194305 bytes"
        );
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        // Of nothing, and of texts: one costs nodes alone, the other bytes before that.
        for (laugh, message) in [
            ("~, ", "expected at most 500000 values, found more"),
            (
                "lol-lol-lol, ",
                "expected at most 1048576 bytes in anchors and aliases, found more",
            ),
        ] {
            let mut laughs = format!("a0: &a0 [{}]\n", laugh.repeat(9));
            for level in 1..20 {
                let of = format!("*a{}, ", level - 1).repeat(9);
                laughs.push_str(&format!("a{level}: &a{level} [{of}]\n"));
            }
            let refused = refused(&laughs);
            assert!(refused.ends_with(message), "{refused}");
        }

        let mut nested = String::from("- &a0 []\n");
        for level in 1..100 {
            nested.push_str(&format!("- &a{level} [*a{}]\n", level - 1));
        }
        assert!(refused(&nested).contains("levels of nesting"));

        let long = format!("- &a {}\n{}", "x".repeat(1 << 16), "- *a\n".repeat(100));
        assert_eq!(
            refused(&long),
            "line 17: expected at most 1048576 bytes in anchors and aliases, found more"
        );
    }

    #[test]
    fn a_text_that_ends_too_early_is_wrong_in_its_last_line() {
        for text in ["a: 1\nb: [\n", "a: 1\nb: [", "a: 1\nb: \"\n"] {
            assert!(
                refused(text).starts_with("line 2: expected YAML: "),
                "{text:?}"
            );
        }
        assert!(refused("[").starts_with("line 1: "));
    }

    /// Pieces that mean something to a parser of YAML.
    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "a",
            "b: ",
            "- ",
            "? ",
            ": ",
            ":",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\n",
            "\n  ",
            "\n    ",
            " ",
            "\t",
            "&x ",
            "*x",
            "!t ",
            "'",
            "\"",
            "|\n",
            ">-\n",
            "#",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "\\",
            "\r",
            "\u{feff}",
            "é",
            "1",
            "<<: ",
            "~",
            "\0",
            "@",
            "`",
        ])
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            drop(parse(&text));
        }

        #[test]
        fn no_pieces_of_yaml_panic(pieces in prop::collection::vec(piece(), 0..40)) {
            drop(parse(&pieces.concat()));
        }

        #[test]
        fn any_json_text_is_read_back(text in any::<String>()) {
            let json = serde_json::to_string(&[&text]).unwrap();
            let tree = parse(&json).unwrap();
            let expected = Node { line: 1, data: Data::Scalar { text, plain: false } };
            prop_assert_eq!(tree.data, Data::Sequence(vec![expected]));
        }
    }
}
