//! The table, the targets as ratios of the same run, and the JSON.
//!
//! A figure is the median of its rounds; a ratio is the median of the rounds' ratios, because the two ends of it were
//! measured one after the other, and rounds are minutes apart.

use super::measure::{Load, Place, Sample};
use serde_json::{Value, json};
use std::time::Duration;

/// Every sample of every round: `(server, load, place, round)`.
#[derive(Default)]
pub struct Results {
    pub rows: Vec<Row>,
}

pub struct Row {
    pub server: &'static str,
    pub load: Load,
    pub place: Place,
    pub samples: Vec<Sample>,
}

type Figure = fn(&Sample) -> f64;

const FIGURES: [(&str, Figure); 7] = [
    ("p50 µs", |s| s.p50),
    ("p99 µs", |s| s.p99),
    ("p99.9 µs", |s| s.p999),
    ("req/s", |s| s.per_second),
    ("CPU µs/req", |s| s.cpu),
    ("switches/req", |s| s.switches),
    ("RSS MiB", |s| s.rss),
];

/// What a ratio must be.
struct Target {
    what: String,
    load: Load,
    place: Place,
    figure: &'static str,
    against: Against,
    bound: f64,
    at_least: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Against {
    Bare,
    GrpcGo,
    Raw,
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn figure(name: &str) -> Figure {
    FIGURES.iter().find(|(n, _)| *n == name).unwrap().1
}

pub fn load_name(load: Load) -> String {
    match load {
        Load::InFlight(n) => format!("{n} in flight"),
        Load::Every(t) => format!("one per {} ms", t.as_millis()),
    }
}

fn place_name(place: Place) -> &'static str {
    if place == Place::OneCore { "one core" } else { "two cores" }
}

fn targets() -> Vec<Target> {
    let mut all = Vec::new();
    let mut add = |load, figure, against, bound, at_least| {
        all.push(Target { what: String::new(), load, place: Place::OneCore, figure, against, bound, at_least });
    };
    let quiet = [Load::InFlight(1), Load::Every(Duration::from_millis(1)), Load::Every(Duration::from_millis(20))];
    for load in quiet {
        add(load, "p50 µs", Against::Bare, 1.15, false);
        add(load, "p99 µs", Against::Bare, 1.25, false);
    }
    for (depth, bound) in [(1, 1.3), (8, 1.3), (64, 1.5)] {
        add(Load::InFlight(depth), "CPU µs/req", Against::Bare, bound, false);
    }
    for load in quiet {
        add(load, "p50 µs", Against::GrpcGo, 0.75, false);
        add(load, "p99 µs", Against::GrpcGo, 0.45, false);
        add(load, "CPU µs/req", Against::GrpcGo, 0.6, false);
    }
    for depth in [8, 64] {
        add(Load::InFlight(depth), "CPU µs/req", Against::GrpcGo, 0.6, false);
    }
    add(Load::InFlight(64), "req/s", Against::GrpcGo, 1.5, true);
    add(Load::InFlight(64), "RSS MiB", Against::GrpcGo, 0.6, false);
    add(Load::InFlight(1), "p50 µs", Against::Raw, 1.9, false);
    add(Load::InFlight(1), "p99 µs", Against::Raw, 1.9, false);
    for target in &mut all {
        let against = match target.against {
            Against::Bare => "bare tonic",
            Against::GrpcGo => "best grpc-go",
            Against::Raw => "raw ping-pong",
        };
        target.what = format!("{} against {against}, {}", target.figure, load_name(target.load));
    }
    all
}

impl Results {
    pub fn add(&mut self, server: &'static str, load: Load, place: Place, sample: Sample) {
        match self.rows.iter_mut().find(|r| r.server == server && r.load == load && r.place == place) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { server, load, place, samples: vec![sample] }),
        }
    }

    fn row(&self, server: &str, load: Load, place: Place) -> Option<&Row> {
        self.rows.iter().find(|r| r.server == server && r.load == load && r.place == place)
    }

    /// Median over the rounds of kube-kms's figure divided by the other's; `None` when the other was not measured.
    fn ratio(&self, target: &Target) -> Option<(f64, &'static str)> {
        let of = figure(target.figure);
        let ours = self.row("kube-kms", target.load, target.place)?;
        let against = |server: &'static str| {
            let theirs = self.row(server, target.load, target.place)?;
            let ratios = ours.samples.iter().zip(&theirs.samples).map(|(a, b)| of(a) / of(b)).collect();
            Some((median(ratios), server))
        };
        match target.against {
            Against::Bare => against("bare tonic"),
            Against::Raw => against("raw ping-pong"),
            // Whichever of the two makes us look worse.
            Against::GrpcGo => {
                let both = ["grpc-go", "grpc-go workers"].into_iter().filter_map(against);
                if target.at_least {
                    both.min_by(|a, b| a.0.total_cmp(&b.0))
                } else {
                    both.max_by(|a, b| a.0.total_cmp(&b.0))
                }
            }
        }
    }

    /// Prints everything and returns it as JSON.
    pub fn print(&self, machine: Value) -> Value {
        for place in [Place::OneCore, Place::TwoCores] {
            println!("\n{}, median of rounds", place_name(place));
            print!("{:<15} {:<16}", "load", "server");
            FIGURES.iter().for_each(|(name, _)| print!(" {name:>12}"));
            println!();
            for row in self.rows.iter().filter(|r| r.place == place) {
                print!("{:<15} {:<16}", load_name(row.load), row.server);
                for (name, of) in FIGURES {
                    let value = median(row.samples.iter().map(of).collect());
                    let digits = usize::from(name != "req/s") * if name == "switches/req" { 2 } else { 1 };
                    print!(" {value:>12.digits$}");
                }
                println!();
            }
        }
        println!("\ntargets, kube-kms against the others on one core, median of the rounds' ratios");
        let mut judged = Vec::new();
        for target in targets() {
            let Some((ratio, server)) = self.ratio(&target) else {
                println!("{:<46} not measured", target.what);
                continue;
            };
            let met = if target.at_least { ratio >= target.bound } else { ratio <= target.bound };
            let sign = if target.at_least { "≥" } else { "≤" };
            let verdict = if met { "met" } else { "MISSED" };
            println!("{:<46} {ratio:>6.2} {sign} {:.2}  {verdict:<6}  ({server})", target.what, target.bound);
            judged.push(json!({"target": target.what, "ratio": ratio, "bound": target.bound, "against": server,
                "atLeast": target.at_least, "met": met}));
        }
        judged.extend(self.absolute());
        let missed = judged.iter().filter(|t| t["met"] == json!(false)).count();
        println!("\n{} of {} targets met", judged.len() - missed, judged.len());
        json!({"machine": machine, "cells": self.cells(), "targets": judged})
    }

    /// p99 under 80 µs at depth 1, where the machine is quick enough for that to say something.
    fn absolute(&self) -> Option<Value> {
        let of = |server, get: Figure| {
            let row = self.row(server, Load::InFlight(1), Place::TwoCores)?;
            Some(median(row.samples.iter().map(get).collect()))
        };
        let (raw, p99) = (of("raw ping-pong", |s| s.p50)?, of("kube-kms", |s| s.p99)?);
        let what = "p99 µs, 1 in flight, two cores";
        if raw >= 45.0 {
            println!("{what:<46} not judged: the raw round trip takes {raw:.1} µs here");
            return None;
        }
        let met = p99 < 80.0;
        println!("{what:<46} {p99:>6.1} < 80    {}", if met { "met" } else { "MISSED" });
        Some(json!({"target": what, "value": p99, "bound": 80.0, "met": met}))
    }

    fn cells(&self) -> Vec<Value> {
        let cell = |row: &Row| {
            let rounds: Vec<Value> = row
                .samples
                .iter()
                .map(|s| {
                    json!({"p50Us": s.p50, "p99Us": s.p99, "p999Us": s.p999, "perSecond": s.per_second,
                        "cpuUs": s.cpu, "contextSwitches": s.switches, "rssMiB": s.rss, "calls": s.calls})
                })
                .collect();
            json!({"server": row.server, "load": load_name(row.load), "place": place_name(row.place), "rounds": rounds})
        };
        self.rows.iter().map(cell).collect()
    }
}
