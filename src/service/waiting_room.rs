//! Those who have come and have not said yet what they want: at most so many at once.
//!
//! Guarantees: whoever comes gets a place; when there is one too many, the one who has been silent for longest is asked to leave.
//! So a crowd of silent ones cannot keep out somebody who says at once what he wants. Refuses to know what they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// The room.
#[derive(Debug)]
pub struct WaitingRoom {
    places: usize,
    silent: Mutex<Silent>,
}

/// Whoever is in it, by the order of coming; to drop the sender is to ask him to leave.
#[derive(Debug, Default)]
struct Silent {
    came: u64,
    all: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in the room, until it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<WaitingRoom>,
    number: u64,
    asked: oneshot::Receiver<()>,
}

impl WaitingRoom {
    /// A room for so many.
    #[must_use]
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, silent: Mutex::default() })
    }

    /// A place, at the cost of the oldest one when all are taken.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Place {
        let (ask, asked) = oneshot::channel();
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = silent.came;
        silent.came = number.saturating_add(1);
        silent.all.insert(number, ask);
        if silent.all.len() > self.places {
            silent.all.pop_first();
        }
        Place { room: Arc::clone(self), number, asked }
    }
}

impl Place {
    /// Returns when the place is needed for somebody else.
    ///
    /// # Cancel safety
    /// May be asked again; not after it has returned.
    pub async fn is_needed(&mut self) {
        let _ = (&mut self.asked).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.silent.lock().unwrap_or_else(PoisonError::into_inner).all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn has_to_leave(place: &mut Place) -> bool {
        pin!(place.is_needed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn when_it_is_full_the_oldest_has_to_leave_and_a_place_that_is_given_up_is_free() {
        let room = WaitingRoom::new(2);
        let (mut first, second) = (room.enter(), room.enter());
        assert!(!has_to_leave(&mut first));
        drop(second);
        let mut third = room.enter();
        assert!(!has_to_leave(&mut first), "the second has gone");
        let mut fourth = room.enter();
        assert!(has_to_leave(&mut first), "three are too many");
        assert!(!has_to_leave(&mut third) && !has_to_leave(&mut fourth));
        drop(first);
        let _fifth = room.enter();
        assert!(has_to_leave(&mut third));
        assert!(!has_to_leave(&mut fourth));
    }
}
