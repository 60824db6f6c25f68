//! The world of a drill on a cluster: its plugins, its API servers, its etcd, and what the drill has done so far.
//!
//! Guarantees: nothing is changed that the plan does not ask for and the operator has not confirmed; what the drill makes is
//! in the state file before it is made. Refuses to know the order of the steps.

use crate::claim::plain;
use crate::live::cluster::{ApiError, Server};
use crate::live::exposition::Facts;
use crate::live::plan::{LiveError, LivePlan};
use crate::live::state::{Key, Made, State, now_unix};
use crate::script::Progress;
use crate::timeline::Timeline;
use kms_v2_client::kms::KmsClient;
use kube_kms_etcd::census::Census;
use kube_kms_etcd::client::EtcdClient;
use kube_kms_etcd::scan::scan;
use kube_kms_etcd::tally::Tally;
use kube_kms_etcd::value::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long one call to a plugin may take.
pub(crate) const RPC_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) timeline: Timeline,
    pub(crate) plan: LivePlan,
    pub(crate) state: State,
    pub(crate) servers: Vec<Server>,
    pub(crate) etcd: EtcdClient,
    pub(crate) progress: ProgressOf,
}

/// A [`Progress`] that can be shown.
#[derive(Clone)]
pub(crate) struct ProgressOf(pub(crate) Arc<dyn Progress>);

impl std::fmt::Debug for ProgressOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// Which API servers have moved to a key, and which have not and why.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// By Status.
    pub(crate) behind_status: Vec<String>,
    /// By what they write.
    pub(crate) behind_writes: Vec<String>,
}

impl Live {
    pub(crate) fn new(
        plan: LivePlan,
        state: State,
        servers: Vec<Server>,
        etcd: EtcdClient,
        progress: Arc<dyn Progress>,
    ) -> Self {
        let mut timeline = Timeline::resumed(state.timeline.clone(), state.age_ms(), plan.poll);
        for (name, target) in &plan.sockets {
            timeline.watch(name, target.clone(), RPC_TIMEOUT);
        }
        Self { timeline, plan, state, servers, etcd, progress: ProgressOf(progress) }
    }

    pub(crate) fn doing(&self, what: &str) {
        self.progress.0.doing(&plain(what), 0, 0);
    }

    pub(crate) fn note(&self, text: &str) {
        self.progress.0.note(&plain(text));
    }

    /// Keeps what was done.
    pub(crate) fn keep(&mut self) -> Result<(), String> {
        if self.plan.dry_run {
            return Ok(());
        }
        self.state.timeline = self.timeline.all();
        self.state.write(&self.plan.state).map_err(|error| match error {
            LiveError::Unwritable(why) => format!("{} cannot be written: {why}", self.plan.state.display()),
            other => other.to_string(),
        })
    }

    /// Ends a step here when nothing may be changed.
    pub(crate) fn not_dry(&self, would: &str) -> Result<(), String> {
        if self.plan.dry_run { Err(format!("--dry-run: it would {would}")) } else { Ok(()) }
    }

    /// Asks before something that cannot be undone, or that is not ours to decide.
    pub(crate) async fn confirm(&self, step: &str, question: &str) -> Result<(), String> {
        if self.plan.yes.contains(step) {
            return Ok(());
        }
        if !self.plan.terminal {
            return Err(format!("not confirmed: neither a terminal nor --yes {step}"));
        }
        let (progress, question) = (Arc::clone(&self.progress.0), question.to_owned());
        let said = tokio::task::spawn_blocking(move || progress.confirm(&question)).await;
        if said.unwrap_or(false) { Ok(()) } else { Err("you said no".to_owned()) }
    }

    /// The old key, once the preflight has found it.
    pub(crate) fn old(&self) -> Result<Key, String> {
        self.state.old.clone().ok_or_else(|| "the key in use is not known (step 1)".to_owned())
    }

    /// Both, once something was rotated.
    pub(crate) fn keys(&self) -> Result<(Key, Key), String> {
        let old = self.old()?;
        self.state.new.clone().map(|new| (old, new)).ok_or_else(|| "nothing was rotated (step 3)".to_owned())
    }

    /// What each API server says of its keys; kept in the timeline.
    pub(crate) async fn look(&self) -> Vec<(String, Result<Facts, ApiError>)> {
        let mut seen = Vec::with_capacity(self.servers.len());
        for server in &self.servers {
            let facts = server.facts().await;
            for provider in &self.state.providers {
                let node = format!("{} {provider}", server.name);
                match &facts {
                    Ok(facts) => {
                        let writes = facts.writes(provider).map_or("nothing yet".to_owned(), |hash| self.named(hash));
                        let status = facts.status(provider).map(|hash| self.named(hash));
                        self.timeline.note(&node, status, format!("writes {writes}"));
                    }
                    Err(error) => self.timeline.note(&node, None, error.to_string()),
                }
            }
            seen.push((server.name.clone(), facts));
        }
        seen
    }

    /// A hash by the key_id that it is of, when that is known.
    pub(crate) fn named(&self, hash: &str) -> String {
        let all = [&self.state.old, &self.state.new];
        let known = all.into_iter().flatten().find(|key| key.is(hash));
        known.map_or_else(|| hash.to_owned(), |key| key.as_str().to_owned())
    }

    /// Which API servers have moved to this key.
    pub(crate) async fn moved(&self, new: &Key) -> Moved {
        let mut moved = Moved::default();
        for (server, facts) in self.look().await {
            let facts = match facts {
                Ok(facts) => facts,
                Err(error) => {
                    moved.behind_status.push(format!("{server} does not say: {error}"));
                    moved.behind_writes.push(format!("{server} does not say"));
                    continue;
                }
            };
            for provider in &self.state.providers {
                match facts.status(provider) {
                    Some(hash) if new.is(hash) => {}
                    Some(hash) => {
                        let was = self.named(hash);
                        moved.behind_status.push(format!("{server}: the Status of {provider} is still {was}"));
                    }
                    None => moved.behind_status.push(format!("{server} has no provider {provider}")),
                }
                match facts.writes(provider) {
                    Some(hash) if new.is(hash) => {}
                    Some(hash) => {
                        let was = self.named(hash);
                        moved.behind_writes.push(format!("{server} wrote last under {was} with {provider}"));
                    }
                    None => moved.behind_writes.push(format!("{server} has written nothing with {provider}")),
                }
            }
        }
        moved
    }

    /// Plugins that do not name this key, each with what it says.
    pub(crate) fn sockets_behind(&self, key: &Key) -> Vec<String> {
        let all = self.plan.sockets.iter().map(|(name, _)| (name, self.timeline.last(name)));
        let behind = all.filter_map(|(name, seen)| match seen {
            Some(seen) if seen.key_id.as_deref().is_some_and(|id| key.is(id)) => None,
            Some(seen) => Some(format!("{name}: {}, {}", seen.key_id.as_deref().unwrap_or("no key_id"), seen.health)),
            None => Some(format!("{name} has not answered")),
        });
        behind.collect()
    }

    /// Counts what is in etcd now.
    pub(crate) async fn scan(&mut self) -> Result<Tally, String> {
        let (progress, number) = (self.progress.clone(), |n: u64| usize::try_from(n).unwrap_or(usize::MAX));
        let on_progress = move |seen: kube_kms_etcd::scan::Progress| {
            progress.0.doing("scanning etcd", number(seen.done), number(seen.all));
        };
        let mut census = Census::new(&self.plan.scan.prefix, Box::new(on_progress));
        let outcome = scan(&mut self.etcd, &self.plan.scan, &mut census).await;
        let outcome = outcome.map_err(|error| format!("etcd cannot be scanned: {error}"))?;
        if outcome.keys == 0 {
            let prefix = String::from_utf8_lossy(&self.plan.scan.prefix);
            return Err(format!("etcd has nothing under {prefix}: is that kube-apiserver's --etcd-prefix?"));
        }
        let tally = census.tally();
        for key in [&mut self.state.old, &mut self.state.new].into_iter().flatten() {
            key.learn(&tally);
        }
        Ok(tally)
    }

    /// The key_id that etcd has an object of ours under.
    pub(crate) async fn key_id_of(&mut self, made: &Made) -> Result<String, String> {
        for key in &made.keys {
            let found = self.etcd.one(key.as_bytes()).await.map_err(|error| error.to_string())?;
            let Some((value, _)) = found else { continue };
            return match Value::parse(&value) {
                Value::KmsV2(object) => Ok(object.key_id.to_owned()),
                Value::Other(form) => Err(format!("{key} is stored as {}", form.label())),
                Value::Damaged(damage) => Err(format!("{key} is damaged: {}", damage.reason())),
            };
        }
        Err(format!("etcd has none of {}", made.keys.join(", ")))
    }

    /// A plugin, on a connection of its own.
    pub(crate) async fn plugin(&self, name: &str) -> Result<KmsClient, String> {
        let target = self.plan.sockets.iter().find(|(socket, _)| socket == name).map(|(_, target)| target.clone());
        let target = target.ok_or_else(|| format!("no socket {name}"))?;
        KmsClient::connect(target, RPC_TIMEOUT).await.map_err(|error| format!("{name}: {error}"))
    }

    /// The rotation was seen now.
    pub(crate) fn rotated(&mut self, new: Key) -> Result<(), String> {
        self.state.new = Some(new);
        self.state.rotated_ms = self.timeline.now_ms();
        self.state.rotated_unix = now_unix();
        self.keep()
    }

    pub(crate) async fn pause(&self) {
        tokio::time::sleep(self.plan.poll).await;
    }
}

/// `20 under k1-…, 3 not under KMS v2`.
pub(crate) fn describe(tally: &Tally) -> String {
    let mut under: BTreeMap<&str, u64> = BTreeMap::new();
    for group in tally.groups() {
        let count = under.entry(&group.key_id).or_default();
        *count = count.saturating_add(group.extent.objects);
    }
    let mut parts: Vec<String> = under.iter().map(|(key_id, n)| format!("{n} under {key_id}")).collect();
    for (name, n) in [
        ("not under KMS v2", tally.others().iter().map(|group| group.extent.objects).sum::<u64>()),
        ("damaged", tally.damaged().iter().map(|group| group.extent.objects).sum::<u64>()),
        ("in more groups than are told apart", tally.ungrouped()),
    ] {
        if n > 0 {
            parts.push(format!("{n} {name}"));
        }
    }
    parts.join(", ")
}

/// Resources with objects under this key, and how many.
pub(crate) fn under(tally: &Tally, key: &Key) -> BTreeMap<String, u64> {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for group in tally.groups().into_iter().filter(|group| key.is(&group.key_id)) {
        let count = found.entry(group.resource.clone()).or_default();
        *count = count.saturating_add(group.extent.objects);
    }
    found
}
