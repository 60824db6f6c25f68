//! How a command talks to people and programs: output, exit status, errors in three parts, the socket it is given.
//!
//! Shared by `kube-kms` and `kmsctl`. Secrets never come in by argument. Refuses to know what any command does.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod exit;
pub mod output;

use exit::{Exit, Failure};
use kms_v2_api::address::{Place, SocketAddress};
use kms_v2_client::kms::Target;
use std::process::ExitCode;

/// What every command line says of its exit status.
pub const EXIT_STATUS: &str = "Exit status: 0 done, 1 failed, 2 usage, 3 configuration, 4 unreachable, 5 refused, \
6 verification failed.";
/// What to give as `--socket`.
pub const SOCKET_HINT: &str = "give a path such as /run/kube-kms/kms.sock, or @NAME for an abstract socket";

/// Prints what clap says (help and version to stdout, mistakes to stderr) and gives the exit status that goes with it.
#[must_use]
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
    ExitCode::from(exit as u8)
}

/// The exit status of a command that ran; prints why it failed.
#[must_use]
pub fn ended(outcome: Result<Exit, Failure>) -> ExitCode {
    match outcome {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output::error(&failure.render());
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Where a plugin listens, from `--socket`.
///
/// # Errors
/// Usage, when it is not the address of a unix socket.
pub fn socket(text: &str) -> Result<(SocketAddress, Target), Failure> {
    let base = std::env::current_dir().unwrap_or_default();
    let address = SocketAddress::parse(text, &base).map_err(|e| {
        Failure::new(Exit::Usage, "--socket is not the address of a unix socket").because(&e).hint(SOCKET_HINT)
    })?;
    let target = target(&address);
    Ok((address, target))
}

/// The same place for a client.
#[must_use]
pub fn target(address: &SocketAddress) -> Target {
    match address.place() {
        Place::File(path) => Target::File(path.to_owned()),
        Place::Abstract(name) => Target::Abstract(name.to_owned()),
    }
}

/// A runtime for one command.
///
/// # Errors
/// When the operating system refuses what a runtime needs.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
        Failure::new(Exit::Failed, "the runtime cannot start")
            .because(&e)
            .hint("see the limits of this process: ulimit -a")
    })
}
