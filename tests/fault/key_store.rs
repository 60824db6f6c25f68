//! A KEK in an external key store (AWS XKS): the KMS is well, the store is closed or away, and DescribeKey says Enabled all the while.

use super::credential::{QUICK, RECOVERY, until_state};
use super::load::{Load, try_open};
use crate::support::replica::Replica;
use crate::support::site::{ALIAS, Site, sealed, seed, uid};
use tonic::Code;

/// AWS's words for an owner who has disabled the external key.
const CLOSED: &str = "The external key store proxy rejected the request because the external key is not enabled in the external key manager.";

#[tokio::test]
async fn a_key_store_that_is_closed_coasts_in_its_own_words_and_ends_by_itself() {
    let mut site = Site::aws();
    site.set(QUICK);
    site.kms().put_in_external_key_store(ALIAS);
    let cold = Replica::of(&site).deks(1).await;
    let running = site.start().await;
    let mut client = running.client().await;
    let load = Load::begin(&running, vec![sealed(&mut client).await]).await;
    site.kms().close_external_key_store(ALIAS, CLOSED);
    until_state(&running, "coasting", RECOVERY).await;
    assert!(running.http("/readyz").await.1.contains("reason=key-store-unavailable"));
    assert!(running.log().contains("not enabled in the external key manager"), "AWS's own words\n{}", running.log());
    let seed = seed();
    let value = (seed.clone(), cold[0].seal(&seed));
    let said = try_open(&mut client, &value, &[Code::Unavailable]).await.unwrap_err();
    assert_eq!(said.code(), Code::Unavailable);
    site.kms().put_in_external_key_store(ALIAS);
    until_state(&running, "ready", RECOVERY).await;
    try_open(&mut client, &value, &[]).await.unwrap();
    load.finish("a closed key store").await;
}

/// Also without the permission that would tell a key store from a key.
#[tokio::test]
async fn with_on_unusable_revoke_closing_the_key_store_is_a_kill_switch() {
    for reason in ["key-store-unavailable", "key-state-unknown"] {
        let mut site = Site::aws();
        site.set(QUICK).set("outage: {onUnusable: revoke}");
        site.kms().put_in_external_key_store(ALIAS);
        if reason == "key-state-unknown" {
            site.kms().revoke("DescribeKey");
        }
        let running = site.start().await;
        let mut client = running.client().await;
        let value = sealed(&mut client).await;
        site.kms().close_external_key_store(ALIAS, CLOSED);
        until_state(&running, "revoked", RECOVERY).await;
        let page = running.http("/readyz").await.1;
        assert!(page.contains(&format!("reason={reason}")), "{page}");
        client.status().await.unwrap_err();
        client.encrypt(seed(), uid()).await.unwrap_err();
        let codes = [Code::Unavailable, Code::FailedPrecondition];
        try_open(&mut client, &value, &codes).await.unwrap_err();
        site.kms().grant("DescribeKey");
        site.kms().put_in_external_key_store(ALIAS);
        until_state(&running, "ready", RECOVERY).await;
        try_open(&mut client, &value, &[]).await.unwrap();
    }
}
