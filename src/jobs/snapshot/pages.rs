//! PostgreSQL's page checksums, looked at while a snapshot is captured.
//!
//! When a cluster in the volume has data checksums (`global/pg_control` says so; its layout has been the same from version 13 to 17, and 18 only adds to its
//! end), each page of a relation that is captured is verified as the server itself would when it reads it. A wrong one does not fail the snapshot, for the copy is as
//! the volume is; but it is counted, logged, kept with the snapshot, and told, because nobody may find out by restoring.
//!
//! **What can be seen.** A moment lies between two write() calls and the server writes a page with one, so no page is torn by the snapshot: a wrong sum
//! was wrong on the volume. A page whose header says that it is new must be all zeros. A last page that is not whole is none yet. **What is not read**, because it
//! has not changed since the parent, was verified when it was; the wrong pages that the parent knew of are looked at again in every snapshot, so that
//! each one says itself what is wrong in it.
//!
//! The sum is that of `src/include/storage/checksum_impl.h`: 32 interleaved FNV-1a hashes with an extra shift, folded, mixed with the
//! block's number within its relation.

use crate::error::Result;
use crate::units::FileId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

/// The only size of pages that is looked at; it is PostgreSQL's unless it was compiled otherwise.
const PAGE_BYTES: usize = 8192;
/// Wrong pages of one snapshot that are named; beyond they are counted.
const NAMED_MAX: usize = 1000;
const CONTROL: &str = "global/pg_control";
/// The file is 8 KiB, of which less than this is used.
const CONTROL_BYTES: usize = 512;
/// The constant by which the server tells that it reads its own kind of file.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// Reads a file as of the mark: bytes from an offset, and how many there were.
pub(super) type ReadAt<'a> = &'a dyn Fn(FileId, u64, &mut [u8]) -> Result<usize>;

/// A page whose checksum is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadPage {
    /// From the volume's root.
    pub path: String,
    /// Counted from the beginning of the relation, through all its segments.
    pub block: u32,
}

impl BadPage {
    /// The directory of its cluster, with the slash unless it is the root, and the path within.
    pub fn in_cluster(&self) -> (&str, &str) {
        let prefix = segment(&self.path).map_or(0, |(prefix, _)| prefix);
        self.path.split_at_checked(prefix).unwrap_or(("", &self.path))
    }
}

/// What was found in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageReport {
    /// Pages verified while this snapshot was captured.
    pub checked: u64,
    /// All wrong pages in it, those it shares with its parent included.
    pub bad: u64,
    /// The first [`NAMED_MAX`] of them.
    pub named: Vec<BadPage>,
}

/// A file of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    path: String,
    /// Of the cluster's directory within the path, in bytes.
    prefix: usize,
    number: u32,
}

/// Files that may be of interest, collected while the names are walked.
#[derive(Default)]
pub(super) struct PageFiles {
    segments: HashMap<FileId, Segment>,
    /// `pg_control` by the directory of its cluster.
    controls: BTreeMap<String, FileId>,
}

impl PageFiles {
    /// Takes note of a file that belongs to a cluster, by its path from the volume's root.
    pub(super) fn meet(&mut self, path: &[u8], file: FileId) {
        let Ok(path) = std::str::from_utf8(path) else { return };
        if let Some(directory) = path.strip_suffix(CONTROL)
            && (directory.is_empty() || directory.ends_with('/'))
        {
            self.controls.insert(directory.to_owned(), file);
        } else if let Some((prefix, number)) = segment(path) {
            self.segments.entry(file).or_insert_with(|| Segment { path: path.to_owned(), prefix, number });
        }
    }
}

/// The verification of one snapshot.
pub(super) struct Pages {
    segments: HashMap<FileId, Segment>,
    /// By directory, of clusters with checksums: blocks in a segment.
    clusters: BTreeMap<String, u32>,
    checked: AtomicU64,
    bad: Mutex<BTreeSet<BadPage>>,
    /// Beyond those that are named, found now or by the parent.
    unnamed: AtomicU64,
}

impl Pages {
    /// Finds out which of the files have checksums. `before`: what the parent knew, which is looked at again.
    pub(super) fn open(files: PageFiles, before: Option<&PageReport>, read: ReadAt<'_>) -> Result<Pages> {
        let mut clusters = BTreeMap::new();
        for (directory, file) in files.controls {
            let mut bytes = [0; CONTROL_BYTES];
            let filled = read(file, 0, &mut bytes)?;
            match segment_blocks(bytes.get(..filled).unwrap_or_default()) {
                Ok(Some(blocks)) => {
                    clusters.insert(directory, blocks);
                }
                Ok(None) => {}
                Err(why) => tracing::warn!("{directory}{CONTROL}: checksums of pages are not verified: {why}"),
            }
        }
        let mut segments = files.segments;
        segments.retain(|_, segment| segment.path.get(..segment.prefix).is_some_and(|dir| clusters.contains_key(dir)));
        let pages = Pages {
            segments,
            clusters,
            checked: AtomicU64::new(0),
            bad: Mutex::new(BTreeSet::new()),
            unnamed: AtomicU64::new(0),
        };
        if let Some(before) = before.filter(|before| before.bad > 0) {
            pages.look_again(before, read)?;
        }
        Ok(pages)
    }

    /// Is there anything to verify?
    fn any(&self) -> bool {
        !self.clusters.is_empty()
    }

    fn look_again(&self, before: &PageReport, read: ReadAt<'_>) -> Result<()> {
        let files: HashMap<&str, FileId> =
            self.segments.iter().map(|(file, segment)| (segment.path.as_str(), *file)).collect();
        let mut page = [0; PAGE_BYTES];
        for known in &before.named {
            let Some(file) = files.get(known.path.as_str()) else { continue };
            let Some(first) = self.segments.get(file).and_then(|segment| self.first_block(segment)) else { continue };
            let at = u64::from(known.block.wrapping_sub(first)) * PAGE_BYTES as u64;
            let filled = read(*file, at, &mut page)?;
            self.look(*file, at, page.get(..filled).unwrap_or_default());
        }
        let unnamed = before.bad.saturating_sub(before.named.len() as u64);
        self.unnamed.fetch_add(unnamed, Ordering::Relaxed);
        Ok(())
    }

    /// The number of a segment's first block in its relation.
    fn first_block(&self, segment: &Segment) -> Option<u32> {
        let blocks = self.clusters.get(segment.path.get(..segment.prefix)?)?;
        segment.number.checked_mul(*blocks)
    }

    /// Verifies the pages among these bytes, which begin on a page of the file.
    pub(super) fn check(&self, file: FileId, at: u64, bytes: &[u8]) {
        let checked = self.look(file, at, bytes);
        self.checked.fetch_add(checked, Ordering::Relaxed);
    }

    /// Returns the number of pages looked at.
    fn look(&self, file: FileId, at: u64, bytes: &[u8]) -> u64 {
        let Some(segment) = self.segments.get(&file) else { return 0 };
        let first = self.first_block(segment).zip(u32::try_from(at / PAGE_BYTES as u64).ok());
        let Some(first) = first.and_then(|(first, within)| first.checked_add(within)) else { return 0 };
        let mut block = first;
        for page in bytes.as_chunks::<PAGE_BYTES>().0 {
            if !is_sound(page, block) {
                self.found(BadPage { path: segment.path.clone(), block });
            }
            block = block.wrapping_add(1);
        }
        u64::from(block.wrapping_sub(first))
    }

    fn found(&self, page: BadPage) {
        let mut bad = self.bad.lock();
        if bad.contains(&page) {
            return;
        }
        if bad.len() < NAMED_MAX {
            tracing::error!("{}: the checksum of block {} is wrong on the volume", page.path, page.block);
            bad.insert(page);
        } else {
            self.unnamed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was found; None when no cluster here has checksums.
    pub(super) fn report(&self) -> Option<PageReport> {
        let named: Vec<BadPage> = self.bad.lock().iter().cloned().collect();
        let bad = named.len() as u64 + self.unnamed.load(Ordering::Relaxed);
        self.any().then(|| PageReport { checked: self.checked.load(Ordering::Relaxed), bad, named })
    }
}

/// Of the path of a relation's file: the length of the cluster's directory, and the segment's number.
fn segment(path: &str) -> Option<(usize, u32)> {
    let (directories, name) = path.rsplit_once('/')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (name, number) = match name.split_once('.') {
        Some((name, number)) if digits(number) => (name, number.parse().ok()?),
        Some(_) => return None,
        None => (name, 0),
    };
    let (relation, fork) = name.split_once('_').unwrap_or((name, "fsm"));
    if !digits(relation) || !["fsm", "vm", "init"].contains(&fork) {
        return None;
    }
    let parts: Vec<&str> = directories.split('/').collect();
    let below = match parts.as_slice() {
        [.., "global"] => 1,
        [.., "base", database] if digits(database) => 2,
        // A tablespace that lies in the data directory itself.
        [.., "pg_tblspc", space, version, database]
            if digits(space) && version.starts_with("PG_") && digits(database) =>
        {
            4
        }
        _ => return None,
    };
    let prefix = parts.iter().rev().skip(below).map(|part| part.len() + 1).sum();
    Some((prefix, number))
}

/// Blocks in a segment of a cluster with checksums, by its `pg_control`. None: it has none. The error says why it cannot be told.
fn segment_blocks(control: &[u8]) -> std::result::Result<Option<u32>, &'static str> {
    let word =
        |at: usize| control.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
    let format = FLOAT_FORMAT.to_le_bytes();
    let at = control.chunks_exact(8).position(|chunk| chunk == format).ok_or("it is of an unknown layout")? * 8;
    // After it: sizes of page, segment, WAL page, WAL segment, name, index, toast, large object; a flag; the version of the
    // checksums; since 18 a flag; a nonce of 32 bytes; the sum of all before.
    let sum_at = |end: usize| word(end) == control.get(..end).map(crc32c::crc32c) && word(end).is_some();
    if !sum_at(at + 80) && !sum_at(at + 84) {
        return Err("its own checksum is wrong, or its layout is unknown");
    }
    match (word(at + 44), word(at + 8), word(at + 12)) {
        (Some(0), ..) => Ok(None),
        (Some(1), Some(bytes), Some(blocks)) if u64::from(bytes) == PAGE_BYTES as u64 && blocks > 0 => Ok(Some(blocks)),
        (Some(1), ..) => Err("its pages are not of 8 KiB"),
        _ => Err("its checksums are of an unknown kind"),
    }
}

/// As the server judges a page that it reads (`PageIsVerified`).
fn is_sound(page: &[u8; PAGE_BYTES], block: u32) -> bool {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    // The upper end of the free space is never 0 but in a page that was added and not filled yet.
    if half(14) == 0 {
        return page.iter().all(|byte| *byte == 0);
    }
    checksum(page, block) == half(8)
}

const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// Where the 32 hashes begin.
const BASES: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// PostgreSQL's sum of a page; its own field counts as 0.
fn checksum(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    let mut sums = BASES;
    let mix = |sum: &mut u32, word: u32| {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    };
    let mut words = [0; SUMS];
    for (number, row) in page.as_chunks::<{ SUMS * 4 }>().0.iter().enumerate() {
        for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        if number == 0 {
            // The field is the lower half of the third word.
            words[2] &= 0xFFFF_0000;
        }
        for (sum, word) in sums.iter_mut().zip(words) {
            mix(sum, word);
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| mix(sum, 0));
    }
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
