//! Step 1: who is there, what is in etcd, what the drill may do. Changes nothing.

use crate::claim::{Sheet, Step};
use crate::live::cluster::text;
use crate::live::encryption;
use crate::live::exposition::{Facts, id_hash};
use crate::live::migration;
use crate::live::plan::Migrate;
use crate::live::state::Key;
use crate::live::step::none;
use crate::live::world::{Live, describe, under};
use crate::script::Playing;
use kube_kms_os::Stopwatch;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 1,
    name: "preflight",
    passes_when: "every plugin and API server answers with the same key, and etcd is read as the baseline",
    claims: &[
        "every plugin that is reached directly answers and is well",
        "every API server that was named says which key it uses",
        "all of them name the same key",
        "no API server of the cluster is left out",
        "etcd is read whole: the baseline",
        "the provider writes, by the EncryptionConfiguration",
        "the drill may do what it is asked to do",
    ],
};

/// A plugin that listens answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let mut named = sockets(w, sheet).await;
    let facts = servers(w, sheet).await;
    choose_providers(w, &named, &facts);
    // INVARIANT: with no provider to look at, everybody would have moved at once.
    if !w.servers.is_empty() && w.state.providers.is_empty() {
        sheet.judge(2, Err("no API server polls a provider that is under the key that the plugins name".to_owned()));
    }
    for (server, facts) in &facts {
        for provider in &w.state.providers {
            match facts.status(provider) {
                Some(hash) => named.push((format!("{server} {provider}"), hash.to_owned())),
                None => sheet.judge(2, Err(format!("{server} polls no KMS v2 provider {provider}"))),
            }
        }
    }
    let key = same_key(&named);
    sheet.judge(3, key.as_ref().map(|key| format!("{key}, named by {}", named.len())).map_err(Clone::clone));
    left_out(w, sheet, &facts).await;
    may(w, sheet).await;
    match &w.plan.encryption_config {
        None => sheet.not_tried(6, "no --encryption-config was given"),
        Some(path) => sheet.judge(6, encryption::check(path, &w.state.providers)),
    }
    let tally = w.scan().await;
    sheet.judge(5, tally.as_ref().map(describe).map_err(Clone::clone));
    let (mut key, tally) = (key?, tally?);
    key.learn(&tally);
    w.state.resources = under(&tally, &key).into_keys().collect();
    sheet.number("objects", tally.all().objects);
    sheet.number("objectsUnderTheKey", under(&tally, &key).values().sum());
    if sheet.has_failed() {
        return Err("a claim of the preflight does not hold".to_owned());
    }
    w.state.old = Some(key);
    w.keep()
}

/// What each plugin names.
async fn sockets(w: &Live, sheet: &mut Sheet) -> Vec<(String, String)> {
    if w.plan.sockets.is_empty() {
        sheet.not_tried(1, "no --socket was given");
        return Vec::new();
    }
    w.doing("asking the plugins");
    let watch = Stopwatch::start();
    loop {
        let (mut named, mut wrong) = (Vec::new(), Vec::new());
        for (name, _) in &w.plan.sockets {
            match w.timeline.last(name) {
                Some(seen) if seen.health == "ok" => {
                    named.push((name.clone(), seen.key_id.unwrap_or_default()));
                }
                Some(seen) => wrong.push(format!("{name}: {}", seen.health)),
                None => wrong.push(format!("{name} has not answered")),
            }
        }
        if wrong.is_empty() || watch.elapsed() > ANSWERS_WITHIN {
            sheet.judge(1, none(&wrong, format!("{} plugins", named.len())));
            return named;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn servers(w: &Live, sheet: &mut Sheet) -> Vec<(String, Facts)> {
    if w.servers.is_empty() {
        sheet.not_tried(2, "no --kubeconfig or --apiserver was given");
        return Vec::new();
    }
    w.doing("asking the API servers");
    let (mut facts, mut wrong) = (Vec::new(), Vec::new());
    for (server, seen) in w.look().await {
        match seen {
            Ok(seen) if seen.providers().next().is_none() => wrong.push(format!("{server} polls no KMS v2 provider")),
            Ok(seen) => facts.push((server, seen)),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    sheet.judge(2, none(&wrong, format!("{} API servers", facts.len())));
    facts
}

/// Those that are under the key that the plugins name; without a plugin, those that everybody has.
fn choose_providers(w: &mut Live, named: &[(String, String)], facts: &[(String, Facts)]) {
    if !w.state.providers.is_empty() {
        return;
    }
    let ours = |hash: &str| named.is_empty() || named.iter().any(|(_, key_id)| Key::new(key_id).is(hash));
    let all = facts.iter().flat_map(|(_, facts)| facts.providers());
    let found: BTreeSet<String> = all.filter(|(_, hash)| ours(hash)).map(|(name, _)| name.to_owned()).collect();
    w.state.providers = found.into_iter().collect();
}

/// The key_id when somebody says it, else the hash.
fn same_key(named: &[(String, String)]) -> Result<Key, String> {
    let best = named.iter().find(|(_, name)| !name.starts_with("sha256:")).or_else(|| named.first());
    let Some((_, best)) = best else { return Err("nobody names a key".to_owned()) };
    let key = Key::new(best);
    if named.iter().all(|(_, name)| key.is(name)) {
        return Ok(key);
    }
    Err(named.iter().map(|(who, name)| format!("{who}: {name}")).collect::<Vec<_>>().join("; "))
}

/// Every API server keeps a Lease, and its metrics carry the hash of the Lease's name. SPEC: KEP-1965.
async fn left_out(w: &Live, sheet: &mut Sheet, facts: &[(String, Facts)]) {
    let Some(server) = w.servers.first() else { return sheet.not_tried(4, "no API server was named") };
    if w.plan.passive.is_some() {
        return sheet.not_tried(4, "--passive: they are not asked");
    }
    let path =
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io%2Fidentity";
    let leases = match server.get(path).await {
        Ok(leases) => leases,
        Err(error) => return sheet.not_tried(4, format!("the Leases of the API servers cannot be read: {error}")),
    };
    let all = leases.pointer("/items").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<String> = all.filter(|lease| is_fresh(lease)).map(|lease| text(lease, "/metadata/name")).collect();
    if names.is_empty() {
        return sheet.not_tried(4, "no API server keeps a Lease in kube-system");
    }
    let asked: BTreeSet<&String> = facts.iter().flat_map(|(_, facts)| &facts.ids).collect();
    let wrong: Vec<String> = names.iter().filter(|name| !asked.contains(&id_hash(name))).cloned().collect();
    let seen = format!("{} API servers, by their Leases", names.len());
    sheet.judge(4, none(&wrong, seen).map_err(|names| format!("not asked (--apiserver): {names}")));
}

/// An API server that is gone stops renewing, and its Lease is removed an hour later.
fn is_fresh(lease: &Value) -> bool {
    let renewed = humantime::parse_rfc3339(&text(lease, "/spec/renewTime"));
    let age = renewed.ok().and_then(|at| kube_kms_os::wall_clock().duration_since(at).ok());
    let lasts = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(3600);
    age.is_none_or(|age| age <= Duration::from_secs(lasts))
}

/// Asks the API server for each right that will be needed.
async fn may(w: &Live, sheet: &mut Sheet) {
    let mut needed: Vec<(&str, &str, &str)> = Vec::new();
    if w.plan.objects > 0 {
        needed.extend(
            ["create", "get", "delete"].map(|verb| (verb, w.plan.objects_of.as_str(), w.plan.namespace.as_str())),
        );
    }
    if w.plan.migrate != Migrate::Print {
        needed.extend(["create", "get", "delete"].map(|verb| (verb, migration::RESOURCE, "")));
    }
    let Some(server) = w.servers.first() else { return sheet.not_tried(7, "no API server was named") };
    if needed.is_empty() {
        return sheet.judge(7, Ok("it only reads".to_owned()));
    }
    let mut wrong = Vec::new();
    for (verb, resource, namespace) in &needed {
        match server.may(verb, resource, namespace).await {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{verb} {resource} {namespace}").trim_end().to_owned()),
            Err(error) => return sheet.not_tried(7, format!("the API server does not say: {error}")),
        }
    }
    sheet.judge(7, none(&wrong, format!("{} rights", needed.len())).map_err(|wrong| format!("not allowed: {wrong}")));
}
