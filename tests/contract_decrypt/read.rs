//! `read`: after a move to another KEK the values of the old one still open, and only then.

use super::{calm, open, refused, unwraps};
use crate::support::fake_kms::{ANY, Failure, FakeKms};
use crate::support::site::{ALIAS, PATIENCE, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use kube_kms_core::fault::Reason;
use std::time::{Duration, Instant};

/// A key under this name, at this fake.
fn aws(kms: &FakeKms, key: &str, context: &str) -> String {
    let (region, url) = (kms.region(), kms.url());
    format!("{{aws: {{key: '{key}', region: {region}, endpoint: '{url}', context: {{{context}}}}}}}")
}

fn local(site: &Site) -> String {
    format!("{{local: {{keyring: {}}}}}", site.keyring().display())
}

/// A node that writes under one KEK and may read others.
fn node(kek: &str, read: &[&str]) -> Site {
    let mut site = calm(Site::local());
    site.set(&format!("http: {{listen: '127.0.0.1:0'}}\nkek: {kek}\nread: [{}]", read.join(", ")));
    site
}

/// A seed sealed by a node that writes under this KEK.
async fn sealed_under(kek: &str) -> (Vec<u8>, EncryptResponse) {
    let running = node(kek, &[]).start().await;
    sealed(&mut running.client().await).await
}

/// What `old` sealed opens on a node that writes under `new` while `old` is under its `read`, from an empty cache and
/// again; without it the value is refused for this reason, and the node still writes under `new`.
async fn moves(old: &str, new: &str, without: Reason) {
    let (seed, value) = sealed_under(old).await;
    let running = node(new, &[old]).start().await;
    let mut client = running.client().await;
    let before = unwraps(&running).await;
    assert_eq!(open(&mut client, &value).await, seed);
    let asked = unwraps(&running).await - before;
    assert!((1..=2).contains(&asked), "{asked} unwraps");
    assert_eq!(open(&mut client, &value).await, seed);
    assert_eq!(unwraps(&running).await - before, asked);
    let (own_seed, own) = sealed(&mut client).await;
    assert_eq!(open(&mut client, &own).await, own_seed);
    drop(running);

    let without_read = node(new, &[]).start().await;
    let mut client = without_read.client().await;
    assert_eq!(refused(&mut client, &value).await, without);
    assert_eq!(open(&mut client, &own).await, own_seed);
}

#[tokio::test]
async fn read_opens_what_a_local_kek_wrapped_before_the_move_to_aws() {
    let (old, new) = (Site::local(), Site::aws());
    moves(&local(&old), &aws(new.kms(), ALIAS, ""), Reason::KekNotConfigured).await;
}

#[tokio::test]
async fn read_opens_what_aws_wrapped_before_the_move_to_a_local_kek() {
    let (old, new) = (Site::aws(), Site::local());
    moves(&aws(old.kms(), ALIAS, ""), &local(&new), Reason::KekNotConfigured).await;
}

#[tokio::test]
async fn read_opens_what_another_local_keyring_wrapped() {
    let (old, new) = (Site::local(), Site::local());
    moves(&local(&old), &local(&new), Reason::KekNotConfigured).await;
}

#[tokio::test]
async fn read_opens_what_another_key_of_the_same_account_wrapped() {
    let kms = FakeKms::start();
    let (old, new) = (kms.create_key("alias/old"), kms.create_key("alias/new"));
    moves(&aws(&kms, &old, ""), &aws(&kms, &new, ""), Reason::KekNotConfigured).await;
}

#[tokio::test]
async fn read_opens_what_a_key_of_another_region_wrapped() {
    let (old, new) = (FakeKms::start_in("us-east-1"), FakeKms::start());
    old.create_key(ALIAS);
    new.create_key(ALIAS);
    moves(&aws(&old, ALIAS, ""), &aws(&new, ALIAS, ""), Reason::KekNotConfigured).await;
}

#[tokio::test]
async fn read_opens_what_the_same_aws_key_wrapped_under_another_context() {
    let kms = FakeKms::start();
    kms.create_key(ALIAS);
    let (old, new) = (aws(&kms, ALIAS, "cluster: old"), aws(&kms, ALIAS, "cluster: new"));
    moves(&old, &new, Reason::WrappedDekRejected).await;
}

#[tokio::test]
async fn read_opens_what_the_same_keyring_wrapped_under_another_context() {
    let site = Site::local();
    let keyring = site.keyring().display().to_string();
    let old = format!("{{local: {{keyring: {keyring}, context: {{cluster: old}}}}}}");
    let new = format!("{{local: {{keyring: {keyring}, context: {{cluster: new}}}}}}");
    moves(&old, &new, Reason::WrappedDekRejected).await;
}

/// An alias may have pointed to any key of its account, so its old target needs no `read`.
#[tokio::test]
async fn a_key_given_by_alias_opens_what_the_alias_pointed_to_before() {
    let kms = FakeKms::start();
    kms.create_key(ALIAS);
    let next = kms.create_key("alias/next");
    let kek = aws(&kms, ALIAS, "");
    let (seed, value) = sealed_under(&kek).await;
    kms.retarget_alias(ALIAS, &next);
    let running = node(&kek, &[]).start().await;
    let mut client = running.client().await;
    assert_eq!(open(&mut client, &value).await, seed);
    let (_, own) = sealed(&mut client).await;
    assert_ne!(own.key_id, value.key_id);
}

/// Past its time, a DEK is excused by its own KEK and by no other: the KMS of the writing KEK is away, or refuses to wrap.
#[tokio::test]
async fn a_read_kek_that_is_disabled_is_refused_past_the_ttl_whatever_becomes_of_the_one_that_writes() {
    for is_away in [true, false] {
        let (old, new) = (FakeKms::start_in("us-east-1"), FakeKms::start());
        old.create_key(ALIAS);
        new.create_key(ALIAS);
        let (read, kek) = (aws(&old, ALIAS, ""), aws(&new, ALIAS, ""));
        let (_, value) = sealed_under(&read).await;
        let mut site = Site::local();
        let times = "cache: {ttl: 1s}\nprobe: {interval: 1s, timeout: 500ms}";
        site.set(&format!("http: {{listen: '127.0.0.1:0'}}\nkek: {kek}\nread: [{read}]\n{times}"));
        let running = site.start().await;
        let mut client = running.client().await;
        open(&mut client, &value).await;
        if is_away {
            new.fail_all(ANY, Failure::Internal);
        } else {
            new.revoke("Encrypt");
        }
        running.until_log("state=coasting").await;
        open(&mut client, &value).await;
        old.disable(ALIAS);
        let began = Instant::now();
        while client.decrypt(value.clone(), uid()).await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "away {is_away}: the revocation never bites");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(refused(&mut client, &value).await, Reason::KekDisabled, "away {is_away}");
        assert_eq!(client.status().await.unwrap().healthz, "ok", "the writing KEK coasts");
    }
}
