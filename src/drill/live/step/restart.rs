//! Step 6: the plugins are restarted, by a command of the operator's and never by the drill itself.

use crate::claim::{Sheet, Step};
use crate::live::command;
use crate::live::objects;
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 6,
    name: "restart",
    passes_when: "the restarted plugins come back with the new key, and everything opens",
    claims: &[
        "the command that restarts the plugins succeeds",
        "every plugin comes back and names the new key",
        "every object reads back through every API server",
    ],
};

/// A plugin and its first probe.
const BACK_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let words = w.plan.restart_command.clone();
    if words.is_empty() {
        for claim in 1..=STEP.claims.len() {
            sheet.not_tried(claim, "no --restart-command was given; `kmsctl drill rehearse` kills a plugin under load");
        }
        return Ok(());
    }
    w.not_dry("run the --restart-command")?;
    let (_, new) = w.keys()?;
    if !w.state.converged {
        return Err("not everybody has moved (step 4)".to_owned());
    }
    w.confirm("restart", &format!("Run `{}` now?", words.join(" "))).await?;
    w.doing("restarting the plugins");
    let ran = command::run(&words).await;
    sheet.judge(1, ran.clone());
    ran.map_err(|_| "the command failed".to_owned())?;
    let watch = Stopwatch::start();
    let behind = loop {
        w.pause().await;
        let behind = w.sockets_behind(&new);
        if behind.is_empty() || watch.elapsed() > BACK_WITHIN {
            break behind;
        }
    };
    match w.plan.sockets.len() {
        0 => sheet.not_tried(2, "no --socket was given"),
        sockets => sheet.judge(2, none(&behind, format!("{sockets} plugins, after {} s", watch.elapsed().as_secs()))),
    }
    if w.state.objects.is_empty() {
        sheet.not_tried(3, "the drill has no objects of its own (step 2)");
    } else {
        let failed = objects::read_all(w).await;
        sheet.judge(3, none(&failed, format!("{} objects", w.state.objects.len())));
    }
    Ok(())
}
