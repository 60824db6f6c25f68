//! Connections that are dead without anybody having been told: a failover behind a NAT, a firewall that lost its state.

use super::load::{Load, try_open};
use crate::support::replica::Replica;
use crate::support::site::{Site, sealed, seed};
use futures_util::future::join_all;
use std::time::{Duration, Instant};

const RECOVERY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_pool_full_of_dead_connections_is_left_behind_within_ten_seconds() {
    let mut site = Site::aws_behind_proxy();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let deks = Replica::of(&site).deks(32).await;
    let running = site.start().await;
    let mut client = running.client().await;
    let values: Vec<_> = deks.iter().map(|dek| (seed(), dek)).map(|(s, dek)| (s.clone(), dek.seal(&s))).collect();
    // A storm leaves as many connections as there may be unwraps at once.
    site.kms().set_latency("Decrypt", Duration::from_millis(100));
    join_all(values[..24].iter().map(|value| {
        let mut client = client.clone();
        async move { try_open(&mut client, value, &[]).await.unwrap() }
    }))
    .await;
    site.kms().set_latency("Decrypt", Duration::ZERO);
    assert!(site.proxy().open_connections() >= 8, "{}", site.proxy().open_connections());
    let load = Load::begin(&running, vec![sealed(&mut client).await]).await;

    site.proxy().strand();
    let began = Instant::now();
    for value in &values[24..] {
        while try_open(&mut client, value, &[tonic::Code::Unavailable]).await.is_err() {
            assert!(began.elapsed() < RECOVERY, "{}", running.log());
        }
    }
    println!("stranded: every unknown DEK opened after {:?}", began.elapsed());
    while !running.http("/readyz").await.1.contains("state=ready") {
        assert!(began.elapsed() < RECOVERY, "{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
    load.finish("stranded").await;
}
