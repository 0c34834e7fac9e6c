//! All files and where their blocks lie, as memory and durable state know it, without bringing a file into memory: there may be millions.

use super::blockmap::BlockMap;
use super::open::runs_of;
use super::{Run, Volume};
use crate::error::Result;
use crate::units::FileId;
use std::ops::ControlFlow;

/// Chunks of maps read at once, and whatever more the last file has: a file of 1 TiB has 32,768.
const CHUNKS_AT_ONCE: usize = 2048;

/// Hears where the blocks of a file lie.
pub type VisitMap<'v> = dyn FnMut(FileId, Vec<Run>) -> ControlFlow<()> + 'v;

impl Volume {
    /// All files that durable state or memory knows, in order.
    pub fn files(&self) -> Vec<FileId> {
        let mut ids = self.state.file_ids().unwrap_or_default();
        ids.extend(self.files.read().keys().copied());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Where the blocks of each file with a map lie, in order of files: of those in memory as they are when it is their turn, of any other as the last
    /// checkpoint has it, until `visit` breaks off. Who acts on it looks again: files change, come and go meanwhile. What is in the repository may be missing.
    pub fn for_each_block_map(&self, visit: &mut VisitMap<'_>) -> Result<()> {
        let mut in_memory: Vec<FileId> = self.files.read().keys().copied().collect();
        in_memory.sort_unstable();
        let mut in_memory = in_memory.into_iter().peekable();
        let mut from = Some(FileId(0));
        while let Some(first) = from {
            let (stored, next) = self.state.maps_from(first, CHUNKS_AT_ONCE)?;
            for (id, chunks) in stored {
                while let Some(earlier) = in_memory.next_if(|earlier| *earlier < id) {
                    if self.visit_in_memory(earlier, visit).is_some_and(|outcome| outcome.is_break()) {
                        return Ok(());
                    }
                }
                in_memory.next_if_eq(&id);
                let outcome = self.visit_in_memory(id, visit).unwrap_or_else(|| {
                    let mut map = BlockMap::default();
                    chunks.iter().for_each(|(index, bytes)| map.load_chunk(*index, bytes));
                    visit(id, runs_of(&map))
                });
                if outcome.is_break() {
                    return Ok(());
                }
            }
            from = next;
        }
        for id in in_memory {
            if self.visit_in_memory(id, visit).is_some_and(|outcome| outcome.is_break()) {
                break;
            }
        }
        Ok(())
    }

    /// None: it is not in memory.
    fn visit_in_memory(&self, id: FileId, visit: &mut VisitMap<'_>) -> Option<ControlFlow<()>> {
        let file = self.files.read().get(&id).cloned()?;
        let runs = self.block_map(&file);
        drop(file);
        Some(visit(id, runs))
    }
}
