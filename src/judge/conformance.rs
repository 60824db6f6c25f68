//! The conformance list, run against any KMS v2 plugin through its socket.
//!
//! Guarantees: every item that was asked for gets exactly one outcome, and a reason wherever it is not `passed`; no key is
//! changed, at most [`ENCRYPTS_MAX`] Encrypts and [`DECRYPTS_MAX`] Decrypts are made; the KMS is only touched through the
//! caller's own [`KmsControl`]. Refuses to know which plugin it is. SPEC: docs/conformance.md, items 1 to 88.

mod control;
mod decrypt;
mod encrypt;
mod hint;
mod item;
mod meter;
mod outage;
mod raw;
mod rotation;
mod session;
mod settle;
mod status;
mod transport;
mod wire;

pub use control::{Act, ActFuture, COMMAND_LIMIT, CommandControl, ControlError, CountFuture, KmsControl};
pub use item::{ITEMS, Item, Reach, Section};

use crate::apiserver::FindingCode;
use kms_v2_client::kms::Target;
use kms_v2_client::plugin::Rpc;
use kube_kms_os::Stopwatch;
use serde::Serialize;
use session::{Check, Session, Stop, failed, not_applicable};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Encrypts of one run at most: some 1,100, and more while a rotation or a recovery is waited for.
pub const ENCRYPTS_MAX: u64 = 4_000;
/// Decrypts of one run at most, likewise.
pub const DECRYPTS_MAX: u64 = 4_000;

/// Items that look back on the whole run.
const LAST: [u8; 7] = [17, 55, 64, 65, 66, 71, 86];
/// Items that look back on the simulated hour.
const OF_THE_HOUR: [u8; 5] = [17, 64, 65, 66, 71];
/// The one of them that is about whatever went wrong in it.
const OF_THE_HOUR_THE_LAST: u8 = 71;

/// How long what an operator does to the KMS may take to show, or to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// From a rotation to the first Status with another key_id.
    pub rotation: Duration,
    /// From the end of an outage to `ok`.
    pub recovery: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rotation: Duration::from_secs(180), recovery: Duration::from_secs(90) }
    }
}

/// What to run.
#[derive(Debug)]
pub struct Settings {
    /// Where the plugin listens.
    pub target: Target,
    /// How long each call may take.
    pub timeout: Duration,
    /// How long a rotation and a recovery may take.
    pub bounds: Bounds,
    /// These items and no other; all when `None`.
    pub only: Option<BTreeSet<u8>>,
    /// Whether items that take more than a minute are run.
    pub long: bool,
    /// Who rotates the key and takes the KMS away.
    pub control: Option<Arc<dyn KmsControl>>,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds, as far as it was checked.
    Passed,
    /// It does not.
    Failed,
    /// It was not checked.
    NotApplicable,
}

/// One item and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ItemReport {
    /// Which.
    pub item: Item,
    /// The part of the list that it is in.
    pub section: &'static str,
    /// What must hold.
    pub title: &'static str,
    /// Whether it does.
    pub outcome: Outcome,
    /// What was measured; or what was seen and what kube-apiserver does about it; or why it was not checked.
    pub detail: String,
    /// Where to look first, when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
    /// How long it took.
    pub millis: u64,
}

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Items that hold.
    pub passed: usize,
    /// Items that do not.
    pub failed: usize,
    /// Items that were not checked.
    pub not_applicable: usize,
    /// Status calls made.
    pub statuses: u64,
    /// Encrypt calls made.
    pub encrypts: u64,
    /// Decrypt calls made, those with altered values included.
    pub decrypts: u64,
}

/// The whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By number.
    pub items: Vec<ItemReport>,
    /// Counted.
    pub totals: Totals,
}

/// Why there is no report. It is not the plugin's fault, or there is no plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody answers on the socket.
    #[error("{0}")]
    Unreachable(String),
    /// The control cannot be run.
    #[error("{0}")]
    Control(String),
    /// The control did not end the outage that it began.
    #[error("{0}")]
    NotRestored(String),
}

/// Runs the list. `waiting` is told what is being checked or waited for, `done` each item as it ends (not in their order).
///
/// # Errors
/// When nobody takes a connection on the socket, or the control cannot be run. Whoever takes one and never answers fails
/// item 1.
///
/// # Cancel safety
/// Not cancel safe: an outage may not have been ended.
pub async fn run(
    settings: Settings,
    waiting: Box<dyn Fn(&str) + Send + Sync>,
    done: &mut (dyn FnMut(&ItemReport) + Send),
) -> Result<Report, Error> {
    let Settings { target, timeout, bounds, only, long, control } = settings;
    drop(target.connect().map_err(|error| Error::Unreachable(error.to_string()))?);
    if let Some(control) = &control
        && let Err(ControlError::NotRun(why)) = control.count().await
    {
        return Err(Error::Control(why));
    }
    let chosen: Vec<&Item> =
        ITEMS.iter().filter(|item| only.as_ref().is_none_or(|only| only.contains(&item.number))).collect();
    let mut session = Session::new(target, timeout, bounds, control, waiting);
    settle::first(&mut session).await;
    if chosen.iter().any(|item| OF_THE_HOUR.contains(&item.number)) {
        rotation::live(&mut session).await;
        session.after_the_hour = settle::after(&mut session, OF_THE_HOUR_THE_LAST).await.err();
    }
    let mut items = Vec::with_capacity(chosen.len());
    let mut chosen = chosen;
    // Those that change what the KMS does come after those that do not, and those that look back come last.
    chosen.sort_by_key(|item| match item.reach {
        _ if LAST.contains(&item.number) => 3,
        Reach::Outage => 2,
        Reach::Rotation => 1,
        _ => 0,
    });
    // The item that says that no call as kube-apiserver makes it is answered.
    let mut dumb = None;
    for item in chosen {
        let watch = Stopwatch::start();
        let check = match dumb {
            Some(first) if item.number > first && !matches!(item.reach, Reach::No(_)) => {
                not_applicable(format!("Status does not answer (item {first})"))
            }
            _ => checked(item, &mut session, long).await,
        };
        if let Err(Stop::Aborted(error)) = check {
            return Err(error);
        }
        if item.number <= 2 && matches!(check, Err(Stop::Failed(_))) {
            dumb = dumb.or(Some(item.number));
        }
        let report = report(*item, check, watch.elapsed());
        done(&report);
        items.push(report);
    }
    items.sort_by_key(|report| report.item.number);
    let totals = totals(&items, &session);
    Ok(Report { items, totals })
}

fn report(item: Item, check: Check, took: Duration) -> ItemReport {
    let (outcome, detail) = match check {
        Ok(detail) => (Outcome::Passed, detail),
        Err(Stop::Failed(seen)) => (Outcome::Failed, format!("{seen}; so {}", item.consequence)),
        Err(stop) => (Outcome::NotApplicable, stop.to_string()),
    };
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let hint = (outcome == Outcome::Failed).then(|| hint::hint(item.number));
    ItemReport { item, section: item.section.title(), title: item.title, outcome, detail, hint, millis }
}

fn totals(items: &[ItemReport], session: &Session) -> Totals {
    let count = |outcome| items.iter().filter(|report| report.outcome == outcome).count();
    let witness = session.witness();
    let calls = |rpc| witness.calls.get(&rpc).copied().unwrap_or(0);
    Totals {
        passed: count(Outcome::Passed),
        failed: count(Outcome::Failed),
        not_applicable: count(Outcome::NotApplicable),
        statuses: calls(Rpc::Status),
        encrypts: calls(Rpc::Encrypt),
        decrypts: calls(Rpc::Decrypt),
    }
}

/// Checks an item, and then waits until the plugin is well again, so that the next one is not blamed for this one.
async fn checked(item: &Item, session: &mut Session, long: bool) -> Check {
    let check = check(item, session, long).await;
    let passive =
        matches!(item.reach, Reach::No(_)) || LAST.contains(&item.number) || (item.reach == Reach::Long && !long);
    if passive || matches!(check, Err(Stop::Aborted(_))) {
        return check;
    }
    match (settle::after(session, item.number).await, check) {
        // What an item failed by says more than what it left behind.
        (Err(left), Ok(_)) if item.reach != Reach::Outage => Err(left),
        (_, check) => check,
    }
}

async fn check(item: &Item, session: &mut Session, long: bool) -> Check {
    match item.reach {
        Reach::No(why) => not_applicable(why),
        Reach::Long if !long => not_applicable("takes more than a minute: --long"),
        _ => {
            (session.waiting)(&format!("item {}, {}", item.number, item.title));
            match item.section {
                Section::Transport => transport_section(item.number, session).await,
                Section::Status => status_section(item.number, session).await,
                Section::Encrypt => encrypt_section(item.number, session).await,
                Section::Decrypt => decrypt_section(item.number, session).await,
                Section::Rotation => rotation_section(item.number, session).await,
                Section::Lifecycle | Section::Observability => codes(session),
            }
        }
    }
}

async fn transport_section(number: u8, session: &mut Session) -> Check {
    match number {
        1 => transport::status_over_http2(session).await,
        2 => transport::authority_localhost(session).await,
        3 => transport::path_as_authority(session).await,
        4 => transport::name_as_authority(session).await,
        5 => transport::strange_headers(session).await,
        6 => transport::unknown_methods(session).await,
        8 => transport::two_clients(session).await,
        9 => transport::idle(session).await,
        11 => transport::short_deadline(session).await,
        12 => transport::cancelled(session).await,
        13 => transport::parallel_streams(session).await,
        _ => transport::malformed(session).await,
    }
}

async fn status_section(number: u8, session: &mut Session) -> Check {
    match number {
        16 => status::version(session).await,
        17 => status::version_never_changed(session),
        19 => status::healthz(session).await,
        20 => outage::status_goes_on(session).await,
        22 => status::key_id_length(session).await,
        25 => status::key_id_shows_nothing(session).await,
        26 => status::polls(session).await,
        _ => outage::ok_again(session).await,
    }
}

async fn encrypt_section(number: u8, session: &mut Session) -> Check {
    match number {
        31 => encrypt::key_id_is_that_of_status(session).await,
        32 => encrypt::limits(session, encrypt::is_about_ciphertext).await,
        33 => encrypt::limits(session, encrypt::is_about_names).await,
        34 => encrypt::limits(session, encrypt::is_about_size).await,
        35 => encrypt::twice(session).await,
        36 => encrypt::distinct(session).await,
        37 => encrypt::plaintext_is_not_in_the_answer(session).await,
        38 => encrypt::empty_uid(session).await,
        39 => encrypt::sizes(session).await,
        40 => outage::encrypt_makes_nothing_up(session).await,
        42 => encrypt::mismatch_loop(session).await,
        _ => encrypt::three_clients(session).await,
    }
}

async fn decrypt_section(number: u8, session: &mut Session) -> Check {
    match number {
        45 => decrypt::round_trip(session).await,
        50 => decrypt::foreign_key_id(session).await,
        51 => decrypt::flipped_bits(session).await,
        52 => decrypt::annotations(session).await,
        53 => decrypt::order(session).await,
        54 => decrypt::odd_ciphertexts(session).await,
        55 => decrypt::messages_show_nothing(session),
        57 => decrypt::equal(session).await,
        58 => decrypt::first_goes_away(session).await,
        59 => outage::seen_before(session).await,
        60 => outage::not_seen_before(session).await,
        61 => decrypt::short_plaintexts(session).await,
        _ => decrypt::empty_uid(session).await,
    }
}

async fn rotation_section(number: u8, session: &mut Session) -> Check {
    match number {
        63 => rotation::one_transition(session).await,
        64 => rotation::not_seen(session, FindingCode::KeyIdFlipFlop),
        65 => rotation::not_seen(session, FindingCode::KeyIdCameBack),
        66 => rotation::not_seen(session, FindingCode::EncryptFailedAfterNewKeyId),
        69 => rotation::seen_in_time(session).await,
        _ => rotation::an_hour(session),
    }
}

/// Item 86, over the whole run.
fn codes(session: &Session) -> Check {
    let witness = session.witness();
    let unknown = witness.codes.get(&i32::from(tonic::Code::Unknown)).copied().unwrap_or(0);
    if unknown > 0 {
        return failed(format!("{unknown} refusals had the code Unknown"));
    }
    if witness.codes.is_empty() {
        return not_applicable("nothing was refused in this run");
    }
    let names: Vec<String> = witness.codes.keys().map(|c| format!("{:?}", tonic::Code::from_i32(*c))).collect();
    Ok(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_that_can_fail_has_a_hint_and_no_other() {
        for item in ITEMS {
            assert_eq!(hint::hint(item.number).is_empty(), matches!(item.reach, Reach::No(_)), "{}", item.number);
        }
    }
}
