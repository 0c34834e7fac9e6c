//! Prune: gives back the space of what no snapshot uses. The only thing that ever deletes.
//!
//! Steps of one round, under the number n of the generation that it ends; each is durable before the next:
//!
//! 1. `close` n: from now on writers put their roots into n + 1.
//! 2. `seal` n: the roots that count. One that came after this list was made is void, and its writer finds that out.
//! 3. Leases: a writer that missed too many generations is fenced. The others' packs, parents and borrowed packs stay.
//! 4. Mark what the roots of the seal, those of n + 1 so far and the parents of writers use. A root that is deleted meanwhile still counts (`survey.rs`).
//! 5. `plan` n: packs of generations up to n with nothing (or too little) in use are condemned. From now on writers see it before
//!    they publish something borrowed.
//! 6. Look at what is borrowed: by leases and roots that were durable before their writers could see the plan. That stays.
//! 7. Write what is in use in condemned packs to new packs, with a segment.
//! 8. A new segment without the condemned packs; `final` n: what is deleted, and which segments count no more. The index now names none of them.
//! 9. Delete; `done` n.
//!
//! **Why nothing reachable is lost (I9).** A pack is deleted only if it is of generation n or older, of no living writer, and nothing in it is used by
//! a root that counts. Which other root could come to use it? One of a generation up to n that is not in the seal is void. One of n + 1 has its
//! pages from its parent, which was there when its lease was: so 4 finds the lease, or the parent, or (by the same
//! argument) what the parent was built upon, and marks that; from its own packs, which a lease protects or which are of n + 1; or borrowed: its lease
//! said so durably before it looked for the plan. Either that was after the plan, then it gives up, or before, and then 6 finds its lease, or its
//! root, or the lease or root of a child, which vouch for what a parent of the same generation borrowed.
//!
//! **A crash** at any point: the next prune takes the round up where its objects say it was. Two prunes at once come to the same
//! lists, since each object is created only if absent and the winner's is read by both.

use super::Repository;
use super::generations::{self, Final, Generations, Seal};
use super::ids::{Generation, LeaseId, ObjectRef, PackId, SnapshotId};
use super::index::{View, list_packs};
use super::lease::{self, Lease};
use super::mark::{Marks, Usage};
use super::pack::{Class, PackHeader, PackReader};
use super::plan::{self, Condemned, Plan, Reason};
use super::root::{self, Root};
use super::sink::Sink;
use super::small::{Kind, SmallObjects, io_error};
use crate::device::OpenMode;
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use survey::Survey;

mod clear;
mod merge;
mod survey;

/// What a prune may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PruneOptions {
    /// Packs of which less than this is in use are written anew.
    pub live_percent_min: u64,
    /// A writer that has not renewed its lease for this many prunes is given up. 0: none is.
    pub give_up_after: u32,
    /// Writers that are known to be dead.
    pub fence: Vec<LeaseId>,
}

impl Default for PruneOptions {
    fn default() -> PruneOptions {
        PruneOptions { live_percent_min: 60, give_up_after: 2, fence: Vec::new() }
    }
}

/// What a prune did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PruneReport {
    pub plan: Plan,
    pub packs_deleted: u64,
    pub bytes_deleted: u64,
    /// Raw bytes that were written anew.
    pub bytes_rewritten: u64,
    /// Condemned packs that stay until the next prune: borrowed meanwhile, or damaged.
    pub packs_kept_back: u64,
    /// Writers that were given up.
    pub fenced: Vec<String>,
}

/// As many small packs of one class as are worth gathering.
const SMALL_PACKS_MIN: usize = 8;
/// Segments are merged when there are more.
const SEGMENTS_MAX: usize = 16;
/// So often what is in use is marked anew when something was not found.
const MARKINGS_MAX: u32 = 4;
/// Left free when packs are written anew.
const SPARE_BYTES: u64 = 1 << 20;

impl Repository {
    /// What a prune would delete now, and the bytes that it would free, if these snapshots were deleted before. Changes nothing.
    pub fn plan_prune(&self, options: &PruneOptions, without: &[SnapshotId]) -> Result<Plan> {
        self.require_archive()?;
        let generation = Generations::load(self.store.small.device.as_ref())?.current();
        let round =
            Round { repository: self, small: &self.store.small, options, generation, forgotten: BTreeSet::new() };
        let mut roots = root::list(&self.store.small)?;
        roots.retain(|root| !without.contains(&root.id));
        let leases = lease::list(&self.store.small)?.into_iter().filter(|(_, fenced)| !fenced).map(|(lease, _)| lease);
        let leases: Vec<Lease> = leases.filter(|lease| !round.gives_up(lease)).collect();
        let marks = round.mark(&roots, &leases)?;
        round.plan(&roots, &leases, &marks)
    }

    /// Deletes what no snapshot uses. May run while writers are at work, and again after any crash.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        self.check_writable()?;
        self.require_archive()?;
        self.make_room()?;
        let small = &self.store.small;
        let round = |generation, forgotten| Round { repository: self, small, options, generation, forgotten };
        let generations = Generations::load(small.device.as_ref())?;
        if let Some(generation) = generations.unfinished() {
            // Which snapshots were deleted before it was closed is not known any more: they go with the next round.
            round(generation, BTreeSet::new()).run()?;
        }
        let forgotten = self.deleted()?;
        let generation = Generations::load(small.device.as_ref())?.current();
        let path = generations::path(generation, "close");
        let closed = small.create(Kind::Close, &path, generation, &generation)?;
        let report = round(generation, if closed { forgotten } else { BTreeSet::new() }).run()?;
        self.keep_reserve();
        Ok(report)
    }
}

struct Round<'r> {
    repository: &'r Repository,
    small: &'r SmallObjects,
    options: &'r PruneOptions,
    generation: Generation,
    /// Snapshots that were deleted before this generation was closed.
    forgotten: BTreeSet<SnapshotId>,
}

impl Round<'_> {
    fn run(&self) -> Result<PruneReport> {
        let mut report = PruneReport::default();
        let seal = self.seal()?;
        self.fence(&mut report)?;
        let last = match plan::final_of(self.small, self.generation)? {
            Some(last) => last,
            None => self.decide(&seal, &mut report)?,
        };
        self.delete(&last, &mut report)?;
        self.small.create(Kind::Done, &self.path("done"), self.generation, &self.generation)?;
        self.clear(&seal, &last)?;
        self.repository.store.index.refresh(self.small)?;
        Ok(report)
    }

    fn path(&self, what: &str) -> String {
        generations::path(self.generation, what)
    }

    /// The roots that count when the generation ends. A root put aside may come back, so it is among them.
    fn seal(&self) -> Result<Seal> {
        let path = self.path("seal");
        if let Some(seal) = self.small.read(Kind::Seal, &path)? {
            return Ok(seal);
        }
        let mut roots = root::list_with_aside(self.small)?;
        roots.retain(|root| !self.forgotten.contains(&root.id));
        let roots = roots.iter().filter(|root| root.generation <= self.generation).map(|root| root.id).collect();
        let seal = Seal { generation: self.generation, roots };
        self.small.create(Kind::Seal, &path, self.generation, &seal)?;
        let missing = || Error::Overtaken(format!("{path} is gone: another prune came further"));
        self.small.read(Kind::Seal, &path)?.ok_or_else(missing)
    }

    fn gives_up(&self, lease: &Lease) -> bool {
        let missed = self.generation.0.saturating_sub(lease.generation.0);
        let silent = self.options.give_up_after > 0 && missed >= self.options.give_up_after;
        lease.generation <= self.generation && (silent || self.options.fence.contains(&lease.id))
    }

    /// Gives writers up. One that renewed its lease before it could see the fence goes on, for us too: see [`Survey::living`].
    fn fence(&self, report: &mut PruneReport) -> Result<()> {
        for (lease, fenced) in lease::list(self.small)? {
            if !fenced && self.gives_up(&lease) {
                self.small.create(Kind::Fence, &lease::fence_path(lease.id), self.generation, &lease.generation)?;
                report.fenced.push(lease.id.to_string());
            }
        }
        Ok(())
    }

    /// Steps 4 to 8.
    fn decide(&self, seal: &Seal, report: &mut PruneReport) -> Result<Final> {
        let survey = Survey::take(self.small, &self.forgotten)?;
        let leases = survey.living(self.generation);
        let counting = |root: &Root| root::counts(root, Some(seal));
        let roots: Vec<Root> = survey.roots.into_iter().filter(counting).collect();
        let marks = self.mark(&roots, &leases)?;
        let plan = match plan::read(self.small, self.generation)? {
            // Of a prune that broke off. What it condemned may be in use by now only if it was borrowed, or was repaired.
            Some(plan) => plan,
            None => plan::create(self.small, self.generation, &self.plan(&roots, &leases, &marks)?)?,
        };
        let usage = marks.usage()?;
        let mut last = Final {
            generation: self.generation,
            kept: self.borrowed(&plan)?,
            forgotten: self.forgotten.clone(),
            ..Final::default()
        };
        let sink = Sink::new(
            &self.repository.store,
            LeaseId::random()?,
            self.generation.next(),
            self.repository.format.pack_bytes,
        );
        for (pack, condemned) in plan.packs() {
            let used = usage.get(&pack).is_some_and(|usage| usage.live_bytes > 0);
            let planned_so = matches!(condemned.reason, Reason::Sparse | Reason::Small) || !used;
            if last.kept.contains(&pack) || marks.unlisted.contains(&pack) || !planned_so {
                last.kept.insert(pack);
            } else if !used || self.rewrite(&sink, pack, &marks, report)? {
                last.delete.insert(pack);
            } else {
                last.kept.insert(pack);
            }
        }
        sink.flush()?;
        report.packs_kept_back = last.kept.len() as u64;
        self.merge_segments(&marks, &mut last)?;
        report.plan = plan;
        let path = self.path("final");
        self.small.create(Kind::Final, &path, self.generation, &last)?;
        // The lists of a round are cleared away only when a later generation was closed: then this round ended long ago, with
        // another list, and nothing may be deleted by this one.
        if Generations::load(self.small.device.as_ref())?.current() != self.generation.next() {
            self.remove(&path)?;
            return Err(Error::Overtaken(format!("{path}: another prune has finished this round")));
        }
        let missing = || Error::Overtaken(format!("{path} is gone: another prune came further"));
        plan::final_of(self.small, self.generation)?.ok_or_else(missing)
    }

    fn mark(&self, roots: &[Root], leases: &[Lease]) -> Result<Marks<'_>> {
        let index = &self.repository.store.index;
        let (mut view, mut attempts) = (index.refresh(self.small)?, 0);
        loop {
            attempts += 1;
            let error = match self.mark_by(Arc::clone(&view), roots, leases) {
                Err(error @ Error::Corrupt { .. }) => error,
                marked => return marked,
            };
            // Another prune may have moved what is not found since the index was read.
            let now = index.refresh(self.small)?;
            if now.packs == view.packs || attempts == MARKINGS_MAX {
                return Err(self.overtaken()?.unwrap_or(error));
            }
            view = now;
        }
    }

    fn mark_by(&self, view: Arc<View>, roots: &[Root], leases: &[Lease]) -> Result<Marks<'_>> {
        let mut marks = Marks::new(&self.repository.store, view);
        for root in roots {
            marks.root(root).map_err(|error| damaged(root.id, error))?;
        }
        for lease in leases {
            let parent = lease.parent.unwrap_or(SnapshotId(0));
            marks.tables(lease.names.as_ref(), lease.files.as_ref()).map_err(|error| damaged(parent, error))?;
        }
        Ok(marks)
    }

    /// The error for a round that another prune has brought to its end meanwhile.
    fn overtaken(&self) -> Result<Option<Error>> {
        let later = Generations::load(self.small.device.as_ref())?.current() > self.generation.next();
        let ended = later || plan::final_of(self.small, self.generation)?.is_some();
        Ok(ended.then(|| Error::Overtaken(format!("{}: another prune came further", self.path("plan")))))
    }

    fn plan(&self, roots: &[Root], leases: &[Lease], marks: &Marks<'_>) -> Result<Plan> {
        let mut plan = Plan {
            generation: self.generation.0,
            snapshots: roots.iter().map(|root| root.id.to_string()).collect(),
            objects_missing: marks.missing,
            ..Plan::default()
        };
        let usage = marks.usage()?;
        let mut small: BTreeMap<u8, Vec<(PackId, Condemned)>> = BTreeMap::new();
        let mut packs: Vec<PackId> = list_packs(self.small.device.as_ref())?.into_iter().collect();
        packs.sort_unstable();
        let archived = self.repository.archived_packs()?;
        let unsound = self.repository.unsound_packs();
        for pack in packs {
            let bytes = self.pack_bytes(pack)?;
            let usage = usage.get(&pack).copied().unwrap_or_default();
            let header = PackReader::header(self.small.device.as_ref(), pack)?;
            let judged = self.judge(pack, header.as_ref(), usage, leases, marks, unsound.contains(&pack));
            // What is archived would come back by being written anew.
            let rewritten = |reason: &Reason| matches!(reason, Reason::Sparse | Reason::Small);
            let condemned = match judged.filter(|reason| !(rewritten(reason) && archived.contains(&pack))) {
                Some(reason) => Condemned { reason, bytes, live_bytes: usage.live_bytes, raw_bytes: usage.raw_bytes },
                None => {
                    plan.packs_kept += 1;
                    plan.bytes_kept += bytes;
                    continue;
                }
            };
            if condemned.reason == Reason::Small {
                plan.packs_kept += 1;
                plan.bytes_kept += bytes;
                let class = header.map_or(0, |header| u8::from(header.class == Class::Meta));
                small.entry(class).or_default().push((pack, condemned));
            } else {
                plan.condemned.insert(pack.to_string(), condemned);
            }
        }
        for (pack, condemned) in small.into_values().filter(|packs| packs.len() >= SMALL_PACKS_MIN).flatten() {
            plan.packs_kept -= 1;
            plan.bytes_kept -= condemned.bytes;
            plan.condemned.insert(pack.to_string(), condemned);
        }
        self.fit_into_space(&mut plan)?;
        Ok(plan)
    }

    fn pack_bytes(&self, pack: PackId) -> Result<u64> {
        let device = self.small.device.as_ref();
        match device.open(&pack.path(), OpenMode { read_only: true, ..OpenMode::default() }).and_then(|file| file.len())
        {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            bytes => bytes.map_err(|e| io_error(device, "look at", &pack.path(), e)),
        }
    }

    /// Why a pack should go; None when it stays.
    fn judge(
        &self,
        pack: PackId,
        header: Option<&PackHeader>,
        usage: Usage,
        leases: &[Lease],
        marks: &Marks<'_>,
        unsound: bool,
    ) -> Option<Reason> {
        let owned = match header {
            Some(header) => leases.iter().any(|lease| lease.id == header.lease),
            // Begun a moment ago, or torn by a crash: it may be that of any writer.
            None => !leases.is_empty(),
        };
        if pack.generation() > self.generation || owned || marks.unlisted.contains(&pack) {
            return None;
        }
        if usage.objects == 0 {
            // With objects missing, packs that the index does not know are where they may be.
            return (marks.missing == 0).then_some(Reason::Unfinished);
        }
        if usage.live_bytes == 0 {
            return Some(Reason::Unused);
        }
        // What a repair stored again is not used here any more; if all of the rest can be read, the damage goes with the pack.
        if unsound || usage.live_bytes * 100 < usage.raw_bytes * self.options.live_percent_min {
            return Some(Reason::Sparse);
        }
        (usage.raw_bytes < self.repository.format.pack_bytes / 4).then_some(Reason::Small)
    }

    /// Writing anew needs room before it gives some back: what does not fit stays for a later prune.
    fn fit_into_space(&self, plan: &mut Plan) -> Result<()> {
        let device = self.small.device.as_ref();
        let space = device.space().map_err(|e| io_error(device, "ask for the space of", "", e))?;
        let mut room = space.available_bytes.saturating_sub(SPARE_BYTES);
        let mut kept = Vec::new();
        for (name, condemned) in &plan.condemned {
            match room.checked_sub(condemned.live_bytes * 2) {
                Some(left) => room = left,
                None if condemned.live_bytes > 0 => kept.push(name.clone()),
                None => {}
            }
        }
        for name in kept {
            if let Some(condemned) = plan.condemned.remove(&name) {
                plan.packs_kept += 1;
                plan.bytes_kept += condemned.bytes;
            }
        }
        plan.bytes_rewritten = plan.condemned.values().map(|condemned| condemned.live_bytes).sum();
        // Written anew, they take about the same share of the pack's bytes as they took of its raw bytes.
        let anew = |c: &Condemned| (c.bytes * c.live_bytes).checked_div(c.raw_bytes).unwrap_or(0);
        plan.bytes_freed = plan.condemned.values().map(|c| c.bytes - anew(c).min(c.bytes)).sum();
        Ok(())
    }

    /// Condemned packs that somebody borrowed from before the plan was there to be seen.
    fn borrowed(&self, plan: &Plan) -> Result<BTreeSet<PackId>> {
        let survey = Survey::take(self.small, &self.forgotten)?;
        let of_leases = survey.leases.iter().flat_map(|(lease, _)| &lease.borrowed);
        let of_roots = survey.roots.iter().filter(|root| root.generation > self.generation);
        let all = of_leases.chain(of_roots.flat_map(|root| &root.borrowed));
        Ok(all.copied().filter(|pack| plan.condemns(*pack)).collect())
    }

    /// Stores what is in use in a pack again; false when some of it cannot be read: then the pack stays as it is.
    fn rewrite(&self, sink: &Sink<'_>, pack: PackId, marks: &Marks<'_>, report: &mut PruneReport) -> Result<bool> {
        let store = &self.repository.store;
        let (reader, contents) = match store.contents(pack) {
            Ok(opened) => opened,
            Err(Error::Corrupt { .. }) => return Ok(false),
            // Another prune at work on the same plan was faster.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in &contents.objects {
            let object = ObjectRef { id: entry.id, place: entry.place(pack) };
            if !marks.uses(&object)? {
                continue;
            }
            match store.object(&object) {
                Ok(bytes) => {
                    sink.put(reader.header.class, object.id, &bytes)?;
                }
                Err(Error::Corrupt { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            report.bytes_rewritten += u64::from(entry.len);
        }
        Ok(true)
    }

    fn delete(&self, last: &Final, report: &mut PruneReport) -> Result<()> {
        let device = self.small.device.as_ref();
        let mut dirs = HashSet::new();
        for pack in &last.delete {
            let bytes = self.pack_bytes(*pack)?;
            match device.remove_file(&pack.path()) {
                Ok(()) => {
                    report.packs_deleted += 1;
                    report.bytes_deleted += bytes;
                    dirs.insert(pack.dir());
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error(device, "remove", &pack.path(), e)),
            }
        }
        for dir in dirs {
            device.sync_dir(&dir).map_err(|e| io_error(device, "sync directory", &dir, e))?;
        }
        for name in &last.absorbed {
            self.remove(&format!("index/{name}"))?;
        }
        device.sync_dir("index").map_err(|e| io_error(device, "sync directory", "index", e))
    }

    /// Removes a file that may be gone already.
    fn remove(&self, path: &str) -> Result<()> {
        let device = self.small.device.as_ref();
        match device.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(device, "remove", path, e)),
            _ => Ok(()),
        }
    }
}

fn damaged(id: SnapshotId, error: Error) -> Error {
    match error {
        Error::Corrupt { what, path, offset, why } => Error::Corrupt {
            what,
            path,
            offset,
            why: format!("{why}; prune cannot tell what snapshot {id} uses: repair or delete it first"),
        },
        error => error,
    }
}
