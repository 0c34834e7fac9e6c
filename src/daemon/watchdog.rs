//! Word to the service manager's watchdog while our own threads make progress. Never a test of devices: a disk that
//! hangs for a minute must not make the manager kill the one process that can wait for it.

use super::Control;
use super::served::Served;
use super::service::{Notice, notify, watchdog_interval};
use std::time::Duration;

/// How long a thread may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the main thread wakes when nobody watches.
const UNWATCHED: Duration = Duration::from_secs(3600);

pub(super) struct Watchdog {
    interval: Option<Duration>,
}

impl Watchdog {
    pub(super) fn new() -> Watchdog {
        Watchdog { interval: watchdog_interval().map(|limit| limit / 3) }
    }

    /// How often [`Watchdog::tell`] wants to be called.
    pub(super) fn interval(&self) -> Duration {
        self.interval.unwrap_or(UNWATCHED)
    }

    /// Asks the threads, and tells the manager if they answer. That this is called shows that the main thread lives.
    pub(super) fn tell(&self, served: &Served, control: &dyn Control) {
        if self.interval.is_none() {
            return;
        }
        if !control.is_alive(ANSWER) {
            tracing::error!("watchdog: the control thread does not answer");
        } else if !served.engine_answers(ANSWER) {
            tracing::error!("watchdog: the engine's locks are held");
        } else {
            notify(&Notice::Watchdog);
        }
    }
}
