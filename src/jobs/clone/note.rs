//! `clone.json`: which snapshot a volume was made of, and where it is. There from before the volume exists until nothing needs the snapshot any more.
//!
//! `{"format":"heatfs clone","version":1,"clone":{"repository":"/backup/heatfs","repository_id":"<uuid>","key_file":null,"snapshot":"<ulid>",
//! "reference":"clone-<uuid of the volume>","bytes":<of all blocks in the repository at first>},"crc32c":"<8 hex digits>"}`; the checksum is that of the
//! object `clone` as this program writes it, compactly. The file is written aside, synced, renamed, and its directory synced.

use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// Name of the file in the fastest tier's path.
pub const CLONE_FILE: &str = "clone.json";
const CLONE_FILE_NEW: &str = "clone.json.new";
const FORMAT: &str = "heatfs clone";
const VERSION: u32 = 1;
const BYTES_MAX: u64 = 1 << 20;

/// Which snapshot, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneNote {
    /// The repository's directory when the clone was made.
    pub repository: PathBuf,
    pub repository_id: Uuid,
    pub key_file: Option<PathBuf>,
    pub snapshot: String,
    /// The ref in the repository that holds the snapshot.
    pub reference: String,
    /// What was in the repository at first, in whole blocks.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    format: String,
    version: u32,
    clone: CloneNote,
    crc32c: String,
}

impl CloneNote {
    /// None: the volume was not made of a snapshot, or needs it no longer. Errors: `Corrupt`.
    pub fn load(device: &dyn Device) -> Result<Option<CloneNote>> {
        let path = || format!("{}/{CLONE_FILE}", device.path());
        let fail = |action| move |source| Error::io(action, path(), source);
        if !device.exists(CLONE_FILE).map_err(fail("look up"))? {
            return Ok(None);
        }
        let file =
            device.open(CLONE_FILE, OpenMode { read_only: true, ..OpenMode::default() }).map_err(fail("open"))?;
        let len = file.len().map_err(fail("stat"))?.min(BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0).map_err(fail("read"))?;
        bytes.truncate(read);
        let corrupt = |why| Error::Corrupt { what: "note of the clone", path: path(), offset: 0, why };
        decode(&bytes).map(Some).map_err(corrupt)
    }

    /// Durable when it returns.
    pub fn save(&self, device: &dyn Device) -> Result<()> {
        let fail = |action| move |source| Error::io(action, format!("{}/{CLONE_FILE_NEW}", device.path()), source);
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let bytes = self.encode()?;
        let file = device.open(CLONE_FILE_NEW, mode).map_err(fail("open"))?;
        file.set_len(0).map_err(fail("truncate"))?;
        file.write_all_at(&bytes, 0).map_err(fail("write"))?;
        file.sync_data().map_err(fail("sync"))?;
        device.rename(CLONE_FILE_NEW, CLONE_FILE).map_err(fail("rename"))?;
        device.sync_dir("").map_err(fail("sync the directory of"))
    }

    /// Durable when it returns.
    pub fn remove(device: &dyn Device) -> Result<()> {
        let fail = |action| move |source| Error::io(action, format!("{}/{CLONE_FILE}", device.path()), source);
        match device.remove_file(CLONE_FILE) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail("remove")(error)),
            _ => device.sync_dir("").map_err(fail("sync the directory of")),
        }
    }

    fn checksum(&self) -> Result<String> {
        let text =
            serde_json::to_string(self).map_err(|error| Error::Invalid(format!("note of the clone: {error}")))?;
        Ok(format!("{:08x}", crc32c::crc32c(text.as_bytes())))
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let on_disk =
            OnDisk { format: FORMAT.to_owned(), version: VERSION, clone: self.clone(), crc32c: self.checksum()? };
        serde_json::to_vec(&on_disk).map_err(|error| Error::Invalid(format!("note of the clone: {error}")))
    }
}

fn decode(bytes: &[u8]) -> std::result::Result<CloneNote, String> {
    let on_disk: OnDisk = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if on_disk.format != FORMAT || on_disk.version != VERSION {
        return Err(format!("format `{}` version {}, expected `{FORMAT}` {VERSION}", on_disk.format, on_disk.version));
    }
    if on_disk.clone.checksum().map_err(|error| error.to_string())? != on_disk.crc32c {
        return Err("checksum mismatch".to_owned());
    }
    Ok(on_disk.clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CloneNote {
        CloneNote {
            repository: "/backup/heatfs".into(),
            repository_id: Uuid::from_u128(0x1234),
            key_file: Some("/etc/key".into()),
            snapshot: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            reference: "clone-x".to_owned(),
            bytes: 65536,
        }
    }

    #[test]
    fn golden() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"format":"heatfs clone","version":1,"clone":{"repository":"/backup/heatfs","repository_id":"00000000-0000-0000-0000-000000001234","key_file":"/etc/key","snapshot":"01ARZ3NDEKTSV4RRFFQ69G5FAV","reference":"clone-x","bytes":65536},"crc32c":"537c2fe0"}"#
        );
        assert_eq!(decode(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_harmless() {
        let bytes = sample().encode().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(note) = decode(&flipped) {
                assert_eq!(note, sample(), "bit {bit}");
            }
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_goes() {
        let world = crate::device::sim::SimWorld::new(1);
        let device = world.device("nvme");
        assert_eq!(CloneNote::load(&*device).unwrap(), None);
        sample().save(&*device).unwrap();
        CloneNote { bytes: 5, ..sample() }.save(&*device).unwrap();
        assert_eq!(CloneNote::load(&*device).unwrap().unwrap().bytes, 5);
        CloneNote::remove(&*device).unwrap();
        CloneNote::remove(&*device).unwrap();
        assert_eq!(CloneNote::load(&*device).unwrap(), None);
    }
}
