//! Counters of 256 neighbouring blocks.

/// Blocks per chunk: the granularity at which memory is taken and given back.
pub const CHUNK_BLOCKS: usize = 256;
/// [`CHUNK_BLOCKS`] for arithmetic on block numbers.
pub(super) const CHUNK_BLOCKS_U64: u64 = 256;

/// 2 KiB: eight bytes a block, so a TiB of 64 KiB blocks that were all touched lately takes 128 MiB.
pub(super) struct Chunk {
    /// Decayed sum of weighted accesses of past epochs.
    pub(super) past: [f32; CHUNK_BLOCKS],
    /// Read misses of the running epoch.
    reads: [u16; CHUNK_BLOCKS],
    /// Writes of the running epoch.
    writes: [u16; CHUNK_BLOCKS],
}

impl Chunk {
    pub(super) fn new() -> Box<Chunk> {
        Box::new(Chunk { past: [0.0; CHUNK_BLOCKS], reads: [0; CHUNK_BLOCKS], writes: [0; CHUNK_BLOCKS] })
    }

    /// One more read miss of a block; returns how many it now has in this epoch.
    pub(super) fn count_read(&mut self, index: usize) {
        if let Some(count) = self.reads.get_mut(index) {
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn count_write(&mut self, index: usize) {
        if let Some(count) = self.writes.get_mut(index) {
            *count = count.saturating_add(1);
        }
    }

    /// Reads and writes of the running epoch.
    pub(super) fn counts(&self, index: usize) -> (u16, u16) {
        let of = |counts: &[u16]| counts.get(index).copied().unwrap_or(0);
        (of(&self.reads), of(&self.writes))
    }

    /// Weighted accesses of the running epoch.
    pub(super) fn present(&self, index: usize, write_weight: f32) -> f32 {
        let reads = self.reads.get(index).copied().unwrap_or(0);
        let writes = self.writes.get(index).copied().unwrap_or(0);
        f32::from(reads) + write_weight * f32::from(writes)
    }

    /// Ends an epoch; returns the sum over the chunk's blocks.
    pub(super) fn roll(&mut self, decay: f32, write_weight: f32) -> f32 {
        let mut sum = 0.0;
        for index in 0..CHUNK_BLOCKS {
            let value = self.past[index] * decay + self.present(index, write_weight);
            // Below this a block is as cold as one never touched; zero keeps runs of cold blocks together.
            self.past[index] = if value < COLD { 0.0 } else { value };
            sum += self.past[index];
        }
        self.reads = [0; CHUNK_BLOCKS];
        self.writes = [0; CHUNK_BLOCKS];
        sum
    }
}

/// Decayed sums below this are taken for zero: one access, ten half-lives ago.
const COLD: f32 = 1.0 / 1024.0;
