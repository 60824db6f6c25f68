//! The world of a rehearsal: two control-plane nodes that share one KEK, each a real plugin with an API server in front, and the
//! objects in their etcd.
//!
//! Guarantees: processes end and the directory goes when this is dropped, in that order. What was changed outside of the
//! sandbox (an alias, the state of a key) is put back by [`World::tear_down`], which the drill calls however it ends.

use crate::admin::{KekAdmin, local::LocalAdmin};
use crate::check::{Checked, check};
use crate::front::Front;
use crate::load::Load;
use crate::node::{Launch, Node};
use crate::plan::{DrillError, KekPlan, Plan};
use crate::reach::{Proxy, Reach};
use crate::sandbox::Sandbox;
use crate::script::Progress;
use crate::store::Store;
use crate::tempo::Tempo;
use crate::timeline::{Seen, Timeline};
use kms_v2_judge::apiserver::{Finding, FindingCode};
use kube_kms_kek_local::operation;
use kube_kms_os::{OsEntropy, wall_clock};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// How long a plugin may take to be well after its start.
pub(crate) const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// The nodes.
const NAMES: [&str; 2] = ["a", "b"];

/// See the module.
pub(crate) struct World {
    // Dropped in this order: requests, API servers, plugins, directory.
    pub(crate) load: Option<Load>,
    pub(crate) timeline: Timeline,
    pub(crate) fronts: Vec<Front>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: Store,
    pub(crate) admin: Box<dyn KekAdmin>,
    pub(crate) reach: Reach,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) plan: Plan,
    pub(crate) tempo: Tempo,
    pub(crate) old_key_id: Option<String>,
    pub(crate) new_key_id: Option<String>,
    pub(crate) rotated_at: u64,
    pub(crate) left_behind: Option<String>,
    /// What the API servers must find because the drill made it so.
    pub(crate) expected: Vec<FindingCode>,
    /// What API servers that are gone found.
    pub(crate) found_before: Vec<(String, Vec<Finding>)>,
    pub(crate) seen: Vec<Seen>,
    launch: Launch,
    fresh: usize,
    pub(crate) sandbox: Sandbox,
}

/// A plugin and an API server that were never there: nothing in memory, nothing on disk.
pub(crate) struct Fresh {
    pub(crate) front: Front,
    pub(crate) node: Node,
}

impl World {
    /// Everything is there and nothing is started; the KEK wraps and unwraps.
    pub(crate) async fn build(plan: Plan, progress: Arc<dyn Progress>) -> Result<Self, DrillError> {
        let sandbox = Sandbox::new(plan.keep).map_err(DrillError::Sandbox)?;
        let (kek, reach, tempo) = match &plan.kek {
            KekPlan::Local => {
                let path = sandbox.path().join("keyring.json");
                operation::init(&path, wall_clock(), &OsEntropy).map_err(DrillError::Keyring)?;
                let away = sandbox.path().join("keyring.away");
                (json!({"local": {"keyring": path}}), Reach::File { path, away }, Tempo::LOCAL)
            }
            KekPlan::Aws { key, region, endpoint, .. } => {
                let reach = reach_of(endpoint.as_deref()).await?;
                let at = match &reach {
                    Reach::Proxy(proxy) => Some(proxy.url.clone()),
                    _ => endpoint.clone(),
                };
                let mut aws = json!({"key": key});
                for (name, value) in [("region", region), ("endpoint", &at)] {
                    if let (Some(map), Some(value)) = (aws.as_object_mut(), value) {
                        map.insert(name.to_owned(), json!(value));
                    }
                }
                (json!({"aws": aws}), reach, Tempo::REMOTE)
            }
        };
        let launch = Launch { command: plan.command.clone(), kek, tempo };
        let mut nodes = Vec::with_capacity(NAMES.len());
        for name in NAMES {
            nodes.push(Node::new(sandbox.path(), name, &launch).map_err(DrillError::Sandbox)?);
        }
        let config = nodes.first().map(Node::config).unwrap_or_default();
        let Checked { key_id, kek: identity } = check(&plan.program, &config).await?;
        let admin = admin_of(&plan.kek, &sandbox, &identity).await?;
        progress.note(&format!("sandbox {}; KEK {identity}", sandbox.path().display()));
        Ok(Self {
            load: None,
            timeline: Timeline::new(),
            fronts: Vec::new(),
            nodes,
            store: Store::default(),
            admin,
            reach,
            progress,
            plan,
            tempo,
            old_key_id: Some(key_id),
            new_key_id: None,
            rotated_at: 0,
            left_behind: None,
            expected: Vec::new(),
            found_before: Vec::new(),
            seen: Vec::new(),
            launch,
            fresh: 0,
            sandbox,
        })
    }

    /// The key_id of what the KEK wraps now: from the KEK itself, not from a plugin.
    pub(crate) async fn key_id_of_kek(&self) -> Result<String, String> {
        let config = self.nodes.first().map(Node::config).unwrap_or_default();
        check(&self.plan.program, &config).await.map(|checked| checked.key_id).map_err(|error| error.to_string())
    }

    /// Two key_ids, once something was rotated.
    pub(crate) fn key_ids(&self) -> Result<(String, String), String> {
        match (&self.old_key_id, &self.new_key_id) {
            (Some(old), Some(new)) => Ok((old.clone(), new.clone())),
            _ => Err("nothing was rotated (step 3)".to_owned()),
        }
    }

    /// The API servers, when there are any.
    pub(crate) fn running(&self) -> Result<(), String> {
        if self.fronts.is_empty() { Err("no API server could be started (step 1)".to_owned()) } else { Ok(()) }
    }

    pub(crate) fn doing(&self, what: &str, done: usize, of: usize) {
        self.progress.doing(what, done, of);
    }

    /// A node that is configured as the others and not started.
    pub(crate) fn new_node(&mut self) -> Result<Node, String> {
        self.fresh = self.fresh.saturating_add(1);
        let name = format!("fresh-{}", self.fresh);
        Node::new(self.sandbox.path(), &name, &self.launch).map_err(|error| format!("node {name}: {error}"))
    }

    /// A pair that was never there.
    pub(crate) async fn fresh(&mut self) -> Result<Fresh, String> {
        let mut node = self.new_node()?;
        node.start().map_err(|error| format!("node {}: {error}", node.name))?;
        node.until_ok(STARTS_WITHIN).await?;
        let front = Front::start(&node.name, node.target(), self.tempo).await?;
        Ok(Fresh { front, node })
    }

    /// Keeps what the API server of a pair found, and ends both.
    pub(crate) fn done_with(&mut self, fresh: Fresh) {
        let Fresh { front, node } = fresh;
        self.found_before.push((front.name.clone(), front.findings_but(&[])));
        drop(front);
        drop(node);
    }

    /// Waits until this holds for all nodes; which of them it does not, after `within`.
    pub(crate) async fn until_nodes(
        &self,
        within: Duration,
        holds: impl Fn(&Self, &Node) -> bool,
    ) -> Result<(), String> {
        let watch = kube_kms_os::Stopwatch::start();
        loop {
            let missing: Vec<&str> =
                self.nodes.iter().filter(|node| !holds(self, node)).map(|node| node.name.as_str()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if watch.elapsed() >= within {
                return Err(missing.join(", "));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Ends everything and puts back what was changed outside of the sandbox.
    ///
    /// # Errors
    /// What could not be put back or removed, and where it is.
    pub(crate) async fn tear_down(&mut self) -> Result<String, String> {
        self.load = None;
        let seen = std::mem::replace(&mut self.timeline, Timeline::new()).all();
        self.seen.extend(seen);
        self.fronts.clear();
        self.nodes.clear();
        let back = self.admin.put_back().await.map_err(|error| format!("not put back: {error}"))?;
        let path = self.sandbox.path().to_owned();
        self.sandbox.remove().map_err(|error| format!("{} is still there: {error}", path.display()))?;
        let back = if back.is_empty() { back } else { format!("; {back}") };
        if self.plan.keep {
            return Ok(format!("every process has ended; {} is kept{back}", path.display()));
        }
        if path.exists() {
            return Err(format!("{} is still there", path.display()));
        }
        Ok(format!("every process has ended, {} is gone{back}", path.display()))
    }
}

async fn reach_of(endpoint: Option<&str>) -> Result<Reach, DrillError> {
    let authority = endpoint.and_then(|url| url.strip_prefix("http://")).map(|rest| rest.trim_end_matches('/'));
    match authority {
        Some(authority) => Ok(Reach::Proxy(Proxy::start(authority.to_owned()).await.map_err(DrillError::Sandbox)?)),
        None => Ok(Reach::Uncut(
            "the drill cannot stand between the plugins and an endpoint with TLS; block it on the network for longer than \
             outage.grace and watch the plugin, or rehearse at an http endpoint on this host"
                .to_owned(),
        )),
    }
}

#[cfg(feature = "aws")]
async fn admin_of(kek: &KekPlan, sandbox: &Sandbox, identity: &str) -> Result<Box<dyn KekAdmin>, DrillError> {
    use crate::admin::aws::{AwsAdmin, Rotation};
    Ok(match kek {
        KekPlan::Local => Box::new(LocalAdmin::new(sandbox.path().join("keyring.json"))),
        KekPlan::Aws { key, region, endpoint, rotate_to, disable_old } => {
            let arn = identity.trim_start_matches("aws:").to_owned();
            let of_arn = arn.split(':').nth(3).map(str::to_owned);
            let region = region.clone().or(of_arn).unwrap_or_default();
            let rotation = match rotate_to {
                None => Rotation::OnDemand,
                Some(to) => {
                    let alias = key.find("alias/").and_then(|at| key.get(at..)).ok_or(DrillError::NoAlias)?;
                    Rotation::Retarget { alias: alias.to_owned(), to: to.clone(), may_disable: *disable_old }
                }
            };
            Box::new(AwsAdmin::new(arn, region, endpoint.as_deref(), rotation).await)
        }
    })
}

#[cfg(not(feature = "aws"))]
async fn admin_of(_: &KekPlan, sandbox: &Sandbox, _: &str) -> Result<Box<dyn KekAdmin>, DrillError> {
    // With another KEK the configuration was refused already.
    Ok(Box::new(LocalAdmin::new(sandbox.path().join("keyring.json"))))
}
