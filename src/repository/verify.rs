//! Verification: reads packs whole, checks every frame and every object, says which snapshots are hurt; and repair.
//!
//! `verify/ledger` tells when each pack was verified last and how that ended, so that a budget per day covers everything in turn, the longest
//! unverified first. It is replaced whole; losing it costs only verifying again.

use super::Repository;
use super::content::SLOT_BYTES;
use super::file::FileState;
use super::generations::Generations;
use super::ids::{ObjectId, ObjectRef, PackId, SnapshotId};
use super::index::{View, list_packs};
use super::namespace::EntryKind;
use super::read;
use super::root::Root;
use super::small::Kind;
use super::snapshot::Snapshot;
use super::table;
use super::writer::WriterOptions;
use super::{lease, pack::Class};
use crate::error::{Error, Result};
use crate::units::{FileId, WallNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use uuid::Uuid;

const LEDGER: &str = "verify/ledger";

/// How much to verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyOptions {
    pub now: WallNs,
    /// Stop after this many bytes of packs.
    pub budget_bytes: Option<u64>,
    /// Only every n-th pack, of those that are due; 1: all.
    pub one_in: u32,
    /// Also walk all trees, which finds packs that are missing. Without it they are walked only when damage was found.
    pub walk_trees: bool,
}

impl VerifyOptions {
    pub fn full(now: WallNs) -> VerifyOptions {
        VerifyOptions { now, budget_bytes: None, one_in: 1, walk_trees: true }
    }
}

/// What a verification found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    pub packs_verified: u64,
    pub packs_total: u64,
    pub bytes_read: u64,
    pub objects_verified: u64,
    /// The longest time ago that a pack was verified, now; None while one never was.
    pub oldest: Option<WallNs>,
    /// What is damaged, in the words of the error: path and offset.
    pub damage: Vec<String>,
    /// Objects that cannot be read anywhere, to be given to [`Repository::repair`].
    pub lost: Vec<ObjectRef>,
    pub hurt: Vec<Hurt>,
}

/// A snapshot with damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hurt {
    pub snapshot: SnapshotId,
    /// The names of files, or the table of files, cannot be read whole.
    pub tables: bool,
    pub files: Vec<HurtFile>,
}

/// A file with damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HurtFile {
    pub file: FileId,
    /// Its names, if they can be read.
    pub paths: Vec<Vec<u8>>,
    /// Ranges (start, end) of bytes that cannot be read.
    pub ranges: Vec<(u64, u64)>,
}

/// How verification stands, by the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyStanding {
    /// When a pack was verified last; None: none ever was.
    pub last: Option<WallNs>,
    /// Packs that are still there and were not sound.
    pub damaged: u64,
}

/// Per pack: when it was verified last, and whether it was sound.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    packs: BTreeMap<PackId, (WallNs, bool)>,
}

impl Repository {
    /// Reads packs and checks everything in them. Damage is no error here but a finding. `progress`: bytes read, bytes to read.
    pub fn verify(&self, options: &VerifyOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
        self.require_archive()?;
        let small = &self.store.small;
        self.store.forget();
        let view = self.store.index.refresh(small)?;
        let mut ledger = self.ledger();
        ledger.packs.retain(|pack, _| view.packs.contains(pack));
        let listed: HashSet<PackId> = view.segments.iter().flat_map(|segment| segment.packs.iter().copied()).collect();
        let due = due(&listed, &view, &ledger, options.one_in);
        let mut report = VerifyReport { packs_total: due.len() as u64, ..VerifyReport::default() };
        let mut suspects = Suspects::default();
        let device = small.device.as_ref();
        let len =
            |pack: &PackId| device.open(&pack.path(), super::read_only()).and_then(|file| file.len()).unwrap_or(0);
        let sizes: HashMap<PackId, u64> = due.iter().map(|pack| (*pack, len(pack))).collect();
        let total: u64 = sizes.values().sum::<u64>().min(options.budget_bytes.unwrap_or(u64::MAX));
        for pack in due {
            let bytes = sizes.get(&pack).copied().unwrap_or(0);
            if options
                .budget_bytes
                .is_some_and(|budget| report.bytes_read + bytes > budget && report.packs_verified > 0)
            {
                break;
            }
            let damage_before = report.damage.len();
            self.verify_pack(pack, &mut report, &mut suspects)?;
            ledger.packs.insert(pack, (options.now, report.damage.len() == damage_before));
            report.packs_verified += 1;
            report.bytes_read += bytes;
            progress(report.bytes_read, total);
        }
        let all_known =
            listed.iter().filter(|pack| view.packs.contains(pack)).all(|pack| ledger.packs.contains_key(pack));
        report.oldest = ledger.packs.values().map(|(when, _)| *when).min().filter(|_| all_known);
        if options.walk_trees || !report.damage.is_empty() {
            self.find_hurt(&mut suspects, &mut report)?;
        }
        if self.check_writable().is_ok() {
            let generation = Generations::load(device)?.current();
            // A repository that cannot be written to can be verified nevertheless.
            if let Err(error) = small.replace(Kind::Ledger, LEDGER, generation, &ledger) {
                tracing::warn!("what was verified is not noted: {error}");
            }
        }
        Ok(report)
    }

    /// Reads the ledger only.
    pub fn verify_standing(&self) -> Result<VerifyStanding> {
        let (ledger, view) = (self.ledger(), self.store.index.view(&self.store.small)?);
        let damaged = ledger.packs.iter().filter(|(pack, (_, sound))| !sound && view.packs.contains(pack)).count();
        Ok(VerifyStanding { last: ledger.packs.values().map(|(when, _)| *when).max(), damaged: damaged as u64 })
    }

    /// Packs in which damage was found when they were verified last.
    pub(super) fn unsound_packs(&self) -> HashSet<PackId> {
        self.ledger().packs.into_iter().filter(|(_, (_, sound))| !sound).map(|(pack, _)| pack).collect()
    }

    fn ledger(&self) -> Ledger {
        // One that does not read is as good as none.
        self.store.small.read(Kind::Ledger, LEDGER).ok().flatten().unwrap_or_default()
    }

    fn verify_pack(&self, pack: PackId, report: &mut VerifyReport, suspects: &mut Suspects) -> Result<()> {
        let opened = self.store.contents(pack);
        let (reader, contents) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                suspects.packs.insert(pack);
                report.damage.push(error.to_string());
                return Ok(());
            }
        };
        let mut objects: BTreeMap<u32, Vec<ObjectRef>> = BTreeMap::new();
        for entry in &contents.objects {
            objects.entry(entry.frame).or_default().push(ObjectRef { id: entry.id, place: entry.place(pack) });
        }
        for (frame, objects) in objects {
            let raw = reader.frame(self.store.keys(), frame);
            for object in objects {
                let start = usize::try_from(object.place.start).unwrap_or(usize::MAX);
                let len = usize::try_from(object.place.len).unwrap_or(usize::MAX);
                let bytes = raw.as_ref().ok().and_then(|raw| raw.get(start..start.checked_add(len)?));
                report.objects_verified += 1;
                if bytes.is_none_or(|bytes| self.store.keys().object_id(bytes) != object.id) {
                    suspects.objects.insert(object.id);
                    let found = raw.as_ref().err().map_or_else(
                        || {
                            reader
                                .damage(frame, &format!("the bytes are not those of object {}", object.id))
                                .to_string()
                        },
                        ToString::to_string,
                    );
                    if report.damage.last() != Some(&found) {
                        report.damage.push(found);
                    }
                }
            }
        }
        Ok(())
    }

    /// Walks all snapshots, and says which cannot be read whole.
    fn find_hurt(&self, suspects: &mut Suspects, report: &mut VerifyReport) -> Result<()> {
        let view = self.store.index.view(&self.store.small)?;
        let mut lost = BTreeSet::new();
        for root in self.snapshots()? {
            let mut walk = HurtWalk {
                repository: self,
                view: &view,
                suspects: &mut *suspects,
                lost: &mut lost,
                files: Vec::new(),
                tables: false,
            };
            walk.snapshot(&root)?;
            let (tables, mut files) = (walk.tables, walk.files);
            if !tables && files.is_empty() {
                continue;
            }
            self.name_files(&root, &mut files);
            report.hurt.push(Hurt { snapshot: root.id, tables, files });
        }
        report.lost = lost.into_iter().collect();
        Ok(())
    }

    fn name_files(&self, root: &Root, files: &mut [HurtFile]) {
        let snapshot = Snapshot::new(self, root.clone());
        let Ok(mut walk) = snapshot.walk(b"") else { return };
        while let Ok(Some((path, entry))) = walk.next() {
            if let EntryKind::File { file } = entry.kind
                && let Some(hurt) = files.iter_mut().find(|hurt| hurt.file == file)
            {
                hurt.paths.push(path);
            }
        }
    }

    /// Stores lost objects again, as far as `offer` has their bytes: from a live block, another repository. What is offered is taken only if it is what
    /// the object is named after. Returns what is still lost.
    pub fn repair(
        &self,
        lost: &[ObjectRef],
        now: WallNs,
        offer: &mut dyn FnMut(&ObjectRef) -> Option<Vec<u8>>,
    ) -> Result<Vec<ObjectRef>> {
        self.require_archive()?;
        let writer = self.begin(mending(now))?;
        let mut still_lost = Vec::new();
        for object in lost {
            let bytes = offer(object).filter(|bytes| self.store.keys().object_id(bytes) == object.id);
            match bytes {
                Some(bytes) => {
                    writer.sink.put(Class::Data, object.id, &bytes)?;
                }
                None => still_lost.push(*object),
            }
        }
        writer.flush()?;
        drop(writer);
        self.store.forget();
        self.store.index.refresh(&self.store.small)?;
        Ok(still_lost)
    }

    /// Makes the index again from the packs' tables of contents: new segments for all finished packs that are there. What segments there were
    /// stays, unless it does not read: then it is removed. Returns the number of objects listed.
    pub fn rebuild_index(&self, now: WallNs) -> Result<u64> {
        self.require_archive()?;
        self.check_writable()?;
        let small = &self.store.small;
        let device = small.device.as_ref();
        let writer = self.begin(mending(now))?;
        let living: HashSet<_> = lease::list(small)?.into_iter().map(|(lease, _)| lease.id).collect();
        let mut objects = 0;
        for pack in list_packs(device)? {
            // A damaged or unfinished pack is for verification to name.
            let Ok((reader, contents)) = self.store.contents(pack) else { continue };
            if !living.contains(&reader.header.lease) {
                objects += contents.objects.len() as u64;
                writer.sink.list_again(pack, &contents)?;
            }
        }
        writer.flush()?;
        let damaged = |name: &String| {
            let opened = super::segment::Segment::open(device, &format!("index/{name}"), self.id());
            let read = opened.and_then(|segment| (0..segment.blocks()).try_for_each(|b| segment.block(b).map(drop)));
            matches!(read, Err(Error::Corrupt { .. }))
        };
        let names = device.list("index").map_err(|e| super::io_error(device, "list", "index", e))?;
        for name in names.iter().filter(|name| !name.ends_with(".part") && damaged(name)) {
            let path = format!("index/{name}");
            device.remove_file(&path).map_err(|e| super::io_error(device, "remove", &path, e))?;
        }
        self.store.index.refresh(small)?;
        Ok(objects)
    }
}

/// Packs to verify, the longest unverified first.
fn due(listed: &HashSet<PackId>, view: &View, ledger: &Ledger, one_in: u32) -> Vec<PackId> {
    let when = |pack: &PackId| ledger.packs.get(pack).map(|(when, _)| *when);
    let mut due: Vec<PackId> = listed.iter().copied().filter(|pack| view.packs.contains(pack)).collect();
    due.sort_by_key(|pack| (when(pack), *pack));
    due.into_iter().step_by(usize::try_from(one_in.max(1)).unwrap_or(1)).collect()
}

/// What may not be readable.
#[derive(Default)]
struct Suspects {
    objects: HashSet<ObjectId>,
    packs: HashSet<PackId>,
    /// Found out already: nodes and whether they can be read.
    judged: HashMap<ObjectId, bool>,
}

/// One snapshot's walk over its trees.
struct HurtWalk<'a> {
    repository: &'a Repository,
    view: &'a View,
    suspects: &'a mut Suspects,
    lost: &'a mut BTreeSet<ObjectRef>,
    files: Vec<HurtFile>,
    tables: bool,
}

impl HurtWalk<'_> {
    /// Suspicious objects are tried; the others were verified, or are as likely sound as anything that was not looked at.
    fn readable(&mut self, object: &ObjectRef) -> bool {
        let suspects = &mut *self.suspects;
        let doubtful = suspects.objects.contains(&object.id)
            || suspects.packs.contains(&object.place.pack)
            || !self.view.packs.contains(&object.place.pack);
        if !doubtful {
            return true;
        }
        let store = &self.repository.store;
        let readable = *suspects.judged.entry(object.id).or_insert_with(|| store.object(object).is_ok());
        if !readable {
            self.lost.insert(*object);
        }
        readable
    }

    fn snapshot(&mut self, root: &Root) -> Result<()> {
        let store = &self.repository.store;
        let mut tables = [root.names, root.files].map(|table| table.into_iter().collect::<Vec<_>>());
        while let Some(object) = tables[0].pop() {
            match self.node(&object) {
                Some(node) if node.level > 0 => tables[0].extend(node.children().unwrap_or_default()),
                Some(_) => {}
                None => self.tables = true,
            }
        }
        while let Some(object) = tables[1].pop() {
            match self.node(&object) {
                Some(node) if node.level > 0 => tables[1].extend(node.children().unwrap_or_default()),
                Some(node) => {
                    for (key, value) in &node.entries {
                        let file = FileId(key.as_slice().try_into().map_or(0, u64::from_be_bytes));
                        let state = FileState::decode(value)
                            .map_err(|why| table::NodeSource::malformed(store, &object, why))?;
                        self.file(file, state);
                    }
                }
                None => self.tables = true,
            }
        }
        Ok(())
    }

    fn node(&mut self, object: &ObjectRef) -> Option<table::Node> {
        if !self.readable(object) {
            return None;
        }
        let node = table::load(&self.repository.store, object).ok();
        if node.is_none() {
            self.lost.insert(*object);
        }
        node
    }

    fn file(&mut self, file: FileId, state: FileState) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut hurt = |start: u64, end: u64| match ranges.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => ranges.push((start, end)),
        };
        let store = &self.repository.store;
        let mut waiting: Vec<(ObjectRef, u8, u64)> =
            state.root.map(|root| (root, state.level, 0)).into_iter().collect();
        while let Some((object, level, start)) = waiting.pop() {
            let span = super::content::span(level);
            let readable = self.readable(&object);
            if level > 0 {
                match store.inner(&object).ok().filter(|_| readable) {
                    Some(inner) => {
                        let child = |(number, child): (&u8, &ObjectRef)| {
                            (*child, level - 1, start + u64::from(*number) * super::content::span(level - 1))
                        };
                        waiting.extend(inner.children.iter().rev().map(child));
                    }
                    None => hurt(start, start.saturating_add(span).min(state.size)),
                }
                continue;
            }
            let Some(leaf) = store.leaf(&object).ok().filter(|_| readable) else {
                hurt(start, start.saturating_add(span).min(state.size));
                continue;
            };
            for (number, slot) in &leaf.slots {
                let start = start + u64::from(*number) * SLOT_BYTES;
                let bad: Vec<ObjectId> = slot.objects().filter(|o| !self.readable(o)).map(|o| o.id).collect();
                for (from, to) in read::ranges_of(slot, &bad, state.page_bytes) {
                    hurt(start + u64::from(from), (start + u64::from(to)).min(state.size));
                }
            }
        }
        if !ranges.is_empty() {
            self.files.push(HurtFile { file, paths: Vec::new(), ranges });
        }
    }
}

/// Of a writer whose lease keeps new packs until a segment names them, and that makes no snapshot.
fn mending(now: WallNs) -> WriterOptions {
    WriterOptions { volume: Uuid::nil(), parent: None, now, search_repository: false, parent_of_other_volume: false }
}
