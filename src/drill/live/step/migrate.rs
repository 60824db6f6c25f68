//! Step 7: everything under the old key is rewritten. Not before every API server writes under the new one: a migration takes
//! what was written lately for new, and says that it succeeded.

use crate::claim::{Sheet, Step};
use crate::live::cluster::{Resource, Server};
use crate::live::migration::{self, Phase};
use crate::live::plan::Migrate;
use crate::live::state::Key;
use crate::live::step::none;
use crate::live::world::{Live, under};
use crate::script::Playing;
use kube_kms_os::Stopwatch;
use std::collections::BTreeMap;

pub(crate) static STEP: Step = Step {
    number: 7,
    name: "migrate",
    passes_when: "every object is rewritten, and a scan shows none under the old key",
    claims: &[
        "every API server writes under the new key at the moment when the migration begins",
        "every migration succeeds",
        "no object is under the old key, by a scan of etcd",
    ],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    w.not_dry("rewrite every object under the old key, once every API server has moved")?;
    let (old, new) = w.keys()?;
    // INVARIANT: no migration before everybody has moved (test `a_lagging_api_server_stops_the_migration`).
    if !w.state.converged {
        return Err("refused: not every API server is known to have moved (step 4)".to_owned());
    }
    if w.plan.passive.is_some() {
        sheet.not_tried(1, "--passive: time in the place of metrics");
    } else {
        let mut moved = w.moved(&new).await;
        moved.behind_status.append(&mut moved.behind_writes);
        let judged = none(&moved.behind_status, format!("{} API servers", w.servers.len()));
        let wrong = judged.is_err();
        sheet.judge(1, judged);
        if wrong {
            w.state.converged = false;
            w.keep()?;
            return Err("refused: an API server has not moved, or not any more".to_owned());
        }
    }
    let left = under(&w.scan().await?, &old);
    let mut names: Vec<String> = if w.plan.resources.is_empty() {
        left.keys().chain(&w.state.resources).cloned().collect()
    } else {
        w.plan.resources.clone()
    };
    names.sort();
    names.dedup();
    sheet.number("objectsToMigrate", left.values().sum());
    if left.is_empty() {
        sheet.not_tried(2, "nothing is left under the old key: there is nothing to migrate");
    } else {
        match by_svm(w).await? {
            Some(version) => migrate(w, sheet, version, &names).await?,
            None => ask_operator(w, sheet, &names, &old).await?,
        }
    }
    let left = under(&w.scan().await?, &old);
    sheet.judge(3, nothing(&left, &old));
    w.state.migrated = left.is_empty();
    w.keep()?;
    if left.is_empty() { Ok(()) } else { Err("objects are left under the old key".to_owned()) }
}

fn nothing(left: &BTreeMap<String, u64>, old: &Key) -> Result<String, String> {
    let left: Vec<String> =
        left.iter().map(|(resource, n)| format!("{n} of {resource} are still under {old}")).collect();
    none(&left, format!("none under {old}"))
}

/// The version of StorageVersionMigration to use, unless the operator migrates.
async fn by_svm(w: &Live) -> Result<Option<&'static str>, String> {
    let Some(server) = w.servers.first() else { return Ok(None) };
    if w.plan.migrate == Migrate::Print {
        return Ok(None);
    }
    let version = migration::served(server).await.map_err(|error| error.to_string())?;
    match (version, w.plan.migrate) {
        (None, Migrate::Svm) => Err(format!("{} serves no storagemigration.k8s.io", server.name)),
        (version, _) => Ok(version),
    }
}

async fn migrate(w: &mut Live, sheet: &mut Sheet, version: &str, names: &[String]) -> Result<(), String> {
    let question = format!("Create a StorageVersionMigration for each of {}?", names.join(", "));
    w.confirm("migrate", &question).await?;
    let mut failed = Vec::new();
    for name in names {
        if let Err(why) = migrate_one(w, version, name).await {
            failed.push(format!("{name}: {why}"));
        }
    }
    sheet.judge(2, none(&failed, format!("{} by {version}", names.join(", "))));
    if failed.is_empty() { Ok(()) } else { Err("a migration did not succeed".to_owned()) }
}

async fn migrate_one(w: &mut Live, version: &str, name: &str) -> Result<(), String> {
    let resource = first(w)?.resolve(name).await?;
    let path = migration::path(version, &w.state.id, &resource);
    if !w.state.migrations.contains(&path) {
        w.state.migrations.push(path.clone());
        w.keep()?;
    }
    begin(w, &path, &resource).await?;
    let watch = Stopwatch::start();
    loop {
        let phase = migration::phase(first(w)?, &path).await.map_err(|error| error.to_string())?;
        let said = match phase {
            Phase::Succeeded => return Ok(()),
            Phase::Failed(why) => return Err(format!("Failed {why}")),
            Phase::Absent => return Err("somebody has deleted it".to_owned()),
            Phase::Running(said) => said,
        };
        if watch.elapsed() > w.plan.wait {
            let waited = humantime::format_duration(w.plan.wait);
            return Err(format!("neither done nor failed after {waited}: {said}; --resume goes on watching"));
        }
        w.doing(&format!("migrating {name}: {said}"));
        w.pause().await;
    }
}

/// Makes it, unless a drill that was interrupted has; one that has ended before is made anew.
async fn begin(w: &Live, path: &str, resource: &Resource) -> Result<(), String> {
    let server = first(w)?;
    let phase = migration::phase(server, path).await.map_err(|error| error.to_string())?;
    if matches!(phase, Phase::Running(_)) {
        return Ok(());
    }
    if phase != Phase::Absent {
        server.delete(path).await.map_err(|error| error.to_string())?;
    }
    migration::create(server, path, resource).await.map_err(|error| error.to_string())
}

fn first(w: &Live) -> Result<&Server, String> {
    w.servers.first().ok_or_else(|| "there is no API server".to_owned())
}

/// Prints what the operator has to run, and looks at etcd until it is done.
async fn ask_operator(w: &mut Live, sheet: &mut Sheet, names: &[String], old: &Key) -> Result<(), String> {
    let commands: Vec<String> = names
        .iter()
        .map(|name| format!("  kubectl get {name} --all-namespaces -o json | kubectl replace -f -"))
        .collect();
    w.note(&format!(
        "rewrite these resources now; a conflict means that somebody wrote the object meanwhile. The drill goes on when a \
         scan shows none under {old}:\n{}",
        commands.join("\n")
    ));
    let watch = Stopwatch::start();
    loop {
        let left = under(&w.scan().await?, old);
        if left.is_empty() {
            sheet.judge(2, Ok(format!("the operator has rewritten {}", names.join(", "))));
            return Ok(());
        }
        if watch.elapsed() > w.plan.wait {
            let seen = nothing(&left, old).err().unwrap_or_default();
            sheet.judge(2, Err(format!("after {}: {seen}", humantime::format_duration(w.plan.wait))));
            return Err("the objects were not rewritten".to_owned());
        }
        w.doing(&format!("waiting for you to rewrite {} objects", left.values().sum::<u64>()));
        w.pause().await;
    }
}
