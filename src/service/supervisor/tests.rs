use super::*;
use crate::decrypt::DecryptInput;
use crate::fixture::settings;
use crate::peer::Session;
use crate::plugin::Encrypted;
use crate::probe_fixture::{HandClock, Remembering, ScriptedKek, entry, key_id_of, plugin};
use crate::saver::PATIENCE;
use crate::saver::tests::ScriptedDisk;
use crate::state_file::StateFile;
use kube_kms_core::health::OnDenied;
use kube_kms_core::kek_ref::{KekKind, KekRef};
use kube_kms_core::port::{Clock as _, Moment};
use kube_kms_core::rotation::rotation_seen_within;
use kube_kms_core::uid::Uid;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const INTERVAL: Duration = Duration::from_secs(60);

fn after(failures: u32, reason: Reason) -> Record {
    (0..failures).fold(Record::after_success(Moment(0)), |r, _| {
        r.after_failure(reason, Testimony::of(reason, &settings().policy), Moment(1), &settings().policy)
    })
}

fn coasting(because: Reason) -> State {
    State::Coasting { because, age: Duration::ZERO }
}

#[test]
fn a_healthy_kek_is_asked_once_an_interval_and_recovery_is_noticed_within_ten_seconds() {
    assert_eq!(wait_after(&after(0, Reason::Deadline), &State::Ready, false, INTERVAL), INTERVAL);
    for failures in 1..100 {
        let wait =
            wait_after(&after(failures, Reason::KmsUnreachable), &coasting(Reason::KmsUnreachable), false, INTERVAL);
        // A probe that began just before the recovery hangs until its time is over.
        let hung = settings().probe_timeout;
        assert!(hung + wait.mul_f64(1.1) < Duration::from_secs(9), "{failures}: {wait:?}");
    }
}

#[test]
fn a_kms_that_throttles_is_asked_less_and_a_changed_version_sooner() {
    let throttled = after(1, Reason::KmsThrottled);
    assert!(wait_after(&throttled, &coasting(Reason::KmsThrottled), false, INTERVAL) > INTERVAL);
    assert!(wait_after(&after(0, Reason::Deadline), &State::Ready, true, INTERVAL) < Duration::from_secs(5));
    let starting = State::Starting { because: None };
    assert!(wait_after(&after(0, Reason::Deadline), &starting, true, INTERVAL) < Duration::from_secs(1));
}

#[test]
fn a_start_with_a_version_that_was_left_is_tried_again_in_seconds_and_a_dead_answer_confirmed_at_its_time() {
    let refused = Record::after_refusal(Reason::KeyIdRetired, Moment(0));
    let starting = State::Starting { because: None };
    let minutes = Duration::from_secs(600);
    assert!(wait_after(&refused, &starting, false, minutes) < Duration::from_secs(9));
    assert_eq!(wait_after(&refused, &State::Ready, false, minutes), minutes);
    assert_eq!(wait_after(&after(0, Reason::Deadline), &starting, false, minutes), minutes);
    // The version changes while all is well: no hurry as at a start.
    assert!(wait_after(&after(0, Reason::Deadline), &State::Ready, true, minutes) > Duration::from_secs(1));
    let dead = after(1, Reason::KekGone);
    assert!(dead.is_to_be_confirmed());
    assert_eq!(wait_after(&dead, &State::Ready, false, minutes), health::CONFIRM_AFTER);
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
        Self::with_clock(settings, dir, HandClock::default())
    }

    /// A new process whose clock goes with the runtime's.
    fn in_time(settings: Settings) -> Self {
        Self::with_clock(settings, tempfile::tempdir().unwrap(), HandClock::going())
    }

    fn with_clock(settings: Settings, dir: TempDir, clock: HandClock) -> Self {
        let (kek, clock, observer) = (ScriptedKek::new("A"), Arc::new(clock), Arc::<Remembering>::default());
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

    /// Rounds that are far enough apart for each answer to count.
    async fn spread_rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.clock.advance(Duration::from_secs(5));
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
        self.plugin.snapshot().because
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
    assert_eq!((bench.state(), bench.because()), ("ready", Some(Reason::KeyIdRetired)));
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
    bench.spread_rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("coasting", ok("A")), "one answer is not enough");
    bench.spread_rounds(1).await;
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
    bench.spread_rounds(100).await;
    assert_eq!((bench.state(), bench.because(), bench.status()), ("coasting", Some(Reason::KekUnusable), ok("A")));
    assert_eq!(bench.plugin.keyring().len(), 1);
    bench.kek.set(|script| script.unwrap_fails = Some(Reason::KmsUnreachable));
    bench.spread_rounds(5).await;
    assert_eq!((bench.state(), bench.because()), ("coasting", Some(Reason::KmsUnreachable)), "no proof");
    bench.kek.set(|script| script.unwrap_fails = Some(Reason::KekDisabled));
    bench.spread_rounds(2).await;
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
    bench.spread_rounds(1).await;
    assert_eq!(bench.plugin.keyring().len(), 1, "one answer is not enough");
    bench.spread_rounds(1).await;
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
        bench.spread_rounds(2).await;
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
    kube_kms_os::durable::write(&occupied, b"x", kube_kms_os::durable::Existing::Refuse).unwrap();
    bench.supervisor.saver = Saver::new(Box::new(StateFile::new(&occupied)));
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("A")));
    bench.rotate("B").await;
    assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
    bench.rotate("A").await;
    assert_eq!(bench.because(), Some(Reason::KeyIdRetired), "this process remembers without the file");
}

#[tokio::test(start_paused = true)]
async fn once_another_instance_has_taken_over_no_new_key_id_is_reported_and_what_is_reported_stays() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.supervisor.is_displaced = Box::new(|| true);
    bench.rotate("B").await;
    assert_eq!(bench.status(), ok("A"));
    let settings = Settings { epoch: 1, ..settings() };
    let kek = Arc::clone(&bench.kek);
    assert_eq!(bench.reload(&kek, settings).await.unwrap_err().reason(), Reason::ShuttingDown);
    assert_eq!(bench.status(), ok("A"));
    bench.supervisor.is_displaced = Box::new(|| false);
    bench.rounds(2).await;
    assert_eq!(bench.status(), ok("B"), "the other one has gone");
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
    bench.spread_rounds(2).await;
    assert_eq!(bench.state(), "revoked");
    assert_eq!(told.encrypt(&bench.plugin, b"seed").unwrap_err().reason(), Reason::KekDisabled);
    assert!(bench.plugin.published().previous.is_none(), "its DEK is wiped with the others");
}

/// AWS looks at the caller's rights first: a key that is disabled and whose role has lost its rights answers "denied" only.
#[tokio::test]
async fn a_dead_answer_is_confirmed_by_a_denial_and_not_forgotten_over_an_outage() {
    for between in [vec![], vec![Reason::KmsUnreachable; 5], vec![Reason::KmsThrottled, Reason::Deadline]] {
        for second in [Reason::PolicyDenied, Reason::CredentialsRejected, Reason::KekPendingDeletion] {
            let mut bench = Bench::new();
            bench.rounds(1).await;
            for reason in std::iter::once(&Reason::KekDisabled).chain(&between) {
                bench.kek.fail(Some(*reason));
                bench.spread_rounds(1).await;
                assert_eq!(bench.state(), "coasting", "{between:?}");
            }
            bench.kek.fail(Some(second));
            bench.spread_rounds(1).await;
            assert_eq!((bench.state(), bench.plugin.keyring().len()), ("revoked", 0), "{between:?} {second}");
        }
    }
}

#[tokio::test]
async fn a_good_answer_between_two_dead_ones_starts_the_count_again() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    for _ in 0..5 {
        bench.kek.fail(Some(Reason::KekDisabled));
        bench.spread_rounds(1).await;
        assert_eq!(bench.state(), "coasting");
        bench.kek.fail(None);
        bench.spread_rounds(1).await;
        assert_eq!(bench.state(), "ready");
    }
    for denied in 0..100 {
        bench.kek.fail(Some(Reason::PolicyDenied));
        bench.spread_rounds(1).await;
        assert_eq!(bench.state(), "coasting", "denied alone, {denied}");
    }
}

/// Whoever disables a key and takes Decrypt away hides the one by the other, and a KMS that throttles us may do so for long.
#[tokio::test]
async fn a_dead_answer_whose_proof_is_denied_counts_and_one_without_an_answer_does_not_wait_for_ever() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.set(|script| {
        (script.wrap_fails, script.unwrap_fails) = (Some(Reason::KekDisabled), Some(Reason::PolicyDenied))
    });
    bench.spread_rounds(1).await;
    assert_eq!(bench.state(), "coasting", "one answer is not enough");
    bench.spread_rounds(1).await;
    assert_eq!(bench.state(), "revoked");

    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.set(|script| {
        (script.wrap_fails, script.unwrap_fails) = (Some(Reason::KekDisabled), Some(Reason::KmsThrottled))
    });
    let mut rounds = 0;
    while bench.state() != "revoked" {
        bench.spread_rounds(1).await;
        rounds += 1;
        assert!(rounds < 30, "never");
    }
    assert!(rounds > 5, "it is asked again first: {rounds}");
}

#[tokio::test(start_paused = true)]
async fn four_seconds_of_dead_answers_wipe_nothing_however_often_the_supervisor_is_woken() {
    for offset in 0..30 {
        let Going { kek, plugin, reloads: _open, task, _dir, .. } = Bench::in_time(settings()).go();
        tokio::time::sleep(Duration::from_secs(50) + Duration::from_millis(700) * offset).await;
        kek.fail(Some(Reason::KekGone));
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            plugin.wake().notify_one();
        }
        kek.fail(None);
        for _ in 0..100 {
            assert_ne!(plugin.published().state.label(), "revoked", "offset {offset}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(plugin.published().state.label(), "ready");
        task.abort();
    }
}

#[tokio::test]
async fn a_version_that_was_left_is_no_outage_and_never_stops_or_degrades_anything() {
    let mut settings = settings();
    (settings.policy.grace, settings.policy.stop_after) = (Duration::from_secs(5), Some(Duration::from_secs(12)));
    let mut bench = Bench::with(settings, tempfile::tempdir().unwrap());
    bench.rounds(1).await;
    bench.rotate("B").await;
    bench.rotate("A").await;
    for _ in 0..20 {
        bench.spread_rounds(1).await;
        assert_eq!((bench.state(), bench.status()), ("ready", ok("B")));
        assert!(!bench.plugin.published().state.is_outage());
        assert_eq!(bench.plugin.snapshot().because, Some(Reason::KeyIdRetired), "it is said");
    }
    bench.kek.set(|script| script.version = "B");
    bench.rounds(1).await;
    assert_eq!(bench.plugin.snapshot().because, None);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_sees_of_throttling_ends_within_ten_seconds_of_its_end() {
    for (grace, stop_after) in [(10, None), (10, Some(20))] {
        for offset in [0, 7, 31, 58, 90] {
            let mut settings = settings();
            (settings.policy.grace, settings.policy.stop_after) =
                (Duration::from_secs(grace), stop_after.map(Duration::from_secs));
            let Going { kek, plugin, reloads: _open, task, _dir, .. } = Bench::in_time(settings).go();
            tokio::time::sleep(Duration::from_secs(100)).await;
            kek.fail(Some(Reason::KmsThrottled));
            tokio::time::sleep(Duration::from_secs(130 + offset)).await;
            let seen = plugin.published().state.label();
            assert_eq!(seen, if stop_after.is_some() { "stopped" } else { "degraded" });
            kek.fail(None);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(plugin.published().state.label(), "ready", "grace {grace} offset {offset}");
            task.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn grace_and_stop_after_are_kept_to_the_moment_whatever_the_probes_do() {
    for (reason, hangs) in [(Reason::KmsUnreachable, false), (Reason::KmsThrottled, false), (Reason::Deadline, true)] {
        let mut settings = settings();
        (settings.policy.grace, settings.policy.stop_after) =
            (Duration::from_secs(300), Some(Duration::from_secs(700)));
        let Going { kek, plugin, clock, reloads: _open, task, _dir, .. } = Bench::in_time(settings).go();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let label = || plugin.published().state.label();
        kek.set(|script| (script.wrap_fails, script.unwrap_fails, script.hangs) = (Some(reason), Some(reason), hangs));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(label(), "coasting", "{reason}");
        let began = plugin.published().last_good.unwrap();
        for (after, before, then) in [(300, "coasting", "degraded"), (700, "degraded", "stopped")] {
            let edge = Duration::from_secs(after) - clock.now().since(began);
            tokio::time::sleep(edge - Duration::from_millis(20)).await;
            assert_eq!(label(), before, "{reason}");
            tokio::time::sleep(Duration::from_millis(40)).await;
            assert_eq!(label(), then, "{reason}");
        }
        task.abort();
    }
}

/// A hang is how a KMS is away, and says so; `deadline` is what a caller is told of its own time.
#[tokio::test]
async fn a_kms_that_hangs_is_said_to_be_unreachable() {
    let mut bench = Bench::new();
    bench.rounds(1).await;
    bench.kek.fail(Some(Reason::Deadline));
    bench.rounds(1).await;
    assert_eq!((bench.state(), bench.because()), ("coasting", Some(Reason::KmsUnreachable)));
}

/// With the only blocking thread taken nothing can be written, as on a disk that stalls.
#[test]
fn a_disk_that_stalls_delays_a_rotation_by_two_seconds_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let mut bench = Bench::new();
        bench.rounds(1).await;
        bench.kek.set(|script| script.version = "B");
        bench.rounds(1).await;
        let (free, taken) = std::sync::mpsc::channel::<()>();
        let blocker = tokio::task::spawn_blocking(move || taken.recv());
        let round = tokio::time::timeout(Duration::from_secs(30), bench.supervisor.round()).await;
        assert!(round.is_ok(), "it waits for the disk for ever");
        assert_eq!(bench.status(), ok("B"));
        free.send(()).unwrap();
        blocker.await.unwrap().unwrap();
    });
}

/// fsync takes 25 s, as on a disk that many share: neither the start, nor a rotation, nor the notice of a disabled KEK waits.
#[tokio::test(start_paused = true)]
async fn a_disk_that_stalls_delays_neither_the_start_nor_the_notice_of_a_dead_kek_and_is_written_in_the_end() {
    let mut bench = Bench::in_time(settings());
    let disk = ScriptedDisk::default();
    disk.set(Duration::from_secs(25), false);
    bench.supervisor.saver = Saver::new(Box::new(disk.clone()));
    let Going { kek, plugin, reloads: _open, task, _dir, .. } = bench.go();
    let second = Duration::from_secs(1);
    tokio::time::sleep(PATIENCE + second / 10).await;
    assert_eq!(plugin.status().unwrap().key_id, key_id_of("A", 0), "it serves");
    kek.set(|script| script.version = "B");
    let Settings { probe_interval, probe_timeout, observations, .. } = settings();
    tokio::time::sleep(rotation_seen_within(probe_interval, probe_timeout, observations)).await;
    assert_eq!(plugin.status().unwrap().key_id, key_id_of("B", 0));
    disk.set(Duration::from_secs(100_000), false);
    kek.set(|script| script.version = "C");
    tokio::time::sleep(rotation_seen_within(probe_interval, probe_timeout, observations)).await;
    assert_eq!(plugin.status().unwrap().key_id, key_id_of("C", 0));
    kek.fail(Some(Reason::KekDisabled));
    tokio::time::sleep(health::noticed_within(probe_interval, probe_timeout, 2)).await;
    assert_eq!(plugin.published().state.label(), "revoked");
    kek.fail(None);
    tokio::time::sleep(Duration::from_secs(10)).await;
    disk.set(Duration::ZERO, false);
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    assert_eq!(disk.content().unwrap().key_id, Some(key_id_of("C", 0)));
    assert_eq!(disk.content().unwrap().left, [key_id_of("A", 0), key_id_of("B", 0)]);
    task.abort();
}

/// The disk says only after the start what this node remembers.
#[tokio::test(start_paused = true)]
async fn a_memory_that_comes_late_is_kept_and_joined_with_what_was_reported_meanwhile() {
    for reported_first in [false, true] {
        let mut bench = Bench::in_time(settings());
        let disk = ScriptedDisk::default();
        bench.supervisor.saver = Saver::new(Box::new(disk.clone()));
        let late = tokio::spawn(async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let remembered = Remembered::default().after(&key_id_of("Z", 0), "00".to_owned());
            remembered.after(&key_id_of("Y", 0), "00".to_owned())
        });
        bench.supervisor = bench.supervisor.with_late_memory(Some(late));
        bench.kek.fail((!reported_first).then_some(Reason::KmsUnreachable));
        let Going { kek, plugin, reloads: _open, task, _dir, .. } = bench.go();
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!((plugin.status().is_ok(), disk.content()), (reported_first, None), "nothing is written over");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = if reported_first { "A" } else { "Y" };
        assert_eq!(plugin.status().unwrap().key_id, key_id_of(now, 0));
        if reported_first {
            assert_eq!(disk.content().unwrap().left, [key_id_of("Z", 0), key_id_of("Y", 0)]);
        }
        kek.fail(None);
        kek.set(|script| script.version = "Z");
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(plugin.status().unwrap().key_id, key_id_of(now, 0), "what was left does not come back");
        task.abort();
    }
}

/// While nobody notices, a KMS that throttles us is not asked more than one that is well, although its answers to others call
/// for a probe.
#[tokio::test(start_paused = true)]
async fn answers_of_a_kms_that_throttles_call_for_a_probe_and_not_for_more_than_when_all_is_well() {
    let Going { kek, plugin, reloads: _open, task, _dir, .. } = Bench::in_time(settings()).go();
    tokio::time::sleep(Duration::from_secs(1)).await;
    kek.fail(Some(Reason::KmsThrottled));
    tokio::time::sleep(Duration::from_secs(200)).await;
    let named = KekRef::new(KekKind::LOCAL, "kek").unwrap();
    let before = kek.wraps();
    for _ in 0..1800 {
        plugin.kek_answers(&named);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = kek.wraps() - before;
    assert!((26..=34).contains(&asked), "{asked} in half an hour");
    kek.fail(None);
    plugin.kek_answers(&named);
    tokio::time::sleep(INTERVAL.mul_f64(1.1)).await;
    assert_eq!(plugin.published().state.label(), "ready", "and not after twice that time");
    task.abort();
}

/// The bounds that the pages give, from the worst moment on.
#[tokio::test(start_paused = true)]
async fn a_dead_kek_and_a_rotation_are_noticed_within_what_the_pages_say() {
    let Settings { probe_interval, probe_timeout, observations, policy, .. } = settings();
    let (mut noticed, mut seen) = (Duration::ZERO, Duration::ZERO);
    for offset in 0..40 {
        let Going { kek, plugin, reloads: _open, task, _dir, .. } = Bench::in_time(settings()).go();
        tokio::time::sleep(Duration::from_secs(50) + Duration::from_millis(500) * offset).await;
        let until = async |is_done: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is_done() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            began.elapsed()
        };
        kek.set(|script| script.version = "B");
        seen = seen.max(until(&|| plugin.status().unwrap().key_id == key_id_of("B", 0)).await);
        tokio::time::sleep(Duration::from_millis(1500) * offset).await;
        kek.fail(Some(Reason::KekDisabled));
        noticed = noticed.max(until(&|| plugin.published().state.label() == "revoked").await);
        task.abort();
    }
    let bound = health::noticed_within(probe_interval, probe_timeout, policy.confirmations);
    assert!(noticed <= bound && noticed > bound / 2, "{noticed:?}, and the bound is {bound:?}");
    let bound = rotation_seen_within(probe_interval, probe_timeout, observations);
    assert!(seen <= bound && seen > bound / 2, "{seen:?}, and the bound is {bound:?}");
}
