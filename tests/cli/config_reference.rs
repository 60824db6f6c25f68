//! `config-reference` prints what docs/configuration.md has, and only what was asked for.

use crate::support::site::Site;
use crate::support::transcript::run;

#[test]
fn the_reference_of_the_command_and_of_the_page_are_one() {
    let site = Site::local();
    let page =
        std::fs::read_to_string(concat!(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), "/docs/configuration.md"))
            .unwrap();
    let table = run(&site, &["config-reference", "--output", "markdown"]).out;
    assert!(table.lines().count() > 25 && page.contains(&table));
    let json = run(&site, &["config-reference", "--output", "json"]).json();
    let rows = json.as_array().unwrap();
    assert_eq!(rows.len(), table.lines().count() - 2);
    let identity: Vec<&str> =
        rows.iter().filter(|r| r["identity"] == true).map(|r| r["key"].as_str().unwrap()).collect();
    assert_eq!(identity, ["kek.aws.key", "kek.aws.context", "kek.local.keyring", "kek.local.context", "epoch"]);
}

#[test]
fn a_part_of_the_path_is_enough_and_an_unknown_one_is_said() {
    let site = Site::local();
    run(&site, &["config-reference", "MAXage"]).printed(
        "dek.maxAge
    age at which a data key is replaced, in the background
    takes    duration, 1m to 365d
    default  24h
    change   by a reload
",
    );
    run(&site, &["config-reference", "nothing"]).failed_with(2, &["error: no key of the configuration", "hint: "]);
}
