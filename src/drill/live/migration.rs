//! Kubernetes' StorageVersionMigration, in whichever version the API server serves it.
//!
//! Guarantees: one object per resource, of a name that a resumed drill finds again; `Succeeded` is only what its condition says. What
//! it was worth, the scan tells: it passes over what was written lately. Refuses to decide when it may begin. SPEC: KEP-4192;
//! v1alpha1 (1.30 to 1.34) names the resource's version, v1beta1 (1.35) and v1 (1.37) do not.

use crate::live::cluster::{ApiError, Resource, Server, text};
use crate::live::objects::LABEL;
use serde_json::{Value, json};

/// Newest first.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const GROUP: &str = "storagemigration.k8s.io";
/// What it is about in an access review.
pub(crate) const RESOURCE: &str = "storageversionmigrations.storagemigration.k8s.io";

/// How far a migration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is no such object.
    Absent,
    /// Neither done nor failed; the condition, if there is one.
    Running(String),
    Succeeded,
    /// It will not go on.
    Failed(String),
}

/// The version that is served, if any.
pub(crate) async fn served(server: &Server) -> Result<Option<&'static str>, ApiError> {
    let answer = match server.get(&format!("/apis/{GROUP}")).await {
        Err(error) if error.code == 404 => return Ok(None),
        answer => answer?,
    };
    let all = answer.pointer("/versions").and_then(Value::as_array).into_iter().flatten();
    let all: Vec<String> = all.map(|version| text(version, "/version")).collect();
    Ok(VERSIONS.into_iter().find(|version| all.iter().any(|served| served == version)))
}

/// Where the migration of this resource is, for the drill of this id.
pub(crate) fn path(version: &str, id: &str, resource: &Resource) -> String {
    format!("/apis/{GROUP}/{version}/storageversionmigrations/kube-kms-drill-{id}-{}", resource.name())
}

/// Begins it.
pub(crate) async fn create(server: &Server, path: &str, resource: &Resource) -> Result<(), ApiError> {
    let (collection, name) = path.rsplit_once('/').unwrap_or_default();
    let version = collection.split('/').nth(3).unwrap_or_default();
    let mut of = json!({"group": resource.group, "resource": resource.plural});
    if let (Some(map), "v1alpha1") = (of.as_object_mut(), version) {
        map.insert("version".to_owned(), json!(resource.version));
    }
    let body = json!({
        "apiVersion": format!("{GROUP}/{version}"), "kind": "StorageVersionMigration",
        "metadata": {"name": name, "labels": {LABEL: "kube-kms-drill"}}, "spec": {"resource": of},
    });
    server.post(collection, &body).await.map(|_| ())
}

/// Looks at it.
pub(crate) async fn phase(server: &Server, path: &str) -> Result<Phase, ApiError> {
    let object = match server.get(path).await {
        Err(error) if error.code == 404 => return Ok(Phase::Absent),
        answer => answer?,
    };
    let all = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let conditions: Vec<&Value> = all.filter(|condition| text(condition, "/status") == "True").collect();
    let is = |kind: &str| conditions.iter().find(|condition| text(condition, "/type") == kind);
    let why = |condition: &Value| format!("{} {}", text(condition, "/reason"), text(condition, "/message"));
    Ok(match (is("Failed"), is("Succeeded")) {
        (Some(failed), _) => Phase::Failed(why(failed).trim().to_owned()),
        (None, Some(_)) => Phase::Succeeded,
        (None, None) => Phase::Running(match is("Running") {
            Some(running) => format!("Running {}", why(running)).trim().to_owned(),
            None => "no controller has taken it up".to_owned(),
        }),
    })
}
