//! `kube-kms serve`.

use crate::process::{self, Options, Ready, StartError};
use clap::Args;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output;
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kube-kms serve --config /etc/kube-kms/config.yaml\n  \
kube-kms serve --config /etc/kube-kms/config.yaml --take-over   # replace a running instance without a gap\n\n\
SIGTERM ends it after running calls have ended; SIGHUP, or a changed file, reloads the configuration. With a terminal as \
stdin or stderr SIGHUP ends it too: it comes when the terminal is closed.")]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "KUBE_KMS_CONFIG", default_value = "/etc/kube-kms/config.yaml")]
    config: PathBuf,
    /// Take the socket of a running instance once this one has a data key; that one keeps its connections until stopped
    #[arg(long)]
    take_over: bool,
    /// When ready, print the key_id, an EncryptionConfiguration to paste, and what to try next
    #[arg(long)]
    print_setup: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let config = process::absolute(&arguments.config);
    let has_terminal = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
    let options = Options { config, take_over: arguments.take_over, has_terminal };
    let on_ready: Option<process::OnReady> = arguments.print_setup.then(|| Box::new(print_setup) as process::OnReady);
    process::run(&options, on_ready).map_err(|error| failure(&error))?;
    Ok(Exit::Done)
}

fn failure(error: &StartError) -> Failure {
    let what = "kube-kms cannot serve";
    match error {
        StartError::Config(problems) => super::configuration_failure(problems),
        StartError::Address(_) => Failure::new(Exit::Configuration, what).because(error).hint(kube_kms_cli::SOCKET_HINT),
        StartError::AllowUids(_) => Failure::new(Exit::Configuration, what)
            .because(error)
            .hint("name the user that runs kube-apiserver, mostly 0"),
        StartError::Kek { fault, .. } => {
            let failure = Failure::new(Exit::Configuration, what).cause(error.to_string()).cause(fault.to_string());
            let causes = fault.causes();
            let failure = if causes.is_empty() { failure } else { failure.cause(causes) };
            failure.hint("`kube-kms check` tries a configuration without serving")
        }
        StartError::Bind(e) => Failure::new(Exit::Refused, what).because(error).hint(e.hint()),
        StartError::Activation(_) => Failure::new(Exit::Configuration, what)
            .because(error)
            .hint("the socket unit needs exactly one ListenStream=, of a unix socket"),
        StartError::Sandbox(_) => Failure::new(Exit::Refused, what)
            .because(error)
            .hint("`auto` goes on without it and warns; landlock needs Linux 5.13 and lsm=landlock, seccomp CONFIG_SECCOMP_FILTER"),
        StartError::System(_) => {
            Failure::new(Exit::Failed, what).because(error).hint("see the limits of this process: ulimit -a")
        }
    }
}

fn print_setup(ready: &Ready) {
    let key_id = ready.snapshot.key_id.as_ref().map_or("", |k| k.as_str());
    let endpoint = &ready.endpoint;
    // As it was started: from a build directory the name alone would not be found.
    let program = std::env::current_exe().map_or_else(|_| "kube-kms".to_owned(), |path| path.display().to_string());
    output::line(format!(
        "kube-kms is serving.

  key_id    {key_id}
  endpoint  {endpoint}

EncryptionConfiguration for kube-apiserver (--encryption-provider-config):

  apiVersion: apiserver.config.k8s.io/v1
  kind: EncryptionConfiguration
  resources:
    - resources: [\"secrets\"]
      providers:
        - kms:
            apiVersion: v2
            name: kube-kms        # becomes part of every stored value; never rename it
            endpoint: {endpoint}
            timeout: 3s
        - identity: {{}}            # keep until everything has been rewritten, then remove

Try it:

  {program} probe --socket {endpoint}
"
    ));
}
