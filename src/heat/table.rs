//! The chunks of all files, within bounds at every moment.
//!
//! Chunks are spread over [`LOCKS`] locks by their hash, so that threads seldom meet. When the memory for all is used up, the chunks
//! behind the lock at hand shed their coldest eighth: any lock's chunks are as good a sample of all as another's, so nothing has to be compared across locks, and
//! one access in many pays for looking at a few hundred chunks.

use super::chunk::{CHUNK_BLOCKS_U64, Chunk};
use crate::units::{BlockNo, FileId};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Locks over which chunks are spread.
pub(super) const LOCKS: usize = 64;
/// What the table, and whoever hands out memory, take for a chunk beyond its counters: a place of 40 bytes in a table that is half empty after it has
/// grown, and the allocation's head and rounding.
const OVERHEAD_BYTES: usize = 96;
/// Share of a lock's chunks that goes when memory is short.
const SHED_ONE_IN: usize = 8;

/// A file, and the number of the chunk in it.
pub(super) type ChunkKey = (FileId, u64);
pub(super) type Chunks = HashMap<ChunkKey, Chunk>;

/// See the module's head.
pub(super) struct ChunkTable {
    locks: Vec<Mutex<Chunks>>,
    write_weight: f32,
    /// Memory of all chunks, and its limit.
    bytes: AtomicUsize,
    bytes_max: AtomicUsize,
    shed: AtomicU64,
}

impl ChunkTable {
    pub(super) fn new(write_weight: f32, bytes_max: usize) -> ChunkTable {
        ChunkTable {
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            write_weight,
            bytes: AtomicUsize::new(0),
            bytes_max: AtomicUsize::new(bytes_max),
            shed: AtomicU64::new(0),
        }
    }

    /// Another limit; what is too much goes.
    pub(super) fn set_limit(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        if self.bytes() > bytes_max {
            self.retain(|_, _| true);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> usize {
        self.locks.iter().map(|lock| lock.lock().len()).sum()
    }

    /// Chunks that had to go because memory was short.
    pub(super) fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    /// Looks at a chunk, if there is one.
    pub(super) fn read<R>(&self, key: ChunkKey, look: impl FnOnce(&Chunk) -> R) -> Option<R> {
        self.lock_of(key)?.get(&key).map(look)
    }

    /// Changes a chunk, which is made if there is none.
    pub(super) fn change(&self, key: ChunkKey, change: impl FnOnce(&mut Chunk)) {
        let Some(mut chunks) = self.lock_of(key) else { return };
        let (chunk, before) = match chunks.entry(key) {
            Entry::Occupied(known) => {
                let before = known.get().bytes() + OVERHEAD_BYTES;
                (known.into_mut(), before)
            }
            Entry::Vacant(place) => (place.insert(Chunk::new()), 0),
        };
        change(chunk);
        let after = chunk.bytes() + OVERHEAD_BYTES;
        if after != before {
            self.bytes.fetch_add(after, Ordering::Relaxed);
            self.bytes.fetch_sub(before, Ordering::Relaxed);
            self.shed_behind(&mut chunks, Some(key));
        }
    }

    /// Calls `each` with every chunk; one for which it returns false goes. What is still too much is shed.
    pub(super) fn retain(&self, mut each: impl FnMut(&ChunkKey, &mut Chunk) -> bool) {
        for lock in &self.locks {
            let mut chunks = lock.lock();
            let (mut before, mut after) = (0, 0);
            chunks.retain(|key, chunk| {
                before += chunk.bytes() + OVERHEAD_BYTES;
                let stays = each(key, chunk);
                after += if stays { chunk.bytes() + OVERHEAD_BYTES } else { 0 };
                stays
            });
            if chunks.len() < chunks.capacity() / 4 {
                chunks.shrink_to_fit();
            }
            self.bytes.fetch_add(after, Ordering::Relaxed);
            self.bytes.fetch_sub(before, Ordering::Relaxed);
            self.shed_behind(&mut chunks, None);
        }
    }

    /// Calls `each` with the chunks behind every lock in turn, which is held meanwhile.
    pub(super) fn by_lock<E>(&self, mut each: impl FnMut(&Chunks) -> Result<(), E>) -> Result<(), E> {
        self.locks.iter().try_for_each(|lock| each(&lock.lock()))
    }

    fn lock_of(&self, key: ChunkKey) -> Option<MutexGuard<'_, Chunks>> {
        self.locks.get(lock_of(key.0, key.1)).map(|lock| lock.lock())
    }

    /// Drops the coldest of a lock's chunks, but for `kept`, until all chunks fit their memory.
    fn shed_behind(&self, chunks: &mut Chunks, kept: Option<ChunkKey>) {
        let is_short = || self.bytes.load(Ordering::Relaxed) > self.bytes_max.load(Ordering::Relaxed);
        while chunks.len() > usize::from(kept.is_some()) && is_short() {
            let others = chunks.iter().filter(|(key, _)| Some(**key) != kept);
            let mut sums: Vec<f32> = others.map(|(_, chunk)| chunk.sum(self.write_weight)).collect();
            let goes = sums.len().div_ceil(SHED_ONE_IN);
            let cut = *sums.select_nth_unstable_by(goes - 1, f32::total_cmp).1;
            let (mut left, mut freed) = (goes, 0);
            chunks.retain(|key, chunk| {
                let stays = left == 0 || Some(*key) == kept || chunk.sum(self.write_weight) > cut;
                if !stays {
                    left -= 1;
                    freed += chunk.bytes() + OVERHEAD_BYTES;
                }
                stays
            });
            self.shed.fetch_add(u64::try_from(goes - left).unwrap_or(0), Ordering::Relaxed);
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
        }
    }
}

/// The chunks of a range of blocks, each with the range's part in it.
pub(super) fn chunks_of(first: BlockNo, last: BlockNo) -> impl Iterator<Item = (u64, std::ops::RangeInclusive<u64>)> {
    (first.0 / CHUNK_BLOCKS_U64..=last.0 / CHUNK_BLOCKS_U64).map(move |number| {
        let begin = number * CHUNK_BLOCKS_U64;
        (number, first.0.max(begin)..=last.0.min(begin + (CHUNK_BLOCKS_U64 - 1)))
    })
}

/// Which lock is responsible for a file's chunk.
pub(super) fn lock_of(file: FileId, chunk: u64) -> usize {
    let mixed = (file.0 ^ chunk.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 58).unwrap_or(0) % LOCKS
}
