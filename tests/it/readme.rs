//! What the README shows is true.

use std::path::Path;

use tower_gateway::config::Settings;

#[test]
fn the_configuration_file_of_the_readme_is_valid() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```yaml\n").unwrap();
    let (file, _) = rest.split_once("```").unwrap();
    let settings = Settings::parse(file, Path::new("README.md"), &[]).unwrap();
    assert_eq!((settings.clusters.len(), settings.routes.len()), (2, 2));
}
