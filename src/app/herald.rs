//! Who is told of events: the broker, the history, and whoever looks on.

use crate::console::Board;
use crate::mqtt::Publisher;
use crate::sink::history::{Entry, History};
use crate::types::Event;

/// Clones tell the same.
#[derive(Clone)]
pub(super) struct Herald {
    pub(super) publisher: Option<Publisher>,
    pub(super) history: Option<History>,
    pub(super) board: Option<Board>,
}

impl Herald {
    /// Tells all of them, in this order; waits for none.
    pub(super) fn tell(&self, event: &Event) {
        self.publisher.iter().for_each(|publisher| publisher.event(event));
        self.history.iter().for_each(|history| history.put(Entry::of(event)));
        self.board.iter().for_each(|board| board.event(event));
    }
}
