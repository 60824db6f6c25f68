//! Step 2: objects of the drill's own under the old key, when it may make any.

use crate::claim::{Sheet, Step};
use crate::live::objects;
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;

pub(crate) static STEP: Step = Step {
    number: 2,
    name: "seed",
    passes_when: "objects of its own are written under the old key and read back",
    claims: &[
        "every object is written",
        "every object is under the old key in etcd",
        "every object reads back through every API server",
    ],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let old = w.old()?;
    let count = w.plan.objects;
    if count == 0 {
        for claim in 1..=STEP.claims.len() {
            sheet.not_tried(claim, "without --create-objects the drill writes nothing");
        }
        return Ok(());
    }
    let (of, namespace) = (w.plan.objects_of.clone(), w.plan.namespace.clone());
    w.not_dry(&format!("create {count} {of} in namespace {namespace}, and delete them at the end"))?;
    w.confirm("seed", &format!("Create {count} {of} in namespace {namespace}, and delete them at the end?")).await?;
    let server = w.servers.first().ok_or_else(|| "there is no API server to write through".to_owned())?;
    let resource = server.resolve(&of).await?;
    // Of an attempt that was interrupted.
    let left = objects::delete_all(w).await;
    let mut failed = left;
    for n in 0..count {
        w.progress.0.doing("writing objects", n, count);
        if let Err(why) = objects::write(w, &resource, n, false).await {
            failed.push(why);
            break;
        }
    }
    sheet.judge(1, none(&failed, format!("{count} {of}")));
    if !failed.is_empty() {
        return Err("not every object was written".to_owned());
    }
    let mut wrong = Vec::new();
    for made in w.state.objects.clone() {
        match w.key_id_of(&made).await {
            Ok(key_id) if old.is(&key_id) => {}
            Ok(key_id) => wrong.push(format!("{} is under {key_id}", made.path)),
            Err(why) => wrong.push(why),
        }
    }
    sheet.judge(2, none(&wrong, format!("all under {old}")));
    let failed = objects::read_all(w).await;
    sheet.judge(3, none(&failed, format!("through {} API servers", w.servers.len())));
    Ok(())
}
