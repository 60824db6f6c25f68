//! Counters and histograms, and the page that shows them.
//!
//! Guarantees: labels are bounded (enums and constants of the code, never text from a request or a KMS); counting an
//! RPC or a keyring event looks nothing up and allocates nothing. Gauges are made afresh from a snapshot for every
//! scrape (`gauge.rs`), so a series that has ended cannot linger. Refuses to know HTTP.
//! SPEC: OpenMetrics 1.0; docs/conformance.md items 85, 86, 88; docs/observability.md.

use crate::gauge::{self, ProcessFacts, Rotations};
use crate::otlp::Exports;
use kube_kms_core::fault::Reason;
use kube_kms_core::kek_ref::KekKind;
use kube_kms_os::wall_clock;
use kube_kms_service::observer::{KekOperation, KeyringEvent, Observer, Rpc};
use kube_kms_service::snapshot::Snapshot;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The label value of `reason` when nothing failed.
const NO_REASON: &str = "none";

/// Seconds: an RPC from memory takes about 10 µs, one that waits for a KMS up to the deadline.
const RPC_BUCKETS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Seconds: a KMS in the same region answers in a few milliseconds, one that is away at the timeout.
const KEK_BUCKETS: [f64; 14] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const RPCS: [Rpc; 3] = [Rpc::Status, Rpc::Encrypt, Rpc::Decrypt];
const OPERATIONS: [KekOperation; 2] = [KekOperation::Wrap, KekOperation::Unwrap];
/// In the order of the enum, whose number is the position here.
const EVENTS: [KeyringEvent; 7] = [
    KeyringEvent::Hit,
    KeyringEvent::Miss,
    KeyringEvent::Joined,
    KeyringEvent::ServedExpired,
    KeyringEvent::Evicted,
    KeyringEvent::Wiped,
    KeyringEvent::RefusedAgain,
];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Everything that is counted, built once for the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    status: OfRpc,
    encrypt: OfRpc,
    decrypt: OfRpc,
    kek_calls: Family<Labels<3>, Counter>,
    kek_durations: Histograms<2>,
    /// In the order of [`EVENTS`].
    keyring: Vec<Counter>,
    published_same: Counter,
    published_rotated: Counter,
    peers_refused: Counter,
    traces: Exports,
    metrics: Exports,
    /// Seconds since the epoch; zero for never.
    last_rotation: AtomicU64,
    /// The same for the KEK version.
    version_since: AtomicU64,
}

/// The handles of one RPC, resolved once.
#[derive(Debug)]
struct OfRpc {
    ok: Counter,
    /// In the order of [`Reason::ALL`], which is that of the enum.
    failed: Vec<Counter>,
    duration: Histogram,
    in_flight: Gauge,
}

impl OfRpc {
    fn new(
        rpc: Rpc,
        requests: &Family<Labels<3>, Counter>,
        durations: &Histograms<1>,
        in_flight: &Family<Labels<1>, Gauge>,
    ) -> Self {
        let rpc = ("rpc", rpc.label());
        let failed = |reason: &Reason| {
            let code = reason.class().code().label();
            requests.get_or_create_owned(&[rpc, ("code", code), ("reason", reason.label())])
        };
        Self {
            ok: requests.get_or_create_owned(&[rpc, ("code", "OK"), ("reason", NO_REASON)]),
            failed: Reason::ALL.iter().map(failed).collect(),
            duration: durations.get_or_create_owned(&[rpc]),
            in_flight: in_flight.get_or_create_owned(&[rpc]),
        }
    }
}

impl Metrics {
    /// Registers everything, so that every series of an RPC is there at zero before its first event: the first failure
    /// of its kind is a change that an alert can see.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(gauge::PREFIX);
        let requests = Family::<Labels<3>, Counter>::default();
        let durations = Histograms::<1>::new_with_constructor(|| Histogram::new(RPC_BUCKETS));
        let in_flight = Family::<Labels<1>, Gauge>::default();
        let kek_calls = Family::<Labels<3>, Counter>::default();
        let kek_durations = Histograms::<2>::new_with_constructor(|| Histogram::new(KEK_BUCKETS));
        let keyring_events = Family::<Labels<1>, Counter>::default();
        let published = Family::<Labels<1>, Counter>::default();
        let [status, encrypt, decrypt] = RPCS.map(|rpc| OfRpc::new(rpc, &requests, &durations, &in_flight));
        for kind in [KekKind::AWS, KekKind::LOCAL] {
            for operation in OPERATIONS {
                drop(kek_calls.get_or_create_owned(&kek_call_labels(kind.as_str(), operation, NO_REASON)));
            }
        }
        let keyring =
            EVENTS.iter().map(|event| keyring_events.get_or_create_owned(&[("event", event.label())])).collect();
        let published_same = published.get_or_create_owned(&[("rotated", "false")]);
        let published_rotated = published.get_or_create_owned(&[("rotated", "true")]);

        registry.register("rpc_requests", "RPCs that ended, by gRPC code and reason", requests);
        registry.register_with_unit(
            "rpc_duration",
            "Time from an RPC's arrival to its answer",
            Unit::Seconds,
            durations,
        );
        registry.register("rpc_in_flight", "RPCs being served now", in_flight);
        registry.register("kek_calls", "Calls to a KEK provider that ended, by reason", kek_calls.clone());
        let help = "Time that a call to a KEK provider took, retries included when the provider makes them";
        registry.register_with_unit("kek_call_duration", help, Unit::Seconds, kek_durations.clone());
        registry.register("keyring_events", "What happened in the cache of unwrapped DEKs", keyring_events);
        registry.register(
            "write_state_published",
            "DEKs put into use, and whether the key_id changed with it",
            published,
        );
        let peers_refused = Counter::default();
        registry.register(
            "peers_refused",
            "Requests of peers that listen.allowUids does not allow",
            peers_refused.clone(),
        );
        let exports = Family::<Labels<2>, Counter>::default();
        let [traces, metrics] = ["traces", "metrics"].map(|signal| Exports {
            sent: exports.get_or_create_owned(&[("signal", signal), ("outcome", "ok")]),
            failed: exports.get_or_create_owned(&[("signal", signal), ("outcome", "failed")]),
            ..Exports::default()
        });
        registry.register("otlp_exports", "Exports to the collector that ended", exports);
        Self {
            registry,
            peers_refused,
            traces,
            metrics,
            status,
            encrypt,
            decrypt,
            kek_calls,
            kek_durations,
            keyring,
            published_same,
            published_rotated,
            last_rotation: AtomicU64::new(0),
            version_since: AtomicU64::new(0),
        }
    }

    /// The whole page, of [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self, snapshot: &Snapshot, process: ProcessFacts) -> String {
        let when = |at: &AtomicU64| match at.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        };
        let rotations = Rotations { last: when(&self.last_rotation), version_since: when(&self.version_since) };
        let now = gauge::registry(snapshot, process, rotations);
        let mut page = String::new();
        let written = encode_registry(&mut page, &self.registry)
            .and_then(|()| encode_registry(&mut page, &now))
            .and_then(|()| encode_eof(&mut page));
        // A String takes every write; half a page would be worse than none.
        if written.is_err() {
            page.clear();
        }
        page
    }

    /// Counts of the exports of traces and of metrics.
    #[must_use]
    pub fn exports(&self) -> (Exports, Exports) {
        (self.traces.clone(), self.metrics.clone())
    }

    const fn of(&self, rpc: Rpc) -> &OfRpc {
        match rpc {
            Rpc::Status => &self.status,
            Rpc::Encrypt => &self.encrypt,
            Rpc::Decrypt => &self.decrypt,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Metrics {
    fn rpc(&self, rpc: Rpc, outcome: Result<(), Reason>, elapsed: Duration) {
        let of = self.of(rpc);
        let counter = match outcome {
            Ok(()) => Some(&of.ok),
            // INVARIANT: a position in Reason::ALL is the reason's number (test: positions_are_numbers).
            Err(reason) => of.failed.get(reason as usize),
        };
        if let Some(counter) = counter {
            counter.inc();
        }
        of.duration.observe(elapsed.as_secs_f64());
    }

    fn rpc_in_flight(&self, rpc: Rpc, change: i64) {
        self.of(rpc).in_flight.inc_by(change);
    }

    /// Looks its series up: a remote call costs ten thousand times more.
    fn kek_call(&self, kind: &'static str, operation: KekOperation, outcome: Result<(), Reason>, elapsed: Duration) {
        let reason = outcome.err().map_or(NO_REASON, Reason::label);
        self.kek_calls.get_or_create_owned(&kek_call_labels(kind, operation, reason)).inc();
        let labels = [("provider", kind), ("operation", operation.label())];
        self.kek_durations.get_or_create_owned(&labels).observe(elapsed.as_secs_f64());
    }

    fn keyring(&self, event: KeyringEvent) {
        // INVARIANT: a position in EVENTS is the event's number (test: positions_are_numbers).
        if let Some(counter) = self.keyring.get(event as usize) {
            counter.inc();
        }
    }

    fn published(&self, rotated: bool) {
        let now = wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if rotated || self.version_since.load(Ordering::Relaxed) == 0 {
            self.version_since.store(now.as_secs(), Ordering::Relaxed);
        }
        if rotated {
            self.published_rotated.inc();
            self.last_rotation.store(now.as_secs(), Ordering::Relaxed);
        } else {
            self.published_same.inc();
        }
    }

    fn peer_refused(&self) {
        self.peers_refused.inc();
    }
}

const fn kek_call_labels(kind: &'static str, operation: KekOperation, reason: &'static str) -> Labels<3> {
    [("provider", kind), ("operation", operation.label()), ("reason", reason)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Page, changed, snapshot};
    use kube_kms_core::key_id::KeyId;
    use std::collections::BTreeSet;

    fn page(metrics: &Metrics) -> Page {
        Page::parse(&metrics.encode(&snapshot(), ProcessFacts { locked: 4096, ..ProcessFacts::default() })).unwrap()
    }

    /// The samples that differ after `act`, as `name{labels} before→after`; a sample that was not there was 0.
    fn effect(act: impl FnOnce(&Metrics)) -> Vec<String> {
        let metrics = Metrics::new();
        let before = page(&metrics);
        act(&metrics);
        let mut changed = changed(&before, &page(&metrics));
        // The clock's, not the act's: a second may have begun in between.
        changed.retain(|change| !change.starts_with("kube_kms_coasting_since_timestamp_seconds"));
        changed
    }

    #[test]
    fn positions_are_numbers() {
        assert!(Reason::ALL.iter().enumerate().all(|(i, reason)| *reason as usize == i));
        assert!(EVENTS.iter().enumerate().all(|(i, event)| *event as usize == i));
    }

    #[test]
    fn an_rpc_changes_its_counter_and_its_histogram_and_nothing_else() {
        let effects = effect(|m| m.rpc(Rpc::Encrypt, Ok(()), Duration::from_millis(20)));
        assert_eq!(
            effects,
            [
                r#"kube_kms_rpc_duration_seconds_bucket{le="+Inf",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="0.025",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="0.05",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="0.1",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="0.25",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="0.5",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="1.0",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="10.0",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="2.5",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_bucket{le="5.0",rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_count{rpc="Encrypt"} 0→1"#,
                r#"kube_kms_rpc_duration_seconds_sum{rpc="Encrypt"} 0→0.02"#,
                r#"kube_kms_rpc_requests_total{code="OK",reason="none",rpc="Encrypt"} 0→1"#,
            ]
        );
    }

    #[test]
    fn every_reason_of_every_rpc_changes_exactly_its_series() {
        for rpc in RPCS {
            for reason in Reason::ALL {
                let effects = effect(|m| m.rpc(rpc, Err(*reason), Duration::from_secs(100)));
                let (code, label, rpc) = (reason.class().code().label(), reason.label(), rpc.label());
                let series =
                    format!(r#"kube_kms_rpc_requests_total{{code="{code}",reason="{label}",rpc="{rpc}"}} 0→1"#);
                // A hundred seconds: only the bucket +Inf, the count and the sum.
                assert_eq!(effects.len(), 4, "{effects:?}");
                assert!(effects.contains(&series), "{series} not in {effects:?}");
            }
        }
    }

    #[test]
    fn codes_are_spelled_as_kube_apiserver_spells_them() {
        let page = page(&Metrics::new());
        let codes: BTreeSet<&str> =
            page.samples_of("kube_kms_rpc_requests_total").map(|s| s.labels["code"].as_str()).collect();
        let go = "DataLoss DeadlineExceeded FailedPrecondition Internal InvalidArgument OK PermissionDenied ResourceExhausted Unavailable";
        assert_eq!(codes.into_iter().collect::<Vec<_>>().join(" "), go);
    }

    #[test]
    fn in_flight_goes_up_and_comes_back() {
        for rpc in RPCS {
            let series = format!(r#"kube_kms_rpc_in_flight{{rpc="{}"}} 0→1"#, rpc.label());
            assert_eq!(effect(|m| m.rpc_in_flight(rpc, 1)), [series]);
        }
        let back = |m: &Metrics| {
            m.rpc_in_flight(Rpc::Status, 1);
            m.rpc_in_flight(Rpc::Status, -1);
        };
        assert_eq!(effect(back), Vec::<String>::new());
    }

    #[test]
    fn a_kek_call_changes_its_counter_and_its_histogram_and_nothing_else() {
        let long = Duration::from_secs(40);
        let effects = effect(|m| m.kek_call("aws", KekOperation::Unwrap, Err(Reason::KmsThrottled), long));
        assert_eq!(
            effects,
            [
                r#"kube_kms_kek_call_duration_seconds_bucket{le="+Inf",operation="unwrap",provider="aws"} 0→1"#,
                r#"kube_kms_kek_call_duration_seconds_count{operation="unwrap",provider="aws"} 0→1"#,
                r#"kube_kms_kek_call_duration_seconds_sum{operation="unwrap",provider="aws"} 0→40"#,
                r#"kube_kms_kek_calls_total{operation="unwrap",provider="aws",reason="kms-throttled"} 0→1"#,
            ]
        );
        let effects = effect(|m| m.kek_call("local", KekOperation::Wrap, Ok(()), long));
        assert!(
            effects
                .contains(&r#"kube_kms_kek_calls_total{operation="wrap",provider="local",reason="none"} 0→1"#.into())
        );
    }

    #[test]
    fn every_keyring_event_changes_exactly_its_series() {
        for event in EVENTS {
            let series = format!(r#"kube_kms_keyring_events_total{{event="{}"}} 0→1"#, event.label());
            assert_eq!(effect(|m| m.keyring(event)), [series]);
        }
    }

    #[test]
    fn a_new_dek_is_not_a_rotation_and_a_rotation_leaves_its_time() {
        // How old the KEK version is changes with every look.
        let effect = |rotated| {
            let mut effects = effect(|m| m.published(rotated));
            effects.retain(|line| !line.starts_with("kube_kms_kek_version_age_seconds"));
            effects
        };
        assert_eq!(effect(false), [r#"kube_kms_write_state_published_total{rotated="false"} 0→1"#]);
        let effects = effect(true);
        assert_eq!(effects.len(), 2, "{effects:?}");
        assert!(effects[0].starts_with("kube_kms_last_rotation_timestamp_seconds{} 0→1"), "{effects:?}");
        assert_eq!(effects[1], r#"kube_kms_write_state_published_total{rotated="true"} 0→1"#);
    }

    #[test]
    fn buckets_reach_from_ten_microseconds_to_ten_seconds_and_from_a_millisecond_to_thirty_seconds() {
        for buckets in [&RPC_BUCKETS[..], &KEK_BUCKETS[..]] {
            assert!(buckets.is_sorted_by(|a, b| a < b));
        }
        assert_eq!((RPC_BUCKETS[0], RPC_BUCKETS[18]), (0.000_01, 10.0));
        assert_eq!((KEK_BUCKETS[0], KEK_BUCKETS[13]), (0.001, 30.0));
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_one_exists() {
        let metrics = Metrics::new();
        metrics.published(true);
        metrics.kek_call("aws", KekOperation::Wrap, Ok(()), Duration::ZERO);
        let exposed: BTreeSet<String> = page(&metrics).documented_names();
        let documented: BTreeSet<String> = include_str!("../../docs/observability.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `kube_kms_")?.split_once('`'))
            .map(|(name, _)| format!("kube_kms_{name}"))
            .collect();
        assert_eq!(exposed, documented);
    }

    #[test]
    fn documented_types_and_labels_are_those_of_the_page() {
        let metrics = Metrics::new();
        metrics.published(true);
        metrics.kek_call("aws", KekOperation::Wrap, Ok(()), Duration::ZERO);
        let page = page(&metrics);
        for line in include_str!("../../docs/observability.md").lines().filter(|l| l.starts_with("| `kube_kms_")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (name, kind) = (cells[1].trim_matches('`'), cells[2]);
            let labels: BTreeSet<String> =
                cells[3].split(',').map(|l| l.trim().trim_matches('`').to_owned()).filter(|l| l != "-").collect();
            assert_eq!(page.kind_and_labels(name), (kind.to_owned(), labels), "{line}");
        }
    }

    #[test]
    fn after_a_rotation_there_is_one_key_info_and_it_is_the_new_one() {
        let metrics = Metrics::new();
        drop(page(&metrics));
        let mut rotated = snapshot();
        rotated.kek.as_mut().unwrap().version = "other".to_owned();
        rotated.key_id = Some(KeyId::derive(rotated.kek.as_ref().unwrap(), 0));
        let page = Page::parse(&metrics.encode(&rotated, ProcessFacts::default())).unwrap();
        let infos: Vec<_> = page.samples_of("kube_kms_key_info").collect();
        assert_eq!(infos.len(), 1);
        let id = rotated.key_id.unwrap();
        assert_eq!(infos[0].labels["key_id"], id.as_str());
        assert_eq!(infos[0].labels["key_id_hash"], id.metric_hash());
        assert!(infos[0].labels["key_id_hash"].starts_with("sha256:"));
        assert_eq!(infos[0].labels["kek_version"], "other");
    }

    #[test]
    fn the_arn_is_nowhere_on_the_page() {
        assert!(snapshot().kek.unwrap().kek.as_str().contains("arn:aws"));
        let text = Metrics::new().encode(&snapshot(), ProcessFacts::default());
        assert!(!text.contains("arn:") && !text.contains("111122223333"), "{text}");
    }

    #[test]
    fn metrics_count_from_many_threads() {
        let metrics = Metrics::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| metrics.rpc(Rpc::Decrypt, Ok(()), Duration::ZERO)));
            }
        });
        let page = page(&metrics);
        let ok = page.samples_of("kube_kms_rpc_requests_total").map(|s| s.value).sum::<f64>();
        assert!((ok - 4000.0).abs() < 0.5);
    }
}
