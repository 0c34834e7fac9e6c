//! Block claims, and the images of blocks that were just read from the slowest tier (R24).
//!
//! One table for both, because one rule ties them: a base changes only under a claim, so an image is good exactly as long as nobody has claimed its
//! block since before it was read. A claim therefore takes the image away; the mover, who asks for it, gets it, and so promotes
//! what a reader has just waited for without a second read of the slow device.

use crate::sync::Mutex;
use crate::units::{BlockNo, FileId, TierId};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};

type Key = (FileId, BlockNo);

/// Bytes of images kept, at most.
const IMAGES_BYTES_MAX: usize = 16 << 20;

/// See the module's head.
pub(super) struct Claims {
    table: Mutex<Table>,
    block_bytes: usize,
}

#[derive(Default)]
struct Table {
    held: HashSet<Key>,
    images: HashMap<Key, Image>,
    /// Oldest first; entries whose ticket is not the image's any more count for nothing.
    order: VecDeque<(Key, u64)>,
    next_ticket: u64,
}

struct Image {
    ticket: u64,
    tier: TierId,
    /// None while it is being read.
    bytes: Option<Vec<u8>>,
}

/// Blocks of a file that are about to be read: given back with their bytes, or dropped when the read failed.
pub(super) struct Expected {
    file: FileId,
    /// Block and ticket.
    blocks: Vec<(BlockNo, u64)>,
}

/// A block claim: see the lock order in the head of [`super`].
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.table.lock().held.remove(&self.key);
    }
}

impl Claims {
    pub(super) fn new(block_bytes: u32) -> Claims {
        Claims { table: Mutex::default(), block_bytes: usize::try_from(block_bytes).unwrap_or(usize::MAX).max(1) }
    }

    pub(super) fn claim(&self, file: FileId, block: BlockNo) -> Option<Claim<'_>> {
        Some(self.claim_with_image(file, block, None)?.0)
    }

    /// The claim, and the block's base on tier `from` if it was read from there since the base last changed.
    pub(super) fn claim_with_image(
        &self,
        file: FileId,
        block: BlockNo,
        from: Option<TierId>,
    ) -> Option<(Claim<'_>, Option<Vec<u8>>)> {
        let key = (file, block);
        let mut table = self.table.lock();
        if !table.held.insert(key) {
            return None;
        }
        let image = table.images.remove(&key).filter(|image| Some(image.tier) == from);
        // Only now is there something to give back when dropped: a claim that was refused must not release what somebody else holds.
        Some((Claim { claims: self, key }, image.and_then(|image| image.bytes)))
    }

    /// To be called before `blocks` of `tier` are read, and before it is looked up again that they still lie there.
    pub(super) fn expect_images(&self, file: FileId, tier: TierId, blocks: std::ops::Range<u64>) -> Expected {
        let mut table = self.table.lock();
        let mut expected = Expected { file, blocks: Vec::new() };
        for block in blocks.map(BlockNo) {
            let key = (file, block);
            if table.held.contains(&key) {
                continue;
            }
            table.next_ticket += 1;
            let ticket = table.next_ticket;
            table.images.insert(key, Image { ticket, tier, bytes: None });
            table.order.push_back((key, ticket));
            expected.blocks.push((block, ticket));
        }
        table.trim(IMAGES_BYTES_MAX / self.block_bytes);
        expected
    }

    /// Keeps what was read: `bytes` from block `first` on. Blocks that were claimed meanwhile, and those that were not read after all,
    /// are passed over.
    pub(super) fn keep_images(&self, expected: &Expected, first: BlockNo, bytes: &[u8]) {
        for &(block, ticket) in &expected.blocks {
            let part =
                block.0.checked_sub(first.0).and_then(|blocks| usize::try_from(blocks).ok()).and_then(|blocks| {
                    let from = blocks.checked_mul(self.block_bytes)?;
                    bytes.get(from..from.checked_add(self.block_bytes)?)
                });
            let copy = part.map(<[u8]>::to_vec);
            let mut table = self.table.lock();
            let Entry::Occupied(mut image) = table.images.entry((expected.file, block)) else { continue };
            match copy {
                _ if image.get().ticket != ticket => {}
                Some(copy) => image.get_mut().bytes = Some(copy),
                None => drop(image.remove()),
            }
        }
    }

    pub(super) fn has_image(&self, file: FileId, block: BlockNo) -> bool {
        self.table.lock().images.get(&(file, block)).is_some_and(|image| image.bytes.is_some())
    }

    /// Bytes of images in memory.
    pub(super) fn image_bytes(&self) -> u64 {
        let table = self.table.lock();
        let kept = table.images.values().filter(|image| image.bytes.is_some()).count();
        u64::try_from(kept.saturating_mul(self.block_bytes)).unwrap_or(u64::MAX)
    }
}

impl Table {
    fn trim(&mut self, images_max: usize) {
        while self.images.len() > images_max.max(1) || self.order.len() > 4 * images_max.max(1) {
            let Some((key, ticket)) = self.order.pop_front() else { return };
            if self.images.get(&key).is_some_and(|image| image.ticket == ticket) {
                self.images.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(3);
    const HDD: TierId = TierId(2);

    fn claims() -> Claims {
        Claims::new(4096)
    }

    fn keep(claims: &Claims, block: u64, byte: u8) {
        let expected = claims.expect_images(FILE, HDD, block..block + 1);
        claims.keep_images(&expected, BlockNo(block), &[byte; 4096]);
    }

    fn taken(claims: &Claims, block: u64) -> Option<u8> {
        let (_claim, image) = claims.claim_with_image(FILE, BlockNo(block), Some(HDD)).unwrap();
        image.map(|image| image[0])
    }

    #[test]
    fn a_claim_takes_the_image_away() {
        let claims = claims();
        keep(&claims, 7, 1);
        assert!(claims.has_image(FILE, BlockNo(7)));
        assert_eq!(taken(&claims, 7), Some(1));
        assert_eq!(taken(&claims, 7), None, "an image is used once");
        keep(&claims, 7, 2);
        drop(claims.claim(FILE, BlockNo(7)).unwrap());
        assert_eq!(taken(&claims, 7), None, "whoever claimed it may have changed the base");
    }

    #[test]
    fn what_was_read_under_anothers_claim_is_not_kept() {
        let claims = claims();
        let held = claims.claim(FILE, BlockNo(1)).unwrap();
        keep(&claims, 1, 1);
        drop(held);
        assert_eq!(taken(&claims, 1), None, "claimed before the read");
        let expected = claims.expect_images(FILE, HDD, 1..2);
        drop(claims.claim(FILE, BlockNo(1)).unwrap());
        claims.keep_images(&expected, BlockNo(1), &[1; 4096]);
        assert_eq!(taken(&claims, 1), None, "claimed during the read");
    }

    #[test]
    fn a_refused_claim_leaves_the_holder_alone() {
        let claims = claims();
        let held = claims.claim(FILE, BlockNo(1)).unwrap();
        assert!(claims.claim(FILE, BlockNo(1)).is_none());
        assert!(claims.claim(FILE, BlockNo(1)).is_none(), "the refusal released nothing");
        drop(held);
        assert!(claims.claim(FILE, BlockNo(1)).is_some());
    }

    #[test]
    fn what_was_not_read_after_all_leaves_nothing() {
        let claims = claims();
        let expected = claims.expect_images(FILE, HDD, 0..8);
        claims.keep_images(&expected, BlockNo(3), &[1; 2 * 4096]);
        assert_eq!(claims.table.lock().images.len(), 2);
        assert_eq!(
            (taken(&claims, 2), taken(&claims, 3), taken(&claims, 4), taken(&claims, 5)),
            (None, Some(1), Some(1), None)
        );
    }

    #[test]
    fn an_image_of_another_tier_is_not_given() {
        let claims = claims();
        keep(&claims, 1, 1);
        let (_claim, image) = claims.claim_with_image(FILE, BlockNo(1), Some(TierId(0))).unwrap();
        assert!(image.is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let claims = claims();
        for block in 0..20_000 {
            keep(&claims, block, 1);
            if block % 3 == 0 {
                taken(&claims, block);
            }
        }
        assert_eq!(claims.image_bytes(), IMAGES_BYTES_MAX as u64);
        assert!(claims.table.lock().order.len() <= 4 * IMAGES_BYTES_MAX / 4096);
        assert_eq!(taken(&claims, 1), None, "the oldest went first");
        assert_eq!(taken(&claims, 19_999), Some(1));
    }
}
