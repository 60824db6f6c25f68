//! The end of a drill that is not gone on with: what state it leaves, in words, and its own objects deleted.
//!
//! Guarantees: nothing of the rotation is undone (a key_id that was left is never reported again); a migration that runs is left
//! to run, because half of one is worse, and is named.

use crate::claim::plain;
use crate::live::migration::{self, Phase};
use crate::live::objects;
use crate::live::world::{Live, describe, under};

/// Deletes what the drill has made and nobody needs; what is left and why.
pub(crate) async fn tear_down(w: &mut Live) -> Vec<String> {
    let mut left = objects::delete_all(w).await;
    for path in std::mem::take(&mut w.state.migrations) {
        let end = match w.servers.first() {
            None => Err("no API server to ask".to_owned()),
            Some(server) => match migration::phase(server, &path).await {
                Ok(Phase::Running(said)) => Err(format!("still running ({said}); left to run")),
                Ok(_) => server.delete(&path).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
        };
        if let Err(why) = end {
            left.push(format!("{path}: {why}"));
            w.state.migrations.push(path);
        }
    }
    left
}

/// Says what state the drill leaves, and deletes what it has made.
pub(crate) async fn abort(w: &mut Live) -> Vec<String> {
    let mut lines = vec![format!("drill {}, begun {}", w.state.id, w.state.began)];
    let names: Vec<&str> = w.state.steps.iter().map(|done| done.report.name.as_ref()).collect();
    lines.push(format!("steps that are done: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }));
    lines.extend(keys(w).await);
    lines.extend(stored(w).await);
    let made = w.state.objects.len().saturating_add(w.state.migrations.len());
    let left = tear_down(w).await;
    lines.push(format!("deleted of what the drill made: {} of {made}", made.saturating_sub(left.len())));
    lines.extend(left.iter().map(|what| format!("left in the cluster: {what}")));
    lines.push(match (&w.state.new, w.state.migrated) {
        (None, _) => "nothing was rotated by this drill, as far as it has seen".to_owned(),
        (Some(new), true) => format!("the rotation to {new} is complete; the old key is as it was"),
        (Some(new), false) => format!(
            "the rotation to {new} stays: a key that was left is not gone back to. Keep the old key enabled, and rewrite what is \
             under it later (docs/rotation.md)"
        ),
    });
    lines.iter().map(|line| plain(line)).collect()
}

/// Which key writes.
async fn keys(w: &Live) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, _) in &w.plan.sockets {
        lines.push(match w.plugin(name).await {
            Ok(mut plugin) => match plugin.status().await {
                Ok(status) => format!("{name}: key_id {}, {}", status.key_id, status.healthz),
                Err(status) => format!("{name}: {:?} {}", status.code(), status.message()),
            },
            Err(why) => why,
        });
    }
    for (server, facts) in w.look().await {
        match facts {
            Err(error) => lines.push(format!("{server}: {error}")),
            Ok(facts) => {
                for provider in &w.state.providers {
                    let name = |hash: Option<&str>| hash.map_or("nothing".to_owned(), |hash| w.named(hash));
                    let (status, writes) = (name(facts.status(provider)), name(facts.writes(provider)));
                    lines.push(format!("{server}: Status of {provider} names {status}; it wrote last under {writes}"));
                }
            }
        }
    }
    lines
}

/// Which objects are under which key.
async fn stored(w: &mut Live) -> Vec<String> {
    let tally = match w.scan().await {
        Ok(tally) => tally,
        Err(why) => return vec![format!("objects: not known, {why}")],
    };
    let mut lines = vec![format!("objects in etcd: {}", describe(&tally))];
    if let Some(old) = &w.state.old {
        let left = under(&tally, old);
        lines.extend(left.iter().map(|(resource, n)| format!("under the old key {old}: {n} of {resource}")));
    }
    lines
}
