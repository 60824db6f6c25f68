//! A load generator for any KMS v2 plugin: so many calls in flight, or so many calls a second.
//!
//! Guarantees: at a fixed rate every call has a moment at which it should be sent, and its latency counts from that moment, so
//! that a plugin that stalls is charged for every call that waited (no coordinated omission); Decrypts open values that this
//! plugin sealed before the clock started, and an answer with other bytes counts as failed; how late the generator itself was,
//! and how much of a core it took, is part of the result. Everything runs on one thread. Refuses to know how it is shown.

pub(crate) mod mix;
pub(crate) mod tally;
pub(crate) mod usage;
mod values;
mod wire;

use kms_v2_client::kms::Target;
use kms_v2_client::plugin::Rpc;
use kube_kms_os::Stopwatch;
use mix::{Mix, Wheel};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tally::Tally;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;
use usage::Usage;
use values::Values;
use wire::{Outcome, Wire};

/// Calls that an open loop lets run at once; more would only measure the generator's memory.
pub(crate) const OPEN_IN_FLIGHT_MAX: usize = 4096;

/// When calls are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// So many at any moment; each answer sends the next call.
    InFlight(usize),
    /// So many a second, whether answers come or not.
    PerSecond(f64),
}

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the plugin listens.
    pub(crate) target: Target,
    /// When calls are sent.
    pub(crate) pace: Pace,
    /// Connections; kube-apiserver has one for each KMS provider.
    pub(crate) connections: usize,
    /// Which RPCs.
    pub(crate) mix: Mix,
    /// Time that counts.
    pub(crate) duration: Duration,
    /// Time before it that does not.
    pub(crate) warm_up: Duration,
    /// Deadline of each call.
    pub(crate) timeout: Duration,
    /// The process to watch; without it the one that made the socket, where the kernel names it.
    pub(crate) pid: Option<u32>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Latencies and failures.
    pub(crate) tally: Tally,
    /// How long calls were counted.
    pub(crate) elapsed: Duration,
    /// What the plugin's process used meanwhile, when it could be watched.
    pub(crate) plugin: Option<Usage>,
    /// The process that was watched.
    pub(crate) pid: Option<u32>,
    /// What this process used meanwhile.
    pub(crate) generator: Option<Usage>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Nobody listens.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The first Encrypts, which make the values for Decrypt, or the first Status failed.
    #[error("the first {rpc} failed: {code}")]
    First {
        /// The RPC.
        rpc: Rpc,
        /// The gRPC code, or what else went wrong.
        code: String,
    },
    /// The system gives no timer.
    #[error("there is no timer")]
    Timer(#[source] io::Error),
}

/// What all calls of a run share.
struct Run {
    wires: Vec<Wire>,
    values: Values,
    wheel: RefCell<Wheel>,
    tally: RefCell<Tally>,
    watch: Stopwatch,
    counting: Cell<bool>,
    in_flight: Cell<usize>,
    timeout: Duration,
}

/// Runs the plan. `progress` is called a few times a second with the time since the start of the warm-up and the calls that
/// have ended.
///
/// # Errors
/// When nothing can be measured. Calls that fail are part of the result.
///
/// # Cancel safety
/// Dropping the future ends every call.
pub(crate) async fn run(plan: &Plan, progress: &mut dyn FnMut(Duration, u64)) -> Result<Measured, LoadError> {
    LocalSet::new().run_until(drive(plan, progress)).await
}

async fn drive(plan: &Plan, progress: &mut dyn FnMut(Duration, u64)) -> Result<Measured, LoadError> {
    let mut wires = Vec::new();
    for _ in 0..plan.connections.max(1) {
        wires.push(Wire::connect(plan.target.clone()).await.map_err(LoadError::Connect)?);
    }
    let pid = plan.pid.or_else(|| wires.first().and_then(Wire::peer));
    let values = Values::prepare(&wires, &plan.mix, plan.timeout).await?;
    let run = Rc::new(Run {
        wires,
        values,
        wheel: RefCell::new(plan.mix.wheel()),
        tally: RefCell::new(Tally::default()),
        watch: Stopwatch::start(),
        counting: Cell::new(false),
        in_flight: Cell::new(0),
        timeout: plan.timeout,
    });
    let pacing = match plan.pace {
        Pace::InFlight(depth) => {
            for n in 0..depth.max(1) {
                tokio::task::spawn_local(Rc::clone(&run).closed_loop(n));
            }
            None
        }
        Pace::PerSecond(rate) => {
            let alarm = Alarm::new().map_err(LoadError::Timer)?;
            Some(tokio::task::spawn_local(Rc::clone(&run).open_loop(rate, alarm)))
        }
    };
    run.show_until(plan.warm_up, progress).await;
    let (plugin, generator) = (pid.and_then(Usage::of), Usage::of(std::process::id()));
    let began = run.watch.elapsed();
    run.tally.replace(Tally::default());
    run.counting.set(true);
    run.show_until(plan.warm_up.saturating_add(plan.duration), progress).await;
    run.counting.set(false);
    let elapsed = run.watch.elapsed().saturating_sub(began);
    let since = |before: Option<Usage>, pid| Some(Usage::of(pid)?.since(before?));
    let (plugin, generator) = (pid.and_then(|p| since(plugin, p)), since(generator, std::process::id()));
    drop(pacing);
    let tally = run.tally.take();
    Ok(Measured { tally, elapsed, plugin, pid, generator })
}

impl Run {
    async fn show_until(&self, end: Duration, progress: &mut dyn FnMut(Duration, u64)) {
        loop {
            let now = self.watch.elapsed();
            progress(now, self.tally.borrow().calls());
            let left = end.saturating_sub(now);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(Duration::from_millis(200))).await;
        }
    }

    /// One call after the other, until the task is dropped.
    async fn closed_loop(self: Rc<Self>, n: usize) {
        loop {
            let intended = self.watch.elapsed();
            self.call(n, intended).await;
        }
    }

    /// One call for each tick of the clock. INVARIANT: the n-th is due at n / rate, however late the one before it was
    /// (test `a_plugin_that_stalls_is_charged_for_every_call_that_should_have_been_sent`).
    async fn open_loop(self: Rc<Self>, rate: f64, mut alarm: Alarm) {
        let gap = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::from_secs(1));
        let (mut due, mut n) = (self.watch.elapsed(), 0_usize);
        loop {
            let now = self.watch.elapsed();
            if now < due && alarm.sleep(due.saturating_sub(now)).await.is_err() {
                return;
            }
            while self.in_flight.get() >= OPEN_IN_FLIGHT_MAX {
                tokio::task::yield_now().await;
            }
            if self.counting.get() {
                self.tally.borrow_mut().sent_late(self.watch.elapsed().saturating_sub(due));
            }
            let (run, intended, slot) = (Rc::clone(&self), due, n);
            tokio::task::spawn_local(async move { run.call(slot, intended).await });
            due = due.saturating_add(gap);
            n = n.wrapping_add(1);
            if n.is_multiple_of(64) {
                // Behind the clock there is nothing to wait for, and the answers must be read as well.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn call(&self, slot: usize, intended: Duration) {
        let Some(wire) = slot.checked_rem(self.wires.len()).and_then(|n| self.wires.get(n)) else { return };
        let rpc = self.wheel.borrow_mut().next();
        let body = self.values.request(rpc);
        self.in_flight.set(self.in_flight.get().saturating_add(1));
        let answer = tokio::time::timeout(self.timeout, wire.call(rpc, body)).await;
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        let outcome = match answer {
            Ok(Ok(message)) => self.values.judge(rpc, &message),
            Ok(Err(outcome)) => outcome,
            Err(_) => Outcome::LATE,
        };
        if self.counting.get() {
            let latency = self.watch.elapsed().saturating_sub(intended);
            self.tally.borrow_mut().note(rpc, latency, outcome.failure());
        }
        if outcome.is_lost() {
            // A closed loop would otherwise spin on a plugin that is gone.
            tokio::time::sleep(wire::RECONNECT_PAUSE).await;
        }
    }
}

/// A timer of microseconds: tokio's own has a millisecond, which at a fixed rate is most of what would be measured.
struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    #[expect(
        deprecated,
        reason = "the new one asks for a promise about types that close their descriptor early; an OwnedFd does not"
    )]
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?)?))
    }

    async fn sleep(&mut self, time: Duration) -> io::Result<()> {
        let value = Timespec::try_from(time.max(Duration::from_nanos(1))).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        rustix::time::timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0; 8])?));
            if let Ok(read) = read {
                return read.map(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests;
