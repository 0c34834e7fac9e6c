//! The settings of snapshots: where they go, and how hard the volume works for them.

use super::reader::Section;
use crate::error::Result;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotSettings {
    /// The repository's directory; None: no snapshots are taken.
    pub repository: Option<PathBuf>,
    /// What an encrypted repository was made with.
    pub key_file: Option<PathBuf>,
    /// Files captured at once.
    pub streams: usize,
    /// Share of its time that each stream works while others need the machine.
    pub busy_share: f64,
    /// What all streams together read at most.
    pub bytes_per_second: u64,
    /// Bytes on the fastest tier for what a snapshot still needs and the volume has to overwrite.
    pub staging_bytes: u64,
}

const MIB: u64 = 1 << 20;

pub(super) fn read(section: &mut Section) -> Result<SnapshotSettings> {
    Ok(SnapshotSettings {
        repository: section.path("repository")?,
        key_file: section.path("key_file")?,
        streams: usize::try_from(section.count("streams", 2, 1..=64)?).unwrap_or(1),
        busy_share: section.number("busy_share", 0.1, 0.01..=1.0)?.into(),
        bytes_per_second: section.bytes("bytes_per_second", 1024 * MIB, MIB..=1024 * 1024 * MIB)?,
        staging_bytes: section.bytes("staging", 1024 * MIB, 16 * MIB..=1024 * 1024 * MIB)?,
    })
}
