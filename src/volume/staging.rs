//! Staging files on the fastest tier: bytes that pending marks still need and that base or log are about to lose.
//!
//! Append-only files of batches (`ondisk::staged`), each batch one write and one sync; a file goes when nothing in it is needed any more. An address is
//! file number and offset in one. What is read back is verified, page by page, against checksums kept in memory.

use crate::device::{AlignedBuf, BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::bytes::put;
use crate::ondisk::image;
use crate::ondisk::mark::PendingMark;
use crate::ondisk::staged::{Batch, StagedEntry, batch_len, data_offset};
use crate::units::{PAGE, PAGE_BYTES};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

const DIR: &str = "staging";
/// A file that has reached this takes no further batch.
const FILE_BYTES: u64 = 64 << 20;
/// An image may take one in so many bytes of what staging may take.
const IMAGE_PART_OF_LIMIT: u64 = 4;

pub(super) struct Staging {
    device: Arc<dyn Device>,
    volume: Uuid,
    incarnation: u64,
    limit_bytes: AtomicU64,
    /// One batch at a time; held across I/O, and never by the foreground.
    writing: Mutex<()>,
    table: Mutex<Table>,
    /// What a mount found saved from bases; addresses in `at`.
    saved_bases: Mutex<Vec<StagedEntry>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// The file that takes the next batch.
    current: Option<u64>,
    files: BTreeMap<u64, StagingFile>,
}

struct StagingFile {
    file: Arc<dyn BackingFile>,
    end: u64,
    /// Bytes that some layer points at, or that were just written.
    live_bytes: i64,
    page_crcs: Vec<u32>,
}

/// A batch that was just written: counts as needed until it is let go.
pub(super) struct Written {
    /// Of the first data byte.
    pub address: u64,
    data_bytes: u64,
}

fn path_of(number: u64) -> String {
    format!("{DIR}/{number:08}.staged")
}

fn mark_path(epoch: u32) -> String {
    format!("{DIR}/{epoch:08x}.mark")
}

fn image_path(epoch: u32) -> String {
    format!("{DIR}/{epoch:08x}.image")
}

/// The bytes of the batch at `from`, if they are all there.
fn batch_at(bytes: &[u8], from: usize) -> Option<&[u8]> {
    let rest = bytes.get(from..)?;
    let len = Batch::len_of(rest).ok()?;
    rest.get(..usize::try_from(len).ok()?)
}

fn split(address: u64) -> (u64, u64) {
    (address >> 32, address & 0xffff_ffff)
}

impl Staging {
    pub fn new(device: Arc<dyn Device>, volume: Uuid, incarnation: u64, limit_bytes: u64) -> Staging {
        let (limit_bytes, writing, table) = (AtomicU64::new(limit_bytes), Mutex::new(()), Mutex::default());
        Staging { device, volume, incarnation, limit_bytes, writing, table, saved_bases: Mutex::default() }
    }

    fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.device.path())
    }

    fn names(&self, ending: &str) -> Result<Vec<String>> {
        match self.device.list(DIR) {
            Ok(names) => Ok(names.into_iter().filter(|name| name.ends_with(ending)).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("list", self.full(DIR), error)),
        }
    }

    /// Removes what an earlier mount left.
    pub fn clear(&self) -> Result<()> {
        self.names(".staged")?.iter().try_for_each(|name| self.remove_file(&format!("{DIR}/{name}")))
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        self.device.remove_file(path).map_err(|e| Error::io("remove", self.full(path), e))
    }

    fn read_whole(&self, path: &str) -> Result<(Arc<dyn BackingFile>, AlignedBuf, usize)> {
        let fail = |error| Error::io("read", self.full(path), error);
        let mode = OpenMode { direct: true, ..OpenMode::default() };
        let file = self.device.open(path, mode).map_err(fail)?;
        let len = usize::try_from(file.len().map_err(fail)?).unwrap_or(usize::MAX);
        let mut bytes = AlignedBuf::zeroed(len);
        let got = file.read_at(&mut bytes, 0).map_err(fail)?;
        Ok((file, bytes, got.min(len)))
    }

    /// The mark is pending from now on, until [`Staging::forget_mark`], whatever happens to this mount.
    pub fn note_mark(&self, mark: &PendingMark) -> Result<()> {
        let path = mark_path(mark.epoch);
        self.make_dir()?;
        self.write_small(&path, &mark.encode())
    }

    fn write_small(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let file = self.device.open(path, OpenMode { create: true, ..OpenMode::default() })?;
            file.set_len(bytes.len() as u64)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()?;
            self.device.sync_dir(DIR)
        };
        write().map_err(|e| Error::io("write", self.full(path), e))
    }

    /// Keeps `content` beside the mark, durably, for whoever goes on with it. It goes with the mark. Errors: `SnapshotFailed` when it is too large.
    pub fn keep_image(&self, epoch: u32, snapshot: Uuid, content: &[u8]) -> Result<()> {
        let (len, limit) = (content.len() as u64, self.limit_bytes());
        if len > limit / IMAGE_PART_OF_LIMIT {
            let why = format!("{len} bytes are more than a quarter of the {limit} that staging may take");
            return Err(Error::SnapshotFailed { why });
        }
        self.write_small(&image_path(epoch), &image::encode(self.volume, snapshot, content))
    }

    /// What was kept beside the mark; None: nothing, or nothing whole.
    pub fn image(&self, epoch: u32, snapshot: Uuid) -> Result<Option<Vec<u8>>> {
        let path = image_path(epoch);
        if !self.device.exists(&path).map_err(|e| Error::io("look for", self.full(&path), e))? {
            return Ok(None);
        }
        let (_, bytes, len) = self.read_whole(&path)?;
        let whole = image::decode(bytes.get(..len).unwrap_or_default());
        Ok(whole
            .ok()
            .filter(|(volume, of, _)| (*volume, *of) == (self.volume, snapshot))
            .map(|(_, _, content)| content))
    }

    /// Removes images of other marks than these, which a crash left behind.
    pub fn clear_images(&self, pending: &[u32]) -> Result<()> {
        let of_pending: Vec<String> = pending.iter().map(|&epoch| image_path(epoch)).collect();
        let paths = self.names(".image")?.into_iter().map(|name| format!("{DIR}/{name}"));
        paths.filter(|path| !of_pending.contains(path)).try_for_each(|path| self.remove_file(&path))
    }

    /// Returns when no mount will take the mark for a pending one any more.
    pub fn forget_mark(&self, epoch: u32) -> Result<()> {
        let path = mark_path(epoch);
        match self.device.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", self.full(&path), error));
            }
            // It may never have been written, when that failed.
            Err(_) => return Ok(()),
            Ok(()) => {}
        }
        self.device.sync_dir(DIR).map_err(|e| Error::io("sync", self.full(DIR), e))?;
        // Only after the mark, which nobody could go on with otherwise; left behind, it goes with the next mount.
        self.device.remove_file(&image_path(epoch)).ok();
        Ok(())
    }

    /// Marks whose files an earlier mount left. A file that was cut short is of a mark that nobody was told of.
    pub fn pending_marks(&self) -> Result<Vec<PendingMark>> {
        let mut marks = Vec::new();
        for name in self.names(".mark")? {
            let path = format!("{DIR}/{name}");
            let (_, bytes, len) = self.read_whole(&path)?;
            match PendingMark::decode(bytes.get(..len).unwrap_or_default()) {
                Ok(mark) if mark.volume == self.volume && mark_path(mark.epoch) == path => marks.push(mark),
                _ => self.remove_file(&path)?,
            }
        }
        marks.sort_by_key(|mark| mark.epoch);
        Ok(marks)
    }

    /// Takes over the batches that an earlier mount left. No batch is added to its files.
    pub fn load(&self) -> Result<()> {
        for name in self.names(".staged")? {
            let path = format!("{DIR}/{name}");
            let number = name.strip_suffix(".staged").and_then(|number| number.parse::<u64>().ok());
            let Some(number) = number.filter(|&number| path_of(number) == path) else { continue };
            let (file, bytes, _) = self.read_whole(&path)?;
            let (mut end, mut page_crcs) = (0, Vec::new());
            let mut saved = self.saved_bases.lock();
            // The first batch that does not verify was being written when the mount ended: nobody relied on it.
            while let Some(batch_bytes) = batch_at(&bytes, end)
                && let Ok(batch) = Batch::decode(batch_bytes)
                && batch.volume == self.volume
            {
                let start = number << 32 | end as u64;
                let of_base = batch.entries.iter().filter(|entry| entry.of_base);
                saved.extend(of_base.map(|entry| StagedEntry { at: start + entry.at, ..*entry }));
                page_crcs.extend(batch_bytes.chunks_exact(PAGE).map(crc32c::crc32c));
                end += batch_bytes.len();
            }
            let mut table = self.table.lock();
            table.next = table.next.max(number);
            table.files.insert(number, StagingFile { file, end: end as u64, live_bytes: 0, page_crcs });
        }
        Ok(())
    }

    /// What [`Staging::load`] found saved from bases, with addresses for offsets.
    pub fn take_saved_bases(&self) -> Vec<StagedEntry> {
        std::mem::take(&mut *self.saved_bases.lock())
    }

    /// Are so many bytes there at this address?
    pub fn holds(&self, address: u64, len: u64) -> bool {
        let (number, offset) = split(address);
        self.table.lock().files.get(&number).is_some_and(|file| offset + len <= file.end)
    }

    fn make_dir(&self) -> Result<()> {
        self.device.create_dir_all(DIR).map_err(|e| Error::io("create", self.full(DIR), e))?;
        self.device.sync_dir("").map_err(|e| Error::io("sync", self.full(""), e))
    }

    pub fn set_limit(&self, bytes: u64) {
        self.limit_bytes.store(bytes, Ordering::Relaxed);
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes.load(Ordering::Relaxed)
    }

    /// Bytes in use by some mark: what the limit counts. Files take more until the rest of them is not needed either.
    fn needed_bytes(&self) -> u64 {
        let live: i64 = self.table.lock().files.values().map(|file| file.live_bytes).sum();
        u64::try_from(live).unwrap_or(0)
    }

    /// Bytes that the files take.
    pub fn used_bytes(&self) -> u64 {
        self.table.lock().files.values().map(|file| file.end).sum()
    }

    /// Writes `data`, the bytes of all entries one after the other, and returns when they are durable (R15).
    pub fn write(&self, entries: Vec<StagedEntry>, data: &[u8]) -> Result<Written> {
        let _turn = self.writing.lock();
        let (count, len) = (entries.len(), batch_len(entries.len(), data.len()));
        let used = self.needed_bytes();
        if used + len as u64 > self.limit_bytes() {
            let why = format!("staging has {used} of {} bytes in use and needs {len} more", self.limit_bytes());
            return Err(Error::SnapshotFailed { why });
        }
        let mut buf = AlignedBuf::zeroed(len);
        put(&mut buf, data_offset(count), data);
        Batch { volume: self.volume, incarnation: self.incarnation, entries }.encode_into(&mut buf);
        let (number, file, offset) = self.file_for_next()?;
        let path = path_of(number);
        let written = file
            .write_all_at(&buf, offset)
            .map_err(|e| Error::io("write", self.full(&path), e))
            .and_then(|()| file.sync_data().map_err(|e| Error::io("sync", self.full(&path), e)));
        let mut table = self.table.lock();
        if let Err(error) = written {
            // What is in it behind the last batch is unknown now.
            table.current = None;
            return Err(error);
        }
        if let Some(file) = table.files.get_mut(&number) {
            file.end = offset + len as u64;
            file.page_crcs.extend(buf.chunks_exact(PAGE).map(crc32c::crc32c));
            file.live_bytes += i64::try_from(data.len()).unwrap_or(i64::MAX);
            if file.end >= FILE_BYTES {
                table.current = None;
            }
        }
        Ok(Written { address: number << 32 | (offset + data_offset(count) as u64), data_bytes: data.len() as u64 })
    }

    fn file_for_next(&self) -> Result<(u64, Arc<dyn BackingFile>, u64)> {
        let number = {
            let mut table = self.table.lock();
            if let Some(number) = table.current
                && let Some(file) = table.files.get(&number)
            {
                return Ok((number, file.file.clone(), file.end));
            }
            table.next += 1;
            table.next
        };
        let path = path_of(number);
        self.make_dir()?;
        let mode = OpenMode { create: true, direct: true, ..OpenMode::default() };
        let file = self.device.open(&path, mode).map_err(|e| Error::io("create", self.full(&path), e))?;
        self.device.sync_dir(DIR).map_err(|e| Error::io("sync", self.full(DIR), e))?;
        let mut table = self.table.lock();
        let entry = StagingFile { file: file.clone(), end: 0, live_bytes: 0, page_crcs: Vec::new() };
        table.files.insert(number, entry);
        table.current = Some(number);
        Ok((number, file, 0))
    }

    /// The batch's bytes are needed from now on only as far as [`Staging::count`] was told.
    pub fn let_go(&self, written: &Written) {
        self.count(written.address, -i64::try_from(written.data_bytes).unwrap_or(i64::MAX));
    }

    /// Somebody needs, or no longer needs, so many bytes at this address.
    pub fn count(&self, address: u64, bytes: i64) {
        if let Some(file) = self.table.lock().files.get_mut(&split(address).0) {
            file.live_bytes += bytes;
        }
    }

    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let (number, offset) = split(address);
        let (first, end) = (offset / PAGE_BYTES, (offset + out.len() as u64).div_ceil(PAGE_BYTES));
        let index = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        let found = {
            let table = self.table.lock();
            let crcs = |file: &StagingFile| file.page_crcs.get(index(first)..index(end)).map(<[u32]>::to_vec);
            table.files.get(&number).and_then(|file| Some((file.file.clone(), crcs(file)?)))
        };
        let path = self.full(&path_of(number));
        let corrupt =
            |why: &str| Error::Corrupt { what: "staged bytes", path: path.clone(), offset, why: why.to_string() };
        let Some((file, crcs)) = found else { return Err(corrupt("the staging file is gone")) };
        let mut pages = AlignedBuf::zeroed(index(end - first) * PAGE);
        let got = file.read_at(&mut pages, first * PAGE_BYTES).map_err(|e| Error::io("read", &path, e))?;
        if got < pages.len() || !pages.chunks_exact(PAGE).map(crc32c::crc32c).eq(crcs) {
            return Err(corrupt("the bytes do not match their checksum"));
        }
        let skip = index(offset - first * PAGE_BYTES);
        out.copy_from_slice(pages.get(skip..skip + out.len()).unwrap_or_default());
        Ok(())
    }

    /// Files that nothing points into any more. They never will again.
    pub fn unneeded(&self) -> Vec<u64> {
        // Whoever is writing writes to the current file.
        let turn = self.writing.try_lock();
        let mut table = self.table.lock();
        let current = table.current;
        if turn.is_some() {
            table.current = None;
        }
        let unneeded = table.files.iter().filter(|(_, file)| file.live_bytes <= 0).map(|(&number, _)| number);
        let numbers: Vec<u64> = unneeded.filter(|number| turn.is_some() || Some(*number) != current).collect();
        if !current.is_some_and(|current| numbers.contains(&current)) {
            table.current = current;
        }
        numbers
    }

    pub fn has_unneeded(&self) -> bool {
        self.table.lock().files.values().any(|file| file.live_bytes <= 0)
    }

    /// Removes files that were found [`unneeded`](Staging::unneeded) before all readers that may have known them left.
    pub fn remove(&self, numbers: &[u64]) -> Result<()> {
        for &number in numbers {
            self.table.lock().files.remove(&number);
            self.remove_file(&path_of(number))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::SimWorld;
    use crate::units::FileId;

    fn staging(limit: u64) -> (SimWorld, Staging) {
        let world = SimWorld::new(1);
        let device: Arc<dyn Device> = world.device("nvme");
        (world, Staging::new(device, Uuid::from_u128(1), 1, limit))
    }

    fn entry(len: u64) -> Vec<StagedEntry> {
        vec![StagedEntry { file: FileId(1), start: 0, end: len, at: 0, epoch: 1, of_base: true }]
    }

    #[test]
    fn what_is_written_is_read_and_files_go_when_nothing_is_needed() {
        let (world, staging) = staging(1 << 20);
        let first = staging.write(entry(5), b"first").expect("writes");
        let second = staging.write(entry(6), b"second").expect("writes");
        staging.count(second.address + 2, 4);
        staging.let_go(&first);
        staging.let_go(&second);
        let mut out = [0; 4];
        staging.read(second.address + 2, &mut out).expect("reads");
        assert_eq!(&out, b"cond");
        assert!(!staging.has_unneeded() && staging.unneeded().is_empty());
        staging.count(second.address + 2, -4);
        let unneeded = staging.unneeded();
        staging.remove(&unneeded).expect("removes");
        assert_eq!(staging.used_bytes(), 0);
        assert_eq!(world.device("nvme").list(DIR).expect("lists"), Vec::<String>::new());
        staging.write(entry(3), b"new").expect("a new file is begun");
    }

    #[test]
    fn the_limit_counts_what_is_needed() {
        let (_world, staging) = staging(3 * PAGE_BYTES);
        let long = vec![1; 2 * PAGE];
        let first = staging.write(entry(2 * PAGE_BYTES), &long).expect("writes");
        assert!(matches!(staging.write(entry(5), b"again"), Err(Error::SnapshotFailed { .. })));
        staging.let_go(&first);
        staging.write(entry(5), b"again").expect("there is room");
    }

    #[test]
    fn damage_is_named() {
        let (world, staging) = staging(1 << 20);
        let written = staging.write(entry(5), b"first").expect("writes");
        let file = world.device("nvme").open(&path_of(1), OpenMode::default()).expect("opens");
        file.write_all_at(b"F", written.address & 0xffff_ffff).expect("damages");
        let error = staging.read(written.address, &mut [0; 5]).expect_err("is noticed");
        assert!(error.to_string().contains("00000001.staged"), "{error}");
    }
}
