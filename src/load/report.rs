//! What an endpoint says of its own load: an ORCA report (Open Request Cost Aggregation) in the
//! `endpoint-load-metrics` field of a response, in its text or its JSON form.
//!
//! ```text
//! endpoint-load-metrics: TEXT application_utilization=0.4, rps_fractional=120, eps=3
//! endpoint-load-metrics: JSON {"cpu_utilization": 0.3, "rps_fractional": 120.0}
//! ```
//!
//! The names are those of xDS (`xds.data.orca.v3.OrcaLoadReport`), the weight is that of gRPC
//! (A58). Unknown names are skipped. The binary form, which gRPC puts into trailers, is not read.

/// The figures that make a weight, and the share of memory; what was not reported is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// A share of the capacity, 0 to 1, or above when overloaded.
    cpu_utilization: f64,
    /// A share of the memory, 0 to 1.
    mem_utilization: f64,
    /// The share of the capacity, as the application itself measures it. It comes before that of the processor.
    application_utilization: f64,
    /// Requests a second.
    rps_fractional: f64,
    /// Errors a second.
    eps: f64,
}

impl Report {
    /// How much an error a second counts: 1.0, as in gRPC.
    const PENALTY: f64 = 1.0;

    /// `None` when this is no report in a form that is known.
    pub(crate) fn parse(field: &str) -> Option<Self> {
        let (form, text) = field.trim().split_once(' ')?;
        let mut report = Self::default();
        match form {
            "TEXT" => {
                for entry in text.split(',') {
                    let (name, value) = entry.split_once('=')?;
                    report.set(name.trim(), value);
                }
            }
            "JSON" => members(text, |name, value| report.set(name, value))?,
            _ => return None,
        }
        Some(report)
    }

    fn set(&mut self, name: &str, value: &str) {
        let figure = match name {
            "cpu_utilization" => &mut self.cpu_utilization,
            "mem_utilization" => &mut self.mem_utilization,
            "application_utilization" => &mut self.application_utilization,
            "rps_fractional" => &mut self.rps_fractional,
            "eps" => &mut self.eps,
            _ => return,
        };
        let value = value.trim().parse().ok();
        if let Some(value) = value.filter(|value: &f64| value.is_finite() && *value >= 0.0) {
            *figure = value;
        }
    }

    /// The share of the processor; `None` when it was not reported.
    pub(crate) fn cpu(&self) -> Option<f64> {
        Some(self.cpu_utilization).filter(|share| *share > 0.0)
    }

    /// The share of the memory; `None` when it was not reported.
    pub(crate) fn memory(&self) -> Option<f64> {
        Some(self.mem_utilization).filter(|share| *share > 0.0)
    }

    /// `qps / (utilization + errors a request * penalty)`; `None` when the report does not say
    /// enough.
    pub(crate) fn weight(&self) -> Option<f32> {
        let utilization = if self.application_utilization > 0.0 {
            self.application_utilization
        } else {
            self.cpu_utilization
        };
        if utilization <= 0.0 || self.rps_fractional <= 0.0 {
            return None;
        }
        let errors = self.eps / self.rps_fractional;
        let weight = (self.rps_fractional / (utilization + errors * Self::PENALTY)) as f32;
        (weight.is_finite() && weight > 0.0).then_some(weight)
    }
}

/// Calls `each` with the names and the plain values of the members of a JSON object. Objects and
/// lists within it are skipped; names with escapes are names that nobody asks for.
fn members<'a>(json: &'a str, mut each: impl FnMut(&'a str, &'a str)) -> Option<()> {
    let inner = json.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut rest = inner.trim_start();
    while !rest.is_empty() {
        let (name, after) = string(rest)?;
        let after = after.trim_start().strip_prefix(':')?;
        let (value, after) = value(after)?;
        each(name, value);
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None => after,
        };
    }
    Some(())
}

/// A string without its quotes, escapes as they are, and what follows it.
fn string(json: &str) -> Option<(&str, &str)> {
    let text = json.strip_prefix('"')?;
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    Some((&text[..end], &text[end + 1..]))
}

/// The text of a value, and what follows it, from the comma on.
fn value(json: &str) -> Option<(&str, &str)> {
    let (mut depth, mut is_text, mut is_escaped) = (0_u32, false, false);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => return Some(json.split_at(at)),
            _ => {}
        }
    }
    (depth == 0 && !is_text).then_some((json, ""))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_say_the_same() {
        let expected = Report {
            cpu_utilization: 0.3,
            mem_utilization: 0.9,
            application_utilization: 0.4,
            rps_fractional: 120.0,
            eps: 6.0,
        };
        for field in [
            "TEXT cpu_utilization=0.3,mem_utilization=.9,application_utilization=0.4,rps_fractional=120,eps=6",
            " TEXT eps=6, mem_utilization=0.9 ,named_metrics.a=1, application_utilization=4e-1, cpu_utilization=.3, rps_fractional=120 ",
            r#"JSON {"cpu_utilization":0.3,"mem_utilization":0.9,"application_utilization":0.4,"rps_fractional":120.0,"eps":6}"#,
            r#"JSON { "named_metrics" : { "eps" : 9, "a,}\"" : [1, {}] } , "eps" : 6 , "b":"x,\"}",
               "rps_fractional": 120, "mem_utilization": 9e-1,
               "cpu_utilization": 0.3, "application_utilization": 0.4 }"#,
        ] {
            assert_eq!(Report::parse(field), Some(expected), "{field}");
        }
        assert_eq!((expected.cpu(), expected.memory()), (Some(0.3), Some(0.9)));
        assert_eq!(Report::default().cpu(), None);
        // 120 / (0.4 + 6 / 120)
        let weight = expected.weight().unwrap();
        assert!((weight - 266.667).abs() < 0.01, "{weight}");
    }

    #[test]
    fn what_does_not_say_enough_makes_no_weight() {
        for field in [
            "TEXT rps_fractional=100",
            "TEXT cpu_utilization=0.5",
            "TEXT cpu_utilization=0,rps_fractional=5",
            "TEXT cpu_utilization=-1,rps_fractional=5",
            "TEXT cpu_utilization=nan,rps_fractional=5",
            "TEXT cpu_utilization=0.5,rps_fractional=inf",
            r#"JSON {"cpu_utilization":"0.5","rps_fractional":5}"#,
            "JSON {}",
        ] {
            let report = Report::parse(field).unwrap();
            assert_eq!(report.weight(), None, "{field}");
        }
        for field in [
            "",
            "TEXT",
            "TEXT cpu",
            "BIN AAA=",
            "JSON 5",
            "JSON {\"a\"}",
            "cpu=1",
        ] {
            assert_eq!(Report::parse(field), None, "{field}");
        }
    }

    proptest! {
        #[test]
        fn no_field_panics(field in "(TEXT |JSON \\{|)[ -~é]{0,60}\\}?") {
            if let Some(weight) = Report::parse(&field).and_then(|report| report.weight()) {
                prop_assert!(weight > 0.0);
            }
        }
    }
}
