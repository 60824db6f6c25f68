//! Step 6: a plugin is killed in the middle of its work.

use crate::claim::{Sheet, Step};
use crate::front::unopened;
use crate::load::{Lane, Load, verdict};
use crate::script::Playing;
use crate::step::ms;
use crate::world::{STARTS_WITHIN, World};
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 6,
    name: "restart",
    passes_when: "the plugin is killed (SIGKILL) under load; everything opens again",
    claims: &[
        "the killed plugin is back and answers `ok`",
        "it reports the key_id of before",
        "no API server failed a write or a read of what it knows",
        "the other plugin failed nothing",
        "its own Encrypts and Decrypts failed only while it was away",
        "everything opens again, with the API server in front of it restarted as well",
    ],
};

const BEFORE: Duration = Duration::from_millis(700);
const AFTER: Duration = Duration::from_millis(500);
/// A request that began before it was well ends after.
const TOLERANCE: Duration = Duration::from_secs(1);

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let load = Load::start(&w.fronts, &w.nodes, w.tempo);
    w.doing("killing a plugin under load", 0, 0);
    tokio::time::sleep(BEFORE).await;
    let (Some(node), Some(front)) = (w.nodes.first_mut(), w.fronts.first()) else {
        return Err("there is no plugin to kill".to_owned());
    };
    let before = w.timeline.last(&node.name).and_then(|seen| seen.key_id).unwrap_or_default();
    node.kill();
    front.server.plugin_restarted();
    let watch = Stopwatch::start();
    let back = match node.start() {
        Ok(()) => node.until_ok(STARTS_WITHIN).await,
        Err(error) => Err(format!("it cannot be started: {error}")),
    };
    let away = watch.elapsed();
    tokio::time::sleep(AFTER).await;
    let lanes = load.end().await;
    let name = node.name.clone();
    let (key_id, _) = match back {
        Ok(back) => back,
        Err(why) => {
            sheet.judge(1, Err(why));
            return Err("the plugin did not come back".to_owned());
        }
    };
    sheet.judge(1, Ok(format!("{} after the kill", ms(away))));
    sheet.time("backAfterMs", away);
    sheet.judge_if(
        2,
        key_id == before,
        if key_id == before { key_id } else { format!("{before} before, {key_id} after") },
    );
    judge_lanes(sheet, &lanes, &name, away);
    w.doing("reading everything again", 0, 0);
    let (Some(node), Some(front)) = (w.nodes.first(), w.fronts.first()) else { return Ok(()) };
    front.restart(node.target(), w.tempo).await?;
    let keys = w.store.keys();
    let failed = front.read_all(&w.store, &keys).await;
    let all = format!("{} objects", keys.len());
    sheet.judge(6, if failed.is_empty() { Ok(all) } else { Err(unopened(&failed)) });
    Ok(())
}

fn judge_lanes(sheet: &mut Sheet, lanes: &[Lane], killed: &str, away: Duration) {
    let killed = format!("plugin {killed}");
    let api_servers: Vec<&Lane> = lanes.iter().filter(|lane| lane.is_api_server).collect();
    let others: Vec<&Lane> = lanes.iter().filter(|lane| !lane.is_api_server && lane.name != killed).collect();
    sheet.judge(3, verdict(&api_servers));
    sheet.judge(4, verdict(&others));
    if let Some(lane) = lanes.iter().find(|lane| lane.name == killed) {
        let bound = away.saturating_add(TOLERANCE);
        sheet.judge_if(5, lane.longest_gap <= bound, format!("{}; it was away for {}", lane.describe(), ms(away)));
        sheet.number("failedRequests", lane.failed);
        sheet.time("longestGapMs", lane.longest_gap);
    }
}
