//! The staging share in the running volume: blocks that were just missed on the slowest tier lie on the fastest for a while.
//!
//! `policy::staging` says what comes and what has to leave; here it is done. A block comes while its image is still in memory, behind the read that missed
//! it, and its copy below stays valid: so leaving is a flip of the map. A block whose copy was given up meanwhile, because it was written, stays
//! where it is and is placed by heat like any other; so is one that has become hot enough to be placed there. What has just left rests like any moved
//! block before it may come again. Only misses on the slowest tier are staged: there a wait is long, and room for the copy is cheap.

use super::Mover;
use super::journal::Outcome;
use crate::policy::placement::{Decision, Pin, Reason, TierOutlook, TierState, part_of};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::File;
use std::sync::Arc;

impl Mover {
    /// Tells the forecast how much of the fastest tier heat places, and brings the staging share to what it has chosen.
    pub(super) fn follow_staging_share(&self, tiers: &[TierState]) {
        let budget_bytes = tiers.first().map_or(0, |tier| tier.budget_bytes);
        let blocks = part_of(budget_bytes, self.settings.placement.low_watermark) / self.block_bytes().max(1);
        let pinned = self.outlook.lock().tiers.first().map_or(0, |tier| tier.pinned_blocks);
        self.forecaster.set_capacity(blocks.saturating_sub(pinned));
        let wanted = self.forecaster.staging_blocks();
        {
            let mut staging = self.forecaster.staging.lock();
            if staging.capacity() != wanted {
                staging.set_capacity(wanted);
            }
        }
        self.unstage();
    }

    /// Staged blocks that are hot enough for the fastest tier stay there whatever is missed next, as far as there is slack.
    pub(super) fn keep_hot_staged(&self, tiers: &[TierOutlook]) {
        let Some(fastest) = tiers.first() else { return };
        let hot = fastest.cut * (1.0 + self.settings.placement.hysteresis);
        let staged: Vec<(FileId, BlockNo)> = self.forecaster.staging.lock().staged().collect();
        let is_hot = |key: &(FileId, BlockNo)| self.recorder.block_heat(key.0, key.1) > hot;
        let most = usize::try_from(fastest.slack_blocks).unwrap_or(usize::MAX);
        let hot: Vec<(FileId, BlockNo)> = staged.into_iter().filter(is_hot).take(most).collect();
        let mut staging = self.forecaster.staging.lock();
        for key in hot {
            staging.remove(key);
        }
    }

    /// May a block that was missed on `from` be staged now?
    pub(super) fn stages(&self, from: TierId, file: FileId, block: BlockNo) -> bool {
        let (may_come, has_slack) = {
            let outlook = self.outlook.lock();
            let is_slowest = from.index() + 1 == outlook.tiers.len();
            let has_slack = outlook.tiers.first().is_some_and(|tier| tier.slack_blocks > 0);
            (is_slowest && !outlook.moved.contains_key(&(file, block)), has_slack)
        };
        let may = || match self.pin_of(file) {
            Pin::None => true,
            Pin::Within(bounds) => bounds.promoted && bounds.demoted && bounds.allows(TierId::FASTEST),
            Pin::To(_) | Pin::LogFile | Pin::Catalog | Pin::Staged => false,
        };
        let staging = self.forecaster.staging.lock();
        // A share that is not full has its room kept free; a full one lets a block go whose place is free after a checkpoint only.
        let has_room = has_slack || staging.len() < staging.capacity();
        may_come && has_room && staging.capacity() > 0 && !staging.contains((file, block)) && may()
    }

    /// Stages a block; true when stopped meanwhile.
    pub(super) fn stage(&self, open: &mut Option<Arc<File>>, from: TierId, file: FileId, block: BlockNo) -> bool {
        if self.wait_for_turn(self.block_bytes()) {
            return true;
        }
        let (to, reason) = (TierId::FASTEST, Reason::Staged);
        let decision = Decision { file, block, from, to, reason, gain_us: 0.0, flip: false };
        let fills = {
            let mut staging = self.forecaster.staging.lock();
            let fills = staging.len() < staging.capacity();
            staging.admit((file, block));
            fills
        };
        let (moved, outcome) = self.move_adjacent(open, &decision, 1);
        self.record(&decision, outcome);
        if moved == 0 {
            self.forecaster.staging.lock().remove((file, block));
        } else {
            let mut outlook = self.outlook.lock();
            if let Some(fastest) = outlook.tiers.first_mut() {
                let used = if fills { &mut fastest.reserved_blocks } else { &mut fastest.slack_blocks };
                *used = used.saturating_sub(1);
            }
            self.tally.lock().staged += 1;
        }
        self.unstage();
        false
    }

    /// Takes down what had to leave the staging share.
    fn unstage(&self) {
        let left = {
            let mut staging = self.forecaster.staging.lock();
            let mut left = staging.take_left();
            left.retain(|key| !staging.contains(*key));
            left
        };
        let slowest = TierId(u8::try_from(self.tier_names.len().saturating_sub(1)).unwrap_or(u8::MAX));
        for (file, block) in left {
            let flipped = self.volume.file(file).and_then(|open| self.volume.flip_down(&open, block));
            // Gone, busy or without a valid copy: it is a block like any other now.
            if !matches!(flipped, Ok(true)) {
                continue;
            }
            {
                let mut outlook = self.outlook.lock();
                let number = outlook.number;
                outlook.moved.insert((file, block), number);
            }
            let (from, reason) = (TierId::FASTEST, Reason::Unstaged);
            let decision = Decision { file, block, from, to: slowest, reason, gain_us: 0.0, flip: true };
            self.record(&decision, Outcome::Moved);
        }
    }
}
