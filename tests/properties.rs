//! Laws of the core, for any input that proptest finds.
//!
//! Guarantees: what is sealed opens; the two hashes of the format are injective for inputs that differ only in where one
//! part ends and the next begins; each parser takes exactly what its doc says. Cases are few enough to stay under a second.

use kube_kms_core::annotation::{AdditionalData, Annotations, DEK, KEK, WrappedDek};
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::{Dek, DekBytes};
use kube_kms_core::envelope::{Envelope, OVERHEAD};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::limit;
use kube_kms_core::uid::Uid;
use kube_kms_os::OsEntropy;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

fn aad(key_id: &str, annotations: &BTreeMap<String, Vec<u8>>) -> [u8; 32] {
    *AdditionalData::bind(&KeyId::parse(key_id.to_owned()).unwrap(), annotations).as_bytes()
}

/// Every way to cut a text into a key_id and annotations: what an attacker who moves borders could try.
fn cuts(text: &str) -> Vec<(String, BTreeMap<String, Vec<u8>>)> {
    let mut all = Vec::new();
    let n = text.len();
    for id in 1..=n {
        all.push((text[..id].to_owned(), BTreeMap::new()));
        for name in id..=n {
            let first = (text[id..name].to_owned(), text.as_bytes()[name..].to_vec());
            all.push((text[..id].to_owned(), BTreeMap::from([first])));
            for value in name..=n {
                for second in value..=n {
                    let a = (text[id..name].to_owned(), text.as_bytes()[name..value].to_vec());
                    let b = (text[value..second].to_owned(), text.as_bytes()[second..].to_vec());
                    if a.0 != b.0 {
                        all.push((text[..id].to_owned(), BTreeMap::from([a, b])));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn additional_data_tells_apart_every_way_to_cut_the_same_bytes() {
    let mut seen = HashMap::new();
    let mut distinct = 0;
    // One letter only: the parts then differ in nothing but where they end, or in the zeros of a length.
    for text in ["aaaaaaa", "abcdefg", "\0\0\0\u{1}a\0"] {
        for input in cuts(text) {
            let other = seen.insert(aad(&input.0, &input.1), input.clone());
            assert!(other.as_ref().is_none_or(|o| *o == input), "{other:?} and {input:?}");
            distinct += usize::from(other.is_none());
        }
    }
    assert!(distinct > 300, "{distinct}");
}

#[test]
fn key_ids_tell_apart_every_way_to_cut_the_same_bytes_and_every_epoch() {
    let mut seen = HashMap::new();
    let text = "aaaaaaaa";
    for kind in 1..text.len() {
        for identity in kind + 1..=text.len() {
            for epoch in [0, 1, 255, 256, 1 << 32, u64::MAX, 0x6161_6161_6161_6161] {
                let kek = KekRef::parse(format!("{}:{}", &text[..kind], &text[kind..identity]).as_bytes()).unwrap();
                let version = KekVersion { kek, version: text[identity..].to_owned() };
                let input = (version.clone(), epoch);
                let other = seen.insert(KeyId::derive(&version, epoch), input.clone());
                assert!(other.is_none(), "{other:?} and {input:?}");
            }
        }
    }
    assert_eq!(seen.len(), 28 * 7);
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    btree_map("[a-z.]{0,6}", vec(any::<u8>(), 0..6), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_opens_and_nothing_else_does(
        plaintext in vec(any::<u8>(), 1..=limit::PLAINTEXT_MAX),
        key in any::<[u8; 32]>(),
        key_id in "[ -~]{1,40}",
        annotations in annotations(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let dek = Dek::new(&DekBytes::copy_from(&key).unwrap()).unwrap();
        let aad = AdditionalData::bind(&KeyId::parse(key_id).unwrap(), &annotations);
        let mut sealed = dek.seal(&OsEntropy, &aad, &plaintext).unwrap();
        prop_assert_eq!(sealed.len(), plaintext.len() + OVERHEAD);
        prop_assert!(sealed.len() <= limit::CIPHERTEXT_MAX);
        prop_assert_eq!(&*dek.open(Envelope::parse(&sealed).unwrap(), &aad).unwrap(), &plaintext);
        // A nonce is never used twice.
        prop_assert_ne!(&dek.seal(&OsEntropy, &aad, &plaintext).unwrap()[1..13], &sealed[1..13]);
        let at = flip.index(sealed.len());
        sealed[at] ^= 1 << bit;
        let opened = Envelope::parse(&sealed).and_then(|envelope| dek.open(envelope, &aad).map(|_| ()));
        let expected = if at == 0 { Reason::FormatUnknown } else { Reason::OpenFailed };
        prop_assert_eq!(opened.unwrap_err().reason(), expected);
    }

    #[test]
    fn another_dek_and_other_additional_data_do_not_open(
        key in any::<[u8; 32]>(),
        other in any::<[u8; 32]>(),
        a in ("[a-b]{1,3}", annotations()),
        b in ("[a-b]{1,3}", annotations()),
    ) {
        let dek = Dek::new(&DekBytes::copy_from(&key).unwrap()).unwrap();
        let bind = |x: &(String, BTreeMap<_, _>)| AdditionalData::bind(&KeyId::parse(x.0.clone()).unwrap(), &x.1);
        let sealed = dek.seal(&OsEntropy, &bind(&a), b"seed").unwrap();
        let envelope = Envelope::parse(&sealed).unwrap();
        prop_assert_eq!(dek.open(envelope, &bind(&b)).is_ok(), a == b);
        let other_dek = Dek::new(&DekBytes::copy_from(&other).unwrap()).unwrap();
        prop_assert_eq!(other_dek.open(envelope, &bind(&a)).is_ok(), key == other);
    }

    #[test]
    fn additional_data_is_equal_for_equal_input_only(
        a in ("[ab]{1,3}", annotations()),
        b in ("[ab]{1,3}", annotations()),
    ) {
        prop_assert_eq!(aad(&a.0, &a.1) == aad(&b.0, &b.1), a == b);
    }

    #[test]
    fn moving_a_byte_between_two_parts_changes_additional_data(
        name in "[a-z]{2,10}", value in vec(b'a'..=b'z', 1..10), key_id in "[a-z]{2,10}", dup in any::<bool>(),
    ) {
        let one = |n: &str, v: &[u8]| BTreeMap::from([(n.to_owned(), v.to_vec())]);
        let base = aad(&key_id, &one(&name, &value));
        // name → value
        let (shorter, last) = name.split_at(name.len() - 1);
        prop_assert_ne!(base, aad(&key_id, &one(shorter, &[last.as_bytes(), &value].concat())));
        // value → name
        let longer = format!("{name}{}", char::from(value[0]));
        prop_assert_ne!(base, aad(&key_id, &one(&longer, &value[1..])));
        // key_id → name
        let (shorter, last) = key_id.split_at(key_id.len() - 1);
        prop_assert_ne!(base, aad(shorter, &one(&format!("{last}{name}"), &value)));
        // name → key_id
        prop_assert_ne!(base, aad(&format!("{key_id}{}", &name[..1]), &one(&name[1..], &value)));
        // One annotation split into two, and the second emptied.
        let (head, tail) = name.split_at(1);
        let mut two = one(&format!("{head}0"), b"");
        two.insert(tail.to_owned(), value.clone());
        prop_assert_ne!(base, aad(&key_id, &two));
        let mut more = one(&name, &value);
        more.insert(format!("{name}x"), if dup { value } else { Vec::new() });
        prop_assert_ne!(base, aad(&key_id, &more));
    }

    #[test]
    fn an_envelope_is_taken_exactly_as_documented(bytes in vec(any::<u8>(), 0..1100), ours in any::<bool>()) {
        let mut bytes = bytes;
        if ours && let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let expected = match (bytes.len(), bytes.first()) {
            (0, _) => Some(Reason::CiphertextEmpty),
            (1025.., _) => Some(Reason::CiphertextTooLong),
            (_, Some(first)) if *first != 1 => Some(Reason::FormatUnknown),
            (..=29, _) => Some(Reason::CiphertextTooShort),
            _ => None,
        };
        let parsed = Envelope::parse(&bytes);
        prop_assert_eq!(parsed.as_ref().err().map(Fault::reason), expected);
        if let Ok(parts) = parsed {
            let again = [&[1], parts.nonce.as_slice(), parts.body, parts.tag].concat();
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn a_kek_reference_is_taken_exactly_as_documented(
        value in prop_oneof![vec(any::<u8>(), 0..40), "[a-zA-Z0-9 :-]{0,12}".prop_map(String::into_bytes),
            "[a-z0-9]{1,4}:[!-~]{1,1030}".prop_map(String::into_bytes)],
    ) {
        let colon = value.iter().position(|b| *b == b':');
        let taken = value.len() <= 1024
            && value.iter().all(u8::is_ascii_graphic)
            && colon.is_some_and(|at| {
                at > 0 && at + 1 < value.len() && value[..at].iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'))
            });
        match KekRef::parse(&value) {
            Ok(kek) => {
                prop_assert!(taken);
                prop_assert_eq!(format!("{}:{}", kek.kind(), kek.identity()).into_bytes(), value);
                prop_assert!(!kek.kind().contains(':'));
            }
            Err(fault) => prop_assert!(!taken && fault.reason() == Reason::AnnotationInvalid),
        }
    }

    #[test]
    fn a_key_id_is_taken_up_to_its_length_and_shown_safely(text in prop_oneof![any::<String>(), "k1-[0-9a-fA-F]{31,33}"]) {
        let expected = (text.is_empty()).then_some(Reason::KeyIdEmpty)
            .or((text.len() > limit::KEY_ID_MAX).then_some(Reason::KeyIdTooLong));
        let parsed = KeyId::parse(text.clone());
        prop_assert_eq!(parsed.as_ref().err().map(Fault::reason), expected);
        if let Ok(key_id) = parsed {
            prop_assert_eq!(key_id.as_str(), text.as_str());
            let shown = key_id.to_string();
            let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b':');
            prop_assert!(plain(&shown), "{}", shown);
            prop_assert_eq!(shown == text, key_id.is_ours());
        }
    }

    #[test]
    fn a_uid_is_always_taken_and_never_forges_a_log_line(text in any::<String>()) {
        let uid = Uid::parse(&text);
        let ok = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        prop_assert!((1..=64).contains(&uid.as_str().len()) && uid.as_str().bytes().all(ok));
        if (1..=64).contains(&text.len()) && text.bytes().all(ok) {
            prop_assert_eq!(uid.as_str(), text);
        }
    }

    #[test]
    fn annotations_are_taken_exactly_as_documented(
        all in btree_map("[a-z]{0,3}", vec(any::<u8>(), 0..20), 0..3),
        dek in prop::option::of(prop_oneof![vec(any::<u8>(), 0..3), Just(vec![7; 8192]), Just(vec![7; 8193])]),
        kek in prop::option::of(prop_oneof![Just(b"local:x".to_vec()), vec(any::<u8>(), 0..10)]),
        filler in prop_oneof![Just(0_usize), 24_000..33_000_usize],
    ) {
        let mut all = all;
        all.extend(dek.clone().map(|value| (DEK.to_owned(), value)));
        all.extend(kek.clone().map(|value| (KEK.to_owned(), value)));
        if filler > 0 {
            all.insert("filler".to_owned(), vec![0; filler]);
        }
        let size: usize = all.iter().map(|(name, value)| name.len() + value.len()).sum();
        let expected = match (&dek, &kek) {
            _ if size > 32 * 1024 => Some(Reason::AnnotationsTooLarge),
            (None, _) => Some(Reason::AnnotationMissing),
            (Some(dek), _) if dek.is_empty() || dek.len() > 8192 => Some(Reason::AnnotationInvalid),
            (_, None) => Some(Reason::AnnotationMissing),
            (_, Some(kek)) => KekRef::parse(kek).err().map(|fault| fault.reason()),
        };
        let parsed = Annotations::parse(all.clone());
        prop_assert_eq!(parsed.as_ref().err().map(Fault::reason), expected);
        if let Ok(parsed) = parsed {
            prop_assert_eq!(parsed.all(), &all);
            prop_assert_eq!(Some(parsed.wrapped_dek()), dek.as_deref());
            prop_assert_eq!(Some(parsed.kek().as_str().as_bytes()), kek.as_deref());
        }
    }

    #[test]
    fn a_wrapped_dek_has_one_byte_to_eight_kibibytes(len in prop_oneof![0..3_usize, 8190..8195_usize]) {
        let parsed = WrappedDek::parse(vec![1; len]);
        prop_assert_eq!(parsed.is_ok(), (1..=8192).contains(&len));
    }

    #[test]
    fn a_dek_has_32_bytes(raw in vec(any::<u8>(), 0..70)) {
        let parsed = DekBytes::copy_from(&raw);
        prop_assert_eq!(parsed.is_ok(), raw.len() == 32);
        if let Err(fault) = parsed {
            prop_assert_eq!(fault.reason(), Reason::WrappedDekRejected);
        }
    }

    #[test]
    fn a_context_does_not_depend_on_the_order_and_always_has_our_pair(
        pairs in vec(("[a-z]{0,3}|kube-kms", "[a-z]{0,3}"), 0..6),
        rotate in any::<prop::sample::Index>(),
    ) {
        let unique: BTreeMap<String, String> = pairs.iter().cloned().collect();
        let mut order: Vec<_> = unique.clone().into_iter().collect();
        if !order.is_empty() {
            let by = rotate.index(order.len());
            order.rotate_left(by);
        }
        let context = WrapContext::new(unique.clone());
        let again = WrapContext::new(order.into_iter().collect());
        prop_assert_eq!(context.digest(), again.digest());
        prop_assert_eq!(context.pairs().get("kube-kms").map(String::as_str), Some("v1"));
        // Ours is the only pair that is set for the operator.
        let mut more = unique;
        more.insert("zz".to_owned(), String::new());
        let grown = WrapContext::new(more.clone());
        prop_assert_eq!(grown.digest() == context.digest(), grown.pairs() == context.pairs());
    }

    #[test]
    fn a_context_tells_pairs_apart_whatever_moves_between_them(
        a in btree_map("[ab]{0,3}", "[ab]{0,3}", 0..3),
        b in btree_map("[ab]{0,3}", "[ab]{0,3}", 0..3),
    ) {
        prop_assert_eq!(WrapContext::new(a.clone()).digest() == WrapContext::new(b.clone()).digest(), a == b);
    }

    #[test]
    fn what_the_wire_sees_of_a_fault_is_constant(cause in "[0-9A-Z.:/]{8,60}", at in any::<prop::sample::Index>()) {
        let reason = Reason::ALL[at.index(Reason::ALL.len())];
        let fault = Fault::caused_by(reason, cause.clone());
        prop_assert_eq!(fault.to_string(), Fault::new(reason).to_string());
        prop_assert!(!fault.to_string().contains(&cause));
        prop_assert_eq!(fault.causes(), cause);
    }
}
