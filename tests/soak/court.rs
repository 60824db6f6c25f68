//! Every answer of every plugin, judged at the moment it comes: expected in this weather, or a broken promise.
//!
//! Guarantees: an error is excused only by a weather or by something done to that node's process which the call overlapped
//! (see [`excuse`]); other bytes than were sealed, a key_id that no rotation made and a Status that goes back are never
//! excused. Refuses to know how calls are made.

use super::ledger::Ledger;
use super::schedule::{NODES, Weather};
use super::sky::Sky;
use hdrhistogram::Histogram;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::plugin::Rpc;
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Broken promises that are kept in words; more are counted.
const KEPT: usize = 40;
/// A call that ends this long before or after something is done to a process may have felt it.
const MARGIN: Duration = Duration::from_millis(150);

/// What was done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL, until the next one is started.
    Killed,
    /// SIGTERM, until it has ended.
    Stopped,
    /// Started, and until its first `ok`.
    Starting,
    /// SIGSTOP to SIGCONT.
    Frozen,
}

struct Span {
    blow: Blow,
    from: Instant,
    to: Option<Instant>,
}

#[derive(Default)]
struct Life {
    spans: Vec<Span>,
    /// When Status named which KEK version first, by the version's number.
    seen: BTreeMap<usize, Instant>,
}

/// Answers of one kind in one weather.
pub struct Tally {
    pub ok: Histogram<u64>,
    /// Errors that were to be expected, by gRPC code.
    pub expected: BTreeMap<String, u64>,
}

/// See the module.
pub struct Court {
    pub sky: Sky,
    pub ledger: Ledger,
    began: Instant,
    lives: [Mutex<Life>; NODES],
    /// key_ids of the KEK, oldest first, each with when its rotation was.
    key_ids: Mutex<Vec<(String, Instant)>>,
    tallies: Mutex<BTreeMap<(String, Rpc), Tally>>,
    broken: Mutex<(usize, Vec<String>)>,
    felt: Mutex<BTreeMap<&'static str, usize>>,
    late_on_a_busy_machine: Mutex<u64>,
}

/// What may have caused an error.
pub struct Circumstances {
    pub weathers: Vec<Weather>,
    pub blows: Vec<Blow>,
}

/// Whether a call of this kind may end with this code under these circumstances. `is_lost`: the words are those of the
/// client's own library, about a connection that it could not make or that ended.
pub fn excuse(rpc: Rpc, code: Code, is_lost: bool, circumstances: &Circumstances) -> bool {
    let Circumstances { weathers, blows } = circumstances;
    let weather = weathers.iter().any(|w| w.codes().contains(&code));
    blows.iter().any(|blow| match blow {
        // Answered by nobody, or in the plugin's words that it is about to end.
        Blow::Killed | Blow::Stopped => is_lost || code == Code::Unavailable,
        // It says that it has no data key yet, or why not.
        Blow::Starting => code == Code::Unavailable || weather,
        Blow::Frozen => matches!(code, Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable),
    }) || (rpc == Rpc::Decrypt && weather)
}

impl Court {
    pub fn new(sky: Sky, ledger: Ledger) -> Self {
        Self {
            sky,
            ledger,
            began: Instant::now(),
            lives: Default::default(),
            key_ids: Mutex::default(),
            tallies: Mutex::default(),
            broken: Mutex::default(),
            felt: Mutex::default(),
            late_on_a_busy_machine: Mutex::default(),
        }
    }

    /// A promise was broken.
    pub fn accuse(&self, what: &str) {
        let mut broken = self.broken.lock().unwrap();
        broken.0 += 1;
        if broken.1.len() < KEPT {
            broken.1.push(format!("at {:.1} s, {}: {what}", self.began.elapsed().as_secs_f64(), self.sky.label()));
        }
    }

    /// How many, and the first ones in words.
    pub fn broken(&self) -> (usize, Vec<String>) {
        self.broken.lock().unwrap().clone()
    }

    /// A fault did something, so many times.
    pub fn feel(&self, what: &'static str, times: usize) {
        *self.felt.lock().unwrap().entry(what).or_default() += times;
    }

    pub fn felt(&self) -> BTreeMap<&'static str, usize> {
        self.felt.lock().unwrap().clone()
    }

    /// Calls that were late while three times as many tasks wanted to run as there are processors.
    pub fn late_on_a_busy_machine(&self) -> u64 {
        *self.late_on_a_busy_machine.lock().unwrap()
    }

    /// The KEK's versions change by this, and the last of them is the new one. Nobody sees a key_id meanwhile.
    pub fn rotate(&self, act: impl FnOnce() -> (String, String)) {
        let mut key_ids = self.key_ids.lock().unwrap();
        let (arn, material) = act();
        let kek = KekRef::new(KekKind::AWS, &arn).unwrap();
        let key_id = KeyId::derive(&KekVersion { kek, version: material }, 0);
        key_ids.push((key_id.as_str().to_owned(), Instant::now()));
    }

    pub fn rotations(&self) -> usize {
        self.key_ids.lock().unwrap().len() - 1
    }

    /// Something begins to be done to a node's process; its end is [`Court::over`].
    pub fn blow(&self, node: usize, blow: Blow) {
        self.lives[node].lock().unwrap().spans.push(Span { blow, from: Instant::now(), to: None });
    }

    pub fn over(&self, node: usize, blow: Blow) {
        let mut life = self.lives[node].lock().unwrap();
        if let Some(span) = life.spans.iter_mut().rev().find(|s| s.blow == blow && s.to.is_none()) {
            span.to = Some(Instant::now());
        }
    }

    /// What was done to this node's process between these moments.
    pub fn blows(&self, node: usize, began: Instant, ended: Instant) -> Vec<Blow> {
        let life = self.lives[node].lock().unwrap();
        let felt = |s: &&Span| s.from <= ended + MARGIN && s.to.is_none_or(|to| to + MARGIN >= began);
        life.spans.iter().rev().take(12).filter(felt).map(|s| s.blow).collect()
    }

    /// Whether this node's Status may have failed at some time in so long.
    pub fn was_troubled(&self, node: usize, within: Duration) -> bool {
        let now = Instant::now();
        !self.blows(node, now - within, now).is_empty()
    }

    fn tally(&self, label: String, rpc: Rpc, note: impl FnOnce(&mut Tally)) {
        let mut tallies = self.tallies.lock().unwrap();
        let empty = || Tally { ok: Histogram::new(2).unwrap(), expected: BTreeMap::new() };
        note(tallies.entry((label, rpc)).or_insert_with(empty));
    }

    /// Looks at all of them, with the weather and the RPC.
    pub fn tallies<T>(&self, look: impl FnMut((&(String, Rpc), &Tally)) -> T) -> Vec<T> {
        self.tallies.lock().unwrap().iter().map(look).collect()
    }

    fn judge<T>(&self, node: usize, rpc: Rpc, began: Instant, answer: &Result<T, Status>) {
        let (ended, label) = (Instant::now(), self.sky.label());
        let Err(status) = answer else {
            let micros = (ended - began).as_micros() as u64;
            return self.tally(label, rpc, |t| {
                let _ = t.ok.record(micros.max(1));
            });
        };
        let code = status.code();
        let circumstances =
            Circumstances { weathers: self.sky.over(began, ended), blows: self.blows(node, began, ended) };
        // A status that came over the wire has no source.
        let is_lost = std::error::Error::source(status).is_some();
        // A plugin waits for 1.4 s, and a blip takes up to 1 s of it: a busy machine can take the rest.
        let is_late_in_a_blip =
            rpc == Rpc::Decrypt && code == Code::Unavailable && circumstances.weathers.contains(&Weather::Blips);
        if excuse(rpc, code, is_lost, &circumstances) {
            let code = format!("{code:?}");
            self.tally(label, rpc, |t| *t.expected.entry(code).or_default() += 1);
        } else if (matches!(code, Code::DeadlineExceeded | Code::Cancelled) || is_late_in_a_blip) && is_overloaded() {
            *self.late_on_a_busy_machine.lock().unwrap() += 1;
        } else {
            let (weathers, blows) = (circumstances.weathers, circumstances.blows);
            let took = ended - began;
            self.accuse(&format!(
                "{rpc} on node {node}: {code:?} {:?} after {took:?} (weather felt: {weathers:?}, process: {blows:?})",
                status.message()
            ));
        }
    }

    /// Status answered. The number of the KEK version that it named.
    pub fn status(&self, node: usize, began: Instant, answer: &Result<StatusResponse, Status>) -> Option<usize> {
        self.judge(node, Rpc::Status, began, answer);
        let status = answer.as_ref().ok()?;
        if status.version != "v2" {
            self.accuse(&format!("Status of node {node} has version {:?}", status.version));
        }
        let blows = self.blows(node, began, Instant::now());
        if status.healthz != "ok" && blows.is_empty() {
            self.accuse(&format!("Status of node {node} says {:?}", status.healthz));
        }
        let number = self.number(&format!("Status of node {node}"), &status.key_id)?;
        let mut life = self.lives[node].lock().unwrap();
        let newer = life.seen.range(number + 1..).find(|(_, first)| **first < began).map(|(newer, _)| *newer);
        life.seen.entry(number).or_insert_with(Instant::now);
        drop(life);
        if let Some(newer) = newer {
            self.accuse(&format!("Status of node {node} went back from KEK version {newer} to {number} ({blows:?})"));
        }
        Some(number)
    }

    /// Encrypt answered, on a connection whose last Status named that KEK version.
    pub fn encrypt(
        &self,
        node: usize,
        began: Instant,
        request: &EncryptRequest,
        answer: &Result<EncryptResponse, Status>,
        told: Option<usize>,
    ) {
        self.judge(node, Rpc::Encrypt, began, answer);
        let Ok(sealed) = answer else { return };
        self.ledger.keep(&request.plaintext, sealed);
        let number = self.number(&format!("Encrypt of node {node}"), &sealed.key_id);
        if let (Some(number), Some(told)) = (number, told)
            && number < told
        {
            self.accuse(&format!("Encrypt of node {node} is under KEK version {number}, and its Status said {told}"));
        }
    }

    /// Decrypt answered.
    pub fn decrypt(
        &self,
        node: usize,
        began: Instant,
        request: &DecryptRequest,
        answer: &Result<DecryptResponse, Status>,
    ) {
        self.judge(node, Rpc::Decrypt, began, answer);
        let Ok(opened) = answer else { return };
        match self.ledger.is_right(&request.ciphertext, &opened.plaintext) {
            Some(true) => {}
            Some(false) => self.accuse(&format!("node {node} returned OTHER BYTES than were sealed")),
            None => self.accuse(&format!("node {node} opened what nobody sealed")),
        }
    }

    /// Decrypt answered, and what it was given is forged. Whether it was called so.
    pub fn forged(&self, node: usize, began: Instant, answer: &Result<DecryptResponse, Status>) -> bool {
        let is_called_so = answer.as_ref().is_err_and(|status| status.code() == Code::DataLoss);
        if answer.is_ok() {
            self.accuse(&format!("node {node} opened what was forged"));
        } else if !is_called_so {
            self.judge(node, Rpc::Decrypt, began, answer);
        }
        is_called_so
    }

    /// The KEK version behind a key_id: which rotation made it.
    fn number(&self, who: &str, key_id: &str) -> Option<usize> {
        let number = self.key_ids.lock().unwrap().iter().position(|(id, _)| id == key_id);
        if number.is_none() {
            self.accuse(&format!("{who} names {key_id:?}, which no KEK version has"));
        }
        number
    }

    /// For each rotation and node: how long until its Status named that version or a newer one.
    pub fn convergence(&self) -> Vec<Vec<Option<Duration>>> {
        let key_ids = self.key_ids.lock().unwrap();
        let followed = |number: usize, rotated: Instant| {
            let lives = self.lives.iter().map(|life| {
                let life = life.lock().unwrap();
                let first = life.seen.range(number..).map(|(_, first)| *first).min();
                first.map(|first| first.saturating_duration_since(rotated))
            });
            lives.collect()
        };
        key_ids.iter().enumerate().skip(1).map(|(number, (_, rotated))| followed(number, *rotated)).collect()
    }
}

/// Whether three times as many tasks want to run as there are processors.
fn is_overloaded() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    load > 3.0 * std::thread::available_parallelism().unwrap().get() as f64
}

#[test]
fn an_error_without_a_cause_is_not_excused_and_a_known_value_fails_in_no_weather() {
    let calm = Circumstances { weathers: vec![], blows: vec![] };
    let outage = Circumstances { weathers: vec![Weather::Refused], blows: vec![] };
    let blip = Circumstances { weathers: vec![Weather::Blips], blows: vec![] };
    let lies = Circumstances { weathers: vec![Weather::Lies], blows: vec![] };
    let killed = Circumstances { weathers: vec![], blows: vec![Blow::Killed] };
    for rpc in [Rpc::Status, Rpc::Encrypt, Rpc::Decrypt] {
        let excused = |code, circumstances| excuse(rpc, code, false, circumstances);
        assert!(!excused(Code::Unavailable, &calm) && !excuse(rpc, Code::Unknown, true, &calm));
        assert!(excused(Code::Unavailable, &killed) && excuse(rpc, Code::Unknown, true, &killed));
        // No outage and no kill makes a value damaged, or the plugin broken.
        assert!(!excused(Code::DataLoss, &outage) && !excused(Code::DataLoss, &killed));
        assert!(!excused(Code::Internal, &outage) && !excused(Code::Internal, &killed));
        // From memory: an outage of the KMS is no cause. Only a DEK that is not known needs it.
        assert_eq!(excused(Code::Unavailable, &outage), rpc == Rpc::Decrypt);
        assert!(!excused(Code::Unavailable, &blip) && !excused(Code::DataLoss, &lies));
    }
}
