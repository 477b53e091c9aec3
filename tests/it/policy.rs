//! A policy of the application's own, named in the file.

use std::{path::Path, sync::Arc};

use tower_gateway::{
    config::{ConfigFile, Node},
    pick::{Candidate, Pick, Picker, Policy},
};

use crate::support::{Backend, Wire};

/// Always the endpoint with this id.
#[derive(Debug)]
struct Only(String);

impl Policy for Only {
    fn name(&self) -> &str {
        "only"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let wanted = |candidate: &Candidate| candidate.member.endpoint().id.as_str() == self.0;
        Box::new(OnlyPicker(candidates.iter().position(wanted)))
    }
}

#[derive(Debug)]
struct OnlyPicker(Option<usize>);

impl Picker for OnlyPicker {
    fn pick(&self, _: &Pick<'_>) -> Option<usize> {
        self.0
    }
}

fn file(path: &Path) -> ConfigFile {
    ConfigFile::new(path).policy("only", |options| match options {
        [option] if option.key == "id" => {
            Ok(Arc::new(Only(option.text.clone())) as Arc<dyn Policy>)
        }
        _ => Err(String::from("expected id and nothing else")),
    })
}

#[tokio::test]
async fn a_policy_of_the_application_is_named_in_the_file() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let text = |balance: &str| {
        format!(
            "node: {{ listen: \"127.0.0.1:0\" }}\n\
             clusters:\n  web:\n    discovery:\n      type: static\n      endpoints:\n\
             \x20       - {{ address: \"{}\", id: one }}\n        - {{ address: \"{}\", id: two }}\n\
             \x20   balance: {{ {balance} }}\n\
             routes: [ {{ match: {{}}, cluster: web }} ]\n",
            one.address, two.address
        )
    };

    std::fs::write(&path, text("type: only, id: two")).unwrap();
    let node = Node::start(file(&path)).await.unwrap();
    let mut client = Wire::connect(node.address()).await;
    for _ in 0..10 {
        let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!((one.heads().len(), two.heads().len()), (0, 10));

    std::fs::write(&path, text("type: only")).unwrap();
    let mistake = file(&path).load().unwrap_err().to_string();
    let expected = "gateway.yaml:9: clusters.web.balance: expected id and nothing else";
    assert!(mistake.ends_with(expected), "{mistake}");
}

/// The endpoint at the hash of the key; without one, none.
#[derive(Debug)]
struct ByHash;

impl Policy for ByHash {
    fn name(&self) -> &str {
        "by_hash"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(ByHashPicker(candidates.len()))
    }
}

#[derive(Debug)]
struct ByHashPicker(usize);

impl Picker for ByHashPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        Some((pick.hash? % self.0 as u64) as usize)
    }
}

#[tokio::test]
async fn a_policy_of_the_application_gets_the_hash_of_a_key() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\" }}\n\
         clusters:\n  web:\n    discovery:\n      type: static\n      endpoints:\n\
         \x20       - {{ address: \"{}\" }}\n        - {{ address: \"{}\" }}\n\
         \x20   balance: {{ type: by_hash, hash_key: \"header:x-user\", depth: 3 }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n",
        one.address, two.address
    );
    std::fs::write(&path, text).unwrap();
    let file = ConfigFile::new(&path).policy("by_hash", |options| {
        let keys: Vec<_> = options.iter().map(|option| option.key.as_str()).collect();
        assert_eq!(keys, ["depth"]);
        Ok(Arc::new(ByHash) as Arc<dyn Policy>)
    });
    let node = Node::start(file).await.unwrap();
    let mut client = Wire::connect(node.address()).await;
    for user in 0..20 {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\n\r\n");
        assert_eq!(client.ask(request).await.status(), 200);
    }
    let counts = (one.heads().len(), two.heads().len());
    assert!(counts.0 > 2 && counts.1 > 2, "{counts:?}");
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.status(), 503);
}
