//! Small objects: roots, leases, refs, steps of prunes. One file each, written whole.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HEATOBJ\x01` |
//! | 8 | 2 | kind |
//! | 10 | 2 | version of this kind |
//! | 12 | 4 | bytes of the payload |
//! | 16 | 8 | first eight bytes of BLAKE3 over bytes 0..16 and the payload |
//! | 24 | n | payload: postcard, sealed when the repository is encrypted and the kind is confidential |
//!
//! **Never half there.** The bytes go to `tmp/`, are synced, and get their name by a rename whose directory is synced then. What must
//! be there once is renamed only if the name is free; of several writers one wins, and all read the winner's.

use super::ids::{Generation, random_bytes};
use super::keys::Keys;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::bytes::Reader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"HEATOBJ\x01";
const HEADER_BYTES: usize = 24;
const BYTES_MAX: u64 = 1 << 30;

/// What a small object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Root,
    Lease,
    Fence,
    Ref,
    Close,
    Seal,
    Final,
    Done,
    Ledger,
    Archive,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Kind::Root => 1,
            Kind::Lease => 2,
            Kind::Fence => 3,
            Kind::Ref => 4,
            Kind::Close => 5,
            Kind::Seal => 6,
            Kind::Final => 7,
            Kind::Done => 8,
            Kind::Ledger => 9,
            Kind::Archive => 10,
        }
    }

    fn version(self) -> u16 {
        1
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Root => "snapshot root",
            Kind::Lease => "lease",
            Kind::Fence => "fence",
            Kind::Ref => "ref",
            Kind::Close => "mark of a closed generation",
            Kind::Seal => "seal",
            Kind::Final => "list of deletions",
            Kind::Done => "mark of a finished prune",
            Kind::Ledger => "verification ledger",
            Kind::Archive => "note about an archive",
        }
    }

    /// Labels are nobody's business. The names and notes of refs are not sealed.
    fn confidential(self) -> bool {
        self == Kind::Root
    }
}

/// The small objects of one repository.
pub struct SmallObjects {
    pub device: Arc<dyn Device>,
    pub keys: Arc<Keys>,
}

impl SmallObjects {
    pub fn encode<T: Serialize>(&self, kind: Kind, value: &T) -> Result<Vec<u8>> {
        let encoding = |e: postcard::Error| Error::Invalid(format!("cannot encode a {}: {e}", kind.name()));
        let mut payload = postcard::to_stdvec(value).map_err(encoding)?;
        if kind.confidential() {
            payload = self.keys.seal(&kind.number().to_le_bytes(), payload)?;
        }
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&kind.number().to_le_bytes());
        out.extend_from_slice(&kind.version().to_le_bytes());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&check(&out, &payload));
        out.extend_from_slice(&payload);
        Ok(out)
    }

    pub fn decode<T: DeserializeOwned>(&self, kind: Kind, path: &str, bytes: &[u8]) -> Result<T> {
        let corrupt = |offset: u64, why: String| Error::Corrupt {
            what: kind.name(),
            path: format!("{}/{path}", self.device.path()),
            offset,
            why,
        };
        let (header, payload) = bytes
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| corrupt(0, format!("only {} bytes long", bytes.len())))?;
        let mut r = Reader::new(&header[8..]);
        let short = |_| corrupt(0, "ends too early".to_owned());
        let (number, version, len) = (r.u16().map_err(short)?, r.u16().map_err(short)?, r.u32().map_err(short)?);
        if header[..8] != MAGIC || number != kind.number() {
            return Err(corrupt(0, format!("this is no {}", kind.name())));
        }
        if usize::try_from(len) != Ok(payload.len()) || header[16..] != check(&header[..16], payload) {
            return Err(corrupt(16, "checksum mismatch".to_owned()));
        }
        if version != kind.version() {
            return Err(Error::Invalid(format!(
                "{path}: {} of version {version}; this program knows {}: use a newer heatfs",
                kind.name(),
                kind.version()
            )));
        }
        let payload = match kind.confidential() {
            true => self.keys.open(&kind.number().to_le_bytes(), payload),
            false => Some(payload.into()),
        };
        let payload = payload.ok_or_else(|| corrupt(24, "does not decrypt".to_owned()))?;
        postcard::from_bytes(&payload).map_err(|e| corrupt(24, e.to_string()))
    }

    /// None when there is no such object.
    pub fn read<T: DeserializeOwned>(&self, kind: Kind, path: &str) -> Result<Option<T>> {
        match read_file(self.device.as_ref(), path)? {
            Some(bytes) => self.decode(kind, path, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Durably there when this returns; false when there was one before, which then stays.
    pub fn create<T: Serialize>(&self, kind: Kind, path: &str, generation: Generation, value: &T) -> Result<bool> {
        let bytes = self.encode(kind, value)?;
        create_file(self.device.as_ref(), path, generation, &bytes)
    }

    /// Durably there when this returns, in place of an older one.
    pub fn replace<T: Serialize>(&self, kind: Kind, path: &str, generation: Generation, value: &T) -> Result<()> {
        let bytes = self.encode(kind, value)?;
        let device = self.device.as_ref();
        let from = write_temporary(device, generation, &bytes)?;
        device.rename(&from, path).map_err(|e| naming_error(device, path, e))?;
        device.sync_dir(parent(path)).map_err(|e| io_error(device, "sync directory of", path, e))
    }
}

pub(super) fn check(header: &[u8], payload: &[u8]) -> [u8; 8] {
    let hash = blake3::Hasher::new().update(header).update(payload).finalize();
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The whole of a file; None when it is not there.
pub fn read_file(device: &dyn Device, path: &str) -> Result<Option<Vec<u8>>> {
    let failed = |e| io_error(device, "read", path, e);
    let file = match device.open(path, OpenMode { read_only: true, ..OpenMode::default() }) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let len = file.len().map_err(failed)?.min(BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let n = file.read_at(&mut bytes, 0).map_err(failed)?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

/// Durably there when this returns; false when the name is taken.
pub fn create_file(device: &dyn Device, path: &str, generation: Generation, bytes: &[u8]) -> Result<bool> {
    if device.exists(path).map_err(|e| io_error(device, "look for", path, e))? {
        return Ok(false);
    }
    let from = write_temporary(device, generation, bytes)?;
    match device.rename_new(&from, path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let _ = device.remove_file(&from);
            return Ok(false);
        }
        Err(e) => {
            let _ = device.remove_file(&from);
            return Err(naming_error(device, path, e));
        }
    }
    device.sync_dir(parent(path)).map_err(|e| io_error(device, "sync directory of", path, e))?;
    Ok(true)
}

/// A file that waited to be named through several prunes belongs to nobody for them.
pub fn naming_error(device: &dyn Device, path: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        let path = format!("{}/{path}", device.path());
        return Error::Overtaken(format!("{path}: prunes have cleared away what was to become this: start again"));
    }
    io_error(device, "name", path, error)
}

/// Writes and syncs bytes under a name that nobody else uses; the generation in the name tells prune how old it is.
fn write_temporary(device: &dyn Device, generation: Generation, bytes: &[u8]) -> Result<String> {
    let path = format!("tmp/{generation}-{:032x}", u128::from_le_bytes(random_bytes()?));
    let write = || {
        let file = device.open(&path, OpenMode { create: true, exclusive: true, ..OpenMode::default() })?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()
    };
    write().map_err(|e| {
        let _ = device.remove_file(&path);
        io_error(device, "write", &path, e)
    })?;
    Ok(path)
}

pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

pub fn io_error(device: &dyn Device, action: &'static str, path: &str, source: io::Error) -> Error {
    Error::io(action, format!("{}/{path}", device.path()), source)
}
