//! What somebody is told of, and who.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Uri, header::CONTENT_TYPE, uri::Scheme};

use super::{
    NamedFile, Place, Reader, Secret,
    route::{Known, cluster},
};
use crate::{
    health::Percent,
    monitor::{Alert, AlertState, Rule, Severity, Template},
    yaml::{
        Data, Fields, Mistakes, Value, duration, number, one_of, percent, positive_duration, text,
    },
};

/// More requests in a window prove nothing more.
const MOST_REQUESTS: u64 = 1_000_000_000;

/// What somebody is told of, and who.
///
/// # Defaults
///
/// - `name`: that of the rule
/// - `threshold`, `window`, `min_requests`, `lasting`, `cooldown`, `severity`: those of the
///   [`Rule`]
/// - `clusters`: all
/// - `webhooks`: none; every alert is in the log
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlertSettings {
    /// What is looked at.
    pub rule: AlertRule,
    /// What the alert is called.
    pub name: Option<String>,
    /// Above or below which it is bad.
    pub threshold: Option<Percent>,
    /// How far back it looks.
    pub window: Option<Duration>,
    /// How many requests there must be in the window.
    pub min_requests: Option<u64>,
    /// For how long it must be bad.
    pub lasting: Option<Duration>,
    /// How long it is quiet after it fired.
    pub cooldown: Option<Duration>,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// The clusters that are looked at.
    pub clusters: Option<Vec<String>>,
    /// Who is told, beside the log.
    pub webhooks: Vec<WebhookSettings>,
}

/// What an alert looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AlertRule {
    /// The share of the requests of a cluster that failed.
    HighErrorRate,
    /// The share of the endpoints of a cluster that are well.
    LowHealthyInstances,
    /// Whether the registry answers, and the lists of endpoints are fresh.
    RegistryLost,
    /// Whether the stores answer.
    StoreLost,
}

/// Who is told by HTTP.
///
/// # Defaults
///
/// - `body`: the alert as JSON
/// - `headers`: `content-type: application/json`
/// - `timeout`: 5 s
/// - `ca`: that of the operating system
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebhookSettings {
    /// Where. It may have a secret in its path.
    pub url: Secret,
    /// What is sent, with gaps for what there is to tell.
    pub body: Option<String>,
    /// Fields of the header.
    pub headers: Vec<(HeaderName, Secret)>,
    /// How long it may take.
    pub timeout: Duration,
    /// Who vouches for the receiver, for `https`.
    pub ca: Option<NamedFile>,
    pub(in crate::config) place: Place,
}

impl WebhookSettings {
    /// The URL as what it was checked to be.
    pub(in crate::config) fn uri(&self) -> Uri {
        let uri = self.url.reveal().parse();
        uri.expect("the URL was checked when it was read")
    }

    pub(in crate::config) fn is_https(&self) -> bool {
        self.uri().scheme() == Some(&Scheme::HTTPS)
    }
}

impl AlertSettings {
    /// The rule that they make, which tells nobody yet.
    pub(in crate::config) fn rule(&self) -> Rule {
        fn with<T>(rule: Rule, found: Option<T>, set: fn(Rule, T) -> Rule) -> Rule {
            match found {
                Some(found) => set(rule, found),
                None => rule,
            }
        }
        let rule = match self.rule {
            AlertRule::HighErrorRate => Rule::high_error_rate(),
            AlertRule::LowHealthyInstances => Rule::low_healthy_instances(),
            AlertRule::RegistryLost => Rule::registry_lost(),
            AlertRule::StoreLost => Rule::store_lost(),
        };
        let threshold = self.threshold.map(|percent| percent.value() / 100.0);
        let rule = with(rule, self.name.as_deref(), Rule::name);
        let rule = with(rule, threshold, Rule::threshold);
        let rule = with(rule, self.window, Rule::window);
        let rule = with(rule, self.min_requests, Rule::min_requests);
        let rule = with(rule, self.lasting, Rule::lasting);
        let rule = with(rule, self.cooldown, Rule::cooldown);
        let rule = with(rule, self.severity, Rule::severity);
        match &self.clusters {
            Some(clusters) => rule.clusters(clusters.iter().map(String::as_str)),
            None => rule,
        }
    }
}

impl Reader<'_> {
    /// Reads one item of `alerts`, which may be about these clusters.
    pub(super) fn alert(
        self,
        value: &Value<'_>,
        known: Known<'_>,
    ) -> Result<AlertSettings, Mistakes> {
        let mut fields = value.fields()?;
        let rules = one_of(&[
            ("high_error_rate", AlertRule::HighErrorRate),
            ("low_healthy_instances", AlertRule::LowHealthyInstances),
            ("registry_lost", AlertRule::RegistryLost),
            ("store_lost", AlertRule::StoreLost),
        ]);
        let Some(rule) = fields.required("rule", rules) else {
            // Which other keys are known depends on the rule.
            return fields.abandon(None);
        };
        let name = fields.optional("name", name);
        let threshold = match rule {
            AlertRule::HighErrorRate => fields.optional("above", share),
            AlertRule::LowHealthyInstances => fields.optional("below", share),
            AlertRule::RegistryLost | AlertRule::StoreLost => None,
        };
        let (window, min_requests) = if counts(rule) {
            let window = fields.optional("window", window);
            let requests = number(0..=MOST_REQUESTS);
            (window, fields.optional("min_requests", requests))
        } else {
            (None, None)
        };
        let lasting = fields.optional("for", duration);
        let cooldown = fields.optional("cooldown", duration);
        let severities = one_of(&[
            ("info", Severity::Info),
            ("warning", Severity::Warning),
            ("error", Severity::Error),
            ("critical", Severity::Critical),
        ]);
        let severity = fields.optional("severity", severities);
        let clusters = match rule {
            AlertRule::StoreLost => None,
            _ => fields.optional("clusters", |value| {
                let clusters = value.list(|name| cluster(name, known))?;
                if clusters.is_empty() {
                    return Err(value.wrong("expected at least one cluster, found an empty list"));
                }
                Ok(clusters)
            }),
        };
        let webhooks = fields.optional("webhook", |value| self.webhooks(value));
        fields.finish(Some(AlertSettings {
            rule,
            name,
            threshold,
            window,
            min_requests,
            lasting,
            cooldown,
            severity,
            clusters,
            webhooks: webhooks.unwrap_or_default(),
        }))
    }

    /// One, or a list of them.
    fn webhooks(self, value: &Value<'_>) -> Result<Vec<WebhookSettings>, Mistakes> {
        match value.data() {
            Data::Sequence(_) => value.list(|value| self.webhook(value)),
            _ => Ok(vec![self.webhook(value)?]),
        }
    }

    /// A URL, or a mapping with more than that.
    fn webhook(self, value: &Value<'_>) -> Result<WebhookSettings, Mistakes> {
        let place = Place::of(value);
        if !matches!(value.data(), Data::Mapping(_)) {
            return Ok(WebhookSettings {
                url: url(value)?,
                body: None,
                headers: Vec::new(),
                timeout: TIMEOUT,
                ca: None,
                place,
            });
        }
        let mut fields = value.fields()?;
        let url = fields.required("url", url);
        let headers = fields.optional("headers", |value| value.map(header));
        let headers = headers.unwrap_or_default();
        let body = fields.optional("body", |value| body(value, &headers));
        let timeout = fields.optional("timeout", positive_duration);
        let ca = self.authority(&mut fields, url.as_ref());
        fields.finish(url.map(|url| WebhookSettings {
            url,
            body,
            headers,
            timeout: timeout.unwrap_or(TIMEOUT),
            ca,
            place,
        }))
    }

    fn authority(self, fields: &mut Fields<'_>, url: Option<&Secret>) -> Option<NamedFile> {
        let value = fields.value("ca")?;
        if url.is_some_and(|url| url.reveal().starts_with("http:")) {
            return fields.keep(Err(
                value.wrong("expected an https URL beside it, found http")
            ));
        }
        fields.keep(self.file(&value))
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);

/// What is lost is lost at once, however many requests there were.
fn counts(rule: AlertRule) -> bool {
    matches!(
        rule,
        AlertRule::HighErrorRate | AlertRule::LowHealthyInstances
    )
}

/// It stands in metrics and in the messages of others.
fn name(value: &Value<'_>) -> Result<String, Mistakes> {
    let name = text(value)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= 64 && name.bytes().all(is_plain) {
        return Ok(name);
    }
    Err(value.expected("a name of at most 64 letters, digits, hyphens, underscores and dots"))
}

fn share(value: &Value<'_>) -> Result<Percent, Mistakes> {
    percent(value).map(Percent::new)
}

fn window(value: &Value<'_>) -> Result<Duration, Mistakes> {
    let window = duration(value)?;
    if (Duration::from_secs(1)..=Rule::LONGEST_WINDOW).contains(&window) {
        return Ok(window);
    }
    Err(value.expected("a window from 1s to 10m"))
}

/// One that is wrong is not repeated: there may be a secret in it.
fn url(value: &Value<'_>) -> Result<Secret, Mistakes> {
    let expected = "an http or https URL such as https://alerts.example/hook, without a user in it";
    let Ok(url) = text(value) else {
        return Err(value.expected(expected));
    };
    let uri = url.parse::<Uri>().ok();
    let is_right = uri.is_some_and(|uri| crate::monitor::Webhook::new((), uri).is_ok());
    if is_right {
        return Ok(Secret::from_text(url));
    }
    Err(value.wrong(format!("expected {expected}, found another text")))
}

fn header(name: &str, value: &Value<'_>) -> Result<(HeaderName, Secret), Mistakes> {
    let known = HeaderName::from_bytes(name.as_bytes());
    let name = known.map_err(|_| value.wrong("expected the name of a header field as the key"))?;
    let text = text(value)?;
    match HeaderValue::from_str(&text) {
        Ok(_) => Ok((name, Secret::from_text(text))),
        Err(_) => Err(value.wrong("expected a text that fits a header field, found another")),
    }
}

/// A body says right now what would be wrong with it when it is needed.
fn body(value: &Value<'_>, headers: &[(HeaderName, Secret)]) -> Result<String, Mistakes> {
    let body = text(value)?;
    let template = Template::new(&body).map_err(|error| {
        value.wrong(format!(
            "expected a text with gaps for what there is to tell: {error}"
        ))
    })?;
    let kind = headers.iter().find(|(name, _)| *name == CONTENT_TYPE);
    let is_json = kind.is_none_or(|(_, kind)| kind.reveal().contains("json"));
    let filled = template.fill(&sample());
    if is_json && let Err(error) = serde_json::from_str::<serde_json::Value>(&filled) {
        return Err(value.wrong(format!(
            "expected JSON once its gaps are filled, or another content-type in headers: {error}"
        )));
    }
    Ok(body)
}

fn sample() -> Alert {
    Alert {
        rule: "high_error_rate".into(),
        cluster: Some("users".into()),
        value: 0.125,
        threshold: 0.05,
        severity: Severity::Error,
        state: AlertState::Firing,
        node: "gateway-1".into(),
        at: UNIX_EPOCH,
        text: "high_error_rate of users is 12.5% (above 5%)".into(),
    }
}
