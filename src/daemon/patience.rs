//! Asks the service manager to wait, again and again, while something runs that may take long on a slow device: the replay at the start, the
//! last coalescing at the end. Bounded, so that what hangs for good is killed in the end.

use super::service::{Notice, notify};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::time::Duration;

/// What each word asks for.
pub(super) const EXTENSION: Duration = Duration::from_secs(30);
/// Time between two.
const INTERVAL: Duration = Duration::from_secs(10);
/// Words before the manager may lose patience: an hour.
const WORDS_MAX: u32 = 360;

/// Asks until it is dropped.
pub(super) struct Patience {
    _until_dropped: Sender<()>,
}

impl Patience {
    pub(super) fn ask() -> Patience {
        let (sender, dropped) = bounded::<()>(0);
        let body = move || {
            for _ in 0..WORDS_MAX {
                notify(&Notice::ExtendTimeout(EXTENSION));
                notify(&Notice::Watchdog);
                if dropped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("patience".to_owned()).spawn(body) {
            tracing::warn!("the service manager is not asked for patience: {error}");
        }
        Patience { _until_dropped: sender }
    }
}
