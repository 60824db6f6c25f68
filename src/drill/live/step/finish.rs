//! Step 10: what only the whole drill shows, and the end of everything that it made.

use crate::claim::{Sheet, Step};
use crate::live::abort;
use crate::live::step::converge::back;
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;

pub(crate) static STEP: Step = Step {
    number: 10,
    name: "report",
    passes_when: "nobody went back to the old key, and nothing that the drill made is left",
    claims: &[
        "from the first step to the last nobody went back to a key that it had left",
        "everything that the drill made in the cluster is deleted",
    ],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    sheet.judge(1, back(w));
    w.not_dry("delete what it has made")?;
    if !w.state.migrated {
        return Err("the drill is not over: --resume goes on, --abort ends it and deletes what it has made".to_owned());
    }
    w.doing("deleting what the drill has made");
    let made = w.state.objects.len().saturating_add(w.state.migrations.len());
    let left = abort::tear_down(w).await;
    w.keep()?;
    sheet.judge(2, none(&left, format!("{made} of them")));
    if left.is_empty() { Ok(()) } else { Err("something is left in the cluster".to_owned()) }
}
