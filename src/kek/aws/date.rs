//! What time the KMS has: the `Date` of an answer, against the clock of this host.
//!
//! Guarantees: reads one header of one call and changes nothing of it. For `kube-kms check` alone. SPEC: RFC 9110 6.6.1; AWS
//! refuses signatures that are more than five minutes off (Signature Version 4).

use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::BoxError;
use aws_sdk_kms::primitives::{DateTime, DateTimeFormat};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// A difference that is worth a word: the header has whole seconds, and an answer takes its time.
const SKEW_MIN: Duration = Duration::from_secs(30);

/// Keeps the time of the answer to one call.
#[derive(Clone, Debug, Default)]
pub(super) struct DateHeader(Arc<OnceLock<SystemTime>>);

impl DateHeader {
    /// How far the clock of this host is off, in words; `None` when it is not, or when nobody answered.
    pub(super) fn skew(&self, now: SystemTime) -> Option<String> {
        let theirs = *self.0.get()?;
        let (apart, direction) = match now.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let shown = humantime::format_duration(Duration::from_secs(apart.as_secs()));
        (apart >= SKEW_MIN).then(|| format!("the clock of this host is {shown} {direction} the one of the KMS"))
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        if let Some(time) = date.and_then(|date| SystemTime::try_from(date).ok()) {
            let _ = self.0.set(time);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_minute_is_worth_a_word_in_both_directions() {
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let header = DateHeader::default();
        assert_eq!(header.skew(theirs), None);
        header.0.set(theirs).unwrap();
        for (now, words) in [
            (theirs, None),
            (theirs + Duration::from_secs(29), None),
            (theirs + Duration::from_secs(600), Some("the clock of this host is 10m ahead of the one of the KMS")),
            (theirs - Duration::from_secs(30), Some("the clock of this host is 30s behind the one of the KMS")),
        ] {
            assert_eq!(header.skew(now).as_deref(), words);
        }
    }
}
