//! What an unclean stop leaves behind: content of files that have no name any more (R12). A file made or removed shortly before
//! a crash may have reached the log but not home, or left home but not the tiers.
//!
//! Looked for before the mount appears: later a file that is renamed from a directory still to be visited into one already visited would
//! be missed, and its content thrown away. It costs one look at each name, and only after an unclean stop.

use super::home::for_each;
use crate::error::Result;
use crate::volume::Volume;
use std::collections::HashSet;
use std::path::Path;
use uuid::Uuid;

/// Removes content without a name in `tree` among the ids below `limit_before`. Nothing is removed while any file's identity cannot be trusted, because its
/// content may be the one that seems to have no name; nor if there are no names at all.
pub fn free(tree: &Path, id: Uuid, volume: &Volume, limit_before: u64) -> Result<()> {
    let mut known = HashSet::new();
    let mut untrusted = 0u64;
    for_each(tree, id, &mut |file| {
        match file {
            Ok(file) => _ = known.insert(file.id),
            Err(_) => untrusted += 1,
        }
        Ok(())
    })?;
    let orphans = volume.orphans(&known, limit_before);
    if orphans.is_empty() {
        return Ok(());
    }
    if untrusted > 0 || known.is_empty() {
        let why = if known.is_empty() { "home has no files" } else { "some files' identities cannot be trusted" };
        tracing::warn!("{} files without a name keep their space, because {why}: see `heatfs check`", orphans.len());
        return Ok(());
    }
    for id in &orphans {
        volume.remove(*id)?;
    }
    tracing::info!("{} files that the crash left without a name are being removed", orphans.len());
    Ok(())
}
