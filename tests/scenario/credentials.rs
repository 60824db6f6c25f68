//! docs/conformance.md, item 80, with credentials that really expire: a container credentials endpoint, as ECS and EKS have
//! it, that gives a new access key each time it is asked.

use super::load::{Load, known_values};
use super::socket::{quick, until_state};
use crate::support::site::Running;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// The SDK takes credentials for expired ten seconds before they are.
const LIFE: u64 = 13;

/// Seconds since 1970 as RFC 3339, for the few days around now that a test needs.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil from days (Howard Hinnant), for dates after 1970.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The endpoint: how often it was asked, and whether it answers.
#[derive(Clone, Default)]
struct Endpoint {
    asked: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

impl Endpoint {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/credentials", listener.local_addr().unwrap());
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(this.answer().as_bytes()).await;
            }
        });
        url
    }

    fn answer(&self) -> String {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        if self.is_broken.load(Ordering::Relaxed) {
            return "HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let body = serde_json::json!({
            "AccessKeyId": format!("AKIDRENEWED{number}"),
            "SecretAccessKey": "not-a-secret",
            "Token": "not-a-token",
            "Expiration": rfc3339(now + LIFE),
        })
        .to_string();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

async fn until(running: &Running, what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {what}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn item_80_credentials_are_renewed_under_load_and_an_endpoint_that_cannot_renew_them_is_an_outage() {
    let endpoint = Endpoint::default();
    let url = endpoint.start().await;
    let mut site = quick("cache: {ttl: 1s}");
    site.env("AWS_ACCESS_KEY_ID", "").env("AWS_SECRET_ACCESS_KEY", "");
    site.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url);
    let running = site.start().await;
    let values = known_values(&site, &running).await;
    let load = Load::begin(&running, &values).await;
    let keys = || site.kms().requests().into_iter().filter_map(|call| call.access_key).collect::<BTreeSet<_>>();
    until(&running, "three sets of credentials", || keys().len() >= 3).await;
    assert!(keys().iter().all(|key| key.starts_with("AKIDRENEWED")), "{:?}", keys());
    until_state(&running, "ready").await;

    endpoint.is_broken.store(true, Ordering::Relaxed);
    until_state(&running, "coasting").await;
    let asked = endpoint.asked.load(Ordering::Relaxed);
    until(&running, "it goes on asking", || endpoint.asked.load(Ordering::Relaxed) > asked).await;
    endpoint.is_broken.store(false, Ordering::Relaxed);
    until_state(&running, "ready").await;
    load.end(&running).await;
}
