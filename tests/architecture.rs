//! What Cargo cannot say of the architecture, and the rules of the house, read from manifests and sources.
//!
//! Cargo holds the arrows between crates: what is not in a manifest cannot be named. [`MAY_USE`] holds which may be there. Refuses to
//! know Rust beyond lines: comments are taken out, test modules may do as they like.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Production lines of a file at most.
const LINES_MAX: usize = 500;
const MODULE_DOC_MAX: usize = 15;

/// Folder under src, and which of ours it may depend on. Below the line nothing that serves is linked.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("memory", &[]),
    ("core", &["memory"]),
    ("os", &["core"]),
    ("span", &[]),
    ("client", &["api", "core"]),
    ("cli", &["api", "client", "core"]),
    ("service", &["core", "os", "span"]),
    ("kek/aws", &["core", "os", "span"]),
    ("kek/local", &["core", "memory", "os"]),
    ("grpc", &["api", "core", "service", "span"]),
    ("transport", &["api", "core", "service"]),
    ("telemetry", &["core", "os", "service", "span"]),
    ("config", &["core", "service"]),
    (
        "daemon",
        &[
            "api",
            "cli",
            "client",
            "config",
            "core",
            "grpc",
            "kek/aws",
            "kek/local",
            "memory",
            "os",
            "service",
            "telemetry",
            "transport",
        ],
    ),
    ("judge", &["api", "client", "core", "os"]),
    ("etcd", &["api", "core", "os"]),
    ("drill", &["api", "client", "core", "etcd", "judge", "kek/local", "os"]),
    ("kmsctl", &["api", "cli", "client", "core", "drill", "etcd", "judge", "memory", "os"]),
];

/// `use super::super::x` in the file of module a::b names `x` at the root.
fn module_of(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').collect() }
}

/// The part that ships: without comments, and without `#[cfg(test)] mod … {` to the end and `#[cfg(test)] mod x;`.
fn production(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        if line.trim() == "#[cfg(test)]" {
            let next = rest.peek().map_or("", |l| l.trim());
            if next.contains("mod ") && next.ends_with('{') {
                break;
            }
            rest.next();
            continue;
        }
        lines.push(line);
    }
    lines
}

fn uncommented(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or("") }
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("")
}

/// The folders of ours that a manifest names under `[dependencies]`, by the table of paths in the workspace's manifest.
fn dependencies(manifest: &str, folders: &BTreeMap<String, String>) -> Vec<String> {
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().map(|line| line.split(['.', ' ', '=']).next().unwrap_or_default());
    names.filter_map(|name| folders.get(name).cloned()).collect()
}

/// Package name to folder under src.
fn folders() -> BTreeMap<String, String> {
    let workspace = fs::read_to_string(source_root().join("../Cargo.toml")).unwrap();
    let ours = workspace.lines().filter_map(|line| line.split_once(" = { path = \"src/"));
    ours.map(|(name, rest)| (name.to_owned(), rest.split('"').next().unwrap().to_owned())).collect()
}

fn source_root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("src")
}

/// Every source by its path under src.
fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&source_root(), &source_root(), &mut found);
    assert!(found.len() > 60, "only {} sources found", found.len());
    // Files that are test modules as a whole.
    let tests: Vec<String> = found
        .iter()
        .flat_map(|(file, text)| {
            let dir = if file.ends_with("mod.rs") || file.ends_with("lib.rs") {
                file.trim_end_matches("mod.rs").trim_end_matches("lib.rs").to_owned()
            } else {
                format!("{}/", file.trim_end_matches(".rs"))
            };
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            lines
                .windows(2)
                .filter(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with(';'))
                .map(|pair| format!("{dir}{}.rs", word(&pair[1]["mod ".len()..])))
                .collect::<Vec<_>>()
        })
        .collect();
    for test in &tests {
        assert!(found.remove(test).is_some(), "{test} is declared and not there");
    }
    found
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn crates_depend_on_those_that_they_may_and_on_no_other() {
    let folders = folders();
    let table: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    assert_eq!(folders.len(), MAY_USE.len(), "a crate has no place in the architecture: {:?}", folders.keys());
    for folder in folders.values() {
        let manifest = fs::read_to_string(source_root().join(folder).join("Cargo.toml")).unwrap();
        let may = table.get(folder.as_str()).unwrap_or_else(|| panic!("{folder} has no place in the architecture"));
        let wrong: Vec<String> =
            dependencies(&manifest, &folders).into_iter().filter(|to| !may.contains(&to.as_str())).collect();
        assert!(wrong.is_empty(), "{folder} → {wrong:?}");
    }
}

#[test]
fn the_reader_of_manifests_sees_a_wrong_arrow() {
    let folders = folders();
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nkube-kms-service.workspace = true\n\
                    kube-kms-kek-aws = { workspace = true, optional = true }\ntokio.workspace = true\n\n[dev-dependencies]\n\
                    kube-kms-grpc.workspace = true\n";
    assert_eq!(dependencies(manifest, &folders), ["service", "kek/aws"]);
}

/// Within the daemon: what runs does not know the command line, and what looks or renders does not know what runs.
#[test]
fn modules_of_the_daemon_point_one_way() {
    let mut wrong = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| file.starts_with("daemon/")) {
        let banned: &[&str] = match module_of(file).get(1).copied() {
            Some("process") => &["crate::cli", "crate::doctor", "crate::manifests"],
            Some("doctor" | "manifests") => &["crate::cli", "crate::process"],
            _ => &[],
        };
        for line in production(text).into_iter().map(uncommented) {
            if banned.iter().any(|path| line.contains(path)) {
                wrong.push(format!("{file}: {}", line.trim()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_module_is_called_by_a_word_that_says_nothing() {
    let banned = ["utils", "util", "common", "helpers", "helper", "types", "misc", "shared"];
    let wrong: Vec<String> =
        sources().into_keys().filter(|file| module_of(file).iter().any(|part| banned.contains(part))).collect();
    assert_none(&wrong);
}

#[test]
fn every_file_opens_with_a_short_module_doc() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
        if lines == 0 || lines > MODULE_DOC_MAX {
            wrong.push(format!("{file}: {lines} lines of module doc, 1 to {MODULE_DOC_MAX} are asked for"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_file_has_more_than_five_hundred_lines_of_production_code() {
    let long = sources().into_iter().map(|(file, text)| (file, production(&text).len()));
    let wrong: Vec<String> = long.filter(|(_, n)| *n > LINES_MAX).map(|(f, n)| format!("{f}: {n}")).collect();
    assert_none(&wrong);
}

#[test]
fn nothing_is_left_to_be_done() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if ["TODO", "FIXME", "XXX", "HACK"].iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn unsafe_is_in_the_memory_module_only() {
    let is_unsafe = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    let mut inside = 0;
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for line in text.lines().map(uncommented).filter(|line| is_unsafe(line)) {
            if file.starts_with("memory/") {
                inside += 1;
            } else {
                wrong.push(format!("{file}: {}", line.trim()));
            }
        }
    }
    assert_none(&wrong);
    assert!(inside > 0, "the search finds nothing, not even where unsafe is");
}

#[test]
fn the_proto_is_kube_apiservers_to_the_last_number() {
    let proto = fs::read_to_string(source_root().join("../proto/kms_v2.proto")).unwrap();
    let stated: Vec<String> = proto
        .lines()
        .map(|line| line.split("//").next().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty() && line != "}")
        .collect();
    // SPEC: k8s.io/kms apis/v2/api.proto, stable since Kubernetes 1.29. The order is of no importance, the numbers are.
    let expected = [
        "syntax = \"proto3\";",
        "package v2;",
        "service KeyManagementService {",
        "rpc Status(StatusRequest) returns (StatusResponse) {}",
        "rpc Decrypt(DecryptRequest) returns (DecryptResponse) {}",
        "rpc Encrypt(EncryptRequest) returns (EncryptResponse) {}",
        "message StatusRequest {}",
        "message StatusResponse {",
        "string version = 1;",
        "string healthz = 2;",
        "string key_id = 3;",
        "message DecryptRequest {",
        "bytes ciphertext = 1;",
        "string uid = 2;",
        "string key_id = 3;",
        "map<string, bytes> annotations = 4;",
        "message DecryptResponse {",
        "bytes plaintext = 1;",
        "message EncryptRequest {",
        "bytes plaintext = 1;",
        "string uid = 2;",
        "message EncryptResponse {",
        "bytes ciphertext = 1;",
        "string key_id = 2;",
        "map<string, bytes> annotations = 3;",
    ];
    assert_eq!(stated, expected);
}
