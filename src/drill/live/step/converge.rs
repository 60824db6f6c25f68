//! Step 4: every plugin and every API server moves to the new key, or enough time has passed that each has moved or stopped.

use crate::claim::{Sheet, Step};
use crate::live::objects;
use crate::live::state::{Key, now_unix};
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;
use crate::timeline::came_back;
use kube_kms_os::Stopwatch;
use std::time::Duration;

pub(crate) static STEP: Step = Step {
    number: 4,
    name: "converge",
    passes_when: "every plugin and every API server has moved to the new key, once, and none back",
    claims: &[
        "every plugin that is reached directly names the new key",
        "the Status that every API server has seen names the new key",
        "every API server writes under the new key",
        "3 minutes + N + 5 minutes have passed since the rotation, in the place of the two before",
        "nobody went back to the old key",
    ],
};

/// SPEC: kube-apiserver stops to write 3 minutes after the last Status that confirmed its key; KEP-3299 adds 5 of reserve.
const EXPIRES: Duration = Duration::from_secs(180);
/// How often every API server is given something to write.
const WRITES_MAX: u8 = 3;
const RESERVE: Duration = Duration::from_secs(300);

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let (_, new) = w.keys()?;
    let watch = Stopwatch::start();
    let mut writes_left = if w.state.objects.is_empty() { 0 } else { WRITES_MAX };
    let (is_there, behind, outcome) = loop {
        w.doing("waiting for every plugin and every API server");
        let behind = w.sockets_behind(&new);
        let (is_there, outcome) = match w.plan.passive {
            None => by_metrics(w, &new, &mut writes_left).await,
            Some(n) => by_time(w, n),
        };
        let is_there = is_there && behind.is_empty();
        if is_there || watch.elapsed() > w.plan.wait {
            break (is_there, behind, outcome);
        }
        w.keep()?;
        w.pause().await;
    };
    match w.plan.sockets.len() {
        0 => sheet.not_tried(1, "no --socket was given"),
        sockets => sheet.judge(1, none(&behind, format!("{sockets} plugins name {new}"))),
    }
    outcome.judge(sheet);
    sheet.judge(5, back(w));
    for name in nodes(w) {
        if let Some(at) = w.timeline.changed_at(&name, new.as_str()) {
            sheet.number(format!("movedAfterMs.{name}"), at.saturating_sub(w.state.rotated_ms));
        }
    }
    if !is_there {
        return Err(format!("not everybody has moved within {}", humantime::format_duration(w.plan.wait)));
    }
    w.state.converged = true;
    w.keep()
}

/// What to say of the claims 2 to 4 at the end.
enum Outcome {
    Metrics { status: Result<String, String>, writes: Result<String, String> },
    Time(Result<String, String>),
}

impl Outcome {
    fn judge(self, sheet: &mut Sheet) {
        match self {
            Self::Metrics { status, writes } => {
                sheet.judge(2, status);
                sheet.judge(3, writes);
                sheet.not_tried(4, "the API servers were asked (no --passive)");
            }
            Self::Time(time) => {
                sheet.not_tried(2, "--passive: time in the place of metrics");
                sheet.not_tried(3, "--passive: time in the place of metrics");
                sheet.judge(4, time);
            }
        }
    }
}

async fn by_metrics(w: &mut Live, new: &Key, writes_left: &mut u8) -> (bool, Outcome) {
    let mut moved = w.moved(new).await;
    // An API server that has nothing to write says nothing about it: it is given something.
    if moved.behind_status.is_empty() && !moved.behind_writes.is_empty() && *writes_left > 0 {
        *writes_left = writes_left.saturating_sub(1);
        let written = write_through_all(w).await;
        moved = w.moved(new).await;
        moved.behind_writes.extend(written.err());
    }
    let is_there = moved.behind_status.is_empty() && moved.behind_writes.is_empty();
    let seen = format!("{} API servers, {}", w.servers.len(), w.state.providers.join(", "));
    let status = none(&moved.behind_status, seen.clone());
    let writes = none(&moved.behind_writes, seen);
    (is_there, Outcome::Metrics { status, writes })
}

async fn write_through_all(w: &mut Live) -> Result<(), String> {
    let server = w.servers.first().ok_or_else(|| "there is no API server".to_owned())?;
    let resource = server.resolve(&w.plan.objects_of).await?;
    for n in 0..w.servers.len() {
        objects::write(w, &resource, n, true).await?;
    }
    Ok(())
}

/// The passive alternative. SPEC: KEP-3299.
fn by_time(w: &Live, n: Duration) -> (bool, Outcome) {
    let needed = EXPIRES.saturating_add(n).saturating_add(RESERVE);
    let passed = Duration::from_secs(now_unix().saturating_sub(w.state.rotated_unix));
    let seen = format!("{} of {}", humantime::format_duration(passed), humantime::format_duration(needed));
    let is_there = passed >= needed;
    (is_there, Outcome::Time(if is_there { Ok(seen) } else { Err(format!("only {seen}")) }))
}

/// Everybody in the timeline.
fn nodes(w: &Live) -> Vec<String> {
    let names = w.plan.sockets.iter().map(|(name, _)| name.clone());
    let servers = w.servers.iter().flat_map(|s| w.state.providers.iter().map(move |p| format!("{} {p}", s.name)));
    names.chain(servers).collect()
}

/// Whether any Status came back to what it had left, as far as it was looked at.
pub(crate) fn back(w: &Live) -> Result<String, String> {
    let all = nodes(w);
    let back = |name: &String| Some(format!("{name} went back to {}", came_back(&w.timeline.key_ids(name, 0))?));
    let wrong: Vec<String> = all.iter().filter_map(back).collect();
    none(&wrong, format!("{} nodes watched", all.len()))
}
