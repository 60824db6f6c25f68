//! `kmsctl bench` over the real binary: a table, JSON that adds up, a chart that is XML, and honest exit statuses.

use crate::support::bad_plugin::{Served, Vice};
use crate::support::site::{Running, Site};
use crate::support::transcript::run;

/// A second of load, in all.
const SHORT: [&str; 4] = ["--duration", "600ms", "--warm-up", "200ms"];

fn bench(site: &Site, socket: &str, more: &[&str]) -> crate::support::transcript::Transcript {
    run(site, &[&["bench", "--socket", socket], SHORT.as_slice(), more].concat())
}

async fn started() -> (Site, Running) {
    let site = Site::local();
    let running = site.start().await;
    (site, running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_counts_every_call_and_what_it_costs_the_plugin() {
    let (site, running) = started().await;
    let socket = site.socket();
    let before = running.metric("kube_kms_rpc_duration_seconds_count{rpc=\"Encrypt\"").await;
    let done = bench(&site, socket.to_str().unwrap(), &["--in-flight", "8", "--connections", "2", "--output", "json"]);
    assert_eq!(done.status, 0, "{}", done.err);
    let json = done.json();
    let served: u64 = json["rpcs"].as_array().unwrap().iter().map(|r| r["served"].as_u64().unwrap()).sum();
    assert_eq!(json["rpcs"].as_array().unwrap().len(), 3);
    assert_eq!(json["calls"].as_u64().unwrap(), served, "nothing failed, so every call was served");
    assert!(served > 50, "{json:#}");
    for rpc in json["rpcs"].as_array().unwrap() {
        let of = |name: &str| rpc[name].as_f64().unwrap();
        assert!(
            of("p50Micros") > 0.0 && of("p50Micros") <= of("p99Micros") && of("p99Micros") <= of("maxMicros"),
            "{rpc}"
        );
    }
    assert_eq!(json["plugin"]["pid"].as_u64().unwrap(), u64::from(running.pid()));
    assert!(json["plugin"]["cpuMicrosPerCall"].as_f64().unwrap() > 1.0);
    assert!(json["plugin"]["residentMib"].as_f64().unwrap() > 1.0);
    // The plugin's own count: those of the warm-up and the first ones are in it as well.
    let after = running.metric("kube_kms_rpc_duration_seconds_count{rpc=\"Encrypt\"").await;
    let encrypts = json["rpcs"].as_array().unwrap().iter().find(|r| r["rpc"] == "Encrypt").unwrap();
    assert!(after - before >= encrypts["served"].as_f64().unwrap(), "{before} {after} {encrypts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_kept_and_drawn() {
    let (site, _running) = started().await;
    let (socket, chart) = (site.socket(), site.dir().join("latency.svg"));
    let more = ["--rate", "200", "--mix", "encrypt=1,decrypt=1", "--chart", chart.to_str().unwrap()];
    let done = bench(&site, socket.to_str().unwrap(), &more);
    assert_eq!(done.status, 0, "{}", done.err);
    for text in ["200 calls a second", "served", "Encrypt ", "Decrypt ", "of CPU and", "generator "] {
        assert!(done.out.contains(text), "{text} is not in\n{}", done.out);
    }
    let calls = done.out.lines().find_map(|l| l.strip_prefix("calls ")).unwrap();
    let calls: f64 = calls.split_whitespace().next().unwrap().parse().unwrap();
    assert!((60.0..=160.0).contains(&calls), "{calls} calls in 0.6 s at 200 a second");
    let svg = std::fs::read_to_string(chart).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!(svg.matches("<polyline").count(), 2);
    assert!(svg.contains("prefers-color-scheme:dark") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_are_named_and_end_with_6() {
    let bad = Served::start(Vice::WrongBytes);
    let site = Site::local();
    let socket = bad.socket();
    let done = bench(&site, socket.to_str().unwrap(), &["--mix", "decrypt=1"]);
    assert_eq!(done.status, 6, "{}{}", done.out, done.err);
    assert!(done.out.contains("FAILED     Decrypt WRONG ANSWER: "), "{}", done.out);
}

#[test]
fn nobody_there_is_4_and_a_mix_of_nothing_is_2() {
    let site = Site::local();
    let done = bench(&site, "/nonexistent/kms.sock", &[]);
    assert_eq!(done.status, 4);
    assert!(done.err.starts_with("error: nobody answers on ") && done.err.contains("\nhint: "), "{}", done.err);
    assert_eq!(bench(&site, "/nonexistent/kms.sock", &["--mix", "encrypt=0"]).status, 2);
    assert_eq!(bench(&site, "/nonexistent/kms.sock", &["--rate", "0"]).status, 2);
}
