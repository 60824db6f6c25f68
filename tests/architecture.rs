//! The folders are the architecture: the arrows of src/lib.rs and the rules of the house, read from the sources.
//!
//! Guarantees: a crate path in production code (`crate::x`, or `super::` up to the root) points where [`allowed`] says;
//! test modules may do as they like. Refuses to know Rust beyond that: the sources are lines of text here, with comments
//! taken out. The judge is tested on made-up sources first, so that it is known to be able to fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Production lines of a file at most.
const LINES_MAX: usize = 500;
const MODULE_DOC_MAX: usize = 15;
const ADAPTERS: [&str; 5] = ["grpc", "transport", "client", "telemetry", "config"];

/// Which top-level modules a top-level module may name besides itself.
fn allowed(from: &str) -> Option<Vec<&'static str>> {
    let all = vec![
        "api",
        "client",
        "config",
        "core",
        "daemon",
        "drill",
        "durable",
        "etcd",
        "grpc",
        "kek",
        "memory",
        "os",
        "service",
        "span",
        "telemetry",
        "transport",
    ];
    Some(match from {
        "memory" | "durable" | "api" | "lib" | "span" => vec![],
        "os" => vec!["core"],
        "core" => vec!["memory"],
        "service" => vec!["core", "durable", "memory", "span"],
        "grpc" | "client" => vec!["core", "service", "memory", "durable", "os", "api", "span"],
        "kek" | "transport" | "telemetry" | "config" => vec!["core", "service", "memory", "durable", "os", "span"],
        "etcd" => vec!["api", "core", "service", "memory", "durable", "os"],
        "daemon" | "drill" => all,
        "doctor" | "manifests" => vec!["config", "core", "transport"],
        "cli" => [all, vec!["cli", "doctor", "manifests"]].concat(),
        "main" => vec!["cli"],
        _ => return None,
    })
}

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

/// Every path into the crate: the segments from its root, as far as a line tells.
fn crate_paths(file: &str, text: &str) -> Vec<Vec<String>> {
    let module = module_of(file);
    let mut paths = Vec::new();
    for line in production(text).into_iter().map(uncommented) {
        for root in ["crate::", "kube_kms::"] {
            for (at, _) in line.match_indices(root) {
                let before = line[..at].chars().next_back();
                // A macro's `$crate`, a longer word, and the target of a log event are no paths.
                if before.is_some_and(|c| c.is_ascii_alphanumeric() || "_$\"".contains(c)) {
                    continue;
                }
                paths.push(segments(&line[at + root.len()..]));
            }
        }
        let mut at = 0;
        while let Some(found) = line[at..].find("super::") {
            let begin = at + found;
            let mut rest = &line[begin..];
            let mut ups = 0;
            while let Some(more) = rest.strip_prefix("super::") {
                (rest, ups) = (more, ups + 1);
            }
            at = line.len() - rest.len();
            if ups <= module.len() {
                let base = module[..module.len() - ups].iter().map(|s| (*s).to_owned());
                paths.push(base.chain(segments(rest)).collect());
            }
        }
    }
    paths
}

fn segments(rest: &str) -> Vec<String> {
    rest.split("::").map(word).take_while(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// What is wrong with the arrows of one file.
fn violations(file: &str, text: &str) -> Vec<String> {
    let module = module_of(file);
    let top = module.first().copied().unwrap_or("lib");
    let Some(may) = allowed(top) else { return vec![format!("{file}: {top} has no place in the architecture")] };
    let mut wrong = Vec::new();
    for path in crate_paths(file, text) {
        let Some(to) = path.first() else {
            wrong.push(format!("{file}: a path `crate::{{…}}` hides where it goes; one `use` for each module"));
            continue;
        };
        // `super::super::X` in the file of module a::b may name an item of lib.rs; there are none, so it is a module.
        if to != top && !may.contains(&to.as_str()) {
            wrong.push(format!("{file}: {top} → {to}"));
        }
        if top == "kek" && to == "kek" {
            let (ours, theirs) = (module.get(1).copied(), path.get(1).map(String::as_str));
            if ours.is_some() && theirs.is_some_and(|t| ["aws", "local"].contains(&t)) && ours != theirs {
                wrong.push(format!("{file}: one provider knows another: {}", path.join("::")));
            }
        }
    }
    wrong
}

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
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
            let dir = if file.ends_with("mod.rs") {
                file.trim_end_matches("mod.rs").to_owned()
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
fn the_judge_sees_every_kind_of_wrong_arrow() {
    for (file, text) in [
        ("core/x.rs", "use crate::service::plugin::Plugin;"),
        ("core/x.rs", "fn f() { crate::os::wall_clock(); }"),
        ("core/x.rs", "use super::super::grpc::server;"),
        ("core/mod.rs", "use super::grpc::server;"),
        ("memory/mod.rs", "use crate::core::limit;"),
        ("service/x.rs", "pub use crate::os::OsEntropy;"),
        ("grpc/server.rs", "use crate::telemetry::metrics;"),
        ("config/x.rs", "use crate::api::v2;"),
        ("kek/aws/mod.rs", "use crate::kek::local::LocalKek;"),
        ("kek/aws/client.rs", "use super::super::local::LocalKek;"),
        ("daemon/x.rs", "use crate::cli::exit;"),
        ("daemon/x.rs", "#[cfg(test)]\nuse crate::core::x;\nuse crate::cli::exit;"),
        ("core/x.rs", "use crate::{service, core};"),
        ("utils/mod.rs", ""),
    ] {
        assert_eq!(violations(file, text).len(), 1, "{file}: {text}: {:?}", violations(file, text));
    }
    for (file, text) in [
        ("core/x.rs", "use crate::memory::Locked;\nuse crate::core::limit;\nuse super::limit;"),
        (
            "core/x.rs",
            "//! See [`crate::service`].\n// crate::cli\n#[cfg(test)]\nmod tests {\n    use crate::os::X;\n}",
        ),
        ("core/x.rs", "target: \"kube_kms::daemon\""),
        ("kek/aws/client.rs", "use super::error::KmsError;\nuse crate::kek::aws::settings;"),
        ("kek/mod.rs", "pub mod local;"),
        ("cli/x.rs", "use crate::daemon;\nuse crate::cli::exit;\nuse crate::kek::local::operation;"),
        ("main.rs", "kube_kms::cli::main()"),
    ] {
        assert_none(&violations(file, text));
    }
}

#[test]
fn the_arrows_point_one_way() {
    let wrong: Vec<String> = sources().iter().flat_map(|(file, text)| violations(file, text)).collect();
    assert_none(&wrong);
    for adapter in ADAPTERS {
        assert!(sources().keys().any(|file| file.starts_with(&format!("{adapter}/"))), "{adapter} is gone");
    }
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
