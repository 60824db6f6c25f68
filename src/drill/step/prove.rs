//! Step 5: what is new is under the new key, and what is old still opens.

use crate::claim::{Sheet, Step};
use crate::front::unopened;
use crate::script::Playing;
use crate::step::seed::write;
use crate::step::{NEW, OLD};
use crate::world::World;
use kms_v2_client::plugin::Rpc;

pub(crate) static STEP: Step = Step {
    number: 5,
    name: "prove both",
    passes_when: "new objects carry the new key_id; every old object still opens, from an empty cache too",
    claims: &[
        "every new object is under the new key_id",
        "every object opens on the API servers that run",
        "every object opens on an API server and a plugin that were never there: nothing in memory, nothing on disk",
        "no old object was touched by the rotation: all are still under the old key_id",
    ],
};

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let (old, new) = w.key_ids()?;
    let count = w.plan.objects.div_ceil(10).max(10);
    let failed = write(w, NEW, count);
    let tally = w.store.tally();
    let of_group = |id: &str, group: &str| {
        let prefix = format!("/{group}-");
        tally.under.get(id).map_or(0, |keys| keys.iter().filter(|key| key.contains(&prefix)).count())
    };
    let first = failed.first().map_or_else(String::new, |why| format!("; {} failed, the first {why}", failed.len()));
    let (ours, still) = (of_group(&new, NEW), of_group(&old, OLD));
    sheet.judge_if(1, failed.is_empty() && ours == count, format!("{ours} of {count} under {new}{first}"));
    sheet.judge_if(4, still == w.plan.objects, format!("{still} of {} under {old}", w.plan.objects));
    let keys = w.store.keys();
    for front in &w.fronts {
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
    w.doing("reading everything on a node that was never there", 0, 0);
    let fresh = match w.fresh().await {
        Ok(fresh) => fresh,
        Err(why) => {
            sheet.judge(3, Err(why));
            return Ok(());
        }
    };
    let failed = fresh.front.read_all(&w.store, &keys).await;
    let decrypts = fresh.front.server.report().counts.calls(Rpc::Decrypt);
    sheet.number("decryptsOfAColdStart", decrypts);
    sheet.judge_if(
        3,
        failed.is_empty(),
        if failed.is_empty() { format!("{} objects with {decrypts} Decrypts", keys.len()) } else { unopened(&failed) },
    );
    w.done_with(fresh);
    Ok(())
}
