//! Stores that need no server.

use std::time::Duration;

use tower_gateway::store::{ConfigStore, Expected, Files, conformance};

#[tokio::test]
async fn a_folder_is_a_store_of_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path().join("made")).interval(Duration::from_millis(20));
    conformance::config_store(&files).await;
    let text = std::fs::read_to_string(folder.path().join("made/app")).unwrap();
    assert_eq!(text, "2");
    for key in ["", "../app", "a/b", ".hidden"] {
        let put = files.put(key, "x".into(), Expected::Any).await;
        let error = put.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("the name of a file"), "{source}");
    }
}
