//! How long a caller waits: `grpc-timeout`, and our own limit.
//!
//! A caller gives up at its deadline and learns nothing; we answer a little earlier with a reason.
//! SPEC: gRPC over HTTP/2, "Timeout"; kube-apiserver sends 3 s by default.

use http::{HeaderMap, HeaderName};
use kube_kms_core::limit;
use std::time::Duration;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The share of the deadline that is kept for the answer, within bounds.
const MARGIN_SHARE: u32 = 10;
const MARGIN_MIN: Duration = Duration::from_millis(5);
const MARGIN_MAX: Duration = Duration::from_millis(250);

/// How long this call may take here: the caller's deadline less a margin, at most our own limit.
#[must_use]
pub fn patience(headers: &HeaderMap) -> Duration {
    let asked = headers.get(GRPC_TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse);
    let longest = Duration::from_millis(limit::CALL_DEADLINE_MAX_MS);
    let total = asked.unwrap_or(Duration::from_millis(limit::CALL_DEADLINE_DEFAULT_MS)).min(longest);
    let margin = total.checked_div(MARGIN_SHARE).unwrap_or_default().clamp(MARGIN_MIN, MARGIN_MAX);
    total.saturating_sub(margin).max(Duration::from_millis(1))
}

/// Up to eight digits and a unit. `None` for anything else, which is then no deadline, as in other gRPC servers.
fn parse(value: &str) -> Option<Duration> {
    let unit = value.chars().last()?;
    let digits = value.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(amount.checked_mul(3600)?)),
        'M' => Some(Duration::from_secs(amount.checked_mul(60)?)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Option<&str>) -> Duration {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(GRPC_TIMEOUT, value.parse().unwrap());
        }
        patience(&headers)
    }

    #[test]
    fn the_answer_comes_a_little_before_the_deadline() {
        assert_eq!(of(Some("2998486u")), Duration::from_micros(2_998_486 - 250_000));
        assert_eq!(of(Some("50m")), Duration::from_millis(45));
        assert_eq!(of(Some("3S")), Duration::from_millis(2750));
        assert_eq!(of(Some("1n")), Duration::from_millis(1));
    }

    #[test]
    fn no_deadline_and_a_strange_one_get_our_own_and_a_long_one_is_cut() {
        assert_eq!(of(None), Duration::from_millis(10_000 - 250));
        for strange in ["", "5", "S", "-1S", "123456789S", "1x"] {
            assert_eq!(of(Some(strange)), of(None), "{strange:?}");
        }
        assert_eq!(parse("1\u{e9}"), None);
        let units = ["12345678n", "1u", "1m", "1S", "1M", "1H"].map(parse);
        assert_eq!(
            units,
            [12_345_678, 1000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000]
                .map(|n| Some(Duration::from_nanos(n)))
        );
        assert_eq!(of(Some("1H")), Duration::from_millis(30_000 - 250));
    }
}
