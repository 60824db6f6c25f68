//! Step 3: the KEK is rotated, by the drill when it was asked to, else by the operator.

use crate::claim::{Sheet, Step};
use crate::live::state::Key;
use crate::live::world::{Live, RPC_TIMEOUT};
use crate::script::Playing;
use kube_kms_os::Stopwatch;

pub(crate) static STEP: Step = Step {
    number: 3,
    name: "rotate",
    passes_when: "the KEK rotates, by the drill or by the operator, and somebody reports the new key",
    claims: &["the KEK is rotated", "a plugin or an API server names another key than before"],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let old = w.old()?;
    w.not_dry("rotate the KEK, or wait until you have done so")?;
    let watch = Stopwatch::start();
    while w.plan.sockets.iter().any(|(name, _)| w.timeline.last(name).is_none()) && watch.elapsed() < RPC_TIMEOUT {
        w.pause().await;
    }
    let by = match seen(w, &old).await {
        // It came while the drill was interrupted.
        Some(_) => "it was rotated already".to_owned(),
        None => rotate(w, sheet).await?,
    };
    let watch = Stopwatch::start();
    loop {
        if let Some(new) = seen(w, &old).await {
            sheet.judge(1, Ok(by));
            sheet.judge(2, Ok(format!("{old} before, {new} after {} s", watch.elapsed().as_secs())));
            return w.rotated(new);
        }
        if watch.elapsed() > w.plan.wait {
            let why = format!("everybody still names {old} after {}", humantime::format_duration(w.plan.wait));
            sheet.judge(2, Err(why));
            return Err("the KEK was not rotated, or nobody has seen it".to_owned());
        }
        w.doing("waiting until somebody names another key");
        w.pause().await;
    }
}

/// A key that is not the old one: the key_id when a plugin says it, else the hash.
async fn seen(w: &Live, old: &Key) -> Option<Key> {
    let by_socket = w.plan.sockets.iter().filter_map(|(name, _)| w.timeline.last(name)?.key_id);
    if let Some(new) = by_socket.filter(|id| !id.is_empty()).find(|id| !old.is(id)) {
        return Some(Key::new(&new));
    }
    // A plugin that is reached directly says it by name, and no later than the API server behind it.
    if !w.plan.sockets.is_empty() {
        return None;
    }
    let facts = w.look().await;
    let hashes = facts.iter().filter_map(|(_, facts)| facts.as_ref().ok());
    let hashes = hashes.flat_map(|facts| w.state.providers.iter().filter_map(|provider| facts.status(provider)));
    hashes.into_iter().find(|hash| !old.is(hash)).map(Key::new)
}

#[cfg(feature = "aws")]
async fn rotate(w: &mut Live, sheet: &mut Sheet) -> Result<String, String> {
    use crate::admin::aws::{AwsAdmin, Rotation};
    use crate::admin::{AdminError, KekAdmin};

    let Some(kek) = w.plan.rotate.clone() else { return Ok(by_hand(w)) };
    let rotation = match kek.to {
        None => Rotation::OnDemand,
        Some(to) => Rotation::Retarget { alias: kek.key.clone(), to, may_disable: false },
    };
    let mut admin = AwsAdmin::new(kek.key, kek.region, kek.endpoint.as_deref(), rotation).await;
    let instruction = admin.instruction();
    // INVARIANT: a resumed drill does not rotate twice (test `a_resumed_drill_does_not_rotate_twice`).
    if w.state.asked_kms {
        w.note(&format!(
            "the KMS was asked to rotate before; it is not asked again. If it has not rotated: {instruction}"
        ));
        return Ok("rotated by the drill, before it was resumed".to_owned());
    }
    w.confirm("rotate", &format!("Rotate now ({instruction})? It is not undone.")).await?;
    w.state.asked_kms = true;
    w.keep()?;
    match admin.rotate().await {
        Ok(done) => Ok(done),
        Err(error) => {
            // Without an answer nobody knows whether it has rotated.
            w.state.asked_kms = matches!(error, AdminError::Failed(_));
            sheet.judge(1, Err(format!("{error}; by hand: {instruction}")));
            Err("the KEK was not rotated".to_owned())
        }
    }
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
async fn rotate(w: &mut Live, _: &mut Sheet) -> Result<String, String> {
    Ok(by_hand(w))
}

fn by_hand(w: &Live) -> String {
    w.note(
        "rotate the KEK now, in your KMS (docs/rotation.md); the drill goes on by itself when a plugin or an API server \
         names another key",
    );
    "rotated by the operator".to_owned()
}
