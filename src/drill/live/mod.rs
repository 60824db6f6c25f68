//! A drill on a live cluster: its own plugins, API servers and etcd, in the same ten steps as a rehearsal.
//!
//! Guarantees: nothing is changed that was not asked for and confirmed; objects are not migrated before every API server has moved;
//! no key is disabled but by a command of the operator's; a drill that ends early can be resumed, or aborted with words for
//! the state it leaves. Refuses to know the command line. SPEC: KEP-3299 (rotation), KEP-4192 (StorageVersionMigration).

mod abort;
mod cluster;
mod command;
mod encryption;
mod exposition;
mod migration;
mod objects;
pub mod plan;
mod state;
mod step;
mod world;

use crate::claim::{StepReport, Verdict, millis};
use crate::report::{LIVE_DOES_NOT_PROVE, LIVE_PROVES, Report, Totals};
use crate::script::{Progress, play_one};
use cluster::Server;
use kube_kms_etcd::client::EtcdClient;
use kube_kms_os::Stopwatch;
use plan::{LiveError, LivePlan};
use state::{Done, State};
use std::sync::Arc;
use step::SCRIPT;
use world::Live;

/// Whether a drill begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// There must be none under way.
    Start,
    /// There must be one.
    State,
}

async fn servers(plan: &LivePlan) -> Result<Vec<Server>, LiveError> {
    match &plan.cluster {
        None => Ok(Vec::new()),
        Some(cluster) => cluster::servers(cluster).await.map_err(LiveError::Kubeconfig),
    }
}

/// Drills, unless `interrupted` comes first.
///
/// # Errors
/// When there is nothing to report. What was done is in the state file then.
pub async fn run(
    plan: LivePlan,
    etcd: EtcdClient,
    from: From,
    progress: Arc<dyn Progress>,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, LiveError> {
    tokio::pin!(interrupted);
    let asks: Vec<&str> = plan.asks().into_iter().filter(|step| !plan.yes.contains(*step)).collect();
    if !plan.terminal && !plan.dry_run && !asks.is_empty() {
        return Err(LiveError::NotConfirmed(asks.join(", ")));
    }
    let state = match from {
        From::Start => State::begin(&plan)?,
        From::State => State::resume(&plan)?,
    };
    let watch = Stopwatch::start();
    let servers = servers(&plan).await?;
    if !plan.dry_run {
        state.write(&plan.state)?;
    }
    let mut live = Live::new(plan, state, servers, etcd, Arc::clone(&progress));
    let begun = live.state.steps.len();
    for scene in SCRIPT.iter().skip(begun) {
        let (report, is_complete) = tokio::select! {
            played = play_one(scene, &mut live, &*progress) => played,
            () = &mut interrupted => {
                live.keep().map_err(LiveError::State)?;
                return Err(LiveError::Interrupted(live.state.steps.len().saturating_add(1)));
            }
        };
        let complete = is_complete && report.verdict != Verdict::DidNotHold;
        live.state.steps.push(Done { complete, report });
        if live.state.steps.len() == SCRIPT.len() && live.state.steps.iter().all(|done| done.complete) {
            live.state.ended = Some("it went to its end".to_owned());
        }
        live.keep().map_err(LiveError::State)?;
    }
    Ok(report(live, millis(watch.elapsed())))
}

fn report(live: Live, took_ms: u64) -> Report {
    let timeline = live.timeline.all();
    let Live { plan, state, .. } = live;
    let is_whole = plan.dry_run || state.ended.is_some();
    let steps: Vec<StepReport> = state.steps.into_iter().map(|done| done.report).collect();
    let totals = Totals::of(&steps);
    Report {
        drill: "run",
        version: env!("CARGO_PKG_VERSION"),
        began: state.began,
        took_ms,
        kek: if plan.rotate.is_some() { "rotated by the drill" } else { "rotated by the operator" },
        objects: plan.objects,
        // A drill that has left something undone has not passed, though nothing failed.
        passed: totals.did_not_hold == 0 && is_whole,
        totals,
        old_key_id: state.old.map(|key| key.to_string()),
        new_key_id: state.new.map(|key| key.to_string()),
        settings: Vec::new(),
        steps,
        timeline,
        sandbox: None,
        proves: LIVE_PROVES.to_vec(),
        does_not_prove: LIVE_DOES_NOT_PROVE.to_vec(),
    }
}

/// Ends a drill: what state it leaves, one sentence a line.
///
/// # Errors
/// When there is none, or it cannot be told.
pub async fn abort(plan: LivePlan, etcd: EtcdClient, progress: Arc<dyn Progress>) -> Result<Vec<String>, LiveError> {
    let state = State::resume(&plan)?;
    let servers = servers(&plan).await?;
    let mut live = Live::new(plan, state, servers, etcd, progress);
    let lines = abort::abort(&mut live).await;
    live.state.ended = Some("it was aborted".to_owned());
    live.keep().map_err(LiveError::State)?;
    Ok(lines)
}
