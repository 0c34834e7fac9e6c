//! Durable state: block map, file rows and the redo point in redb on the fastest tier. Changed only by a checkpoint (and at
//! open and close), in one transaction each; never read or written on the hot path.

use super::blockmap::Place;
use super::changes::{ChangeMap, row_is_needed};
use super::reserve::Reserve;
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::log::RedoPoint;
use crate::ondisk::kept::KeptRow;
use crate::ondisk::rows::{FILE_ROW_LEN, FileRow, MAP_CHUNK_BLOCKS};
use crate::ondisk::sourced::SourceRow;
use crate::units::{FileId, WallNs};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

const PATH: &str = "state.redb";
const CACHE_BYTES: usize = 8 << 20;
/// One byte is kept for state for so many bytes of the log.
const LOG_PER_RESERVE: u64 = 64;
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const FILES: TableDefinition<u64, &[u8; FILE_ROW_LEN]> = TableDefinition::new("files");
const MAP: TableDefinition<(u64, u32), &[u8; MAP_CHUNK_BLOCKS]> = TableDefinition::new("map");

/// See `ondisk::changes`.
const CHANGES: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("changes");

/// See `ondisk::kept`.
const LAYERS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("layers");

/// See `ondisk::sourced`.
const SOURCES: TableDefinition<u64, &[u8]> = TableDefinition::new("sources");

/// Version of the `meta` row of a volume none of whose blocks is in a repository.
pub const VERSION: u32 = 1;
/// Version of the `meta` row as long as blocks may be in a repository: a program that does not know of them would read zeros.
pub const VERSION_SOURCED: u32 = 2;

/// One chunk of a block map as it is stored.
pub type ChunkBytes = [u8; MAP_CHUNK_BLOCKS];

/// A file and the chunks of its map, by index.
pub type StoredMap = (FileId, Vec<(u32, ChunkBytes)>);

/// The `meta` table's row `volume`, as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    pub version: u32,
    pub volume: Uuid,
    pub block_bytes: u32,
    pub segment_bytes: u64,
    pub segments: u32,
    pub tiers: Vec<String>,
    /// File ids below this may have been issued (R10).
    pub file_id_limit: u64,
    pub redo: RedoPoint,
    /// When the last checkpoint was: records committed before it do not change modification times at replay (R27).
    pub checkpoint_wall: WallNs,
    /// Mounts so far; each writes its number into its log groups.
    pub mounts: u64,
    /// The last mount ended with an empty log and a final checkpoint.
    pub clean: bool,
    /// Absent as long as no snapshot was ever taken.
    #[serde(default, skip_serializing_if = "Marked::is_unused")]
    pub marked: Marked,
    /// As long as the volume was rolled back and has not settled since. A program that does not know of it refuses the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
}

impl Meta {
    /// May blocks be in the repository that the volume was made from?
    pub fn needs_repository(&self) -> bool {
        self.version == VERSION_SOURCED
    }
}

/// What became of a rollback. Each step but the first is one that the next mount takes if whoever decided on it was cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// What the volume was before is kept.
    Open,
    /// What the volume was before goes.
    Confirmed,
    /// What the volume was before comes back; the snapshot's files, and what was written since, go.
    Undone,
}

/// The volume has two roots: what it was, and what a snapshot made of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Files below this id are of the root before, all others of the snapshot or made since.
    pub first_file: FileId,
    /// The repository's name of the snapshot.
    pub snapshot: String,
    /// When it was.
    pub at: WallNs,
    pub fate: Fate,
}

impl Rollback {
    /// Is it a file of the root before?
    pub fn is_from_before(&self, file: FileId) -> bool {
        file < self.first_file
    }

    /// Does this file go, now that it is decided?
    pub fn is_going(&self, file: FileId) -> bool {
        match self.fate {
            Fate::Open => false,
            Fate::Confirmed => self.is_from_before(file),
            Fate::Undone => !self.is_from_before(file),
        }
    }
}

/// What durable state knows of snapshots' marks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marked {
    /// What changes are counted under; 0: no snapshot was ever taken.
    pub epoch: u32,
    /// Changes up to this epoch are forgotten.
    pub floor: u32,
    /// Published snapshots that may be parents, by epoch.
    pub parents: Vec<Parent>,
    /// Snapshots that were in the making at the last checkpoint.
    pub pending: Vec<Uuid>,
}

impl Marked {
    fn is_unused(&self) -> bool {
        *self == Marked::default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    pub snapshot: Uuid,
    pub epoch: u32,
}

/// What durable state has of a file.
pub struct StoredFile {
    pub row: FileRow,
    /// Of its map.
    pub chunks: Vec<(u32, ChunkBytes)>,
    /// None: nothing of it is in a repository.
    pub source: Option<SourceRow>,
}

/// Epoch and row of each layer of a file.
pub type LayerRows = Vec<(u32, Vec<u8>)>;

/// Hears of rows: file, second half of the key, bytes.
type VisitRow<'a> = &'a mut dyn FnMut(FileId, u32, &[u8]) -> Result<()>;

/// What one checkpoint changes.
#[derive(Default)]
pub struct Changes {
    pub rows: Vec<(FileId, FileRow)>,
    pub chunks: Vec<(FileId, u32, ChunkBytes)>,
    /// Rows of changed pages.
    pub pages: Vec<(FileId, u32, Vec<u8>)>,
    /// All layers of a file, by epoch.
    pub layers: Vec<(FileId, LayerRows)>,
    pub gone: Vec<FileId>,
    /// Files that are in a snapshot; only when the volume is made.
    pub sources: Vec<(FileId, SourceRow)>,
    /// No block is in the repository any more: the rows about it go.
    pub forget_sources: bool,
}

pub struct State {
    /// None only while it is dropped.
    db: Option<Database>,
    path: String,
    file: Arc<dyn BackingFile>,
    reserve: Arc<Reserve>,
}

impl Drop for State {
    /// Closing writes; on a damaged database that may panic, and whoever found the damage is about to report it already.
    fn drop(&mut self) {
        let db = self.db.take();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(db))).is_err() {
            tracing::error!(path = self.path, "the state database is damaged; it was not closed in order");
        }
    }
}

struct Backend {
    file: Arc<dyn BackingFile>,
    reserve: Arc<Reserve>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_at(out, offset)?;
        if read == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.reserve.with_room(|| self.file.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.reserve.with_room(|| self.file.write_all_at(data, offset))
    }
}

impl State {
    /// Makes the state of a new volume, or replaces one that was never completed.
    pub fn create(device: &Arc<dyn Device>, meta: &Meta) -> Result<State> {
        if device.exists(PATH).map_err(|e| Error::io("look for", PATH, e))? {
            device.remove_file(PATH).map_err(|e| Error::io("remove", PATH, e))?;
        }
        let state = State::open_file(device, true)?;
        state.commit(meta, &Changes::default())?;
        device.sync_dir("").map_err(|e| Error::io("sync", device.path(), e))?;
        Ok(state)
    }

    pub fn open(device: &Arc<dyn Device>) -> Result<(State, Meta)> {
        let state = State::open_file(device, false)?;
        let meta = state.guarded(|| state.meta())?;
        Ok((state, meta))
    }

    fn open_file(device: &Arc<dyn Device>, create: bool) -> Result<State> {
        let path = format!("{}/{PATH}", device.path());
        let mode = OpenMode { create, ..OpenMode::default() };
        let file = device.open(PATH, mode).map_err(|e| Error::io("open", &path, e))?;
        let empty = file.len().map_err(|e| Error::io("read length of", &path, e))? == 0;
        if empty && !create {
            return Err(Error::State { path, why: "the file is empty".to_string() });
        }
        let reserve = Arc::new(Reserve::open(device).map_err(|e| Error::io("open the reserve beside", &path, e))?);
        let backend = Backend { file: file.clone(), reserve: reserve.clone() };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.create_with_backend(backend)));
        match opened {
            Ok(Ok(db)) => Ok(State { db: Some(db), path, file, reserve }),
            Ok(Err(error)) => Err(Error::State { path, why: error.to_string() }),
            Err(_) => Err(Error::State { path, why: "the database is damaged beyond reading".to_string() }),
        }
    }

    pub fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Keeps room for what the transactions of a log of `log_bytes` may make state grow by: a 64th of it, or half of what state takes if that is more.
    pub fn keep_room(&self, log_bytes: u64) -> Result<()> {
        let len = self.file.len().map_err(|e| Error::io("read length of", &self.path, e))?;
        let kept = self.reserve.keep((log_bytes / LOG_PER_RESERVE).max(len / 2));
        kept.map_err(|e| Error::io("keep room beside", &self.path, e))
    }

    fn db(&self) -> Result<&Database> {
        self.db.as_ref().ok_or_else(|| self.failed("it is closed"))
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::State { path: self.path.clone(), why: error.to_string() }
    }

    /// Reading a damaged database may panic inside of it: that becomes an error which names the path.
    fn guarded<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
            .unwrap_or_else(|_| Err(self.failed("the database is damaged beyond reading")))
    }

    fn meta(&self) -> Result<Meta> {
        let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
        let table = read.open_table(META).map_err(|e| self.failed(e))?;
        let row = table.get("volume").map_err(|e| self.failed(e))?;
        let row = row.ok_or_else(|| self.failed("the volume's row is missing"))?;
        let meta: Meta =
            serde_json::from_slice(row.value()).map_err(|e| self.failed(format!("the volume's row: {e}")))?;
        if ![VERSION, VERSION_SOURCED].contains(&meta.version) {
            let (found, known) = (meta.version, VERSION_SOURCED);
            return Err(
                self.failed(format!("version {found} of the state is not known here (this is version {known})"))
            );
        }
        Ok(meta)
    }

    /// One durable transaction.
    pub fn commit(&self, meta: &Meta, changes: &Changes) -> Result<()> {
        self.guarded(|| self.write_all(meta, changes))
    }

    fn write_all(&self, meta: &Meta, changes: &Changes) -> Result<()> {
        let mut write = self.db()?.begin_write().map_err(|e| self.failed(e))?;
        write.set_durability(Durability::Immediate).map_err(|e| self.failed(e))?;
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(META).map_err(|e| self.failed(e))?;
            let json = serde_json::to_vec(meta).map_err(|e| self.failed(e))?;
            table.insert("volume", json.as_slice()).map_err(|e| self.failed(e))?;
            let mut files = write.open_table(FILES).map_err(|e| self.failed(e))?;
            for (id, row) in &changes.rows {
                files.insert(id.0, &row.encode()).map_err(|e| self.failed(e))?;
            }
            let mut pages = write.open_table(CHANGES).map_err(|e| self.failed(e))?;
            for (id, index, row) in &changes.pages {
                pages.insert((id.0, *index), row.as_slice()).map_err(|e| self.failed(e))?;
            }
            let mut layers = write.open_table(LAYERS).map_err(|e| self.failed(e))?;
            for id in changes.layers.iter().map(|(id, _)| id).chain(&changes.gone) {
                layers.retain_in((id.0, 0)..=(id.0, u32::MAX), |_, _| false).map_err(|e| self.failed(e))?;
            }
            for (id, rows) in changes.layers.iter().filter(|(id, _)| !changes.gone.contains(id)) {
                for (epoch, row) in rows {
                    layers.insert((id.0, *epoch), row.as_slice()).map_err(|e| self.failed(e))?;
                }
            }
            for id in &changes.gone {
                pages.retain_in((id.0, 0)..=(id.0, u32::MAX), |_, _| false).map_err(|e| self.failed(e))?;
                files.remove(id.0).map_err(|e| self.failed(e))?;
            }
        }
        self.write_maps(&write, changes)?;
        write.commit().map_err(|e| self.failed(e))
    }

    /// Maps, and what is in the repository where they have no rows.
    fn write_maps(&self, write: &redb::WriteTransaction, changes: &Changes) -> Result<()> {
        let mut map = write.open_table(MAP).map_err(|e| self.failed(e))?;
        let mut sources = write.open_table(SOURCES).map_err(|e| self.failed(e))?;
        for (id, row) in &changes.sources {
            sources.insert(id.0, row.encode().as_slice()).map_err(|e| self.failed(e))?;
        }
        for (id, index, bytes) in &changes.chunks {
            // Where the file is in the repository without a row, holes have to be said.
            let is_silent =
                bytes.iter().all(|&byte| byte == 0) && sources.get(id.0).map_err(|e| self.failed(e))?.is_none();
            if is_silent {
                map.remove((id.0, *index)).map_err(|e| self.failed(e))?;
            } else {
                map.insert((id.0, *index), bytes).map_err(|e| self.failed(e))?;
            }
        }
        for id in &changes.gone {
            map.retain_in((id.0, 0)..=(id.0, u32::MAX), |_, _| false).map_err(|e| self.failed(e))?;
            sources.remove(id.0).map_err(|e| self.failed(e))?;
        }
        if changes.forget_sources {
            // Whoever counted the blocks says that none is there any more: a row that says otherwise must not be lost with this.
            for entry in sources.iter().map_err(|e| self.failed(e))? {
                let (id, row) = entry.map_err(|e| self.failed(e))?;
                let row = SourceRow::decode(row.value()).map_err(|e| self.failed(e.0))?;
                self.check_no_source(&map, id.value(), &row)?;
            }
            sources.retain(|_, _| false).map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    fn check_no_source(
        &self,
        map: &impl ReadableTable<(u64, u32), &'static ChunkBytes>,
        id: u64,
        row: &SourceRow,
    ) -> Result<()> {
        let chunk = MAP_CHUNK_BLOCKS as u64;
        for index in row.ranges.iter().flat_map(|(first, end)| first / chunk..end.div_ceil(chunk)) {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let bytes = map.get((id, index)).map_err(|e| self.failed(e))?;
            let elsewhere = |bytes: &ChunkBytes| bytes.iter().all(|&byte| Place::from_byte(byte) != Place::REPOSITORY);
            if !bytes.is_some_and(|bytes| elsewhere(bytes.value())) {
                let file = FileId(id);
                return Err(self.failed(format!("file {file} is in the repository still, which nothing else says")));
            }
        }
        Ok(())
    }

    /// A file's row and map, if durable state has it.
    pub fn file(&self, id: FileId) -> Result<Option<StoredFile>> {
        self.guarded(|| self.read_file(id))
    }

    fn read_file(&self, id: FileId) -> Result<Option<StoredFile>> {
        let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
        let files = read.open_table(FILES).map_err(|e| self.failed(e))?;
        let Some(row) = files.get(id.0).map_err(|e| self.failed(e))? else { return Ok(None) };
        let row = FileRow::decode(row.value()).map_err(|e| self.failed(format!("row of file {id}: {}", e.0)))?;
        let map = read.open_table(MAP).map_err(|e| self.failed(e))?;
        let mut chunks = Vec::new();
        for entry in map.range((id.0, 0)..=(id.0, u32::MAX)).map_err(|e| self.failed(e))? {
            let (key, value) = entry.map_err(|e| self.failed(e))?;
            chunks.push((key.value().1, *value.value()));
        }
        let source = match read.open_table(SOURCES) {
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            table => {
                let table = table.map_err(|e| self.failed(e))?;
                let bytes = table.get(id.0).map_err(|e| self.failed(e))?;
                bytes.map(|bytes| self.source_row(id, bytes.value())).transpose()?
            }
        };
        Ok(Some(StoredFile { row, chunks, source }))
    }

    fn source_row(&self, id: FileId, bytes: &[u8]) -> Result<SourceRow> {
        SourceRow::decode(bytes).map_err(|e| self.failed(format!("source of file {id}: {}", e.0)))
    }

    /// Every file that was in a snapshot when the volume was made of it, and is still noted to be.
    pub fn for_each_source(&self, visit: &mut dyn FnMut(FileId, SourceRow)) -> Result<()> {
        self.guarded(|| {
            let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
            let table = match read.open_table(SOURCES) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                table => table.map_err(|e| self.failed(e))?,
            };
            for entry in table.iter().map_err(|e| self.failed(e))? {
                let (id, row) = entry.map_err(|e| self.failed(e))?;
                let id = FileId(id.value());
                visit(id, self.source_row(id, row.value())?);
            }
            Ok(())
        })
    }

    /// One durable transaction: the volume's row, and nothing kept of changes up to `floor`.
    pub fn forget_changes(&self, meta: &Meta, floor: u32) -> Result<()> {
        self.guarded(|| {
            let mut write = self.db()?.begin_write().map_err(|e| self.failed(e))?;
            write.set_durability(Durability::Immediate).map_err(|e| self.failed(e))?;
            write.set_quick_repair(true);
            {
                let mut table = write.open_table(META).map_err(|e| self.failed(e))?;
                let json = serde_json::to_vec(meta).map_err(|e| self.failed(e))?;
                table.insert("volume", json.as_slice()).map_err(|e| self.failed(e))?;
                let mut pages = write.open_table(CHANGES).map_err(|e| self.failed(e))?;
                pages.retain(|_, row| row_is_needed(row, floor)).map_err(|e| self.failed(e))?;
            }
            write.commit().map_err(|e| self.failed(e))
        })
    }

    /// Reads what is known of a file's changed pages.
    pub fn changes_of(&self, id: FileId, changes: &mut ChangeMap) -> Result<()> {
        self.read_rows(CHANGES, (id.0, 0)..=(id.0, u32::MAX), &mut |_, index, row| {
            changes.load_piece(index, row).map_err(|e| self.failed(format!("changes of file {id}: {}", e.0)))
        })
    }

    /// Every layer of every file, by file and epoch.
    pub fn for_each_layer(&self, visit: &mut dyn FnMut(FileId, u32, KeptRow)) -> Result<()> {
        self.read_rows(LAYERS, (0, 0)..=(u64::MAX, u32::MAX), &mut |id, epoch, row| {
            let row = KeptRow::decode(row);
            visit(id, epoch, row.map_err(|e| self.failed(format!("what is kept of file {id}: {}", e.0)))?);
            Ok(())
        })
    }

    /// Every row of changed pages.
    pub fn for_each_change(&self, visit: &mut dyn FnMut(FileId, &[u8])) -> Result<()> {
        self.read_rows(CHANGES, (0, 0)..=(u64::MAX, u32::MAX), &mut |id, _, row| {
            visit(id, row);
            Ok(())
        })
    }

    fn read_rows(
        &self,
        table: TableDefinition<'static, (u64, u32), &'static [u8]>,
        range: std::ops::RangeInclusive<(u64, u32)>,
        visit: VisitRow<'_>,
    ) -> Result<()> {
        self.guarded(|| {
            let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
            let table = match read.open_table(table) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                table => table.map_err(|e| self.failed(e))?,
            };
            for entry in table.range(range).map_err(|e| self.failed(e))? {
                let (key, row) = entry.map_err(|e| self.failed(e))?;
                let (id, index) = key.value();
                visit(FileId(id), index, row.value())?;
            }
            Ok(())
        })
    }

    /// Every file's row.
    pub fn for_each_row(&self, visit: &mut dyn FnMut(FileId, FileRow)) -> Result<()> {
        self.guarded(|| {
            let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
            let files = read.open_table(FILES).map_err(|e| self.failed(e))?;
            for entry in files.iter().map_err(|e| self.failed(e))? {
                let (key, row) = entry.map_err(|e| self.failed(e))?;
                let id = FileId(key.value());
                let row = FileRow::decode(row.value());
                visit(id, row.map_err(|e| self.failed(format!("row of file {id}: {}", e.0)))?);
            }
            Ok(())
        })
    }

    pub fn file_ids(&self) -> Result<Vec<FileId>> {
        self.guarded(|| self.read_file_ids())
    }

    fn read_file_ids(&self) -> Result<Vec<FileId>> {
        let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
        let files = read.open_table(FILES).map_err(|e| self.failed(e))?;
        let ids = files.iter().map_err(|e| self.failed(e))?;
        ids.map(|entry| entry.map(|(key, _)| FileId(key.value())).map_err(|e| self.failed(e))).collect()
    }

    /// The maps of files from `first` on, at least `chunks` chunks of them if there are as many, and the file after them.
    pub fn maps_from(&self, first: FileId, chunks: usize) -> Result<(Vec<StoredMap>, Option<FileId>)> {
        self.guarded(|| {
            let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
            let map = read.open_table(MAP).map_err(|e| self.failed(e))?;
            let (mut maps, mut count): (Vec<StoredMap>, usize) = (Vec::new(), 0);
            for entry in map.range((first.0, 0)..).map_err(|e| self.failed(e))? {
                let (key, value) = entry.map_err(|e| self.failed(e))?;
                let (id, index) = key.value();
                let chunk = (index, *value.value());
                count += 1;
                match maps.last_mut() {
                    Some((last, of_last)) if last.0 == id => of_last.push(chunk),
                    _ if count > chunks => return Ok((maps, Some(FileId(id)))),
                    _ => maps.push((FileId(id), vec![chunk])),
                }
            }
            Ok((maps, None))
        })
    }

    /// Every chunk of every map.
    pub fn for_each_chunk(&self, visit: &mut dyn FnMut(FileId, u32, &ChunkBytes)) -> Result<()> {
        self.guarded(|| self.read_chunks(visit))
    }

    fn read_chunks(&self, visit: &mut dyn FnMut(FileId, u32, &ChunkBytes)) -> Result<()> {
        let read = self.db()?.begin_read().map_err(|e| self.failed(e))?;
        let map = read.open_table(MAP).map_err(|e| self.failed(e))?;
        for entry in map.iter().map_err(|e| self.failed(e))? {
            let (key, value) = entry.map_err(|e| self.failed(e))?;
            let (id, index) = key.value();
            visit(FileId(id), index, value.value());
        }
        Ok(())
    }
}
