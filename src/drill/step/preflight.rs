//! Step 1: the plugins and the API servers are there and agree.

use crate::claim::{Sheet, Step};
use crate::front::Front;
use crate::script::Playing;
use crate::step::ms;
use crate::world::{STARTS_WITHIN, World};

pub(crate) static STEP: Step = Step {
    number: 1,
    name: "preflight",
    passes_when: "every plugin answers, with the same key_id everywhere; the store is counted as baseline",
    claims: &[
        "every plugin starts and answers Status with `ok`",
        "every plugin reports the key_id that the KEK's own answer gives",
        "every API server takes its plugin and is ready",
        "the store is empty before the drill writes to it",
    ],
};

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    let tally = w.store.tally();
    sheet.judge_if(4, w.store.len() == 0, tally.describe());
    let expected = w.old_key_id.clone().unwrap_or_default();
    w.doing("starting the plugins", 0, 0);
    for node in &mut w.nodes {
        if let Err(error) = node.start() {
            sheet.judge(1, Err(format!("the plugin on node {} cannot be started: {error}", node.name)));
            return Err("a plugin cannot be started".to_owned());
        }
    }
    let (mut started, mut ids) = (Vec::new(), Vec::new());
    for node in &mut w.nodes {
        match node.until_ok(STARTS_WITHIN).await {
            Ok((key_id, took)) => {
                started.push(format!("node {} after {}", node.name, ms(took)));
                sheet.time(format!("startedAfterMs.{}", node.name), took);
                ids.push((node.name.clone(), key_id));
            }
            Err(why) => {
                sheet.judge(1, Err(why));
                return Err("a plugin does not start".to_owned());
            }
        }
        w.timeline.watch(&node.name, node.target(), w.tempo.rpc_timeout);
    }
    sheet.judge(1, Ok(started.join(", ")));
    let others: Vec<String> =
        ids.iter().filter(|(_, id)| *id != expected).map(|(node, id)| format!("node {node} reports {id}")).collect();
    sheet.judge(
        2,
        if others.is_empty() { Ok(expected.clone()) } else { Err(format!("{}; it is {expected}", others.join(", "))) },
    );
    for node in &w.nodes {
        w.fronts.push(Front::start(&node.name, node.target(), w.tempo).await?);
    }
    let mut wrong = Vec::new();
    for front in &w.fronts {
        if let Err(unhealthy) = front.server.readyz().await {
            wrong.push(format!("API server {}: {unhealthy}", front.name));
        }
    }
    let count = w.fronts.len();
    sheet.judge(3, if wrong.is_empty() { Ok(format!("{count} API servers are ready")) } else { Err(wrong.join("; ")) });
    Ok(())
}
