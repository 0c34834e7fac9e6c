//! What is asked about decisions: why, what next, what if.

use super::placement::{files_at, relative};
use super::protocol::{
    HistoryReply, PlanQuery, PlanReply, PlannedMove, TracedFiles, WhatIfQuery, WhatIfReply, WhyEntry, WhyQuery,
    WhyReply,
};
use crate::daemon::Served;
use crate::error::{Error, Result};
use crate::jobs::migrate::JournalEntry;
use crate::policy::placement::{Decision, Reason};
use crate::units::{FileId, TierId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::{Discriminant, discriminant};

/// Decisions shown without a wish.
const ENTRIES_SHOWN: usize = 50;
const ENTRIES_SHOWN_MAX: usize = 16_384;

fn tier_names(served: &Served) -> Vec<String> {
    served.settings.tiers.iter().map(|tier| tier.name.clone()).collect()
}

/// A file that has lost its name keeps its decisions.
fn named(files: &HashMap<FileId, String>, file: FileId) -> String {
    files.get(&file).cloned().unwrap_or_else(|| format!("(gone) {file}"))
}

pub(super) fn why(served: &Served, query: &WhyQuery) -> Result<WhyReply> {
    let path = relative(served, &query.path)?;
    let files = match files_at(served, &path) {
        // An empty volume has no files, and no decisions.
        Err(Error::NotFound(_)) if path.is_empty() => HashMap::new(),
        files => files?,
    };
    let shown = query.count.unwrap_or(ENTRIES_SHOWN).clamp(1, ENTRIES_SHOWN_MAX);
    let wanted = |file| path.is_empty() || files.contains_key(&file);
    let mut entries: Vec<WhyEntry> = Vec::new();
    for entry in served.mover.decisions(wanted, ENTRIES_SHOWN_MAX) {
        if !entries.last_mut().is_some_and(|last| joins(last, &entry, &files)) {
            if entries.len() == shown {
                break;
            }
            entries.push(WhyEntry { path: named(&files, entry.file), blocks: 1, entry });
        }
    }
    let (mount, block_bytes) = (served.settings.mount.display().to_string(), served.volume.block_bytes());
    Ok(WhyReply { mount, tiers: tier_names(served), block_bytes, entries })
}

/// Blocks that moved one after the other for the same kind of reason are one line. `next` is older than what `last` has so far.
fn joins(last: &mut WhyEntry, next: &JournalEntry, files: &HashMap<FileId, String>) -> bool {
    let first = &last.entry;
    let same = |entry: &JournalEntry| (entry.file, entry.from, entry.to, entry.outcome, entry.plan, entry.flip);
    let alike = same(first) == same(next) && discriminant(&first.reason) == discriminant(&next.reason);
    if !alike || next.block.0 + 1 != first.block.0 || last.path != named(files, next.file) {
        return false;
    }
    last.blocks += 1;
    last.entry = JournalEntry { at: first.at, ..next.clone() };
    true
}

pub(super) fn plan(served: &Served, query: &PlanQuery) -> Result<PlanReply> {
    let preview = served.mover.preview();
    let files = match files_at(served, "") {
        Err(Error::NotFound(_)) => HashMap::new(),
        files => files?,
    };
    let block_bytes = served.volume.block_bytes();
    let mut moves: BTreeMap<(FileId, TierId, TierId, usize), PlannedMove> = BTreeMap::new();
    let mut kinds: Vec<Discriminant<Reason>> = Vec::new();
    for decision in &preview.plan.decisions {
        let Decision { file, from, to, reason, gain_us, flip, .. } = *decision;
        let kind = discriminant(&reason);
        let kind = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        });
        let planned = moves.entry((file, from, to, kind)).or_insert_with(|| PlannedMove {
            path: named(&files, file),
            from,
            to,
            blocks: 0,
            copied_bytes: 0,
            saved_us: 0.0,
            reason,
        });
        planned.blocks += 1;
        planned.copied_bytes += if flip { 0 } else { block_bytes };
        planned.saved_us += f64::from(gain_us);
    }
    let mut moves: Vec<PlannedMove> = moves.into_values().collect();
    moves.sort_by(|a, b| b.saved_us.total_cmp(&a.saved_us).then_with(|| a.path.cmp(&b.path)));
    let shown = query.count.unwrap_or(ENTRIES_SHOWN).clamp(1, ENTRIES_SHOWN_MAX);
    let more_moves = moves.len().saturating_sub(shown);
    moves.truncate(shown);
    Ok(PlanReply {
        tiers: tier_names(served),
        epoch_s: served.settings.placement.epoch.as_secs(),
        due_in_s: preview.due_in.as_secs(),
        blocks: preview.plan.decisions.len(),
        copied_bytes: preview.plan.bytes,
        cost_us: preview.plan.cost_us,
        saved_us: preview.plan.gain_us,
        moves,
        more_moves,
    })
}

pub(super) fn history(served: &Served) -> Result<HistoryReply> {
    let moments = served.mover.history();
    let shown: HashSet<FileId> = moments.iter().flat_map(|moment| &moment.files).map(|file| file.file).collect();
    let files = if shown.is_empty() { HashMap::new() } else { files_at(served, "")? };
    let paths = files.into_iter().filter(|(id, _)| shown.contains(id)).map(|(id, path)| (id.to_string(), path));
    Ok(HistoryReply { tiers: tier_names(served), moments, paths: paths.collect() })
}

/// Ends a recording: what is left of it, and the names of all files.
pub(super) fn stop_trace(served: &Served) -> Result<TracedFiles> {
    let recorder = served.mover.recorder();
    recorder.stop_trace();
    let rest = recorder.take_trace(usize::MAX);
    // A volume without files has no paths, which is no reason to lose the records.
    let files = files_at(served, "").unwrap_or_default();
    Ok(TracedFiles { rest, paths: files.into_iter().map(|(id, path)| (id.0, path)).collect() })
}

pub(super) fn what_if(served: &Served, query: &WhatIfQuery) -> Result<WhatIfReply> {
    let names = tier_names(served);
    let mut changes: Vec<(usize, i128, bool)> = Vec::new();
    for change in query.changes.split(',').filter(|change| !change.is_empty()) {
        let wrong = || Error::Invalid(format!("change `{change}`: TIER=BYTES, TIER=+BYTES or TIER=-BYTES is wanted"));
        let (name, amount) = change.split_once('=').ok_or_else(wrong)?;
        let tier = names.iter().position(|known| known == name).ok_or_else(|| {
            Error::Invalid(format!("tier `{name}`: there is none; the tiers are {}", names.join(", ")))
        })?;
        let relative = amount.starts_with(['+', '-']);
        changes.push((tier, i128::from(amount.parse::<i64>().map_err(|_| wrong())?), relative));
    }
    let found = served.mover.what_if(|tier, bytes| {
        let changed = changes
            .iter()
            .filter(|change| change.0 == tier)
            .fold(i128::from(bytes), |bytes, change| if change.2 { bytes + change.1 } else { change.1 });
        u64::try_from(changed.max(0)).unwrap_or(u64::MAX)
    })?;
    Ok(WhatIfReply { tiers: names, epoch_s: served.settings.placement.epoch.as_secs(), found })
}
