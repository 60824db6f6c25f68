//! The percentile curve of a load as SVG: latency over the share of calls, both on logarithmic axes.
//!
//! Guarantees: one self-contained file without scripts and fonts of its own, readable on a light and on a dark page (its
//! colours follow `prefers-color-scheme`); nothing but numbers and our own words is in it.

use crate::load::tally::{Line, Tally};
use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
/// The curve ends at 99.999 %: one in 10^5.
const DECADES: f64 = 5.0;
const STEPS: u32 = 200;
const MARKS: [(f64, &str); 7] = [
    (0.0, "0"),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (0.99999, "99.999 %"),
];
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.t{font-size:15px}.g{stroke:#ccc}\
.c{fill:none;stroke-width:2}.p{fill:#fff}\
.Status{stroke:#1b7f4d}.Encrypt{stroke:#1f5fbf}.Decrypt{stroke:#b3501b}\
@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}.p{fill:#16181c}\
.Status{stroke:#5fd39a}.Encrypt{stroke:#7fb2ff}.Decrypt{stroke:#ff9d66}}";

/// Draws it.
pub(super) fn draw(tally: &Tally, title: &str) -> String {
    let (low, high) = decades(tally);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>Latency by percentile</title><style>{STYLE}</style>\n\
         <rect class=\"p\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"t\" x=\"{LEFT}\" y=\"26\">{}</text>\n",
        escaped(title)
    );
    // Writing to a String cannot fail.
    for decade in low..=high {
        let y = y_of(f64::from(decade), low, high);
        let _ = writeln!(
            svg,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            time(decade)
        );
    }
    for (share, label) in MARKS {
        let x = x_of(share);
        let _ = writeln!(
            svg,
            "<line class=\"g\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 20.0
        );
    }
    let mut above = f64::INFINITY;
    for (rpc, line) in by_height(tally) {
        let mut points = String::new();
        let mut y = 0.0;
        for step in 0..=STEPS {
            let share = 1.0 - 10_f64.powf(-DECADES * f64::from(step) / f64::from(STEPS));
            y = y_of(micros(line, share).log10(), low, high);
            let _ = write!(points, "{:.1},{y:.1} ", x_of(share));
        }
        let _ = writeln!(svg, "<polyline class=\"c {rpc}\" points=\"{}\"/>", points.trim_end());
        // Curves that end together have their names above each other.
        let label = (y + 4.0).min(above - 16.0);
        above = label;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{label:.1}\">{rpc}</text>", WIDTH - RIGHT + 8.0);
    }
    svg.push_str("</svg>\n");
    svg
}

/// From the lowest curve at its right end to the highest.
fn by_height(tally: &Tally) -> Vec<(String, &Line)> {
    let mut lines: Vec<_> =
        tally.lines().filter(|(_, l)| l.served() > 0).map(|(rpc, line)| (rpc.to_string(), line)).collect();
    lines.sort_by(|(_, a), (_, b)| micros(a, 1.0).total_cmp(&micros(b, 1.0)));
    lines
}

fn micros(line: &Line, share: f64) -> f64 {
    (line.quantile(share).as_secs_f64() * 1e6).max(0.1)
}

/// Powers of ten, in µs, between which all curves are.
fn decades(tally: &Tally) -> (i16, i16) {
    let all = || tally.lines().filter(|(_, line)| line.served() > 0).map(|(_, line)| line);
    let lowest = all().map(|line| micros(line, 0.0)).fold(f64::INFINITY, f64::min);
    let highest = all().map(|line| micros(line, 1.0)).fold(0.1, f64::max);
    let below = (-1..=7).rev().find(|d| 10_f64.powi(i32::from(*d)) <= lowest).unwrap_or(-1);
    let above = (-1..=8).find(|d| 10_f64.powi(i32::from(*d)) >= highest).unwrap_or(8);
    (below, above.max(below.saturating_add(1)))
}

fn x_of(share: f64) -> f64 {
    let decade = -(1.0 - share).max(10_f64.powf(-DECADES)).log10();
    LEFT + (WIDTH - LEFT - RIGHT) * decade / DECADES
}

fn y_of(decade: f64, low: i16, high: i16) -> f64 {
    let share = (decade - f64::from(low)) / (f64::from(high) - f64::from(low));
    (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - TOP) * share.clamp(0.0, 1.0)
}

fn time(decade: i16) -> String {
    match decade {
        ..=-1 => "0.1 µs".to_owned(),
        0..=2 => format!("{} µs", 10_i32.pow(decade.unsigned_abs().into())),
        3..=5 => format!("{} ms", 10_i32.pow(decade.saturating_sub(3).unsigned_abs().into())),
        _ => format!("{} s", 10_i32.pow(decade.saturating_sub(6).unsigned_abs().into())),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
