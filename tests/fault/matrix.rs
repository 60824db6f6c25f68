//! Every fault at every bad moment: at the start, in steady state, in a storm of cold Decrypts, while the KEK rotates, while a
//! DEK is due, while a configuration is reloaded.
//!
//! In all of them: Status from memory, Encrypt and known DEKs as if nothing were, unknown DEKs in time, never wrong bytes, never
//! INTERNAL or UNKNOWN; and within ten seconds of the end of the fault everything is well without anybody's help.

use super::load::{Load, Value, Watch, try_open};
use crate::support::fake_kms::{ANY, Failure, FakeKms};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::hand::rotate;
use crate::support::replica::Replica;
use crate::support::site::{Running, Site, sealed, seed, uid};
use futures_util::future::join_all;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::Code;

/// How long a fault lasts.
const LASTS: Duration = Duration::from_secs(3);
/// How long after its end everything is well; docs/conformance.md, item 28.
const RECOVERY: Duration = Duration::from_secs(10);
const QUICK: &str = "probe: {interval: 1s, timeout: 900ms}";

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Network(Fault),
    Flapping,
    Cut,
    OneConnection,
    Kms(Failure),
}

/// A trouble that is on.
struct On {
    proxy: FaultProxy,
    kms: FakeKms,
    cutting: Option<JoinHandle<()>>,
}

impl Trouble {
    fn begin(self, site: &Site) -> On {
        let (proxy, kms) = (site.proxy().clone(), site.kms().clone());
        let mut cutting = None;
        match self {
            Self::Network(fault) => proxy.set(fault),
            Self::Flapping => {
                let each = |ms| Duration::from_millis(ms);
                proxy.flap(&[(Fault::Refuse, each(300)), (Fault::None, each(100)), (Fault::BlackHole, each(400))]);
            }
            Self::Cut => {
                let proxy = proxy.clone();
                cutting = Some(tokio::spawn(async move {
                    loop {
                        proxy.cut();
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }));
            }
            Self::OneConnection => {
                proxy.cut();
                proxy.limit_connections(Some(1));
            }
            Self::Kms(failure) => kms.fail_all(ANY, failure),
        }
        On { proxy, kms, cutting }
    }

    /// What a Decrypt of an unknown DEK may say.
    const fn codes(self) -> &'static [Code] {
        match self {
            Self::Kms(Failure::Throttled) => &[Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded],
            // The KMS is there, and the way to it is narrow.
            Self::OneConnection => &[Code::Unavailable, Code::DeadlineExceeded],
            _ => &[Code::Unavailable],
        }
    }
}

impl On {
    fn end(self) {
        if let Some(cutting) = self.cutting {
            cutting.abort();
        }
        self.proxy.set(Fault::None);
        self.proxy.limit_connections(None);
        self.kms.heal(ANY);
        self.kms.release_hung();
    }
}

/// Values of other replicas: under so many DEKs that this one has never seen.
async fn cold(site: &Site, count: usize) -> Vec<Value> {
    let deks = Replica::of(site).deks(count).await;
    deks.iter().map(|dek| (seed(), dek)).map(|(seed, dek)| (seed.clone(), dek.seal(&seed))).collect()
}

struct Scene {
    name: String,
    trouble: Trouble,
    site: Site,
    running: Running,
    load: Load,
    cold: Vec<Value>,
}

impl Scene {
    /// A plugin that is ready, has opened what a replica sealed, and is under load.
    async fn set(trouble: Trouble, name: &str, settings: &str) -> Self {
        let mut site = Site::aws_behind_proxy();
        site.set(QUICK).set(settings);
        let running = site.start().await;
        let mut client = running.client().await;
        let mut known = cold(&site, 1).await;
        try_open(&mut client, &known[0], &[]).await.unwrap();
        known.push(sealed(&mut client).await);
        let load = Load::begin(&running, known).await;
        // In a storm more than may be on the wire at once; after throttling they open at the pace that it has taught.
        let many = if matches!(trouble, Trouble::Kms(Failure::Throttled)) { 16 } else { 60 };
        let cold = cold(&site, if name == "in a cold storm" { many } else { 8 }).await;
        Self { name: format!("{trouble:?}, {name}"), trouble, site, running, load, cold }
    }

    /// Two callers for each of these values, as often as the fault lasts.
    async fn storm(&self, values: &[Value]) {
        let client = self.running.client().await;
        let began = Instant::now();
        while began.elapsed() < LASTS {
            join_all((0..values.len() * 2).map(|n| {
                let mut client = client.clone();
                async move {
                    let _ = try_open(&mut client, &values[n % values.len()], self.trouble.codes()).await;
                }
            }))
            .await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends the fault and waits until all is well. When that was.
    async fn recover(&self, on: On) -> Instant {
        on.end();
        let ended = Instant::now();
        well(&self.name, &self.running, &self.cold, ended).await;
        ended
    }

    async fn finish(self) {
        let written = self.load.finish(&self.name).await;
        // From an empty keyring, on another node.
        let replica = self.site.replica().without_proxy().start().await;
        let mut client = replica.client().await;
        for value in written.iter().chain(&self.cold) {
            try_open(&mut client, value, &[]).await.unwrap();
        }
        let log = self.running.log();
        assert!(!log.contains("panicked"), "{}: {log}", self.name);
    }
}

/// Waits until it is ready and every cold value opens: at most [`RECOVERY`] after `ended`.
async fn well(name: &str, running: &Running, cold: &[Value], ended: Instant) {
    let mut client = running.client().await;
    let mut rest = cold.iter();
    let mut value = rest.next();
    loop {
        while let Some(next) = value {
            // Whatever it still says of the fault that is over; that it ends in time is what counts.
            match try_open(&mut client, next, &[Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded])
                .await
            {
                Ok(()) => value = rest.next(),
                Err(_) => break,
            }
        }
        if value.is_none() && running.http("/readyz").await.1.contains("state=ready") {
            println!("{name}: well after {:?}", ended.elapsed());
            return;
        }
        assert!(ended.elapsed() < RECOVERY, "{name}: not well after {RECOVERY:?}\n{}", running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn at_the_start(trouble: Trouble) {
    let name = format!("{trouble:?}, at the start");
    let mut site = Site::aws_behind_proxy();
    site.set(QUICK);
    let cold = cold(&site, 3).await;
    let on = trouble.begin(&site);
    let running = site.spawn();
    let watch = Watch::begin(&running, |answer| match answer {
        Ok(status) => assert_eq!(status.healthz, "ok"),
        Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
    });
    let mut client = running.client().await;
    let began = Instant::now();
    while began.elapsed() < LASTS {
        if let Err(status) = client.encrypt(seed(), uid()).await {
            assert_eq!(status.code(), Code::Unavailable, "{name}: {status:?}");
        }
        let _ = try_open(&mut client, &cold[0], trouble.codes()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    on.end();
    well(&name, &running, &cold, Instant::now()).await;
    watch.finish(&name);
    running.until_ok().await;
    sealed(&mut client).await;
}

async fn in_steady_state(trouble: Trouble) {
    // Known DEKs are past their time, so that each of them is asked for again in the midst of it.
    let scene = Scene::set(trouble, "in steady state", "cache: {ttl: 1s}").await;
    let on = trouble.begin(&scene.site);
    tokio::time::sleep(LASTS).await;
    scene.recover(on).await;
    scene.finish().await;
}

async fn in_a_cold_storm(trouble: Trouble) {
    let scene = Scene::set(trouble, "in a cold storm", "").await;
    let on = trouble.begin(&scene.site);
    let values = scene.cold.clone();
    scene.storm(&values).await;
    scene.recover(on).await;
    scene.finish().await;
}

async fn during_a_rotation(trouble: Trouble) {
    let scene = Scene::set(trouble, "during a rotation", "").await;
    let old = scene.running.until_ok().await;
    let on = trouble.begin(&scene.site);
    rotate(&scene.site);
    scene.storm(&scene.cold[..2]).await;
    let ended = scene.recover(on).await;
    scene.running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != old)).await.unwrap();
    assert!(ended.elapsed() < RECOVERY, "{}: rotated after {:?}", scene.name, ended.elapsed());
    scene.finish().await;
}

async fn while_a_dek_is_due(trouble: Trouble) {
    let scene = Scene::set(trouble, "while a DEK is due", "dek: {maxUses: 5}").await;
    let on = trouble.begin(&scene.site);
    let mut client = scene.running.client().await;
    let (_, old) = sealed(&mut client).await;
    tokio::time::sleep(LASTS).await;
    let ended = scene.recover(on).await;
    while sealed(&mut client).await.1.annotations["dek.kube-kms"] == old.annotations["dek.kube-kms"] {
        assert!(ended.elapsed() < RECOVERY, "{}: no new DEK\n{}", scene.name, scene.running.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.finish().await;
}

async fn during_a_reload(trouble: Trouble) {
    let mut scene = Scene::set(trouble, "during a reload", "").await;
    let on = trouble.begin(&scene.site);
    scene.site.set("dek: {maxUses: 1000}").write_config();
    scene.running.signal(Signal::HUP);
    let said =
        |log: &str| log.contains("the new configuration is in force") || log.contains("the old configuration stays");
    scene.running.until("a word about the reload", || said(&scene.running.log())).await;
    tokio::time::sleep(LASTS).await;
    scene.recover(on).await;
    let before = scene.running.settled_log().await;
    scene.running.signal(Signal::HUP);
    scene.running.until_log_again("the new configuration is in force", &before).await;
    scene.finish().await;
}

/// All moments at once, each with a process and a KMS of its own.
async fn everywhere(trouble: Trouble) {
    tokio::join!(
        at_the_start(trouble),
        in_steady_state(trouble),
        in_a_cold_storm(trouble),
        during_a_rotation(trouble),
        while_a_dek_is_due(trouble),
        during_a_reload(trouble),
    );
}

macro_rules! troubles {
    ($($name:ident: $trouble:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            everywhere($trouble).await;
        }
    )+};
}

troubles! {
    a_slow_network_harms_nothing: Trouble::Network(Fault::Slow { delay: Duration::from_millis(50), bytes_per_second: 5000 });
    a_network_that_crawls_harms_nothing_known: Trouble::Network(Fault::Slow { delay: Duration::from_millis(200), bytes_per_second: 100 });
    a_black_hole_harms_nothing_known: Trouble::Network(Fault::BlackHole);
    a_kms_whose_connects_hang_harms_nothing_known: Trouble::Network(Fault::Deaf);
    a_kms_that_refuses_connections_harms_nothing_known: Trouble::Network(Fault::Refuse);
    connections_that_are_reset_at_once_harm_nothing_known: Trouble::Network(Fault::ResetAtConnect);
    requests_that_are_cut_in_the_middle_harm_nothing_known: Trouble::Network(Fault::ResetMidRequest);
    answers_that_are_cut_in_the_middle_harm_nothing_known: Trouble::Network(Fault::ResetMidBody);
    connections_that_are_half_closed_harm_nothing_known: Trouble::Network(Fault::HalfClose);
    connections_that_are_cut_over_and_over_harm_nothing_known: Trouble::Cut;
    a_network_that_flaps_harms_nothing_known: Trouble::Flapping;
    a_single_connection_is_enough: Trouble::OneConnection;
    internal_errors_of_the_kms_harm_nothing_known: Trouble::Kms(Failure::Internal);
    a_kms_that_hangs_harms_nothing_known: Trouble::Kms(Failure::Hang);
    a_kms_that_throttles_everything_harms_nothing_known: Trouble::Kms(Failure::Throttled);
    credentials_that_have_expired_harm_nothing_known: Trouble::Kms(Failure::ExpiredToken);
}
