//! The order of a drill's steps, and who is told how they go. `rehearse` and a drill on a live cluster each have a script
//! of their own over a world of their own; this plays either.
//!
//! Guarantees: every step of the script is in the result; one that cannot go on leaves the rest of its claims untried, with
//! the reason, and the next step is played all the same: whether it can run is for it to say.

use crate::claim::{Sheet, Step, StepReport};
use kube_kms_os::Stopwatch;
use std::fmt;
use std::pin::Pin;

/// A step at work. `Err` says why it could not go on.
pub type Playing<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// One step and what it does to the world.
pub struct Scene<W> {
    /// What it claims.
    pub step: &'static Step,
    /// What it does.
    pub play: for<'a> fn(&'a mut W, &'a mut Sheet) -> Playing<'a>,
}

impl<W> fmt::Debug for Scene<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.step.fmt(f)
    }
}

/// Told while a drill runs.
pub trait Progress: Send + Sync {
    /// A step begins.
    fn begins(&self, step: &Step);
    /// What it is at: `done` of `of`, or of nothing that can be counted when that is 0.
    fn doing(&self, what: &str, done: usize, of: usize);
    /// Something that the operator has to read now.
    fn note(&self, text: &str);
    /// A step has ended.
    fn ended(&self, report: &StepReport);
    /// Asks the operator, and waits for as long as that takes. No, unless there is somebody who says yes.
    fn confirm(&self, question: &str) -> bool;
}

/// Plays all of it, in order.
///
/// # Cancel safety
/// Dropping the future ends the step where it is; the world's own `Drop` cleans up.
pub async fn play<W>(script: &[Scene<W>], world: &mut W, progress: &dyn Progress) -> Vec<StepReport> {
    let mut reports = Vec::with_capacity(script.len());
    for scene in script {
        reports.push(play_one(scene, world, progress).await.0);
    }
    reports
}

/// Plays one step. Whether it went to its end is beside the report.
///
/// # Cancel safety
/// As [`play`].
pub async fn play_one<W>(scene: &Scene<W>, world: &mut W, progress: &dyn Progress) -> (StepReport, bool) {
    progress.begins(scene.step);
    let (watch, mut sheet) = (Stopwatch::start(), Sheet::new(scene.step));
    let end = (scene.play)(world, &mut sheet).await;
    let is_complete = end.is_ok();
    let because = end.err().unwrap_or_else(|| "the step ended before it".to_owned());
    let report = sheet.close(&because, watch.elapsed());
    progress.ended(&report);
    (report, is_complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Verdict;

    static ONE: Step = Step { number: 1, name: "one", passes_when: "", claims: &["a", "b"] };
    static TWO: Step = Step { number: 2, name: "two", passes_when: "", claims: &["a"] };

    struct Silent;

    impl Progress for Silent {
        fn begins(&self, _: &Step) {}
        fn doing(&self, _: &str, _: usize, _: usize) {}
        fn note(&self, _: &str) {}
        fn ended(&self, _: &StepReport) {}
        fn confirm(&self, _: &str) -> bool {
            false
        }
    }

    fn one<'a>(world: &'a mut u32, sheet: &'a mut Sheet) -> Playing<'a> {
        Box::pin(async move {
            *world += 1;
            sheet.judge(1, Err("no".to_owned()));
            Err("lost its feet".to_owned())
        })
    }

    fn two<'a>(world: &'a mut u32, sheet: &'a mut Sheet) -> Playing<'a> {
        sheet.judge_if(1, *world == 1, "after one");
        Box::pin(async { Ok(()) })
    }

    #[tokio::test]
    async fn a_step_that_cannot_go_on_does_not_hide_the_next() {
        let script = [Scene { step: &ONE, play: one }, Scene { step: &TWO, play: two }];
        let reports = play(&script, &mut 0, &Silent).await;
        assert_eq!(reports.iter().map(|r| r.verdict).collect::<Vec<_>>(), [Verdict::DidNotHold, Verdict::Held]);
        assert_eq!(reports[0].claims[1].detail, "lost its feet");
        assert_eq!(reports[0].claims[1].verdict, Verdict::NotTried);
    }
}
