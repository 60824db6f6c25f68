//! What `scan` found, for a person: totals first, then each key, the verdict last; 100 columns where names allow it.

use crate::scan::report::{EtcdSource, Key, Number, Report, SnapshotSource, Source};
use kube_kms_core::printable::printable;
use std::borrow::Cow;

pub(super) fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    totals(report, &mut lines);
    report.keys.iter().for_each(|key| of_key(key, &mut lines));
    of_others(report, &mut lines);
    of_damaged(report, &mut lines);
    lines.push(String::new());
    verdict(report, &mut lines);
    lines
}

fn totals(report: &Report, lines: &mut Vec<String>) {
    let millis = match &report.source {
        Source::Etcd(source) => from_etcd(source, lines),
        Source::Snapshot(source) => from_snapshot(source, lines),
    };
    let (seconds, tenths) = (millis / 1000, millis % 1000 / 100);
    lines.push(format!(
        "objects     {:>9}  {:>9}  in {seconds}.{tenths} s",
        report.all.objects,
        bytes(report.all.bytes)
    ));
    let sources = number(report.wrapped_dek_sources);
    let decrypts = format!("{sources} wrapped DEK sources: Decrypts of an API server that starts");
    let rows = [
        ("KMS v2", report.kms_v2, decrypts.as_str()),
        ("in clear", report.clear, ""),
        ("other keys", report.other_encryption, "not KMS v2, or in no known form"),
        ("damaged", report.damaged, "kube-apiserver would not read them"),
    ];
    for (what, size, note) in rows.into_iter().filter(|(what, size, _)| size.objects > 0 || *what == "KMS v2") {
        lines.push(format!("  {what:<10}{:>9}  {:>9}  {note}", size.objects, bytes(size.bytes)).trim_end().to_owned());
    }
    if report.ungrouped_objects > 0 {
        lines.push(format!("  {} objects are in more groups than are told apart", report.ungrouped_objects));
    }
}

/// Returns how long it took.
fn from_etcd(source: &EtcdSource, lines: &mut Vec<String>) -> u64 {
    let version = if source.version.is_empty() { String::new() } else { format!(" ({})", source.version) };
    let only = only(&source.resources);
    lines.push(format!("etcd        {}{version}, prefix {}{only}", source.member, shown(&source.prefix)));
    let stale = if source.serializable { ", from this member's own store, which may be behind" } else { "" };
    let revisions = if source.first_revision == source.last_revision {
        format!("revision {}", source.first_revision)
    } else {
        format!("revisions {} to {}", source.first_revision, source.last_revision)
    };
    lines.push(format!("            {revisions}{stale}"));
    for restart in &source.restarts {
        lines.push(format!("            etcd compacted while {} was read; it was read again", shown(restart)));
    }
    if source.interruptions > 0 {
        lines.push(format!("            a member or its leader was lost {} times", source.interruptions));
    }
    source.millis
}

fn from_snapshot(source: &SnapshotSource, lines: &mut Vec<String>) -> u64 {
    let (file, prefix, only) = (shown(&source.file), shown(&source.prefix), only(&source.resources));
    lines.push(format!("snapshot    {file}, prefix {prefix}{only}"));
    let version = source.cluster_version.as_deref().map(|v| format!(", of a cluster of etcd {v}")).unwrap_or_default();
    let hash = if source.hash_checked { "its hash is right" } else { "WITHOUT A HASH: it may be cut short or altered" };
    lines.push(format!("            revision {}{version}, {hash}", source.revision));
    source.millis
}

fn only(resources: &[String]) -> String {
    if resources.is_empty() { String::new() } else { format!(", only {}", resources.join(", ")) }
}

fn of_key(key: &Key, lines: &mut Vec<String>) {
    lines.push(String::new());
    lines.push(format!("key_id      {}", shown(&key.key_id)));
    lines.push(format!("            {}", key.key_id_hash));
    lines.push(format!("  provider  {}", shown(&key.provider)));
    if let Some(kek) = &key.kek {
        lines.push(format!("  KEK       {}", shown(kek)));
    }
    for kek in &key.recovery_keks {
        lines.push(format!("  recovery  {}", shown(kek)));
    }
    let sources = number(key.wrapped_dek_sources);
    lines.push(format!(
        "  objects   {:>9}  {:>9}  revisions {} to {}, {sources} wrapped DEK sources",
        key.objects,
        bytes(key.bytes),
        key.oldest_revision,
        key.newest_revision
    ));
    for r in &key.resources {
        let legacy = if r.keys > 0 {
            format!(", {} of type 0 (written by Kubernetes 1.28 or older)", r.keys)
        } else {
            String::new()
        };
        lines.push(format!("            {:>9}  {:>9}  {}{legacy}", r.objects, bytes(r.bytes), shown(&r.resource)));
    }
}

fn of_others(report: &Report, lines: &mut Vec<String>) {
    if report.not_kms_v2.is_empty() {
        return;
    }
    lines.extend([String::new(), "not under KMS v2".to_owned()]);
    for other in &report.not_kms_v2 {
        let form = if other.name.is_empty() {
            other.form.to_owned()
        } else {
            format!("{} {}", other.form, shown(&other.name))
        };
        let (objects, size) = (other.objects, bytes(other.bytes));
        let never = if other.never_encrypted { " (Kubernetes never encrypts these)" } else { "" };
        lines.push(format!("  {form:<19}{objects:>9}  {size:>9}  {}{never}", shown(&other.resource)));
        if !other.never_encrypted {
            lines.extend(other.examples.first().map(|key| format!("            such as {key}")));
        }
    }
}

fn of_damaged(report: &Report, lines: &mut Vec<String>) {
    if report.damaged_groups.is_empty() {
        return;
    }
    lines.extend([String::new(), "damaged: begins as KMS v2, and kube-apiserver would not read it".to_owned()]);
    for group in &report.damaged_groups {
        lines.push(format!(
            "            {:>9}  {:>9}  {}: {}",
            group.objects,
            bytes(group.bytes),
            shown(&group.resource),
            group.reason
        ));
        lines.extend(group.examples.iter().map(|key| format!("            such as {key}")));
    }
}

fn verdict(report: &Report, lines: &mut Vec<String>) {
    let Some(verdict) = &report.expect_only else {
        let keys = match report.keys.len() {
            0 => "No key_id is in use under KMS v2.".to_owned(),
            1 => "One key is in use under KMS v2.".to_owned(),
            n => format!("{n} keys are in use under KMS v2."),
        };
        lines.push(format!("{keys} `--expect-only KEY_ID` tells whether the others may be retired."));
        return;
    };
    if verdict.holds {
        lines.push("This does not cover:".to_owned());
    } else {
        lines.push("Besides it there are:".to_owned());
        lines.extend(verdict.against.iter().map(|what| format!("  - {what}")));
        lines.push("And this does not cover:".to_owned());
    }
    lines.extend(report.not_covered.iter().map(|what| format!("  - {what}")));
    let expected = shown(&verdict.expected);
    if verdict.holds {
        lines.push(format!("All {} objects under a key need this one alone:", verdict.objects));
        lines.push(format!("  {expected}"));
        lines.push(match report.source {
            Source::Etcd(_) => "Safe to retire: every other key.".to_owned(),
            Source::Snapshot(_) => "This snapshot does without every other key.".to_owned(),
        });
    } else {
        lines.push("This is not the only key in use:".to_owned());
        lines.push(format!("  {expected}"));
        lines.push("NOT safe to retire: what is listed above needs other keys, or nobody can tell.".to_owned());
    }
}

fn shown(text: &str) -> Cow<'_, str> {
    printable(text.as_bytes())
}

fn number(count: Number) -> String {
    if count.exact { count.number.to_string() } else { format!("at least {}", count.number) }
}

/// Bytes in a short form.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut tenths, mut unit) = (n.saturating_mul(10), "B");
    for next in UNITS {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1024, next);
    }
    if unit == "B" { format!("{n} B") } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (n, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_500_000, "1.4 MiB"), (u64::MAX, "1677721.5 TiB")]
        {
            assert_eq!(bytes(n), text);
        }
    }
}
