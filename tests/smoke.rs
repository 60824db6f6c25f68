//! The shortest way through everything, on both KEKs: if this is red, look nowhere else first.

use crate::support::site::{Site, sealed, uid};

async fn round_trip(site: Site) {
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    let status = running.stop().await;
    assert!(status.success());
    let again = site.start().await;
    assert_eq!(again.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
}

#[tokio::test]
async fn a_seed_goes_round_on_the_local_kek_and_over_a_restart() {
    round_trip(Site::local()).await;
}

#[tokio::test]
async fn a_seed_goes_round_on_the_aws_kek_and_over_a_restart() {
    round_trip(Site::aws()).await;
}
