//! Room for durable state, really allocated on the fastest tier's filesystem (R22).
//!
//! Others may fill that filesystem, and a checkpoint that cannot write its transaction ends in a read-only volume. So a file that holds
//! nothing keeps room: what state has to grow by is taken from it in parts, and writers are refused while half of it, enough
//! for what the log holds already, is left. When there is room again it is filled up again.

use crate::device::{BackingFile, Device, OpenMode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PATH: &str = "state.reserve";
/// It is given away, and filled up again, in this many parts.
const PARTS: u64 = 8;
const PART_BYTES_MIN: u64 = 64 << 10;

/// How much of the room is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReserveStatus {
    pub held_bytes: u64,
    /// What it should be; 0 where files cannot be allocated.
    pub whole_bytes: u64,
}

impl ReserveStatus {
    pub fn is_whole(&self) -> bool {
        self.held_bytes >= self.whole_bytes
    }
}

/// See the module's head.
pub struct Reserve {
    device: Arc<dyn Device>,
    file: Mutex<Option<Arc<dyn BackingFile>>>,
    held_bytes: AtomicU64,
    whole_bytes: AtomicU64,
}

/// Did this fail for want of room?
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Reserve {
    /// Takes over what an earlier run kept; keeps nothing more until [`Reserve::keep`].
    pub fn open(device: &Arc<dyn Device>) -> io::Result<Reserve> {
        let file = match device.open(PATH, OpenMode::default()) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let held = file.as_ref().map_or(Ok(0), |file| file.len())?;
        Ok(Reserve {
            device: device.clone(),
            file: Mutex::new(file),
            held_bytes: AtomicU64::new(held),
            whole_bytes: AtomicU64::new(0),
        })
    }

    pub fn status(&self) -> ReserveStatus {
        ReserveStatus {
            held_bytes: self.held_bytes.load(Ordering::Relaxed),
            whole_bytes: self.whole_bytes.load(Ordering::Relaxed),
        }
    }

    /// Too little is left to take more from writers.
    pub fn is_short(&self) -> bool {
        let ReserveStatus { held_bytes, whole_bytes } = self.status();
        held_bytes < whole_bytes / 2
    }

    fn part_bytes(whole: u64) -> u64 {
        (whole / PARTS).next_multiple_of(PART_BYTES_MIN).max(PART_BYTES_MIN)
    }

    /// Allocates what is missing of `whole_bytes`, as far as there is room. Errors: those of the device but a lack of room.
    pub fn keep(&self, whole_bytes: u64) -> io::Result<()> {
        let part = Reserve::part_bytes(whole_bytes);
        let whole = part * PARTS;
        let mut slot = self.file.lock();
        if self.status() == (ReserveStatus { held_bytes: whole, whole_bytes: whole }) {
            return Ok(());
        }
        match self.fill(&mut slot, whole, part) {
            Err(error) if is_full(&error) => {}
            // Then the room of the tier's `reserve` is all there is.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.whole_bytes.store(0, Ordering::Relaxed);
                return Ok(());
            }
            other => other?,
        }
        self.whole_bytes.store(whole, Ordering::Relaxed);
        Ok(())
    }

    fn fill(&self, slot: &mut Option<Arc<dyn BackingFile>>, whole: u64, part: u64) -> io::Result<()> {
        let file = match slot {
            Some(file) => file.clone(),
            None => slot.insert(self.device.open(PATH, OpenMode { create: true, ..OpenMode::default() })?).clone(),
        };
        let mut held = self.held_bytes.load(Ordering::Relaxed);
        if held > whole {
            file.set_len(whole)?;
            self.held_bytes.store(whole, Ordering::Relaxed);
        }
        while held < whole {
            let more = part.min(whole - held);
            // Asked first: to fail an allocation may cost the filesystem much.
            if self.device.space()?.available_bytes < more {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.allocate(held, more)?;
            held += more;
            self.held_bytes.store(held, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Does what state needs to have done, giving it room as long as there is some to give.
    pub fn with_room<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(error) if is_full(&error) && self.give() => {}
                other => return other,
            }
        }
    }

    /// Frees a part. False: nothing is left.
    fn give(&self) -> bool {
        let slot = self.file.lock();
        let ReserveStatus { held_bytes, whole_bytes } = self.status();
        let Some(file) = slot.as_ref().filter(|_| held_bytes > 0) else { return false };
        let left = held_bytes.saturating_sub(Reserve::part_bytes(whole_bytes));
        if file.set_len(left).is_err() {
            return false;
        }
        self.held_bytes.store(left, Ordering::Relaxed);
        true
    }
}
