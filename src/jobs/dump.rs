//! Every object on disk, readable, as JSON. Damaged ones are errors that say where.
//!
//! The state may only be read while nobody has the volume open; identities and the log at any time.

use super::attributes::read_mark;
use super::backing::{Backing, TierPlan};
use super::home::identify;
use super::log_archive;
use super::migrate::pins;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::heat::{HeatSettings, Recorder};
use crate::ondisk::file_id::{FileIdentity, XATTR_FILE_ID};
use crate::ondisk::group::{FLAG_LET_DIE, GroupHeader, RecordHeader, TIER_UNSET};
use crate::ondisk::rows::FileRow;
use crate::ondisk::summary::Trailer;
use crate::tier::identity::{IDENTITY_FILE, verify_all};
use crate::tier::objects::{object_path, parse_object_name};
use crate::units::{FileId, PAGE};
use crate::volume::{Meta, Volume};
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;

/// What can be dumped: for the command's help and for the error that names the choices.
pub const TARGETS: &str = "identity, state, files, file:PATH or file:ID, home:PATH, log, log:SEGMENT, pins, heat, \
     log-archive, log-archive:SEQUENCE";

/// Dumps one object. Errors: `Invalid` for a target that does not exist, naming the [`TARGETS`]; `Busy`; `Corrupt`.
pub fn dump(tiers: &[TierPlan], what: &str) -> Result<Value> {
    let backing = Backing::open(tiers)?;
    dump_of(&backing, what).map_err(|error| backing.named(error))
}

fn dump_of(backing: &Backing, what: &str) -> Result<Value> {
    let (kind, argument) = what.split_once(':').map_or((what, None), |(kind, argument)| (kind, Some(argument)));
    if kind == "identity" {
        return identities(backing);
    }
    // Anything else makes sense only of the right tiers.
    verify_all(&backing.places)?;
    match (kind, argument) {
        ("state", None) => state(backing),
        ("files", None) => files(backing),
        ("file", Some(name)) => file(backing, name),
        ("home", Some(path)) => home(backing, path),
        ("log", None) => log(backing),
        ("log", Some(segment)) => {
            let number = segment.parse().map_err(|_| Error::Invalid(format!("`{segment}` is no segment number")))?;
            segment_dump(&backing.places[0].device, number, true)
        }
        ("log-archive", None) => log_archive(backing),
        ("log-archive", Some(segment)) => {
            let number = segment.parse().map_err(|_| Error::Invalid(format!("`{segment}` is no sequence number")))?;
            archived_dump(backing, number)
        }
        ("pins", None) => {
            let pins = pins::load(backing.places[0].device.as_ref())?;
            Ok(pins.into_iter().map(|(file, tier)| json!({"file": file.to_string(), "tier": tier})).collect())
        }
        ("heat", None) => heat(backing),
        _ => Err(Error::Invalid(format!("cannot dump `{what}`; there are: {TARGETS}"))),
    }
}

fn identities(backing: &Backing) -> Result<Value> {
    let one = |place: &crate::tier::identity::Place| {
        let path = format!("{}/{IDENTITY_FILE}", place.device.path());
        Ok(json!({"path": path, "identity": place.identity()?}))
    };
    backing.places.iter().map(one).collect()
}

/// The state database has no lock of its own that another process would see.
fn with_state<T>(backing: &Backing, read: impl FnOnce(&crate::volume::Tier) -> Result<T>) -> Result<T> {
    let _locks = backing.lock()?;
    let tiers = backing.engine_tiers();
    match tiers.first() {
        Some(fastest) => read(fastest),
        None => Err(Error::Invalid("a volume needs at least one tier".to_owned())),
    }
}

fn encoded(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::Invalid(format!("cannot be shown as JSON: {e}")))
}

fn state(backing: &Backing) -> Result<Value> {
    let meta: Meta = with_state(backing, Volume::peek)?;
    encoded(&meta)
}

fn files(backing: &Backing) -> Result<Value> {
    let rows = with_state(backing, Volume::peek_files)?;
    Ok(rows.iter().map(|(id, row)| row_value(*id, row)).collect())
}

fn row_value(id: FileId, row: &FileRow) -> Value {
    json!({
        "file": id.to_string(),
        "size_bytes": row.size_bytes,
        "mtime_ns": row.mtime.map(|time| time.0),
        "ctime_ns": row.ctime.map(|time| time.0),
        "log_file": row.log_file,
    })
}

/// A file's row and map, and its objects, by id or by path in the mount.
fn file(backing: &Backing, name: &str) -> Result<Value> {
    let id = match parse_object_name(name) {
        Some(id) => id,
        None => {
            let path = backing.tree().join(name.trim_start_matches('/'));
            let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", path.display().to_string(), e))?;
            let volume = backing.places[0].identity()?.map(|identity| identity.volume).unwrap_or_default();
            identify(&path, volume, &meta)?
        }
    };
    let found = with_state(backing, |fastest| Volume::peek_file(fastest, id))?;
    let (row, runs) = found.ok_or_else(|| Error::NotFound(format!("file {id} is not in the state")))?;
    let tier = |tier: Option<crate::units::TierId>| {
        tier.map(|tier| backing.places.get(tier.index()).map_or(tier.to_string(), |place| place.name.clone()))
    };
    let runs = runs.iter().map(|(first, count, home, copy)| {
        json!({"first_block": first.0, "blocks": count, "tier": tier(*home), "clean_copy": tier(*copy)})
    });
    let objects = backing.places.iter().map(|place| {
        let object = place.device.open(&object_path(id), OpenMode::default()).and_then(|object| object.len());
        json!({"tier": place.name, "path": object_path(id), "length_bytes": object.ok()})
    });
    let mut value = row_value(id, &row);
    value["map"] = runs.collect();
    value["objects"] = objects.collect();
    Ok(value)
}

/// The hidden attribute of a file in home, whether or not it fits.
fn home(backing: &Backing, name: &str) -> Result<Value> {
    use std::os::unix::fs::MetadataExt;
    let path = backing.tree().join(name.trim_start_matches('/'));
    let shown = backing.in_line(&path.display().to_string());
    let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", shown.clone(), e))?;
    let Some(bytes) = read_mark(&path, XATTR_FILE_ID)? else {
        return Ok(json!({"path": shown, "inode": meta.ino(), "identity": null}));
    };
    let id = FileIdentity::decode(&bytes, &shown)?;
    Ok(json!({
        "path": shown,
        "inode": meta.ino(),
        "identity": {"volume": id.volume, "file": id.file.to_string(), "home_inode": id.home_inode},
    }))
}

fn heat(backing: &Backing) -> Result<Value> {
    let meta = with_state(backing, Volume::peek)?;
    let recorder = Recorder::new(HeatSettings::with_block_bytes(meta.block_bytes));
    let present = recorder.load(backing.places[0].device.as_ref(), meta.volume.as_bytes())?;
    let warm = recorder.warm_files();
    let files =
        warm.iter().map(|(file, heat, blocks)| json!({"file": file.to_string(), "heat": heat, "blocks": blocks}));
    Ok(json!({"present": present, "files": files.collect::<Value>()}))
}

/// All segments, without their groups.
fn log(backing: &Backing) -> Result<Value> {
    let device = &backing.places[0].device;
    let names = device.list("log").map_err(|e| Error::io("list", format!("{}/log", device.path()), e))?;
    let numbers = names.iter().filter_map(|name| name.strip_suffix(".seg")?.parse().ok());
    numbers.map(|number| segment_dump(device, number, false)).collect()
}

/// The archived segments of every tier, oldest first; only that of the slowest grows.
fn log_archive(backing: &Backing) -> Result<Value> {
    let mut found = Vec::new();
    for place in &backing.places {
        for segment_seq in log_archive::segments(&*place.device)? {
            let mut value = json!({"tier": place.name, "segment_seq": segment_seq});
            match log_archive::read_head(&*place.device, segment_seq) {
                Ok(head) => {
                    value["volume"] = json!(head.volume);
                    value["archived_ns"] = json!(head.wall.0);
                    value["packed_bytes"] = json!(head.packed_bytes);
                    value["segment_bytes"] = json!(head.segment_bytes);
                }
                Err(error) => value["error"] = json!(backing.named(error).to_string()),
            }
            found.push(value);
        }
    }
    Ok(Value::Array(found))
}

fn archived_dump(backing: &Backing, segment_seq: u64) -> Result<Value> {
    for place in &backing.places {
        if log_archive::segments(&*place.device)?.contains(&segment_seq) {
            let segment = log_archive::unpack(&*place.device, segment_seq)?;
            let mut value = groups_dump(segment.len() as u64, true, &mut |page, at| {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                page.copy_from_slice(segment.get(at..at.saturating_add(PAGE)).unwrap_or(&[0; PAGE]));
                Ok(())
            })?;
            value["tier"] = json!(place.name);
            return Ok(value);
        }
    }
    Err(Error::NotFound(format!("segment {segment_seq} is not in the archive; `log-archive` lists those that are")))
}

/// One segment of the log itself.
fn segment_dump(device: &Arc<dyn Device>, number: u32, in_full: bool) -> Result<Value> {
    let name = format!("log/{number:05}.seg");
    let io = |action, e| Error::io(action, format!("{}/{name}", device.path()), e);
    let file = device.open(&name, OpenMode::default()).map_err(|e| io("open", e))?;
    let bytes = file.len().map_err(|e| io("stat", e))?;
    let mut value =
        groups_dump(bytes, in_full, &mut |page, at| file.read_at(page, at).map(|_| ()).map_err(|e| io("read", e)))?;
    value["path"] = json!(name);
    Ok(value)
}

/// The groups from a segment's beginning up to the first page that is none. What follows may be older than these, or never written. `read` fills a page from
/// an offset.
fn groups_dump(bytes: u64, in_full: bool, read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>) -> Result<Value> {
    let mut page = vec![0; PAGE];
    let (mut at, mut groups, mut records) = (0, Vec::new(), 0);
    let mut ended_by = "end of the segment".to_owned();
    let mut segment_seq = None;
    while at + PAGE as u64 <= bytes {
        read(&mut page, at)?;
        let (header, checksum) = match GroupHeader::decode(&page) {
            Ok(group) => group,
            Err(malformed) => {
                ended_by = malformed.0.to_owned();
                break;
            }
        };
        if header.offset != at || *segment_seq.get_or_insert(header.segment_seq) != header.segment_seq {
            "a group of an earlier use".clone_into(&mut ended_by);
            break;
        }
        records += header.records.len();
        groups.push((header.group_seq, in_full.then(|| group_value(&header, checksum))));
        at += header.total_len();
    }
    let mut summary = None;
    if let Some(last) = bytes.checked_sub(PAGE as u64) {
        read(&mut page, last)?;
        summary = Trailer::decode(&page).ok().map(|trailer| {
            json!({"segment_seq": trailer.segment_seq, "body_bytes": trailer.body_bytes, "groups_end": trailer.groups_end})
        });
    }
    let mut value = json!({
        "bytes": bytes,
        "segment_seq": segment_seq,
        "groups": groups.len(),
        "records": records,
        "first_group_seq": groups.first().map(|group| group.0),
        "last_group_seq": groups.last().map(|group| group.0),
        "groups_end": at,
        "ended_by": ended_by,
        "summary": summary,
    });
    if in_full {
        value["group_headers"] = groups.into_iter().filter_map(|group| group.1).collect();
    }
    Ok(value)
}

fn group_value(header: &GroupHeader, checksum: u64) -> Value {
    json!({
        "group_seq": header.group_seq,
        "volume": header.volume,
        "incarnation": header.incarnation,
        "offset": header.offset,
        "previous_checksum": format!("{:016x}", header.previous_checksum),
        "checksum": format!("{checksum:016x}"),
        "wall_ns": header.wall.0,
        "payload_pages": header.payload_crcs.len(),
        "inline_bytes": header.inline_bytes,
        "records": header.records.iter().map(record_value).collect::<Value>(),
    })
}

fn record_value(record: &RecordHeader) -> Value {
    json!({
        "kind": format!("{:?}", record.kind).to_lowercase(),
        "file": record.file.to_string(),
        "offset": record.offset,
        "length": record.length,
        "let_die": record.flags & FLAG_LET_DIE != 0,
        "tier": (record.tier != TIER_UNSET).then_some(record.tier),
        "score": record.score,
        "inline": record.inline_offset != 0,
    })
}
