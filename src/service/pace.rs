//! How fast the KMS may be asked: at most so many unwraps at once, and further apart each time it throttles us.
//!
//! Guarantees: a storm of Decrypts never becomes a storm at the KMS; who goes next is decided when a call may begin, by
//! [`crate::lane`]; who was throttled does not lose its place to those who came later; the pace recovers by itself.
//! Probes do not wait here: they are few, and health must not queue behind a storm.

use crate::lane::{Lane, Queue};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::limit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The gap after the first throttling: 100 calls a second.
const FIRST_GAP: Duration = Duration::from_millis(10);
/// The largest gap: one call a second.
const LARGEST_GAP: Duration = Duration::from_secs(1);
/// What throttling makes of the gap.
const SLOWER: f64 = 1.5;
/// After this time of answers without throttling, calls are half as far apart.
const HALF_LIFE: Duration = Duration::from_secs(2);
/// Gaps under this are none.
const NO_GAP: Duration = Duration::from_millis(1);
/// Several answers of one burst count as one sign of throttling.
const SAME_BURST: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub struct Pace {
    permits: Semaphore,
    /// In its door stands the one whose call is next. The others wait behind it and not for times of their own, which would still
    /// be those of an old gap when the KMS throttles more, or no more.
    queue: Arc<Queue>,
    spacing: Mutex<Spacing>,
}

#[derive(Debug)]
struct Spacing {
    gap: Duration,
    last: Option<Instant>,
    slowed: Option<Instant>,
    sped_up: Option<Instant>,
}

impl Pace {
    /// Full speed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            permits: Semaphore::new(limit::UNWRAPS_IN_FLIGHT_MAX),
            queue: Arc::default(),
            spacing: Mutex::new(Spacing { gap: Duration::ZERO, last: None, slowed: None, sped_up: None }),
        }
    }

    /// Waits for a turn; it ends when it is dropped. `is_wanted` is asked when it has come after others.
    ///
    /// # Errors
    /// `overloaded` when too many wait, or it is not wanted any more.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place up.
    pub async fn turn(&self, lane: Lane, is_wanted: impl Fn() -> bool) -> Result<Turn<'_>, Fault> {
        let mut turn = Turn { pace: self, lane, ticket: self.queue.ticket(), permit: None };
        turn.come(is_wanted).await?;
        Ok(turn)
    }

    /// Begins a call now, or says when to ask again.
    fn begin_or_wait(&self) -> Option<Instant> {
        let mut spacing = self.spacing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = tokio_now();
        let at = spacing.last.and_then(|last| last.checked_add(spacing.gap)).filter(|at| *at > now);
        if at.is_none() {
            spacing.last = Some(now);
        }
        at
    }

    /// The KMS answered: faster, by how long ago it last did or throttled.
    pub fn speed_up(&self) {
        let mut spacing = self.spacing.lock().unwrap_or_else(PoisonError::into_inner);
        if spacing.gap.is_zero() {
            return;
        }
        let now = tokio_now();
        let since = spacing.sped_up.map_or(Duration::ZERO, |when| now.saturating_duration_since(when));
        spacing.sped_up = Some(now);
        let halvings = since.as_secs_f64() / HALF_LIFE.as_secs_f64();
        spacing.gap = spacing.gap.mul_f64((-halvings).exp2());
        if spacing.gap < NO_GAP {
            spacing.gap = Duration::ZERO;
        }
    }

    /// The KMS throttled us: slower, once a burst.
    pub fn slow_down(&self) {
        let mut spacing = self.spacing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = tokio_now();
        if spacing.slowed.is_none_or(|when| now.saturating_duration_since(when) >= SAME_BURST) {
            spacing.slowed = Some(now);
            spacing.sped_up = Some(now);
            spacing.gap = spacing.gap.mul_f64(SLOWER).clamp(FIRST_GAP, LARGEST_GAP);
        }
    }
}

/// A place among the calls on the wire.
#[derive(Debug)]
pub struct Turn<'a> {
    pace: &'a Pace,
    lane: Lane,
    ticket: u64,
    permit: Option<SemaphorePermit<'a>>,
}

impl Turn<'_> {
    /// Waits until the call may be made once more, before those who came later, and leaves the wire to others meanwhile.
    ///
    /// # Errors
    /// `overloaded` when too many wait.
    pub async fn again(&mut self) -> Result<(), Fault> {
        self.come(|| true).await
    }

    async fn come(&mut self, is_wanted: impl Fn() -> bool) -> Result<(), Fault> {
        self.permit = None;
        let queue = &self.pace.queue;
        let door = match queue.free_door() {
            Some(door) => door,
            None => queue.door(self.lane, self.ticket).await.filter(|_| is_wanted()).ok_or(Reason::Overloaded)?,
        };
        // `None` never happens: the semaphore is never closed. Going on without a permit would be harmless then.
        self.permit = self.pace.permits.acquire().await.ok();
        while let Some(at) = self.pace.begin_or_wait() {
            tokio::time::sleep_until(at).await;
        }
        drop(door);
        Ok(())
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// The runtime's clock: timers are set by it, and tests pause it.
fn tokio_now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    /// How long this many turns take, one after the other, each over at once.
    async fn turns(pace: &Pace, count: u32) -> Duration {
        let began = Instant::now();
        for _ in 0..count {
            drop(pace.turn(Lane::Stranger, || true).await.unwrap());
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_while_nobody_throttles() {
        assert_eq!(turns(&Pace::new(), 10_000).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_at_work_at_once_and_no_more() {
        let pace = Arc::new(Pace::new());
        let mut held = Vec::new();
        for _ in 0..limit::UNWRAPS_IN_FLIGHT_MAX {
            held.push(pace.turn(Lane::Stranger, || true).await.unwrap());
        }
        let one_more = tokio::time::timeout(Duration::from_secs(60), pace.turn(Lane::Stranger, || true)).await;
        assert!(one_more.is_err());
        held.pop();
        assert!(tokio::time::timeout(Duration::from_millis(1), pace.turn(Lane::Stranger, || true)).await.is_ok());
    }

    fn gap(pace: &Pace) -> Duration {
        pace.spacing.lock().unwrap().gap
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_widens_the_gap_once_a_burst_up_to_a_second() {
        let pace = Pace::new();
        for _ in 0..16 {
            pace.slow_down();
        }
        assert_eq!(gap(&pace), FIRST_GAP);
        let ten = turns(&pace, 11).await;
        assert!((Duration::from_millis(100)..Duration::from_millis(120)).contains(&ten), "{ten:?}");
        tokio::time::advance(SAME_BURST).await;
        pace.slow_down();
        assert_eq!(gap(&pace), FIRST_GAP.mul_f64(SLOWER));
        for _ in 0..20 {
            tokio::time::advance(SAME_BURST).await;
            pace.slow_down();
        }
        let ten = turns(&pace, 11).await;
        assert!((Duration::from_secs(10)..Duration::from_millis(11_100)).contains(&ten), "{ten:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_bring_it_back_to_full_speed_by_time_and_not_by_their_number() {
        let pace = Pace::new();
        for _ in 0..20 {
            tokio::time::advance(SAME_BURST).await;
            pace.slow_down();
        }
        for _ in 0..1000 {
            pace.speed_up();
        }
        assert_eq!(gap(&pace), LARGEST_GAP, "no time has passed");
        tokio::time::advance(HALF_LIFE).await;
        pace.speed_up();
        let half = gap(&pace);
        assert!((Duration::from_millis(499)..=Duration::from_millis(501)).contains(&half), "{half:?}");
        for _ in 0..10 {
            tokio::time::advance(HALF_LIFE).await;
            pace.speed_up();
        }
        turns(&pace, 1).await;
        assert_eq!(turns(&pace, 100).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_throttled_does_not_go_to_the_end_of_the_queue() {
        let pace = Arc::new(Pace::new());
        pace.slow_down();
        let mut throttled = pace.turn(Lane::Stranger, || true).await.unwrap();
        let came_through = Arc::new(Mutex::new(0));
        let later: Vec<_> = (0..100)
            .map(|_| {
                let (pace, came_through) = (Arc::clone(&pace), Arc::clone(&came_through));
                tokio::spawn(async move {
                    let _turn = pace.turn(Lane::Stranger, || true).await.unwrap();
                    *came_through.lock().unwrap() += 1;
                })
            })
            .collect();
        tokio::task::yield_now().await;
        throttled.again().await.unwrap();
        // The one in the door, and one who was called just then.
        assert!(*came_through.lock().unwrap() <= 2, "{} of a hundred who came later", came_through.lock().unwrap());
        for task in later {
            task.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_go_by_the_gap_of_their_turn_and_not_by_that_of_their_coming() {
        let pace = Arc::new(Pace::new());
        for _ in 0..20 {
            tokio::time::advance(SAME_BURST).await;
            pace.slow_down();
        }
        drop(pace.turn(Lane::Stranger, || true).await.unwrap());
        let waiting: Vec<_> = (0..limit::UNWRAPS_IN_FLIGHT_MAX)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move { drop(pace.turn(Lane::Stranger, || true).await.unwrap()) })
            })
            .collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        // The KMS bears more again.
        pace.spacing.lock().unwrap().gap = Duration::ZERO;
        for task in waiting {
            task.await.unwrap();
        }
        assert!(began.elapsed() <= LARGEST_GAP, "{:?}", began.elapsed());
    }
}
