//! A page of Prometheus text format 0.0.4.

use std::fmt::{self, Write as _};

/// A page of metrics under one prefix.
#[derive(Default)]
pub(super) struct Page {
    pub(super) text: String,
}

const PREFIX: &str = "tower_gateway_";

impl Page {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!(
            "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"
        ));
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.write(format_args!("{PREFIX}{name}"));
        for (position, (label, text)) in labels.iter().enumerate() {
            let before = if position == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{}\"", Escaped(text)));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{after} {value}\n"));
    }

    /// A family of one sample under a name that is not of this crate.
    pub(super) fn standard(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        value: impl fmt::Display,
    ) {
        self.write(format_args!(
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        ));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.text
            .write_fmt(text)
            .expect("a string takes every write");
    }
}

/// A label value: backslash, quote and line feed are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
