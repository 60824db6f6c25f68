//! One call in flight: counted from its message to its end, however it ends, and logged.
//!
//! Guarantees: a call is counted once, also when its caller goes away; at most so many are served at once, the rest is refused and
//! not queued without end.

use crate::request_log::{RequestLog, Served, Under};
use crate::status::status;
use http::HeaderMap;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::limit;
use kube_kms_core::port::{Clock, Moment};
use kube_kms_core::uid::Uid;
use kube_kms_service::decrypt::DekSource;
use kube_kms_service::observer::{Observer, Rpc};
use kube_kms_service::peer::Peer;
use kube_kms_span::{self as span, Scope, Span};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Status;

/// Begins calls and knows how many there are.
#[derive(Debug)]
pub(super) struct Calls {
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    log: RequestLog,
    in_flight: AtomicUsize,
    /// Bytes of their messages.
    held: AtomicUsize,
}

impl Calls {
    pub(super) fn new(observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        Self { observer, clock, log: RequestLog::default(), in_flight: AtomicUsize::new(0), held: AtomicUsize::new(0) }
    }

    pub(super) fn begin(&self, rpc: Rpc, headers: &HeaderMap) -> Call<'_> {
        self.observer.rpc_in_flight(rpc, 1);
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let crowded = in_flight >= limit::CALLS_IN_FLIGHT_MAX;
        let span = span::server(rpc.method(), headers);
        Call { calls: self, rpc, began: self.clock.now(), crowded, held: 0, ended: false, span }
    }

    /// Logs what was answered.
    pub(super) fn log(&self, served: &Served) {
        self.log.served(served);
    }

    /// Takes note of a connection for which there is no place.
    pub(super) fn refuse_connection(&self, peer: &Peer) {
        self.log.no_place(peer.uid, self.clock.now());
    }

    /// The status for a peer that is not allowed; nothing of its request has been read.
    pub(super) fn refuse_stranger(&self) -> Status {
        self.observer.peer_refused();
        let (fault, uid) = (Fault::new(Reason::PeerUid), Uid::parse(""));
        self.log.failed(Rpc::Status, &uid, &fault, Duration::ZERO, self.clock.now());
        status(&fault, &uid)
    }
}

/// One call in flight. Dropped without an end it was cancelled, which is counted as `deadline`.
pub(super) struct Call<'a> {
    calls: &'a Calls,
    rpc: Rpc,
    began: Moment,
    crowded: bool,
    held: usize,
    ended: bool,
    span: Span,
}

impl Call<'_> {
    /// Whether there is room for it, with so many bytes that it holds until its end.
    pub(super) fn admitted(&mut self, held: usize) -> Result<(), Fault> {
        self.held = held;
        let before = self.calls.held.fetch_add(held, Ordering::Relaxed);
        let is_too_much = before.saturating_add(held) > limit::MESSAGES_IN_FLIGHT_MAX;
        if self.crowded || is_too_much { Err(Reason::Overloaded.into()) } else { Ok(()) }
    }

    /// The end of an Encrypt or a Decrypt that went well; what it returns is logged when the answer has been sent.
    pub(super) fn served(mut self, uid: Uid, under: Under, detail: &'static str) -> Served {
        let elapsed = self.end(Ok(()));
        if self.span.is_seen() {
            self.span.text("kube_kms.uid", uid.as_str());
            self.span.text("kube_kms.key_id_hash", &under.key_id().metric_hash());
            self.span.text("kube_kms.dek", detail);
            self.span.flag("kube_kms.coalesced", detail == DekSource::Joined.label());
        }
        Served { rpc: self.rpc, uid, under, detail, elapsed }
    }

    /// The end of a Status that went well.
    pub(super) fn said(mut self, key_id: &KeyId, healthz: &'static str) {
        let elapsed = self.end(Ok(()));
        if self.span.is_seen() {
            self.span.text("kube_kms.key_id_hash", &key_id.metric_hash());
            self.span.text("kube_kms.healthz", healthz);
        }
        self.calls.log.status(key_id, healthz, elapsed);
    }

    pub(super) fn failed(mut self, uid: &Uid, fault: &Fault) -> Status {
        let elapsed = self.end(Err(fault.reason()));
        if self.span.is_seen() {
            self.span.text("kube_kms.uid", uid.as_str());
        }
        self.calls.log.failed(self.rpc, uid, fault, elapsed, self.calls.clock.now());
        status(fault, uid)
    }

    /// What begins inside belongs to this call.
    pub(super) fn scope(&self) -> Scope {
        self.span.scope()
    }

    fn end(&mut self, outcome: Result<(), Reason>) -> Duration {
        let elapsed = self.calls.clock.now().since(self.began);
        self.calls.observer.rpc(self.rpc, outcome, elapsed);
        self.ended = true;
        if self.span.is_seen() {
            self.describe(outcome);
        }
        elapsed
    }
}

impl Call<'_> {
    /// SPEC: OpenTelemetry semantic conventions for gRPC, and ours under `kube_kms`.
    #[cold]
    fn describe(&self, outcome: Result<(), Reason>) {
        let code = outcome.err().map_or(0, |reason| reason.class().code() as u8);
        self.span.text("rpc.system", "grpc");
        self.span.text("rpc.service", "v2.KeyManagementService");
        self.span.text("rpc.method", self.rpc.label());
        self.span.number("rpc.grpc.status_code", i64::from(code));
        self.span.text("kube_kms.outcome", outcome.err().map_or("ok", Reason::label));
        if let Err(reason) = outcome {
            self.span.failed(reason.label());
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(Reason::Deadline));
        }
        self.calls.observer.rpc_in_flight(self.rpc, -1);
        self.calls.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.calls.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("rpc", &self.rpc).field("began", &self.began).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_service::observer::{KekOperation, KeyringEvent};
    use std::sync::Mutex;

    #[derive(Debug)]
    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Moment {
            Moment(0)
        }
    }

    /// How calls ended, and how many are in flight.
    #[derive(Debug, Default)]
    struct Tally(Mutex<(Vec<Result<(), Reason>>, i64)>);

    impl Observer for Tally {
        fn rpc(&self, _: Rpc, outcome: Result<(), Reason>, _: Duration) {
            self.0.lock().unwrap().0.push(outcome);
        }
        fn rpc_in_flight(&self, _: Rpc, change: i64) {
            self.0.lock().unwrap().1 += change;
        }
        fn kek_call(&self, _: &'static str, _: KekOperation, _: Result<(), Reason>, _: Duration) {}
        fn keyring(&self, _: KeyringEvent) {}
        fn published(&self, _: bool) {}
        fn peer_refused(&self) {}
    }

    fn calls() -> (Calls, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        (Calls::new(Arc::<Tally>::clone(&tally), Arc::new(Stopped)), tally)
    }

    fn admitted(calls: &Calls, held: usize) -> (Call<'_>, Option<Reason>) {
        let mut call = calls.begin(Rpc::Decrypt, &HeaderMap::new());
        let refused = call.admitted(held).err().map(|fault| fault.reason());
        (call, refused)
    }

    #[test]
    fn calls_are_admitted_up_to_their_number_and_a_place_is_given_back() {
        let (calls, _) = calls();
        let mut held: Vec<_> = (0..limit::CALLS_IN_FLIGHT_MAX).map(|_| admitted(&calls, 1)).collect();
        assert!(held.iter().all(|(_, refused)| refused.is_none()));
        assert_eq!(admitted(&calls, 1).1, Some(Reason::Overloaded));
        held.pop();
        assert_eq!(admitted(&calls, 1).1, None);
    }

    #[test]
    fn calls_are_admitted_up_to_their_bytes_and_those_are_given_back() {
        let (calls, _) = calls();
        let (most, refused) = admitted(&calls, limit::MESSAGES_IN_FLIGHT_MAX);
        assert_eq!(refused, None);
        assert_eq!(admitted(&calls, 1).1, Some(Reason::Overloaded));
        drop(most);
        assert_eq!(admitted(&calls, 1).1, None);
    }

    #[test]
    fn a_call_is_counted_once_and_one_whose_caller_goes_away_as_a_deadline() {
        let (calls, tally) = calls();
        drop(calls.begin(Rpc::Decrypt, &HeaderMap::new()));
        let uid = Uid::parse("u");
        let _ = calls.begin(Rpc::Decrypt, &HeaderMap::new()).failed(&uid, &Fault::new(Reason::KekGone));
        let key_id = KeyId::parse("k".to_owned()).unwrap();
        calls.begin(Rpc::Status, &HeaderMap::new()).said(&key_id, "ok");
        let ended = tally.0.lock().unwrap();
        assert_eq!(*ended, (vec![Err(Reason::Deadline), Err(Reason::KekGone), Ok(())], 0));
    }
}
