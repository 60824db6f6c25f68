//! The commands of `kube-kms`: parses the command line, runs one command, turns the outcome into an exit status.
//!
//! One file per command. Secrets never come in by argument: only by file or by the environment of a KMS's own SDK.

pub mod check;
pub mod config_reference;
pub mod keyring;
pub mod manifests;
pub mod probe;
pub mod serve;

use clap::{CommandFactory, Parser, Subcommand};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::{EXIT_STATUS, ended, output, usage};
use std::process::ExitCode;

/// A Kubernetes KMS v2 encryption plugin: seals DEK seeds in process, under a KEK that stays in your KMS.
#[derive(Debug, Parser)]
#[command(name = "kube-kms", version, max_term_width = 120, after_help = EXIT_STATUS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const CONFIGURATION_HINT: &str =
    "docs/configuration.md has every key; `kube-kms check` tries a configuration without serving";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve Status, Encrypt and Decrypt on a unix socket
    Serve(serve::Arguments),
    /// Look for everything that keeps kube-kms from serving: configuration, host, socket, KEK, EncryptionConfiguration
    Check(check::Arguments),
    /// Send one Status, Encrypt and Decrypt to a plugin, as kube-apiserver would
    Probe(probe::Arguments),
    /// Make and change a keyring file for the `local` KEK
    Keyring(keyring::Arguments),
    /// Print what runs the plugin beside kube-apiserver: pods, units, EncryptionConfiguration, policies
    Manifests(Box<manifests::Arguments>),
    /// Print every key of the configuration: default, bounds, what it does
    ConfigReference(config_reference::Arguments),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  kube-kms completions bash > /etc/bash_completion.d/kube-kms")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Commands that need no data key, and so are those of another program.
const OF_KMSCTL: &[&str] = &["scan", "inspect", "drill", "conformance", "bench"];

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(command) = std::env::args().nth(1).filter(|word| OF_KMSCTL.contains(&word.as_str())) {
        return ended(Err(Failure::new(Exit::Usage, format!("`kube-kms {command}` is now `kmsctl {command}`"))
            .hint("kmsctl takes the same arguments; it is installed beside kube-kms")));
    }
    match Arguments::try_parse() {
        Ok(arguments) => ended(run(arguments.command)),
        Err(error) => usage(&error),
    }
}

fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Keyring(arguments) => keyring::run(&arguments),
        Command::Manifests(arguments) => manifests::run(&arguments),
        Command::ConfigReference(arguments) => config_reference::run(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "kube-kms", &mut script);
            output::raw(&script);
            Ok(Exit::Done)
        }
    }
}

/// Every mistake of a configuration file as one error.
fn configuration_failure(error: &kube_kms_config::ConfigError) -> Failure {
    let count = error.problems().len();
    let plural = if count == 1 { "" } else { "s" };
    let failure = Failure::new(Exit::Configuration, format!("the configuration has {count} mistake{plural}"));
    error.to_string().lines().fold(failure, Failure::cause).hint(CONFIGURATION_HINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
