//! The weather between the plugins and their KMS: makes it, and remembers when it was what.
//!
//! Guarantees: one weather at a time; when it is over everything is healed. [`Sky::over`] counts the ten seconds after a
//! weather as part of it, because that is how long everything may take to be well (docs/failure-modes.md). Refuses to judge.

use super::schedule::Weather;
use crate::support::fake_kms::{ANY, Failure, FakeKms, Lie};
use crate::support::fault_proxy::{Fault, FaultProxy};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tonic::Code;

/// How long after its end a weather may still be felt.
pub const AFTERMATH: Duration = Duration::from_secs(10);
const SLOW_KMS: Duration = Duration::from_millis(400);

struct Spell {
    weather: Weather,
    from: Instant,
    to: Option<Instant>,
}

/// See the module.
pub struct Sky {
    kms: FakeKms,
    proxy: FaultProxy,
    spells: Mutex<Vec<Spell>>,
}

impl Weather {
    /// What a Decrypt of a DEK that the plugin does not know may say. Known DEKs, Status and Encrypt may not fail in any.
    pub const fn codes(self) -> &'static [Code] {
        match self {
            Self::Throttled => &[Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded],
            Self::Denied => &[Code::FailedPrecondition],
            // Waited out within the caller's deadline.
            Self::Blips => &[],
            _ => &[Code::Unavailable, Code::DeadlineExceeded],
        }
    }

    /// For the tables of the report.
    pub fn label(self) -> String {
        serde_json::to_value(self).unwrap().as_str().unwrap().to_owned()
    }
}

impl Sky {
    pub fn new(kms: FakeKms, proxy: FaultProxy) -> Self {
        Self { kms, proxy, spells: Mutex::default() }
    }

    /// This weather for as long as `what` is done in it.
    pub async fn during(&self, weather: Weather, what: impl Future<Output = ()>) {
        self.spells.lock().unwrap().push(Spell { weather, from: Instant::now(), to: None });
        self.begin(weather);
        what.await;
        self.clear();
        self.spells.lock().unwrap().last_mut().unwrap().to = Some(Instant::now());
    }

    /// This weather for so long.
    pub async fn blow(&self, weather: Weather, lasts: Duration) {
        let what = async {
            match weather {
                Weather::Cuts | Weather::Stranded => {
                    let until = Instant::now() + lasts;
                    while Instant::now() < until {
                        if weather == Weather::Cuts {
                            self.proxy.cut()
                        } else {
                            self.proxy.strand()
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                _ => tokio::time::sleep(lasts).await,
            }
        };
        self.during(weather, what).await;
    }

    /// The KMS or the network fails from now on.
    pub fn fail(&self, network: bool) {
        if network {
            self.proxy.set(Fault::ResetMidRequest);
        } else {
            self.kms.fail_all(ANY, Failure::Internal);
        }
    }

    /// The KMS tells this lie from now on.
    pub fn lie(&self, lie: Lie) {
        self.kms.fail_all(ANY, Failure::Lie(lie));
    }

    pub fn kms_calls(&self) -> usize {
        self.kms.total_calls()
    }

    fn begin(&self, weather: Weather) {
        let (kms, proxy) = (&self.kms, &self.proxy);
        let ms = Duration::from_millis;
        match weather {
            Weather::Latency => kms.set_latency(ANY, SLOW_KMS),
            Weather::SlowNetwork => proxy.set(Fault::Slow { delay: ms(150), bytes_per_second: 20_000 }),
            Weather::Throttled => kms.limit_rate(3.0, 3.0),
            Weather::ServerErrors => kms.fail_all(ANY, Failure::Internal),
            Weather::Refused => proxy.set(Fault::Refuse),
            Weather::BlackHole => proxy.set(Fault::BlackHole),
            Weather::ResetAtConnect => proxy.set(Fault::ResetAtConnect),
            Weather::ResetMidRequest => proxy.set(Fault::ResetMidRequest),
            Weather::ResetMidBody => proxy.set(Fault::ResetMidBody),
            Weather::HalfClose => proxy.set(Fault::HalfClose),
            Weather::Flapping => {
                proxy.flap(&[(Fault::Refuse, ms(300)), (Fault::None, ms(100)), (Fault::BlackHole, ms(400))]);
            }
            // Those who make them tell when.
            Weather::Cuts | Weather::Stranded | Weather::Blips | Weather::Lies => {}
            Weather::ExpiredCredentials => kms.fail_all(ANY, Failure::ExpiredToken),
            Weather::Denied => {
                kms.revoke("Encrypt");
                kms.revoke("Decrypt");
            }
        }
    }

    /// Healed, whatever it was.
    pub fn clear(&self) {
        self.proxy.set(Fault::None);
        self.kms.set_latency(ANY, Duration::ZERO);
        self.kms.unlimit_rate();
        self.kms.heal(ANY);
        self.kms.grant("Encrypt");
        self.kms.grant("Decrypt");
    }

    /// Every weather that a call from `began` to `ended` may have felt.
    pub fn over(&self, began: Instant, ended: Instant) -> Vec<Weather> {
        let spells = self.spells.lock().unwrap();
        let felt = |s: &&Spell| s.from <= ended && s.to.is_none_or(|to| to + AFTERMATH >= began);
        spells.iter().rev().take(8).filter(felt).map(|s| s.weather).collect()
    }

    /// The weather of this moment, for the tables: `calm` only when the last one is not felt any more.
    pub fn label(&self) -> String {
        match self.spells.lock().unwrap().last() {
            Some(Spell { weather, to: None, .. }) => weather.label(),
            Some(Spell { to: Some(to), .. }) if to.elapsed() < AFTERMATH => "recovering".to_owned(),
            _ => "calm".to_owned(),
        }
    }

    /// Since when the KMS has been well; `None` while it is not.
    pub fn clear_since(&self) -> Option<Instant> {
        let spells = self.spells.lock().unwrap();
        spells.last().map_or_else(|| Some(Instant::now() - AFTERMATH), |last| last.to)
    }

    /// Each weather that came, with how often and for how long in all.
    pub fn summary(&self) -> Vec<(String, usize, Duration)> {
        let spells = self.spells.lock().unwrap();
        let mut all: Vec<(String, usize, Duration)> = Vec::new();
        for spell in spells.iter() {
            let lasted = spell.to.unwrap_or_else(Instant::now) - spell.from;
            let label = spell.weather.label();
            match all.iter_mut().find(|(l, ..)| *l == label) {
                Some((_, times, sum)) => (*times, *sum) = (*times + 1, *sum + lasted),
                None => all.push((label, 1, lasted)),
            }
        }
        all
    }
}
