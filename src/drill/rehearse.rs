//! The rehearsal: builds the world, plays the ten steps, takes the world down again however it ended.

use crate::claim::millis;
use crate::plan::{DrillError, KekPlan, Plan};
use crate::report::{DOES_NOT_PROVE, PROVES, Report, Totals};
use crate::script::{Progress, play};
use crate::step::SCRIPT;
use crate::world::World;
use kube_kms_os::{Stopwatch, wall_clock};
use std::sync::Arc;

/// Rehearses, unless `interrupted` comes first.
///
/// # Errors
/// When there is nothing to report: the sandbox or the KEK is not usable, or it was interrupted. Nothing is left behind then
/// either; what could not be put back is named.
pub async fn rehearse(
    plan: Plan,
    progress: Arc<dyn Progress>,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, DrillError> {
    tokio::pin!(interrupted);
    let (watch, began) = (Stopwatch::start(), humantime::format_rfc3339_seconds(wall_clock()).to_string());
    let nothing = || DrillError::Interrupted("nothing was started".to_owned());
    let mut world = tokio::select! {
        built = World::build(plan, Arc::clone(&progress)) => built?,
        () = &mut interrupted => return Err(nothing()),
    };
    let steps = tokio::select! {
        steps = play(&SCRIPT, &mut world, &*progress) => Some(steps),
        () = &mut interrupted => None,
    };
    // The last step has done so already, and this is then nothing.
    let end = world.tear_down().await;
    let Some(steps) = steps else {
        return Err(DrillError::Interrupted(end.unwrap_or_else(|left| left)));
    };
    let totals = Totals::of(&steps);
    Ok(Report {
        drill: "rehearse",
        version: env!("CARGO_PKG_VERSION"),
        began,
        took_ms: millis(watch.elapsed()),
        kek: match world.plan.kek {
            KekPlan::Local => "local",
            KekPlan::Aws { .. } => "aws",
        },
        objects: world.plan.objects,
        passed: totals.did_not_hold == 0,
        totals,
        old_key_id: world.old_key_id.clone(),
        new_key_id: world.new_key_id.clone(),
        settings: world.tempo.settings(),
        steps,
        timeline: std::mem::take(&mut world.seen),
        sandbox: world.plan.keep.then(|| world.sandbox.path().display().to_string()),
        proves: PROVES.to_vec(),
        does_not_prove: DOES_NOT_PROVE.to_vec(),
    })
}
