//! How fast a rehearsal goes: the sandbox's settings, and what each means for the settings of an operator.

use kube_kms_core::rotation::rotation_seen_within;
use serde::Serialize;
use std::time::Duration;

/// The API servers of the sandbox live this many times as fast as we do: their minute between two Statuses is 4 s, their three
/// minutes of writes without an agreement are 12 s.
pub(crate) const SPEED: u32 = 15;
/// How long a busy machine may take on top of what the settings bound.
pub(crate) const SLACK: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tempo {
    pub(crate) probe_interval: Duration,
    pub(crate) probe_timeout: Duration,
    pub(crate) observations: u32,
    pub(crate) cache_ttl: Duration,
    pub(crate) grace: Duration,
    pub(crate) rpc_timeout: Duration,
    /// Within this time everybody at the KEK knows that a key was retired or reinstated.
    pub(crate) spreads_within: Duration,
}

/// One setting of the sandbox, for the report.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Its key in the configuration.
    pub key: &'static str,
    /// What the rehearsal used.
    pub value: String,
    /// What follows for the operator's own value.
    pub meaning: String,
}

impl Tempo {
    /// For a KEK that is a file.
    pub(crate) const LOCAL: Self = Self {
        probe_interval: Duration::from_secs(1),
        probe_timeout: Duration::from_millis(900),
        observations: 2,
        cache_ttl: Duration::from_secs(3),
        grace: Duration::from_secs(8),
        rpc_timeout: Duration::from_secs(3),
        spreads_within: SLACK,
    };

    /// For a KEK behind a network.
    pub(crate) const REMOTE: Self = Self {
        probe_interval: Duration::from_secs(2),
        probe_timeout: Duration::from_millis(1500),
        spreads_within: Duration::from_secs(30),
        ..Self::LOCAL
    };

    /// Within this time after a rotation every Status has moved.
    pub(crate) fn converges_within(&self) -> Duration {
        // A tenth of jitter; the last probe may take all of its time.
        let rounds = self.probe_interval.mul_f64(1.1).saturating_add(self.probe_timeout);
        rounds.saturating_mul(self.observations).saturating_add(SLACK)
    }

    /// Within this time after that every API server writes under the new key_id: its poll.
    pub(crate) fn api_servers_follow_within(&self) -> Duration {
        scaled(Duration::from_secs(60)).saturating_add(SLACK)
    }

    /// Longer than the API server's writes live without an agreement of Status and Encrypt.
    pub(crate) fn beyond_the_write_state(&self) -> Duration {
        scaled(Duration::from_secs(180)).saturating_add(Duration::from_secs(1))
    }

    /// Within this time after an outage all is well: docs/conformance.md, item 28.
    pub(crate) const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

    pub(crate) fn settings(&self) -> Vec<Setting> {
        let text = |time: Duration| humantime::format_duration(time).to_string();
        let seen = rotation_seen_within(Duration::from_secs(60), Duration::from_secs(2), self.observations);
        let defaults = Duration::from_secs(seen.as_secs().saturating_add(1));
        vec![
            Setting {
                key: "probe.interval",
                value: text(self.probe_interval),
                meaning: format!(
                    "a rotation is believed when {} probes in a row have seen it: with the defaults within {} at most",
                    self.observations,
                    text(defaults)
                ),
            },
            Setting {
                key: "probe.timeout",
                value: text(self.probe_timeout),
                meaning: "how long a KMS that does not answer delays each of them".to_owned(),
            },
            Setting {
                key: "rotation.observations",
                value: self.observations.to_string(),
                meaning: "as the default".to_owned(),
            },
            Setting {
                key: "outage.grace",
                value: text(self.grace),
                meaning: "an outage is invisible for this long: with the default for 1h. Longer than that it only makes the API \
                          server unready"
                    .to_owned(),
            },
            Setting {
                key: "cache.ttl",
                value: text(self.cache_ttl),
                meaning: "a retired key still opens on a running plugin for this long at most: with the default for 1h"
                    .to_owned(),
            },
            Setting {
                key: "kube-apiserver",
                value: format!("{SPEED} times as fast"),
                meaning: format!(
                    "its poll of 60s is {} here, its 3m of writes without an agreement are {}",
                    text(scaled(Duration::from_secs(60))),
                    text(scaled(Duration::from_secs(180)))
                ),
            },
        ]
    }
}

/// A time of the API servers in ours.
pub(crate) fn scaled(time: Duration) -> Duration {
    time.checked_div(SPEED).unwrap_or(time)
}
