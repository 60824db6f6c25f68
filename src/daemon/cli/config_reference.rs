//! `kube-kms config-reference`: every key of the configuration, from the table that the parser uses.

use clap::{Args, ValueEnum};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output;
use kube_kms_config::{self as config, KEYS};
use serde::Serialize;

/// How it is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
    /// The table of docs/configuration.md, whole.
    Markdown,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kube-kms config-reference\n  kube-kms config-reference outage\n  \
kube-kms config-reference --output json | jq '.[] | select(.identity) | .key'")]
pub(super) struct Arguments {
    /// Only keys that have this in their path
    key: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Shape,
}

#[derive(Serialize)]
struct Row {
    key: &'static str,
    default: Option<&'static str>,
    takes: String,
    change: &'static str,
    identity: bool,
    does: &'static str,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.output == Shape::Markdown {
        output::raw(config::markdown().as_bytes());
        return Ok(Exit::Done);
    }
    let part = arguments.key.as_deref().unwrap_or_default().to_ascii_lowercase();
    let rows: Vec<Row> = KEYS
        .iter()
        .filter(|key| key.path.to_ascii_lowercase().contains(&part))
        .map(|key| Row {
            key: key.path,
            default: key.default,
            takes: key.accepts(),
            change: key.change.as_str(),
            identity: key.identity,
            does: key.does,
        })
        .collect();
    if rows.is_empty() {
        return Err(Failure::new(Exit::Usage, "no key of the configuration has that in its path")
            .cause(format!("{part:?} is in none of {} paths", KEYS.len()))
            .hint("`kube-kms config-reference` alone prints all of them"));
    }
    match arguments.output {
        Shape::Json => output::json(&rows),
        _ => rows.iter().for_each(print),
    }
    Ok(Exit::Done)
}

fn print(row: &Row) {
    output::line(row.key);
    output::line(format!("    {}", row.does));
    output::line(format!("    takes    {}", row.takes));
    if let Some(default) = row.default {
        output::line(format!("    default  {default}"));
    }
    output::line(format!("    change   {}", if row.change == "reload" { "by a reload" } else { "by a restart" }));
    if row.identity {
        output::line("    identity-bearing: equal on every control-plane node; a change is a rotation");
    }
}
