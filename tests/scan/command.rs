//! What a person sees: the text, the lists, the verdict.

use super::{assert_exit, err, etcd, json, out, scan};
use crate::support::etcd_store::objects::{self, FOREIGN, Kind, NEW, ODD_KEY, OLD};
use kms_v2_api::stored;
use kube_kms_etcd::verdict::key_id_hash;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn lists_name_exactly_the_objects_that_are_asked_for() {
    let Some((site, store)) = etcd("scan::lists").await else { return };
    let expected = objects::fill(&store, 1_000).await;
    let whole = |kind: &Kind| matches!(kind, Kind::KmsV2 { dek_type: 0 | 1, .. });
    let under =
        |id: &str| expected.objects(|_, k| whole(k) && matches!(k, Kind::KmsV2 { key_id, .. } if *key_id == id));
    let list = |flags: &[&str]| {
        let output = scan(&site, store.url(), flags);
        assert_exit(&output, 0, &[]);
        assert_eq!(err(&output), "");
        out(&output).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let old = list(&["--key-id", OLD]);
    assert_eq!(old.len() as u64, under(OLD));
    assert!(old.iter().all(|key| key.starts_with("/registry/secrets/")));
    assert_eq!(list(&["--key-id", &key_id_hash(OLD)]), old);
    assert_eq!(list(&["--key-id", FOREIGN]).len() as u64, under(FOREIGN));
    assert_eq!(list(&["--key-id", "nobody"]).len(), 0);
    let ours = list(&["--kek", "local:6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11"]);
    assert_eq!(ours.len() as u64, under(NEW) + under(OLD));
    let clear = list(&["--unencrypted"]);
    assert_eq!(clear.len() as u64, expected.objects(|_, k| matches!(k, Kind::PlainProtobuf | Kind::PlainJson)));
    let lines = list(&["--key-id", NEW, "--output", "json"]);
    assert_eq!(lines.len() as u64, under(NEW));
    let odd: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line.get("keyHex").is_some())
        .collect();
    assert_eq!(odd.len(), 1);
    assert_eq!(odd[0]["keyHex"], hex::encode(ODD_KEY));
    assert_eq!(odd[0]["key"], "/registry/secrets/default/\\xff\\xfe-odd");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_safe_to_retire_only_when_nothing_else_is_in_use() {
    let Some((site, store)) = etcd("scan::safe_to_retire").await else { return };
    let expected = objects::fill(&store, 300).await;
    let no = scan(&site, store.url(), &["--expect-only", NEW]);
    assert_exit(&no, 6, &["NOT safe to retire", OLD, FOREIGN, "aescbc", "cut short", "backups and snapshots"]);
    let text = out(&no);
    assert!(!text.contains("Safe to retire:") && !text.contains(ODD_KEY.escape_ascii().to_string().as_str()), "{text}");
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.starts_with("NOT safe to retire: "), "{last}");
    assert_eq!(
        json(&scan(&site, store.url(), &["--expect-only", NEW, "--output", "json"]))["expectOnly"]["holds"],
        false
    );

    // The same store, with everything rewritten that is not under the new key and not in clear.
    let (pairs, _) = objects::generate(300);
    let new = pairs.iter().find(|(_, v)| stored::decode(v).is_ok_and(|(_, o)| o.key_id == NEW)).unwrap().1.clone();
    let is_fine = |value: &[u8]| {
        let clear = value.starts_with(b"k8s\0") || value.starts_with(b"{");
        clear || stored::decode(value).is_ok_and(|(_, o)| o.key_id == NEW && o.encrypted_dek_source_type < 2)
    };
    let stale: Vec<_> = pairs.into_iter().filter(|(_, value)| !is_fine(value)).collect();
    store.put(stale.iter().map(|(key, _)| (key.clone(), new.clone()))).await;
    for name in [NEW, key_id_hash(NEW).as_str()] {
        let yes = scan(&site, store.url(), &["--expect-only", name]);
        assert_exit(&yes, 0, &["This does not cover:", "backups and snapshots"]);
        let text = out(&yes);
        assert!(text.trim_end().lines().last().unwrap().starts_with("Safe to retire: every other key"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    // One object is enough.
    store.put([stale[0].clone()]).await;
    assert_exit(&scan(&site, store.url(), &["--expect-only", NEW]), 6, &["NOT safe"]);
    store.put([(stale[0].0.clone(), new)]).await;
    assert_exit(&scan(&site, store.url(), &["--expect-only", "k1-typo"]), 6, &["is it spelled as in the list?"]);
    assert!(expected.live > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_has_totals_first_and_every_key_with_its_hash() {
    let Some((site, store)) = etcd("scan::text").await else { return };
    objects::fill(&store, 500).await;
    let output = scan(&site, store.url(), &[]);
    assert_exit(&output, 0, &[NEW, OLD, FOREIGN, &key_id_hash(NEW), "damaged", "aescbc key1", "widgets.example.com"]);
    assert_exit(&output, 0, &["of type 0", "not an EncryptedObject"]);
    let text = out(&output);
    assert!(text.starts_with("etcd        http://127.0.0.1:"), "{text}");
    assert!(text.find("objects ").unwrap() < text.find("key_id ").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_with_nothing_under_it_is_an_error_that_says_so() {
    let Some((site, store)) = etcd("scan::prefix").await else { return };
    objects::fill(&store, 100).await;
    for flags in [&["--prefix", "/other"][..], &["--resource", "nothing"], &["--prefix", "/regis"]] {
        assert_exit(&scan(&site, store.url(), flags), 1, &["error: no key under", "hint: --prefix"]);
    }
    assert_exit(&scan(&site, store.url(), &["--prefix", "/registry/"]), 0, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_file_is_counted_as_the_etcd_that_it_was_taken_from() {
    let Some((site, store)) = etcd("scan::snapshot").await else { return };
    objects::fill(&store, 1_000).await;
    let file = site.dir().join("backup.db");
    if let Err(reason) = store.snapshot(&file) {
        return crate::support::skipped("scan::snapshot", &reason);
    }
    let path = file.to_str().unwrap();
    let of = |flags: &[&str]| site.command(&[&["scan", "--snapshot", path], flags].concat());
    // Groups in the same order; examples are of those that were written first there, and last here.
    let comparable = |report: Value| {
        let mut report = report;
        report.as_object_mut().unwrap().remove("source");
        report.as_object_mut().unwrap().remove("notCovered");
        for list in ["notKmsV2", "damagedGroups"] {
            for group in report[list].as_array_mut().unwrap() {
                group.as_object_mut().unwrap().remove("examples");
                // The name of a KMS v1 provider is a guess where no length follows it.
                assert!(group["objects"].as_u64().unwrap() > 0);
            }
        }
        report
    };
    let live = json(&scan(&site, store.url(), &["--output", "json"]));
    let saved = json(&of(&["--output", "json"]));
    assert_eq!((&saved["source"]["kind"], &saved["source"]["hashChecked"]), (&"snapshot".into(), &true.into()));
    assert_eq!(comparable(saved), comparable(live));
    let sorted = |output: std::process::Output| {
        assert_exit(&output, 0, &[]);
        let mut lines: Vec<_> = out(&output).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let resource = ["--resource", "secrets", "--unencrypted"];
    assert_eq!(sorted(of(&resource)), sorted(scan(&site, store.url(), &resource)));
    assert_exit(&of(&["--expect-only", NEW]), 6, &["NOT safe to retire", "the live etcd and every other backup"]);
    assert_exit(&of(&["--prefix", "/other"]), 1, &["error: no key under /other", "hint: --prefix"]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.truncate(bytes.len() - 32);
    std::fs::write(&file, &bytes).unwrap();
    assert_exit(&of(&[]), 1, &["error: the snapshot", "--without-hash"]);
    assert_exit(&of(&["--without-hash"]), 0, &["WITHOUT A HASH"]);
}
