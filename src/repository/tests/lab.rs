//! A small volume in memory, and storing it.

use crate::device::Device;
use crate::device::sim::SimWorld;
use crate::error::Result;
use crate::repository::{
    Consistency, Entry, EntryKind, InitOptions, Names, Repository, Root, Snapshot, SnapshotId, SnapshotMeta, Writer,
    WriterOptions,
};
use crate::units::{FileId, Lsn, WallNs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

pub const VOLUME: Uuid = Uuid::from_u128(0x1234);
pub const PAGE: usize = 8192;

/// Numbers that look random and are the same each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("small")
    }
    pub fn page(&mut self) -> Vec<u8> {
        (0..PAGE / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// Files by id, each with its bytes, and which pages changed since the last snapshot.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Model {
    pub files: BTreeMap<u64, Vec<u8>>,
    pub dirty: BTreeMap<u64, BTreeSet<usize>>,
    /// The least size since the last snapshot.
    pub cut: BTreeMap<u64, usize>,
}

impl Model {
    pub fn write(&mut self, file: u64, offset: usize, bytes: &[u8]) {
        let content = self.files.entry(file).or_default();
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.dirty.entry(file).or_default().extend(offset / PAGE..(offset + bytes.len()).div_ceil(PAGE));
    }

    pub fn truncate(&mut self, file: u64, len: usize) {
        let content = self.files.entry(file).or_default();
        let shrinks = len < content.len();
        content.resize(len, 0);
        if shrinks {
            let cut = self.cut.entry(file).or_insert(len);
            *cut = len.min(*cut);
            self.dirty.entry(file).or_default().retain(|page| page * PAGE < len);
        }
    }

    /// As a volume forgets what changed once a snapshot is published.
    pub fn settled(&self) -> Model {
        Model { files: self.files.clone(), ..Model::default() }
    }
}

pub fn meta(taken: i64) -> SnapshotMeta {
    SnapshotMeta {
        lsn: Lsn(77),
        epoch: 5,
        taken: WallNs(taken * 1_000_000_000),
        consistency: Consistency::Crash,
        labels: BTreeMap::from([("why".to_owned(), "test".to_owned())]),
        backup_label: b"START WAL LOCATION".to_vec(),
    }
}

pub fn entry(kind: EntryKind) -> Entry {
    let time = WallNs(1_600_000_000_000_000_000);
    Entry {
        kind,
        mode: 0o640,
        uid: 26,
        gid: 26,
        atime: time,
        mtime: time,
        ctime: time,
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
        link: 0,
    }
}

pub fn options(parent: Option<SnapshotId>) -> WriterOptions {
    WriterOptions { volume: VOLUME, parent, now: WallNs(1), search_repository: true, parent_of_other_volume: false }
}

/// Small packs, so that a little data makes several.
pub fn new_repository(device: Arc<dyn Device>) -> Result<Repository> {
    Repository::init(device, &InitOptions { key: None, pack_bytes: 128 << 10, now: WallNs(0) })
}

pub fn repository_on(world: &SimWorld) -> Repository {
    new_repository(world.device("repository")).expect("a new repository")
}

/// Stores what changed, as an engine would.
pub fn take(repository: &Repository, model: &Model, parent: Option<SnapshotId>, taken: i64) -> Result<Root> {
    take_with(repository, model, options(parent), taken)
}

pub fn take_with(repository: &Repository, model: &Model, options: WriterOptions, taken: i64) -> Result<Root> {
    let full = options.parent.is_none();
    let writer = repository.begin(options)?;
    for (file, content) in &model.files {
        let id = FileId(*file);
        if full || writer.parent_file(id)?.is_none() {
            let mut update = writer.file(id, content.len() as u64, PAGE as u32)?;
            update.put(0, content)?;
            update.finish()?;
        } else if model.dirty.contains_key(file) || model.cut.contains_key(file) || resized(&writer, id, content)? {
            let mut update = writer.file(id, content.len() as u64, PAGE as u32)?;
            if let Some(cut) = model.cut.get(file) {
                update.cut(*cut as u64);
            }
            for page in model.dirty.get(file).into_iter().flatten() {
                let end = ((page + 1) * PAGE).min(content.len());
                update.put((page * PAGE) as u64, &content[page * PAGE..end])?;
            }
            update.finish()?;
        }
    }
    let names = names_of(&writer, model)?;
    writer.commit(names, meta(taken))
}

/// All files in one directory, named by their ids.
pub fn names_of(writer: &Writer<'_>, model: &Model) -> Result<Names> {
    let mut names = writer.namespace();
    names.add(b"", &entry(EntryKind::Directory))?;
    names.add(b"base", &entry(EntryKind::Directory))?;
    for file in model.files.keys() {
        names.add(format!("base/{file:05}").as_bytes(), &entry(EntryKind::File { file: FileId(*file) }))?;
    }
    writer.end_namespace(names)
}

fn resized(writer: &Writer<'_>, file: FileId, content: &[u8]) -> Result<bool> {
    Ok(writer.parent_file(file)?.is_none_or(|before| before.size != content.len() as u64))
}

/// Everything that a snapshot says, compared with what it should say.
pub fn check(snapshot: &Snapshot<'_>, model: &Model) -> std::result::Result<(), String> {
    let text = |e: crate::error::Error| e.to_string();
    let mut seen = BTreeMap::new();
    let mut files = Vec::new();
    let mut walk = snapshot.walk(b"base").map_err(text)?;
    while let Some((_, entry)) = walk.next().map_err(text)? {
        if let EntryKind::File { file } = entry.kind {
            files.push(file);
        }
    }
    for file in files {
        let content = snapshot.file(file).map_err(text)?;
        let mut bytes = vec![0; usize::try_from(content.size()).expect("small")];
        let n = content.read(0, &mut bytes).map_err(text)?;
        assert_eq!(n, bytes.len());
        seen.insert(file.0, bytes);
    }
    if seen == model.files { Ok(()) } else { Err("the snapshot's files are not those that were stored".to_owned()) }
}
