//! Step 9: nobody reaches the KEK, for longer than the grace and for longer than an API server writes without an agreement.

use crate::claim::{Sheet, Step};
use crate::front::unopened;
use crate::load::{Lane, Load, verdict};
use crate::node::Node;
use crate::script::Playing;
use crate::step::ms;
use crate::tempo::{SLACK, Tempo};
use crate::world::World;
use kms_v2_judge::apiserver::FindingCode;
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 9,
    name: "outage",
    passes_when: "the KEK is away: the API servers keep writing for the whole grace and after it; recovery is clean",
    claims: &[
        "the KEK is away: a plugin that starts now has no data key",
        "for the whole grace every Status is `ok` and names the key_id of before",
        "after the grace every Status says what is wrong, and still names that key_id; the API servers are not ready",
        "from the beginning to long after the grace no write, read, Encrypt or Decrypt failed",
        "after the outage every Status is `ok` again by itself, under the same key_id, and every API server is ready",
        "everything opens, on the running nodes and on one that was never there",
    ],
};

/// What an operator reads in the Status of a degraded plugin.
const DEGRADED: &str = "serving from memory";
const STARTS_NOT: Duration = Duration::from_secs(3);

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let key_ids: Vec<Option<String>> =
        w.nodes.iter().map(|node| w.timeline.last(&node.name).and_then(|seen| seen.key_id)).collect();
    let Some(Some(key_id)) = key_ids.first().cloned().filter(|first| key_ids.iter().all(|id| id == first)) else {
        return Err("the plugins do not report the same key_id".to_owned());
    };
    let begin = w.timeline.now_ms();
    let cut = w.reach.cut().map_err(|error| error.to_string())?;
    w.progress.note(&cut);
    let load = Load::start(&w.fronts, &w.nodes, w.tempo);
    w.expected.push(FindingCode::HealthzNotOk);
    let held = while_cut(w, sheet, &key_id, begin).await;
    let lanes = load.end().await;
    w.reach.restore().map_err(|error| format!("the outage cannot be ended: {error}"))?;
    sheet.judge(4, verdict(&lanes.iter().collect::<Vec<&Lane>>()));
    sheet.number("requestsWhileAway", lanes.iter().fold(0, |sum, lane| sum.saturating_add(lane.requests)));
    held?;
    recovery(w, sheet, &key_id).await
}

async fn while_cut(w: &mut World, sheet: &mut Sheet, key_id: &str, begin: u64) -> Result<(), String> {
    let (tempo, watch) = (w.tempo, Stopwatch::start());
    w.doing("the KEK is away; within the grace", 0, 0);
    // The age of an outage counts from the last good probe, which may be an interval before the cut.
    let invisible = tempo.grace.saturating_sub(tempo.probe_interval.mul_f64(1.1)).saturating_sub(tempo.probe_timeout);
    tokio::time::sleep(invisible).await;
    let said: Vec<String> = w
        .nodes
        .iter()
        .flat_map(|node| w.timeline.deviations(&node.name, begin, key_id))
        .map(|seen| format!("node {}: {} {}", seen.node, seen.health, seen.key_id.unwrap_or_default()))
        .collect();
    sheet.judge(
        2,
        if said.is_empty() {
            Ok(format!("`ok` and {key_id} for {}; outage.grace is {}", ms(invisible), ms(tempo.grace)))
        } else {
            Err(said.join("; "))
        },
    );
    w.doing("the KEK is away; waiting for the end of the grace", 0, 0);
    let is_degraded = |w: &World, node: &Node| {
        w.timeline.last(&node.name).is_some_and(|s| s.health.contains(DEGRADED) && s.key_id.as_deref() == Some(key_id))
    };
    // A failed probe is repeated within 6 s.
    let within = tempo.grace.saturating_add(Duration::from_secs(6)).saturating_add(SLACK);
    let degraded = w.until_nodes(within, is_degraded).await;
    let visible = watch.elapsed();
    sheet.time("visibleAfterMs", visible);
    // Nobody is started before, so that the requests have the machine while the grace runs.
    let mut late = w.new_node()?;
    late.start().map_err(|error| format!("node {}: {error}", late.name))?;
    let started = late.until_ok(STARTS_NOT).await;
    sheet.judge(
        1,
        match started {
            Ok((key_id, _)) => Err(format!("it is well and reports {key_id}")),
            Err(said) => Ok(said),
        },
    );
    drop(late);
    w.doing("the KEK is away; beyond what an API server's writes live", 0, 0);
    tokio::time::sleep(tempo.beyond_the_write_state().saturating_sub(STARTS_NOT)).await;
    let ready: Vec<&str> = w.fronts.iter().filter(|front| front.is_ready()).map(|front| front.name.as_str()).collect();
    let said = w.nodes.first().and_then(|node| w.timeline.last(&node.name)).map(|seen| seen.health).unwrap_or_default();
    sheet.judge(
        3,
        match (degraded, ready.is_empty()) {
            (Ok(()), true) => Ok(format!("{said:?} {} after the cut", ms(visible))),
            (Ok(()), false) => Err(format!("API server {} is ready all the same", ready.join(", "))),
            (Err(nodes), _) => Err(format!("not node {nodes} within {}; it says {said:?}", ms(within))),
        },
    );
    sheet.time("awayMs", watch.elapsed());
    Ok(())
}

async fn recovery(w: &mut World, sheet: &mut Sheet, key_id: &str) -> Result<(), String> {
    w.doing("the KEK is back", 0, 0);
    let watch = Stopwatch::start();
    let is_well = |w: &World, node: &Node| {
        w.timeline.last(&node.name).is_some_and(|seen| seen.health == "ok" && seen.key_id.as_deref() == Some(key_id))
    };
    let well = w.until_nodes(Tempo::RECOVERS_WITHIN, is_well).await;
    let after = watch.elapsed();
    sheet.time("recoveredAfterMs", after);
    let ready_within = w.tempo.api_servers_follow_within();
    while !w.fronts.iter().all(|front| front.is_ready()) && watch.elapsed() < after.saturating_add(ready_within) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let unready: Vec<&str> = w.fronts.iter().filter(|front| !front.is_ready()).map(|f| f.name.as_str()).collect();
    sheet.judge(
        5,
        match (well, unready.is_empty()) {
            (Ok(()), true) => Ok(format!("{} after its end", ms(after))),
            (Ok(()), false) => Err(format!("API server {} is not ready", unready.join(", "))),
            (Err(nodes), _) => Err(format!("not node {nodes} within {}", ms(Tempo::RECOVERS_WITHIN))),
        },
    );
    let keys = w.store.keys();
    for front in &w.fronts {
        let failed = front.read_all(&w.store, &keys).await;
        if !failed.is_empty() {
            sheet.judge(6, Err(format!("API server {}: {}", front.name, unopened(&failed))));
        }
    }
    let fresh = match w.fresh().await {
        Ok(fresh) => fresh,
        Err(why) => {
            sheet.judge(6, Err(why));
            return Ok(());
        }
    };
    let failed = fresh.front.read_all(&w.store, &keys).await;
    let all = format!("{} objects on {} nodes", keys.len(), w.nodes.len().saturating_add(1));
    sheet.judge(6, if failed.is_empty() { Ok(all) } else { Err(unopened(&failed)) });
    w.done_with(fresh);
    Ok(())
}
