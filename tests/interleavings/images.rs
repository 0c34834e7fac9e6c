//! A claim is exclusive, and an image that goes with it is the block's base (`volume/claims.rs`).

use crate::claims::Claims;
use crate::schedule::{Bounds, check};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::spawn;
use crate::units::{BlockNo, FileId, TierId};
use std::sync::Arc;

const FILE: FileId = FileId(1);
const BLOCK: BlockNo = BlockNo(0);
const SLOW: TierId = TierId(1);

struct Block {
    claims: Claims,
    /// What stands in the block on the slow tier.
    base: AtomicU64,
    holders: AtomicU64,
}

impl Block {
    /// As a read of the slow tier that keeps what it has waited for.
    fn read(&self) {
        let expected = self.claims.expect_images(FILE, SLOW, 0..1);
        let bytes = self.base.load(Ordering::Acquire).to_le_bytes();
        self.claims.keep_images(&expected, BLOCK, &bytes);
    }

    /// As the coalescer (`change`) or the mover: whoever holds the claim uses the image in place of a read, or reads.
    fn hold(&self, change: bool) {
        let Some((_claim, image)) = self.claims.claim_with_image(FILE, BLOCK, Some(SLOW)) else { return };
        assert_eq!(self.holders.fetch_add(1, Ordering::AcqRel), 0, "two hold the claim");
        let base = self.base.load(Ordering::Acquire);
        if let Some(image) = image {
            assert_eq!(image, base.to_le_bytes(), "an image that is not the base any more was handed out");
        }
        if change {
            self.base.store(base + 1, Ordering::Release);
        }
        self.holders.fetch_sub(1, Ordering::AcqRel);
    }
}

#[test]
fn a_claim_is_exclusive_and_its_image_is_the_base() {
    check(Bounds { preemptions: 3, timers: 0 }, || {
        let block = Arc::new(Block { claims: Claims::new(8), base: AtomicU64::new(0), holders: AtomicU64::new(0) });
        // Two readers: what one has read must not pass for what the other, who came after a change, waits for.
        let readers = [(); 2].map(|()| {
            let block = Arc::clone(&block);
            spawn(move || block.read())
        });
        let coalescer = Arc::clone(&block);
        let coalescer = spawn(move || coalescer.hold(true));
        block.hold(false);
        for reader in readers {
            reader.join().expect("the reader");
        }
        coalescer.join().expect("the coalescer");
        block.hold(false);
        assert!(block.claims.claim(FILE, BLOCK).is_some(), "nobody holds it any more");
    });
}
