//! Reads that the caller makes itself: where all that is asked for lies in one piece on the fastest tier, whoever has an own way to wait for
//! devices (a ring, say) asks here what to read from where, reads it, and comes back.

use super::io::Piece;
use super::readers::OwnedReading;
use super::{File, Volume};
use crate::device::{BackingFile, clock};
use crate::error::{Error, Result};
use crate::units::{PAGE_BYTES, TierId};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

/// A read to be made. While it lives nothing is punched or used again that it may read.
pub struct DirectRead {
    volume: Arc<Volume>,
    object: Arc<dyn BackingFile>,
    file: Arc<File>,
    offset: u64,
    length: usize,
    began: Instant,
    _reading: OwnedReading,
}

impl Volume {
    /// What reading `size` bytes at `offset` comes to, if that is one read of whole pages from the fastest tier; else None, and [`Volume::read`] is the way.
    pub fn direct_read(self: &Arc<Volume>, file: &Arc<File>, offset: u64, size: usize) -> Option<DirectRead> {
        let reading = self.readers.enter_owned();
        let (length, pieces) = self.plan_read(file, offset, size);
        let [piece] = pieces.as_slice() else { return None };
        let whole_pages = offset.is_multiple_of(PAGE_BYTES) && (length as u64).is_multiple_of(PAGE_BYTES);
        if piece.piece != Piece::Base(TierId::FASTEST) || !whole_pages {
            return None;
        }
        // An object that is missing or cannot be opened is told of by the other way.
        let object = self.objects(TierId::FASTEST).ok()?.get(file.id(), false).ok()??;
        object.descriptor()?;
        let began = clock::monotonic_now();
        Some(DirectRead {
            volume: Arc::clone(self),
            object,
            file: Arc::clone(file),
            offset,
            length,
            began,
            _reading: reading,
        })
    }
}

impl DirectRead {
    /// What to read from, in the mode of direct I/O. None never comes: there was one when this was made.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.object.descriptor()
    }

    /// Where to begin, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes; whole pages.
    pub fn length(&self) -> usize {
        self.length
    }

    /// After the read: `outcome` is what the kernel said, `buf` what it filled. Answers how many bytes count; what the object has not is zeros. `WouldWait`: what the
    /// tier could not read may be elsewhere; [`Volume::read`], where it may wait, is the way.
    pub fn finish(self, buf: &mut [u8], outcome: io::Result<usize>) -> Result<usize> {
        let read = match outcome {
            Ok(read) if read == self.length => Ok(()),
            // Cut short by the end of the object, by a signal, or refused for a passing reason: what is final is found out by reading again.
            Ok(_) => self.again(buf),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => self.again(buf),
            Err(e) => {
                let error = self.volume.object_unreadable(TierId::FASTEST, self.file.id(), e);
                let may_rescue = self.volume.may_rescue(&self.file, TierId::FASTEST, self.offset, self.length);
                Err(if may_rescue { Error::WouldWait } else { error })
            }
        };
        read?;
        self.volume.note_miss(self.file.id(), TierId::FASTEST, self.offset, self.length, self.began);
        self.volume.note_read(self.file.id(), self.offset, self.length);
        Ok(self.length)
    }

    fn again(&self, buf: &mut [u8]) -> Result<()> {
        let wanted = buf.get_mut(..self.length).unwrap_or_default();
        self.volume.read_object(self.file.id(), TierId::FASTEST, self.offset, wanted)
    }
}
