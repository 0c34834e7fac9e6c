//! What the mover did lately, and why.

use crate::policy::placement::Reason;
use crate::units::{BlockNo, FileId, TierId, WallNs};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What became of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Moved,
    /// The engine would not: written meanwhile, busy, or no room.
    Refused,
    /// A device failed; the log has the details.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    pub at: WallNs,
    pub file: FileId,
    pub block: BlockNo,
    pub from: TierId,
    pub to: TierId,
    pub reason: Reason,
    pub outcome: Outcome,
    /// Number of the plan that decided it, or that was the latest when a miss did.
    pub plan: u32,
    /// Nothing was copied: the target had a valid copy.
    pub flip: bool,
}

/// The latest entries, oldest first.
#[derive(Debug)]
pub(super) struct Journal {
    limit: usize,
    entries: VecDeque<JournalEntry>,
}

impl Journal {
    pub(super) fn new(limit: usize) -> Journal {
        Journal { limit, entries: VecDeque::new() }
    }

    pub(super) fn push(&mut self, entry: JournalEntry) {
        if self.entries.len() >= self.limit {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// What was decided about a block, oldest first.
    pub(super) fn of(&self, file: FileId, block: BlockNo) -> Vec<JournalEntry> {
        self.entries.iter().filter(|entry| entry.file == file && entry.block == block).cloned().collect()
    }

    /// Decisions about the files that `wanted` accepts, newest first.
    pub(super) fn newest(&self, wanted: impl Fn(FileId) -> bool, count: usize) -> Vec<JournalEntry> {
        self.entries.iter().rev().filter(|entry| wanted(entry.file)).take(count).cloned().collect()
    }

    /// A decision of one plan.
    pub(super) fn find_in_plan(&self, plan: u32, wanted: impl Fn(&JournalEntry) -> bool) -> Option<JournalEntry> {
        let of_plan = self.entries.iter().rev().skip_while(|entry| entry.plan > plan);
        of_plan.take_while(|entry| entry.plan == plan).find(|entry| wanted(entry)).cloned()
    }

    pub(super) fn latest(&self, count: usize) -> Vec<JournalEntry> {
        self.entries.iter().skip(self.entries.len().saturating_sub(count)).cloned().collect()
    }
}
