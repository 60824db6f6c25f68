//! Who may ask the KMS next, when more want to than it bears: lanes that take turns, so that a crowd waits for itself.
//!
//! Guarantees: a data key that has opened before, and a key_id under which something has opened, each have a lane of their own;
//! all the rest share one, so that naming many key_ids wins nothing. Within a lane: first come, first served. When too many wait,
//! the oldest of the longest lane is refused. SECURITY: whoever writes to etcd chooses what is asked about (docs/threat-model.md).

use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Unwraps that wait for their turn at most.
pub const WAITING_MAX: usize = 2048;
/// Pairs of KEK and key_id that have a lane of their own at most; a cluster has a handful.
const PROVEN_MAX: usize = 64;

/// Where an unwrap waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// For data keys that have opened before.
    Known,
    /// For a KEK and key_id under which something has opened.
    Proven(u64),
    /// For all others.
    Stranger,
}

/// The pairs of KEK and key_id under which something has opened, the latest of them.
#[derive(Debug, Default)]
pub struct Proven {
    hasher: RandomState,
    pairs: Mutex<VecDeque<u64>>,
}

impl Proven {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A value with this key_id has opened under that KEK: both were authenticated.
    pub fn note(&self, kek: &KekRef, key_id: &KeyId) {
        let pair = self.hasher.hash_one((kek, key_id.as_str()));
        let mut pairs = self.lock();
        if !pairs.contains(&pair) {
            if pairs.len() >= PROVEN_MAX {
                pairs.pop_front();
            }
            pairs.push_back(pair);
        }
    }

    /// The lane of a data key that has not opened before.
    #[must_use]
    pub fn lane(&self, kek: &KekRef, key_id: &KeyId) -> Lane {
        let pair = self.hasher.hash_one((kek, key_id.as_str()));
        if self.lock().contains(&pair) { Lane::Proven(pair) } else { Lane::Stranger }
    }
}

/// A door that one may stand in at a time, and those who wait for it.
#[derive(Debug, Default)]
pub struct Queue(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_taken: bool,
    tickets: u64,
    waiting: usize,
    /// Who waits in each lane, by ticket: the oldest first.
    lanes: HashMap<Lane, BTreeMap<u64, oneshot::Sender<Door>>>,
    /// The lanes in which somebody waits, in the order in which they have their turns.
    turns: VecDeque<Lane>,
}

impl Inner {
    fn next(&mut self) -> Option<oneshot::Sender<Door>> {
        let lane = self.turns.pop_front()?;
        let line = self.lanes.get_mut(&lane)?;
        let next = line.pop_first().map(|(_, caller)| caller);
        if line.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        self.waiting = self.waiting.saturating_sub(1);
        next
    }

    /// The one to be refused, when too many wait.
    fn too_many(&mut self) -> Option<oneshot::Sender<Door>> {
        if self.waiting <= WAITING_MAX {
            return None;
        }
        // It goes on having more than one: there are fewer lanes than may wait.
        let longest = self.lanes.values_mut().max_by_key(|line| line.len())?;
        self.waiting = self.waiting.saturating_sub(1);
        longest.pop_first().map(|(_, caller)| caller)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for [`Queue::door`]: in a lane, who has had one longer goes first.
    pub fn ticket(&self) -> u64 {
        let mut inner = self.lock();
        inner.tickets = inner.tickets.wrapping_add(1);
        inner.tickets
    }

    /// The door, when nobody stands in it.
    pub fn free_door(self: &Arc<Self>) -> Option<Door> {
        let mut inner = self.lock();
        (!std::mem::replace(&mut inner.is_taken, true)).then(|| Door(Some(Arc::clone(self))))
    }

    /// Waits for the door; `None` when too many wait. A ticket is waited with once at a time.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place up.
    pub async fn door(self: &Arc<Self>, lane: Lane, ticket: u64) -> Option<Door> {
        let (refused, called) = {
            let mut inner = self.lock();
            if !inner.is_taken {
                inner.is_taken = true;
                return Some(Door(Some(Arc::clone(self))));
            }
            let (caller, called) = oneshot::channel();
            let line = inner.lanes.entry(lane).or_default();
            let is_first = line.is_empty();
            line.insert(ticket, caller);
            if is_first {
                inner.turns.push_back(lane);
            }
            inner.waiting = inner.waiting.saturating_add(1);
            (inner.too_many(), called)
        };
        drop(refused);
        called.await.ok()
    }

    /// Lets the next one in, or nobody.
    fn pass_on(self: Arc<Self>) {
        let mut door = Door(Some(Arc::clone(&self)));
        loop {
            let next = {
                let mut inner = self.lock();
                let next = inner.next();
                inner.is_taken = next.is_some();
                next
            };
            let Some(caller) = next else {
                // Nobody waits: the door is open, and not to be passed on once more.
                door.0 = None;
                return;
            };
            match caller.send(door) {
                Ok(()) => return,
                // It has gone; the same door, for the next one.
                Err(same) => door = same,
            }
        }
    }
}

/// Whoever holds it stands in the door; it is passed on when it is dropped.
#[derive(Debug)]
pub struct Door(Option<Arc<Queue>>);

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_core::kek_ref::KekKind;
    use std::task::{Context, Poll, Waker};

    type Waiting = std::pin::Pin<Box<dyn Future<Output = Option<Door>>>>;

    /// Somebody who waits in this lane.
    fn comes(queue: &Arc<Queue>, lane: Lane) -> Waiting {
        let queue = Arc::clone(queue);
        let ticket = queue.ticket();
        let mut waiting: Waiting = Box::pin(async move { queue.door(lane, ticket).await });
        assert!(look(&mut waiting).is_pending(), "the door is free");
        waiting
    }

    fn look(waiting: &mut Waiting) -> Poll<Option<Door>> {
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Opens the door again and again; who came through, in order.
    fn order(mut door: Option<Door>, mut crowd: Vec<(String, Waiting)>) -> Vec<String> {
        let mut order = Vec::new();
        while let Some(held) = door.take() {
            drop(held);
            crowd.retain_mut(|(name, waiting)| match look(waiting) {
                Poll::Ready(Some(held)) => {
                    order.push(name.clone());
                    door = Some(held);
                    false
                }
                Poll::Ready(None) => panic!("{name} was refused"),
                Poll::Pending => true,
            });
        }
        assert!(crowd.is_empty());
        order
    }

    async fn taken() -> (Arc<Queue>, Option<Door>) {
        let queue = Arc::new(Queue::default());
        let door = queue.door(Lane::Stranger, queue.ticket()).await;
        (queue, door)
    }

    #[tokio::test]
    async fn lanes_take_turns_and_in_a_lane_the_first_to_come_is_the_first_to_go() {
        let (queue, door) = taken().await;
        let mut crowd: Vec<_> = (1..=4).map(|n| (format!("stranger {n}"), comes(&queue, Lane::Stranger))).collect();
        crowd.push(("proven".to_owned(), comes(&queue, Lane::Proven(1))));
        crowd.push(("known 1".to_owned(), comes(&queue, Lane::Known)));
        crowd.push(("known 2".to_owned(), comes(&queue, Lane::Known)));
        let order = order(door, crowd);
        let expected = ["stranger 1", "proven", "known 1", "stranger 2", "known 2", "stranger 3", "stranger 4"];
        assert_eq!(order, expected);
        assert!(queue.door(Lane::Known, 0).await.is_some(), "free again");
    }

    #[tokio::test]
    async fn whoever_goes_away_keeps_nobody_waiting_even_when_it_was_just_called() {
        let (queue, door) = taken().await;
        let (gone, called, last) =
            (comes(&queue, Lane::Known), comes(&queue, Lane::Known), comes(&queue, Lane::Stranger));
        drop(gone);
        drop(door);
        drop(called);
        assert_eq!(order(Some(last.await.unwrap()), Vec::new()), [""; 0]);
        assert!(queue.door(Lane::Known, 0).await.is_some());
    }

    #[tokio::test]
    async fn when_too_many_wait_the_oldest_of_the_longest_lane_is_refused() {
        let (queue, _door) = taken().await;
        let mut proven = comes(&queue, Lane::Proven(7));
        let mut crowd: Vec<_> = (1..WAITING_MAX).map(|_| comes(&queue, Lane::Stranger)).collect();
        assert!(crowd.iter_mut().all(|waiting| look(waiting).is_pending()));
        let mut late = comes(&queue, Lane::Proven(7));
        assert!(matches!(look(&mut crowd[0]), Poll::Ready(None)));
        assert!(crowd[1..].iter_mut().all(|waiting| look(waiting).is_pending()));
        assert!(look(&mut proven).is_pending() && look(&mut late).is_pending());
    }

    #[test]
    fn what_has_opened_has_a_lane_of_its_own_and_no_number_of_names_makes_more() {
        let proven = Proven::default();
        let kek = |name: &str| KekRef::new(KekKind::LOCAL, name).unwrap();
        let id = |name: &str| KeyId::parse(name.to_owned()).unwrap();
        assert_eq!(proven.lane(&kek("k"), &id("1")), Lane::Stranger);
        proven.note(&kek("k"), &id("1"));
        proven.note(&kek("k"), &id("2"));
        let lanes = [proven.lane(&kek("k"), &id("1")), proven.lane(&kek("k"), &id("2"))];
        assert!(lanes.iter().all(|lane| matches!(lane, Lane::Proven(_))) && lanes[0] != lanes[1]);
        assert_eq!(proven.lane(&kek("other"), &id("1")), Lane::Stranger);
        for n in 0..1000 {
            proven.note(&kek("k"), &id(&n.to_string()));
        }
        assert_eq!(proven.lock().len(), PROVEN_MAX);
    }
}
