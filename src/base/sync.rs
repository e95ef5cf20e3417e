//! Locks that are not spoilt by a panic. One that happens under a lock costs a frame, a batch or a reconnect, as any other does;
//! whoever comes next finds what is behind the lock as it was left, and goes on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks `mutex`.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condvar` until someone notifies it, or for no reason.
pub fn wait<'g, T>(condvar: &Condvar, guard: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// As `wait`, for `most` at most.
pub fn wait_timeout<'g, T>(condvar: &Condvar, guard: MutexGuard<'g, T>, most: Duration) -> MutexGuard<'g, T> {
    condvar.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_under_a_lock_spoils_nothing() {
        let shared = Arc::new((Mutex::new(1), Condvar::new()));
        let other = shared.clone();
        let panicked = std::thread::spawn(move || {
            let mut guard = lock(&other.0);
            *guard = 2;
            panic!("under the lock");
        });
        assert!(panicked.join().is_err() && shared.0.is_poisoned());
        assert_eq!(*wait_timeout(&shared.1, lock(&shared.0), Duration::from_millis(1)), 2);
    }
}
