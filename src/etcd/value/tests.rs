//! Every form, every damage, and any bytes at all.

use super::*;
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedObject;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn object() -> EncryptedObject {
    EncryptedObject {
        encrypted_data: vec![7; 60],
        key_id: "key-1".to_owned(),
        encrypted_dek_source: vec![1, 2, 3],
        annotations: BTreeMap::from([
            ("kek.kube-kms".to_owned(), b"local:one".to_vec()),
            ("kek.r1.kube-kms".to_owned(), b"local:two".to_vec()),
            ("dek.kube-kms".to_owned(), vec![0xff]),
        ]),
        encrypted_dek_source_type: 1,
    }
}

fn damage(change: impl FnOnce(&mut EncryptedObject)) -> Option<Damage> {
    let mut object = object();
    change(&mut object);
    match Value::parse(&stored::encode("demo", &object)) {
        Value::Damaged(damage) => Some(damage),
        Value::KmsV2(_) => None,
        Value::Other(form) => panic!("{form:?}"),
    }
}

#[test]
fn a_whole_value_from_known_bytes() {
    let value = hex::decode(
        "6b38733a656e633a6b6d733a76323a64656d6f3a0a46202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d\
         3e3f404142434445464748494a4b6f6547cdc02b1b1dcdef04ede2852daefb4aad95d2634d3d1ef212056b65792d311a03aabbcc\
         22120a0d612e6578616d706c652e636f6d1201012801",
    )
    .unwrap();
    let Value::KmsV2(object) = Value::parse(&value) else { panic!("{:?}", Value::parse(&value)) };
    assert_eq!((object.provider, object.key_id), ("demo", "key-1"));
    assert_eq!((object.dek_source, object.dek_source_type), ([0xaa, 0xbb, 0xcc].as_slice(), DekSourceType::Seed));
    assert_eq!(object.annotations, [("a.example.com", [1].as_slice())]);
    assert_eq!(object.encrypted_data.len(), 0x46);
    assert_eq!((object.kek(), object.recovery_keks()), (None, vec![]));
}

#[test]
fn ours_name_their_keks() {
    let value = stored::encode("demo", &object());
    let Value::KmsV2(read) = Value::parse(&value) else { panic!() };
    assert_eq!((read.kek(), read.recovery_keks()), (Some("local:one"), vec!["local:two"]));
    assert_eq!(read.annotation("dek.kube-kms"), Some([0xff].as_slice()));
}

#[test]
fn every_other_form_is_known_by_how_it_begins() {
    let v1 = |name: &str| [b"k8s:enc:kms:v1:", name.as_bytes(), b":\x00\xb8", [9; 300].as_slice()].concat();
    for (value, form) in [
        (v1("aws"), Form::KmsV1("aws")),
        (v1("arn:aws:x"), Form::KmsV1("arn:aws:x")),
        (b"k8s:enc:kms:v1:short:".to_vec(), Form::KmsV1("short")),
        (b"k8s:enc:aescbc:v1:key1:x:y".to_vec(), Form::AesCbc("key1")),
        (b"k8s:enc:aesgcm:v1:key2:".to_vec(), Form::AesGcm("key2")),
        (b"k8s:enc:secretbox:v1:k:\x00".to_vec(), Form::Secretbox("k")),
        (b"k8s:enc:new:v1:k:".to_vec(), Form::UnknownProvider),
        (b"k8s:enc:aescbc:v1:nocolon".to_vec(), Form::UnknownProvider),
        (b"k8s:enc:aescbc:v1:\xff:".to_vec(), Form::UnknownProvider),
        (b"k8s\0x".to_vec(), Form::Protobuf),
        (b"{\"kind\":1}".to_vec(), Form::Json),
        (b"\xd9\xd9\xf7\xa0".to_vec(), Form::Cbor),
        (Vec::new(), Form::Empty),
        (b"k8s:encoded".to_vec(), Form::Unknown),
        (vec![0; 1_400_000], Form::Unknown),
    ] {
        assert_eq!(Value::parse(&value), Value::Other(form));
    }
}

#[test]
fn what_kube_apiserver_would_not_read_is_damaged() {
    assert_eq!(damage(|_| ()), None);
    assert_eq!(damage(|o| o.encrypted_data.clear()), Some(Damage::NoData));
    assert_eq!(damage(|o| o.key_id.clear()), Some(Damage::KeyId));
    assert_eq!(damage(|o| o.key_id = "k".repeat(1024)), None);
    assert_eq!(damage(|o| o.key_id = "k".repeat(1025)), Some(Damage::KeyId));
    assert_eq!(damage(|o| o.encrypted_dek_source.clear()), Some(Damage::DekSource));
    assert_eq!(damage(|o| o.encrypted_dek_source = vec![0; 1025]), Some(Damage::DekSource));
    assert_eq!(damage(|o| o.encrypted_dek_source_type = 2), Some(Damage::DekSourceType));
    assert_eq!(damage(|o| o.encrypted_dek_source_type = -1), Some(Damage::DekSourceType));
    assert_eq!(damage(|o| o.encrypted_dek_source_type = 0), None);
    let huge = |o: &mut EncryptedObject| drop(o.annotations.insert("a.io".to_owned(), vec![0; 32 * 1024]));
    assert_eq!(damage(huge), Some(Damage::Annotations));
    for (name, expected) in [
        ("a.example.com.", None),
        ("kms.example.io/local-kek", Some(Damage::AnnotationName)),
        ("com", Some(Damage::AnnotationName)),
        ("", Some(Damage::AnnotationName)),
        ("A.example.com", Some(Damage::AnnotationName)),
    ] {
        let mut object = object();
        object.annotations.insert(name.to_owned(), vec![1]);
        let value = stored::encode("demo", &object);
        let found = match Value::parse(&value) {
            Value::Damaged(damage) => Some(damage),
            _ => None,
        };
        assert_eq!(found, expected, "{name:?}");
        assert!(KmsV2::with_any_names(&value).is_some_and(|read| read.annotation(name) == Some(&[1])), "{name:?}");
    }
    for (value, damage) in [
        (b"k8s:enc:kms:v2:".as_slice(), Damage::ProviderName),
        (b"k8s:enc:kms:v2::x", Damage::ProviderName),
        (b"k8s:enc:kms:v2:\xff:x", Damage::ProviderName),
        (b"k8s:enc:kms:v2:demo:", Damage::NoData),
        (b"k8s:enc:kms:v2:demo:\xff\xff", Damage::NotAMessage),
        (b"k8s:enc:kms:v2:demo:\x0a\x05a", Damage::CutShort),
        (b"k8s:enc:kms:v2:demo:\x08\x01", Damage::NotAMessage),
        (b"k8s:enc:kms:v2:demo:\x0a\x01x\x12\x01\xff", Damage::NotAMessage),
    ] {
        assert_eq!(Value::parse(value), Value::Damaged(damage), "{}", value.escape_ascii());
    }
}

#[test]
fn a_value_cut_anywhere_is_never_taken_for_another_key() {
    let whole = stored::encode("demo", &object());
    for end in PREFIX.len()..whole.len() {
        match Value::parse(&whole[..end]) {
            Value::Damaged(_) => {}
            // Cut between two fields that may be absent.
            Value::KmsV2(read) => assert_eq!((read.key_id, read.dek_source), ("key-1", [1, 2, 3].as_slice()), "{end}"),
            Value::Other(form) => panic!("{end}: {form:?}"),
        }
    }
}

#[test]
fn the_fingerprint_tells_apart_all_that_decrypt_is_asked_with() {
    let print = |object: &EncryptedObject, provider: &str| {
        let value = stored::encode(provider, object);
        let Value::KmsV2(read) = Value::parse(&value) else { panic!() };
        read.source_fingerprint()
    };
    let base = print(&object(), "demo");
    let changed = |change: fn(&mut EncryptedObject)| {
        let mut object = object();
        change(&mut object);
        print(&object, "demo")
    };
    assert_eq!(changed(|o| o.encrypted_data = vec![1]), base, "the data takes no part");
    let all = [
        base,
        print(&object(), "other"),
        changed(|o| o.key_id.push('x')),
        changed(|o| o.encrypted_dek_source.push(1)),
        changed(|o| o.encrypted_dek_source_type = 0),
        changed(|o| drop(o.annotations.remove("dek.kube-kms"))),
        changed(|o| drop(o.annotations.insert("dek.kube-kms".to_owned(), vec![0xfe]))),
    ];
    assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
}

#[test]
fn repeated_annotations_are_as_protobuf_has_them() {
    let mut value = stored::encode("demo", &object());
    value.extend_from_slice(b"\x22\x0e\x0a\x0cdek.kube-kms");
    let Value::KmsV2(read) = Value::parse(&value) else { panic!() };
    assert_eq!(read.annotation("dek.kube-kms"), Some([].as_slice()));
    assert_eq!(read.annotations.len(), 3);
}

proptest! {
    #[test]
    fn any_bytes_have_a_class(bytes: Vec<u8>, at in 0_usize..200) {
        let _ = Value::parse(&bytes);
        let _ = Value::parse(&[PREFIX, b"demo:", &bytes].concat());
        let _ = Value::parse(&[b"k8s:enc:kms:v1:".as_slice(), &bytes].concat());
        let mut value = stored::encode("demo", &object());
        if let Some(byte) = value.get_mut(at) {
            *byte = bytes.first().copied().unwrap_or(0);
        }
        let _ = Value::parse(&value);
    }

    #[test]
    fn what_prost_reads_is_read_the_same(key_id in "[a-z]{1,20}", source in prop::collection::vec(any::<u8>(), 1..50), note: Vec<u8>) {
        let object = EncryptedObject {
            key_id, encrypted_dek_source: source, annotations: BTreeMap::from([("n.io".to_owned(), note)]), ..object()
        };
        let value = stored::encode("demo", &object);
        let Value::KmsV2(read) = Value::parse(&value) else { panic!() };
        prop_assert_eq!(read.key_id, &object.key_id);
        prop_assert_eq!(read.dek_source, object.encrypted_dek_source.as_slice());
        prop_assert_eq!(read.encrypted_data, object.encrypted_data.as_slice());
        let annotations: Vec<_> = object.annotations.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        prop_assert_eq!(read.annotations, annotations);
    }
}
