//! The alerts of a plan: their rules, and the ways to whoever is told.

use parking_lot::Mutex;

use super::{
    file::ConfigFile,
    plan::{Plan, Tls},
    settings::WebhookSettings,
};
use crate::{
    cluster::Cluster,
    monitor::{Channel, LogAlerter, Monitor, Rule, Template, Webhook},
    upstream::Upstream,
};

/// The monitor of a node, and what it tells by.
#[derive(Debug)]
pub(super) struct Alerts {
    pub(super) monitor: Monitor,
    /// Those of the application, beside those of the file.
    own: Vec<Rule>,
    log: Channel,
    hooks: Mutex<Vec<Hook>>,
}

/// A webhook at work, and what it was made from.
#[derive(Debug)]
struct Hook {
    settings: WebhookSettings,
    /// A certificate authority that was renewed in place makes another one.
    texts: Vec<Vec<u8>>,
    channel: Channel,
}

impl Alerts {
    /// Those of the application, and none of the file yet.
    pub(super) fn new(node: &str, file: &ConfigFile) -> Self {
        let monitor = Monitor::new(node);
        monitor.set_collector(file.collector.clone());
        Self {
            monitor,
            own: file.rules.clone(),
            log: Channel::new(LogAlerter::new()),
            hooks: Mutex::default(),
        }
    }

    /// Goes over to a plan. What has not changed goes on: rules where they are, and webhooks with
    /// what they still have to tell.
    pub(super) fn apply(&self, plan: &Plan, node: &str, clusters: Vec<Cluster>) {
        self.monitor.set_node(node);
        self.monitor.set_clusters(clusters);
        let mut hooks = self.hooks.lock();
        let mut kept = Vec::new();
        let mut rules = Vec::new();
        for (alert, connectors) in plan.settings.alerts.iter().zip(&plan.webhooks) {
            let mut rule = alert.rule().notify(&self.log);
            for (settings, tls) in alert.webhooks.iter().zip(connectors) {
                rule = rule.notify(&hook(settings, tls.as_ref(), &hooks, &mut kept));
            }
            rules.push(rule);
        }
        rules.extend(self.own.iter().cloned());
        self.monitor.set_rules(rules);
        *hooks = kept;
    }
}

/// The way to a receiver: one for all rules that tell it, before and after a change.
fn hook(
    settings: &WebhookSettings,
    tls: Option<&Tls>,
    before: &[Hook],
    kept: &mut Vec<Hook>,
) -> Channel {
    let texts = tls.map_or(&[][..], |tls| &tls.texts);
    let is_same = |hook: &&Hook| hook.settings == *settings && hook.texts == texts;
    if let Some(hook) = kept.iter().find(is_same) {
        return hook.channel.clone();
    }
    let known = before.iter().find(is_same);
    let channel = match known {
        Some(hook) => hook.channel.clone(),
        None => Channel::new(webhook(settings, tls)),
    };
    kept.push(Hook {
        settings: settings.clone(),
        texts: texts.to_vec(),
        channel: channel.clone(),
    });
    channel
}

fn webhook(
    settings: &WebhookSettings,
    tls: Option<&Tls>,
) -> Webhook<Upstream<http_body_util::Full<bytes::Bytes>>> {
    let client = Upstream::new()
        .connect_timeout(settings.timeout)
        .idle_connections(1);
    let client = match tls {
        Some(tls) => client.connector(tls.connector.clone()),
        None => client,
    };
    let webhook = Webhook::new(client, settings.uri());
    let webhook = webhook.expect("the URL was checked when it was read");
    let webhook = webhook.timeout(settings.timeout);
    let webhook = match &settings.body {
        Some(body) => {
            let body = Template::new(body);
            webhook.body(body.expect("the body was checked when it was read"))
        }
        None => webhook,
    };
    settings
        .headers
        .iter()
        .fold(webhook, |webhook, (name, value)| {
            let value = value.reveal().parse();
            webhook.header(
                name.clone(),
                value.expect("the field was checked when it was read"),
            )
        })
}
