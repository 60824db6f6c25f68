//! Telemetry of the real binary, with a collector that speaks OTLP and the fake KMS: spans with their parents, the numbers of
//! /metrics, the way from a uid to CloudTrail, and that no collector can disturb a request or the end of the process.

use crate::support::collector::{Collector, attribute};
use crate::support::site::{PATIENCE, Site, sealed, seed, uid};
use kms_v2_api::v2::key_management_service_client::KeyManagementServiceClient;
use kms_v2_api::v2::{DecryptRequest, EncryptResponse};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use sha2::Digest;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

const DECRYPT: &str = "v2.KeyManagementService/Decrypt";
const ENCRYPT: &str = "v2.KeyManagementService/Encrypt";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A site that exports quickly, and where to.
fn exporting(mut site: Site) -> (Site, Collector) {
    let collector = Collector::start();
    site.set(&format!("otlp: {{endpoint: '{}'}}", collector.url()));
    site.env("OTEL_BSP_SCHEDULE_DELAY", "100").env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    (site, collector)
}

async fn bare(site: &Site) -> KeyManagementServiceClient<Channel> {
    let path = site.socket();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
    KeyManagementServiceClient::new(channel)
}

fn decrypt_request(sealed: EncryptResponse, uid: &str) -> DecryptRequest {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed;
    DecryptRequest { ciphertext, uid: uid.to_owned(), key_id, annotations }
}

async fn until(collector: &Collector, what: &str, holds: impl Fn(&Collector) -> bool) {
    let began = Instant::now();
    while !holds(collector) {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}; there are {:#?}", collector.spans());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn of_uid(collector: &Collector, name: &str, uid: &str) -> Option<Span> {
    collector.spans().into_iter().find(|span| span.name == name && attribute(span, "kube_kms.uid") == uid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decrypt_that_asks_the_kms_can_be_followed_from_its_uid_to_the_event_of_the_kms() {
    let foreign = Site::aws();
    let running = foreign.start().await;
    let (plaintext, from_elsewhere) = sealed(&mut running.client().await).await;
    let (site, collector) = exporting(foreign.replica());
    let here = site.start().await;
    let uid = uid();
    site.kms().forget_calls();
    let mut request = tonic::Request::new(decrypt_request(from_elsewhere, &uid));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    let opened = bare(&site).await.decrypt(request).await.unwrap().into_inner();
    assert!(opened.plaintext == plaintext);

    // The event of the KMS: its user agent has the uid, its context has not.
    let calls = site.kms().requests();
    let call = calls.iter().find(|call| call.op == "Decrypt").unwrap();
    assert!(call.user_agent.as_ref().unwrap().ends_with(&format!(" kube-kms-uid/{uid}")), "{:?}", call.user_agent);
    assert!(!format!("{:?}", call.context).contains(&uid), "{:?}", call.context);
    // The log: the request by its uid, and the call of the KMS by uid and request id.
    here.until_log(&format!("aws_request_id={}", call.request_id)).await;
    let log = here.log();
    assert!(
        log.lines().any(|l| l.contains(&uid) && l.contains(&format!("aws_request_id={}", call.request_id))),
        "{log}"
    );
    // The trace: sender → RPC → unwrap → KMS call with its request id.
    until(&collector, "the span of the Decrypt", |c| of_uid(c, DECRYPT, &uid).is_some()).await;
    let rpc = of_uid(&collector, DECRYPT, &uid).unwrap();
    assert_eq!((hex::encode(&rpc.trace_id), hex::encode(&rpc.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    let expected = [
        ("rpc.method", "Decrypt"),
        ("rpc.grpc.status_code", "0"),
        ("kube_kms.outcome", "ok"),
        ("kube_kms.dek", "unwrapped"),
        ("kube_kms.coalesced", "false"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(&rpc, key), value, "{key}");
    }
    assert!(attribute(&rpc, "kube_kms.key_id_hash").starts_with("sha256:"));
    let spans = collector.spans();
    let child = |parent: &Span| spans.iter().find(|s| s.parent_span_id == parent.span_id).cloned().unwrap();
    let unwrap = child(&rpc);
    assert_eq!((unwrap.name.as_str(), attribute(&unwrap, "kube_kms.provider").as_str()), ("kek.unwrap", "aws"));
    let kms = child(&unwrap);
    assert_eq!((kms.name.as_str(), attribute(&kms, "aws.request_id")), ("kms:Decrypt", call.request_id.clone()));
    assert_eq!(attribute(&kms, "kube_kms.uid"), uid);
    let resource = collector.resource();
    assert!(resource.contains(&("service.name".to_owned(), "kube-kms".to_owned())), "{resource:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uid_that_is_more_than_a_word_stays_out_of_the_audit_log_of_the_kms() {
    let foreign = Site::aws();
    let (_, from_elsewhere) = sealed(&mut foreign.start().await.client().await).await;
    let site = foreign.replica();
    let _running = site.start().await;
    site.kms().forget_calls();
    let request = decrypt_request(from_elsewhere, "evil (probe) aws-internal/3");
    bare(&site).await.decrypt(request).await.unwrap();
    let calls = site.kms().requests();
    let agent = calls.iter().find(|call| call.op == "Decrypt").unwrap().user_agent.clone().unwrap();
    assert!(!agent.contains("evil") && !agent.contains("kube-kms-uid"), "{agent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_that_are_sent_are_those_of_the_page_and_the_standard_variables_are_heard() {
    let collector = Collector::start();
    let mut site = Site::local();
    site.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-token")
        .env("OTEL_SERVICE_NAME", "kms-of-cluster-a")
        .env("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node-1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    let running = site.start().await;
    let mut client = running.client().await;
    let (_, sealed) = sealed(&mut client).await;
    let mut damaged = sealed;
    *damaged.ciphertext.last_mut().unwrap() ^= 1;
    let uid = uid();
    client.decrypt(damaged, uid.clone()).await.unwrap_err();
    until(&collector, "the span of the failure", |c| of_uid(c, DECRYPT, &uid).is_some()).await;
    let failed = of_uid(&collector, DECRYPT, &uid).unwrap();
    assert_eq!(attribute(&failed, "kube_kms.outcome"), "open-failed");
    assert_eq!(failed.status.as_ref().map(|s| s.code), Some(2));
    let seen = |c: &Collector| {
        let metrics = c.metrics();
        let encrypts = metrics.iter().find(|m| m.name == "kube_kms_rpc_duration_seconds").and_then(|m| m.data.clone());
        matches!(encrypts, Some(Data::Histogram(h)) if h.data_points.iter().any(|p| p.count == 1))
    };
    until(&collector, "the histogram", seen).await;
    let sent: BTreeSet<String> = collector.metrics().into_iter().map(|metric| metric.name).collect();
    let (_, page) = running.http("/metrics").await;
    let families = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '));
    let shown: BTreeSet<String> =
        families.map(|(name, kind)| if kind == "info" { format!("{name}_info") } else { name.to_owned() }).collect();
    assert_eq!(sent, shown);
    assert!(collector.headers().contains(&"authorization: Bearer collector-token".to_owned()));
    assert!(!running.settled_log().await.contains("collector-token"));
    let resource = collector.resource();
    for (key, value) in [("service.name", "kms-of-cluster-a"), ("k8s.node.name", "node-1")] {
        assert!(resource.contains(&(key.to_owned(), value.to_owned())), "{resource:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_sent_at_sigterm() {
    let (mut site, collector) = exporting(Site::local());
    // Nothing is sent before the end.
    site.env("OTEL_BSP_SCHEDULE_DELAY", "600000").env("OTEL_METRIC_EXPORT_INTERVAL", "600000");
    let running = site.start().await;
    let uid = uid();
    running.client().await.encrypt(seed(), uid.clone()).await.unwrap();
    assert!(collector.spans().is_empty() && collector.metrics().is_empty());
    assert!(running.stop().await.success());
    assert!(of_uid(&collector, ENCRYPT, &uid).is_some(), "{:#?}", collector.spans());
    assert!(!collector.metrics().is_empty());
}

/// What an in-cluster client would use stands in the environment, and leads to a listener that nobody calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_83_nobody_calls_the_kubernetes_api_that_the_environment_names() {
    let api = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    api.set_nonblocking(true).unwrap();
    let port = api.local_addr().unwrap().port().to_string();
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 500ms}");
    let kubeconfig = site.dir().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        format!(
            "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
             clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:{port}'}}}}], users: [{{name: a, user: {{token: a}}}}]}}"
        ),
    )
    .unwrap();
    site.env("KUBECONFIG", kubeconfig.to_str().unwrap());
    site.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", &port);
    let running = site.start().await;
    let before = running.until_ok().await;
    let (plaintext, value) = sealed(&mut running.client().await).await;
    assert!(running.client().await.decrypt(value, uid()).await.unwrap().plaintext == plaintext);
    site.kms().rotate(crate::support::site::ALIAS);
    running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != before)).await.unwrap();
    assert!(running.stop().await.success());
    assert_eq!(api.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_84_each_request_has_one_line_with_its_uid_and_outcome() {
    let site = Site::local();
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let mut client = running.client().await;
    let (encrypted, refused, decrypted) = (uid(), uid(), uid());
    let value = client.encrypt(seed(), encrypted.clone()).await.unwrap();
    client.encrypt(Vec::new(), refused.clone()).await.unwrap_err();
    client.decrypt(value, decrypted.clone()).await.unwrap();
    for (uid, rpc, outcome) in
        [(&encrypted, "Encrypt", "ok"), (&refused, "Encrypt", "plaintext-empty"), (&decrypted, "Decrypt", "ok")]
    {
        running.until_log(uid).await;
        let log = running.settled_log().await;
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(uid.as_str())).collect();
        let [line] = lines[..] else { panic!("{lines:#?}") };
        assert!(line.contains(&format!("rpc={rpc}")) && line.contains(&format!("outcome={outcome}")), "{line}");
        assert!(line.contains("elapsed_us="), "{line}");
        assert_eq!(line.contains(&format!("key_id={key_id}")), outcome == "ok", "{line}");
    }
}

/// SPEC: kube-apiserver's label `key_id_hash`: `sha256:` and the digest in hex. That its own says the same of our key_id is in
/// `a_thousand_real_writes_share_one_seed_and_read_across`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_85_log_and_metrics_have_the_key_id_hash_of_the_api_server() {
    let site = Site::local();
    let running = site.start().await;
    let key_id = running.until_ok().await;
    let hash = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&key_id)));
    running.until_log(&format!("key_id_hash={hash}")).await;
    let (_, page) = running.http("/metrics").await;
    assert!(page.contains(&format!("key_id_hash=\"{hash}\"")), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_87_a_call_without_a_trace_begins_one_and_a_trace_that_comes_in_is_gone_on_with() {
    let (site, collector) = exporting(Site::local());
    let running = site.start().await;
    let (alone, within) = (uid(), uid());
    let value = running.client().await.encrypt(seed(), alone.clone()).await.unwrap();
    let mut request = tonic::Request::new(decrypt_request(value, &within));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    bare(&site).await.decrypt(request).await.unwrap();
    until(&collector, "both spans", |c| of_uid(c, ENCRYPT, &alone).is_some() && of_uid(c, DECRYPT, &within).is_some())
        .await;
    let root = of_uid(&collector, ENCRYPT, &alone).unwrap();
    assert!(root.parent_span_id.is_empty() && root.trace_id.iter().any(|b| *b != 0), "{root:?}");
    let child = of_uid(&collector, DECRYPT, &within).unwrap();
    assert_eq!(
        (hex::encode(&child.trace_id), hex::encode(&child.parent_span_id)),
        (TRACE.to_owned(), PARENT.to_owned())
    );
    assert_ne!(root.trace_id, child.trace_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_or_is_away_delays_neither_a_request_nor_the_end() {
    let (hanging, collector) = exporting(Site::local());
    collector.hang();
    let mut away = Site::local();
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    away.set(&format!("otlp: {{endpoint: 'http://127.0.0.1:{port}'}}"));
    away.env("OTEL_BSP_SCHEDULE_DELAY", "100").env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    for site in [&hanging, &away] {
        let running = site.start().await;
        let mut client = running.client().await;
        // More than the queue of spans holds.
        for _ in 0..3000 {
            client.encrypt(seed(), uid()).await.unwrap();
        }
        let began = Instant::now();
        assert!(running.stop().await.success());
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    }
    assert!(collector.headers().len() > 1, "it was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_that_cannot_be_used_is_an_error_in_the_log_and_requests_are_served() {
    let mut site = Site::local();
    site.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1").env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let running = site.start().await;
    running.until_log("OTEL_EXPORTER_OTLP_PROTOCOL: only grpc is there").await;
    running.until_log("no traces or metrics are exported; requests are served").await;
}

/// The names in the table of docs/observability.md.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../docs/observability.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `kube_kms_")?.split_once('`'));
    rows.map(|(name, _)| format!("kube_kms_{name}")).collect()
}

/// Every word of `text` that is the name of one of our metrics, without what a histogram or a type adds.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("kube_kms_"));
    let base = |word: &str| {
        let cut = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
        cut.unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_real_binary_is_documented_and_every_documented_one_is_seen() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 500ms}\nrotation: {observations: 1}");
    let recovery = Site::local();
    site.set(&format!("recovery: {{keks: [{{local: {{keyring: {}}}}}]}}", recovery.keyring().display()));
    let running = site.start().await;
    let mut seen = BTreeSet::new();
    let mut look = async || {
        let (_, page) = running.http("/metrics").await;
        seen.extend(page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).map(|(name, kind)| {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            format!("{name}{suffix}")
        }));
    };
    look().await;
    let before = running.until_ok().await;
    site.kms().rotate(crate::support::site::ALIAS);
    running.until_status(|s| s.as_ref().is_ok_and(|s| s.key_id != before)).await.unwrap();
    look().await;
    site.kms().fail_all(crate::support::fake_kms::ANY, crate::support::fake_kms::Failure::Internal);
    running.until_log("state=coasting").await;
    look().await;
    site.kms().heal(crate::support::fake_kms::ANY);
    site.kms().schedule_deletion(crate::support::site::ALIAS);
    running.until_status(Result::is_err).await.unwrap_err();
    look().await;
    assert_eq!(seen, documented());
}

#[test]
fn rules_and_dashboard_use_metrics_that_exist() {
    let known = documented();
    for (file, text) in [
        ("rules.yaml", include_str!("../deploy/prometheus/rules.yaml")),
        ("rules_test.yaml", include_str!("../deploy/prometheus/rules_test.yaml")),
        ("kube-kms.json", include_str!("../deploy/grafana/kube-kms.json")),
    ] {
        let named = named_in(text);
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(include_str!("../deploy/grafana/kube-kms.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(!panel["targets"][0]["expr"].as_str().unwrap().is_empty(), "{panel}");
    }
}

#[test]
fn the_alert_rules_pass_promtool() {
    let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("deploy/prometheus");
    let tool = match crate::support::etcd_store::tool("promtool", "prometheus") {
        Ok(tool) => tool,
        Err(reason) => return crate::support::skipped("the_alert_rules_pass_promtool", &reason),
    };
    let promtool = |arguments: &[&str]| std::process::Command::new(&tool).args(arguments).current_dir(&dir).output();
    if promtool(&["--version"]).is_err() {
        crate::support::skipped("the_alert_rules_pass_promtool", "promtool does not run here");
        return;
    }
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]] {
        let output = promtool(&arguments).unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}
