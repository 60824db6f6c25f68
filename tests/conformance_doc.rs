//! docs/conformance.md and the tests say the same: every `item_NN_…` test stands in row NN, and no row names a test that
//! is not there. Nor does docs/failure-modes.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Every `item_NN_…` or `items_NN_…` in a text.
fn item_names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| {
            let number = word.strip_prefix("item_").or_else(|| word.strip_prefix("items_"));
            number.is_some_and(|rest| rest.len() > 3 && rest.as_bytes()[..2].iter().all(u8::is_ascii_digit))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_item_test_stands_in_its_row_and_every_row_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    rust_files(&root.join("src"), &mut files);
    let in_code: BTreeSet<String> =
        files.iter().flat_map(|file| item_names(&std::fs::read_to_string(file).unwrap())).collect();
    assert!(in_code.len() > 50, "found only {} item tests", in_code.len());
    let page = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let in_page = item_names(&page);
    assert_eq!(in_code, in_page, "left: tests, right: docs/conformance.md");
    for row in page.lines().filter(|l| l.starts_with("| ")) {
        let number = row.split('|').nth(1).unwrap().trim().to_owned();
        for name in item_names(row) {
            assert!(name.contains(&format!("_{number:0>2}_")), "{name} stands in row {number}");
        }
    }
}

/// A failure without a test is a claim; a test that was renamed makes one of it.
#[test]
fn every_test_that_the_failure_modes_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    rust_files(&root.join("src"), &mut files);
    let sources: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let page = std::fs::read_to_string(root.join("docs/failure-modes.md")).unwrap();
    let is_name =
        |word: &&str| word.matches('_').count() >= 4 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let names: BTreeSet<&str> = page.split('`').filter(is_name).filter(|word| !word.starts_with("kube_kms_")).collect();
    assert!(names.len() > 50, "{}", names.len());
    let missing: Vec<_> = names
        .iter()
        // A function, or a line of a macro that makes tests.
        .filter(|name| !["fn {}(", "{}: "].iter().any(|form| sources.contains(&form.replace("{}", name))))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
