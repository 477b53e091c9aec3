//! The clusters and routes that stand in a store and are followed there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{
    error::LoadError,
    file::ConfigFile,
    plan::Plan,
    settings::{ConfigStoreSettings, Settings},
};
use crate::{
    error::BoxError,
    store::{Config, ConfigStore},
};

/// What every node reads under one key, on the ground of its own file.
#[derive(Debug)]
pub(super) struct Shared {
    /// The text, which means something on this ground.
    config: Config<String>,
    ground: Arc<ArcSwap<Ground>>,
    source: String,
}

/// What a node has in its own file.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) file: ConfigFile,
    pub(super) settings: Settings,
}

impl Ground {
    fn plan(&self, text: &str, source: &Path) -> Result<Plan, LoadError> {
        self.file.with_shared(text, source, &self.settings)
    }
}

impl Shared {
    /// Follows the key of the store.
    pub(super) fn follow(
        settings: &ConfigStoreSettings,
        store: Arc<dyn ConfigStore>,
        ground: Ground,
    ) -> Self {
        let source = settings.name();
        let copy = ground.settings.node.snapshot_dir.as_ref();
        let copy = copy.map(|folder| folder.join(file_name(&source)));
        let ground = Arc::new(ArcSwap::from_pointee(ground));
        let read = {
            let (ground, source) = (Arc::clone(&ground), PathBuf::from(&source));
            move |text: &[u8]| -> Result<String, BoxError> {
                let text = std::str::from_utf8(text)?.to_owned();
                ground.load().plan(&text, &source)?;
                Ok(text)
            }
        };
        let key = settings.key.as_str();
        let config = match copy {
            Some(copy) => Config::follow_with_copy(store, key, read, copy),
            None => Config::follow(store, key, read),
        };
        Self {
            config,
            ground,
            source,
        }
    }

    /// Where the key is.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn followed(&self) -> Followed {
        Followed {
            version: self.config.version().map_or(0, |version| version.get()),
            refused: self
                .config
                .refusal()
                .map(|refusal| refusal.reason.to_string()),
            refusals: self.config.refused(),
        }
    }

    /// Whether the store is followed now.
    pub(super) fn is_followed(&self) -> bool {
        self.config.outage().is_none()
    }

    /// What the last good text means; none before there was one.
    ///
    /// # Errors
    ///
    /// When a file that it names is gone since it was read.
    pub(super) fn plan(&self) -> Result<Option<Plan>, LoadError> {
        self.plan_on(&self.ground.load())
    }

    /// Goes over to other ground, where the last good text has another meaning.
    ///
    /// # Errors
    ///
    /// When it has none there; then the old ground stays.
    pub(super) fn reground(&self, ground: Ground) -> Result<Option<Plan>, LoadError> {
        let plan = self.plan_on(&ground)?;
        self.ground.store(Arc::new(ground));
        Ok(plan)
    }

    fn plan_on(&self, ground: &Ground) -> Result<Option<Plan>, LoadError> {
        let text = self.config.current();
        text.map(|text| ground.plan(&text, self.source.as_ref()))
            .transpose()
    }

    /// Until there was a good text.
    pub(super) fn configured(&self) -> impl Future<Output = ()> + Send + use<> {
        let config = self.config.clone();
        async move { config.ready().await }
    }

    /// Until there was a good text, or it is known why there is none.
    pub(super) async fn settled(&self) {
        let mut changes = self.config.changes();
        let is_settled = || {
            self.config.current().is_some()
                || self.config.refusal().is_some()
                || self.config.outage().is_some()
        };
        while !is_settled() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Becomes ready with each new good text, and each refusal.
    pub(super) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.config.changes()
    }
}

/// What there is to say of it.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) version: u64,
    pub(super) refused: Option<String>,
    pub(super) refusals: u64,
}

/// A name that any file system takes.
fn file_name(source: &str) -> String {
    let fits = |character: char| match character.is_ascii_alphanumeric() || character == '-' {
        true => character,
        false => '_',
    };
    let name: String = source.chars().map(fits).collect();
    format!("config-{name}.yaml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_the_name_of_a_file() {
        assert_eq!(
            file_name("etcd:/gateway/config"),
            "config-etcd__gateway_config.yaml"
        );
    }
}
