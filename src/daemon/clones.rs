//! The settings of clones: how their blocks come from the repository, and what happens without it.

use super::reader::Section;
use crate::error::Result;

#[derive(Clone, Debug, PartialEq)]
pub struct CloneSettings {
    /// Pieces brought at once.
    pub streams: usize,
    /// What may be brought per second.
    pub bytes_per_second: u64,
    /// Share of its time that each stream works while others need the machine.
    pub busy_share: f64,
    /// Is the volume served even when the repository cannot be read?
    pub without_repository: bool,
}

const MIB: u64 = 1 << 20;

pub(super) fn read(section: &mut Section) -> Result<CloneSettings> {
    Ok(CloneSettings {
        streams: usize::try_from(section.count("streams", 2, 1..=64)?).unwrap_or(1),
        bytes_per_second: section.bytes("bytes_per_second", 256 * MIB, MIB / 16..=65_536 * MIB)?,
        busy_share: section.number("busy_share", 0.25, 0.01..=1.0)?.into(),
        without_repository: section.flag("without_repository", false)?,
    })
}
