//! Mends a repository: what it has lost is looked for in live files, and in the copies of its snapshots that another repository has, and stored again.
//!
//! Nothing is taken on trust: bytes count if they have the name of what is lost (I8), wherever they come from. So whatever lies where a hurt file is hurt
//! is tried, as whole slots and as pages of each size. Nodes of trees cannot be found like this; a pack of them comes back from a backup only.

use crate::device::real::RealDevice;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::repository::{
    COPIED_FROM, EntryKind, HurtFile, ObjectId, Repository, Root, SLOT_BYTES, Snapshot, VerifyOptions, VerifyReport,
};
use crate::units::WallNs;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// What pages may be long, in bytes; slots are tried, too.
const PAGE_SIZES: [usize; 3] = [4096, 8192, 16384];

/// Where lost bytes may still be.
pub struct MendSources<'a> {
    /// A directory with files of the volume: itself, or a restore of it.
    pub live: Option<&'a Path>,
    /// Another repository, with copies of snapshots.
    pub copies: Option<&'a Repository>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Mended {
    /// Objects that the index, which was damaged, lists again; None: it was sound.
    pub index_rebuilt: Option<u64>,
    pub lost: u64,
    pub mended: u64,
    /// What is still damaged, in words.
    pub left: Vec<String>,
}

/// Verifies all of the repository, and stores again what is found of what is lost. `progress`: bytes read, bytes to read.
pub fn mend(
    repository: &Repository,
    sources: &MendSources<'_>,
    now: WallNs,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Mended> {
    let mut mended = Mended::default();
    let options = VerifyOptions::full(now);
    let report = match repository.verify(&options, progress) {
        Err(Error::Corrupt { what: "index segment", .. }) => {
            mended.index_rebuilt = Some(repository.rebuild_index(now)?);
            repository.verify(&options, progress)?
        }
        report => report?,
    };
    let mut search =
        Search { repository, wanted: report.lost.iter().map(|object| object.id).collect(), found: HashMap::new() };
    search.look(&report, sources)?;
    let mut found = search.found;
    let still_lost = repository.repair(&report.lost, now, &mut |object| found.remove(&object.id))?;
    mended.lost = report.lost.len() as u64;
    mended.mended = mended.lost - still_lost.len() as u64;
    if !still_lost.is_empty() {
        mended.left = report.damage;
        let hurt =
            report.hurt.iter().map(|hurt| format!("snapshot {} is hurt: {} files", hurt.snapshot, hurt.files.len()));
        mended.left.extend(hurt);
    }
    Ok(mended)
}

struct Search<'a> {
    repository: &'a Repository,
    wanted: HashSet<ObjectId>,
    found: HashMap<ObjectId, Vec<u8>>,
}

impl Search<'_> {
    fn look(&mut self, report: &VerifyReport, sources: &MendSources<'_>) -> Result<()> {
        let copies = sources.copies.map_or_else(|| Ok(Vec::new()), |other| copies_in(other, self.repository))?;
        if let Some(live) = sources.live {
            let device = RealDevice::open(live).map_err(|e| Error::io("open", live.display().to_string(), e))?;
            self.each_path(report, &mut |search, path, file| search.in_live(device.as_ref(), path, file));
        }
        for copy in copies.iter().rev() {
            self.each_path(report, &mut |search, path, file| search.in_copy(copy, path, file));
        }
        Ok(())
    }

    /// Until all is found.
    fn each_path(&mut self, report: &VerifyReport, try_at: &mut dyn FnMut(&mut Self, &[u8], &HurtFile)) {
        for file in report.hurt.iter().flat_map(|hurt| &hurt.files) {
            for path in &file.paths {
                if self.found.len() < self.wanted.len() {
                    try_at(self, path, file);
                }
            }
        }
    }

    /// A file that cannot be read offers nothing.
    fn in_live(&mut self, device: &dyn Device, path: &[u8], file: &HurtFile) {
        let Ok(path) = std::str::from_utf8(path) else { return };
        let mode = OpenMode { read_only: true, ..OpenMode::default() };
        let Ok(live) = device.open(path, mode) else { return };
        self.slots(file, &mut |offset, buf| live.read_at(buf, offset).unwrap_or(0));
    }

    fn in_copy(&mut self, copy: &Snapshot<'_>, path: &[u8], file: &HurtFile) {
        let Ok(Some(entry)) = copy.lookup(path) else { return };
        let EntryKind::File { file: id } = entry.kind else { return };
        let Ok(content) = copy.file(id) else { return };
        self.slots(file, &mut |offset, buf| content.read(offset, buf).unwrap_or(0));
    }

    /// Tries all slots that hurt ranges touch.
    fn slots(&mut self, file: &HurtFile, read: &mut dyn FnMut(u64, &mut [u8]) -> usize) {
        let mut slot = vec![0; usize::try_from(SLOT_BYTES).unwrap_or(0)];
        for &(start, end) in &file.ranges {
            for number in start / SLOT_BYTES..end.div_ceil(SLOT_BYTES) {
                let got = read(number * SLOT_BYTES, &mut slot);
                let bytes = slot.get(..got).unwrap_or_default();
                self.offer(bytes);
                PAGE_SIZES.iter().flat_map(|&size| bytes.chunks(size)).for_each(|page| self.offer(page));
            }
        }
    }

    fn offer(&mut self, bytes: &[u8]) {
        let id = self.repository.object_id(bytes);
        if self.wanted.contains(&id) {
            self.found.entry(id).or_insert_with(|| bytes.to_vec());
        }
    }
}

/// Snapshots in `other` that were copied from `repository`, oldest first.
fn copies_in<'r>(other: &'r Repository, repository: &Repository) -> Result<Vec<Snapshot<'r>>> {
    let prefix = format!("{}/", repository.id());
    let copied = |root: &Root| root.meta.labels.get(COPIED_FROM).is_some_and(|origin| origin.starts_with(&prefix));
    Ok(other.snapshots()?.iter().filter(|root| copied(root)).map(|root| other.reopen(root)).collect())
}
