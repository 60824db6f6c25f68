//! The soak: the real binary twice, for minutes, in all the weather that its KMS can have, while its processes come and go.
//!
//! Guarantees: everything that was ever sealed is opened at the end by a replica that has nothing but the KMS; every answer
//! on the way was judged by [`court`]; the schedule comes from a seed. `main.rs` runs it for as long as one likes (`make
//! soak`), and a short one is a test of the suite, so that it cannot rot. README.md beside it says how to read the report.

pub mod client;
pub mod court;
pub mod ending;
pub mod fault;
pub mod ledger;
pub mod node;
pub mod report;
pub mod schedule;
pub mod sky;
pub mod vitals;

use crate::support::fake_kms::FakeKms;
use crate::support::replica::Replica;
use crate::support::site::{ALIAS, Site};
use crate::support::stall::Shim;
use client::{Front, Line, Objects, raw};
use court::Court;
use fault::{Stranger, forge};
use ledger::Ledger;
use node::{Node, SETTINGS};
use report::Report;
use schedule::{Deed, Dice, Lane, NODES, Schedule, Weather};
use sky::Sky;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use vitals::Sample;

/// What to do.
pub struct Plan {
    pub seed: u64,
    pub length: Duration,
    /// The `kube-kms` to soak.
    pub binary: String,
    /// Where the ledger goes, and the logs when it was not good.
    pub dir: PathBuf,
}

/// Runs it to its end.
pub async fn run(plan: &Plan) -> Report {
    let schedule = Schedule::draw(plan.seed, plan.length);
    let mut site = Site::aws_behind_proxy();
    let cold = site.replica().without_proxy();
    site.set(SETTINGS);
    let second = site.replica();
    let kms = site.kms().clone();
    let sky = Sky::new(kms.clone(), site.proxy().clone());
    let court = Arc::new(Court::new(sky, Ledger::create(&plan.dir.join("ledger.jsonl"))));
    court.rotate(|| current(&kms));
    let shim = Shim::build();
    let nodes = [site, second].into_iter().enumerate();
    let nodes: Vec<_> =
        nodes.map(|(n, site)| Arc::new(Node::new(n, site, &plan.binary, &court, shim.as_ref()))).collect();
    for node in &nodes {
        node.start().await;
    }

    let stop = Arc::new(AtomicBool::new(false));
    let objects = Arc::new(Objects::default());
    let mut fronts = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        fronts.push(Arc::new(Front::new(n, &node.target(), &court).await));
    }
    let clients = begin_clients(plan.seed, &nodes, &fronts, &court, &objects, &stop).await;
    let began = Instant::now();
    let watching = tokio::spawn(watch(nodes.clone(), began, Arc::clone(&stop)));
    let replica = Replica::of(&cold);
    let stranger =
        Stranger { replica, lines: lines(&nodes, &court).await, court: Arc::clone(&court), blips: AtomicUsize::new(0) };
    play(&schedule, began, &kms, &stranger, &nodes, &fronts).await;
    tokio::time::sleep(plan.length.saturating_sub(began.elapsed())).await;
    let took = began.elapsed();

    stop.store(true, Ordering::Relaxed);
    for client in clients {
        if let Err(error) = client.await {
            court.accuse(&format!("a client ended: {error}"));
        }
    }
    let samples = watching.await.unwrap();
    let run = ending::Run {
        plan,
        schedule,
        court,
        nodes,
        fronts,
        objects,
        kms,
        cold,
        samples,
        took,
        can_stall: shim.is_some(),
    };
    run.end().await
}

/// The KEK version that wraps now: key and material.
fn current(kms: &FakeKms) -> (String, String) {
    (kms.key_arn(ALIAS), kms.material_ids(ALIAS).pop().unwrap())
}

/// A connection to each node.
async fn lines(nodes: &[Arc<Node>], court: &Arc<Court>) -> [Line; NODES] {
    [Line::new(0, &nodes[0].target(), court).await, Line::new(1, &nodes[1].target(), court).await]
}

async fn begin_clients(
    seed: u64,
    nodes: &[Arc<Node>],
    fronts: &[Arc<Front>],
    court: &Arc<Court>,
    objects: &Arc<Objects>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let (some, more) = (lines(nodes, court).await, lines(nodes, court).await);
    let mut tasks = vec![
        tokio::spawn(raw(some, Arc::clone(court), Arc::clone(stop), Dice::new(seed ^ 1))),
        tokio::spawn(forge(more, Arc::clone(court), Arc::clone(stop), Dice::new(seed ^ 4))),
    ];
    for (n, front) in fronts.iter().enumerate() {
        let (living, stopped) = (Arc::clone(front), Arc::clone(stop));
        tasks.push(tokio::spawn(async move { living.live(&stopped).await }));
        let (front, stop, objects) = (Arc::clone(front), Arc::clone(stop), Arc::clone(objects));
        let dice = Dice::new(seed ^ (2 + n as u64));
        tasks.push(tokio::spawn(async move { front.serve(&stop, &objects, dice).await }));
    }
    tasks
}

/// Every lane beside the others.
async fn play(
    schedule: &Schedule,
    began: Instant,
    kms: &FakeKms,
    stranger: &Stranger,
    nodes: &[Arc<Node>],
    fronts: &[Arc<Front>],
) {
    let court = &stranger.court;
    let sky = in_order(&schedule.sky, began, async |deed| match deed {
        Deed::Weather(Weather::Blips, lasts) => stranger.blips(lasts).await,
        Deed::Weather(Weather::Lies, lasts) => stranger.lies(lasts).await,
        Deed::Weather(weather, lasts) => court.sky.blow(weather, lasts).await,
        _ => {}
    });
    let kek = in_order(&schedule.kek, began, async |deed| {
        court.rotate(|| {
            if deed == Deed::RotateAlias {
                let next = format!("{ALIAS}-{}", uuid::Uuid::new_v4());
                kms.create_key(&next);
                kms.retarget_alias(ALIAS, &next);
            } else {
                kms.rotate(ALIAS);
            }
            current(kms)
        });
    });
    let on_node = async |n: usize| {
        in_order(&schedule.nodes[n], began, async |deed| match deed {
            Deed::ApiServerRestart => fronts[n].server.restart().await,
            deed => nodes[n].suffer(deed).await,
        })
        .await;
    };
    tokio::join!(sky, kek, on_node(0), on_node(1));
}

async fn in_order(lane: &Lane, began: Instant, mut act: impl AsyncFnMut(Deed)) {
    for (at, deed) in lane {
        tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
        act(*deed).await;
    }
}

/// Every second a look at each process.
async fn watch(nodes: Vec<Arc<Node>>, began: Instant, stop: Arc<AtomicBool>) -> [Vec<Sample>; NODES] {
    let mut samples: [Vec<Sample>; NODES] = Default::default();
    while !stop.load(Ordering::Relaxed) {
        for (node, samples) in nodes.iter().zip(&mut samples) {
            samples.extend(vitals::look(began.elapsed(), node.pid()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    samples
}

/// Twenty seconds of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_loses_nothing_and_breaks_no_promise() {
    let dir = tempfile::tempdir().unwrap();
    let binary = crate::support::site::BINARY.to_owned();
    let plan = Plan { seed: 32, length: Duration::from_secs(20), binary, dir: dir.path().to_owned() };
    let report = run(&plan).await;
    println!("{report}");
    assert!(report.is_good());
    // It did something; how much is the machine's.
    assert!(report.sealed > 0 && report.rotations > 0 && report.objects > 0, "{report}");
    for deed in ["kill", "restart", "take-over", "weather", "reload", "disk-stalls", "silence"] {
        assert!(report.deeds.contains_key(deed), "no {deed}");
    }
}
