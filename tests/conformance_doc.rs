//! docs/conformance.md, the tests and `kmsctl conformance` say the same: every `item_NN_…` test stands in row NN, no row
//! names a test that is not there, and every row has the words and the reach that the command has.

use kms_v2_judge::conformance::ITEMS;
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
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    rust_files(&root.join("src"), &mut files);
    let in_code: BTreeSet<String> =
        files.iter().flat_map(|file| item_names(&std::fs::read_to_string(file).unwrap())).collect();
    assert!(in_code.len() > 50, "found only {} item tests", in_code.len());
    let page = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let in_page = item_names(&page);
    assert_eq!(in_code, in_page, "left: tests, right: docs/conformance.md");
    // Tests with another name, and lines of a macro that makes tests.
    let sources: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let is_name =
        |word: &&str| word.matches('_').count() >= 4 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    for name in page.split('`').skip(1).step_by(2).filter(is_name).filter(|name| !in_page.contains(*name)) {
        let is_there = ["fn {}(", "{}: "].iter().any(|form| sources.contains(&form.replace("{}", name)));
        assert!(is_there, "{name} is on the page and no test");
    }
    let open: Vec<&str> = page.lines().filter(|row| row.starts_with("| ") && row.contains("not yet")).collect();
    assert!(open.is_empty(), "{open:#?}");
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
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
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

#[test]
fn the_page_has_the_words_and_the_reach_of_the_command() {
    let page =
        std::fs::read_to_string(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("docs/conformance.md"))
            .unwrap();
    let rows: Vec<(String, String, String)> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            cells.get(1)?.parse::<u8>().ok()?;
            Some((cells[1].to_owned(), cells[2].to_owned(), cells[3].to_owned()))
        })
        .collect();
    let items: Vec<_> =
        ITEMS.iter().map(|i| (i.number.to_string(), i.title.to_owned(), i.reach.label().to_owned())).collect();
    assert_eq!(rows, items, "left: docs/conformance.md, right: src/judge/conformance/item.rs");
}

#[test]
fn the_page_on_compatibility_names_tests_that_are_there() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let page = std::fs::read_to_string(root.join("docs/compatibility.md")).unwrap();
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    let code: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let is_test =
        |word: &&str| word.matches('_').count() > 3 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 8, "found only {named:?}");
    for name in named {
        // A function, or a line of a macro that makes tests.
        let is_there = ["fn {}(", "{}: "].iter().any(|form| code.contains(&form.replace("{}", name)));
        assert!(is_there, "{name} is on the page and no test");
    }
}
