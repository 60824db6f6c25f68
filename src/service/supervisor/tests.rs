use super::*;
use crate::core::health::OnDenied;
use crate::core::port::{Clock as _, Moment};
use crate::core::uid::Uid;
use crate::service::decrypt::DecryptInput;
use crate::service::peer::Session;
use crate::service::plugin::Encrypted;
use crate::service::probe_fixture::{HandClock, Remembering, ScriptedKek, entry, key_id_of, plugin};
use crate::service::write_state::tests::settings;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const INTERVAL: Duration = Duration::from_secs(60);

fn after(failures: u32, reason: Reason) -> Record {
    (0..failures).fold(Record::after_success(Moment(0)), |r, _| r.after_failure(reason, Moment(1), &settings().policy))
}

#[test]
fn a_healthy_kek_is_asked_once_an_interval_and_recovery_is_noticed_within_ten_seconds() {
    assert_eq!(wait_after(&after(0, Reason::Deadline), true, false, INTERVAL), INTERVAL);
    for failures in 1..100 {
        let wait = wait_after(&after(failures, Reason::KmsUnreachable), true, false, INTERVAL);
        // A probe that began just before the recovery hangs until its time is over.
        let hung = settings().probe_timeout;
        assert!(hung + wait.mul_f64(1.1) < Duration::from_secs(9), "{failures}: {wait:?}");
    }
}

#[test]
fn a_kms_that_throttles_is_asked_less_and_a_changed_version_sooner() {
    assert!(wait_after(&after(1, Reason::KmsThrottled), true, false, INTERVAL) > INTERVAL);
    assert!(wait_after(&after(0, Reason::Deadline), true, true, INTERVAL) < Duration::from_secs(5));
    assert!(wait_after(&after(0, Reason::Deadline), false, true, INTERVAL) < Duration::from_secs(1));
}

/// A supervisor whose rounds the test calls, and everything around it.
struct Bench {
    kek: Arc<ScriptedKek>,
    clock: Arc<HandClock>,
    observer: Arc<Remembering>,
    plugin: Arc<Plugin>,
    supervisor: Supervisor,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings(), tempfile::tempdir().unwrap())
    }

    /// A new process on this state directory.
    fn with(settings: Settings, dir: TempDir) -> Self {
        let (kek, clock, observer) =
            (ScriptedKek::new("A"), Arc::<HandClock>::default(), Arc::<Remembering>::default());
        let state_file = StateFile::new(dir.path());
        let remembered = state_file.load();
        let plugin = plugin(&kek, settings, &clock, &observer, remembered.key_id.clone());
        let supervisor = Supervisor::new(Arc::clone(&plugin), state_file, remembered);
        Self { kek, clock, observer, plugin, supervisor, dir }
    }

    async fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.supervisor.round().await;
        }
    }

    async fn rotate(&mut self, version: &'static str) {
        self.kek.set(|script| script.version = version);
        self.rounds(2).await;
    }

    fn state(&self) -> &'static str {
        self.plugin.published().state.label()
    }

    fn because(&self) -> Option<Reason> {
        self.plugin.published().state.because()
    }

    /// healthz and key_id, which Encrypt must agree with when it answers.
    fn status(&self) -> (String, KeyId) {
        let answer = self.plugin.status().unwrap();
        if let Ok(encrypted) = self.plugin.encrypt(b"seed") {
            assert_eq!(*encrypted.write.key_id(), answer.key_id);
        }
        (answer.healthz, answer.key_id)
    }

    fn on_disk(&self) -> Remembered {
        StateFile::new(self.dir.path()).load()
    }

    async fn reload(&mut self, kek: &Arc<ScriptedKek>, settings: Settings) -> Result<KeyId, Fault> {
        let (reply, answer) = oneshot::channel();
        let keks = KekSet::new(entry(kek), Vec::new());
        self.supervisor.reload(Reload { keks, settings, reply }).await;
        answer.await.unwrap()
    }

    async fn open(&self, sealed: &Encrypted) -> Result<Vec<u8>, Fault> {
        let uid = Uid::parse("u");
        let opened = self.plugin.decrypt(DecryptInput {
            ciphertext: &sealed.ciphertext,
            key_id: sealed.write.key_id().as_str().to_owned(),
            annotations: sealed.write.annotations().all().clone(),
            uid: &uid,
            patience: Duration::from_secs(1),
        });
        opened.await.map(|opened| opened.plaintext.to_vec())
    }
}

fn ok(version: &str) -> (String, KeyId) {
    ("ok".to_owned(), key_id_of(version, 0))
}

#[tokio::test]
async fn the_first_good_round_makes_it_ready_and_a_second_one_changes_nothing() {
    let mut bench = Bench::new();
    assert_eq!(bench.state(), "starting");
    assert_eq!(bench.plugin.encrypt(b"seed").unwrap_err().reason(), Reason::Starting);
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    let dek = bench.plugin.encrypt(b"seed").unwrap().write.annotations().clone();
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    assert_eq!(*bench.plugin.encrypt(b"seed").unwrap().write.annotations(), dek);
    assert_eq!(*bench.observer.published.lock().unwrap(), [false]);
}

#[tokio::test]
async fn a_start_without_the_kms_says_why_and_ends_by_itself() {
    let mut bench = Bench::new();
    bench.kek.fail(Some(Reason::KmsUnreachable));
    bench.rounds(3).await;
    assert_eq!((bench.state(), bench.because()), ("starting", Some(Reason::KmsUnreachable)));
    assert_eq!(bench.plugin.status().unwrap_err().reason(), Reason::Starting);
    bench.kek.fail(None);
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
}

#[tokio::test]
async fn a_rotation_is_believed_at_the_second_sight_and_what_was_sealed_before_opens_without_the_kms() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let old = bench.plugin.encrypt(b"seed").unwrap();
    bench.kek.set(|script| script.version = "B");
    bench.rounds(1).await;
    assert_eq!(bench.status(), ok("A"), "seen once");
    bench.kek.set(|script| script.version = "A");
    bench.rounds(1).await;
    bench.kek.set(|script| script.version = "B");
    bench.rounds(1).await;
    assert_eq!(bench.status(), ok("A"), "seen twice, but not in a row");
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
    assert_eq!(*bench.observer.published.lock().unwrap(), [false, true]);
    bench.kek.fail(Some(Reason::KmsUnreachable));
    assert_eq!(bench.open(&old).await.unwrap(), b"seed");
    assert_eq!(bench.on_disk().left, [key_id_of("A", 0)]);
}

#[tokio::test]
async fn a_version_that_cannot_wrap_or_unwrap_yet_is_never_announced() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.set(|script| (script.version, script.unwrap_fails) = ("B", Some(Reason::KekUnusable)));
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.status()), ("coasting", ok("A")));
    bench.kek.fail(None);
    bench.rounds(2).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
}

#[tokio::test]
async fn a_version_that_was_left_is_refused_and_sealing_goes_on_under_the_one_that_is_reported() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.rotate("B").await;
    bench.rotate("A").await;
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.because()), ("coasting", Some(Reason::KeyIdRetired)));
    assert_eq!(bench.status(), ok("B"));
    bench.kek.set(|script| script.version = "B");
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
    bench.rotate("C").await;
    bench.rotate("A").await;
    assert_eq!((bench.because(), bench.status()), (Some(Reason::KeyIdRetired), ok("C")));
}

#[tokio::test]
async fn a_restarted_node_reports_what_it_reported_until_the_kms_answers_and_never_what_it_left() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.rotate("B").await;
    let mut again = Bench::with(settings(), bench.dir);
    assert_eq!(again.state(), "starting-known");
    assert_eq!(again.status(), ("starting: no data key yet".to_owned(), key_id_of("B", 0)));
    again.rounds(3).await;
    assert_eq!(again.status(), ("starting: key-id-retired".to_owned(), key_id_of("B", 0)), "the KMS answers with A");
    assert!(again.plugin.encrypt(b"seed").is_err());
    again.kek.set(|script| script.version = "C");
    again.rounds(1).await;
    assert_eq!(again.status().1, key_id_of("B", 0), "another version is not believed at first sight");
    again.rounds(1).await;
    assert_eq!((again.state(), again.status()), ("ready", ok("C")));
    assert_eq!(again.on_disk().left, [key_id_of("A", 0), key_id_of("B", 0)]);
}

#[tokio::test]
async fn a_dek_is_replaced_by_age_and_by_use_under_the_same_key_id() {
    let mut bench = Bench::with(Settings { dek_max_uses: 3, ..settings() }, tempfile::tempdir().unwrap());
    bench.rounds(1).await;
    let first = bench.plugin.encrypt(b"seed").unwrap();
    bench.clock.advance(settings().dek_max_age - Duration::from_nanos(1));
    bench.rounds(1).await;
    assert!(Arc::ptr_eq(&first.write, &bench.plugin.encrypt(b"seed").unwrap().write), "not yet");
    bench.clock.advance(Duration::from_nanos(1));
    bench.rounds(1).await;
    let second = bench.plugin.encrypt(b"seed").unwrap();
    assert_ne!(first.write.annotations(), second.write.annotations());
    for _ in 0..2 {
        bench.plugin.encrypt(b"seed").unwrap();
    }
    bench.rounds(1).await;
    let third = bench.plugin.encrypt(b"seed").unwrap();
    assert_ne!(second.write.annotations(), third.write.annotations());
    assert_eq!(*bench.observer.published.lock().unwrap(), [false; 3]);
    assert_eq!(bench.status(), ok("A"));
    bench.kek.fail(Some(Reason::KmsUnreachable));
    for sealed in [first, second, third] {
        assert_eq!(bench.open(&sealed).await.unwrap(), b"seed");
    }
}

#[tokio::test]
async fn a_dek_past_its_age_and_its_uses_seals_on_while_the_kms_is_away() {
    let mut bench = Bench::with(Settings { dek_max_uses: 2, ..settings() }, tempfile::tempdir().unwrap());
    bench.rounds(1).await;
    bench.kek.fail(Some(Reason::KmsUnreachable));
    bench.clock.advance(settings().dek_max_age * 3);
    for _ in 0..10 {
        bench.rounds(1).await;
        bench.plugin.encrypt(b"seed").unwrap();
    }
    assert_eq!(*bench.observer.published.lock().unwrap(), [false]);
    bench.kek.fail(None);
    bench.rounds(1).await;
    assert_eq!(*bench.observer.published.lock().unwrap(), [false; 2]);
}

#[tokio::test]
async fn an_outage_coasts_for_the_grace_degrades_after_it_and_ends_with_one_good_probe() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.fail(Some(Reason::KmsUnreachable));
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("coasting", ok("A")));
    bench.clock.advance(settings().policy.grace);
    bench.rounds(1).await;
    assert_eq!(bench.state(), "degraded");
    let (healthz, key_id) = bench.status();
    assert_eq!((healthz.as_str(), key_id), ("kms-unreachable for 60 min, serving from memory", key_id_of("A", 0)));
    assert!(bench.plugin.encrypt(b"seed").is_ok());
    bench.kek.fail(None);
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
}

#[tokio::test]
async fn a_dead_kek_is_revoked_at_the_second_answer_wiped_and_back_when_it_is_enabled() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let sealed = bench.plugin.encrypt(b"seed").unwrap();
    assert_eq!(bench.plugin.keyring().len(), 1);
    bench.kek.fail(Some(Reason::KekDisabled));
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("coasting", ok("A")), "one answer is not enough");
    bench.rounds(1).await;
    assert_eq!(bench.state(), "revoked");
    assert_eq!(bench.plugin.status().unwrap_err().reason(), Reason::KekDisabled);
    assert_eq!(bench.plugin.encrypt(b"seed").unwrap_err().reason(), Reason::KekDisabled);
    assert_eq!(bench.open(&sealed).await.unwrap_err().reason(), Reason::KekDisabled);
    assert!(bench.plugin.keyring().is_empty() && bench.plugin.published().write.is_none());
    bench.kek.fail(Some(Reason::KmsUnreachable));
    bench.rounds(1).await;
    assert_eq!(bench.state(), "revoked", "an outage does not bring it back");
    bench.kek.fail(None);
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn a_dead_answer_to_a_wrap_revokes_nothing_while_our_own_dek_still_unwraps() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.set(|script| script.wrap_fails = Some(Reason::KekDisabled));
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.because(), bench.status()), ("coasting", Some(Reason::KekUnusable), ok("A")));
    assert_eq!(bench.plugin.keyring().len(), 1);
    bench.kek.set(|script| script.unwrap_fails = Some(Reason::KmsUnreachable));
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.because()), ("coasting", Some(Reason::KmsUnreachable)), "no proof");
    bench.kek.set(|script| script.unwrap_fails = Some(Reason::PolicyDenied));
    bench.rounds(5).await;
    assert_eq!((bench.state(), bench.because()), ("coasting", Some(Reason::PolicyDenied)), "no proof either");
    bench.kek.set(|script| script.unwrap_fails = Some(Reason::KekDisabled));
    bench.rounds(2).await;
    assert_eq!((bench.state(), bench.because()), ("revoked", Some(Reason::KekDisabled)));
    assert!(bench.plugin.keyring().is_empty());
}

#[tokio::test]
async fn a_kek_that_is_dead_before_the_first_write_state_takes_the_deks_of_reads_with_it() {
    let mut first = Bench::new();
    first.rounds(1).await;
    let sealed = first.plugin.encrypt(b"seed").unwrap();
    let mut bench = Bench::with(settings(), first.dir);
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed");
    assert_eq!((bench.state(), bench.plugin.keyring().len()), ("starting-known", 1));
    bench.kek.fail(Some(Reason::KekDisabled));
    bench.rounds(1).await;
    assert_eq!(bench.plugin.keyring().len(), 1, "one answer is not enough");
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.plugin.keyring().len()), ("revoked", 0));
    assert_eq!(bench.open(&sealed).await.unwrap_err().reason(), Reason::KekDisabled);
}

#[tokio::test]
async fn a_denial_coasts_or_revokes_as_the_operator_says() {
    let mut revoking = settings();
    revoking.policy.on_denied = OnDenied::Revoke;
    for (settings, expected) in [(settings(), "coasting"), (revoking, "revoked")] {
        let mut bench = Bench::with(settings, tempfile::tempdir().unwrap());
        bench.rounds(1).await;
        bench.kek.fail(Some(Reason::PolicyDenied));
        bench.rounds(2).await;
        assert_eq!((bench.state(), bench.because()), (expected, Some(Reason::PolicyDenied)));
    }
}

/// With the only blocking thread taken, nothing can be written: then nothing may be reported either.
#[test]
fn a_key_id_is_on_disk_before_it_is_reported() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let mut bench = Bench::new();
        bench.rounds(1).await;
        bench.kek.set(|script| script.version = "B");
        bench.rounds(1).await;
        let (free, taken) = std::sync::mpsc::channel::<()>();
        let blocker = tokio::task::spawn_blocking(move || taken.recv());
        let (plugin, dir) = (Arc::clone(&bench.plugin), bench.dir.path().to_owned());
        let mut round = Box::pin(bench.supervisor.round());
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut round).await.is_err(), "it waits for the disk");
        assert_eq!(plugin.status().unwrap().key_id, key_id_of("A", 0));
        assert_eq!(StateFile::new(&dir).load().key_id, Some(key_id_of("A", 0)));
        free.send(()).unwrap();
        blocker.await.unwrap().unwrap();
        round.await;
        assert_eq!(plugin.status().unwrap().key_id, key_id_of("B", 0));
        assert_eq!(StateFile::new(&dir).load().key_id, Some(key_id_of("B", 0)));
    });
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_does_not_stop_anything() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let occupied = dir.path().join("a-file");
    crate::durable::write(&occupied, b"x", crate::durable::Existing::Refuse).unwrap();
    bench.supervisor.state_file = StateFile::new(&occupied);
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    bench.rotate("B").await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
    bench.rotate("A").await;
    assert_eq!(bench.because(), Some(Reason::KeyIdRetired), "this process remembers without the file");
}

#[tokio::test]
async fn a_reload_is_in_force_at_once_or_changes_nothing() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let before = bench.plugin.encrypt(b"seed").unwrap();
    let broken = ScriptedKek::new("B");
    broken.fail(Some(Reason::PolicyDenied));
    let slower = Settings { probe_interval: Duration::from_secs(3600), ..settings() };
    let refused = bench.reload(&broken, slower.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PolicyDenied);
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    assert!(Arc::ptr_eq(&before.write, &bench.plugin.encrypt(b"seed").unwrap().write));
    assert_eq!(*bench.plugin.settings(), settings());

    assert_eq!(bench.reload(&ScriptedKek::new("B"), slower.clone()).await.unwrap(), key_id_of("B", 0));
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
    assert_eq!(*bench.plugin.settings(), slower);
    let back = bench.reload(&ScriptedKek::new("A"), settings()).await.unwrap_err();
    assert_eq!((back.reason(), bench.status()), (Reason::KeyIdRetired, ok("B")));
    let epoch = Settings { epoch: 1, ..settings() };
    assert_eq!(bench.reload(&ScriptedKek::new("A"), epoch).await.unwrap(), key_id_of("A", 1));
    assert_eq!(bench.status().1, key_id_of("A", 1));
}

#[tokio::test]
async fn a_reload_holds_although_nobody_waits_for_it() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let (reply, answer) = oneshot::channel();
    drop(answer);
    let keks = KekSet::new(entry(&ScriptedKek::new("B")), Vec::new());
    bench.supervisor.reload(Reload { keks, settings: settings(), reply }).await;
    assert_eq!(bench.status(), ok("B"));
}

/// A supervisor that goes by itself, in time that the runtime makes up.
struct Going {
    kek: Arc<ScriptedKek>,
    clock: Arc<HandClock>,
    plugin: Arc<Plugin>,
    reloads: mpsc::Sender<Reload>,
    task: JoinHandle<()>,
    _dir: TempDir,
}

impl Bench {
    fn go(self) -> Going {
        let (reloads, queue) = mpsc::channel(1);
        let task = tokio::spawn(self.supervisor.run(queue));
        Going { kek: self.kek, clock: self.clock, plugin: self.plugin, reloads, task, _dir: self.dir }
    }
}

#[tokio::test(start_paused = true)]
async fn the_kms_is_asked_once_an_interval_sooner_when_it_is_away_and_later_when_it_throttles() {
    let Going { kek, reloads, task, _dir, .. } = Bench::new().go();
    let hour = Duration::from_secs(3600);
    let probes_in = async |time: Duration| {
        let before = kek.wraps();
        tokio::time::sleep(time).await;
        kek.wraps() - before
    };
    let healthy = probes_in(hour).await;
    assert!((54..=68).contains(&healthy), "{healthy} an hour");
    kek.fail(Some(Reason::KmsUnreachable));
    probes_in(Duration::from_secs(120)).await;
    let away = probes_in(hour).await;
    assert!((540..=670).contains(&away), "{away} an hour: every 6 s");
    kek.fail(Some(Reason::KmsThrottled));
    probes_in(Duration::from_secs(120)).await;
    let throttled = probes_in(hour).await;
    assert!((26..=35).contains(&throttled), "{throttled} an hour");
    drop(reloads);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_in_force_within_an_interval_and_five_seconds() {
    let Going { kek, plugin, reloads: _open, _dir, .. } = Bench::new().go();
    tokio::time::sleep(INTERVAL * 2).await;
    kek.set(|script| script.version = "B");
    tokio::time::sleep(INTERVAL.mul_f64(1.1) + Duration::from_secs(5)).await;
    assert_eq!(plugin.status().unwrap().key_id, key_id_of("B", 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_use_of_a_dek_wakes_the_supervisor_and_a_dek_too_old_is_replaced_at_the_next_probe() {
    let bench = Bench::with(Settings { dek_max_uses: 2, ..settings() }, tempfile::tempdir().unwrap());
    let Going { kek, plugin, clock, reloads: _open, _dir, .. } = bench.go();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = plugin.encrypt(b"seed").unwrap().write;
    plugin.encrypt(b"seed").unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = plugin.encrypt(b"seed").unwrap().write;
    assert_ne!(first.annotations(), second.annotations());
    assert_eq!(kek.wraps(), 2);
    clock.advance(settings().dek_max_age);
    assert_eq!(second.born(), Moment(0));
    assert!(second.is_due(clock.now(), &plugin.settings()));
    tokio::time::sleep(INTERVAL.mul_f64(1.1)).await;
    assert_ne!(plugin.encrypt(b"seed").unwrap().write.annotations(), second.annotations());
}

#[tokio::test(start_paused = true)]
async fn requests_are_answered_while_the_kek_never_answers() {
    let Going { kek, plugin, reloads: _open, task, _dir, .. } = Bench::new().go();
    tokio::time::sleep(Duration::from_secs(1)).await;
    kek.set(|script| script.hangs = true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(plugin.status().unwrap().key_id, key_id_of("A", 0));
    assert_eq!(*plugin.encrypt(b"seed").unwrap().write.key_id(), key_id_of("A", 0));
    task.abort();
}

#[tokio::test]
async fn an_encrypt_right_after_a_rotation_is_answered_as_the_status_before_it_on_that_connection() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let (told_before, never_told) = (Session::default(), Session::default());
    assert_eq!(told_before.status(&bench.plugin).status.as_ref().unwrap().key_id, key_id_of("A", 0));
    bench.rotate("B").await;
    let sealed_by = |session: &Session| session.encrypt(&bench.plugin, b"seed").unwrap();
    let late = sealed_by(&told_before);
    assert_eq!(*late.write.key_id(), key_id_of("A", 0));
    assert_eq!(bench.open(&late).await.unwrap(), b"seed");
    assert_eq!(*sealed_by(&never_told).write.key_id(), key_id_of("B", 0));
    assert_eq!(told_before.status(&bench.plugin).status.as_ref().unwrap().key_id, key_id_of("B", 0));
    assert_eq!(*sealed_by(&told_before).write.key_id(), key_id_of("B", 0));
}

#[tokio::test]
async fn what_a_connection_was_told_holds_for_a_few_seconds_and_never_past_a_revocation() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    let told = Session::default();
    told.status(&bench.plugin).status.as_ref().unwrap();
    bench.rotate("B").await;
    bench.clock.advance(Duration::from_secs(6));
    assert_eq!(*told.encrypt(&bench.plugin, b"seed").unwrap().write.key_id(), key_id_of("B", 0));
    told.status(&bench.plugin).status.as_ref().unwrap();
    bench.rotate("C").await;
    bench.kek.fail(Some(Reason::KekDisabled));
    bench.rounds(2).await;
    assert_eq!(bench.state(), "revoked");
    assert_eq!(told.encrypt(&bench.plugin, b"seed").unwrap_err().reason(), Reason::KekDisabled);
    assert!(bench.plugin.published().previous.is_none(), "its DEK is wiped with the others");
}
