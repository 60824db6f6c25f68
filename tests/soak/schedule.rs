//! What happens when in a soak, drawn from a seed before anything begins.
//!
//! Guarantees: pure, so the same seed and length give the same schedule; every kind of weather, rotation and trouble comes
//! in every round of them, so none is left out; the last moments are left in peace, so that the end can be judged. Refuses to know how a
//! deed is done, and how long it takes: a deed that is late makes the later ones of its lane late.

use serde::Serialize;
use std::time::Duration;

/// Nodes of a soak.
pub const NODES: usize = 2;

/// What is wrong with the KMS or the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weather {
    Latency,
    SlowNetwork,
    Throttled,
    ServerErrors,
    Refused,
    BlackHole,
    ResetAtConnect,
    ResetMidRequest,
    ResetMidBody,
    HalfClose,
    Flapping,
    Cuts,
    Stranded,
    ExpiredCredentials,
    Denied,
    /// Failures of 0.1 to 1 s, with time between them.
    Blips,
    /// HTTP 200, and what is in it is not true.
    Lies,
}

impl Weather {
    pub const ALL: [Self; 17] = [
        Self::Latency,
        Self::SlowNetwork,
        Self::Throttled,
        Self::ServerErrors,
        Self::Refused,
        Self::BlackHole,
        Self::ResetAtConnect,
        Self::ResetMidRequest,
        Self::ResetMidBody,
        Self::HalfClose,
        Self::Flapping,
        Self::Cuts,
        Self::Stranded,
        Self::ExpiredCredentials,
        Self::Denied,
        Self::Blips,
        Self::Lies,
    ];
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    Weather(Weather, Duration),
    /// New material in the same KMS key.
    RotateMaterial,
    /// The alias points to a new key.
    RotateAlias,
    /// SIGKILL, and a start after this long.
    Kill(Duration),
    /// SIGTERM, and a start when it is gone.
    Restart,
    /// A successor with `--take-over`; the old one is told to stop this long after.
    TakeOver(Duration),
    /// SIGSTOP, and SIGCONT after this long.
    Freeze(Duration),
    /// Another `cache.ttl`, in seconds; noticed by itself or told by SIGHUP.
    Reload {
        ttl: u64,
        by_signal: bool,
    },
    /// A configuration that must not be taken, and the good one again.
    BadReload,
    /// The state directory cannot be written for so long.
    DiskAway(Duration),
    /// fsync does not come back for so long, and there is a rotation to write.
    DiskStalls(Duration),
    /// Crowds that connect to the socket and the HTTP port and say nothing, for so long.
    Silence(Duration),
    /// The API server in front of it restarts: its cache is cold.
    ApiServerRestart,
}

/// Deeds in order, each with when it is due.
pub type Lane = Vec<(Duration, Deed)>;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    pub sky: Lane,
    pub kek: Lane,
    pub nodes: [Lane; NODES],
}

/// How quickly things follow each other, in milliseconds.
struct Tempo {
    weather: (u64, u64),
    calm: (u64, u64),
    rotation: (u64, u64),
    trouble: (u64, u64),
    settle: Duration,
}

const QUICK: Tempo = Tempo {
    weather: (1_000, 1_500),
    calm: (700, 1_200),
    rotation: (2_500, 4_000),
    trouble: (800, 1_500),
    settle: Duration::from_secs(5),
};
/// Calm is longer than the ten seconds after a weather in which an unknown DEK may still fail: some of it is judged strictly.
const STEADY: Tempo = Tempo {
    weather: (3_000, 11_000),
    calm: (6_000, 22_000),
    rotation: (12_000, 35_000),
    trouble: (3_000, 10_000),
    settle: Duration::from_secs(15),
};

impl Schedule {
    /// For a run of this length.
    pub fn draw(seed: u64, length: Duration) -> Self {
        let tempo = if length < Duration::from_secs(60) { QUICK } else { STEADY };
        let end = length.saturating_sub(tempo.settle);
        let mut dice = Dice::new(seed);
        // Three times as often as the others: a plugin has failed in these.
        let often = [Weather::Blips, Weather::Lies].repeat(2);
        let mut weathers = Bag::new([&Weather::ALL[..], &often].concat());
        let sky = lane(&mut dice, tempo.calm, end, |dice, _| {
            let lasts = dice.duration(tempo.weather);
            (Deed::Weather(weathers.draw(dice), lasts), lasts)
        });
        let mut rotations = Bag::new(vec![Deed::RotateMaterial, Deed::RotateMaterial, Deed::RotateAlias]);
        let kek = lane(&mut dice, tempo.rotation, end, |dice, _| (rotations.draw(dice), Duration::ZERO));
        let nodes = std::array::from_fn(|node| {
            let mut restless = Bag::new(vec![0, 1, 2, 3, 4, 5, 10]);
            let mut steady = Bag::new(vec![3, 4, 5, 6, 7, 8, 9, 10]);
            lane(&mut dice, tempo.trouble, end, |dice, at| {
                let bag = if is_steady(node, at, length) { &mut steady } else { &mut restless };
                trouble(bag.draw(dice), dice)
            })
        });
        Self { sky, kek, nodes }
    }
}

/// Whether the process of this node is left alive at this time: the nodes take turns, so that each has half the run in which
/// what it holds can be watched.
pub fn is_steady(node: usize, at: Duration, length: Duration) -> bool {
    (at >= length / 2) == (node == 0)
}

fn trouble(kind: usize, dice: &mut Dice) -> (Deed, Duration) {
    match kind {
        0 => (Deed::Kill(dice.duration((0, 600))), Duration::ZERO),
        1 => (Deed::Restart, Duration::ZERO),
        2 => (Deed::TakeOver(dice.duration((100, 1_500))), Duration::ZERO),
        3 => (Deed::ApiServerRestart, Duration::ZERO),
        4 => (Deed::Reload { ttl: 1 + dice.below(5), by_signal: dice.below(2) == 0 }, Duration::ZERO),
        5 | 6 => {
            let lasts = dice.duration((500, 2_200));
            (Deed::Freeze(lasts), lasts)
        }
        7 => (Deed::BadReload, Duration::ZERO),
        8 => {
            let lasts = dice.duration((1_000, 6_000));
            (Deed::DiskAway(lasts), lasts)
        }
        9 => {
            let lasts = dice.duration((2_000, 6_000));
            (Deed::DiskStalls(lasts), lasts)
        }
        _ => {
            let lasts = dice.duration((1_000, 3_000));
            (Deed::Silence(lasts), lasts)
        }
    }
}

fn lane(
    dice: &mut Dice,
    pause: (u64, u64),
    end: Duration,
    mut deed: impl FnMut(&mut Dice, Duration) -> (Deed, Duration),
) -> Lane {
    let (mut lane, mut at) = (Lane::new(), dice.duration(pause));
    while at < end {
        let (what, lasts) = deed(dice, at);
        // What would reach into the peace at the end is left out.
        if at + lasts < end {
            lane.push((at, what));
        }
        at += lasts + dice.duration(pause);
    }
    lane
}

/// SplitMix64: repeatable, and good enough to throw dice. Not for keys.
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to, not including, `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn duration(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

/// Everything once, in an order that the dice make, and then again.
struct Bag<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Bag<T> {
    const fn new(all: Vec<T>) -> Self {
        Self { all, left: Vec::new() }
    }

    fn draw(&mut self, dice: &mut Dice) -> T {
        if self.left.is_empty() {
            self.left = self.all.clone();
        }
        let at = dice.below(self.left.len() as u64) as usize;
        self.left.swap_remove(at)
    }
}

#[test]
fn the_same_seed_gives_the_same_schedule_and_another_one_another() {
    let length = Duration::from_secs(600);
    assert_eq!(Schedule::draw(7, length), Schedule::draw(7, length));
    assert_ne!(Schedule::draw(7, length), Schedule::draw(8, length));
}

#[test]
fn ten_minutes_have_every_weather_and_every_trouble_and_end_in_peace() {
    for seed in 0..50 {
        let schedule = Schedule::draw(seed, Duration::from_secs(600));
        let has = |deed: &dyn Fn(&Deed) -> bool| {
            let Schedule { sky, kek, nodes } = &schedule;
            sky.iter().chain(kek).chain(nodes.iter().flatten()).any(|(_, d)| deed(d))
        };
        for weather in Weather::ALL {
            assert!(has(&|d| matches!(d, Deed::Weather(w, _) if *w == weather)), "{seed}: no {weather:?}");
        }
        assert!(has(&|d| *d == Deed::RotateAlias) && has(&|d| *d == Deed::RotateMaterial), "{seed}");
        assert!(has(&|d| matches!(d, Deed::DiskAway(_))) && has(&|d| *d == Deed::BadReload), "{seed}");
        assert!(has(&|d| matches!(d, Deed::DiskStalls(_))) && has(&|d| matches!(d, Deed::Silence(_))), "{seed}");
        for (node, lane) in schedule.nodes.iter().enumerate() {
            let ends = |d: &Deed| matches!(d, Deed::Kill(_) | Deed::Restart | Deed::TakeOver(_));
            let steady = |at| is_steady(node, at, Duration::from_secs(600));
            assert!(lane.iter().all(|(at, d)| !(ends(d) && steady(*at))), "{seed}: a steady node is restarted");
            assert!(lane.iter().filter(|(_, d)| ends(d)).count() > 8, "{seed}");
        }
        let last = |lane: &Lane| lane.last().unwrap().0;
        assert!(last(&schedule.sky) < Duration::from_secs(585) && last(&schedule.kek) < Duration::from_secs(585));
    }
}
