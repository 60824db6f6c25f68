//! Step 4: every plugin and every API server moves to the new key, once, while requests run.

use crate::claim::{Sheet, Step};
use crate::load::verdict;
use crate::node::Node;
use crate::script::Playing;
use crate::step::ms;
use crate::world::World;
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 4,
    name: "converge",
    passes_when: "every Status moves to the new key_id once, never back, within the stated time",
    claims: &[
        "every Status names the new key_id within the stated time",
        "every Status moves once, and not back while it is watched on",
        "every API server writes under the new key_id within its poll",
        "from the rotation to here no write, read, Encrypt or Decrypt failed",
    ],
};

/// How long every Status is watched after it has moved: longer than an API server takes from poll to poll.
const WATCHED: Duration = Duration::from_secs(7);

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(async move {
        let moved = run(w, sheet).await;
        if let Some(load) = w.load.take() {
            let lanes = load.end().await;
            if w.new_key_id.is_some() {
                sheet.judge(4, verdict(&lanes.iter().collect::<Vec<_>>()));
                let slowest = lanes.iter().map(|lane| lane.slowest).max().unwrap_or_default();
                let p99 = lanes.iter().map(|lane| lane.p99).max().unwrap_or_default();
                sheet.time("slowestRequestMs", slowest);
                sheet.time("p99RequestMs", p99);
            }
        }
        moved
    })
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let (old, new) = w.key_ids()?;
    let (stated, watch) = (w.tempo.converges_within(), Stopwatch::start());
    w.doing("waiting for every Status to move", 0, 0);
    let names_new = |w: &World, node: &Node| w.timeline.changed_at(&node.name, &new).is_some();
    let moved = w.until_nodes(stated, names_new).await;
    let mut when = Vec::new();
    for node in &w.nodes {
        if let Some(at) = w.timeline.changed_at(&node.name, &new) {
            let after = at.saturating_sub(w.rotated_at);
            when.push(format!("node {} after {after} ms", node.name));
            sheet.number(format!("statusMovedAfterMs.{}", node.name), after);
        }
    }
    sheet.judge(
        1,
        match &moved {
            Ok(()) => Ok(format!("{}; stated {}", when.join(", "), ms(stated))),
            Err(nodes) => Err(format!("not on node {nodes} within {}", ms(stated))),
        },
    );
    let stated = w.tempo.api_servers_follow_within();
    let asked = Stopwatch::start();
    let mut late: Vec<&str>;
    loop {
        let behind = w.fronts.iter().filter(|f| f.server.write_key_id().as_ref() != Some(&new));
        late = behind.map(|front| front.name.as_str()).collect();
        // Without a plugin that has moved there is nothing to follow.
        if late.is_empty() || moved.is_err() || asked.elapsed() >= stated {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    sheet.judge(
        3,
        if late.is_empty() {
            Ok(format!("{} after the rotation, and {} after the last Status", ms(watch.elapsed()), ms(asked.elapsed())))
        } else {
            Err(format!("API server {} still writes under {old}", late.join(", ")))
        },
    );
    sheet.time("apiServersMovedAfterMs", watch.elapsed());
    w.doing("watching for a way back", 0, 0);
    tokio::time::sleep(WATCHED).await;
    let wanted = [old, new];
    let wrong: Vec<String> = w
        .nodes
        .iter()
        .map(|node| (&node.name, w.timeline.key_ids(&node.name, w.rotated_at)))
        .filter(|(_, ids)| *ids != wanted)
        .map(|(name, ids)| format!("node {name}: {}", ids.join(", then ")))
        .collect();
    sheet.judge(
        2,
        if wrong.is_empty() {
            Ok(format!("one move on every node, watched for {} more", ms(WATCHED)))
        } else {
            Err(wrong.join("; "))
        },
    );
    Ok(())
}
