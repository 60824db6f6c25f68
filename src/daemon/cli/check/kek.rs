//! The KEKs of a configuration, tried: one wrap and one unwrap at the one that writes, one wrap at each recovery KEK.

use crate::cli::CONFIGURATION_HINT;
use crate::doctor::finding::{Finding, Findings};
use crate::process::{StartError, keks};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_config::{Config, KekConfig};
use kube_kms_core::fault::{Class, Fault};
use kube_kms_core::port::{Entropy, Kek, KekCall, Notice};
use kube_kms_os::{MonotonicClock, OsEntropy, Stopwatch};
use kube_kms_service::observer::Unobserved;
use kube_kms_service::prepare::{Candidate, prepare};
use kube_kms_service::recovery::wrap_under;
use kube_kms_service::state_file::StateFile;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecoveryReport {
    pub(super) number: usize,
    /// The KEK, when it wrapped and unwrapped.
    pub(super) kek: Option<String>,
    /// Why not.
    pub(super) problem: Option<String>,
}

/// What was found at the KEKs.
pub(super) struct Tried {
    pub(super) candidate: Candidate,
    pub(super) millis: u64,
    pub(super) recovery: Vec<RecoveryReport>,
    notices: Vec<Notice>,
}

pub(super) async fn try_all(config: &Config) -> Result<Tried, Failure> {
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let before = StateFile::new(&config.state_dir).peek().ok().and_then(|remembered| remembered.under);
    let keks = keks::connect(config, &entropy, before.as_ref()).await.map_err(|error| {
        let mut failure = match &error {
            StartError::Kek { fault, .. } => Failure::of_fault(error.to_string(), fault),
            _ => Failure::new(Exit::Configuration, error.to_string()),
        };
        // Whatever its class: nothing has been asked yet, so it is the configuration's fault.
        failure.exit = Exit::Configuration;
        failure.hint(CONFIGURATION_HINT)
    })?;
    let clock = MonotonicClock::new();
    let watch = Stopwatch::start();
    let timeout = config.settings.probe_timeout;
    let call = KekCall { timeout, uid: None };
    let candidate = match prepare(keks.write(), &config.settings, &clock, &*entropy, &Unobserved).await {
        Ok(candidate) => candidate,
        Err(fault) => {
            let failure = Failure::of_fault("the KEK cannot wrap and unwrap a data key", &fault);
            return Err(explained(failure, &fault, &*keks.write().kek, &call).await.hint(advice(&fault)));
        }
    };
    let millis = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX);
    let notices = keks.write().kek.notices(&call).await.unwrap_or_else(|fault| {
        vec![Notice { what: format!("the KMS did not say more about the key: {fault}"), remedy: advice(&fault) }]
    });
    let mut recovery = Vec::new();
    for (number, entry) in (1..).zip(keks.recovery()) {
        let (kek, problem) = match wrap_under(entry, candidate.bytes(), timeout, &clock, &Unobserved).await {
            Ok(wrap) => (Some(wrap.kek.to_string()), None),
            Err(fault) => (None, Some(format!("{fault} {}", fault.causes()).trim_end().to_owned())),
        };
        recovery.push(RecoveryReport { number, kek, problem });
    }
    Ok(Tried { candidate, millis, recovery, notices })
}

/// A refusal may have its reason in what the provider can tell besides: credentials are well, and the clock is not.
async fn explained(failure: Failure, fault: &Fault, kek: &dyn Kek, call: &KekCall) -> Failure {
    if fault.class() != Class::KekDenied {
        return failure;
    }
    let notices = kek.notices(call).await.unwrap_or_default();
    notices.iter().fold(failure, |failure, n| failure.cause(format!("also found: {}; remedy: {}", n.what, n.remedy)))
}

fn advice(fault: &Fault) -> &'static str {
    use kube_kms_core::fault::Reason::{
        CredentialsRejected, KekDisabled, KekFileRefused, KekGone, KekPendingDeletion, KeyStateUnknown,
        KeyStoreUnavailable, KeyringReplaced, KmsAnswerUnusable, KmsThrottled, PolicyDenied,
    };
    match fault.reason() {
        PolicyDenied => "for AWS the role needs kms:Encrypt and kms:Decrypt on the key, by IAM policy or key policy",
        CredentialsRejected => "see what credentials the provider finds; for AWS `aws sts get-caller-identity` tells",
        KekDisabled => "enable the key, or configure another one",
        KekPendingDeletion => "cancel the deletion now: when it happens, everything under this key is lost for good",
        KekGone => "see whether the key, alias, region and account are the ones you mean",
        KekFileRefused | KeyringReplaced => "the cause says what to do with the keyring file",
        KeyStoreUnavailable => {
            "the cause has the words of AWS; see the key store, its proxy and its key manager, or ask their owner"
        }
        KeyStateUnknown => "grant kms:DescribeKey, which tells the state of the key",
        KmsAnswerUnusable => {
            "see who answers at the endpoint: a proxy, a portal or an emulator in the place of the KMS"
        }
        KmsThrottled => "the KMS is asked too often, by this or by another client; try again later",
        _ => "see whether this host reaches the KMS, and kek.*.endpoint and region",
    }
}

/// What serving would change, by what this node remembers, and what else is to be known of the KEKs.
pub(super) fn findings(config: &Config, tried: &Tried) -> Vec<Finding> {
    let mut found = Findings::about("kek");
    for notice in &tried.notices {
        found.warning(notice.what.as_str(), notice.remedy);
    }
    for lost in tried.recovery.iter().filter(|r| r.kek.is_none()) {
        found.warning(
            format!("recovery KEK {} would not wrap data keys; serving goes on without it", lost.number),
            "mend it: until then a loss of the primary KEK is a loss of data",
        );
    }
    aliases(config, &tried.candidate, &mut found);
    remembered(config, &tried.candidate, &mut found);
    found.into_list()
}

/// Whoever can make a wrap that one of our KEKs opens can make a value that we open.
fn aliases(config: &Config, candidate: &Candidate, found: &mut Findings) {
    let by_alias = |kek: &KekConfig| matches!(kek, KekConfig::Aws(aws) if aws.key.contains("alias/"));
    if by_alias(&config.kek) {
        found.note(
            "kek.aws.key is an alias, so every key of its account and region vouches for stored values: whoever writes to etcd and \
             may use any of them for kms:Encrypt can make a value that opens",
            format!(
                "write `key: {}` in its place, which changes no key_id, and put the keys that the alias pointed to before \
                 under `read`; or keep the alias to rotate by it, with a policy that names the keys",
                candidate.version().kek.identity()
            ),
        );
    }
    if config.read.iter().chain(&config.recovery.keks).any(by_alias) {
        found.note(
            "a KEK under `read` or `recovery.keks` is an alias, so every key of its account and region vouches for stored values",
            "name the keys by their ARNs; `kmsctl scan` lists the ones in use",
        );
    }
}

fn remembered(config: &Config, candidate: &Candidate, found: &mut Findings) {
    let file = StateFile::new(&config.state_dir);
    // A damaged file is left to `serve` to set aside: check changes nothing.
    let remembered = match file.peek() {
        Ok(remembered) => remembered,
        Err(why) => {
            return found.warning(
                format!(
                    "{} cannot be used ({why}); serve will set it aside, and this node forgets which key_ids it left",
                    file.path().display()
                ),
                why.remedy(),
            );
        }
    };
    let digest = hex::encode(config.kek.context().digest());
    if remembered.context_digest.is_some_and(|old| old != digest) {
        found.warning(
            "the KEK's `context` differs from the one that this node used last: what was wrapped under the old one does not \
             open under this one",
            "put the same KEK with its old `context` under `read`",
        );
    }
    if remembered.left.contains(&candidate.key_id) {
        found.warning(
            "this node reported this key_id before and left it; serve will refuse it",
            "raise `epoch` on every node to reinstate the KEK",
        );
    } else if remembered.key_id.is_some_and(|old| old != candidate.key_id) {
        found.warning(
            "the key_id differs from the one that this node reported last: serving will rotate",
            "nothing, if that is meant: then it differs on every node",
        );
    }
}
