//! The table of docs/scale.md: written by `make fleet`, read again by the test that holds it.

use super::scenario::Row;
use std::time::Duration;

pub const HEAD: &str = "| what happens to all 30,000 nodes | quota a second | KMS calls | in the busiest second | over the quota | last node well after | last API server done after |\n|---|---|---|---|---|---|---|";

/// Two digits: what is after them differs from share to share.
fn rounded(number: u64) -> u64 {
    let unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number.saturating_add(unit / 2) / unit * unit
}

/// With commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |d| format!("{:.1} s", d.as_secs_f64()))
}

pub fn line(row: &Row) -> String {
    let count = |number| grouped(rounded(number));
    format!(
        "| {} | {} | {} | {} | {} | {} | {} |",
        row.what,
        grouped(row.quota),
        count(row.calls),
        count(row.busiest),
        count(row.throttled),
        seconds(row.nodes),
        seconds(row.read),
    )
}

/// The cells of a line: its name with the quota, and the figures; `None` for none.
pub fn parse(line: &str) -> Option<(String, Vec<Option<f64>>)> {
    let mut cells = line.trim_matches('|').split('|').map(str::trim);
    let name = format!("{} | {}", cells.next()?, cells.next()?);
    let figure = |cell: &str| cell.trim_end_matches(" s").replace(',', "").parse().ok();
    Some((name, cells.map(figure).collect()))
}
