//! Objects: the decrypt cache, staleness, and what a plugin can do wrong in Decrypt.

use super::script::{KEY, Stage};
use crate::apiserver::{FindingCode, Rewrite, TransformError};
use kms_v2_api::stored;
use kms_v2_client::plugin::Rpc;
use std::time::Duration;
use tonic::Code;

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_thousand_objects_share_one_seed_and_one_encrypt() {
    let stage = Stage::new().await;
    for n in 0..1000 {
        let key = format!("/registry/pods/{n}");
        let value = stage.server.write(&key, key.as_bytes()).unwrap();
        assert!(value.starts_with(b"k8s:enc:kms:v2:demo:"));
        assert_eq!(stage.server.read(&key, &value).await.unwrap().plaintext.as_slice(), key.as_bytes());
    }
    assert_eq!((stage.plugin.calls(Rpc::Encrypt), stage.plugin.calls(Rpc::Decrypt)), (1, 0));
    let counts = stage.server.report().counts;
    assert_eq!((counts.writes_ok, counts.reads_ok, counts.cache_hits), (1000, 1000, 1000));
}

#[tokio::test]
async fn after_a_restart_each_seed_is_decrypted_once_and_writes_have_a_new_one() {
    let stage = Stage::new().await;
    let first = stage.write();
    stage.server.restart().await;
    assert_eq!((stage.plugin.calls(Rpc::Encrypt), stage.server.cached_seeds()), (2, 0));
    for _ in 0..3 {
        let read = stage.server.read(KEY, &first).await.unwrap();
        assert!(!read.stale, "another seed under the same key_id is not stale");
    }
    assert_eq!((stage.plugin.calls(Rpc::Decrypt), stage.server.cached_seeds()), (1, 1));
    assert_eq!(stage.server.rewrite(KEY, &first).await.unwrap(), Rewrite::Unneeded);
}

#[tokio::test]
async fn readers_that_miss_at_the_same_time_all_ask() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    let (a, b, c) =
        tokio::join!(stage.server.read(KEY, &value), stage.server.read(KEY, &value), stage.server.read(KEY, &value));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(stage.plugin.calls(Rpc::Decrypt), 3);
}

#[tokio::test]
async fn a_cached_seed_serves_beyond_its_day_until_a_write_collects_it() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    stage.server.read(KEY, &value).await.unwrap();
    stage.clock.advance(DAY + DAY);
    stage.plugin.face().decrypt_fails = Some(Code::Unavailable);
    assert!(stage.server.read(KEY, &value).await.is_ok(), "expired, and still serves");
    stage.server.readyz().await.unwrap();
    stage.write();
    assert!(matches!(stage.server.read(KEY, &value).await, Err(TransformError::Decrypt(_))));
    assert_eq!(stage.plugin.calls(Rpc::Decrypt), 2);
}

#[tokio::test]
async fn a_migration_rewrites_what_is_stale_and_nothing_twice() {
    let stage = Stage::new().await;
    let old = stage.write();
    assert_eq!(stage.server.rewrite(KEY, &old).await.unwrap(), Rewrite::Unneeded);
    stage.plugin.face().key_id = "B".to_owned();
    stage.clock.advance(Duration::from_secs(20));
    stage.server.readyz().await.unwrap();
    let Rewrite::Value(new) = stage.server.rewrite(KEY, &old).await.unwrap() else { panic!("the key_id changed") };
    assert_eq!(stored::decode(&new).unwrap().1.key_id, "B");
    assert_eq!(stage.server.rewrite(KEY, &new).await.unwrap(), Rewrite::Unneeded);
    assert_eq!(stage.server.read(KEY, &new).await.unwrap().plaintext.as_slice(), b"object");
    assert_eq!(stage.plugin.calls(Rpc::Decrypt), 0);
}

#[tokio::test]
async fn legacy_objects_are_read_and_are_stale() {
    let stage = Stage::new().await;
    let (_, mut object) = stored::decode(&stage.write()).unwrap();
    let seed: [u8; 32] = stage.plugin.face().seeds[0].clone().try_into().unwrap();
    let nonce = [3_u8; 12];
    let cipher = <aes_gcm::Aes256Gcm as aes_gcm::KeyInit>::new(&seed.into());
    let payload = aes_gcm::aead::Payload { msg: b"from 1.27", aad: KEY.as_bytes() };
    let body = aes_gcm::aead::Aead::encrypt(&cipher, &nonce.into(), payload).unwrap();
    object.encrypted_dek_source_type = 0;
    object.encrypted_data = [nonce.as_slice(), &body].concat();
    let read = stage.server.read(KEY, &stored::encode("demo", &object)).await.unwrap();
    assert_eq!((read.plaintext.as_slice(), read.stale), (b"from 1.27".as_slice(), true));
    assert_eq!(stage.plugin.calls(Rpc::Decrypt), 1, "the type is part of the cache's key");
}

#[tokio::test]
async fn values_that_are_not_of_this_provider_or_break_a_limit_are_refused() {
    let stage = Stage::new().await;
    let value = stage.write();
    let (_, object) = stored::decode(&value).unwrap();
    let read = async |value: Vec<u8>| stage.server.read(KEY, &value).await.unwrap_err();
    assert!(matches!(read(b"k8s:enc:aescbc:v1:x".to_vec()).await, TransformError::NotStored(_)));
    assert!(matches!(read(stored::encode("other", &object)).await, TransformError::OtherProvider(_)));
    let mut changed = object.clone();
    changed.encrypted_dek_source_type = 2;
    assert!(matches!(read(stored::encode("demo", &changed)).await, TransformError::Malformed));
    let mut changed = object.clone();
    changed.encrypted_data.clear();
    assert!(matches!(read(stored::encode("demo", &changed)).await, TransformError::Malformed));
    let mut changed = object.clone();
    changed.key_id.clear();
    assert!(matches!(read(stored::encode("demo", &changed)).await, TransformError::Invalid(_)));
    let mut changed = object;
    changed.encrypted_data[40] ^= 1;
    assert!(matches!(read(stored::encode("demo", &changed)).await, TransformError::Authentication));
    assert!(matches!(stage.server.read("/moved", &value).await, Err(TransformError::Authentication)));
    assert!(stage.codes().is_empty(), "damage in etcd says nothing against the plugin");
    assert_eq!(stage.server.report().counts.reads_failed, 7);
}

#[tokio::test]
async fn wrong_bytes_are_found_and_spoil_every_object_of_the_seed() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    stage.plugin.face().plaintext = Some(vec![7; 32]);
    assert!(matches!(stage.server.read(KEY, &value).await, Err(TransformError::Authentication)));
    stage.plugin.face().plaintext = None;
    assert!(stage.server.read(KEY, &value).await.is_err(), "the wrong answer is cached, as upstream");
    assert_eq!((stage.codes(), stage.plugin.calls(Rpc::Decrypt)), (vec![FindingCode::DecryptWrongBytes], 1));
}

#[tokio::test]
async fn a_short_answer_is_found_and_is_not_cached() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    stage.plugin.face().plaintext = Some(vec![7; 31]);
    assert!(matches!(stage.server.read(KEY, &value).await, Err(TransformError::WrongLength(31))));
    stage.plugin.face().plaintext = None;
    assert!(stage.server.read(KEY, &value).await.is_ok());
    assert_eq!(stage.codes(), [FindingCode::DecryptWrongLength]);
}

#[tokio::test]
async fn a_failed_decrypt_is_a_finding_for_the_plugins_own_values_only() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    let (_, mut foreign) = stored::decode(&value).unwrap();
    foreign.encrypted_dek_source = vec![250];
    assert!(stage.server.read(KEY, &stored::encode("demo", &foreign)).await.is_err());
    assert!(stage.codes().is_empty());
    stage.plugin.face().decrypt_fails = Some(Code::DataLoss);
    let error = stage.server.read(KEY, &value).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to decrypt DEK, error: "), "{error}");
    assert_eq!(stage.codes(), [FindingCode::DecryptOfOwnValueFailed]);
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_seed_or_an_object() {
    let stage = Stage::new().await;
    let value = stage.write();
    stage.server.restart().await;
    let read = stage.server.read(KEY, &value).await.unwrap();
    let printed = format!("{:?} {read:?} {:?}", stage.server, stage.server.report());
    let seeds = stage.plugin.face().seeds.clone();
    // The scripted plugin itself is inside the server, so what it prints of the seeds is cut out.
    let plain = format!("{:?}", seeds[0]);
    let printed = printed.replace(&format!("{seeds:?}"), "");
    assert!(!printed.contains(&plain) && !printed.contains(&hex::encode(&seeds[0])));
    assert!(printed.contains("DekSource(secret)") && printed.contains("Read(secret, stale: false)"));
}
