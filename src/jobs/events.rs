//! What happens to a volume, told to whoever listens: `heatfs events`, monitors, scripts.
//!
//! Nobody who publishes ever waits for a listener. The latest [`REMEMBERED`] events are kept for those who come later; a listener says itself when it
//! has had enough, or could not keep up, and is forgotten.

use crate::device::clock::wall_now;
use crate::units::WallNs;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Events that one who comes later still hears of.
pub const REMEMBERED: usize = 256;

/// One event and when it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up from 1 since the daemon started.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub at_ns: WallNs,
    #[serde(flatten)]
    pub what: What,
}

/// In JSON the field `event` says which it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    Mounted {
        mount: String,
    },
    Stopping,
    HealthChanged {
        health: String,
        reasons: Vec<String>,
    },
    SnapshotStarted {
        reason: String,
    },
    SnapshotFinished {
        snapshot: String,
        reason: String,
        stored_bytes: u64,
        elapsed_ms: u64,
    },
    SnapshotFailed {
        reason: String,
        error: String,
    },
    /// Pages in the snapshot whose checksum PostgreSQL would not accept either.
    PagesDamaged {
        snapshot: String,
        pages: u64,
        first: String,
    },
    /// By the rules of `snapshot.keep`.
    SnapshotDeleted {
        snapshot: String,
    },
    PruneFinished {
        packs: u64,
        freed_bytes: u64,
    },
    PruneFailed {
        error: String,
    },
    Verified {
        packs: u64,
        read_bytes: u64,
    },
    VerifyFinding {
        damage: String,
    },
    VerifyFailed {
        error: String,
    },
    HookFailed {
        hook: String,
        error: String,
    },
}

/// Is told of each event, must not wait, and answers whether it wants the next one. None: is it still there?
pub type Listener = Box<dyn FnMut(Option<&Event>) -> bool + Send>;

#[derive(Default)]
struct Inside {
    number: u64,
    latest: VecDeque<Event>,
    listeners: Vec<Listener>,
}

/// Where events are published and listened to.
#[derive(Default)]
pub struct Events {
    inside: Mutex<Inside>,
}

impl Events {
    pub fn publish(&self, what: What) {
        let mut inside = self.inside.lock();
        inside.number += 1;
        let event = Event { number: inside.number, at_ns: wall_now(), what };
        inside.listeners.retain_mut(|listener| listener(Some(&event)));
        while inside.latest.len() >= REMEMBERED {
            inside.latest.pop_front();
        }
        inside.latest.push_back(event);
    }

    /// The latest events, oldest first.
    pub fn latest(&self) -> Vec<Event> {
        self.inside.lock().latest.iter().cloned().collect()
    }

    /// The latest events and, without a gap, all that follow, to this listener.
    pub fn follow(&self, listener: Listener) -> Vec<Event> {
        let mut inside = self.inside.lock();
        inside.listeners.push(listener);
        inside.latest.iter().cloned().collect()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        let mut inside = self.inside.lock();
        inside.listeners.retain_mut(|listener| listener(None));
        inside.listeners.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Events, REMEMBERED, What};
    use crate::units::WallNs;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn deleted(number: usize) -> What {
        What::SnapshotDeleted { snapshot: number.to_string() }
    }

    #[test]
    fn who_comes_later_hears_the_latest_and_whoever_has_enough_is_forgotten() {
        let events = Events::default();
        for number in 0..REMEMBERED + 10 {
            events.publish(deleted(number));
        }
        let heard = Arc::new(AtomicUsize::new(0));
        let hears = Arc::clone(&heard);
        let before = events.follow(Box::new(move |event| event.is_none() || hears.fetch_add(1, Ordering::Relaxed) < 2));
        assert_eq!(before.len(), REMEMBERED);
        assert_eq!((before[0].number, &before[0].what), (11, &deleted(10)));
        for number in 0..5 {
            events.publish(deleted(number));
        }
        assert_eq!(heard.load(Ordering::Relaxed), 3, "the third time it said no");
        assert_eq!(events.listeners(), 0);
        assert_eq!(events.latest().last().map(|event| event.number), Some(REMEMBERED as u64 + 15));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event { number: 7, at_ns: WallNs(5), what: What::PruneFinished { packs: 2, freed_bytes: 3 << 20 } };
        let text = serde_json::to_string(&event).expect("encodes");
        assert_eq!(text, r#"{"number":7,"at_ns":5,"event":"prune_finished","packs":2,"freed_bytes":3145728}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).expect("decodes"), event);
    }
}
