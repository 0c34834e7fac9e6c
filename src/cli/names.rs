//! Relations behind paths: a data directory may be the mount itself or lie anywhere below it.

use crate::jobs::relations::Relations;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Reads each data directory's catalogs once, when a path in it is first asked for.
pub(super) struct Names {
    mount: PathBuf,
    by_root: HashMap<String, Relations>,
}

impl Names {
    pub(super) fn of_mount(mount: &str) -> Names {
        Names { mount: Path::new(mount).to_owned(), by_root: HashMap::new() }
    }

    /// The relation at a path relative to the mount; None for other files.
    pub(super) fn relation(&mut self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('/').collect();
        let at = parts.iter().rposition(|part| *part == "base" || *part == "global")?;
        let (root, inside) = (parts.get(..at)?.join("/"), parts.get(at..)?.join("/"));
        let mount = &self.mount;
        let relations = self.by_root.entry(root).or_insert_with_key(|root| Relations::read(&mount.join(root)));
        relations.name_of(&inside)
    }
}
