//! The instance that serves already, if one does: does it report the key_id that this configuration leads to?

use crate::doctor::finding::{Finding, Findings};
use kms_v2_client::kms::{KmsClient, Target};
use kube_kms_core::key_id::KeyId;
use std::time::Duration;
use tonic::Code;

/// The default `timeout` of kube-apiserver.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Sends it one Status.
pub(super) async fn compare(target: Target, ours: &KeyId) -> Vec<Finding> {
    let mut found = Findings::about("running-instance");
    let status = match KmsClient::connect(target, TIMEOUT).await {
        Ok(mut client) => client.status().await,
        // Gone since the look at the socket.
        Err(_) => return Vec::new(),
    };
    match status {
        Ok(status) if status.key_id == ours.as_str() => {
            found.note("what serves there now reports the same key_id", "nothing");
        }
        Ok(status) if KeyId::parse(status.key_id.clone()).is_ok_and(|id| id.is_ours()) => found.warning(
            "what serves there now reports another key_id: this configuration is a rotation to it",
            "nothing, if that is meant; else compare the two configurations, `kek` and `epoch` first",
        ),
        Ok(_) => found.warning(
            "what serves there now is another KMS plugin: its key_id is not one of ours",
            "move from it with both side by side (docs/install.md, \"Coming from another KMS plugin\")",
        ),
        Err(status) if status.code() == Code::PermissionDenied => found.note(
            "what serves there now does not talk to this user",
            "check as root or as a user of `listen.allowUids` to compare key_ids",
        ),
        Err(status) if status.code() == Code::Unimplemented || status.code() == Code::Unknown => found.error(
            "what listens there is no KMS v2 plugin",
            "see which program it is (ss -xlp), and give another `listen.socket`",
        ),
        Err(status) => found.warning(
            format!("what serves there now does not answer Status well: {}", status.message()),
            "docs/troubleshooting.md has every reason",
        ),
    }
    found.into_list()
}
