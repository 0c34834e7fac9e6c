//! What the control interface may see and ask of a running daemon.

use super::settings::Settings;
use crate::device::clock::monotonic_now;
use crate::error::Result;
use crate::jobs::cadence::{Keeper, Subject};
use crate::jobs::events::{Events, What};
use crate::jobs::hydrate::Hydrator;
use crate::jobs::log_archive::LogArchive;
use crate::jobs::migrate::Mover;
use crate::namespace::Namespace;
use crate::units::FileId;
use crate::volume::Volume;
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the main thread is woken by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// SIGTERM, SIGINT, or a request for them.
    Stop { force: bool },
    /// The kernel ended the session: somebody unmounted the volume.
    Unmounted,
}

/// A volume that is being served.
pub struct Served {
    pub settings: Settings,
    pub volume: Arc<Volume>,
    pub namespace: Arc<Namespace>,
    pub mover: Arc<Mover>,
    pub keeper: Arc<Keeper>,
    /// Of a clone, until it is told by a new start that nothing is left in the repository.
    pub hydrator: Option<Arc<Hydrator>>,
    /// Where full segments of the log are kept, if they are.
    pub log_archive: Option<Arc<LogArchive>>,
    started: Instant,
    events: Sender<Event>,
    stopping: Mutex<Option<String>>,
}

impl Served {
    pub(super) fn new(
        settings: Settings,
        volume: Arc<Volume>,
        namespace: Arc<Namespace>,
        mover: Arc<Mover>,
        hydrator: Option<Arc<Hydrator>>,
        log_archive: Option<Arc<LogArchive>>,
        events: Sender<Event>,
    ) -> Served {
        let keeper = Keeper::new(
            settings.snapshot.clone(),
            Subject { name: settings.name.clone(), mount: settings.mount_path() },
            Arc::clone(&volume),
            Box::new(Arc::clone(&namespace)),
            Arc::new(Events::default()),
        );
        let (started, stopping) = (monotonic_now(), Mutex::new(None));
        Served { settings, volume, namespace, mover, keeper, hydrator, log_archive, started, events, stopping }
    }

    /// Tells whoever listens what happened.
    pub fn publish(&self, what: What) {
        self.keeper.events.publish(what);
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Do the engine's locks come free within this time? Asked on a thread of its own, since the asker must not hang with them.
    pub(super) fn engine_answers(&self, within: Duration) -> bool {
        let volume = Arc::clone(&self.volume);
        let (answer, answered) = crossbeam_channel::bounded(1);
        let asked = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            // An id that is never issued: takes the locks of the table of files and of the state, and calls no device.
            let refused = volume.file(FileId(0)).is_err();
            answer.send(refused).ok()
        });
        asked.is_ok() && answered.recv_timeout(within).is_ok()
    }

    /// Begins to stop; answers at once. With `force` the mount is detached even while it is busy.
    pub fn ask_to_stop(&self, force: bool) {
        // The channel is unbounded and its receiver lives as long as the process serves.
        let _ = self.events.send(Event::Stop { force });
    }

    /// What stopping waits for; None while nobody has asked for it.
    pub fn stopping(&self) -> Option<String> {
        self.stopping.lock().clone()
    }

    pub(super) fn set_stopping(&self, waiting_for: String) {
        *self.stopping.lock() = Some(waiting_for);
    }
}

/// The control interface, as the daemon needs it. It lies in a room above, so whoever runs the daemon brings it.
pub trait Control: Send {
    /// Does its thread answer within this time?
    fn is_alive(&self, within: Duration) -> bool;
}

/// Starts the control interface; it ends when what is returned is dropped.
pub type StartControl = fn(Arc<Served>) -> Result<Box<dyn Control>>;
