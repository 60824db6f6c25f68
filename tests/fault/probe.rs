//! What probes cost, and that they do not march in step.

use crate::support::fake_kms::{FakeKms, Outcome};
use crate::support::site::{ALIAS, Site};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Two nodes that were started together, at a probe a second: when each of them asked, as the KMS saw it.
async fn probes_of_two_nodes() -> Vec<Vec<Instant>> {
    let mut first = Site::aws();
    first.set("probe: {interval: 1s, timeout: 900ms}");
    let mut second = first.replica();
    first.env("AWS_ACCESS_KEY_ID", "AKIDFIRST");
    second.env("AWS_ACCESS_KEY_ID", "AKIDSECOND");
    let _running = (first.spawn(), second.spawn());
    let kms = first.kms();
    let mut seen: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    let mut calls = 0;
    while seen.len() < 2 || seen.values().any(|times| times.len() < 12) {
        kms.until(|kms| kms.total_calls() > calls).await;
        for call in &kms.requests()[calls..] {
            calls += 1;
            if call.op == "Encrypt" {
                seen.entry(call.access_key.clone().unwrap()).or_default().push(Instant::now());
            }
        }
    }
    seen.into_values().collect()
}

#[tokio::test]
async fn two_nodes_that_start_together_do_not_probe_in_step() {
    let mut all = Vec::new();
    for times in probes_of_two_nodes().await {
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).collect();
        let (least, most) = gaps.iter().fold((f64::MAX, 0_f64), |(a, b), gap| (a.min(*gap), b.max(*gap)));
        println!("gaps: {gaps:.3?}");
        // Of one gap the machine may make anything.
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        assert!(median > 0.85 && median < 1.35, "an interval of a second, a tenth more or less: {gaps:?}");
        // Eleven gaps that are spread over 200 ms lie within 40 ms of each other once in a million times.
        assert!(most - least > 0.04, "no jitter: {gaps:?}");
        all.push(gaps);
    }
    let differs = all[0].iter().zip(&all[1]).filter(|(a, b)| (*a - *b).abs() > 0.01).count();
    assert!(differs >= 5, "in step: {all:?}");
}

struct Cost {
    probes: usize,
    calls: usize,
    recovery: usize,
}

async fn cost_of_a_minute(recovery: bool) -> Cost {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let other = FakeKms::start_in("us-west-2");
    other.create_key(ALIAS);
    if recovery {
        let kek = format!("{{aws: {{key: {ALIAS}, region: us-west-2, endpoint: '{}'}}}}", other.url());
        site.set(&format!("recovery: {{keks: [{kek}]}}"));
    }
    let running = site.start().await;
    let wrapped = other.total_calls();
    assert_eq!(wrapped, if recovery { 2 } else { 0 }, "the first DEK, wrapped and opened once more");
    site.kms().forget_calls();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let kms = site.kms();
    assert!(kms.requests().iter().rev().skip(1).all(|call| call.outcome == Outcome::Succeeded));
    running.until_ok().await;
    Cost { probes: kms.calls("Encrypt"), calls: kms.total_calls(), recovery: other.total_calls() - wrapped }
}

/// README, "Probe cost": two calls, whatever else is configured.
#[tokio::test]
async fn a_probe_costs_two_kms_calls_also_with_a_recovery_kek_which_is_not_asked() {
    let (without, with) = tokio::join!(cost_of_a_minute(false), cost_of_a_minute(true));
    for cost in [&without, &with] {
        println!(
            "a minute at 1 s: {} probes, {} calls, {} to the recovery KEK",
            cost.probes, cost.calls, cost.recovery
        );
        assert!((50..=66).contains(&cost.probes), "{}", cost.probes);
        // One probe may be between its two calls.
        assert!(cost.calls.abs_diff(2 * cost.probes) <= 1, "{} calls in {} probes", cost.calls, cost.probes);
        assert_eq!(cost.recovery, 0);
    }
}
