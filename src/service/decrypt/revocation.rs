//! The table of docs/failure-modes.md, "What an answer of a KEK does to its data keys", row by row: which role the KEK has, what
//! its KMS answers, and how old what we hold is.

use super::*;
use crate::decrypt_fixture::{
    Line, ScriptedKek, annotations, begin_outage, decrypt_under, entry, plugin_over, supervise,
};
use crate::kek_set::KekSet;
use kube_kms_core::annotation::{RecoveryWrap, WrappedDek};
use kube_kms_core::health::OnDenied;
use kube_kms_core::kek_ref::{KekKind, KekRef};

const PAGE: &str = include_str!("../../../docs/failure-modes.md");
const HEAD: &str = "| KEK | its answer | held, fresh | held, past `cache.ttl` | not held |";

const PATIENCE: Duration = Duration::from_millis(2750);
const TTL: Duration = Duration::from_secs(3600);
const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Write,
    Read,
    Recovery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Fresh,
    Expired,
    Absent,
}

const ANSWERS: [(&str, Line, OnDenied); 5] = [
    ("good", AT_ONCE, OnDenied::Coast),
    ("none (transient)", Line::Fail(Reason::KmsUnreachable), OnDenied::Coast),
    ("denied, `onDenied: coast`", Line::Fail(Reason::PolicyDenied), OnDenied::Coast),
    ("denied, `onDenied: revoke`", Line::Fail(Reason::PolicyDenied), OnDenied::Revoke),
    ("dead", Line::Fail(Reason::KekDisabled), OnDenied::Coast),
];

/// What becomes of a Decrypt, in the words of the page. `others` is what every other KEK does meanwhile.
async fn outcome(role: Role, line: Line, on_denied: OnDenied, age: Age, others: Line) -> &'static str {
    let [write, read, recovery] = ["k", "read", "recovery"].map(|name| ScriptedKek::new(name, &[AT_ONCE]));
    for kek in [&write, &read, &recovery] {
        kek.say(AT_ONCE);
    }
    let keks = KekSet::new(entry(&write), vec![entry(&read)]).with_recovery(vec![entry(&recovery)], false);
    let plugin = plugin_over(keks, |settings| {
        settings.cache_ttl = TTL;
        settings.policy.on_denied = on_denied;
    });
    let supervised = if role == Role::Write { Some(supervise(&plugin).await) } else { None };
    let (kek, value) = match role {
        Role::Write => (&write, annotations("k", 1)),
        Role::Read => (&read, annotations("read", 1)),
        // The primary is away: that is when a recovery KEK is asked.
        Role::Recovery => {
            read.say(Line::Fail(Reason::KmsUnreachable));
            let wrap = RecoveryWrap {
                kek: KekRef::new(KekKind::LOCAL, "recovery").unwrap(),
                dek: WrappedDek::parse(1_u32.to_be_bytes().to_vec()).unwrap(),
            };
            (&recovery, annotations("read", 1).and_recovery(1, &wrap))
        }
    };
    let decrypt = || decrypt_under(&plugin, "some-id", &value, PATIENCE);
    if age != Age::Absent {
        decrypt().await.unwrap();
    }
    if age == Age::Expired {
        tokio::time::sleep(TTL).await;
    }
    kek.say(line);
    for other in [&write, &read, &recovery].into_iter().filter(|other| !Arc::ptr_eq(other, kek)) {
        if role != Role::Recovery || !Arc::ptr_eq(other, &read) {
            other.say(others);
        }
    }
    if matches!(others, Line::Fail(_)) && supervised.is_none() {
        begin_outage(&plugin);
    }
    // Long enough for the probe to be sure, if it is one that is probed.
    tokio::time::sleep(TTL / 10).await;
    let mut words = Vec::new();
    for _ in 0..2 {
        let before = kek.calls();
        words.push(match decrypt().await {
            Err(_) => "does not open",
            // A KEK that does not unwrap may have been asked all the same.
            Ok(_) if kek.calls() > before && matches!(line, Line::Unwrap(_)) => "unwrapped",
            Ok(_) => "from memory",
        });
    }
    let expected_second = if words[0] == "unwrapped" { "from memory" } else { words[0] };
    assert_eq!(words[1], expected_second, "{role:?} {line:?} {on_denied:?} {age:?} {others:?}: the second time");
    words[0]
}

#[tokio::test(start_paused = true)]
async fn every_row_of_the_revocation_table_is_as_the_page_says_whatever_the_other_keks_do() {
    let rows: Vec<&str> =
        PAGE.lines().skip_while(|line| *line != HEAD).skip(2).take_while(|l| l.starts_with('|')).collect();
    let mut seen = Vec::new();
    for (role, name) in [(Role::Write, "`kek`"), (Role::Read, "`read`"), (Role::Recovery, "`recovery`")] {
        for (answer, line, on_denied) in ANSWERS {
            for others in [AT_ONCE, Line::Fail(Reason::KmsUnreachable), Line::Fail(Reason::PolicyDenied)] {
                let mut cells = Vec::new();
                for age in [Age::Fresh, Age::Expired, Age::Absent] {
                    cells.push(outcome(role, line, on_denied, age, others).await);
                }
                let row = format!("| {name} | {answer} | {} | {} | {} |", cells[0], cells[1], cells[2]);
                assert!(
                    rows.contains(&row.as_str()),
                    "while the others say {others:?}, this is so and not on the page:\n{row}"
                );
                seen.push(row);
            }
        }
    }
    seen.dedup();
    assert_eq!(seen, rows, "on the page and not so");
}
