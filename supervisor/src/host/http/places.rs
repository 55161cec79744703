//! The places for the connections of one site, and who loses theirs when all are taken: who has been silent longest, and
//! before all others one who has not yet said anything that was let in. Reads no byte and no clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Its present turn is not the client's.
const BEING_ANSWERED: u64 = u64::MAX;

/// All places of a site.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    taken: Mutex<HashMap<u64, Arc<State>>>,
    /// Counts whatever clients do: an order, not a time.
    steps: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// The step after which nothing came from the client, or [`BEING_ANSWERED`].
    silent_since: AtomicU64,
    /// It has asked something that it may.
    is_known: AtomicBool,
    leave: Notify,
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    id: u64,
    state: Arc<State>,
}

impl Places {
    /// So many.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default(), steps: AtomicU64::new(0) })
    }

    /// A place for one more, if need be that of one who is silent; none when everybody is being answered.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken();
        if taken.len() >= self.limit {
            let silent = taken.iter().filter_map(|(id, state)| Some((state.patience()?, *id)));
            let (_, longest) = silent.min()?;
            if let Some(state) = taken.remove(&longest) {
                state.leave.notify_one();
            }
        }
        let id = self.step();
        let state = Arc::new(State {
            silent_since: AtomicU64::new(id),
            is_known: AtomicBool::new(false),
            leave: Notify::new(),
        });
        taken.insert(id, Arc::clone(&state));
        drop(taken);
        Some(Place { places: Arc::clone(self), id, state })
    }

    fn step(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whoever has the smallest goes first; none for who is being answered.
    fn patience(&self) -> Option<(bool, u64)> {
        let since = self.silent_since.load(Ordering::Relaxed);
        (since != BEING_ANSWERED).then(|| (self.is_known.load(Ordering::Relaxed), since))
    }
}

impl Place {
    /// The client has said something, and it is still its turn.
    pub fn heard(&self) {
        self.state.silent_since.store(self.places.step(), Ordering::Relaxed);
    }

    /// The client may ask what it has asked.
    pub fn known(&self) {
        self.state.is_known.store(true, Ordering::Relaxed);
    }

    /// It is our turn: the place is the client's until [`heard`](Self::heard).
    pub fn answering(&self) {
        self.state.silent_since.store(BEING_ANSWERED, Ordering::Relaxed);
    }

    /// Waits until another needs the place.
    pub async fn lost(&self) {
        self.state.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn has_lost(place: &Place) -> bool {
        pin!(place.lost()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_is_silent_longest_makes_room() {
        let places = Places::new(3);
        let [first, second, third] = std::array::from_fn(|_| places.take().unwrap());
        first.heard();
        second.answering();
        let fourth = places.take().unwrap();
        assert_eq!([&first, &second, &third, &fourth].map(has_lost), [false, false, true, false]);
        drop(third);
        let fifth = places.take().unwrap();
        assert_eq!([&first, &second, &fourth, &fifth].map(has_lost), [true, false, false, false]);
    }

    #[test]
    fn who_may_ask_stays_longer_than_strangers() {
        let places = Places::new(2);
        let known = places.take().unwrap();
        known.known();
        let strangers: Vec<_> = (0..5).map(|_| places.take().unwrap()).collect();
        assert!(!has_lost(&known));
        assert_eq!(strangers.iter().filter(|stranger| has_lost(stranger)).count(), 4);
    }

    #[test]
    fn who_is_being_answered_stays_and_places_come_back() {
        let places = Places::new(2);
        let busy: Vec<_> = (0..2).map(|_| places.take().unwrap()).collect();
        busy.iter().for_each(Place::answering);
        assert!(places.take().is_none());
        drop(busy);
        let again: Vec<_> = (0..2).filter_map(|_| places.take()).collect();
        assert!(again.len() == 2 && !again.iter().any(has_lost));
    }
}
