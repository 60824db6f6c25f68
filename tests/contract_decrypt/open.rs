//! Items 45 to 48, 53, 61 and 62: what must open.

use super::{calm, on_both_keks, open, rotate, unwraps};
use crate::support::replica::Replica;
use crate::support::site::{Site, sealed, seed, uid};
use kms_v2_api::v2::DecryptRequest;
use prost::Message as _;
use rustix::process::Signal;

on_both_keks! {
    item_45_a_round_trip_returns_the_exact_bytes
    item_46_a_value_opens_after_a_restart_on_a_replica_and_from_an_empty_cache
    item_47_values_of_one_five_and_fifty_rotations_ago_open
    item_48_a_value_under_a_newer_key_id_opens_and_status_does_not_jump
    item_53_the_order_of_annotations_does_not_matter
    item_61_plaintexts_of_16_and_24_bytes_come_back_unchanged
    item_62_an_empty_uid_is_served
}

async fn item_45_a_round_trip_returns_the_exact_bytes(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let before = unwraps(&running).await;
    for _ in 0..20 {
        let (seed, sealed) = sealed(&mut client).await;
        assert_eq!(open(&mut client, &sealed).await, seed);
    }
    assert_eq!(unwraps(&running).await, before, "what this process sealed needs no KMS");
}

async fn item_46_a_value_opens_after_a_restart_on_a_replica_and_from_an_empty_cache(site: Site) {
    let site = calm(site);
    let first = site.start().await;
    let (seed, sealed) = sealed(&mut first.client().await).await;
    first.kill();
    for node in [&site, &site.replica()] {
        let running = node.start().await;
        let before = unwraps(&running).await;
        let mut client = running.client().await;
        assert_eq!(open(&mut client, &sealed).await, seed);
        assert_eq!(unwraps(&running).await, before + 1, "the cache was empty");
        assert_eq!(open(&mut client, &sealed).await, seed);
        assert_eq!(unwraps(&running).await, before + 1, "and is not any more");
    }
}

async fn item_47_values_of_one_five_and_fifty_rotations_ago_open(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let mut values = vec![sealed(&mut client).await];
    for rotations in 1..=50 {
        let old = running.until_ok().await;
        rotate(&site);
        running.signal(Signal::HUP);
        running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != old)).await.unwrap();
        values.push(sealed(&mut client).await);
        if [1, 5, 50].contains(&rotations) {
            let (seed, value) = &values[values.len() - 1 - rotations];
            assert_eq!(&open(&mut client, value).await, seed, "{rotations} rotations ago");
        }
    }
    let key_ids: std::collections::BTreeSet<_> = values.iter().map(|(_, value)| &value.key_id).collect();
    assert_eq!(key_ids.len(), 51);
    running.kill();
    // The same from an empty cache: every version is still in the KEK.
    let again = site.start().await;
    let mut client = again.client().await;
    for (seed, value) in &values {
        assert_eq!(&open(&mut client, value).await, seed);
    }
}

async fn item_48_a_value_under_a_newer_key_id_opens_and_status_does_not_jump(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let before = client.status().await.unwrap();
    rotate(&site);
    let ahead = site.replica().start().await;
    let (seed, newer) = sealed(&mut ahead.client().await).await;
    assert_ne!(newer.key_id, before.key_id);
    assert_eq!(open(&mut client, &newer).await, seed);
    assert_eq!(client.status().await.unwrap(), before);
    let (_, own) = sealed(&mut client).await;
    assert_eq!(own.key_id, before.key_id);
}

/// A map on the wire is a list of pairs in any order; Rust's map is sorted, so the other order is written by hand.
async fn item_53_the_order_of_annotations_does_not_matter(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let (seed, value) = sealed(&mut running.client().await).await;
    let pairs: Vec<_> = value.annotations.iter().collect();
    assert!(pairs.len() >= 2);
    for reversed in [false, true] {
        let mut bytes = DecryptRequest {
            ciphertext: value.ciphertext.clone(),
            uid: uid(),
            key_id: value.key_id.clone(),
            ..Default::default()
        }
        .encode_to_vec();
        let mut pairs = pairs.clone();
        if reversed {
            pairs.reverse();
        }
        for (name, value) in pairs {
            // One entry of field 4, which is a message of its own: name is 1, value is 2.
            let one = DecryptRequest { annotations: [(name.clone(), value.clone())].into(), ..Default::default() };
            bytes.extend(one.encode_to_vec());
        }
        let answer = raw::decrypt(&running, bytes).await;
        assert_eq!(answer.unwrap().plaintext, seed, "reversed: {reversed}");
    }
}

async fn item_61_plaintexts_of_16_and_24_bytes_come_back_unchanged(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let replica = Replica::of(&site);
    for len in [16, 24] {
        let plaintext = seed()[..len].to_vec();
        let own = client.encrypt(plaintext.clone(), uid()).await.unwrap();
        assert_eq!(open(&mut client, &own).await, plaintext);
        assert_eq!(open(&mut client, &replica.sealed(&plaintext).await).await, plaintext);
    }
}

async fn item_62_an_empty_uid_is_served(site: Site) {
    let site = calm(site);
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, own) = sealed(&mut client).await;
    assert_eq!(client.decrypt(own, String::new()).await.unwrap().plaintext, seed);
    let foreign = Replica::of(&site).sealed(&seed).await;
    assert_eq!(client.decrypt(foreign.clone(), String::new()).await.unwrap().plaintext, seed);
    let broken = kms_v2_api::v2::EncryptResponse { key_id: "k".to_owned(), ..foreign };
    let status = client.decrypt(broken, String::new()).await.unwrap_err();
    assert_eq!(super::reason_of(&status, "-"), kube_kms_core::fault::Reason::OpenFailed);
}

/// A Decrypt whose bytes the test chooses.
mod raw {
    use crate::support::site::Running;
    use kms_v2_api::v2::DecryptResponse;
    use kms_v2_client::kms::Target;
    use prost::Message as _;
    use std::time::Duration;

    /// One unary call over HTTP/2, framed by hand.
    pub(super) async fn decrypt(running: &Running, message: Vec<u8>) -> Result<DecryptResponse, String> {
        let Target::File(path) = &running.target else { panic!("a socket file") };
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post("http://localhost/v2.KeyManagementService/Decrypt")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut body) = client.send_request(request, false).unwrap();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        body.send_data(frame.into(), true).unwrap();
        let call = async {
            let mut answer = answer.await.unwrap();
            let mut data = Vec::new();
            while let Some(chunk) = answer.body_mut().data().await {
                data.extend(chunk.unwrap());
            }
            let trailers = answer.body_mut().trailers().await.unwrap();
            let status = trailers.as_ref().and_then(|t| t.get("grpc-status")).or(answer.headers().get("grpc-status"));
            match status.map(http::HeaderValue::as_bytes) {
                Some(b"0") => Ok(DecryptResponse::decode(&data[5..]).unwrap()),
                other => Err(format!("{other:?}")),
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), call).await.unwrap();
        connection.abort();
        answer
    }
}
