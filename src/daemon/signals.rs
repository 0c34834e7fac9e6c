//! SIGTERM and SIGINT as events: blocked everywhere, taken by one thread.

use super::served::Event;
use crate::error::{Error, Result};
use crossbeam_channel::Sender;
use nix::sys::signal::{SigSet, Signal};

/// To be called before any other thread exists, since threads inherit what is blocked.
pub(super) fn watch(events: Sender<Event>) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block().map_err(|errno| Error::io("blocking signals of", "the daemon", errno.into()))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while let Ok(signal) = set.wait() {
                tracing::info!("{signal}: stopping");
                if events.send(Event::Stop { force: false }).is_err() {
                    return;
                }
            }
        })
        .map(|_| ())
        .map_err(|error| Error::io("starting thread of", "signals", error))
}
