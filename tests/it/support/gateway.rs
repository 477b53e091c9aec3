//! A node from the text of its file.

use std::{net::SocketAddr, path::PathBuf};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tempfile::TempDir;
use tower_gateway::{
    admin::Admin,
    config::{ConfigFile, Node, Signals},
};

use super::{Wire, until, within};

/// A node at work over a file in a folder of its own.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Gone once it runs on its own.
    node: Option<Node>,
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A file with one cluster, `web`, of one endpoint, `one`; `cluster` and `route` are more keys of
/// theirs, such as `timeout: 1s`.
pub(crate) fn one_cluster(endpoint: SocketAddr, cluster: &str, route: &str) -> String {
    let node = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", drain: 5s }"#;
    let discovery =
        format!("{{ type: static, endpoints: [ {{ address: \"{endpoint}\", id: one }} ] }}");
    format!(
        "node: {node}\n\
         clusters: {{ web: {{ discovery: {discovery}, {cluster} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web, {route} }} ]\n"
    )
}

impl Gateway {
    /// A node from this text, once it is ready.
    pub(crate) async fn start(text: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), text).await
    }

    /// A node in a folder that holds further files.
    pub(crate) async fn start_in(folder: TempDir, text: &str) -> Self {
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, text).unwrap();
        let node = match Node::start(ConfigFile::new(path)).await {
            Ok(node) => node,
            Err(error) => panic!("{error}\n{text}"),
        };
        let address = node.address();
        let admin = node.admin_address().expect("tests have an admin address");
        until("readiness", async || get(admin, "/readyz").await.0 == 200).await;
        Self {
            node: Some(node),
            folder,
            address,
            admin,
        }
    }

    /// A node over one endpoint.
    pub(crate) async fn over(endpoint: SocketAddr) -> Self {
        Self::start(&one_cluster(endpoint, "", "")).await
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    /// Changes the file and has it read again.
    pub(crate) async fn reload(&mut self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
        let node = self.node.as_mut().expect("it does not run on its own");
        node.reload().await;
    }

    /// What the node tells of itself, also when it is gone.
    pub(crate) fn handle(&self) -> Admin {
        let node = self.node.as_ref().expect("it does not run yet");
        node.admin().clone()
    }

    pub(crate) fn heed_signals(&mut self) {
        self.heed(Signals::new());
    }

    pub(crate) fn heed(&mut self, signals: Signals) {
        let node = self.node.as_mut().expect("it does not run yet");
        node.heed(signals);
    }

    /// Lets the node follow its file and drain when it is asked to.
    pub(crate) fn run(&mut self) {
        let node = self.node.take().expect("it does not run yet");
        tokio::spawn(node.run());
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// A JSON page of the admin address.
    pub(crate) async fn json(&self, path: &str) -> Value {
        json(self.admin, path).await
    }

    /// An endpoint as `/clusters` shows it.
    pub(crate) async fn endpoint(&self, cluster: &str, id: &str) -> Value {
        let clusters = self.json("/clusters").await;
        let endpoints = clusters[cluster]["endpoints"].as_array().unwrap();
        let found = endpoints.iter().find(|endpoint| endpoint["id"] == id);
        found
            .unwrap_or_else(|| panic!("no endpoint {id}: {clusters}"))
            .clone()
    }

    /// Waits until no request is in flight at an endpoint of `web`.
    pub(crate) async fn settled(&self) -> Value {
        let settled = async || self.endpoint("web", "one").await["in_flight"] == 0;
        until("no request in flight", settled).await;
        self.endpoint("web", "one").await
    }
}

/// A client with a pool, for load.
pub(crate) fn http_client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A JSON page of an admin address.
pub(crate) async fn json(address: SocketAddr, path: &str) -> Value {
    let (status, text) = get(address, path).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The status and text of an answer, over a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = Request::get(format!("http://{address}{path}"));
    let request = request.body(Full::default()).unwrap();
    let response: Response<_> = within("an answer", http_client().request(request))
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = within("a body", response.into_body().collect()).await;
    let text = String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap();
    (status, text)
}
