//! Counters of 256 neighbouring blocks.

/// Blocks per chunk: the granularity at which memory is taken and given back.
pub const CHUNK_BLOCKS: usize = 256;
/// [`CHUNK_BLOCKS`] for arithmetic on block numbers.
pub(super) const CHUNK_BLOCKS_U64: u64 = 256;
/// Blocks with counters from which a chunk has room for all: more of them listed would take as much.
const LISTED_MAX: usize = 160;
/// Blocks with counters under which those of a whole chunk are listed again.
const LISTED_AGAIN: usize = 96;

/// Most chunks of a large volume hold a few blocks that were touched lately: those are listed, 12 bytes each. Where many were, there is
/// room for all, eight bytes each.
pub(super) enum Chunk {
    /// By index, each once.
    Listed(Vec<Listed>),
    Whole(Box<Whole>),
}

/// Counters of one block.
#[derive(Clone, Copy, Default)]
pub(super) struct Counters {
    /// Decayed sum of weighted accesses of past epochs.
    past: f32,
    /// Read misses of the running epoch.
    reads: u16,
    /// Writes of the running epoch.
    writes: u16,
}

pub(super) struct Listed {
    index: u8,
    counters: Counters,
}

pub(super) type Whole = [Counters; CHUNK_BLOCKS];

impl Counters {
    /// Weighted accesses of the running epoch.
    fn present(&self, write_weight: f32) -> f32 {
        f32::from(self.reads) + write_weight * f32::from(self.writes)
    }

    /// Ends an epoch; returns the decayed sum.
    fn roll(&mut self, decay: f32, write_weight: f32) -> f32 {
        let value = self.past * decay + self.present(write_weight);
        // Below this a block is as cold as one never touched; zero keeps runs of cold blocks together.
        *self = Counters { past: if value < COLD { 0.0 } else { value }, ..Counters::default() };
        self.past
    }
}

impl Chunk {
    pub(super) fn new() -> Chunk {
        Chunk::Listed(Vec::new())
    }

    /// One more read miss of a block.
    pub(super) fn count_read(&mut self, index: u8) {
        let counters = self.counters(index);
        counters.reads = counters.reads.saturating_add(1);
    }

    pub(super) fn count_write(&mut self, index: u8) {
        let counters = self.counters(index);
        counters.writes = counters.writes.saturating_add(1);
    }

    pub(super) fn set_past(&mut self, index: u8, past: f32) {
        self.counters(index).past = past;
    }

    /// A block's counters, to be changed.
    fn counters(&mut self, index: u8) -> &mut Counters {
        if matches!(self, Chunk::Listed(list) if list.len() >= LISTED_MAX) {
            let whole = Box::new(self.all());
            *self = Chunk::Whole(whole);
        }
        match self {
            Chunk::Whole(whole) => &mut whole[usize::from(index)],
            Chunk::Listed(list) => {
                let at = match list.binary_search_by_key(&index, |one| one.index) {
                    Ok(at) => at,
                    Err(at) => {
                        if list.len() == list.capacity() {
                            // By halves and not by doubling: most lists stay as they are.
                            list.reserve_exact((list.len() / 2).max(2).min(LISTED_MAX - list.len()));
                        }
                        list.insert(at, Listed { index, counters: Counters::default() });
                        at
                    }
                };
                &mut list[at].counters
            }
        }
    }

    fn get(&self, index: u8) -> Counters {
        match self {
            Chunk::Whole(whole) => whole[usize::from(index)],
            Chunk::Listed(list) => list
                .binary_search_by_key(&index, |one| one.index)
                .ok()
                .and_then(|at| list.get(at))
                .map_or(Counters::default(), |one| one.counters),
        }
    }

    fn all(&self) -> Whole {
        match self {
            Chunk::Whole(whole) => **whole,
            Chunk::Listed(list) => {
                let mut all = [Counters::default(); CHUNK_BLOCKS];
                list.iter().for_each(|one| all[usize::from(one.index)] = one.counters);
                all
            }
        }
    }

    /// Reads and writes of the running epoch.
    pub(super) fn counts(&self, index: u8) -> (u16, u16) {
        let counters = self.get(index);
        (counters.reads, counters.writes)
    }

    /// Weighted accesses of the running epoch.
    pub(super) fn present(&self, index: u8, write_weight: f32) -> f32 {
        self.get(index).present(write_weight)
    }

    /// A block's decayed sum.
    pub(super) fn past(&self, index: u8) -> f32 {
        self.get(index).past
    }

    /// The decayed sums of all blocks.
    pub(super) fn pasts(&self) -> [f32; CHUNK_BLOCKS] {
        let mut pasts = [0.0; CHUNK_BLOCKS];
        match self {
            Chunk::Whole(whole) => pasts.iter_mut().zip(whole.iter()).for_each(|(past, one)| *past = one.past),
            Chunk::Listed(list) => list.iter().for_each(|one| pasts[usize::from(one.index)] = one.counters.past),
        }
        pasts
    }

    /// What the chunk's blocks have had all together, the running epoch included.
    pub(super) fn sum(&self, write_weight: f32) -> f32 {
        let of = |counters: &Counters| counters.past + counters.present(write_weight);
        match self {
            Chunk::Whole(whole) => whole.iter().map(of).sum(),
            Chunk::Listed(list) => list.iter().map(|one| of(&one.counters)).sum(),
        }
    }

    /// Memory of the counters, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Chunk::Whole(_) => size_of::<Whole>(),
            Chunk::Listed(list) => list.capacity() * size_of::<Listed>(),
        }
    }

    /// Ends an epoch; returns the sum over the chunk's blocks.
    pub(super) fn roll(&mut self, decay: f32, write_weight: f32) -> f32 {
        match self {
            Chunk::Listed(list) => {
                let mut sum = 0.0;
                list.retain_mut(|one| {
                    let past = one.counters.roll(decay, write_weight);
                    sum += past;
                    past > 0.0
                });
                if list.len() < list.capacity() / 2 {
                    list.shrink_to_fit();
                }
                sum
            }
            Chunk::Whole(whole) => {
                let sum = whole.iter_mut().map(|one| one.roll(decay, write_weight)).sum();
                if whole.iter().filter(|one| one.past > 0.0).count() < LISTED_AGAIN {
                    let listed = |(index, counters): (u8, &Counters)| Listed { index, counters: *counters };
                    let warm = (0..=u8::MAX).zip(whole.iter()).filter(|(_, one)| one.past > 0.0);
                    *self = Chunk::Listed(warm.map(listed).collect());
                }
                sum
            }
        }
    }
}

/// Decayed sums below this are taken for zero: one access, ten half-lives ago.
const COLD: f32 = 1.0 / 1024.0;

const _: () = assert!(size_of::<Counters>() == 8 && size_of::<Listed>() == 12 && size_of::<Chunk>() <= 24);
