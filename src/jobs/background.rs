//! Threads that work beside everything else until they are told to stop.

use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::thread::JoinHandle;
use std::time::Duration;

/// Some threads with one end. They ask [`Background::is_stopping`] between two pieces of work, and wait with [`Background::sleep`].
pub struct Background {
    /// Dropped to stop the threads.
    running: Mutex<Option<Sender<Infallible>>>,
    stopping: Receiver<Infallible>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Default for Background {
    fn default() -> Background {
        let (running, stopping) = bounded(0);
        Background { running: Mutex::new(Some(running)), stopping, threads: Mutex::default() }
    }
}

impl Background {
    /// Starts a thread. Errors: the system has no more of them.
    pub fn spawn(&self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|source| Error::io("start thread", name, source))?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// Tells the threads to stop, and waits until they have.
    pub fn stop(&self) {
        self.running.lock().take();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!("thread {name} had panicked");
            }
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Sleeps, but not beyond a stop; true when there is one.
    pub fn sleep(&self, time: Duration) -> bool {
        self.stopping.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_stop_wakes_sleepers_and_waits_for_them() {
        let (background, ended) = (Arc::new(Background::default()), Arc::new(AtomicBool::new(false)));
        assert!(!background.is_stopping() && !background.sleep(Duration::from_millis(1)));
        let (sleeper, tell) = (Arc::clone(&background), Arc::clone(&ended));
        background
            .spawn("sleeper", move || {
                assert!(sleeper.sleep(Duration::MAX));
                tell.store(true, Ordering::Release);
            })
            .unwrap();
        background.spawn("panics", || panic!("on purpose")).unwrap();
        background.stop();
        assert!(ended.load(Ordering::Acquire) && background.is_stopping() && background.sleep(Duration::MAX));
        background.stop();
    }
}
