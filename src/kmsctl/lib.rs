//! `kmsctl`: the operator's tool for KMS v2 plugins. It holds no data key and serves nothing.
//!
//! One file per command. What needs a KEK asks a plugin through its socket, or starts one. Installed as `kubectl-kms` it is
//! `kubectl kms …`.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod bench;
mod conformance;
mod drill;
mod etcd_access;
mod inspect;
mod load;
mod plugin;
mod scan;

use clap::{CommandFactory, Parser, Subcommand};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::{EXIT_STATUS, ended, output, usage};
use std::path::Path;
use std::process::ExitCode;

/// Look into KMS v2 plugins and what they have sealed: which keys are in use, does a plugin conform, does a rotation hold.
#[derive(Debug, Parser)]
#[command(name = "kmsctl", version, max_term_width = 120, after_help = EXIT_STATUS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say which keys are in use in etcd, and whether the old ones may be retired
    Scan(scan::Arguments),
    /// Decode one stored value, field by field, and say whether it opens
    Inspect(inspect::Arguments),
    /// Walk a whole key rotation, and test every claim of it
    Drill(drill::Arguments),
    /// Check a plugin against the conformance list, item by item, through its socket
    Conformance(conformance::Arguments),
    /// Put load on a plugin and print latencies, failures and what each call costs
    Bench(bench::Arguments),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  kmsctl completions bash > /etc/bash_completion.d/kmsctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Commands of the daemon that people may type here.
const OF_THE_DAEMON: &[&str] = &["serve", "check", "probe", "keyring", "manifests", "config-reference"];

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let name = name_of(std::env::args_os().next().as_deref().map(Path::new));
    if let Some(command) = std::env::args().nth(1).filter(|word| OF_THE_DAEMON.contains(&word.as_str())) {
        return ended(Err(Failure::new(Exit::Usage, format!("`{command}` is a command of the plugin itself"))
            .hint(format!("kube-kms {command} …"))));
    }
    match Arguments::command().name(name).bin_name(name).try_get_matches() {
        Ok(matches) => match <Arguments as clap::FromArgMatches>::from_arg_matches(&matches) {
            Ok(arguments) => ended(run(arguments.command, name)),
            Err(error) => usage(&error),
        },
        Err(error) => usage(&error),
    }
}

/// What it was called as: kubectl runs a plugin by the name `kubectl-kms`.
fn name_of(program: Option<&Path>) -> &'static str {
    match program.and_then(Path::file_name) {
        Some(name) if name == "kubectl-kms" => "kubectl kms",
        _ => "kmsctl",
    }
}

fn run(command: Command, name: &'static str) -> Result<Exit, Failure> {
    match command {
        Command::Scan(arguments) => scan::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Drill(arguments) => drill::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), name.replace(' ', "-"), &mut script);
            output::raw(&script);
            Ok(Exit::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn called_by_kubectl_it_is_kubectl_kms() {
        assert_eq!(name_of(Some(Path::new("/usr/local/bin/kubectl-kms"))), "kubectl kms");
        assert_eq!(name_of(Some(Path::new("./kmsctl"))), "kmsctl");
        assert_eq!(name_of(None), "kmsctl");
    }
}
