//! Asks `kube-kms check` which key_id and which KEK a configuration gives: one wrap and one unwrap at the KEK itself.
//!
//! A process of its own, because this program holds no data key and is linked with nothing that serves.

use crate::plan::DrillError;
use serde::Deserialize;
use std::path::Path;
use tokio::process::Command;

/// `check` found something wrong that is not about the KEK, such as another process on the socket, and still has a report.
const FOUND_SOMETHING: i32 = 6;

/// What is wanted of its report.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Checked {
    /// What Status would say.
    pub(crate) key_id: String,
    /// Kind and identity, as in the annotations.
    pub(crate) kek: String,
}

/// Runs it.
///
/// # Errors
/// [`DrillError::Program`] when it cannot be run, [`DrillError::Kek`] with what it said when it has no report.
pub(crate) async fn check(program: &Path, config: &Path) -> Result<Checked, DrillError> {
    let run =
        Command::new(program).args(["check", "--output", "json", "--config"]).arg(config).kill_on_drop(true).output();
    let output = run.await.map_err(|error| DrillError::Program(program.to_owned(), error))?;
    let status = output.status.code().unwrap_or(1);
    match serde_json::from_slice(&output.stdout) {
        Ok(checked) if status == 0 || status == FOUND_SOMETHING => Ok(checked),
        _ => Err(DrillError::Kek { status, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
    }
}
