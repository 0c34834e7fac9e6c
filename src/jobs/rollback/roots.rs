//! The two roots in home. State says which of them is the volume; their names follow it, and are made to by whoever comes next if that was cut off.
//!
//! `tree` is the volume, `tree.new` one that is being made, `tree.before` what the volume was before a rollback, `tree.gone` one that is being removed. Each move is one
//! rename, made durable before the next; which of them are there tells how far it has come.

use crate::error::Result;
use crate::jobs::backing::{exists, remove_tree, rename_durably};
use std::path::{Path, PathBuf};

pub(super) struct Roots {
    tree: PathBuf,
    pub new: PathBuf,
    pub before: PathBuf,
    gone: PathBuf,
}

impl Roots {
    pub fn of(home: &Path) -> Roots {
        let at = |name: &str| home.join(name);
        Roots { tree: at("tree"), new: at("tree.new"), before: at("tree.before"), gone: at("tree.gone") }
    }

    /// After the switch in state: the new root takes the place of the old one, which is kept.
    pub fn switch(&self) -> Result<()> {
        if !exists(&self.new)? {
            return Ok(());
        }
        if !exists(&self.before)? {
            rename_durably(&self.tree, &self.before)?;
        }
        rename_durably(&self.new, &self.tree)
    }

    /// After it was undone in state: the root before takes its place again.
    pub fn switch_back(&self) -> Result<()> {
        if !exists(&self.before)? {
            return Ok(());
        }
        if exists(&self.tree)? {
            rename_durably(&self.tree, &self.gone)?;
        }
        rename_durably(&self.before, &self.tree)
    }

    /// After it was confirmed in state: the root before is nobody's.
    pub fn give_up_before(&self) -> Result<()> {
        if exists(&self.before)? { rename_durably(&self.before, &self.gone) } else { Ok(()) }
    }

    /// Has a switch or a removal been cut off?
    pub fn are_unsettled(&self) -> Result<bool> {
        Ok(exists(&self.new)? || exists(&self.gone)?)
    }

    /// Removes what is nobody's. Never called between a switch in state and that of the names.
    pub fn clear(&self) -> Result<()> {
        remove_tree(&self.new)?;
        remove_tree(&self.gone)
    }
}
