//! One call in flight: counted from its message to its end, however it ends, and logged.
//!
//! Guarantees: a call is counted once, also when its caller goes away; at most so many are served at once, the rest is refused and
//! not queued without end.

use crate::core::fault::{Fault, Reason};
use crate::core::key_id::KeyId;
use crate::core::limit;
use crate::core::port::{Clock, Moment};
use crate::core::uid::Uid;
use crate::grpc::request_log::RequestLog;
use crate::grpc::status::status;
use crate::service::observer::{Observer, Rpc};
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
}

impl Calls {
    pub(super) fn new(observer: Arc<dyn Observer>, clock: Arc<dyn Clock>) -> Self {
        Self { observer, clock, log: RequestLog::default(), in_flight: AtomicUsize::new(0) }
    }

    pub(super) fn begin(&self, rpc: Rpc) -> Call<'_> {
        self.observer.rpc_in_flight(rpc, 1);
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let crowded = in_flight >= limit::CALLS_IN_FLIGHT_MAX;
        Call { calls: self, rpc, began: self.clock.now(), crowded, ended: false }
    }

    /// The status for a peer that is not allowed; nothing of its request has been read.
    pub(super) fn refuse_stranger(&self) -> Status {
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
    ended: bool,
}

impl Call<'_> {
    pub(super) fn admitted(&self) -> Result<(), Fault> {
        if self.crowded { Err(Reason::Overloaded.into()) } else { Ok(()) }
    }

    pub(super) fn served(mut self, uid: &Uid, key_id: &KeyId, detail: &'static str) {
        let elapsed = self.end(Ok(()));
        self.calls.log.served(self.rpc, uid, key_id, detail, elapsed);
    }

    pub(super) fn failed(mut self, uid: &Uid, fault: &Fault) -> Status {
        let elapsed = self.end(Err(fault.reason()));
        self.calls.log.failed(self.rpc, uid, fault, elapsed, self.calls.clock.now());
        status(fault, uid)
    }

    fn end(&mut self, outcome: Result<(), Reason>) -> Duration {
        let elapsed = self.calls.clock.now().since(self.began);
        self.calls.observer.rpc(self.rpc, outcome, elapsed);
        self.ended = true;
        elapsed
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(Reason::Deadline));
        }
        self.calls.observer.rpc_in_flight(self.rpc, -1);
        self.calls.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("rpc", &self.rpc).field("began", &self.began).finish_non_exhaustive()
    }
}
