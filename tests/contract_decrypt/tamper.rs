//! Items 49 to 52, 54 and 55: what must not open. SPEC: kube-apiserver caches a wrong answer, so an error is always better.

use super::{calm, on_both_keks, open, reason_of, refused, rotate, unwraps};
use crate::support::replica::Replica;
use crate::support::site::{KekKind, Site, sealed, seed, uid};
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::annotation::{DEK, KEK};
use kube_kms_core::fault::{Class, Reason};

on_both_keks! {
    item_49_an_unknown_kek_or_key_id_is_refused_without_a_kms_call
    item_50_key_id_annotations_and_ciphertext_of_two_values_do_not_mix
    item_51_a_flipped_bit_anywhere_is_an_error_from_a_warm_cache
    item_51_a_flipped_bit_anywhere_is_an_error_from_a_cold_cache
    item_52_an_annotation_removed_added_renamed_or_swapped_is_an_error
    item_54_an_empty_a_tiny_and_a_huge_ciphertext_are_invalid_without_a_kms_call
    item_55_no_message_shows_a_name_an_address_or_a_key
}

/// The same with something changed.
fn but(value: &EncryptResponse, change: impl FnOnce(&mut EncryptResponse)) -> EncryptResponse {
    let mut changed = value.clone();
    change(&mut changed);
    changed
}

/// KEKs that no configuration of these tests may read.
fn unknown_keks(site: &Site) -> Vec<String> {
    let mut unknown = vec![
        "local:00000000-0000-4000-8000-000000000000".to_owned(),
        "vault:transit/keys/prod".to_owned(),
        "aws:alias/prod".to_owned(),
        "aws:arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned(),
        "aws:arn:aws:kms:eu-central-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned(),
    ];
    if let KekKind::Local(_) = site.kek() {
        unknown.push("aws:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned());
    }
    unknown
}

async fn item_49_an_unknown_kek_or_key_id_is_refused_without_a_kms_call(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let (_, own) = sealed(&mut client).await;
    let foreign = Replica::of(&site).sealed(&seed()).await;
    open(&mut client, &foreign).await;
    let before = unwraps(&running).await;
    let asked = matches!(site.kek(), KekKind::Aws(_)).then(|| site.kms().total_calls());
    for value in [&own, &foreign] {
        for kek in unknown_keks(&site) {
            let unknown = but(value, |v| drop(v.annotations.insert(KEK.to_owned(), kek.clone().into_bytes())));
            assert_eq!(refused(&mut client, &unknown).await, Reason::KekNotConfigured, "{kek}");
        }
        for key_id in ["k1-00000000000000000000000000000000", "k", "another-plugins-id", &"x".repeat(1024)] {
            let unknown = but(value, |v| v.key_id = key_id.to_owned());
            assert_eq!(refused(&mut client, &unknown).await, Reason::OpenFailed, "{key_id}");
        }
        assert_eq!(refused(&mut client, &but(value, |v| v.key_id.clear())).await, Reason::KeyIdEmpty);
        assert_eq!(refused(&mut client, &but(value, |v| v.key_id = "x".repeat(1025))).await, Reason::KeyIdTooLong);
    }
    assert_eq!(unwraps(&running).await, before);
    assert_eq!(asked, matches!(site.kek(), KekKind::Aws(_)).then(|| site.kms().total_calls()));
    assert!(Reason::KekNotConfigured.phrase().contains("`read`"), "names the remedy");
}

async fn item_50_key_id_annotations_and_ciphertext_of_two_values_do_not_mix(site: Site) {
    let site = calm(site);
    let replica = Replica::of(&site);
    let a = replica.sealed(&seed()).await;
    rotate(&site);
    let b = replica.sealed(&seed()).await;
    assert_ne!(a.key_id, b.key_id);
    let running = site.start().await;
    let mut client = running.client().await;
    for warm in [false, true] {
        for (one, other) in [(&a, &b), (&b, &a)] {
            let mixed = [
                but(one, |v| v.key_id.clone_from(&other.key_id)),
                but(one, |v| v.ciphertext.clone_from(&other.ciphertext)),
                but(one, |v| v.annotations.clone_from(&other.annotations)),
            ];
            for value in mixed {
                assert_eq!(refused(&mut client, &value).await, Reason::OpenFailed, "warm: {warm}");
            }
        }
        open(&mut client, &a).await;
        open(&mut client, &b).await;
    }
}

/// Every value that differs from this one in one bit (or, for a quicker pass, in one bit of every byte), and where. A
/// key_id stays ASCII, because protobuf carries nothing else than UTF-8.
fn flipped(value: &EncryptResponse, every_bit: bool) -> Vec<(String, EncryptResponse)> {
    let masks = |at: usize, bits: usize| -> Vec<u8> {
        if every_bit { (0..bits).map(|bit| 1 << bit).collect() } else { vec![1 << (at % bits)] }
    };
    let mut all = Vec::new();
    for at in 0..value.ciphertext.len() {
        for mask in masks(at, 8) {
            all.push((format!("ciphertext[{at}]^{mask}"), but(value, |v| v.ciphertext[at] ^= mask)));
        }
    }
    for at in 0..value.key_id.len() {
        for mask in masks(at, 7) {
            let mut bytes = value.key_id.clone().into_bytes();
            bytes[at] ^= mask;
            let key_id = String::from_utf8(bytes).unwrap();
            all.push((format!("key_id[{at}]^{mask}"), but(value, |v| v.key_id = key_id)));
        }
    }
    for (name, bytes) in &value.annotations {
        for at in 0..bytes.len() {
            for mask in masks(at, 8) {
                let flip = |v: &mut EncryptResponse| v.annotations.get_mut(name).unwrap()[at] ^= mask;
                all.push((format!("{name}[{at}]^{mask}"), but(value, flip)));
            }
        }
    }
    all
}

/// How a damaged value may be refused. `Broken` would mean that an attacker can make us report bugs, `KekDenied` and the
/// transient ones that he can make us look ill.
fn is_about_the_value(reason: Reason) -> bool {
    matches!(reason.class(), Class::Malformed | Class::KekUnknown | Class::OpenFailed) || reason == Reason::KekGone
}

async fn item_51_a_flipped_bit_anywhere_is_an_error_from_a_warm_cache(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let (own_seed, own) = sealed(&mut client).await;
    let foreign_seed = seed();
    let foreign = Replica::of(&site).sealed(&foreign_seed).await;
    for (seed, value) in [(own_seed, own), (foreign_seed, foreign)] {
        assert_eq!(open(&mut client, &value).await, seed);
        let flipped = flipped(&value, true);
        assert!(flipped.len() > 8 * 200, "{}", flipped.len());
        for (place, damaged) in flipped {
            let reason = refused(&mut client, &damaged).await;
            assert!(is_about_the_value(reason), "{place}: {reason}");
        }
        assert_eq!(open(&mut client, &value).await, seed, "no damaged one has harmed it");
    }
    assert_eq!(client.status().await.unwrap().healthz, "ok");
}

async fn item_51_a_flipped_bit_anywhere_is_an_error_from_a_cold_cache(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let replica = Replica::of(&site);
    let places = flipped(&replica.sealed(&seed()).await, false).len();
    for n in 0..places {
        // A DEK of its own for each, so that each meets an empty cache.
        let (expected, value) = (seed(), replica.dek().await);
        let value = value.seal(&expected);
        let (place, damaged) = flipped(&value, false).swap_remove(n);
        let reason = refused(&mut client, &damaged).await;
        assert!(is_about_the_value(reason), "{place}: {reason}");
        assert_eq!(open(&mut client, &value).await, expected, "after {place}");
    }
    assert_eq!(client.status().await.unwrap().healthz, "ok");
}

async fn item_52_an_annotation_removed_added_renamed_or_swapped_is_an_error(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let replica = Replica::of(&site);
    let other = replica.sealed(&seed()).await;
    let (own_seed, own) = sealed(&mut client).await;
    let cold_seed = seed();
    let cold = replica.sealed(&cold_seed).await;
    for (seed, value) in [(own_seed, own), (cold_seed, cold)] {
        for warm in [false, true] {
            for name in [DEK, KEK] {
                let removed = but(&value, |v| drop(v.annotations.remove(name)));
                assert_eq!(refused(&mut client, &removed).await, Reason::AnnotationMissing);
                let emptied = but(&value, |v| drop(v.annotations.insert(name.to_owned(), vec![])));
                assert_eq!(refused(&mut client, &emptied).await, Reason::AnnotationInvalid);
                let renamed = but(&value, |v| {
                    let bytes = v.annotations.remove(name).unwrap();
                    v.annotations.insert(format!("x{name}"), bytes);
                });
                assert_eq!(refused(&mut client, &renamed).await, Reason::AnnotationMissing);
                let twice = but(&value, |v| {
                    let bytes = v.annotations[name].clone();
                    v.annotations.insert(format!("x{name}"), bytes);
                });
                assert_eq!(refused(&mut client, &twice).await, Reason::OpenFailed, "warm: {warm}");
            }
            for (name, bytes) in [("note.kube-kms", b"x".to_vec()), ("a.a", vec![]), ("zz.zz", vec![0; 100])] {
                let added = but(&value, |v| drop(v.annotations.insert(name.to_owned(), bytes)));
                assert_eq!(refused(&mut client, &added).await, Reason::OpenFailed, "warm: {warm}");
            }
            let swapped = but(&value, |v| drop(v.annotations.insert(DEK.to_owned(), other.annotations[DEK].clone())));
            assert_eq!(refused(&mut client, &swapped).await, Reason::OpenFailed, "warm: {warm}");
            let exchanged = but(&value, |v| {
                let (dek, kek) = (v.annotations[DEK].clone(), v.annotations[KEK].clone());
                v.annotations.insert(DEK.to_owned(), kek);
                v.annotations.insert(KEK.to_owned(), dek);
            });
            assert!(is_about_the_value(refused(&mut client, &exchanged).await));
            assert_eq!(open(&mut client, &value).await, seed);
        }
    }
}

async fn item_54_an_empty_a_tiny_and_a_huge_ciphertext_are_invalid_without_a_kms_call(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let value = Replica::of(&site).sealed(&seed()).await;
    let before = unwraps(&running).await;
    for (ciphertext, reason) in [
        (vec![], Reason::CiphertextEmpty),
        (vec![1], Reason::CiphertextTooShort),
        (vec![7], Reason::FormatUnknown),
        (value.ciphertext[..29].to_vec(), Reason::CiphertextTooShort),
        ([value.ciphertext.clone(), vec![0; 1025 - 61]].concat(), Reason::CiphertextTooLong),
        (vec![1; 40 << 10], Reason::CiphertextTooLong),
    ] {
        let broken = but(&value, |v| v.ciphertext = ciphertext);
        let found = refused(&mut client, &broken).await;
        assert_eq!((found, found.class()), (reason, Class::Malformed));
    }
    // Refused at its length, before there is a uid.
    let status = client.decrypt(but(&value, |v| v.ciphertext = vec![1; 1 << 20]), uid()).await.unwrap_err();
    let phrase = format!("{}: {} [uid -]", Reason::MessageInvalid.label(), Reason::MessageInvalid.phrase());
    assert_eq!((status.code(), status.message()), (tonic::Code::InvalidArgument, &*phrase));
    let huge = but(&value, |v| drop(v.annotations.insert("a.a".to_owned(), vec![0; 33_000])));
    assert_eq!(refused(&mut client, &huge).await, Reason::AnnotationsTooLarge);
    let blob = but(&value, |v| drop(v.annotations.insert(DEK.to_owned(), vec![0; 8193])));
    assert_eq!(refused(&mut client, &blob).await, Reason::AnnotationInvalid);
    assert_eq!(unwraps(&running).await, before);
    assert_eq!(client.status().await.unwrap().healthz, "ok");
}

/// [`reason_of`] holds every refusal of every test to the constant phrase. This one looks for the bytes themselves, so
/// that a phrase which grows a name is seen too.
async fn item_55_no_message_shows_a_name_an_address_or_a_key(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let (plaintext, value) = sealed(&mut client).await;
    let never_seen = Replica::of(&site).sealed(&seed()).await;
    let mut secrets = vec![
        "arn:".to_owned(),
        "111122223333".to_owned(),
        "127.0.0.1".to_owned(),
        "http".to_owned(),
        site.dir().display().to_string(),
        "keyring".to_owned(),
        "alias".to_owned(),
        value.key_id.clone(),
        String::from_utf8(value.annotations[KEK].clone()).unwrap(),
    ];
    for bytes in [&plaintext, &value.ciphertext, &value.annotations[DEK], &never_seen.annotations[DEK]] {
        secrets.push(hex::encode(bytes).chars().take(24).collect());
    }
    let mut wrong: Vec<EncryptResponse> = flipped(&value, false).into_iter().map(|(_, value)| value).collect();
    wrong.push(but(&value, |v| v.ciphertext.clear()));
    wrong.push(but(&value, |v| v.annotations.clear()));
    wrong.extend(
        unknown_keks(&site)
            .into_iter()
            .map(|kek| but(&value, |v| drop(v.annotations.insert(KEK.to_owned(), kek.into_bytes())))),
    );
    wrong.push(never_seen);
    let last = wrong.len() - 1;
    let mut seen = std::collections::BTreeSet::new();
    for (n, value) in wrong.into_iter().enumerate() {
        if n == last {
            super::take_away(&site);
        }
        let uid = uid();
        let status = client.decrypt(value, uid.clone()).await.unwrap_err();
        seen.insert(reason_of(&status, &uid).label());
        for secret in &secrets {
            assert!(!status.message().contains(secret.as_str()), "{secret} in {status:?}");
        }
    }
    assert!(seen.len() >= 6, "{seen:?}");
}
