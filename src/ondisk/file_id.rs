//! Which file of which volume a home file is: the value of the extended attribute `user.heatfs.id`.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 16 | volume id (UUID, as its bytes) |
//! | 16 | 8 | file id, little-endian |
//! | 24 | 8 | inode number of the home file that the attribute was written to, little-endian |
//! | 32 | 4 | CRC32C of bytes 0..32, little-endian |
//!
//! The name of the attribute is its magic and its length its version. The inode number is what tells the original from a copy: `cp -a` and
//! `rsync -X` behind the mount carry the attribute along, but not the inode (R10). A mismatch is an error for that file, never an empty file.

use crate::error::{Error, Result};
use crate::units::FileId;
use uuid::Uuid;

/// Attribute of every regular file in home; hidden from users of the mount.
pub const XATTR_FILE_ID: &str = "user.heatfs.id";
/// Attribute of home's root: the mode that the mount's root shows, as octal text (`0700`). The backing directory's own mode is one that
/// database servers refuse, so that none starts on home by mistake.
pub const XATTR_ROOT_MODE: &str = "user.heatfs.root-mode";
/// Every attribute of ours starts with this; all of them are hidden from users of the mount.
pub const XATTR_PREFIX: &str = "user.heatfs.";
/// Bytes of an encoded [`FileIdentity`].
pub const FILE_ID_BYTES: usize = CRC_AT + 4;

const VOLUME_AT: usize = 0;
const FILE_AT: usize = VOLUME_AT + 16;
const INODE_AT: usize = FILE_AT + 8;
const CRC_AT: usize = INODE_AT + 8;

/// The decoded attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileIdentity {
    pub volume: Uuid,
    pub file: FileId,
    /// Inode number of the home file this was written to.
    pub home_inode: u64,
}

impl FileIdentity {
    pub fn encode(&self) -> [u8; FILE_ID_BYTES] {
        let mut bytes = [0; FILE_ID_BYTES];
        bytes[VOLUME_AT..FILE_AT].copy_from_slice(self.volume.as_bytes());
        bytes[FILE_AT..INODE_AT].copy_from_slice(&self.file.0.to_le_bytes());
        bytes[INODE_AT..CRC_AT].copy_from_slice(&self.home_inode.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `path` is only for the message. Errors: `Corrupt` for a wrong length or checksum.
    pub fn decode(bytes: &[u8], path: &str) -> Result<FileIdentity> {
        let corrupt = |offset: usize, why: String| Error::Corrupt {
            what: "user.heatfs.id attribute",
            path: path.to_owned(),
            offset: offset as u64,
            why,
        };
        let bytes: &[u8; FILE_ID_BYTES] = bytes
            .try_into()
            .map_err(|_| corrupt(0, format!("{} bytes long instead of {FILE_ID_BYTES}", bytes.len())))?;
        if le_u32(bytes, CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Err(corrupt(CRC_AT, "checksum mismatch".to_owned()));
        }
        let mut volume = [0; 16];
        volume.copy_from_slice(&bytes[VOLUME_AT..FILE_AT]);
        Ok(FileIdentity {
            volume: Uuid::from_bytes(volume),
            file: FileId(le_u64(bytes, FILE_AT)),
            home_inode: le_u64(bytes, INODE_AT),
        })
    }

    /// The file id, if this attribute was written by `volume` to the inode it was found on; otherwise `Untrusted` saying which of both it was not.
    pub fn verify(&self, volume: Uuid, inode: u64) -> Result<FileId> {
        let why = if self.volume != volume {
            format!("its identity belongs to another volume, {}", self.volume)
        } else if self.home_inode != inode {
            format!("it was copied behind the mount (identity of inode {} found on inode {inode})", self.home_inode)
        } else {
            return Ok(self.file);
        };
        Err(Error::Untrusted { file: self.file, why })
    }
}

/// Text of [`XATTR_ROOT_MODE`] for the permission bits of `mode`.
pub fn encode_root_mode(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// Permission bits from the text of [`XATTR_ROOT_MODE`]. Errors: `Corrupt`.
pub fn decode_root_mode(bytes: &[u8], path: &str) -> Result<u32> {
    let mode = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() == 4)
        .and_then(|text| u32::from_str_radix(text, 8).ok());
    mode.ok_or_else(|| Error::Corrupt {
        what: "user.heatfs.root-mode attribute",
        path: path.to_owned(),
        offset: 0,
        why: format!("{:?} is not four octal digits", String::from_utf8_lossy(bytes)),
    })
}

fn le_u32(bytes: &[u8; FILE_ID_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn le_u64(bytes: &[u8; FILE_ID_BYTES], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FileIdentity {
        FileIdentity {
            volume: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            file: FileId(0x0102_0304_0506_0708),
            home_inode: 0x1112_1314_1516_1718,
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: [u8; FILE_ID_BYTES] = [
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, //
            0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, //
            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, //
            0x89, 0xd9, 0xce, 0xda,
        ];
        assert_eq!(sample().encode(), golden);
        assert_eq!(FileIdentity::decode(&golden, "f").unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_wrong_length_is_an_error() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(FileIdentity::decode(&bad, "f"), Err(Error::Corrupt { .. })), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(FileIdentity::decode(&good[..len], "f").is_err());
        }
        assert!(FileIdentity::decode(&[good.as_slice(), &[0]].concat(), "f").is_err());
    }

    #[test]
    fn r10_a_copy_or_a_foreign_file_is_named() {
        let id = sample();
        assert_eq!(id.verify(id.volume, id.home_inode).unwrap(), id.file);
        let copied = id.verify(id.volume, 7).unwrap_err().to_string();
        assert!(copied.contains("copied behind the mount"), "{copied}");
        let foreign = id.verify(Uuid::nil(), id.home_inode).unwrap_err().to_string();
        assert!(foreign.contains("another volume"), "{foreign}");
    }

    #[test]
    fn root_mode_survives_and_rubbish_is_refused() {
        assert_eq!(encode_root_mode(0o40750), "0750");
        assert_eq!(decode_root_mode(b"0750", "r").unwrap(), 0o750);
        for bad in [b"".as_slice(), b"0x50", b"07500", b"9999", b"\xff\xff\xff\xff"] {
            assert!(decode_root_mode(bad, "r").is_err());
        }
    }
}
