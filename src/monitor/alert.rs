//! What somebody is told. PURE.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Severity;

/// What somebody is told: that something is bad, or that it is over.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// The name of the rule.
    pub rule: Arc<str>,
    /// The cluster that it is about; `None` for the node itself.
    pub cluster: Option<Arc<str>>,
    /// What the rule found; shares are from 0 to 1.
    pub value: f64,
    /// Beyond which it is bad.
    pub threshold: f64,
    /// How bad it is.
    pub severity: Severity,
    /// Whether it is bad or over.
    pub state: AlertState,
    /// The node that tells.
    pub node: Arc<str>,
    /// When it was found, by the clock of the node.
    pub at: SystemTime,
    /// The same as a sentence.
    pub text: Arc<str>,
}

/// Whether something is bad or over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AlertState {
    /// It is bad.
    Firing,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// The word in alerts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

impl Alert {
    /// The alert as a JSON object: `rule`, `cluster` (or null), `value`, `threshold`, `severity`,
    /// `state`, `node`, `at` (RFC 3339).
    #[must_use]
    pub fn to_json(&self) -> String {
        let cluster = match &self.cluster {
            Some(cluster) => format!("\"{}\"", Escaped(cluster)),
            None => String::from("null"),
        };
        format!(
            "{{\"rule\":\"{}\",\"cluster\":{cluster},\"value\":{},\"threshold\":{},\
             \"severity\":\"{}\",\"state\":\"{}\",\"node\":\"{}\",\"at\":\"{}\"}}",
            Escaped(&self.rule),
            Number(self.value),
            Number(self.threshold),
            self.severity.as_str(),
            self.state.as_str(),
            Escaped(&self.node),
            Timestamp(self.at),
        )
    }
}

/// A text within the quotes of a JSON string.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A JSON number; one that is none is null.
pub(super) struct Number(pub(super) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_finite() {
            true => write!(f, "{}", self.0),
            false => f.write_str("null"),
        }
    }
}

/// A time of day as RFC 3339 writes it, in UTC, to the millisecond.
pub(super) struct Timestamp(pub(super) SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since: Duration = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (day, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(day);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let millis = since.subsec_millis();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        )
    }
}

/// Year, month and day of a day since 1970 in the Gregorian calendar, by Howard Hinnant's
/// `civil_from_days`: years begin in March, so that the leap day is their last.
fn date(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::monitor) fn alert() -> Alert {
        Alert {
            rule: "high_error_rate".into(),
            cluster: Some("a\"b".into()),
            value: 0.125,
            threshold: 0.05,
            severity: Severity::Error,
            state: AlertState::Firing,
            node: "gw-1".into(),
            at: UNIX_EPOCH + Duration::from_millis(1_795_177_214_056),
            text: "12.5% of\nthem".into(),
        }
    }

    #[test]
    fn an_alert_is_json() {
        let json = alert().to_json();
        assert_eq!(
            json,
            r#"{"rule":"high_error_rate","cluster":"a\"b","value":0.125,"threshold":0.05,"severity":"error","state":"firing","node":"gw-1","at":"2026-11-20T12:20:14.056Z"}"#
        );
        let node = Alert {
            cluster: None,
            value: f64::NAN,
            ..alert()
        };
        assert!(node.to_json().contains(r#""cluster":null,"value":null"#));
    }

    #[test]
    fn what_json_reserves_is_escaped() {
        let text = Escaped("\u{1}\"\\\n\té").to_string();
        assert_eq!(text, "\\u0001\\\"\\\\\\n\\u0009é");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (day, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (19_722, (2023, 12, 31)),
            (19_782, (2024, 2, 29)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(day), expected);
        }
        // Each day follows the one before it.
        for day in 0..80_000 {
            let ((year, month, of_month), next) = (date(day), date(day + 1));
            let is_next = next == (year, month, of_month + 1)
                || next == (year, month + 1, 1) && of_month >= 28
                || next == (year + 1, 1, 1) && (month, of_month) == (12, 31);
            assert!(is_next, "{day}");
        }
    }
}
