//! Step 2: objects under the old key.

use crate::claim::{Sheet, Step};
use crate::front::unopened;
use crate::script::Playing;
use crate::step::OLD;
use crate::store::Store;
use crate::world::World;

pub(crate) static STEP: Step = Step {
    number: 2,
    name: "seed",
    passes_when: "the objects are sealed under the old key and read back",
    claims: &[
        "every object is written, and under the old key_id",
        "every object reads back byte for byte, through every API server",
        "a value that was moved to another etcd key, or changed in one bit, does not open",
    ],
};

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

/// Writes so many objects of this group, through the API servers by turns; what failed.
pub(crate) fn write(w: &mut World, group: &str, count: usize) -> Vec<String> {
    let mut failed = Vec::new();
    let turns = w.fronts.iter().cycle();
    for (n, front) in (0..count).zip(turns) {
        let key = Store::key(group, n);
        match front.server.write(&key, &Store::content(&key)) {
            Ok(value) => w.store.put(&key, value),
            Err(error) => failed.push(format!("{key} through API server {}: {error}", front.name)),
        }
        if n.is_multiple_of(100) {
            w.doing("writing objects", n, count);
        }
    }
    failed
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let (count, old) = (w.plan.objects, w.old_key_id.clone().unwrap_or_default());
    let failed = write(w, OLD, count);
    let tally = w.store.tally();
    let first = failed.first().map_or_else(String::new, |why| format!("; {} failed, the first {why}", failed.len()));
    sheet.judge_if(1, failed.is_empty() && tally.count(&old) == count, format!("{}{first}", tally.describe()));
    sheet.number("objects", u64::try_from(w.store.len()).unwrap_or(u64::MAX));
    let keys = w.store.keys();
    for front in &w.fronts {
        w.doing(&format!("reading them through API server {}", front.name), 0, 0);
        let failed = front.read_all(&w.store, &keys).await;
        sheet.judge_if(
            2,
            failed.is_empty(),
            if failed.is_empty() {
                format!("{} objects through {} API servers", keys.len(), w.fronts.len())
            } else {
                format!("API server {}: {}", front.name, unopened(&failed))
            },
        );
    }
    let pair = (keys.first(), keys.get(1), w.fronts.first());
    let (Some(one), Some(other), Some(front)) = pair else { return Err("there are not two objects".to_owned()) };
    let value = w.store.get(one).unwrap_or_default();
    let mut flipped = value.to_vec();
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    let moved = front.server.read(other, value).await.is_ok();
    let changed = front.server.read(one, &flipped).await.is_ok();
    sheet.judge_if(
        3,
        !moved && !changed,
        match (moved, changed) {
            (false, false) => "neither opens",
            (true, _) => "the moved value opens",
            _ => "the changed value opens",
        },
    );
    Ok(())
}
