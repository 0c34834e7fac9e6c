//! The staging share of the fast tier: an S3-FIFO cache of blocks that were just missed.
//!
//! Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. A new block enters a small queue; one that is asked for again
//! before it reaches the end moves to the main queue, others leave and are remembered as ghosts, which enter the main queue when they
//! return. Eviction is free because the copy below stays valid. Only what is missed by non-sequential accesses may be admitted.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Share of the capacity that the small queue takes.
const SMALL_PERCENT: usize = 10;
/// Accesses are counted up to this.
const COUNT_MAX: u8 = 3;
/// Accesses within the small queue that earn a place in the main one.
const MOVES_TO_MAIN: u8 = 2;

/// Mixes a key's words by multiplication: keys here are block numbers, which nobody chooses in order to collide.
#[derive(Default)]
pub struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub type BlockHash = BuildHasherDefault<BlockHasher>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Small,
    Main,
    Ghost,
}

struct Entry {
    place: Place,
    accesses: u8,
    /// The place in a queue that is valid; others of the same key are leftovers.
    ticket: u32,
}

/// A cache of keys, without their data: (file, block) in a volume, a number in a simulation.
pub struct Staging<K> {
    capacity: usize,
    entries: HashMap<K, Entry, BlockHash>,
    small: VecDeque<(K, u32)>,
    main: VecDeque<(K, u32)>,
    ghosts: VecDeque<(K, u32)>,
    in_small: usize,
    in_main: usize,
    tickets: u32,
    /// Blocks that had to leave, for whoever has to move them; None: nobody asks.
    left: Option<Vec<K>>,
}

impl<K: Copy + Eq + Hash> Staging<K> {
    /// `capacity` in blocks.
    pub fn new(capacity: usize) -> Staging<K> {
        Staging {
            capacity,
            entries: HashMap::default(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            in_small: 0,
            in_main: 0,
            tickets: 0,
            left: None,
        }
    }

    /// One that remembers what it made leave, for [`Staging::take_left`].
    pub fn telling(capacity: usize) -> Staging<K> {
        Staging { left: Some(Vec::new()), ..Staging::new(capacity) }
    }

    /// Blocks that had to leave since the last call. They may have come back meanwhile.
    pub fn take_left(&mut self) -> Vec<K> {
        self.left.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All blocks that are staged, in no order.
    pub fn staged(&self) -> impl Iterator<Item = K> + '_ {
        self.entries.iter().filter(|(_, entry)| entry.place != Place::Ghost).map(|(key, _)| *key)
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that are staged.
    pub fn len(&self) -> usize {
        self.in_small + self.in_main
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn contains(&self, key: K) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.place != Place::Ghost)
    }

    /// Memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let queues = self.small.capacity() + self.main.capacity() + self.ghosts.capacity();
        let left = self.left.as_ref().map_or(0, Vec::capacity);
        table_bytes::<(K, Entry)>(self.entries.capacity()) + queues * size_of::<(K, u32)>() + left * size_of::<K>()
    }

    /// Notes an access; true when the block is staged.
    pub fn access(&mut self, key: K) -> bool {
        match self.entries.get_mut(&key) {
            Some(entry) if entry.place != Place::Ghost => {
                entry.accesses = (entry.accesses + 1).min(COUNT_MAX);
                true
            }
            _ => false,
        }
    }

    /// Takes in a block that was missed; evicts others where there is no room. False when it is there already, or there is no capacity.
    pub fn admit(&mut self, key: K) -> bool {
        if self.capacity == 0 || self.contains(key) {
            return false;
        }
        while self.len() >= self.capacity {
            self.evict();
        }
        let returns = self.entries.remove(&key).is_some();
        if returns {
            self.enter(key, Place::Main);
        } else {
            self.enter(key, Place::Small);
        }
        true
    }

    /// Forgets a block: it was placed, truncated or removed.
    pub fn remove(&mut self, key: K) -> bool {
        match self.entries.remove(&key).map(|entry| entry.place) {
            Some(Place::Small) => self.in_small -= 1,
            Some(Place::Main) => self.in_main -= 1,
            Some(Place::Ghost) | None => return false,
        }
        true
    }

    /// Evicts what no longer fits.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        while self.len() > capacity {
            self.evict();
        }
        self.trim_ghosts();
    }

    fn enter(&mut self, key: K, place: Place) {
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = self.tickets;
        self.entries.insert(key, Entry { place, accesses: 0, ticket });
        match place {
            Place::Small => {
                self.small.push_back((key, ticket));
                self.in_small += 1;
            }
            Place::Main => {
                self.main.push_back((key, ticket));
                self.in_main += 1;
            }
            Place::Ghost => self.ghosts.push_back((key, ticket)),
        }
    }

    /// Makes one block leave, if there is any.
    fn evict(&mut self) {
        let small_wanted = self.capacity * SMALL_PERCENT / 100;
        if self.in_main == 0 || (self.in_small > 0 && self.in_small >= small_wanted.max(1)) {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some((key, ticket)) = self.small.pop_front() {
            let Some(entry) = self.entries.get(&key).filter(|entry| entry.ticket == ticket) else { continue };
            let stays = entry.accesses >= MOVES_TO_MAIN;
            self.in_small -= 1;
            if stays {
                self.enter(key, Place::Main);
                continue;
            }
            self.enter(key, Place::Ghost);
            self.trim_ghosts();
            self.left.iter_mut().for_each(|left| left.push(key));
            return;
        }
        if self.in_main > 0 {
            self.evict_main();
        }
    }

    fn evict_main(&mut self) {
        while let Some((key, ticket)) = self.main.pop_front() {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.ticket == ticket) else { continue };
            if entry.accesses > 0 {
                entry.accesses -= 1;
                self.main.push_back((key, ticket));
                continue;
            }
            self.entries.remove(&key);
            self.in_main -= 1;
            self.left.iter_mut().for_each(|left| left.push(key));
            return;
        }
    }

    /// As many ghosts as the main queue may hold.
    fn trim_ghosts(&mut self) {
        let wanted = self.capacity - self.capacity * SMALL_PERCENT / 100;
        while self.ghosts.len() > wanted {
            let Some((key, ticket)) = self.ghosts.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|entry| entry.ticket == ticket) {
                self.entries.remove(&key);
            }
        }
    }
}

/// What a hash table takes that has room for so many: one place in eight stays free, and each has a byte of its own.
pub(crate) fn table_bytes<E>(capacity: usize) -> usize {
    capacity.saturating_mul(8) / 7 * (size_of::<E>() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(staging: &mut Staging<u32>, key: u32) -> bool {
        staging.access(key) || !staging.admit(key)
    }

    #[test]
    fn what_is_asked_for_again_survives_a_scan() {
        let mut staging = Staging::new(100);
        for _ in 0..4 {
            for key in 0..50 {
                touch(&mut staging, key);
            }
        }
        for key in 1000..3000 {
            touch(&mut staging, key);
        }
        let left = (0..50).filter(|key| staging.contains(*key)).count();
        assert_eq!((left, staging.len()), (50, 100));
    }

    #[test]
    fn what_leaves_is_told_once() {
        let mut staging = Staging::telling(10);
        assert!((0..25).all(|key| staging.admit(key)));
        let left = staging.take_left();
        assert_eq!(left.len(), 15);
        assert!(left.iter().all(|key| !staging.contains(*key)) && staging.take_left().is_empty());
        staging.set_capacity(0);
        assert_eq!((staging.take_left().len(), staging.staged().count()), (10, 0));
    }

    #[test]
    fn a_ghost_returns_to_the_main_queue() {
        let mut staging = Staging::new(20);
        staging.admit(7);
        for key in 100..120 {
            staging.admit(key);
        }
        assert!(!staging.contains(7));
        staging.admit(7);
        for key in 200..230 {
            staging.admit(key);
        }
        assert!(staging.contains(7));
    }

    #[test]
    fn capacity_is_never_exceeded_whatever_happens() {
        let mut staging = Staging::new(10);
        let mut state = 1u32;
        for step in 0..20_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = state >> 27;
            match state % 11 {
                0 => {
                    staging.remove(key);
                }
                1 if step % 50 == 0 => staging.set_capacity(usize::try_from(key % 16).unwrap()),
                _ => {
                    touch(&mut staging, key);
                }
            }
            assert!(staging.len() <= staging.capacity());
            let queued = staging.entries.values().filter(|entry| entry.place != Place::Ghost).count();
            assert_eq!(queued, staging.len());
        }
    }

    #[test]
    fn without_capacity_nothing_is_staged() {
        let mut staging = Staging::new(0);
        assert!(!staging.admit(1) && !staging.access(1) && staging.is_empty());
    }
}
