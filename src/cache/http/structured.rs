//! Structured fields (RFC 9651): the parts of dictionaries and lists that caching reads.
//!
//! A field that breaks the grammar anywhere is no field at all, as the RFC wants it.

use http::{HeaderMap, HeaderName, HeaderValue};

/// A value without its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bare {
    Integer(i64),
    Boolean(bool),
    String(String),
    Token(String),
    /// A decimal, date, byte sequence or display string: nothing here has a use for one.
    Other,
}

/// A member of a dictionary or list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    Item(Bare),
    Inner,
}

/// The members of a dictionary by their keys, all lines together; none when it is broken. Of a key
/// that is there twice the last one counts.
pub(crate) fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<(String, Member)>> {
    let text = joined(headers, name)?;
    let mut input = Input(text.as_bytes());
    let mut members: Vec<(String, Member)> = Vec::new();
    input.members(|input| {
        let key = input.key()?;
        let member = if input.take(b'=') {
            input.member()?
        } else {
            input.parameters()?;
            Member::Item(Bare::Boolean(true))
        };
        members.retain(|(known, _)| *known != key);
        members.push((key, member));
        Some(())
    })?;
    Some(members)
}

/// The members of a list, all lines together; none when it is broken.
pub(crate) fn list(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<Member>> {
    let text = joined(headers, name)?;
    let mut input = Input(text.as_bytes());
    let mut members = Vec::new();
    input.members(|input| {
        members.push(input.member()?);
        Some(())
    })?;
    Some(members)
}

/// The lines as one; none when there is none.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::to_str);
    let mut text = lines.next()?.ok()?.to_owned();
    for line in lines {
        text.push_str(", ");
        text.push_str(line.ok()?);
    }
    Some(text)
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.0 = &self.0[1..];
        }
        is_next
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.peek().is_some_and(|byte| bytes.contains(&byte)) {
            self.0 = &self.0[1..];
        }
    }

    /// What matches, up to the first byte that does not.
    fn while_matching(&mut self, matches: impl Fn(u8) -> bool) -> String {
        let length = self.0.iter().take_while(|byte| matches(**byte)).count();
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.iter().copied().map(char::from).collect()
    }

    /// Comma-separated members up to the end of the field (section 4.2.1).
    fn members(&mut self, mut member: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.skip(b" ");
        while !self.0.is_empty() {
            member(self)?;
            self.skip(b" \t");
            if self.0.is_empty() {
                return Some(());
            }
            if !self.take(b',') {
                return None;
            }
            self.skip(b" \t");
            if self.0.is_empty() {
                return None;
            }
        }
        Some(())
    }

    fn member(&mut self) -> Option<Member> {
        let member = if self.take(b'(') {
            self.inner_list()?;
            Member::Inner
        } else {
            Member::Item(self.bare()?)
        };
        self.parameters()?;
        Some(member)
    }

    fn inner_list(&mut self) -> Option<()> {
        loop {
            self.skip(b" ");
            if self.take(b')') {
                return Some(());
            }
            self.bare()?;
            self.parameters()?;
            if !matches!(self.peek(), Some(b' ' | b')')) {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.take(b';') {
            self.skip(b" ");
            self.key()?;
            if self.take(b'=') {
                self.bare()?;
            }
        }
        Some(())
    }

    fn key(&mut self) -> Option<String> {
        if !matches!(self.peek(), Some(b'a'..=b'z' | b'*')) {
            return None;
        }
        Some(self.while_matching(
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'),
        ))
    }

    fn bare(&mut self) -> Option<Bare> {
        match self.peek()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => {
                self.next();
                self.string().map(Bare::String)
            }
            b'*' | b'A'..=b'Z' | b'a'..=b'z' => Some(Bare::Token(self.while_matching(is_token))),
            b':' => {
                self.next();
                self.while_matching(
                    |byte| matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'='),
                );
                self.take(b':').then_some(Bare::Other)
            }
            b'?' => {
                self.next();
                match self.next()? {
                    b'0' => Some(Bare::Boolean(false)),
                    b'1' => Some(Bare::Boolean(true)),
                    _ => None,
                }
            }
            b'@' => {
                self.next();
                matches!(self.number()?, Bare::Integer(_)).then_some(Bare::Other)
            }
            b'%' => {
                self.next();
                if !self.take(b'"') {
                    return None;
                }
                self.while_matching(|byte| byte != b'"' && matches!(byte, b' '..=b'~'));
                self.take(b'"').then_some(Bare::Other)
            }
            _ => None,
        }
    }

    /// An integer of at most 15 digits, or a decimal of at most 12 and 3 (section 4.2.4).
    fn number(&mut self) -> Option<Bare> {
        let is_negative = self.take(b'-');
        let whole = self.while_matching(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > 15 {
            return None;
        }
        if self.take(b'.') {
            let part = self.while_matching(|byte| byte.is_ascii_digit());
            let is_decimal = whole.len() <= 12 && (1..=3).contains(&part.len());
            return is_decimal.then_some(Bare::Other);
        }
        let number: i64 = whole.parse().ok()?;
        Some(Bare::Integer(if is_negative { -number } else { number }))
    }

    fn string(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => match self.next()? {
                    escaped @ (b'"' | b'\\') => text.push(char::from(escaped)),
                    _ => return None,
                },
                visible @ b' '..=b'~' => text.push(char::from(visible)),
                _ => return None,
            }
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIELD: HeaderName = HeaderName::from_static("x");

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| line.parse().unwrap());
        lines.map(|line| (FIELD, line)).collect()
    }

    fn read(lines: &[&str]) -> Option<Vec<(String, Member)>> {
        dictionary(&headers(lines), &FIELD)
    }

    fn item(key: &str, value: Bare) -> (String, Member) {
        (key.to_owned(), Member::Item(value))
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let text = r#"a=1, b;x=2, c=?0;y, d="q\"\\", e=tok/en, f=1.5, g=:aGk=:, h=(1 "b";z c), i=@5, j=%"%c3", k=-7"#;
        let expected = [
            item("a", Bare::Integer(1)),
            item("b", Bare::Boolean(true)),
            item("c", Bare::Boolean(false)),
            item("d", Bare::String(String::from(r#"q"\"#))),
            item("e", Bare::Token(String::from("tok/en"))),
            item("f", Bare::Other),
            item("g", Bare::Other),
            (String::from("h"), Member::Inner),
            item("i", Bare::Other),
            item("j", Bare::Other),
            item("k", Bare::Integer(-7)),
        ];
        assert_eq!(read(&[text]).unwrap(), expected);
    }

    #[test]
    fn lines_are_one_and_the_last_of_a_key_counts() {
        let members = read(&["a=1 ,\tb", "a=2"]).unwrap();
        let expected = [item("b", Bare::Boolean(true)), item("a", Bare::Integer(2))];
        assert_eq!(members, expected);
        assert_eq!(read(&[""]), Some(Vec::new()));
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn one_mistake_breaks_the_field() {
        for text in [
            "max-age=10000, &&&&&",
            "MaX-aGe=3600",
            "max-age =100",
            "max-age= 100",
            "a,",
            "a b",
            "a=\"x",
            "a=\"\\x\"",
            "a=1.",
            "a=1234567890123456",
            "a=?2",
            "a=(1",
            "a=(1\"b\")",
            "a;B=1",
        ] {
            assert_eq!(read(&[text]), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\t]{0,60}") {
            let headers = headers(&[&text]);
            dictionary(&headers, &FIELD);
            list(&headers, &FIELD);
        }
    }
}
