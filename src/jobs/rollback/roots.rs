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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A home with these trees, each holding a file that says which it was.
    fn home(trees: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let home = tempfile::tempdir().unwrap();
        for (name, was) in trees {
            fs::create_dir(home.path().join(name)).unwrap();
            fs::write(home.path().join(name).join("was"), was).unwrap();
        }
        let roots = Roots::of(home.path());
        (home, roots)
    }

    fn shown(home: &Path) -> Vec<(String, String)> {
        let was = |entry: fs::DirEntry| {
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path().join("was")).unwrap())
        };
        let mut trees: Vec<_> = fs::read_dir(home).unwrap().map(|entry| was(entry.unwrap())).collect();
        trees.sort();
        trees
    }

    fn trees(named: &[(&str, &str)]) -> Vec<(String, String)> {
        named.iter().map(|(name, was)| ((*name).to_owned(), (*was).to_owned())).collect()
    }

    #[test]
    fn r19_a_switch_of_names_goes_on_from_each_rename() {
        for before in [&[("tree", "old"), ("tree.new", "new")][..], &[("tree.before", "old"), ("tree.new", "new")]] {
            let (home, roots) = home(before);
            for _ in 0..2 {
                roots.switch().unwrap();
                assert_eq!(shown(home.path()), trees(&[("tree", "new"), ("tree.before", "old")]), "{before:?}");
            }
        }
    }

    #[test]
    fn r19_a_switch_back_goes_on_from_each_rename() {
        for before in [&[("tree", "new"), ("tree.before", "old")][..], &[("tree.before", "old"), ("tree.gone", "new")]]
        {
            let (home, roots) = home(before);
            for _ in 0..2 {
                roots.switch_back().unwrap();
                assert_eq!(shown(home.path()), trees(&[("tree", "old"), ("tree.gone", "new")]), "{before:?}");
            }
            roots.clear().unwrap();
            assert_eq!(shown(home.path()), trees(&[("tree", "old")]));
        }
    }

    /// What the volume was before is never taken for what may go, unless somebody says so.
    #[test]
    fn r19_clearing_leaves_the_root_before() {
        let (home, roots) = home(&[("tree", "new"), ("tree.before", "old"), ("tree.new", "x"), ("tree.gone", "y")]);
        assert!(roots.are_unsettled().unwrap());
        roots.clear().unwrap();
        assert_eq!(shown(home.path()), trees(&[("tree", "new"), ("tree.before", "old")]));
        assert!(!roots.are_unsettled().unwrap());
        roots.give_up_before().unwrap();
        roots.give_up_before().unwrap();
        assert_eq!(shown(home.path()), trees(&[("tree", "new"), ("tree.gone", "old")]));
    }
}
