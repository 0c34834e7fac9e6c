//! One simulated file: what reads see, what a crash is sure to leave, and the changes between the two.

use super::Survival;
use super::coin::Coin;
use super::content::{Content, Piece};
use std::ops::Range;
use std::sync::Arc;

/// A change that has not been made durable by a sync.
#[derive(Clone)]
pub(super) enum Change {
    Write(Vec<Piece>),
    /// Written by a dsync handle while older changes are unsynced: durable, but to be applied after those.
    DurableWrite(Vec<Piece>),
    SetLen(u64),
    Punch(u64, u64),
    Allocate(u64, u64),
}

impl Change {
    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Change::Write(pieces) | Change::DurableWrite(pieces) => pieces.iter().for_each(|p| content.write(p)),
            Change::SetLen(len) => content.set_len(*len),
            Change::Punch(offset, len) => content.punch(*offset, *len),
            Change::Allocate(offset, len) => content.allocate(*offset, *len),
        }
    }

    /// Applies what a crash leaves of this change. A write fares per unit of `unit` bytes; now and then as a whole, so
    /// that a late write survives an early one entirely.
    fn apply_survivors(&self, content: &mut Content, unit: usize, coin: &mut Coin) {
        let Change::Write(pieces) = self else {
            if coin.heads() {
                self.apply(content);
            }
            return;
        };
        match coin.below(4) {
            0 => {}
            1 => self.apply(content),
            _ => pieces.iter().for_each(|piece| content.write_torn(piece, unit, || coin.heads())),
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    live: Arc<Content>,
    durable: Arc<Content>,
    /// Oldest first. Applied to `durable` in this order they give `live`, unless a failed sync has dropped some.
    changes: Vec<Change>,
    /// Reading any of these bytes is an error of the medium.
    pub(super) bad: Vec<Range<u64>>,
    pub(super) named: bool,
    pub(super) handles: usize,
}

impl Inode {
    /// Empty, under its first name.
    pub(super) fn created() -> Inode {
        Inode { named: true, ..Inode::default() }
    }

    pub(super) fn content(&self) -> &Content {
        &self.live
    }

    pub(super) fn is_dead(&self) -> bool {
        !self.named && self.handles == 0
    }

    /// The change is seen by readers and may or may not survive a crash.
    pub(super) fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.live));
        self.changes.push(change);
    }

    /// The write is seen by readers and survives a crash.
    pub(super) fn write_durably(&mut self, pieces: Vec<Piece>) {
        let change = Change::DurableWrite(pieces);
        change.apply(Arc::make_mut(&mut self.live));
        if self.changes.is_empty() {
            change.apply(Arc::make_mut(&mut self.durable));
        } else {
            self.changes.push(change);
        }
    }

    pub(super) fn sync(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let durable = Arc::make_mut(&mut self.durable);
        self.changes.drain(..).for_each(|change| change.apply(durable));
    }

    /// What Linux does when write-back fails: the pages are marked clean, readers go on seeing them, and no later sync
    /// writes them.
    pub(super) fn lose_unsynced(&mut self) {
        let durable = Arc::make_mut(&mut self.durable);
        for change in self.changes.drain(..) {
            if let Change::DurableWrite(_) = change {
                change.apply(durable);
            }
        }
    }

    pub(super) fn after_crash(&self, survival: Survival, unit: usize, coin: &mut Coin) -> Inode {
        let mut durable = self.durable.clone();
        for change in &self.changes {
            match (survival, change) {
                (Survival::All, _) | (_, Change::DurableWrite(_)) => change.apply(Arc::make_mut(&mut durable)),
                (Survival::None, _) => {}
                (Survival::Seed(_), _) => change.apply_survivors(Arc::make_mut(&mut durable), unit, coin),
            }
        }
        Inode { live: durable.clone(), durable, changes: Vec::new(), bad: self.bad.clone(), named: true, handles: 0 }
    }

    /// Overwriting a bad spot makes the medium remap it.
    pub(super) fn heal(&mut self, written: Range<u64>) {
        self.bad.retain(|bad| bad.start < written.start || bad.end > written.end);
    }
}
