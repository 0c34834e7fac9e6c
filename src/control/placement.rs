//! What is asked about placement: heat, reasons, pins. Paths come as people type them: absolute below the mount, or relative to it.

use super::protocol::{DoneReply, ExplainQuery, ExplainReply, HeatFile, HeatQuery, HeatReply, PinRequest};
use crate::daemon::Served;
use crate::daemon::quantity::rounded_bytes;
use crate::error::{Error, Result};
use crate::jobs::migrate::SHARD_BLOCKS;
use crate::units::{BlockNo, FileId};
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path};

/// Files shown without a wish.
const FILES_SHOWN: usize = 24;
const FILES_SHOWN_MAX: usize = 10_000;
/// Stretches per file without a wish.
const STRETCHES: u64 = 64;
const STRETCHES_MAX: u64 = 4096;

/// The path relative to the mount, without `.`; empty for the root. Errors: `Invalid` for a path outside.
pub(super) fn relative(served: &Served, path: &str) -> Result<String> {
    let given = Path::new(path);
    let inside = match given.is_absolute() {
        false => given,
        true => given
            .strip_prefix(served.settings.mount_path())
            .or_else(|_| given.strip_prefix(&served.settings.mount))
            .map_err(|_| Error::Invalid(format!("{path}: it is not below {}", served.settings.mount.display())))?,
    };
    let mut parts = Vec::new();
    for component in inside.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Error::Invalid(format!("{path}: `..` is not allowed here")));
            }
        }
    }
    Ok(parts.join("/"))
}

/// The file at a path, or all files below it. A file with several names comes once.
pub(super) fn files_at(served: &Served, path: &str) -> Result<HashMap<FileId, String>> {
    match served.namespace.file_at(path) {
        Ok((id, _)) if !path.is_empty() => return Ok(HashMap::from([(id, path.to_owned())])),
        Ok(_) | Err(Error::Invalid(_)) => {}
        Err(error) => return Err(error),
    }
    let mut files = HashMap::new();
    let below = |found: &str| path.is_empty() || found.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    served.namespace.walk(&mut |visit| {
        if let Some(Ok(id)) = &visit.file
            && below(visit.path)
        {
            files.entry(*id).or_insert_with(|| visit.path.to_owned());
        }
        Ok(())
    })?;
    match files.is_empty() {
        true => Err(Error::NotFound(format!("`{path}`: there are no regular files"))),
        false => Ok(files),
    }
}

pub(super) fn heat(served: &Served, query: &HeatQuery) -> Result<HeatReply> {
    let path = relative(served, &query.path)?;
    let files = files_at(served, &path)?;
    let shown = query.files.unwrap_or(FILES_SHOWN).clamp(1, FILES_SHOWN_MAX);
    let stretches = query.stretches.unwrap_or(STRETCHES).clamp(1, STRETCHES_MAX);
    // Warm ones first; cold files follow in the order of their names, so that a volume at rest is shown too.
    let mut order: Vec<FileId> = served.mover.warm_files(usize::MAX).into_iter().map(|warm| warm.file).collect();
    order.retain(|id| files.contains_key(id));
    let warm: HashSet<FileId> = order.iter().copied().collect();
    let mut cold: Vec<(&FileId, &String)> = files.iter().filter(|(id, _)| !warm.contains(id)).collect();
    cold.sort_by_key(|(_, path)| *path);
    order.extend(cold.into_iter().map(|(id, _)| *id));
    let mut reply = HeatReply {
        mount: served.settings.mount.display().to_string(),
        tiers: served.settings.tiers.iter().map(|tier| tier.name.clone()).collect(),
        block_bytes: served.settings.block_bytes,
        shard_blocks: SHARD_BLOCKS,
        epoch_s: served.settings.placement.epoch.as_secs(),
        forecast: served.mover.forecaster().status(),
        files: Vec::new(),
        more_files: 0,
    };
    for id in order {
        if reply.files.len() >= shown {
            reply.more_files += 1;
            continue;
        }
        // A file may go while it is looked at.
        let (Ok(map), Some(name)) = (served.mover.heat_map(id, stretches), files.get(&id)) else { continue };
        let heat = map.ranges.iter().map(|range| range.heat).sum();
        let shards = match query.shards && *name == path {
            true => served.mover.shards(id).unwrap_or_default(),
            false => Vec::new(),
        };
        let (path, ranges) = (name.clone(), map.ranges);
        reply.files.push(HeatFile { path, relation: None, blocks: map.blocks, heat, ranges, shards });
    }
    Ok(reply)
}

pub(super) fn explain(served: &Served, query: &ExplainQuery) -> Result<ExplainReply> {
    let path = relative(served, &query.path)?;
    let (id, file) = served.namespace.file_at(&path)?;
    let size_bytes = served.volume.attr(&file).size_bytes;
    if query.offset > 0 && query.offset >= size_bytes {
        return Err(Error::Invalid(format!("offset {}: {path} has {size_bytes} bytes", query.offset)));
    }
    let block_bytes = served.volume.block_bytes();
    let explanation = served.mover.explain(id, BlockNo(query.offset / block_bytes))?;
    let exchanged_path = match explanation.exchanged_with {
        Some(other) if other.file == id => Some(path.clone()),
        Some(other) => files_at(served, "")?.remove(&other.file),
        None => None,
    };
    Ok(ExplainReply {
        explanation,
        exchanged_path,
        mount: served.settings.mount.display().to_string(),
        epoch_s: served.settings.placement.epoch.as_secs(),
        tiers: served.settings.tiers.iter().map(|tier| tier.name.clone()).collect(),
        offset: query.offset,
        path,
        size_bytes,
        block_bytes,
    })
}

pub(super) fn pin(served: &Served, request: &PinRequest) -> Result<DoneReply> {
    let names: Vec<&str> = served.settings.tiers.iter().map(|tier| tier.name.as_str()).collect();
    let tier = request.tier.as_deref().unwrap_or(names[0]);
    if !names.contains(&tier) {
        return Err(Error::Invalid(format!("tier `{tier}`: there is none; the tiers are {}", names.join(", "))));
    }
    let path = relative(served, &request.path)?;
    let files = files_at(served, &path)?;
    let sizes = files.keys().map(|id| Ok(served.volume.attr(&*served.volume.file(*id)?).size_bytes));
    let size_bytes: u64 = sizes.sum::<Result<u64>>()?;
    let room = served.volume.status().tiers.into_iter().find(|known| known.name == tier);
    if let Some(room) = room.filter(|room| size_bytes > room.budget_bytes) {
        let (asked, most) = (rounded_bytes(size_bytes), rounded_bytes(room.budget_bytes));
        return Err(Error::Invalid(format!("{path}: {asked} cannot be pinned to {tier}, which may hold {most}")));
    }
    for (id, path) in &files {
        served.mover.pin(*id, tier).map_err(|error| match error {
            Error::Invalid(why) => Error::Invalid(format!("{path}: {why}")),
            other => other,
        })?;
    }
    Ok(DoneReply { message: format!("{} pinned to {tier}", counted(files.len())) })
}

pub(super) fn unpin(served: &Served, request: &PinRequest) -> Result<DoneReply> {
    if let Some(tier) = &request.tier {
        return Err(Error::Invalid(format!("tier `{tier}`: unpinning takes no tier")));
    }
    let files = files_at(served, &relative(served, &request.path)?)?;
    let mut unpinned = 0;
    for id in files.keys() {
        unpinned += usize::from(served.mover.unpin(*id)?);
    }
    Ok(DoneReply { message: format!("{} unpinned", counted(unpinned)) })
}

fn counted(files: usize) -> String {
    match files {
        1 => "1 file".to_owned(),
        many => format!("{many} files"),
    }
}
