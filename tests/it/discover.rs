//! Endpoints from a file on a real file system: the time is real too, and bounded.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tower_gateway::{
    config::{ConfigFile, Node},
    discover::{Discovery, File, ServiceDiscovery as _, ServiceWatch, Snapshot},
};

use crate::support::{Backend, get};

/// A change of the file must be followed within this time.
const FOLLOWED: Duration = Duration::from_secs(2);

fn told(snapshot: &Snapshot) -> String {
    let ports = snapshot
        .endpoints
        .iter()
        .map(|e| e.address.port().to_string());
    format!(
        "{} {}",
        snapshot.state.as_str(),
        ports.collect::<Vec<_>>().join(",")
    )
}

/// Waits until this is published.
async fn until(watch: &mut ServiceWatch, expected: &str) -> Arc<Snapshot> {
    let seen = async {
        let mut snapshot = watch.current();
        while told(&snapshot) != expected {
            snapshot = watch.changed().await;
        }
        snapshot
    };
    let seen = tokio::time::timeout(FOLLOWED, seen).await;
    seen.unwrap_or_else(|_| panic!("expected {expected}, found {:?}", watch.current()))
}

/// Checks that what is published does not change for as long as a change would need.
async fn still(watch: &mut ServiceWatch) {
    // `changed` may return what was published before; a second time it is a change.
    let before = watch.current();
    let changed = async {
        loop {
            let now = watch.changed().await;
            if told(&now) != told(&before) {
                return now;
            }
        }
    };
    let changed = tokio::time::timeout(FOLLOWED, changed).await;
    assert!(
        changed.is_err(),
        "{:?} became {:?}",
        told(&before),
        changed.map(|s| told(&s))
    );
}

fn list(ports: &[u16]) -> String {
    ports
        .iter()
        .map(|port| format!("- address: \"127.0.0.1:{port}\"\n"))
        .collect()
}

fn rename_into_place(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}

fn start(text: &str) -> (tempfile::TempDir, PathBuf, ServiceWatch) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.yaml");
    fs::write(&path, text).unwrap();
    let watch = Discovery::new(File::new(&path)).watch(&"users".into());
    (folder, path, watch)
}

#[tokio::test]
async fn a_file_that_is_renamed_into_place_or_written_in_place_is_followed() {
    let (_folder, path, mut watch) = start(&list(&[1, 2]));
    until(&mut watch, "live 1,2").await;
    rename_into_place(&path, &list(&[1, 2, 3]));
    until(&mut watch, "live 1,2,3").await;
    fs::write(&path, list(&[3, 4, 5])).unwrap();
    until(&mut watch, "live 3,4,5").await;
    // JSON is YAML.
    rename_into_place(&path, r#"[{"address": "127.0.0.1:6", "weight": 7}]"#);
    let snapshot = until(&mut watch, "live 6").await;
    assert_eq!(snapshot.endpoints[0].weight, 7);
    assert_eq!(watch.stats().errors, 0);
}

#[cfg(unix)]
#[tokio::test]
async fn a_symbolic_link_that_is_switched_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("1"), list(&[1])).unwrap();
    fs::write(at("2"), list(&[2])).unwrap();
    std::os::unix::fs::symlink("1", at("endpoints.yaml")).unwrap();
    let mut watch = Discovery::new(File::new(at("endpoints.yaml"))).watch(&"users".into());
    until(&mut watch, "live 1").await;
    std::os::unix::fs::symlink("2", at("link")).unwrap();
    fs::rename(at("link"), at("endpoints.yaml")).unwrap();
    until(&mut watch, "live 2").await;
}

#[tokio::test]
async fn a_half_written_file_is_never_taken() {
    let (_folder, path, mut watch) = start(&list(&[1, 2, 3]));
    until(&mut watch, "live 1,2,3").await;
    let versions = watch.current().version;
    let mut file = fs::File::create(&path).unwrap();
    // Each line leaves a list that can be read; a slow writer pauses after it.
    for line in list(&[4, 5, 6, 7, 8]).lines() {
        writeln!(file, "{line}").unwrap();
        file.sync_all().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(["live 1,2,3", "live 4,5,6,7,8"].contains(&&*told(&watch.current())));
    }
    let snapshot = until(&mut watch, "live 4,5,6,7,8").await;
    assert_eq!(snapshot.version, versions + 1);
}

#[tokio::test]
async fn a_garbled_file_keeps_the_last_list_and_says_where() {
    let (_folder, path, mut watch) = start(&list(&[1, 2]));
    until(&mut watch, "live 1,2").await;
    fs::write(&path, "- address: \"127.0.0.1:3\"\nusers: [\n").unwrap();
    let snapshot = until(&mut watch, "stale 1,2").await;
    let reason = snapshot.reason.as_deref().unwrap();
    assert!(reason.contains("endpoints.yaml: line 2"), "{reason}");
    fs::write(&path, "endpoints: []\n").unwrap();
    still(&mut watch).await;
    let reason = watch.current().reason.clone().unwrap();
    assert!(reason.contains("expected a list"), "{reason}");
    rename_into_place(&path, &list(&[1, 2]));
    until(&mut watch, "live 1,2").await;
    assert_eq!(watch.current().version, 1);
}

#[tokio::test]
async fn a_missing_file_keeps_the_last_list_until_it_is_back() {
    let (_folder, path, mut watch) = start(&list(&[1, 2]));
    until(&mut watch, "live 1,2").await;
    fs::remove_file(&path).unwrap();
    let snapshot = until(&mut watch, "stale 1,2").await;
    assert!(snapshot.reason.as_deref().unwrap().contains("No such file"));
    fs::write(&path, list(&[2, 3])).unwrap();
    until(&mut watch, "live 2,3").await;
}

#[tokio::test]
async fn an_empty_list_keeps_the_last_one_unless_it_is_allowed() {
    let (_folder, path, mut watch) = start(&list(&[1, 2]));
    let allowing = Discovery::new(File::new(&path).allow_empty(true));
    let mut allowing = allowing.watch(&"users".into());
    until(&mut watch, "live 1,2").await;
    until(&mut allowing, "live 1,2").await;
    fs::write(&path, "[]").unwrap();
    until(&mut watch, "stale 1,2").await;
    until(&mut allowing, "live ").await;
    // An empty file is no list, allowed or not.
    fs::write(&path, list(&[1])).unwrap();
    until(&mut allowing, "live 1").await;
    fs::write(&path, "").unwrap();
    until(&mut allowing, "stale 1").await;
}

#[tokio::test]
async fn bad_entries_are_refused_and_named() {
    let text = format!("{}- address: nowhere\n", list(&[1, 1]));
    let (_folder, path, mut watch) = start(&text);
    let snapshot = until(&mut watch, "live 1").await;
    let refused: Vec<_> = snapshot.refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].starts_with("line 2: 127.0.0.1:1: "),
        "{refused:?}"
    );
    assert!(refused[1].starts_with("line 3: nowhere: "), "{refused:?}");
    fs::write(&path, list(&[1])).unwrap();
    still(&mut watch).await;
    assert!(watch.current().refused.is_empty());
    assert_eq!(watch.current().version, 1);
}

#[tokio::test]
async fn a_change_of_the_time_alone_is_no_change() {
    let (_folder, path, mut watch) = start(&list(&[1, 2]));
    until(&mut watch, "live 1,2").await;
    fs::write(&path, list(&[2, 1])).unwrap();
    still(&mut watch).await;
    assert_eq!(watch.stats().updates, 1);
}

#[cfg(feature = "conformance")]
mod conformance {
    use std::{fs, path::PathBuf, sync::Arc, time::Duration};

    use futures_util::future::{BoxFuture, FutureExt as _};
    use tower_gateway::{
        Endpoint,
        discover::{
            DiscoveryBackend, File,
            conformance::{self, Able, Change, Fixture},
        },
    };

    struct Yaml {
        folder: tempfile::TempDir,
        broken: bool,
    }

    impl Yaml {
        fn path(&self) -> PathBuf {
            self.folder.path().join("endpoints.yaml")
        }

        fn away(&self) -> PathBuf {
            self.folder.path().join("away")
        }

        fn write(&self, text: &str) {
            let path = if self.broken {
                self.away()
            } else {
                self.path()
            };
            fs::write(path, text).unwrap();
        }
    }

    fn entry(endpoint: &Endpoint) -> String {
        let metadata = endpoint
            .metadata
            .iter()
            .map(|(key, value)| format!("{key}: {value}"));
        let zone = endpoint.zone.iter().map(|zone| format!(", zone: {zone}"));
        format!(
            "- {{ id: \"{}\", address: \"{}\", weight: {}, priority: {}, draining: {}, metadata: {{ {} }}{} }}\n",
            endpoint.id,
            endpoint.address,
            endpoint.weight,
            endpoint.priority,
            endpoint.draining,
            metadata.collect::<Vec<_>>().join(", "),
            zone.collect::<String>(),
        )
    }

    fn yaml(endpoints: &[Endpoint]) -> String {
        if endpoints.is_empty() {
            return "[]\n".to_owned();
        }
        endpoints.iter().map(entry).collect()
    }

    impl Fixture for Yaml {
        fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
            self.folder = tempfile::tempdir().unwrap();
            self.broken = false;
            self.write(&yaml(&endpoints));
            let file = File::new(self.path()).interval(Duration::from_millis(50));
            async { Arc::new(file) as Arc<dyn DiscoveryBackend> }.boxed()
        }

        fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
            match change {
                Change::List(endpoints) => self.write(&yaml(&endpoints)),
                Change::Garble => self.write("users: [\n"),
                // A file is out of reach when it is not there.
                Change::Break => {
                    fs::rename(self.path(), self.away()).unwrap();
                    self.broken = true;
                }
                Change::Repair => {
                    fs::rename(self.away(), self.path()).unwrap();
                    self.broken = false;
                }
                _ => return async { Able::Cannot }.boxed(),
            }
            async { Able::Done }.boxed()
        }
    }

    #[tokio::test]
    async fn a_file_keeps_the_rules_that_it_can_try() {
        let folder = tempfile::tempdir().unwrap();
        let mut fixture = Yaml {
            folder,
            broken: false,
        };
        let report = conformance::run(&mut fixture).await;
        report.assert();
        assert_eq!(report.skipped().count(), 6, "{report}");
    }
}

/// A list that was written just now must hold still before it is read.
#[tokio::test]
async fn who_asks_as_soon_as_a_node_listens_finds_the_endpoints() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let list = format!("- {{ address: \"{}\" }}\n", backend.address);
    fs::write(folder.path().join("endpoints.yaml"), list).unwrap();
    let text = "\
node: { listen: \"127.0.0.1:0\" }
clusters: { web: { discovery: { type: file, path: endpoints.yaml } } }
routes: [ { match: {}, cluster: web } ]
";
    fs::write(&path, text).unwrap();
    let node = Node::start(ConfigFile::new(path)).await.unwrap();
    assert_eq!(get(node.address(), "/").await, (200, "ok".into()));
}

#[tokio::test]
async fn a_node_that_finds_no_list_answers_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    fs::write(folder.path().join("endpoints.yaml"), "no list").unwrap();
    let text = "\
node: { listen: \"127.0.0.1:0\" }
clusters: { web: { discovery: { type: file, path: endpoints.yaml } } }
routes: [ { match: {}, cluster: web } ]
";
    fs::write(&path, text).unwrap();
    let node = Node::start(ConfigFile::new(path)).await.unwrap();
    assert_eq!(get(node.address(), "/").await.0, 503);
}
