//! Blocks that take several device reads where one would do, because their records still lie in the log, each where it was written.
//!
//! The data path only says so ([`super::AccessObserver::on_fragments`]); whether a block's records are to go to its place before the log's fill asks for it is policy.

use super::blockmap::Home;
use super::io::{Piece, PlannedPiece};
use super::{File, Volume};
use crate::error::Result;
use crate::units::{BlockNo, FileId, TierId};
use std::collections::BTreeSet;

/// Pieces from which a read counts as fragmented: two are a page that lies in the log, and the rest.
const PIECES_MIN: usize = 3;

impl Volume {
    /// Tells the observer of the blocks of a read, and how many of their records were read one by one.
    pub(super) fn note_fragments(&self, file: &File, pieces: &[PlannedPiece]) {
        if pieces.len() < PIECES_MIN || file.is_log_file() {
            return;
        }
        let observer = self.observer.read();
        let Some(observer) = observer.as_ref() else { return };
        let in_log = |piece: &&PlannedPiece| matches!(piece.piece, Piece::Log(_));
        let mut blocks = pieces.iter().filter(in_log).map(|piece| self.block_of(piece.start)).peekable();
        while let Some(block) = blocks.next() {
            let mut records = 1u16;
            while blocks.next_if_eq(&block).is_some() {
                records = records.saturating_add(1);
            }
            // One is read as soon there as at its place.
            if records > 1 {
                observer.on_fragments(file.id(), block, records);
            }
        }
    }

    /// Would a block's records be read sooner from its place than from the log? Not from a slow tier's, nor if there is only a repository to begin from. False
    /// while a snapshot is in the making, too: coalescing would make it save what it needs of the base.
    pub fn gains_by_coalescing(&self, file: FileId, block: BlockNo) -> bool {
        // A file with records is in memory; one that is gone must not be made again by looking for it.
        let Some(file) = self.files.read().get(&file).cloned() else { return false };
        let home = file.read().map.get(block).home;
        let would_be_fast = match home {
            Home::Tier(tier) => tier == TierId::FASTEST,
            Home::Repository => false,
            Home::Hole | Home::Promised => self.tiers_for_first_image(&file, block).first() == Some(&TierId::FASTEST),
        };
        would_be_fast && !self.marks.any()
    }

    /// Coalesces the blocks now; returns how many it did.
    pub fn coalesce_early(&self, blocks: &BTreeSet<(FileId, BlockNo)>) -> Result<u64> {
        let later = self.coalesce_blocks(blocks.iter().copied().collect(), u64::MAX, false)?;
        Ok((blocks.len() as u64).saturating_sub(later))
    }
}
