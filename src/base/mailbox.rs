//! The newest item per slot: putting never blocks and replaces what nobody took; takers are served in turn.
//!
//! One slot is one camera. A taken item comes with a `Ticket`; until that is dropped its slot is passed over. So at
//! most one frame per camera is in flight, which gives freshness, fairness, order per camera with any number of
//! workers, and back-pressure, without a return channel.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

struct Slot<T> {
    item: Option<T>,
    in_flight: bool,
}

struct State<T> {
    slots: Vec<Slot<T>>,
    next: usize,
    putters: usize,
    closed: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a `put` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// The slot was empty.
    Stored,
    /// The slot held an item nobody had taken; that one is dropped.
    Replaced,
    /// Nobody takes any more.
    Closed,
}

/// The writing end of one slot; the mailbox closes when every writing end is dropped.
pub struct Putter<T> {
    shared: Arc<Shared<T>>,
    slot: usize,
}

/// The reading end; clones share the slots. Dropping the last one closes the mailbox.
pub struct Taker<T> {
    shared: Arc<Shared<T>>,
    alive: Arc<()>,
}

/// The right to be the one item of its slot in flight; dropping it lets the next one go.
pub struct Ticket {
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// A mailbox with `slots` slots: one `Putter` each, and the `Taker`.
pub fn mailbox<T: Send + 'static>(slots: usize) -> (Vec<Putter<T>>, Taker<T>) {
    let state =
        State { slots: (0..slots).map(|_| Slot { item: None, in_flight: false }).collect(), next: 0, putters: slots, closed: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new() });
    let putters = (0..slots).map(|slot| Putter { shared: shared.clone(), slot }).collect();
    (putters, Taker { shared, alive: Arc::new(()) })
}

impl<T> Putter<T> {
    /// Puts `item` into the slot, in place of one that waits there.
    pub fn put(&self, item: T) -> Put {
        let mut state = self.shared.lock();
        if state.closed {
            return Put::Closed;
        }
        let before = state.slots[self.slot].item.replace(item);
        drop(state);
        self.shared.filled.notify_one();
        if before.is_some() { Put::Replaced } else { Put::Stored }
    }
}

impl<T> Drop for Putter<T> {
    fn drop(&mut self) {
        self.shared.lock().putters -= 1;
        self.shared.filled.notify_all();
    }
}

impl<T: Send + 'static> Taker<T> {
    /// Waits for an item, slots in turn, those in flight left out; `None` once every putter is gone and the slots are empty.
    pub fn take(&self) -> Option<(T, Ticket)> {
        let mut state = self.shared.lock();
        loop {
            let count = state.slots.len();
            let start = state.next;
            let found = (0..count).map(|step| (start + step) % count).find(|&slot| {
                let Slot { item, in_flight } = &state.slots[slot];
                item.is_some() && !in_flight
            });
            if let Some(slot) = found
                && let Some(item) = state.slots[slot].item.take()
            {
                state.next = (slot + 1) % count;
                state.slots[slot].in_flight = true;
                return Some((item, self.ticket(slot)));
            }
            let empty = state.slots.iter().all(|slot| slot.item.is_none());
            if state.closed || (state.putters == 0 && empty) {
                return None;
            }
            state = self.shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ticket(&self, slot: usize) -> Ticket {
        let shared = self.shared.clone();
        let release = move || {
            shared.lock().slots[slot].in_flight = false;
            shared.filled.notify_all();
        };
        Ticket { release: Some(Box::new(release)) }
    }
}

impl<T> Clone for Taker<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), alive: self.alive.clone() }
    }
}

impl<T> Drop for Taker<T> {
    fn drop(&mut self) {
        if Arc::strong_count(&self.alive) == 1 {
            let mut state = self.shared.lock();
            state.closed = true;
            state.slots.iter_mut().for_each(|slot| slot.item = None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<T: Send + 'static>(taker: &Taker<T>) -> Option<T> {
        taker.take().map(|(item, _ticket)| item)
    }

    #[test]
    fn a_slot_in_flight_waits_for_its_ticket() {
        let (putters, taker) = mailbox(2);
        putters[0].put("a1");
        let (first, ticket) = taker.take().unwrap();
        putters[0].put("a2");
        putters[1].put("b1");
        assert_eq!(first, "a1");
        assert_eq!(taken(&taker), Some("b1"));
        let other = taker.clone();
        let waiting = std::thread::spawn(move || taken(&other));
        drop(ticket);
        assert_eq!(waiting.join().unwrap(), Some("a2"));
    }

    #[test]
    fn the_newest_replaces_the_waiting_one() {
        let (putters, taker) = mailbox(1);
        assert_eq!(putters[0].put(1), Put::Stored);
        assert_eq!(putters[0].put(2), Put::Replaced);
        assert_eq!(taken(&taker), Some(2));
    }

    #[test]
    fn slots_are_served_in_turn() {
        let (putters, taker) = mailbox(3);
        let mut order = Vec::new();
        for _ in 0..6 {
            putters.iter().enumerate().for_each(|(slot, putter)| assert_ne!(putter.put(slot), Put::Closed));
            order.push(taken(&taker).unwrap());
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn it_ends_empty_when_every_putter_is_gone() {
        let (putters, taker) = mailbox(2);
        putters[1].put(7);
        drop(putters);
        assert_eq!(taken(&taker), Some(7));
        assert_eq!(taken(&taker), None);
    }

    #[test]
    fn putting_after_the_last_taker_says_closed() {
        let (putters, taker) = mailbox(1);
        drop(taker.clone());
        assert_eq!(putters[0].put(1), Put::Stored);
        drop(taker);
        assert_eq!(putters[0].put(2), Put::Closed);
    }
}
