//! Objects that a drill writes through the API servers, to be read back: marked as its own, and with nothing secret in them.
//!
//! Guarantees: an object is named in the state file before it is created, so that whatever there is can be deleted.

use crate::live::cluster::{ApiError, Resource, text};
use crate::live::state::Made;
use crate::live::world::Live;
use kube_kms_etcd::resource::directories;
use serde_json::{Value, json};

/// Marks everything that a drill makes.
pub(crate) const LABEL: &str = "app.kubernetes.io/managed-by";
const ANNOTATION: &str = "kube-kms-drill";

/// What the object with this name holds.
fn content(name: &str) -> String {
    format!("written by kmsctl drill as {name}, to be read back")
}

/// Writes one object through API server `nth`, counted around.
pub(crate) async fn write(w: &mut Live, resource: &Resource, nth: usize, is_new: bool) -> Result<(), String> {
    let when = if is_new { "new" } else { "old" };
    let name = format!("kube-kms-drill-{}-{when}-{:04}", w.state.id, w.state.objects.len());
    let collection = resource.path(&w.plan.namespace);
    let prefix = String::from_utf8_lossy(&w.plan.scan.prefix).into_owned();
    let inner = if resource.namespaced { format!("{}/{name}", w.plan.namespace) } else { name.clone() };
    let keys = directories(&resource.name()).iter().map(|directory| format!("{prefix}/{directory}/{inner}")).collect();
    let body = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {
            "name": name, "labels": {LABEL: "kube-kms-drill"}, "annotations": {ANNOTATION: content(&name)},
        },
    });
    w.state.objects.push(Made { path: format!("{collection}/{name}"), keys, is_new });
    w.keep()?;
    let at = nth.checked_rem(w.servers.len()).unwrap_or(0);
    let server = w.servers.get(at).ok_or_else(|| "there is no API server".to_owned())?;
    server.post(&collection, &body).await.map(|_| ()).map_err(|error| error.to_string())
}

/// Reads all of them through every API server; what failed.
pub(crate) async fn read_all(w: &Live) -> Vec<String> {
    let mut failed = Vec::new();
    for server in &w.servers {
        for made in &w.state.objects {
            w.doing(&format!("reading through {}", server.name));
            let read = server.get(&made.path).await;
            if let Err(why) = is_whole(&made.path, read) {
                failed.push(why);
            }
        }
    }
    failed
}

fn is_whole(path: &str, read: Result<Value, ApiError>) -> Result<(), String> {
    let object = read.map_err(|error| error.to_string())?;
    let name = path.rsplit('/').next().unwrap_or_default();
    let seen = text(&object, &format!("/metadata/annotations/{ANNOTATION}"));
    if seen == content(name) { Ok(()) } else { Err(format!("{path} is not what was written")) }
}

/// Deletes all of them; what is left and why.
pub(crate) async fn delete_all(w: &mut Live) -> Vec<String> {
    let mut left = Vec::new();
    for made in std::mem::take(&mut w.state.objects) {
        let deleted = match w.servers.first() {
            Some(server) => server.delete(&made.path).await.map_err(|error| error.to_string()),
            None => Err(format!("{}: no API server to delete it", made.path)),
        };
        if let Err(why) = deleted {
            left.push(why);
            w.state.objects.push(made);
        }
    }
    left
}
