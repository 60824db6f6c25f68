//! `kube-kms keyring`: makes and changes the keyring file of the `local` KEK. A running plugin notices by itself.

mod known;

use clap::{Args, Subcommand};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_kek_local::KeyringError;
use kube_kms_kek_local::operation;
use kube_kms_os::{OsEntropy, wall_clock};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    after_help = "A rotation:\n  kube-kms keyring add --file F                 # on one node, then copy F to all nodes\n  \
kube-kms keyring promote --file F VERSION     # then copy F to all nodes again\n  \
kube-kms keyring retire --file F VERSION      # when nothing in etcd or in a backup needs it any more\n\n\
A file that was lost is restored from its backup, never made anew: `init` refuses where this node \
knows that there was a keyring, and `promote` refuses to go back to a version that plugins have left (--config)."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    operation: Operation,
}

#[derive(Debug, Args)]
struct File {
    /// The keyring file
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_KEYRING")]
    file: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Operation {
    /// Make a keyring with one key version; never overwrites, and never in the place of one that was lost
    Init {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        node: known::Node,
    },
    /// Show the versions and the key_id of each; no keys
    List {
        #[command(flatten)]
        file: File,
        /// The `epoch` of the configuration, which goes into every key_id
        #[arg(long, default_value_t = 0)]
        epoch: u64,
    },
    /// Add a key version, without using it yet
    Add(File),
    /// Wrap with this version from now on; the one before still unwraps
    Promote {
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        node: known::Node,
        /// `epoch` has been raised on every node, so going back to an older version is a new key_id
        #[arg(long)]
        epoch_raised: bool,
    },
    /// Stop a version from unwrapping; its key is kept in the file
    Retire(Change),
    /// Undo `retire`
    Reinstate(Change),
}

#[derive(Debug, Args)]
struct Change {
    #[command(flatten)]
    file: File,
    /// The version's uuid, or the first hex digits of it
    version: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    done: &'static str,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyring: Option<String>,
    version: String,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    kek: String,
    versions: Vec<Listed>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    version: String,
    created: String,
    state: &'static str,
    current: bool,
    key_id: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.operation {
        Operation::Init { file, node } => {
            node.may_init(&file.file)?;
            let made = operation::init(&file.file, wall_clock(), &OsEntropy).map_err(|e| failure("made", &e))?;
            let text = format!(
                "made {} with one version, {}\nback it up: whoever loses this file loses everything sealed under it",
                file.file.display(),
                made.version
            );
            done(file, "init", Some(made.keyring.to_string()), made.version.to_string(), text);
        }
        Operation::List { file, epoch } => list(file, *epoch)?,
        Operation::Add(file) => {
            let version =
                operation::add(&file.file, wall_clock(), &OsEntropy).map_err(|e| failure("changed", &e))?.to_string();
            let text = format!(
                "added version {version}; nothing uses it yet\nwhen every node has this file: kube-kms keyring promote --file {} {version}",
                file.file.display()
            );
            done(file, "add", None, version, text);
        }
        Operation::Promote { change, node, epoch_raised } => {
            node.may_promote(&change.file.file, &change.version, *epoch_raised)?;
            let promoted =
                operation::promote(&change.file.file, &change.version).map_err(|e| failure("changed", &e))?;
            let text = format!(
                "version {} wraps from now on; {} still unwraps\nrunning plugins report the new key_id within two probes",
                promoted.to, promoted.from
            );
            done(&change.file, "promote", None, promoted.to.to_string(), text);
        }
        Operation::Retire(change) => {
            let version =
                operation::retire(&change.file.file, &change.version).map_err(|e| failure("changed", &e))?.to_string();
            let text = format!("version {version} does not unwrap any more; its key is kept, `reinstate` undoes this");
            done(&change.file, "retire", None, version, text);
        }
        Operation::Reinstate(change) => {
            let version = operation::reinstate(&change.file.file, &change.version)
                .map_err(|e| failure("changed", &e))?
                .to_string();
            let text = format!("version {version} unwraps again");
            done(&change.file, "reinstate", None, version, text);
        }
    }
    Ok(Exit::Done)
}

fn list(file: &File, epoch: u64) -> Result<(), Failure> {
    let listing = operation::list(&file.file, epoch).map_err(|e| failure("read", &e))?;
    let versions = listing
        .versions
        .iter()
        .map(|v| Listed {
            version: v.version.to_string(),
            created: humantime::format_rfc3339_seconds(v.created).to_string(),
            state: v.state.as_str(),
            current: v.current,
            key_id: v.key_id.as_str().to_owned(),
        })
        .collect();
    let listing = Listing { kek: listing.kek.to_string(), versions };
    match file.output {
        Format::Json => output::json(&listing),
        Format::Text => {
            output::line(format!("KEK {}", listing.kek));
            output::line(format!("  {:36}  {:20}  {:8}  key_id", "version", "created", "state"));
            for v in &listing.versions {
                let mark = if v.current { "*" } else { " " };
                output::line(format!("{mark} {:36}  {:20}  {:8}  {}", v.version, v.created, v.state, v.key_id));
            }
            output::line("* wraps; all that are enabled unwrap");
        }
    }
    Ok(())
}

fn done(file: &File, what: &'static str, keyring: Option<String>, version: String, text: String) {
    let done = Done { done: what, file: file.file.display().to_string(), keyring, version, text };
    match file.output {
        Format::Json => output::json(&done),
        Format::Text => output::line(&done.text),
    }
}

fn failure(what: &str, error: &KeyringError) -> Failure {
    let exit = match error.exit_status() {
        2 => Exit::Usage,
        4 => Exit::Unreachable,
        5 => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("the keyring was not {what}: {}", error.path().display()))
        .because(error.problem())
        .hint(error.hint())
}
