//! Step 3: the KEK is rotated, by the drill or by the operator, while requests run.

use crate::admin::AdminError;
use crate::claim::{Sheet, Step};
use crate::load::Load;
use crate::script::Playing;
use crate::step::ms;
use crate::world::World;
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 3,
    name: "rotate",
    passes_when: "the KEK rotates, by the drill or by the operator",
    claims: &["the KEK is rotated", "what the KEK wraps now has another key_id than before, by its own answer"],
};

/// An on-demand rotation of AWS KMS takes its time.
const COMPLETES_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn play<'a>(w: &'a mut World, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut World, sheet: &mut Sheet) -> Result<(), String> {
    w.running()?;
    let old = w.old_key_id.clone().unwrap_or_default();
    w.load = Some(Load::start(&w.fronts, &w.nodes, w.tempo));
    w.rotated_at = w.timeline.now_ms();
    w.doing("rotating the KEK", 0, 0);
    let (by, patience) = match w.admin.rotate().await {
        Ok(done) => {
            sheet.judge(1, Ok(done.clone()));
            (done, COMPLETES_WITHIN)
        }
        Err(AdminError::Denied(why)) if !w.plan.wait.is_zero() => {
            let instruction = w.admin.instruction();
            w.progress.note(&format!("{why}\nrotate it yourself now: {instruction}"));
            w.doing("waiting for you to rotate the KEK", 0, 0);
            ("rotated by the operator".to_owned(), w.plan.wait)
        }
        Err(error) => {
            let instruction = w.admin.instruction();
            let hint = format!("{error}; to rotate by hand give --wait 10m and, when it says so: {instruction}");
            sheet.judge(1, Err(hint));
            return Err("the KEK was not rotated".to_owned());
        }
    };
    let watch = Stopwatch::start();
    loop {
        match w.key_id_of_kek().await {
            Ok(new) if new != old => {
                sheet.judge(1, Ok(by));
                sheet.judge(2, Ok(format!("{old} before, {new} after {}", ms(watch.elapsed()))));
                sheet.time("kekRotatedAfterMs", watch.elapsed());
                w.new_key_id = Some(new);
                return Ok(());
            }
            _ if watch.elapsed() < patience => {}
            Ok(_) => {
                let seen = format!("still {old} after {}", ms(watch.elapsed()));
                sheet.judge(1, Err(seen.clone()));
                sheet.judge(2, Err(seen));
                return Err("the KEK was not rotated".to_owned());
            }
            Err(error) => {
                sheet.judge(2, Err(error));
                return Err("the KEK does not answer".to_owned());
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
