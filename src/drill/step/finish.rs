//! Step 10: what only the whole drill shows, and the end of everything that it started.

use crate::claim::{Sheet, Step};
use crate::front::describe;
use crate::script::Playing;
use crate::timeline::came_back;
use crate::world::World;

pub(crate) static STEP: Step = Step {
    number: 10,
    name: "report",
    passes_when: "the whole drill is free of a way back and of findings, and nothing of it is left",
    claims: &[
        "from the first step to the last no Status went back to a key_id that it had left",
        "the API servers found nothing else against the plugins",
        "every process that the drill started has ended, and the sandbox is gone",
    ],
};

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    if w.fronts.is_empty() {
        sheet.not_tried(1, "no API server could be started (step 1)");
        sheet.not_tried(2, "no API server could be started (step 1)");
    } else {
        judge_whole(w, sheet);
    }
    w.doing("ending everything", 0, 0);
    let end = w.tear_down().await;
    if w.plan.keep && end.is_ok() {
        sheet.not_tried(3, end.unwrap_or_default());
    } else {
        sheet.judge(3, end);
    }
    Ok(())
}

fn judge_whole(w: &World, sheet: &mut Sheet) {
    let lives: Vec<(String, Vec<String>)> =
        w.nodes.iter().map(|node| (node.name.clone(), w.timeline.key_ids(&node.name, 0))).collect();
    let back = lives.iter().filter_map(|(node, ids)| Some(format!("node {node} went back to {}", came_back(ids)?)));
    let back: Vec<String> = back.collect();
    let all: Vec<String> = lives.iter().map(|(node, ids)| format!("node {node}: {}", ids.join(", then "))).collect();
    sheet.judge(1, if back.is_empty() { Ok(all.join("; ")) } else { Err(back.join("; ")) });
    let now = w.fronts.iter().map(|front| (front.name.clone(), front.findings_but(&w.expected)));
    let found: Vec<String> = now
        .chain(w.found_before.iter().cloned())
        .filter(|(_, findings)| !findings.is_empty())
        .map(|(name, findings)| format!("API server {name}: {}", describe(&findings)))
        .collect();
    let servers = w.fronts.len().saturating_add(w.found_before.len());
    let expected = if w.expected.is_empty() { "" } else { ", but for the health that step 9 took away" };
    sheet.judge(
        2,
        if found.is_empty() { Ok(format!("{servers} API servers{expected}")) } else { Err(found.join("; ")) },
    );
}
