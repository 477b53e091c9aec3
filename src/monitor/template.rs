//! A text with gaps for what there is to tell. PURE.

use super::{
    Alert,
    alert::{Escaped, Number, Timestamp},
};

/// A text with gaps that an alert fills, for receivers that want a form of their own.
///
/// A gap is a name in double braces: `{{rule}}`, `{{cluster}}`, `{{value}}`, `{{threshold}}`,
/// `{{severity}}`, `{{state}}`, `{{node}}`, `{{at}}`, and `{{text}}`, which says all of it in a
/// sentence. What fills a gap is escaped so that it can stand within the quotes of a JSON string.
///
/// # Examples
///
/// ```
/// use tower_gateway::monitor::Template;
///
/// let chat = Template::new(r#"{"text": "[{{severity}}] {{text}}"}"#)?;
/// assert!(Template::new("{{colour}}").is_err());
/// # Ok::<(), tower_gateway::monitor::InvalidTemplate>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Gap(Gap),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    Rule,
    Cluster,
    Value,
    Threshold,
    Severity,
    State,
    Node,
    At,
    Text,
}

const GAPS: [(&str, Gap); 9] = [
    ("rule", Gap::Rule),
    ("cluster", Gap::Cluster),
    ("value", Gap::Value),
    ("threshold", Gap::Threshold),
    ("severity", Gap::Severity),
    ("state", Gap::State),
    ("node", Gap::Node),
    ("at", Gap::At),
    ("text", Gap::Text),
];

/// A gap that nothing fills.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{{{{{name}}}}} is none of rule, cluster, value, threshold, severity, state, node, at, text"
)]
pub struct InvalidTemplate {
    name: String,
}

impl Template {
    /// Reads a text with gaps.
    ///
    /// # Errors
    ///
    /// When there is a gap with another name than those.
    pub fn new(text: &str) -> Result<Self, InvalidTemplate> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            // Braces that nothing closes are a text like any other.
            let Some((name, after)) = after.split_once("}}") else {
                break;
            };
            let name = name.trim();
            let Some((_, gap)) = GAPS.iter().find(|(known, _)| *known == name) else {
                let name = name.to_owned();
                return Err(InvalidTemplate { name });
            };
            pieces.extend([Piece::Text(before.to_owned()), Piece::Gap(*gap)]);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self { pieces })
    }

    /// The text with its gaps filled.
    #[must_use]
    pub fn fill(&self, alert: &Alert) -> String {
        let pieces = self.pieces.iter();
        pieces.map(|piece| piece.filled(alert)).collect()
    }
}

impl Piece {
    fn filled(&self, alert: &Alert) -> String {
        let escaped = |text: &str| Escaped(text).to_string();
        match self {
            Self::Text(text) => text.clone(),
            Self::Gap(Gap::Rule) => escaped(&alert.rule),
            Self::Gap(Gap::Cluster) => escaped(alert.cluster.as_deref().unwrap_or_default()),
            Self::Gap(Gap::Value) => Number(alert.value).to_string(),
            Self::Gap(Gap::Threshold) => Number(alert.threshold).to_string(),
            Self::Gap(Gap::Severity) => alert.severity.as_str().to_owned(),
            Self::Gap(Gap::State) => alert.state.as_str().to_owned(),
            Self::Gap(Gap::Node) => escaped(&alert.node),
            Self::Gap(Gap::At) => Timestamp(alert.at).to_string(),
            Self::Gap(Gap::Text) => escaped(&alert.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::alert::tests::alert;

    #[test]
    fn gaps_are_filled_so_that_json_stays_json() {
        let filled = |text| Template::new(text).unwrap().fill(&alert());
        assert_eq!(
            filled("no gap, {a} }} {{ and no end"),
            "no gap, {a} }} {{ and no end"
        );
        assert_eq!(
            filled(r#"{"text":"{{text}}"}"#),
            r#"{"text":"12.5% of\nthem"}"#
        );
        assert_eq!(
            filled(
                "{{ rule }}|{{cluster}}|{{value}}|{{threshold}}|{{severity}}|{{state}}|{{node}}|{{at}}"
            ),
            "high_error_rate|a\\\"b|0.125|0.05|error|firing|gw-1|2026-11-20T12:20:14.056Z"
        );
    }

    #[test]
    fn a_gap_that_nothing_fills_is_named() {
        let error = Template::new("{{rule}} {{ colour }}")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("{{colour}} is none of rule, "), "{error}");
    }
}
