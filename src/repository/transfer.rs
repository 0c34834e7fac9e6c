//! Snapshots from one repository to another.

use super::Repository;
use super::ids::SnapshotId;
use super::read::FileContent;
use super::root::Root;
use super::snapshot::Snapshot;
use super::writer::{Writer, WriterOptions};
use crate::error::Result;
use crate::units::{FileId, WallNs};

/// What a copy is built upon: the same snapshot in both repositories, whose difference to the copied one is all that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyBase {
    pub here: SnapshotId,
    pub there: SnapshotId,
}

/// The label that tells where a copied snapshot comes from.
pub const COPIED_FROM: &str = "copied-from";
const STEP_BYTES: usize = 1 << 20;

impl Repository {
    /// Stores a snapshot of this repository in another. Names of objects differ between repositories, so everything that is copied is read,
    /// verified, and stored anew. Returns the new root, labelled [`COPIED_FROM`]. `progress`: bytes read so far.
    pub fn copy_to(
        &self,
        id: SnapshotId,
        to: &Repository,
        base: Option<CopyBase>,
        now: WallNs,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Root> {
        let snapshot = self.snapshot(id)?;
        let before = base.map(|base| self.snapshot(base.here)).transpose()?;
        let writer = to.begin(WriterOptions {
            volume: snapshot.root.volume,
            parent: base.map(|base| base.there),
            now,
            search_repository: true,
            parent_of_other_volume: false,
        })?;
        let mut bytes = 0;
        let mut read = |more: u64| {
            bytes += more;
            progress(bytes);
        };
        match &before {
            Some(before) => snapshot.changed_files(before, &mut |file, _, after| {
                after.map_or(Ok(()), |_| copy_file(&snapshot, Some(before), &writer, file, &mut read))
            })?,
            None => snapshot.files(&mut |file, _| copy_file(&snapshot, None, &writer, file, &mut read))?,
        }
        let mut names = writer.namespace();
        if let Some(root) = snapshot.lookup(b"")? {
            names.add(b"", &root)?;
        }
        let mut walk = snapshot.walk(b"")?;
        while let Some((path, entry)) = walk.next()? {
            names.add(&path, &entry)?;
        }
        let names = writer.end_namespace(names)?;
        let mut meta = snapshot.root.meta.clone();
        meta.labels.insert(COPIED_FROM.to_owned(), format!("{}/{id}", self.id()));
        writer.commit(names, meta)
    }
}

fn copy_file(
    snapshot: &Snapshot<'_>,
    before: Option<&Snapshot<'_>>,
    writer: &Writer<'_>,
    file: FileId,
    read: &mut dyn FnMut(u64),
) -> Result<()> {
    let content = snapshot.file(file)?;
    let old = before.and_then(|before| before.file(file).ok()).map(|old| old.state);
    let mut update = writer.file(file, content.size(), content.state.page_bytes)?;
    // Without a counterpart over there, everything is new.
    let old = old.filter(|_| update.has_parent());
    let mut ranges = Vec::new();
    snapshot.changed_pages(old.as_ref(), Some(&content.state), &mut |start, end| {
        ranges.push((start, end));
        Ok(())
    })?;
    for (start, end) in ranges {
        copy_range(&content, &mut update, start, end.min(content.size()), read)?;
    }
    update.finish()?;
    Ok(())
}

fn copy_range(
    content: &FileContent<'_>,
    update: &mut super::file::FileUpdate<'_>,
    start: u64,
    end: u64,
    read: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut at = start;
    let mut buf = vec![0; STEP_BYTES];
    while at < end {
        let Some(run) = content.run(at)? else { break };
        // Steps end at multiples of their size, so that slots stay whole.
        let border = (at / STEP_BYTES as u64 + 1) * STEP_BYTES as u64;
        let stop = if run.hole { run.end.min(end) } else { run.end.min(end).min(border) };
        if run.hole {
            update.hole(at, stop - at)?;
        } else {
            let buf = &mut buf[..usize::try_from(stop - at).unwrap_or(0)];
            content.read(at, buf)?;
            update.put(at, buf)?;
            read(stop - at);
        }
        at = stop;
    }
    Ok(())
}
