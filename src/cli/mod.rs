//! The command line: parses it, runs one command, turns the outcome into an exit status.
//!
//! One file per command. Secrets never come in by argument: only by file or by the environment of a KMS's own SDK.

pub mod bench;
pub mod check;
pub mod config_reference;
pub mod conformance;
mod drill;
pub mod etcd_access;
pub mod exit;
pub mod inspect;
pub mod keyring;
pub mod manifests;
pub mod output;
pub mod probe;
pub mod scan;
pub mod serve;

use crate::client::kms::Target;
use crate::transport::address::{Place, SocketAddress};
use clap::{CommandFactory, Parser, Subcommand};
use exit::{Exit, Failure};
use std::process::ExitCode;

/// A Kubernetes KMS v2 encryption plugin: seals DEK seeds in process, under a KEK that stays in your KMS.
#[derive(Debug, Parser)]
#[command(name = "kube-kms", version, max_term_width = 120, after_help = EXIT_STATUS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done, 1 failed, 2 usage, 3 configuration, 4 unreachable, 5 refused, \
6 verification failed.";

const CONFIGURATION_HINT: &str =
    "docs/configuration.md has every key; `kube-kms check` tries a configuration without serving";
const SOCKET_HINT: &str = "give a path such as /run/kube-kms/kms.sock, or @NAME for an abstract socket";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve Status, Encrypt and Decrypt on a unix socket
    Serve(serve::Arguments),
    /// Look for everything that keeps kube-kms from serving: configuration, host, socket, KEK, EncryptionConfiguration
    Check(check::Arguments),
    /// Send one Status, Encrypt and Decrypt to a plugin, as kube-apiserver would
    Probe(probe::Arguments),
    /// Check a plugin against the conformance list, item by item, through its socket
    Conformance(conformance::Arguments),
    /// Put load on a plugin and print latencies, failures and what each call costs
    Bench(bench::Arguments),
    /// Say which keys are in use in etcd, and whether the old ones may be retired
    Scan(scan::Arguments),
    /// Decode one stored value, field by field, and say whether it opens
    Inspect(inspect::Arguments),
    /// Walk a whole key rotation, and test every claim of it
    Drill(drill::Arguments),
    /// Make and change a keyring file for the `local` KEK
    Keyring(keyring::Arguments),
    /// Print what runs the plugin beside kube-apiserver: pods, units, EncryptionConfiguration, policies
    Manifests(manifests::Arguments),
    /// Print every key of the configuration: default, bounds, what it does
    ConfigReference(config_reference::Arguments),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  kube-kms completions bash > /etc/bash_completion.d/kube-kms")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap prints help and version to stdout and its errors to stderr.
            let _ = error.print();
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            return ExitCode::from(exit as u8);
        }
    };
    match run(arguments.command) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output::error(&failure.render());
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Scan(arguments) => scan::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Drill(arguments) => drill::run(&arguments),
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
fn configuration_failure(error: &crate::config::ConfigError) -> Failure {
    let count = error.problems().len();
    let plural = if count == 1 { "" } else { "s" };
    let failure = Failure::new(Exit::Configuration, format!("the configuration has {count} mistake{plural}"));
    error.to_string().lines().fold(failure, Failure::cause).hint(CONFIGURATION_HINT)
}

/// Where a plugin listens, from `--socket`.
fn socket(text: &str) -> Result<(SocketAddress, Target), Failure> {
    let base = std::env::current_dir().unwrap_or_default();
    let address = SocketAddress::parse(text, &base).map_err(|e| {
        Failure::new(Exit::Usage, "--socket is not the address of a unix socket").because(&e).hint(SOCKET_HINT)
    })?;
    let target = target(&address);
    Ok((address, target))
}

/// The same place for a client.
fn target(address: &SocketAddress) -> Target {
    match address.place() {
        Place::File(path) => Target::File(path.to_owned()),
        Place::Abstract(name) => Target::Abstract(name.to_owned()),
    }
}

/// A runtime for one command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
        Failure::new(Exit::Failed, "the runtime cannot start")
            .because(&e)
            .hint("see the limits of this process: ulimit -a")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
