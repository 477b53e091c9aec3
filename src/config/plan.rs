//! Settings with all that they name at hand: what is left to do cannot fail.

use std::{collections::BTreeMap, fs, num::NonZeroU32, path::Path, sync::Arc};

use super::{
    error::ConfigError,
    settings::{
        AffinityPolicy, AffinitySettings, ClusterSettings, ConfigStoreSettings, DiscoverySettings,
        EtcdSettings, NamedFile, Place, PolicyOption, PolicySettings, Protocol, RegisterPlace,
        Settings, TlsSettings, WebhookSettings,
    },
};
use crate::{
    pick::{
        Bounded, LeastRequest, Maglev, Policy, Random, Rendezvous, ReportedLoad, ResponseTime,
        RingHash, RoundRobin, WeightedRandom, WeightedRoundRobin,
    },
    upstream::{self, TlsConnector},
    yaml::Mistake,
};

/// Makes a policy from the options in the file, or says what is wrong with them.
pub(super) type MakePolicy =
    Arc<dyn Fn(&[PolicyOption]) -> Result<Arc<dyn Policy>, String> + Send + Sync>;

/// A configuration that was checked with every file that it names.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) settings: Settings,
    pub(super) clusters: BTreeMap<String, ClusterPlan>,
    /// Of each webhook of each alert, for `https`.
    pub(super) webhooks: Vec<Vec<Option<Tls>>>,
    /// How the etcd of the configuration is connected to, where that is secured.
    pub(super) config_store_tls: Option<Tls>,
    /// The same for the etcd of the registry.
    pub(super) register_tls: Option<Tls>,
}

/// What a cluster needs beside its settings.
#[derive(Clone, Debug)]
pub(super) struct ClusterPlan {
    pub(super) policy: Arc<dyn Policy>,
    pub(super) tls: Option<Tls>,
    /// How the etcd that names the endpoints is connected to, where that is secured.
    pub(super) source_tls: Option<Tls>,
}

/// A connector and the texts that it was made from: a certificate that was renewed in place is
/// noticed, although the settings are the same.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) texts: Vec<Vec<u8>>,
}

impl Tls {
    /// What a connection was made from, if it is secured.
    pub(super) fn texts(tls: Option<&Self>) -> Option<&[Vec<u8>]> {
        tls.map(|tls| tls.texts.as_slice())
    }
}

impl Plan {
    /// Reads the files that the settings name.
    pub(super) fn new(
        settings: Settings,
        file: &Path,
        policies: &[(String, MakePolicy)],
    ) -> Result<Self, ConfigError> {
        let mut clusters = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, cluster) in &settings.clusters {
            match cluster_plan(cluster, policies) {
                Ok(plan) => {
                    clusters.insert(name.clone(), plan);
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        // One that was readable once may be gone for a moment; then the last good list is used.
        if settings.node.snapshot_dir.is_none() {
            mistakes.extend(settings.clusters.values().filter_map(unreadable_list));
        }
        let mut webhooks = Vec::new();
        for alert in &settings.alerts {
            let hooks = alert.webhooks.iter().map(webhook_tls);
            match hooks.collect() {
                Ok(hooks) => webhooks.push(hooks),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let mut tls = |etcd: Option<&EtcdSettings>| match etcd.map(etcd_tls).transpose() {
            Ok(tls) => tls.flatten(),
            Err(mistake) => {
                mistakes.push(mistake);
                None
            }
        };
        let config_store = settings.config_store.as_ref();
        let config_store_tls = tls(config_store.and_then(ConfigStoreSettings::etcd));
        let register = settings.node.register.as_ref();
        let register_tls = tls(register.and_then(|register| match &register.place {
            RegisterPlace::Etcd { etcd, .. } => Some(etcd),
            RegisterPlace::Redis => None,
        }));
        if mistakes.is_empty() {
            Ok(Self {
                settings,
                clusters,
                webhooks,
                config_store_tls,
                register_tls,
            })
        } else {
            // One that two name is one mistake.
            mistakes.dedup();
            Err(ConfigError::new(file, mistakes))
        }
    }

    /// What the file says.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

fn unreadable_list(cluster: &ClusterSettings) -> Option<Mistake> {
    let DiscoverySettings::File { path, .. } = &cluster.discovery else {
        return None;
    };
    fs::File::open(&path.path)
        .err()
        .map(|error| unreadable(path, &error))
}

fn unreadable(file: &NamedFile, error: &std::io::Error) -> Mistake {
    let path = file.path.display();
    file.place
        .wrong(format!("expected a readable file, found {path}: {error}"))
}

fn read(file: &NamedFile) -> Result<Vec<u8>, Mistake> {
    fs::read(&file.path).map_err(|error| unreadable(file, &error))
}

fn cluster_plan(
    cluster: &ClusterSettings,
    policies: &[(String, MakePolicy)],
) -> Result<ClusterPlan, Mistake> {
    let tls = match &cluster.tls {
        Some(tls) => Some(self::tls(tls, cluster.protocol.into())?),
        None => None,
    };
    let source_tls = match &cluster.discovery {
        DiscoverySettings::Etcd { etcd, .. } => etcd_tls(etcd)?,
        _ => None,
    };
    Ok(ClusterPlan {
        policy: policy(&cluster.balance, policies)?,
        tls,
        source_tls,
    })
}

fn etcd_tls(etcd: &EtcdSettings) -> Result<Option<Tls>, Mistake> {
    if !etcd.is_secured() {
        return Ok(None);
    }
    let default = TlsSettings::default();
    let settings = etcd.tls.as_deref().unwrap_or(&default);
    tls(settings, upstream::Protocol::Http1).map(Some)
}

fn policy(
    settings: &PolicySettings,
    policies: &[(String, MakePolicy)],
) -> Result<Arc<dyn Policy>, Mistake> {
    Ok(match settings {
        PolicySettings::RoundRobin => Arc::new(RoundRobin::new()),
        PolicySettings::WeightedRoundRobin => Arc::new(WeightedRoundRobin::new()),
        PolicySettings::Random => Arc::new(Random::new()),
        PolicySettings::WeightedRandom => Arc::new(WeightedRandom::new()),
        PolicySettings::LeastRequest { choices } => Arc::new(LeastRequest::new().choices(*choices)),
        PolicySettings::ResponseTime => Arc::new(ResponseTime::new()),
        PolicySettings::ReportedLoad => Arc::new(ReportedLoad::new()),
        PolicySettings::Affinity(settings) => affinity(settings),
        PolicySettings::Named {
            name,
            options,
            place,
            ..
        } => {
            let known = policies.iter().find(|(known, _)| known == name);
            let (_, make) = known.expect("settings name no policy that the reader was not given");
            make(options).map_err(|what| place.wrong(what))?
        }
    })
}

fn affinity(settings: &AffinitySettings) -> Arc<dyn Policy> {
    let policy: Arc<dyn Policy> = match settings.policy {
        AffinityPolicy::RingHash { points } => Arc::new(ring(RingHash::new(), points)),
        AffinityPolicy::Ketama { points } => Arc::new(ring(RingHash::ketama(), points)),
        AffinityPolicy::Maglev { table_size: None } => Arc::new(Maglev::new()),
        AffinityPolicy::Maglev {
            table_size: Some(size),
        } => {
            let maglev = Maglev::with_table_size(size);
            Arc::new(maglev.expect("the size was checked when it was read"))
        }
        AffinityPolicy::Rendezvous => Arc::new(Rendezvous::new()),
    };
    match settings.bounded_load {
        Some(factor) => Arc::new(Bounded::new(policy, factor)),
        None => policy,
    }
}

fn ring(ring: RingHash, points: Option<NonZeroU32>) -> RingHash {
    match points {
        Some(points) => ring.points(points),
        None => ring,
    }
}

fn webhook_tls(settings: &WebhookSettings) -> Result<Option<Tls>, Mistake> {
    let tls = || {
        trusting(
            settings.ca.as_ref(),
            &settings.place,
            upstream::Protocol::Http1,
        )
    };
    settings.is_https().then(tls).transpose()
}

/// TLS to whom this authority vouches for, or those of the operating system.
fn trusting(
    ca: Option<&NamedFile>,
    place: &Place,
    protocol: upstream::Protocol,
) -> Result<Tls, Mistake> {
    let Some(ca) = ca else {
        let connector = TlsConnector::new(protocol);
        return Ok(Tls {
            connector: connector.map_err(|error| place.wrong(error.to_string()))?,
            texts: Vec::new(),
        });
    };
    let pem = read(ca)?;
    let connector = TlsConnector::with_ca(&pem, protocol);
    Ok(Tls {
        connector: connector.map_err(|error| ca.place.wrong(error.to_string()))?,
        texts: vec![pem],
    })
}

fn tls(settings: &TlsSettings, protocol: upstream::Protocol) -> Result<Tls, Mistake> {
    let Tls {
        mut connector,
        mut texts,
    } = trusting(settings.ca.as_ref(), &settings.place, protocol)?;
    if let Some(identity) = &settings.identity {
        let (chain, key) = (read(&identity.cert)?, read(&identity.key)?);
        connector = connector
            .client_certificate(&chain, &key)
            .map_err(|error| match error.is_about_key() {
                true => identity.key.place.wrong(error.to_string()),
                false => identity.cert.place.wrong(error.to_string()),
            })?;
        texts.extend([chain, key]);
    }
    if let Some(name) = &settings.server_name {
        connector = connector
            .server_name(name)
            .map_err(|error| settings.place.wrong(error.to_string()))?;
    }
    Ok(Tls { connector, texts })
}

impl From<Protocol> for upstream::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1,
            Protocol::Http2 => Self::Http2,
        }
    }
}
