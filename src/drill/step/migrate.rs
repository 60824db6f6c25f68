//! Step 7: every object is written again, as a storage migration does, and counted. One is left behind on purpose.

use crate::claim::{Sheet, Step};
use crate::script::Playing;
use crate::step::OLD;
use crate::store::Store;
use crate::world::World;
use kms_v2_judge::apiserver::Rewrite;

pub(crate) static STEP: Step = Step {
    number: 7,
    name: "migrate",
    passes_when: "the objects are rewritten; a count shows none under the old key_id but the one left on purpose",
    claims: &[
        "every API server writes under the new key_id, so that a migration can begin",
        "every object under the old key_id is rewritten without a failure",
        "the count shows none under the old key_id, but the one that was left on purpose",
        "a second migration finds nothing to write",
    ],
};

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

/// One pass: written, left alone because they are current, failed.
async fn pass(w: &mut World, left: &str) -> (u64, u64, Vec<String>) {
    let (mut written, mut current, mut failed) = (0_u64, 0_u64, Vec::new());
    let keys = w.store.keys();
    let turns = w.fronts.iter().cycle();
    for (n, (key, front)) in keys.iter().zip(turns).enumerate() {
        let Some(value) = w.store.get(key).filter(|_| key != left) else { continue };
        match front.server.rewrite(key, value).await {
            Ok(Rewrite::Value(value)) => {
                w.store.put(key, value);
                written = written.saturating_add(1);
            }
            Ok(Rewrite::Unneeded) => current = current.saturating_add(1),
            Err(error) => failed.push(format!("{key}: {error}")),
        }
        if n.is_multiple_of(50) {
            w.progress.doing("rewriting objects", n, keys.len());
        }
    }
    (written, current, failed)
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let (old, new) = w.key_ids()?;
    // SPEC: KEP-3299: a migration that begins before every API server has moved leaves objects behind and reports success.
    let behind = w.fronts.iter().filter(|front| front.server.write_key_id().as_ref() != Some(&new));
    let behind: Vec<&str> = behind.map(|front| front.name.as_str()).collect();
    if !behind.is_empty() {
        sheet.judge(1, Err(format!("API server {} does not", behind.join(", "))));
        return Err("a migration before every API server has moved would leave objects behind".to_owned());
    }
    sheet.judge(1, Ok(format!("{} API servers, {new}", w.fronts.len())));
    let left = Store::key(OLD, 0);
    let stale = w.store.tally().count(&old);
    let (written, _, failed) = pass(w, &left).await;
    sheet.number("rewritten", written);
    let first = failed.first().map_or_else(String::new, |why| format!("; {} failed, the first {why}", failed.len()));
    let wanted = u64::try_from(stale.saturating_sub(1)).unwrap_or(u64::MAX);
    sheet.judge_if(2, failed.is_empty() && written == wanted, format!("{written} of {wanted} rewritten{first}"));
    let tally = w.store.tally();
    let is_so = tally.under.get(&old).is_some_and(|keys| *keys == [left.clone()]) && tally.unknown == 0;
    sheet.judge_if(3, is_so, tally.describe());
    let (again, current, _) = pass(w, &left).await;
    sheet.judge_if(4, again == 0, format!("{again} written, {current} are current"));
    w.left_behind = is_so.then_some(left);
    Ok(())
}
