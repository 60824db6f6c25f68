//! Between two items: what one of them left behind is not the fault of the next.
//!
//! Guarantees: an item begins with a plugin that says that it is well, as far as it ever did; a health that an item has
//! spoilt is that item's, and is said of no other.

use super::session::{Session, Stop, failed};
use super::wire::Trouble;
use kms_v2_client::limit::HEALTHY;
use kube_kms_os::Stopwatch;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(100);

/// What it says of itself: `None` when it is well. A call that is not answered says nothing.
async fn complaint(session: &mut Session) -> Result<Option<String>, Trouble> {
    let caller = match session.caller().await {
        Ok(caller) => caller,
        Err(stop) => return Err(Trouble::Lost(stop.to_string())),
    };
    match caller.status().await {
        Ok(status) if status.healthz == HEALTHY => Ok(None),
        Ok(status) => {
            Ok(Some(format!("Status.healthz was {:?}", status.healthz.chars().take(160).collect::<String>())))
        }
        Err(trouble) if trouble.is_refusal() => Ok(Some(format!("Status was refused, {trouble}"))),
        Err(trouble) => Err(trouble),
    }
}

/// Before the first item: whoever is not well then was not spoilt.
pub(super) async fn first(session: &mut Session) {
    session.spoilt = match complaint(session).await {
        Ok(None) => None,
        Ok(Some(said)) => Some((0, said)),
        Err(trouble) => Some((0, trouble.to_string())),
    };
}

/// After an item: waits until the plugin is well.
///
/// # Errors
/// When it was well before and was not right after this item.
pub(super) async fn after(session: &mut Session, item: u8) -> Result<(), Stop> {
    let mut said = None;
    let watch = Stopwatch::start();
    loop {
        match complaint(session).await {
            Ok(None) => break,
            Ok(Some(complaint)) => said = said.or(Some(complaint)),
            Err(trouble) if watch.elapsed() >= session.bounds.recovery => {
                said = said.or(Some(format!("Status was not answered: {trouble}")));
            }
            Err(_) => {}
        }
        // It was not well before, or is not for too long: there is nothing to wait for.
        if session.spoilt.is_some() {
            return Ok(());
        }
        if watch.elapsed() >= session.bounds.recovery {
            let said = said.unwrap_or_default();
            let seen = format!("afterwards {said}, for {:?} and longer", session.bounds.recovery);
            session.spoilt = Some((item, said));
            return failed(seen);
        }
        (session.waiting)(&format!("it is not well after item {item}"));
        tokio::time::sleep(POLL).await;
    }
    session.spoilt = None;
    match said {
        None => Ok(()),
        Some(said) => failed(format!("afterwards {said}, for {:.1} s", watch.elapsed().as_secs_f64())),
    }
}
