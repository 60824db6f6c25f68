//! Faults that the weather alone does not make: blips and lies of the KMS that unknown values meet, forged values, and crowds that
//! say nothing. (The disk that stalls is a node's: `node.rs`.)
//!
//! Guarantees: each counts what it did, in [`Court::felt`]; the answers go to the court like all others.

use super::client::{DEADLINE, Line, request_for};
use super::court::Court;
use super::node::Node;
use super::schedule::{Deed, Dice, NODES, Schedule, Weather};
use super::vitals;
use crate::support::fake_kms::Lie;
use crate::support::replica::Replica;
use crate::support::site::{Running, seed};
use crate::support::wire::dial_blocking;
use futures_util::future::join_all;
use kms_v2_api::v2::{DecryptRequest, EncryptResponse};
use kms_v2_client::plugin::KmsPlugin;
use kube_kms_core::annotation::DEK;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

pub const BLIPS: &str = "unknown values that waited a blip out";
pub const LIES: &str = "lies of the KMS";
pub const AFTER_LIES: &str = "unknown values that met lies and opened after them";
pub const FORGED: &str = "forged values refused";
pub const SILENCE: &str = "descriptors that silent connections took";
pub const STALLS: &str = "stalls of the disk that were noticed and healed";

/// As the plugin's promise goes, and then time enough to be well again.
const BLIP_MS: [u64; 4] = [1_000, 100, 300, 600];
const BETWEEN_BLIPS: Duration = Duration::from_secs(2);
const LIE: [Lie; 5] = [Lie::Empty, Lie::Short, Lie::OtherKey, Lie::Html, Lie::Large];
/// Unknown values for each node in each blip, and in each spell of lies.
const UNKNOWN: usize = 4;
const FORGE_EVERY: Duration = Duration::from_millis(250);
/// Every so many forged values come so many at once.
const CROWD_EVERY: usize = 40;
const CROWD: usize = 24;
const SILENT_ON_SOCKET: usize = 40;
/// More than the HTTP port has room for.
const SILENT_ON_HTTP: usize = 200;

/// What must have been felt in a run of this schedule.
pub fn expected(schedule: &Schedule, can_stall: bool) -> Vec<&'static str> {
    let Schedule { sky, nodes, .. } = schedule;
    let deeds = || sky.iter().chain(nodes.iter().flatten()).map(|(_, deed)| deed);
    let mut expected = vec![FORGED];
    let mut expect = |what, is: &dyn Fn(&Deed) -> bool| expected.extend(deeds().any(is).then_some(what));
    expect(BLIPS, &|d| matches!(d, Deed::Weather(Weather::Blips, _)));
    expect(LIES, &|d| matches!(d, Deed::Weather(Weather::Lies, _)));
    expect(AFTER_LIES, &|d| matches!(d, Deed::Weather(Weather::Lies, _)));
    expect(SILENCE, &|d| matches!(d, Deed::Silence(_)));
    expect(STALLS, &|d| can_stall && matches!(d, Deed::DiskStalls(_)));
    expected
}

/// Asks for what no node has ever seen, while the KMS fails.
pub struct Stranger {
    pub replica: Replica,
    pub lines: [Line; NODES],
    pub court: Arc<Court>,
    pub blips: AtomicUsize,
}

impl Stranger {
    /// Values under data keys of their own. Made around the proxy, while the KMS is well.
    async fn unknown(&self) -> Vec<Arc<EncryptResponse>> {
        let mut values = Vec::new();
        for _ in 0..UNKNOWN {
            let seed = seed();
            let sealed = self.replica.sealed(&seed).await;
            self.court.ledger.keep(&seed, &sealed);
            values.push(Arc::new(sealed));
        }
        values
    }

    /// Asks each node for its own ones. When each that opened did.
    async fn ask(&self, values: &[Vec<Arc<EncryptResponse>>; NODES]) -> Vec<Instant> {
        let calls = self.lines.iter().zip(values).flat_map(|(line, values)| {
            values.iter().map(move |value| async move {
                let answer = KmsPlugin::decrypt(line, request_for((**value).clone()), DEADLINE).await;
                answer.is_ok().then(Instant::now)
            })
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    /// One blip after the other; each is met by values that nobody has seen.
    pub async fn blips(&self, lasts: Duration) {
        let (until, sky) = (Instant::now() + lasts, &self.court.sky);
        let one = async || {
            let values = [self.unknown().await, self.unknown().await];
            let number = self.blips.fetch_add(1, Ordering::Relaxed);
            sky.fail(number % 8 >= 4);
            let blip = async {
                sleep(Duration::from_millis(BLIP_MS[number % BLIP_MS.len()])).await;
                let over = Instant::now();
                sky.clear();
                over
            };
            let (over, opened) = tokio::join!(blip, self.ask(&values));
            self.court.feel(BLIPS, opened.into_iter().filter(|at| *at >= over).count());
        };
        sky.during(Weather::Blips, async {
            one().await;
            while Instant::now() < until {
                sleep(BETWEEN_BLIPS).await;
                one().await;
            }
        })
        .await;
    }

    /// One lie after the other, and what was asked for meanwhile is asked for again when they are over.
    pub async fn lies(&self, lasts: Duration) {
        let sky = &self.court.sky;
        let values = [self.unknown().await, self.unknown().await];
        let told = sky.kms_calls();
        let lying = async {
            for lie in LIE {
                sky.lie(lie);
                sleep(lasts / LIE.len() as u32).await;
            }
        };
        let early = AtomicUsize::new(0);
        sky.during(Weather::Lies, async {
            let asking = async { early.store(self.ask(&values).await.len(), Ordering::Relaxed) };
            tokio::join!(lying, asking);
            self.court.feel(LIES, sky.kms_calls() - told);
        })
        .await;
        let opened = self.ask(&values).await.len();
        self.court.feel(AFTER_LIES, opened.saturating_sub(early.into_inner()));
    }
}

/// Forges values as long as it runs: of a genuine one another ciphertext, or another wrapped data key, each a new one.
pub async fn forge(lines: [Line; NODES], court: Arc<Court>, stop: Arc<AtomicBool>, mut dice: Dice) {
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let crowd = if n % CROWD_EVERY == CROWD_EVERY - 1 { CROWD } else { 1 };
        let (count, _) = court.ledger.len();
        let forged = (0..crowd).filter_map(|_| {
            let genuine = court.ledger.value(dice.below(count as u64) as usize)?;
            Some(lines[n % NODES].forged(forgery(&genuine, &mut dice)))
        });
        let forged: Vec<_> = forged.collect();
        let refused = join_all(forged).await.into_iter().filter(|refused| *refused).count();
        court.feel(FORGED, refused);
        sleep(FORGE_EVERY).await;
    }
}

fn forgery(genuine: &EncryptResponse, dice: &mut Dice) -> DecryptRequest {
    let mut request = request_for(genuine.clone());
    let target = if dice.below(2) == 0 { Some(&mut request.ciphertext) } else { request.annotations.get_mut(DEK) };
    // Never zero, so that it never is the genuine one.
    let change = (1 + dice.below(u64::MAX - 1)).to_le_bytes();
    for (byte, change) in target.unwrap().iter_mut().rev().zip(change) {
        *byte ^= change;
    }
    request
}

/// Connects in crowds and says nothing. Meanwhile whoever asks the HTTP port whether the process lives is answered.
pub async fn silence(node: &Node, running: &Running, lasts: Duration) {
    let court = node.court();
    let fds = || vitals::look(Duration::ZERO, running.pid()).map_or(0, |sample| sample.fds);
    let (address, before) = (running.http_address().await, fds());
    let on_socket: Vec<_> = (0..SILENT_ON_SOCKET).filter_map(|_| dial_blocking(&running.target).ok()).collect();
    let on_http: Vec<_> = (0..SILENT_ON_HTTP).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    sleep(lasts / 2).await;
    court.feel(SILENCE, fds().saturating_sub(before) as usize);
    let (code, body) = running.http("/livez").await;
    if code != 200 {
        court.accuse(&format!("/livez behind {} silent connections says {code} {body}", on_http.len()));
    }
    sleep(lasts / 2).await;
    drop((on_socket, on_http));
}
