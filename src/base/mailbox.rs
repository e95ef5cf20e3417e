//! The newest item per slot: putting never blocks and replaces what nobody took; takers are served in turn.
//!
//! One slot is one camera. A taken item comes with a `Ticket`; until that is dropped its slot is passed over. So at
//! most one frame per camera is in flight, which gives freshness, fairness, order per camera with any number of
//! workers, and back-pressure, without a return channel.
//!
//! Slots come and go: `Slots` opens another at any moment, and one whose writing end is dropped is used again once nothing
//! of it waits or is in flight.
//!
//! Several items may be taken at once: those that are there, without waiting for more. What is there is shared evenly
//! among the takers that have nothing to do, so that none of them stays idle while another has a full hand.

use std::sync::{Arc, Condvar, Mutex};

use crate::base::sync;

struct Slot<T> {
    item: Option<T>,
    in_flight: bool,
    /// It has a writing end.
    open: bool,
}

impl<T> Slot<T> {
    fn is_ready(&self) -> bool {
        self.item.is_some() && !self.in_flight
    }

    /// Nothing of it is anywhere any more.
    fn is_free(&self) -> bool {
        !self.open && self.item.is_none() && !self.in_flight
    }
}

struct State<T> {
    slots: Vec<Slot<T>>,
    next: usize,
    /// Writing ends, and those who may open more.
    putters: usize,
    /// Takers that wait for an item.
    idle: usize,
    closed: bool,
}

impl<T> State<T> {
    fn ready(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_ready()).count()
    }

    /// The next ready item, slots in turn, with its slot, which is in flight from now on.
    fn next_ready(&mut self) -> Option<(usize, T)> {
        let count = self.slots.len();
        let slot = (0..count).map(|step| (self.next + step) % count).find(|&slot| self.slots[slot].is_ready())?;
        let item = self.slots[slot].item.take()?;
        self.slots[slot].in_flight = true;
        self.next = (slot + 1) % count;
        Some((slot, item))
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        sync::lock(&self.state)
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

/// Opens slots. The mailbox closes when it and every writing end are dropped.
pub struct Slots<T> {
    shared: Arc<Shared<T>>,
}

/// The writing end of one slot.
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
    mailbox: Arc<dyn Release>,
    slot: Option<usize>,
}

/// A mailbox of whatever items.
trait Release: Send + Sync {
    fn release(&self, slots: &[usize]);
}

impl<T: Send> Release for Shared<T> {
    fn release(&self, slots: &[usize]) {
        let mut state = self.lock();
        slots.iter().for_each(|&slot| state.slots[slot].in_flight = false);
        drop(state);
        self.filled.notify_all();
    }
}

impl Ticket {
    /// Gives several back in one moment: who waits finds all their slots free, not only the first one's. Those of
    /// another mailbox than the first one's go back one by one.
    pub fn give_back(mut tickets: Vec<Self>) {
        let Some(mailbox) = tickets.first().map(|first| first.mailbox.clone()) else { return };
        let same = tickets.iter_mut().filter(|ticket| Arc::ptr_eq(&ticket.mailbox, &mailbox));
        let slots: Vec<usize> = same.filter_map(|ticket| ticket.slot.take()).collect();
        mailbox.release(&slots);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.mailbox.release(&[slot]);
        }
    }
}

/// A mailbox with `slots` slots: one `Putter` each, and the `Taker`.
pub fn mailbox<T: Send + 'static>(slots: usize) -> (Vec<Putter<T>>, Taker<T>) {
    let (opener, taker) = open();
    ((0..slots).map(|_| opener.open()).collect(), taker)
}

/// A mailbox without slots: who opens them, and the `Taker`.
pub fn open<T: Send + 'static>() -> (Slots<T>, Taker<T>) {
    let state = State { slots: Vec::new(), next: 0, putters: 1, idle: 0, closed: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new() });
    (Slots { shared: shared.clone() }, Taker { shared, alive: Arc::new(()) })
}

impl<T> Slots<T> {
    /// Another slot, there for as long as its writing end is.
    pub fn open(&self) -> Putter<T> {
        let mut state = self.shared.lock();
        state.putters += 1;
        let slot = state.slots.iter().position(Slot::is_free).unwrap_or(state.slots.len());
        let fresh = Slot { item: None, in_flight: false, open: true };
        match state.slots.get_mut(slot) {
            Some(free) => *free = fresh,
            None => state.slots.push(fresh),
        }
        Putter { shared: self.shared.clone(), slot }
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        self.shared.lock().putters -= 1;
        self.shared.filled.notify_all();
    }
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
        let mut state = self.shared.lock();
        state.putters -= 1;
        // What waits there is still taken.
        state.slots[self.slot].open = false;
        drop(state);
        self.shared.filled.notify_all();
    }
}

impl<T: Send + 'static> Taker<T> {
    /// How many slots there are at this moment.
    pub fn slots(&self) -> usize {
        self.shared.lock().slots.iter().filter(|slot| !slot.is_free()).count()
    }

    /// Waits for one item and takes with it what else is ready: slots in turn, those in flight left out, `most` at
    /// most (one at least), and no more than an even share where other takers are idle. `None` once every putter is
    /// gone and the slots are empty.
    pub fn take_up_to(&self, most: usize) -> Option<Vec<(T, Ticket)>> {
        let mut state = self.shared.lock();
        loop {
            let ready = state.ready();
            if ready > 0 {
                let share = ready.div_ceil(1 + state.idle).min(most.max(1));
                let taken = (0..share).map_while(|_| state.next_ready()).map(|(slot, item)| (item, self.ticket(slot))).collect();
                if share < ready {
                    // What is left is for the idle ones, who may have slept through its coming.
                    self.shared.filled.notify_all();
                }
                return Some(taken);
            }
            let empty = state.slots.iter().all(|slot| slot.item.is_none());
            if state.closed || (state.putters == 0 && empty) {
                return None;
            }
            state.idle += 1;
            state = sync::wait(&self.shared.filled, state);
            state.idle -= 1;
        }
    }

    fn ticket(&self, slot: usize) -> Ticket {
        Ticket { mailbox: self.shared.clone(), slot: Some(slot) }
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
    use proptest::collection::vec;
    use proptest::prelude::{Strategy as _, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn taken<T: Send + 'static>(taker: &Taker<T>) -> Option<T> {
        taker.take_up_to(1).map(|mut taken| taken.remove(0).0)
    }

    fn taken_at_once<T: Send + 'static>(taker: &Taker<T>, most: usize) -> Vec<T> {
        taker.take_up_to(most).unwrap().into_iter().map(|(item, _ticket)| item).collect()
    }

    #[test]
    fn a_slot_in_flight_waits_for_its_ticket() {
        let (putters, taker) = mailbox(2);
        putters[0].put("a1");
        let (first, ticket) = taker.take_up_to(1).unwrap().remove(0);
        putters[0].put("a2");
        putters[1].put("b1");
        assert_eq!(first, "a1");
        assert_eq!(taken_at_once(&taker, 2), ["b1"]);
        let other = taker.clone();
        let waiting = std::thread::spawn(move || taken(&other));
        drop(ticket);
        assert_eq!(waiting.join().unwrap(), Some("a2"));
    }

    #[test]
    fn what_is_ready_is_taken_at_once_up_to_the_bound_and_in_turn() {
        let (putters, taker) = mailbox(5);
        assert_eq!(taker.slots(), 5);
        putters[3].put(3);
        assert_eq!(taken_at_once(&taker, 4), [3]);
        let all = || putters.iter().enumerate().for_each(|(slot, putter)| assert_ne!(putter.put(slot), Put::Closed));
        all();
        assert_eq!(taken_at_once(&taker, 3), [4, 0, 1]);
        all();
        assert_eq!(taken_at_once(&taker, 3), [2, 3, 4]);
        assert_eq!(taken_at_once(&taker, 0), [0]);
        assert_eq!(taken_at_once(&taker, 9), [1]);
    }

    #[test]
    fn idle_takers_share_what_is_there() {
        let (_putters, taker) = mailbox(5);
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let taker = taker.clone();
                std::thread::spawn(move || taker.take_up_to(5).unwrap().len())
            })
            .collect();
        while taker.shared.lock().idle < 2 {
            std::thread::yield_now();
        }
        // All at once: with one `put` after the other the first taker would be off with what came first.
        taker.shared.lock().slots.iter_mut().for_each(|slot| slot.item = Some(()));
        taker.shared.filled.notify_one();
        let mut shares: Vec<usize> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        shares.sort_unstable();
        assert_eq!(shares, [2, 3]);
    }

    #[test]
    fn tickets_given_back_together_free_their_slots_in_one_moment() {
        let (putters, taker) = mailbox(4);
        let all = || putters.iter().enumerate().for_each(|(slot, putter)| assert_ne!(putter.put(slot), Put::Closed));
        all();
        let (_, mut tickets): (Vec<_>, Vec<_>) = taker.take_up_to(4).unwrap().into_iter().unzip();
        all();
        let other = mailbox(1);
        other.0[0].put(9);
        tickets.extend(other.1.take_up_to(1).unwrap().into_iter().map(|(_, ticket)| ticket));
        let waiting = std::thread::spawn({
            let taker = taker.clone();
            move || taken_at_once(&taker, 4)
        });
        while taker.shared.lock().idle < 1 {
            std::thread::yield_now();
        }
        Ticket::give_back(tickets);
        assert_eq!(waiting.join().unwrap(), [0, 1, 2, 3]);
        other.0[0].put(10);
        assert_eq!(taken(&other.1), Some(10));
        Ticket::give_back(Vec::new());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(usize),
        Take(usize),
        Release(usize),
    }

    proptest! {
        #[test]
        fn any_order_of_steps_keeps_the_rules(
            steps in vec(prop_oneof![(0..4_usize).prop_map(Step::Put), (1..6_usize).prop_map(Step::Take), (0..4_usize).prop_map(Step::Release)], 0..80)
        ) {
            let (putters, taker) = mailbox(4);
            let mut newest: [Option<usize>; 4] = [None; 4];
            let mut tickets: [Option<Ticket>; 4] = [const { None }; 4];
            let mut next = 0;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put(slot) => {
                        let before = newest[slot].replace(number);
                        let expected = if before.is_some() { Put::Replaced } else { Put::Stored };
                        prop_assert_eq!(putters[slot].put((slot, number)), expected);
                    }
                    Step::Take(most) => {
                        let ready = (0..4).map(|step| (next + step) % 4).filter(|&slot| newest[slot].is_some() && tickets[slot].is_none());
                        let due: Vec<usize> = ready.take(most).collect();
                        // With nothing ready it would wait.
                        let Some(last) = due.last() else { continue };
                        next = (last + 1) % 4;
                        let taken = taker.take_up_to(most).unwrap();
                        prop_assert_eq!(taken.iter().map(|((slot, _), _)| *slot).collect::<Vec<_>>(), due);
                        for ((slot, number), ticket) in taken {
                            prop_assert_eq!(newest[slot].take(), Some(number));
                            tickets[slot] = Some(ticket);
                        }
                    }
                    Step::Release(slot) => drop(tickets[slot].take()),
                }
            }
            drop((putters, tickets));
            let left: usize = std::iter::from_fn(|| taker.take_up_to(3)).map(|taken| taken.len()).sum();
            prop_assert_eq!(left, newest.iter().flatten().count());
        }
    }

    #[test]
    fn every_item_is_taken_once_by_many_takers() {
        let (putters, taker) = mailbox(3);
        let takers: Vec<_> = (0..4)
            .map(|number| {
                let taker = taker.clone();
                std::thread::spawn(move || {
                    let mut last = [0; 3];
                    while let Some(taken) = taker.take_up_to(1 + number % 3) {
                        for ((slot, value), _ticket) in taken {
                            assert!(value > last[slot], "an old item came after a newer one");
                            last[slot] = value;
                        }
                    }
                    last
                })
            })
            .collect();
        drop(taker);
        for value in 1..2000_usize {
            for (slot, putter) in putters.iter().enumerate() {
                putter.put((slot, value));
            }
        }
        drop(putters);
        let last: Vec<[usize; 3]> = takers.into_iter().map(|thread| thread.join().unwrap()).collect();
        for slot in 0..3 {
            assert_eq!(last.iter().map(|last| last[slot]).max(), Some(1999), "the newest item was lost");
        }
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
    fn slots_come_and_go_and_one_is_used_again_once_nothing_of_it_is_left() {
        let (slots, taker) = open();
        let (first, second) = (slots.open(), slots.open());
        first.put(1);
        let (_, ticket) = taker.take_up_to(1).unwrap().remove(0);
        first.put(2);
        drop(first);
        // One waits and one is in flight: the slot is not free, and what waits is passed over.
        let third = slots.open();
        assert_eq!(taker.slots(), 3);
        third.put(3);
        assert_eq!(taken(&taker), Some(3));
        drop(ticket);
        assert_eq!(taken(&taker), Some(2));
        let fourth = slots.open();
        fourth.put(4);
        assert_eq!((taker.slots(), taken(&taker)), (3, Some(4)));
        drop((second, third, fourth));
        assert_eq!(taker.slots(), 0);
        // Nobody writes, but somebody may come who does.
        let last = slots.open();
        last.put(5);
        drop((slots, last));
        assert_eq!((taken(&taker), taken(&taker)), (Some(5), None));
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
