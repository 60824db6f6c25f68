//! A fake AWS KMS on 127.0.0.1, for tests: AWS JSON 1.1, real AES-256-GCM, key states, rotation, and faults on demand.
//!
//! Guarantees: [`FakeKms`] answers as AWS documents it (`tests/fake_kms_is_honest.rs` holds it, the same calls against
//! moto where moto is right); it has a thread and a runtime of its own, so it works from any test; it has no slowness of
//! its own; it goes away with its last handle. Refuses to know signatures (only the region they are scoped to is
//! checked), grants, policies, asymmetric and multi-region keys, and time: nothing expires unless the test says so.

mod account;
mod blob;
mod fault;
mod journal;
mod key;
mod lie;
mod operation;
mod refusal;
mod server;

pub use account::ACCOUNT;
pub use fault::{ANY, Failure, Flood, Lie};
pub use journal::{Call, Outcome};
pub use key::RotationEnd;

use account::Account;
use fault::Faults;
use journal::Journal;
use key::{Key, KeyState, Store, now};
use refusal::Refusal;
use server::{Command, Shared, lock};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc as async_mpsc, watch};

/// The region of a fake that was not told another.
pub const REGION: &str = "eu-central-1";

/// How long [`FakeKms::until`] waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A handle of the fake; clones are handles of the same fake, and the last one to go ends it.
///
/// Methods that take a key take what AWS takes for KeyId, and panic when there is no such key: that is the test's mistake.
#[derive(Clone)]
pub struct FakeKms(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    at: SocketAddr,
    region: String,
    commands: Option<async_mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for FakeKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKms").field("url", &self.url()).finish_non_exhaustive()
    }
}

/// Starting, stopping, finding it.
impl FakeKms {
    /// Starts one in [`REGION`].
    #[must_use]
    pub fn start() -> Self {
        Self::start_in(REGION)
    }

    /// Starts one in `region`: requests signed for another are refused.
    #[must_use]
    pub fn start_in(region: &str) -> Self {
        let shared = Arc::new(Shared {
            account: Mutex::new(Account::new(region)),
            faults: Mutex::new(Faults::default()),
            journal: Mutex::new(Journal::default()),
            news: watch::Sender::new(0),
            gate: watch::Sender::new(0),
            clock_ahead: AtomicI64::new(0),
        });
        let (commands, orders) = async_mpsc::unbounded_channel();
        let (bound, binding) = mpsc::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fake-kms".to_owned())
            .spawn(move || server::run(served, orders, &bound))
            .expect("a thread for the fake KMS");
        let at = binding.recv().expect("the fake KMS's thread answers").expect("the fake KMS has a port");
        let region = region.to_owned();
        Self(Arc::new(Handle { shared, at, region, commands: Some(commands), thread: Some(thread) }))
    }

    /// `http://127.0.0.1:<port>`, for `endpoint_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0.at)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.at
    }

    #[must_use]
    pub fn region(&self) -> &str {
        &self.0.region
    }

    /// Closes the listener and drops every connection; until [`FakeKms::start_again`] connections are refused.
    pub fn stop(&self) {
        self.command(Command::Stop);
    }

    /// Listens again, on the same port, with the same keys.
    pub fn start_again(&self) {
        self.command(Command::Start);
    }

    /// Drops every connection and goes on listening: a failover behind one address.
    pub fn drop_connections(&self) {
        self.command(Command::DropConnections);
    }

    fn command(&self, command: impl FnOnce(mpsc::Sender<std::io::Result<()>>) -> Command) {
        let (done, answer) = mpsc::channel();
        let sent = self.0.commands.as_ref().is_some_and(|commands| commands.send(command(done)).is_ok());
        assert!(sent, "the fake KMS's thread is gone");
        answer.recv().expect("the fake KMS's thread answers").expect("the fake KMS keeps its port");
    }
}

/// What an administrator does, without HTTP and whatever faults are on.
impl FakeKms {
    fn account<T>(&self, act: impl FnOnce(&mut Account) -> Result<T, Refusal>) -> T {
        let done = act(&mut lock(&self.0.shared.account));
        done.unwrap_or_else(|refusal| panic!("the fake KMS refuses: {refusal:?}"))
    }

    fn key<T>(&self, key: &str, act: impl FnOnce(&mut Key) -> T) -> T {
        self.account(|account| account.key(key).map(act))
    }

    /// A new enabled key with one alias (`alias/…`); its ARN.
    pub fn create_key(&self, alias: &str) -> String {
        self.account(|account| {
            let arn = account.create_key(String::new()).arn.clone();
            account.create_alias(alias, &arn)?;
            Ok(arn)
        })
    }

    /// New material at once, as automatic rotation does it.
    pub fn rotate(&self, key: &str) {
        self.key(key, |key| key.rotate("AUTOMATIC"));
    }

    /// When on-demand rotations that begin from now on are over. [`RotationEnd::AtOnce`] unless told.
    pub fn on_demand_rotations_end(&self, end: RotationEnd) {
        lock(&self.0.shared.account).rotation_end = end;
    }

    /// Ends the on-demand rotation that runs on `key`: from now on the new material is current.
    pub fn finish_rotation(&self, key: &str) {
        assert!(self.key(key, Key::finish_rotation), "no on-demand rotation runs on {key}");
    }

    /// How many on-demand rotations a key may have in its life. 25 unless told.
    pub fn limit_on_demand_rotations(&self, limit: u32) {
        lock(&self.0.shared.account).on_demand_limit = limit;
    }

    /// While on: every answer that depends on the current material takes the newest and the one before it by turns, the
    /// newest first.
    pub fn alternate_answers(&self, key: &str, on: bool) {
        self.key(key, |key| key.alternating = on);
    }

    /// While on: no answer has a material id, as with moto and older KMSs.
    pub fn omit_material_ids(&self, on: bool) {
        lock(&self.0.shared.account).material_ids = !on;
    }

    pub fn disable(&self, key: &str) {
        self.key(key, |key| key.state = KeyState::Disabled);
    }

    /// Also takes a key back from pending deletion.
    pub fn enable(&self, key: &str) {
        self.key(key, |key| key.state = KeyState::Enabled);
    }

    /// From now on it is one of an external key store, which is open.
    pub fn put_in_external_key_store(&self, key: &str) {
        self.key(key, |key| key.store = Some(Store::Open));
    }

    /// Cryptographic operations answer KMSInvalidStateException with AWS's words for what happened at the key store, and
    /// DescribeKey goes on to say Enabled, until [`FakeKms::put_in_external_key_store`].
    pub fn close_external_key_store(&self, key: &str, message: &'static str) {
        self.key(key, |key| key.store = Some(Store::Closed(message)));
    }

    pub fn schedule_deletion(&self, key: &str) {
        self.key(key, |key| key.state = KeyState::PendingDeletion { days: 7, date: now() + 7.0 * 86_400.0 });
    }

    /// The key and its aliases are gone, for good.
    pub fn delete_now(&self, key: &str) {
        let id = self.key(key, |key| key.id);
        lock(&self.0.shared.account).delete(id);
    }

    /// Points an existing alias at another key.
    pub fn retarget_alias(&self, alias: &str, key: &str) {
        let id = self.key(key, |key| key.id.to_string());
        self.account(|account| account.update_alias(alias, &id));
    }

    #[must_use]
    pub fn key_arn(&self, key: &str) -> String {
        self.key(key, |key| key.arn.clone())
    }

    /// Material ids, oldest first; the last one is current.
    #[must_use]
    pub fn material_ids(&self, key: &str) -> Vec<String> {
        self.key(key, |key| key.materials.iter().map(|material| material.id()).collect())
    }
}

/// What goes wrong. `op` is an operation's name (`"Decrypt"`) or [`ANY`].
impl FakeKms {
    fn faults<T>(&self, act: impl FnOnce(&mut Faults) -> T) -> T {
        act(&mut lock(&self.0.shared.faults))
    }

    /// The `Date` of its answers is that many seconds ahead from now on.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.0.shared.clock_ahead.store(seconds, Ordering::Relaxed);
    }

    /// Every call takes this much longer. Zero ends it. A latency of one operation goes before that of [`ANY`].
    pub fn set_latency(&self, op: &str, latency: Duration) {
        self.faults(|faults| faults.set_latency(op, latency));
    }

    /// Calls over the rate are refused with ThrottlingException; `burst` may come at once.
    pub fn limit_rate(&self, per_second: f64, burst: f64) {
        self.faults(|faults| faults.limit_rate(per_second, burst));
    }

    pub fn unlimit_rate(&self) {
        self.faults(Faults::unlimit_rate);
    }

    /// The next `calls` calls of `op` fail.
    pub fn fail_next(&self, op: &str, calls: usize, failure: Failure) {
        self.faults(|faults| faults.fail_next(op, calls, failure));
    }

    /// Every call of `op` fails, until [`FakeKms::heal`].
    pub fn fail_all(&self, op: &str, failure: Failure) {
        self.faults(|faults| faults.fail_all(op, failure));
    }

    /// Ends `fail_next` and `fail_all` of `op`, of every operation with [`ANY`]. Hung calls stay hung.
    pub fn heal(&self, op: &str) {
        self.faults(|faults| faults.heal(op));
    }

    /// Lets the calls that hang now be performed and answered.
    pub fn release_hung(&self) {
        self.0.shared.gate.send_modify(|count| *count += 1);
    }

    /// Takes the permission away: AccessDeniedException with IAM's text.
    pub fn revoke(&self, op: &str) {
        self.faults(|faults| faults.revoke(op));
    }

    pub fn grant(&self, op: &str) {
        self.faults(|faults| faults.grant(op));
    }
}

/// What it saw.
impl FakeKms {
    fn journal<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&lock(&self.0.shared.journal))
    }

    fn count(&self, op: &str, which: impl Fn(&Call) -> bool) -> usize {
        self.journal(|journal| {
            journal.calls().iter().filter(|call| (op == ANY || call.op == op) && which(call)).count()
        })
    }

    /// Calls of `op` that arrived, whatever became of them.
    #[must_use]
    pub fn calls(&self, op: &str) -> usize {
        self.count(op, |_| true)
    }

    #[must_use]
    pub fn total_calls(&self) -> usize {
        self.calls(ANY)
    }

    /// Calls of `op` that were answered with success.
    #[must_use]
    pub fn successful_calls(&self, op: &str) -> usize {
        self.count(op, |call| call.outcome == Outcome::Succeeded)
    }

    /// Every call, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Call> {
        self.journal(|journal| journal.calls().to_vec())
    }

    /// The most calls that were at work at the same time; latency and hanging are work.
    #[must_use]
    pub fn max_concurrency(&self) -> usize {
        self.journal(Journal::max_at_work)
    }

    /// The most calls that arrived within any one second.
    #[must_use]
    pub fn peak_calls_per_second(&self) -> usize {
        self.journal(Journal::peak_per_second)
    }

    /// Calls that hang now.
    #[must_use]
    pub fn hung_calls(&self) -> usize {
        self.journal(|journal| journal.hung)
    }

    /// Counters and requests begin anew.
    pub fn forget_calls(&self) {
        lock(&self.0.shared.journal).forget();
    }

    /// Waits until `seen` is true, looking again whenever a call arrives, ends or hangs.
    ///
    /// # Panics
    /// After 30 seconds.
    pub async fn until(&self, seen: impl Fn(&Self) -> bool) {
        let mut news = self.0.shared.news.subscribe();
        let waiting = async {
            while !seen(self) {
                let _ = news.changed().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "the fake KMS did not see it within {PATIENCE:?}; calls: {:?}", self.requests());
    }

    /// [`FakeKms::until`] for a test without a runtime.
    ///
    /// # Panics
    /// After 30 seconds, and inside a runtime.
    pub fn until_blocking(&self, seen: impl Fn(&Self) -> bool) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime to wait on");
        runtime.block_on(self.until(seen));
    }
}
