//! `pins.json`: which files a user pinned to which tier. Not losable: a pin that was acknowledged is durable.
//!
//! `{"format":"heatfs pins","version":1,"pins":[{"file":"<16 hex digits>","tier":"<name>"}],"crc32c":"<8 hex digits>"}`; the checksum is
//! that of the array as this program writes it, compactly. Tiers are named, because their order may change. The
//! file is replaced as a whole: written aside, synced, renamed, and its directory synced.

use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::units::FileId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the file in the fastest tier's path.
pub const PINS_FILE: &str = "pins.json";
const PINS_FILE_NEW: &str = "pins.json.new";
const FORMAT: &str = "heatfs pins";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct PinEntry {
    file: String,
    tier: String,
}

#[derive(Serialize, Deserialize)]
struct PinsOnDisk {
    format: String,
    version: u32,
    pins: Vec<PinEntry>,
    crc32c: String,
}

/// Tier names by pinned file.
pub(in crate::jobs) type Pins = BTreeMap<FileId, String>;

/// Reads the pins; none when there is no file. `Corrupt` when it is not as it was written.
pub(in crate::jobs) fn load(device: &dyn Device) -> Result<Pins> {
    let path = || format!("{}/{PINS_FILE}", device.path());
    let fail = |action| move |source| Error::io(action, path(), source);
    if !device.exists(PINS_FILE).map_err(fail("look up"))? {
        return Ok(Pins::new());
    }
    let file = device.open(PINS_FILE, OpenMode::default()).map_err(fail("open"))?;
    let len = usize::try_from(file.len().map_err(fail("stat"))?).unwrap_or(usize::MAX).min(1 << 28);
    let mut bytes = vec![0u8; len];
    let read = file.read_at(&mut bytes, 0).map_err(fail("read"))?;
    bytes.truncate(read);
    decode(&bytes).map_err(|why| Error::Corrupt { what: "pins", path: path(), offset: 0, why })
}

/// Durable when it returns.
pub(super) fn save(device: &dyn Device, pins: &Pins) -> Result<()> {
    let fail = |action| move |source| Error::io(action, format!("{}/{PINS_FILE_NEW}", device.path()), source);
    let bytes = encode(pins)?;
    let file = device.open(PINS_FILE_NEW, OpenMode { create: true, ..OpenMode::default() }).map_err(fail("open"))?;
    file.set_len(0).map_err(fail("truncate"))?;
    file.write_all_at(&bytes, 0).map_err(fail("write"))?;
    file.sync_data().map_err(fail("sync"))?;
    device.rename(PINS_FILE_NEW, PINS_FILE).map_err(fail("rename"))?;
    device.sync_dir("").map_err(fail("sync the directory of"))
}

fn checksum(pins: &[PinEntry]) -> Result<String> {
    let text = serde_json::to_string(pins).map_err(|error| Error::Invalid(format!("pins: {error}")))?;
    Ok(format!("{:08x}", crc32c::crc32c(text.as_bytes())))
}

fn encode(pins: &Pins) -> Result<Vec<u8>> {
    let pins: Vec<PinEntry> =
        pins.iter().map(|(file, tier)| PinEntry { file: file.to_string(), tier: tier.clone() }).collect();
    let crc32c = checksum(&pins)?;
    let on_disk = PinsOnDisk { format: FORMAT.to_owned(), version: VERSION, pins, crc32c };
    serde_json::to_vec(&on_disk).map_err(|error| Error::Invalid(format!("pins: {error}")))
}

fn decode(bytes: &[u8]) -> std::result::Result<Pins, String> {
    let on_disk: PinsOnDisk = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if on_disk.format != FORMAT || on_disk.version != VERSION {
        return Err(format!("format `{}` version {}, expected `{FORMAT}` {VERSION}", on_disk.format, on_disk.version));
    }
    if checksum(&on_disk.pins).map_err(|error| error.to_string())? != on_disk.crc32c {
        return Err("checksum mismatch".to_owned());
    }
    let parse = |pin: PinEntry| {
        let id = u64::from_str_radix(&pin.file, 16).map_err(|_| format!("`{}` is no file id", pin.file))?;
        Ok((FileId(id), pin.tier))
    };
    on_disk.pins.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Pins {
        Pins::from([(FileId(0x1234), "nvme".to_owned()), (FileId(7), "hdd".to_owned())])
    }

    #[test]
    fn golden() {
        let text = String::from_utf8(encode(&sample()).unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"format":"heatfs pins","version":1,"pins":[{"file":"0000000000000007","tier":"hdd"},{"file":"0000000000001234","tier":"nvme"}],"crc32c":"27a5272a"}"#
        );
        assert_eq!(decode(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_harmless() {
        let bytes = encode(&sample()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(pins) = decode(&flipped) {
                assert_eq!(pins, sample(), "bit {bit}");
            }
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
    }
}
