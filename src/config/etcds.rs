//! The clients of etcd that a node has.

use parking_lot::Mutex;

use super::{plan::Tls, settings::EtcdSettings};
use crate::etcd::Etcd;

/// The clients of etcd. Who names the same servers shares one, with its connections and its watch.
#[derive(Debug, Default)]
pub(super) struct Etcds(Mutex<Vec<KnownEtcd>>);

/// A client, and what it was made from.
#[derive(Debug)]
struct KnownEtcd {
    settings: EtcdSettings,
    tls: Option<Tls>,
    client: Etcd,
}

impl Etcds {
    pub(super) fn client(&self, settings: &EtcdSettings, tls: Option<&Tls>) -> Etcd {
        let mut known = self.0.lock();
        let is_same = |one: &&KnownEtcd| {
            one.settings == *settings && Tls::texts(one.tls.as_ref()) == Tls::texts(tls)
        };
        if let Some(known) = known.iter().find(is_same) {
            return known.client.clone();
        }
        let client = settings.client();
        let client = match tls {
            Some(tls) => {
                let (config, server_name) = tls.connector.parts();
                client.tls(config.clone(), server_name.cloned())
            }
            None => client,
        };
        // A certificate that was renewed replaces the one before it.
        known.retain(|one| one.settings != *settings);
        known.push(KnownEtcd {
            settings: settings.clone(),
            tls: tls.cloned(),
            client: client.clone(),
        });
        client
    }
}
