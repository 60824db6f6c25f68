//! Long stretches of time, played: a day with rotations and outages, a mismatch loop, a KMS that cannot make up its mind.

use super::world::{SECOND, Trouble, World, defaults};
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptRequest;
use kms_v2_client::plugin::{KmsPlugin, Rpc};
use kms_v2_judge::apiserver::ApiServer;
use std::collections::BTreeSet;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: u64 = 86_400;

/// When what happens in a day.
struct Plan {
    rotations: Vec<u64>,
    outages: Vec<(u64, Trouble)>,
}

fn plan(world: &World) -> Plan {
    let window = DAY / 10;
    // The last half hour of each tenth is left, so that two rotations are never so close that one is passed over.
    let rotations = (0..10).map(|n| n * window + 60 + world.dice.below(window - 1800)).collect();
    let outages = (0..40).map(|n| {
        let at = n * (DAY / 40) + world.dice.below(DAY / 40 - 120);
        (at, if world.dice.below(2) == 0 { Trouble::Away } else { Trouble::BlackHole })
    });
    Plan { outages: outages.collect(), rotations }
}

async fn read_all(server: &ApiServer, objects: &[(String, Vec<u8>)]) {
    for (key, value) in objects {
        assert_eq!(server.read(key, value).await.unwrap().plaintext.as_slice(), key.as_bytes(), "{key}");
    }
}

async fn a_day(seed: u64) {
    let world = World::new(seed);
    let node = world.node(defaults());
    node.until("ready").await;
    let server = world.server(&node).await;
    let plan = plan(&world);
    let mut objects: Vec<(String, Vec<u8>)> = Vec::new();
    world
        .play(&[&server], Duration::from_secs(DAY), |second| {
            if plan.rotations.contains(&second) {
                world.kms.rotate();
            }
            if let Some((_, trouble)) = plan.outages.iter().find(|(at, _)| *at == second) {
                world.kms.trouble(Some(*trouble));
            }
            if plan.outages.iter().any(|(at, _)| at + 60 == second) {
                world.kms.trouble(None);
            }
            if second % 60 == 0 {
                let key = format!("/registry/secrets/default/{second}");
                let value = server.write(&key, key.as_bytes());
                objects.push((key, value.unwrap_or_else(|why| panic!("seed {seed}, second {second}: {why}"))));
            }
        })
        .await;
    let report = server.report();
    assert!(report.findings.is_empty(), "seed {seed}: {:?}", report.findings);
    assert_eq!((report.counts.write_state_expiries, report.counts.writes_failed, objects.len()), (0, 0, 1440));
    // One transition for each rotation, in their order; one seed for each.
    let seen: Vec<_> = report.key_ids.iter().map(|k| k.key_id.clone()).collect();
    assert_eq!(seen, world.kms.key_ids(), "seed {seed}");
    assert_eq!((seen.len(), report.counts.calls(Rpc::Encrypt)), (11, 11));
    let used: BTreeSet<_> = objects.iter().map(|(_, v)| stored::decode(v).unwrap().1.key_id).collect();
    assert_eq!(used.len(), 11, "objects under every key_id");

    // By the API server that wrote them, after its restart; and by a new API server on a new node with nothing in memory.
    server.restart().await;
    read_all(&server, &objects).await;
    let other = world.node(defaults());
    other.until("ready").await;
    let (_, before) = world.kms.calls();
    let fresh = world.server(&other).await;
    read_all(&fresh, &objects).await;
    assert_eq!(fresh.report().counts.calls(Rpc::Decrypt), 11, "one for each seed");
    let (_, after) = world.kms.calls();
    assert!((11..=13).contains(&(after - before)), "one unwrap for each data key: {}", after - before);
    assert!(fresh.report().findings.is_empty());
}

#[tokio::test(start_paused = true)]
async fn item_71_in_24_hours_with_ten_rotations_and_forty_outages_no_write_state_expires() {
    for seed in [1, 71] {
        a_day(seed).await;
    }
}

/// The same day with a plugin that stays away for longer than an API server waits: the test above can fail.
#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_gone_for_four_minutes_is_a_finding_of_the_simulator() {
    let world = World::new(3);
    let node = world.node(defaults());
    node.until("ready").await;
    let server = world.server(&node).await;
    node.kill();
    world.play(&[&server], MINUTE * 4, |_| {}).await;
    assert_eq!(server.report().counts.write_state_expiries, 1);
    node.restart();
    server.plugin_restarted();
    world.play(&[&server], MINUTE, |_| {}).await;
    assert!(server.write("/k", b"x").is_ok(), "and it revives by itself");
}

/// An API server whose Status and Encrypt never agree asks Encrypt every 3 s: 20 times a minute.
#[tokio::test(start_paused = true)]
async fn item_42_twenty_encrypts_a_minute_for_ten_minutes_cost_no_kms_call_of_their_own() {
    let world = World::new(42);
    let node = world.node(defaults());
    node.until("ready").await;
    let (wraps, unwraps) = world.kms.calls();
    for n in 0..200 {
        let request = EncryptRequest { plaintext: vec![7; 32], uid: n.to_string() };
        node.seat.encrypt(request, SECOND).await.unwrap();
        tokio::time::sleep(SECOND * 3).await;
    }
    let (wraps_after, unwraps_after) = world.kms.calls();
    // 600 s, and at least 54 s between two probes.
    assert!((5..=12).contains(&(wraps_after - wraps)), "{}", wraps_after - wraps);
    assert_eq!(wraps_after - wraps, unwraps_after - unwraps);
    let snapshot = node.snapshot();
    assert_eq!((snapshot.keyring_entries, snapshot.dek_uses), (1, Some(200)));
}

/// An hour in which each answer is of the old or of the new version, as a coin falls.
#[tokio::test(start_paused = true)]
async fn item_64_a_kms_that_is_undecided_for_an_hour_makes_one_transition_and_none_back() {
    for seed in 0..5 {
        let world = World::new(seed);
        let node = world.node(defaults());
        node.until("ready").await;
        let server = world.server(&node).await;
        world.kms.rotate();
        world.kms.undecided(true);
        let mut objects = Vec::new();
        world
            .play(&[&server], MINUTE * 60, |second| {
                let key = format!("/k{second}");
                objects.push((key.clone(), server.write(&key, key.as_bytes()).unwrap()));
            })
            .await;
        world.kms.undecided(false);
        world.play(&[&server], MINUTE * 4, |_| {}).await;
        let report = server.report();
        assert!(report.findings.is_empty(), "seed {seed}: {:?}", report.findings);
        let seen: Vec<_> = report.key_ids.iter().map(|k| k.key_id.clone()).collect();
        assert_eq!(seen, world.kms.key_ids(), "seed {seed}");
        assert_eq!(node.snapshot().state, "ready");
        read_all(&server, &objects).await;
    }
}

/// Three replicas, twenty rotations: all have followed within the interval times the observations.
#[tokio::test(start_paused = true)]
async fn item_69_every_replica_follows_a_rotation_within_the_interval_times_the_observations() {
    let world = World::new(69);
    let nodes = [(); 3].map(|()| world.node(defaults()));
    for node in &nodes {
        node.until("ready").await;
    }
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(world.dice.below(120_000))).await;
        world.kms.rotate();
        let began = tokio::time::Instant::now();
        let wanted = world.kms.key_ids().pop().unwrap();
        for node in &nodes {
            while node.snapshot().key_id.unwrap().as_str() != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(began.elapsed() < MINUTE * 5);
            }
        }
        longest = longest.max(began.elapsed());
    }
    println!("item 69: the slowest of three replicas took {longest:?} at most");
    let settings = defaults();
    assert!(longest <= settings.probe_interval * settings.observations, "{longest:?}");
    assert!(longest > settings.probe_interval / 2, "twenty times three rotations cannot all be lucky: {longest:?}");
}

/// Whatever the KMS does, however long: from the moment that it is back, Status says so within ten seconds.
#[tokio::test(start_paused = true)]
async fn item_28_status_is_ok_within_ten_seconds_of_recovery_after_outages_of_every_length() {
    let mut longest = Duration::ZERO;
    for (n, trouble) in [Trouble::Away, Trouble::BlackHole].into_iter().cycle().take(120).enumerate() {
        let world = World::new(n as u64);
        let mut settings = defaults();
        settings.policy.grace = Duration::ZERO;
        let node = world.node(settings);
        node.until("ready").await;
        world.kms.trouble(Some(trouble));
        node.until("degraded").await;
        tokio::time::sleep(Duration::from_millis(world.dice.below(240_000))).await;
        assert_eq!(node.snapshot().state, "degraded");
        world.kms.trouble(None);
        longest = longest.max(node.until("ready").await);
    }
    println!("item 28: back within {longest:?} at most");
    assert!(longest <= Duration::from_secs(10), "{longest:?}");
}
