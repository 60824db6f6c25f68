//! SECURITY.md names tests, and they are there.

use std::path::Path;

fn functions(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|l| {
                l.trim_start().trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ")
            });
            found.extend(names.filter_map(|l| l.split(['(', '<']).next()).map(str::to_owned));
        }
    }
}

/// What stands in backquotes and is a sentence: the name of a test.
fn named(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_name = |word: &&str| {
        word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    quoted.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut there = Vec::new();
    functions(&root.join("tests"), &mut there);
    functions(&root.join("src"), &mut there);
    let named = named(&std::fs::read_to_string(root.join("SECURITY.md")).unwrap());
    assert!(named.len() > 25, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(name)).collect();
    assert!(missing.is_empty(), "SECURITY.md names tests that are not there: {missing:?}");
}

#[test]
fn every_mitigation_of_security_md_names_a_test_or_says_that_there_is_none() {
    let text =
        std::fs::read_to_string(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| threat"));
    let bare: Vec<_> =
        rows.filter(|row| named(row).is_empty() && !row.contains("tests/") && !row.contains("no test")).collect();
    assert!(bare.is_empty(), "{bare:#?}");
}
