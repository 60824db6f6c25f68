//! Step 8: the proof that the old key may go. It goes only by a command of the operator's.

use crate::claim::{Sheet, Step};
use crate::live::command;
use crate::live::objects;
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;
use kube_kms_etcd::verdict::Verdict;

pub(crate) static STEP: Step = Step {
    number: 8,
    name: "retire",
    passes_when: "nothing in etcd needs another key than the new one",
    claims: &[
        "the new key is the only one that anything in etcd needs",
        "the command that retires the old key succeeds",
        "every object reads back through every API server after that",
    ],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    w.not_dry("show which keys anything in etcd still needs")?;
    let (old, new) = w.keys()?;
    if !w.state.migrated {
        return Err("objects may be under the old key (step 7)".to_owned());
    }
    let tally = w.scan().await?;
    let verdict = Verdict::expect_only(&tally, &new.to_string());
    sheet.judge(1, none(&verdict.against, format!("{} objects under {new}, none under another key", verdict.objects)));
    if !verdict.holds {
        return Err("something needs another key".to_owned());
    }
    let words = w.plan.retire_command.clone();
    if words.is_empty() {
        w.note(&format!(
            "nothing in this etcd needs {old}. Before you disable it: is it in a backup that may have to be restored? \
             (kmsctl scan --snapshot FILE). Disable, do not delete."
        ));
        sheet.not_tried(2, "left to you: no --retire-command was given");
        sheet.not_tried(3, "the old key was not retired");
        return Ok(());
    }
    w.confirm("retire", &format!("Run `{}` now? Backups under {old} need that key.", words.join(" "))).await?;
    w.doing("retiring the old key");
    let ran = command::run(&words).await;
    sheet.judge(2, ran.clone());
    ran.map_err(|_| "the command failed".to_owned())?;
    if w.state.objects.is_empty() {
        sheet.not_tried(3, "the drill has no objects of its own (step 2)");
        return Ok(());
    }
    w.pause().await;
    let failed = objects::read_all(w).await;
    sheet.judge(3, none(&failed, format!("{} objects", w.state.objects.len())));
    Ok(())
}
