//! The flags and variables with which etcdctl reaches etcd, for every command that reads it.
//!
//! Guarantees: a password comes by variable or by file and never by argument; every failure says what to do. Refuses to
//! know what is read. SPEC: etcdctl(1), "ETCDCTL_" and the flag's name in capitals.

use clap::Args;
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_etcd::access::{Access, AccessError, Tls, User};
use kube_kms_etcd::client::{EtcdClient, EtcdError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

const KUBEADM: &str = "on kubeadm: --cacert /etc/kubernetes/pki/etcd/ca.crt --cert \
/etc/kubernetes/pki/apiserver-etcd-client.crt --key /etc/kubernetes/pki/apiserver-etcd-client.key";

#[derive(Debug, Args)]
#[command(next_help_heading = "etcd, as etcdctl takes it")]
pub(super) struct EtcdArguments {
    /// Members of etcd; the next one is asked when one does not answer
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ETCDCTL_ENDPOINTS",
        default_value = "127.0.0.1:2379",
        value_delimiter = ','
    )]
    endpoints: Vec<String>,
    /// Certificate authorities of the members, PEM
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CERT")]
    cert: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long, value_name = "FILE", env = "ETCDCTL_KEY")]
    key: Option<PathBuf>,
    /// Name in the members' certificates, when it is not that of their address
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// User of etcd's own authentication; its password is in ETCDCTL_PASSWORD or in --password-file
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// How long the making of a connection may take
    #[arg(long, value_name = "TIME", env = "ETCDCTL_DIAL_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration)]
    dial_timeout: Duration,
}

impl EtcdArguments {
    pub(super) async fn connect(&self) -> Result<EtcdClient, Failure> {
        let access = self.access()?;
        let addresses = access.addresses();
        EtcdClient::connect(access)
            .await
            .map_err(|error| failure(&format!("etcd at {addresses} cannot be read"), &error))
    }

    fn access(&self) -> Result<Access, Failure> {
        let tls = Tls {
            ca: named(&self.cacert).map(read).transpose()?.map(|pem| pem.to_vec()),
            identity: match (named(&self.cert), named(&self.key)) {
                (Some(cert), Some(key)) => Some((read(cert)?.to_vec(), read(key)?)),
                (None, None) => None,
                _ => {
                    return Err(Failure::new(Exit::Usage, "a client certificate needs its key")
                        .cause("one of --cert and --key is given without the other")
                        .hint(KUBEADM));
                }
            },
            server_name: self.server_name.clone(),
        };
        Access::parse(&self.endpoints, &tls, self.user()?, self.dial_timeout).map_err(|error| {
            let hint = match error {
                AccessError::NoEndpoint | AccessError::Address(_) => "for example --endpoints https://127.0.0.1:2379",
                AccessError::NoCa(_) => KUBEADM,
                AccessError::Tls(_) => "--cacert, --cert and --key are PEM files: -----BEGIN …",
            };
            Failure::new(Exit::Usage, "etcd cannot be reached as it is configured").because(&error).hint(hint)
        })
    }

    fn user(&self) -> Result<Option<User>, Failure> {
        if self.user.as_ref().is_some_and(|user| user.contains(':')) {
            return Err(Failure::new(Exit::Usage, "a password is not taken as an argument")
                .cause("every process of this host can read it there")
                .hint("give the name alone, and the password in ETCDCTL_PASSWORD or with --password-file"));
        }
        // SPEC: etcdctl takes NAME or NAME:PASSWORD from this variable.
        let variable = self.user.clone().map(Zeroizing::new).or_else(|| environment("ETCDCTL_USER"));
        let Some(variable) = variable else { return Ok(None) };
        let (name, inline) = match variable.split_once(':') {
            Some((name, password)) => (name.to_owned(), Some(Zeroizing::new(password.to_owned()))),
            None => (variable.to_string(), None),
        };
        let file = match &self.password_file {
            Some(path) => {
                let text = read(path)?;
                let text = std::str::from_utf8(&text).map_err(|e| {
                    Failure::new(Exit::Configuration, format!("{} is not text", path.display()))
                        .because(&e)
                        .hint("the file holds the password and nothing else")
                })?;
                Some(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            None => None,
        };
        let password = file.or(inline).or_else(|| environment("ETCDCTL_PASSWORD")).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("the user {name:?} has no password"))
                .cause("neither --password-file nor ETCDCTL_PASSWORD is there")
                .hint("put it into a file that only you can read: --password-file FILE")
        })?;
        Ok(Some(User { name, password }))
    }
}

/// SECURITY: secrets by variable are read here and not by clap, which would take them as arguments too.
#[expect(clippy::disallowed_methods, reason = "a flag of the command line in another form, and never an argument")]
fn environment(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(Zeroizing::new)
}

/// A variable that is set to nothing is not set, as etcdctl has it.
fn named(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    std::fs::read(path).map(Zeroizing::new).map_err(|e| {
        Failure::new(Exit::Configuration, format!("{} cannot be read", path.display()))
            .because(&e)
            .hint("is the path right, and may this user read it? kubeadm's etcd certificates are for root")
    })
}

/// An error of etcd as that of a command.
pub(super) fn failure(what: &str, error: &EtcdError) -> Failure {
    let text = error.to_string();
    let tls = ["certificate", "tls", "TLS", "alert"].iter().any(|word| text.contains(word));
    let (exit, hint) = match error {
        EtcdError::Unreachable(_) | EtcdError::Passing(_) if tls => (Exit::Unreachable, KUBEADM),
        EtcdError::Unreachable(_) | EtcdError::Passing(_) => (
            Exit::Unreachable,
            "is etcd running there, and does it want TLS? then give --cacert, --cert and --key, and https:// in --endpoints",
        ),
        EtcdError::Refused(_) | EtcdError::TokenLost(_) => (
            Exit::Refused,
            "etcd's own authentication is on: --user and ETCDCTL_PASSWORD, of a user who may read the whole prefix",
        ),
        EtcdError::Compacted => {
            (Exit::Failed, "etcd is compacted again and again while it is read: is something compacting in a loop?")
        }
        EtcdError::TooLarge(_) => {
            (Exit::Failed, "one value is larger than this program takes; etcd's own limit is 1.5 MiB")
        }
        EtcdError::Failed(_) => (Exit::Failed, "see the log of etcd; versions 3.4 and newer are known to work"),
    };
    let failure = Failure::new(exit, what);
    match error {
        EtcdError::Unreachable(reasons) => reasons.iter().fold(failure, |f, reason| f.cause(reason.clone())),
        error => failure.because(error),
    }
    .hint(hint)
}
