//! The commands of docs/install.md and docs/upgrade.md are pasted as they stand, and the files they name are there.

use super::{deploy, rendered};
use std::path::Path;

fn page(name: &str) -> String {
    std::fs::read_to_string(deploy().join("../docs").join(name)).unwrap()
}

/// The arguments of every `kube-kms manifests` in a block of commands.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let blocks = joined.split("\n```").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("kube-kms manifests "));
    let until = |word: &&str| !["&&", ">", "#"].contains(word);
    lines.map(|line| line.split_whitespace().take_while(until).map(str::to_owned).collect()).collect()
}

#[test]
fn every_command_of_the_install_page_renders_something() {
    let all = commands(&page("install.md"));
    assert!(all.len() >= 9, "{all:?}");
    for arguments in all {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert!(!rendered(&deploy().join("config/aws.yaml"), &arguments).is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_configuration_of_the_install_page_is_one() {
    let page = page("install.md");
    let yaml = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = kube_kms_config::parse(yaml).unwrap();
    assert_eq!(config.listen.mode, 0o660);
}

#[test]
fn every_local_link_of_the_pages_leads_somewhere() {
    for (folder, name) in [("docs", "install.md"), ("docs", "upgrade.md"), ("deploy", "README.md")] {
        let folder = deploy().join("..").join(folder);
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let path = link.split('#').next().unwrap();
            let local = !path.is_empty() && !path.starts_with("https://");
            assert!(!local || Path::new(&folder).join(path).exists(), "{name}: {link}");
        }
    }
}
