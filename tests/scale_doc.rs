//! The table of docs/scale.md is what the simulation of `make fleet` says: played here for fewer nodes, against as much smaller
//! a quota, every line has the same figures within a tolerance.

#[allow(dead_code, reason = "`make fleet` uses the rest")]
#[path = "../benches/fleet/account.rs"]
mod account;
#[allow(dead_code, reason = "`make fleet` uses the rest")]
#[path = "../benches/fleet/node.rs"]
mod node;
#[allow(dead_code, reason = "`make fleet` uses the rest")]
#[path = "../benches/fleet/scenario.rs"]
mod scenario;
#[allow(dead_code, reason = "`make fleet` uses the rest")]
#[path = "../benches/fleet/table.rs"]
mod table;

/// One node in so many: 120 of them.
const SHARE: u64 = 250;

/// How far apart a figure may be: the quoted one is of many nodes and the found one of few. A peak of a few calls a second is
/// rough, and a second more or less is the same moment of an operator's day.
const TOLERANCE: [f64; 5] = [0.2, 1.5, 0.3, 0.35, 0.2];

fn agree(quoted: Option<f64>, found: Option<f64>, tolerance: f64) -> bool {
    match (quoted, found) {
        (Some(quoted), Some(found)) => (quoted - found).abs() <= (tolerance * quoted).max(2.5),
        (quoted, found) => quoted == found,
    }
}

#[test]
fn the_table_of_the_scale_page_is_what_the_simulation_says() {
    let page =
        std::fs::read_to_string(concat!(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), "/docs/scale.md")).unwrap();
    let at = page.find(table::HEAD).expect("the page has the table as it is printed");
    let mut quoted = page[at + table::HEAD.len()..].trim_start().lines();
    for (event, quota) in scenario::plan() {
        let found = table::line(&scenario::play(event, quota, SHARE));
        let line = quoted.next().unwrap();
        let ((name, figures), (found_name, found_figures)) =
            (table::parse(line).unwrap(), table::parse(&found).unwrap());
        assert_eq!(name, found_name);
        let agrees = figures.len() == found_figures.len()
            && figures.iter().zip(&found_figures).zip(TOLERANCE).all(|((quoted, found), t)| agree(*quoted, *found, t));
        assert!(agrees, "quoted: {line}\nfound:  {found}");
    }
    assert!(!quoted.next().is_some_and(|line| line.starts_with('|')), "the page has more lines than are simulated");
}

#[test]
fn the_same_nodes_do_the_same_again() {
    let event = scenario::Event::Restart { within: std::time::Duration::from_secs(1), sources: 3 };
    let once = table::line(&scenario::play(event, 10_000, 1000));
    assert_eq!(once, table::line(&scenario::play(event, 10_000, 1000)));
}
