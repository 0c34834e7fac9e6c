//! Space that a crash left behind: images that were written but never flipped to, and old ones that were not yet punched.
//!
//! No map names them, so nobody reads them, and nobody would free them before the same block is placed there again.

use super::file::Inner;
use super::{File, Volume};
use crate::device::BackingFile;
use crate::error::{Error, Result};
use crate::tier::objects::object_path;
use crate::units::{BlockNo, TierId};

impl Volume {
    /// Lists places that hold bytes though neither the map nor durable state names them: the next checkpoint frees them, as it does
    /// with vacated ones (R5). Returns how many blocks. Ends early when the volume is shut down.
    pub fn sweep_abandoned(&self) -> Result<u64> {
        let mut abandoned = 0;
        for (tier, objects) in (0u8..).map(TierId).zip(&self.objects) {
            for id in objects.list()? {
                if self.maintenance.is_stopping() {
                    return Ok(abandoned);
                }
                // The object of a file that was never issued is for `check` to name.
                let Ok(file) = self.file(id) else { continue };
                let Some(object) = objects.get(id, false)? else { continue };
                abandoned += self
                    .sweep_object(&file, tier, &*object)
                    .map_err(|error| Error::io("look for data in", objects.full(&object_path(id)), error))?;
            }
        }
        Ok(abandoned)
    }

    fn sweep_object(&self, file: &File, tier: TierId, object: &dyn BackingFile) -> std::io::Result<u64> {
        let (mut at, mut abandoned) = (0, 0);
        while let Some((from, to)) = object.next_data(at)? {
            let blocks = self.block_of(from).0..=self.block_of(to.saturating_sub(1)).0;
            abandoned += blocks.map(BlockNo).map(|block| u64::from(self.abandon(file, block, tier))).sum::<u64>();
            at = to;
        }
        Ok(abandoned)
    }

    /// Vacates a place if nothing names it. A block that somebody is at is passed over: it is being placed anew.
    fn abandon(&self, file: &File, block: BlockNo, tier: TierId) -> bool {
        let is_abandoned = |inner: &Inner| {
            !inner.removed && !inner.map.get(block).names(tier) && !self.is_vacated(file.id(), block, tier)
        };
        if !is_abandoned(&file.read()) {
            return false;
        }
        let Some(_claim) = self.claim(file.id(), block) else { return false };
        let inner = file.read();
        let abandoned = is_abandoned(&inner);
        if abandoned {
            self.vacate(file.id(), block, tier);
        }
        abandoned
    }
}
