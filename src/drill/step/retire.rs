//! Step 8: the old key is retired, an object that is still under it fails as documented, and the retirement is undone.

use crate::admin::AdminError;
use crate::claim::{Sheet, Step};
use crate::front::{Front, unopened};
use crate::script::Playing;
use crate::step::ms;
use crate::tempo::SLACK;
use crate::world::World;
use kms_v2_client::kms::Target;
use kms_v2_judge::apiserver::{Rewrite, TransformError};
use kube_kms_os::Stopwatch;
use std::time::Duration;
use tonic::Code;

pub(crate) static STEP: Step = Step {
    number: 8,
    name: "retire",
    passes_when: "the old key is retired; all rewritten objects open; an object still under it fails with the documented error",
    claims: &[
        "the old key is retired",
        "every rewritten object opens on a node that was never there",
        "the object that was left under the old key fails there, with FAILED_PRECONDITION and the documented words",
        "it fails on the running plugins too, once `cache.ttl` has passed",
        "the running plugins stay well, under the new key_id",
        "reinstating the old key brings the object back, and it can be rewritten",
    ],
};

const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let (old, new) = w.key_ids()?;
    let Some(left) = w.left_behind.clone() else {
        let count = w.store.tally().count(&old);
        return Err(format!("{count} objects are under the old key (step 7): retiring it would lose them"));
    };
    let since = w.timeline.now_ms();
    match w.admin.retire().await {
        Ok(done) => sheet.judge(1, Ok(done)),
        Err(AdminError::NotPossible(why)) => return Err(why),
        Err(error) => {
            sheet.judge(1, Err(error.to_string()));
            return Err("the old key was not retired".to_owned());
        }
    }
    let end = while_retired(w, sheet, &left).await;
    let changes: Vec<String> = w
        .nodes
        .iter()
        .flat_map(|node| w.timeline.deviations(&node.name, since, &new))
        .map(|seen| format!("node {}: {} {}", seen.node, seen.health, seen.key_id.unwrap_or_default()))
        .collect();
    sheet.judge(
        5,
        if changes.is_empty() { Ok(format!("`ok` and {new} all the time")) } else { Err(changes.join("; ")) },
    );
    let undone = w.admin.reinstate().await;
    let restored = reinstated(w, &left, undone.map_err(|error| error.to_string())).await;
    sheet.judge(6, restored);
    end
}

async fn while_retired(w: &mut World, sheet: &mut Sheet, left: &str) -> Result<(), String> {
    let keys: Vec<String> = w.store.keys().into_iter().filter(|key| key != left).collect();
    w.doing("reading everything without the old key", 0, 0);
    match w.fresh().await {
        Ok(fresh) => {
            let target = fresh.node.target();
            let refused = until_refused(w, &fresh.front, &target, left, w.tempo.spreads_within).await;
            let failed = fresh.front.read_all(&w.store, &keys).await;
            let all = format!("{} objects", keys.len());
            sheet.judge(2, if failed.is_empty() { Ok(all) } else { Err(unopened(&failed)) });
            sheet.judge(3, refused.map(|(error, _)| error));
            w.done_with(fresh);
        }
        Err(why) => sheet.judge(2, Err(why)),
    }
    w.doing("waiting for cache.ttl", 0, 0);
    let within = w.tempo.cache_ttl.saturating_add(SLACK);
    let mut seen = Vec::new();
    for node in &w.nodes {
        let target = node.target();
        // Another API server: the one that runs has the seed in its cache, for a day.
        let front = Front::start(&node.name, target.clone(), w.tempo).await?;
        match until_refused(w, &front, &target, left, within).await {
            Ok((_, after)) => seen.push(format!("node {} after {}", node.name, ms(after))),
            Err(why) => {
                sheet.judge(4, Err(format!("node {}: {why}", node.name)));
                return Ok(());
            }
        }
    }
    sheet.judge(4, Ok(seen.join(", ")));
    Ok(())
}

/// Reads it on a restarted API server until that fails as documented: the words, and when.
async fn until_refused(
    w: &World,
    front: &Front,
    target: &Target,
    key: &str,
    within: Duration,
) -> Result<(String, Duration), String> {
    let watch = Stopwatch::start();
    loop {
        front.restart(target.clone(), w.tempo).await?;
        let last = match front.server.read(key, w.store.get(key).unwrap_or_default()).await {
            Err(TransformError::Decrypt(status)) if is_documented(&status) => {
                return Ok((format!("{:?}: {}", status.code(), status.message()), watch.elapsed()));
            }
            Err(error) => format!("it fails otherwise: {error}"),
            Ok(_) => "it still opens".to_owned(),
        };
        if watch.elapsed() >= within {
            return Err(format!("{last}, after {}", ms(watch.elapsed())));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// docs/failure-modes.md: a KEK version that is dead, and the constant words for it.
fn is_documented(status: &tonic::Status) -> bool {
    use kube_kms_core::fault::Reason::{KekDisabled, KekGone, KekMaterialGone, KekPendingDeletion};

    let dead = [KekDisabled, KekGone, KekMaterialGone, KekPendingDeletion];
    status.code() == Code::FailedPrecondition && dead.iter().any(|reason| status.message().contains(reason.phrase()))
}

/// The object opens again on a node that was never there, and is rewritten.
async fn reinstated(w: &mut World, left: &str, undone: Result<String, String>) -> Result<String, String> {
    let done = undone?;
    let fresh = w.fresh().await?;
    let value = w.store.get(left).unwrap_or_default().to_vec();
    let watch = Stopwatch::start();
    let outcome = loop {
        match fresh.front.server.rewrite(left, &value).await {
            Ok(Rewrite::Value(value)) => {
                w.store.put(left, value);
                break Ok(format!("{done}; it opens and is rewritten"));
            }
            Ok(Rewrite::Unneeded) => break Err("it opens and is not rewritten".to_owned()),
            Err(error) if watch.elapsed() >= w.tempo.spreads_within => break Err(format!("{done}; {error}")),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    w.done_with(fresh);
    outcome
}
