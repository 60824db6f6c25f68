//! The API server simulator over real sockets: each badly behaved plugin is caught by its finding and only by that, and
//! the real binary by none.
//!
//! Time is moved by hand, RPCs are real.

use crate::support::bad_plugin::{Served, Vice};
use crate::support::site::Site;
use kms_v2_api::stored;
use kms_v2_client::kms::{KmsClient, Target};
use kms_v2_client::plugin::{KmsPlugin, Rpc};
use kms_v2_judge::apiserver::{ApiServer, FindingCode, HandClock, Rewrite, Settings};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::{MonotonicClock, OsEntropy};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

const S: fn(u64) -> Duration = Duration::from_secs;

async fn connect(target: Target) -> Arc<dyn KmsPlugin> {
    Arc::new(KmsClient::connect(target, S(3)).await.unwrap())
}

/// A simulator and its clock.
struct Stage {
    server: ApiServer,
    clock: Arc<HandClock>,
}

impl Stage {
    async fn new(target: Target) -> Self {
        let clock = Arc::new(HandClock::default());
        let port: Arc<dyn Clock> = clock.clone();
        // Long, because the machine may be busy and the clock does not see it.
        let settings = Settings { timeout: S(20), ..Settings::new("demo") };
        let server = ApiServer::start(settings, connect(target).await, port, Arc::new(OsEntropy)).await;
        Self { server, clock }
    }

    /// Plays its loops and a readiness probe every second for so many seconds.
    async fn play(&self, seconds: u64) {
        let end = Moment(self.clock.now().0 + seconds * 1_000_000_000);
        while self.clock.now() < end {
            let second = Moment(self.clock.now().0 + 1_000_000_000);
            self.clock.set(self.server.next_due().min(second).min(end));
            self.server.tick().await;
            let _ = self.server.readyz().await;
        }
    }

    fn codes(&self) -> Vec<FindingCode> {
        self.server.report().findings.iter().map(|f| f.code).collect()
    }
}

/// Two minutes in the life of an API server: load, writes, reads, polls, a restart of the plugin when the vice is about
/// restarts, a restart of the server, everything read back.
async fn life(vice: Vice) -> Vec<FindingCode> {
    let mut plugin = Served::start(vice);
    let stage = Stage::new(plugin.target()).await;
    let mut stored = Vec::new();
    for n in 0..10 {
        let key = format!("/registry/secrets/default/s{n}");
        // A plugin whose answers are never taken has no write state: that is what its finding is about.
        if let Ok(value) = stage.server.write(&key, key.as_bytes()) {
            assert_eq!(stage.server.read(&key, &value).await.unwrap().plaintext.as_slice(), key.as_bytes());
            stored.push((key, value));
        }
    }
    stage.play(100).await;
    // A plugin that changes its key_id by the call cannot be told from one that changes it by the start.
    if matches!(vice, Vice::None | Vice::KeyIdOfTheStart) {
        plugin = plugin.restart().await;
        stage.server.plugin_restarted();
        stage.play(25).await;
    }
    stage.server.restart().await;
    let mut failed = 0;
    for (key, value) in &stored {
        failed += u32::from(stage.server.read(key, value).await.is_err());
    }
    if vice == Vice::None {
        assert_eq!((stored.len(), failed), (10, 0));
    }
    drop(plugin);
    stage.codes()
}

macro_rules! vices {
    ($($test:ident: $vice:ident;)+) => {
        $(#[tokio::test]
        async fn $test() {
            assert_eq!(life(Vice::$vice).await, Vec::from_iter(Vice::$vice.finding()));
        })+

        #[test]
        fn every_vice_has_its_test() {
            let tested = [$(Vice::$vice),+];
            assert!(Vice::ALL.iter().all(|v| tested.contains(v) || *v == Vice::Silent));
        }
    };
}

vices! {
    a_plugin_without_a_vice_has_no_finding: None;
    a_plugin_that_flips_and_flops_is_caught: FlipFlop;
    a_key_id_that_comes_back_is_caught: KeyIdComesBack;
    a_status_ahead_of_encrypt_is_caught: StatusAheadOfEncrypt;
    a_new_key_id_that_encrypt_cannot_use_is_caught: EncryptFailsForNewKeyId;
    an_empty_key_id_is_caught: EmptyKeyId;
    a_key_id_that_is_too_long_is_caught: KeyIdTooLong;
    a_key_id_of_the_start_is_caught: KeyIdOfTheStart;
    an_alpha_version_is_caught: VersionAlpha;
    a_version_that_flips_is_caught: VersionFlip;
    a_healthz_in_capitals_is_caught: HealthzInCapitals;
    an_empty_ciphertext_is_caught: CiphertextEmpty;
    a_ciphertext_that_is_too_long_is_caught: CiphertextTooLong;
    a_slash_in_the_name_of_an_annotation_is_caught: SlashInAnnotation;
    annotations_that_are_too_large_are_caught: AnnotationsTooLarge;
    wrong_bytes_are_caught: WrongBytes;
    too_few_bytes_are_caught: ShortBytes;
    a_plugin_that_forgets_its_own_values_is_caught: Forgetful;
}

/// In real time, because the time limit is.
#[tokio::test]
async fn a_silent_plugin_is_caught_within_the_time_limit() {
    let plugin = Served::start(Vice::Silent);
    let timeout = Duration::from_millis(300);
    let settings = Settings { timeout, status_slow: timeout / 2, ..Settings::new("demo") };
    let began = Instant::now();
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
    let server = ApiServer::start(settings, connect(plugin.target()).await, clock, Arc::new(OsEntropy)).await;
    let took = began.elapsed();
    assert!(took >= timeout && took < S(15), "{took:?}");
    let report = server.report();
    assert_eq!(report.counts.rpc(Rpc::Status, Code::DeadlineExceeded), 1);
    assert_eq!(report.findings.iter().map(|f| Some(f.code)).collect::<Vec<_>>(), [Vice::Silent.finding()]);
    assert_eq!(server.write("/k", b"x").unwrap_err().to_string(), "got unexpected nil transformer");
}

/// Load, 200 writes, reads, ten minutes of polls, a restart of the plugin, a rotation, a migration, a restart of the
/// server, everything read back.
#[tokio::test]
async fn there_is_no_finding_over_the_real_binary() {
    let mut site = Site::local();
    site.set("probe: {interval: 1s, timeout: 500ms}");
    let running = site.start().await;
    let stage = Stage::new(running.target.clone()).await;
    let mut values = Vec::new();
    for n in 0..200 {
        let key = format!("/registry/secrets/default/s{n}");
        let value = stage.server.write(&key, key.as_bytes()).unwrap();
        assert_eq!(stage.server.read(&key, &value).await.unwrap().plaintext.as_slice(), key.as_bytes());
        values.push((key, value));
    }
    stage.play(600).await;
    let first = stage.server.write_key_id().unwrap();

    running.kill();
    let running = site.start().await;
    stage.server.plugin_restarted();
    stage.play(60).await;
    assert_eq!(stage.server.write_key_id(), Some(first.clone()));

    let keyring = site.keyring().to_str().unwrap().to_owned();
    let keyring_command = |step: &[&str]| {
        let done = site.command(&[&["keyring"], step, &["--file", &keyring, "--output", "json"]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap()
    };
    let version = keyring_command(&["add"])["version"].as_str().unwrap().to_owned();
    keyring_command(&["promote", &version]);
    running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != first && s.healthz == "ok")).await.unwrap();
    stage.play(60).await;
    let second = stage.server.write_key_id().unwrap();
    assert_ne!(second, first);
    for (key, value) in &mut values {
        let Rewrite::Value(new) = stage.server.rewrite(key, value).await.unwrap() else { panic!("{key} is stale") };
        assert_eq!(stored::decode(&new).unwrap().1.key_id, second);
        // Half of them as a migration leaves them, half as a backup has them.
        if key.ends_with(['0', '2', '4', '6', '8']) {
            *value = new;
        }
    }

    stage.server.restart().await;
    for (key, value) in &values {
        assert_eq!(stage.server.read(key, value).await.unwrap().plaintext.as_slice(), key.as_bytes());
    }
    let report = stage.server.report();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.counts.writes_ok, report.counts.writes_failed, report.counts.reads_failed), (400, 0, 0));
    assert_eq!((report.counts.seeds_generated, report.counts.calls(Rpc::Decrypt)), (3, 2));
    assert_eq!(report.key_ids.iter().map(|k| &k.key_id).collect::<Vec<_>>(), [&first, &second]);
}
