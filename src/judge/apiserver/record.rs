//! What happened: counts, a timeline of the changes, the key_ids, the findings.
//!
//! Guarantees: it outlives restarts and reloads of the simulated API server; it holds no secret (only fingerprints of the
//! seeds, so that a wrong answer of Decrypt is known for what it is); the timeline is bounded.

use crate::apiserver::decrypt_cache::CacheKey;
use crate::apiserver::finding::{Finding, FindingCode, Findings, milliseconds};
use crate::apiserver::key_history::{KeyHistory, KeyIdSeen, Observed};
use kms_v2_client::plugin::Rpc;
use kube_kms_core::port::Moment;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use tonic::Code;

/// Events that are kept; later ones are only counted.
const EVENTS_KEPT: usize = 10_000;

/// Something that changed. What happens all the time is only in [`Counts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Happened {
    /// The process started and evaluated the provider once.
    Loaded,
    /// The process was restarted: seed and caches are gone.
    Restarted,
    /// The driver says that the plugin was restarted.
    PluginRestarted,
    /// An evaluation failed after a good one, or as the first.
    BecameUnhealthy {
        /// All that was wrong.
        why: String,
    },
    /// An evaluation succeeded after a failed one, or as the first.
    BecameHealthy,
    /// Status named another key_id, or the first.
    KeyIdReported {
        /// Which.
        #[serde(rename = "keyId")]
        key_id: String,
    },
    /// A new seed is in use for writes.
    SeedInUse {
        /// Under this key_id.
        #[serde(rename = "keyId")]
        key_id: String,
    },
    /// The write state expired: writes fail from here on.
    WritesStopped,
    /// The expired write state was extended: the same seed writes again.
    WritesRevived,
    /// A new configuration is in use, with everything built anew.
    Reloaded,
    /// A new configuration was not healthy yet; the old one goes on.
    ReloadPending,
    /// A new configuration did not become healthy in time and was dropped.
    ReloadRefused,
}

/// One entry of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When, in milliseconds of the simulator's clock.
    #[serde(rename = "atMs", serialize_with = "milliseconds")]
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub happened: Happened,
}

/// How often one RPC ended with one gRPC code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RpcCount {
    /// Which.
    pub rpc: Rpc,
    /// Go's spelling, as in the API server's metrics: `OK`, `DeadlineExceeded`.
    pub code: String,
    /// How often.
    pub times: u64,
}

/// How often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Every RPC by its outcome.
    pub rpcs: Vec<RpcCount>,
    /// Evaluations: good ones. Answers from the health cache do not count.
    pub evaluations_healthy: u64,
    /// Evaluations: failed ones.
    pub evaluations_unhealthy: u64,
    /// Seeds drawn: one for every Encrypt.
    pub seeds_generated: u64,
    /// Seeds taken into use.
    pub seeds_used: u64,
    /// Encrypt answers thrown away because of their key_id.
    pub mismatches: u64,
    /// Objects written, rewritten ones included.
    pub writes_ok: u64,
    /// Objects that could not be written.
    pub writes_failed: u64,
    /// Objects read, those for a rewrite included.
    pub reads_ok: u64,
    /// Objects that could not be read.
    pub reads_failed: u64,
    /// Objects that a rewrite left as they were.
    pub rewrites_unneeded: u64,
    /// Reads that needed no Decrypt.
    pub cache_hits: u64,
    /// Times that the write state expired.
    pub write_state_expiries: u64,
    /// Timeline entries that were not kept.
    pub events_dropped: u64,
}

impl Counts {
    /// How often that RPC ended so.
    #[must_use]
    pub fn rpc(&self, rpc: Rpc, code: Code) -> u64 {
        let code = format!("{code:?}");
        self.rpcs.iter().find(|c| c.rpc == rpc && c.code == go_name(&code)).map_or(0, |c| c.times)
    }

    /// How often that RPC was called.
    #[must_use]
    pub fn calls(&self, rpc: Rpc) -> u64 {
        self.rpcs.iter().filter(|c| c.rpc == rpc).fold(0, |sum, c| sum.saturating_add(c.times))
    }
}

/// Go's spelling of a code differs in one word.
fn go_name(rust_name: &str) -> &str {
    if rust_name == "Ok" { "OK" } else { rust_name }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How often.
    pub counts: Counts,
    /// The key_ids of Status, in order.
    pub key_ids: Vec<KeyIdSeen>,
    /// What changed, in order.
    pub timeline: Vec<Event>,
    /// What is wrong with the plugin.
    pub findings: Vec<Finding>,
}

/// The notebook of one simulated API server.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) counts: Counts,
    rpcs: BTreeMap<(Rpc, String), u64>,
    /// By provider: one plugin's key_id says nothing about another's.
    key_ids: BTreeMap<String, KeyHistory>,
    timeline: Vec<Event>,
    findings: Findings,
    own_seeds: HashMap<CacheKey, [u8; 32]>,
}

impl Record {
    pub(super) fn report(&self) -> Report {
        let rpcs =
            self.rpcs.iter().map(|((rpc, code), times)| RpcCount { rpc: *rpc, code: code.clone(), times: *times });
        let mut key_ids: Vec<_> = self.key_ids.values().flat_map(KeyHistory::order).collect();
        key_ids.sort_by_key(|seen| seen.at);
        Report {
            counts: Counts { rpcs: rpcs.collect(), ..self.counts.clone() },
            key_ids,
            timeline: self.timeline.clone(),
            findings: self.findings.to_vec(),
        }
    }

    pub(super) fn event(&mut self, at: Moment, happened: Happened) {
        if self.timeline.len() < EVENTS_KEPT {
            self.timeline.push(Event { at, happened });
        } else {
            count(&mut self.counts.events_dropped);
        }
    }

    pub(super) fn finding(&mut self, at: Moment, code: FindingCode, detail: impl Into<String>) {
        self.findings.add(at, code, detail.into());
    }

    pub(super) fn rpc(&mut self, rpc: Rpc, code: Code) {
        let code = format!("{code:?}");
        count(self.rpcs.entry((rpc, go_name(&code).to_owned())).or_default());
    }

    pub(super) fn plugin_restarted(&mut self, at: Moment) {
        self.key_ids.values_mut().for_each(KeyHistory::plugin_restarted);
        self.event(at, Happened::PluginRestarted);
    }

    /// Status of the provider with this name named a valid key_id.
    pub(super) fn key_id(&mut self, at: Moment, provider: &str, key_id: &str) {
        let observed = self.key_ids.entry(provider.to_owned()).or_default().observe(at, key_id);
        if observed != Observed::Same {
            self.event(at, Happened::KeyIdReported { key_id: key_id.to_owned() });
        }
        if let Observed::Wrong(code) = observed {
            if code == FindingCode::KeyIdFlipFlop {
                self.findings.withdraw(FindingCode::KeyIdCameBack);
            }
            self.finding(at, code, key_id);
        }
    }

    /// Encrypt wrapped this seed so.
    pub(super) fn own_seed(&mut self, key: CacheKey, fingerprint: [u8; 32]) {
        self.own_seeds.insert(key, fingerprint);
    }

    /// The seed that Encrypt was given for it, when it was one of ours.
    pub(super) fn fingerprint(&self, key: &CacheKey) -> Option<[u8; 32]> {
        self.own_seeds.get(key).copied()
    }
}

/// One more.
pub(super) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_json_with_codes_as_kube_apiserver_spells_them() {
        let mut record = Record::default();
        record.rpc(Rpc::Status, Code::Ok);
        record.rpc(Rpc::Status, Code::Ok);
        record.rpc(Rpc::Decrypt, Code::DeadlineExceeded);
        record.key_id(Moment(2_000_000), "p", "k1");
        let report = record.report();
        assert_eq!((report.counts.rpc(Rpc::Status, Code::Ok), report.counts.calls(Rpc::Decrypt)), (2, 1));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["counts"]["rpcs"][0], serde_json::json!({"rpc": "Status", "code": "OK", "times": 2}));
        assert_eq!(json["timeline"][0], serde_json::json!({"atMs": 2, "what": "key-id-reported", "keyId": "k1"}));
    }

    #[test]
    fn the_timeline_is_bounded_and_says_so() {
        let mut record = Record::default();
        for _ in 0..EVENTS_KEPT + 3 {
            record.event(Moment(0), Happened::Loaded);
        }
        let report = record.report();
        assert_eq!((report.timeline.len(), report.counts.events_dropped), (EVENTS_KEPT, 3));
    }

    #[test]
    fn two_providers_each_with_its_key_id_are_no_flip_flop() {
        let mut record = Record::default();
        for at in 0..4 {
            record.key_id(Moment(at), "one", "a");
            record.key_id(Moment(at), "two", "b");
        }
        let report = record.report();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(report.key_ids.iter().map(|seen| seen.key_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_flip_flop_takes_the_place_of_came_back() {
        let mut record = Record::default();
        let codes = |record: &Record| record.report().findings.iter().map(|f| f.code).collect::<Vec<_>>();
        for id in ["a", "b", "a"] {
            record.key_id(Moment(0), "p", id);
        }
        assert_eq!(codes(&record), [FindingCode::KeyIdCameBack]);
        record.key_id(Moment(0), "p", "b");
        assert_eq!(codes(&record), [FindingCode::KeyIdFlipFlop]);
    }
}
