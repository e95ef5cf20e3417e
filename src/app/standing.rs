//! What is said of the daemon to who asks whether it is ready. Only what is known: a model that is loaded and a thread that runs; a
//! lost camera or broker does not make it less ready.

use std::sync::{Arc, OnceLock, Weak};

use crate::app::results::Results;
use crate::base::shutdown::Shutdown;
use crate::console::Ready;

/// Where the daemon stands. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Standing(Arc<OnceLock<Weak<()>>>);

impl Standing {
    /// Every stage is up.
    pub(super) fn runs(&self, results: &Results) {
        // Once, by the one who starts the stages.
        self.0.set(results.pulse()).ok();
    }

    /// For who asks.
    pub(super) fn ready(&self, shutdown: &Shutdown) -> Ready {
        let (running, shutdown) = (self.0.clone(), shutdown.clone());
        Arc::new(move || match running.get() {
            _ if shutdown.is_set() => Err("the daemon is stopping".to_owned()),
            None => Err("the model is being loaded".to_owned()),
            Some(pulse) if pulse.strong_count() == 0 => Err("no answer of the model is dealt with any more".to_owned()),
            Some(_) => Ok(()),
        })
    }
}
