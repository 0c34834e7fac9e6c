//! Which tier of which volume a path is: the file `heatfs.tier` in every tier path.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HEATTIER` |
//! | 8 | 4 | version (1) |
//! | 12 | 4 | length of the whole file in bytes |
//! | 16 | 16 | volume id (UUID, as its bytes) |
//! | 32 | 8 | incarnation: how often the volume was mounted |
//! | 40 | 1 | tier id (0 is the fastest) |
//! | 41 | 1 | number of tiers of the volume |
//! | 42 | 1 | phase of the volume, see [`Phase`]; only tier 0's counts |
//! | 43 | 1 | run: 0 stopped cleanly, 1 running (or crashed), 2 being mounted; see `tier::identity` |
//! | 44 | 1 | tier that the directory's files come from and go back to; only tier 0's counts |
//! | 45 | 1 | length of the tier's name |
//! | 46 | 2 | length of the directory's path |
//! | 48 | n | the tier's name, UTF-8 |
//! | | n | absolute path of the directory that was adopted, UTF-8 |
//! | | 4 | CRC32C of everything before |
//!
//! Little-endian. The path makes an interrupted adoption or release refuse to go on with another directory; a mount
//! may be elsewhere. The file is replaced by rename, never written in place.

use crate::error::{Error, Result};
use crate::units::TierId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"HEATTIER";
const VERSION: u32 = 1;

const VERSION_AT: usize = 8;
const LENGTH_AT: usize = VERSION_AT + 4;
const VOLUME_AT: usize = LENGTH_AT + 4;
const INCARNATION_AT: usize = VOLUME_AT + 16;
const TIER_AT: usize = INCARNATION_AT + 8;
const TIERS_AT: usize = TIER_AT + 1;
const PHASE_AT: usize = TIERS_AT + 1;
const RUN_AT: usize = PHASE_AT + 1;
const ORIGIN_AT: usize = RUN_AT + 1;
const NAME_LEN_AT: usize = ORIGIN_AT + 1;
const DIRECTORY_LEN_AT: usize = NAME_LEN_AT + 1;
const NAME_AT: usize = DIRECTORY_LEN_AT + 2;
const CRC_BYTES: usize = 4;

/// Longest tier name, in bytes.
pub const NAME_MAX_BYTES: usize = 63;
/// Longest path of a directory, in bytes (PATH_MAX less its NUL).
pub const DIRECTORY_MAX_BYTES: usize = 4095;
/// Longest identity file, in bytes.
pub const IDENTITY_MAX_BYTES: usize = NAME_AT + NAME_MAX_BYTES + DIRECTORY_MAX_BYTES + CRC_BYTES;

/// How far the volume's adoption or release has come. Each step may be repeated after an interruption.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The directory is being moved, whole, into its tier, and home is being built of it: may be undone.
    AdoptBuild,
    /// Its files are being renamed to object files: only goes forward.
    AdoptMove,
    /// In service.
    Ready,
    /// Every file is whole in one object file; plain files are being made of them.
    ReleaseBuild,
    /// The plain tree is about to take the directory's place.
    ReleaseSwap,
    /// It has; what heatfs kept is being removed.
    ReleaseRemove,
    /// The volume is being made of a snapshot: may be undone, and starts anew when it is run again.
    CloneBuild,
}

impl Phase {
    const ALL: [Phase; 7] = [
        Phase::AdoptBuild,
        Phase::AdoptMove,
        Phase::Ready,
        Phase::ReleaseBuild,
        Phase::ReleaseSwap,
        Phase::ReleaseRemove,
        Phase::CloneBuild,
    ];

    fn to_byte(self) -> u8 {
        match self {
            Phase::AdoptBuild => 1,
            Phase::AdoptMove => 2,
            Phase::Ready => 3,
            Phase::ReleaseBuild => 4,
            Phase::ReleaseSwap => 5,
            Phase::ReleaseRemove => 6,
            Phase::CloneBuild => 7,
        }
    }
}

/// What the volume was doing when this was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Run {
    /// Stopped cleanly: the log holds nothing that the tiers lack.
    Stopped,
    /// Mounted, or crashed while mounted.
    Running,
    /// The incarnations of the other tiers are being raised above this one; nothing is served yet. Tier 0 only.
    Raising,
}

impl Run {
    const ALL: [Run; 3] = [Run::Stopped, Run::Running, Run::Raising];

    fn to_byte(self) -> u8 {
        match self {
            Run::Stopped => 0,
            Run::Running => 1,
            Run::Raising => 2,
        }
    }
}

/// The decoded file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TierIdentity {
    pub volume: Uuid,
    pub incarnation: u64,
    pub tier: TierId,
    /// Number of tiers of the volume.
    pub tiers: u8,
    pub phase: Phase,
    pub run: Run,
    /// The tier that shares a filesystem with the directory.
    pub origin: TierId,
    pub name: String,
    pub directory: String,
}

impl TierIdentity {
    /// Errors: `Invalid` for a name or a path that is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let too_long = |what: &str, text: &str, max: usize| {
            Error::Invalid(format!("{what} `{text}` is {} bytes long; {max} are allowed", text.len()))
        };
        let name_len = u8::try_from(self.name.len()).ok().filter(|&len| usize::from(len) <= NAME_MAX_BYTES);
        let name_len = name_len.ok_or_else(|| too_long("tier name", &self.name, NAME_MAX_BYTES))?;
        let directory_len =
            u16::try_from(self.directory.len()).ok().filter(|&len| usize::from(len) <= DIRECTORY_MAX_BYTES);
        let directory_len = directory_len.ok_or_else(|| too_long("directory", &self.directory, DIRECTORY_MAX_BYTES))?;
        let length = NAME_AT + self.name.len() + self.directory.len() + CRC_BYTES;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(self.volume.as_bytes());
        bytes.extend_from_slice(&self.incarnation.to_le_bytes());
        bytes.extend_from_slice(&[self.tier.0, self.tiers, self.phase.to_byte(), self.run.to_byte()]);
        bytes.extend_from_slice(&[self.origin.0, name_len]);
        bytes.extend_from_slice(&directory_len.to_le_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(self.directory.as_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// `path` is only for the message. Errors: `Corrupt`.
    pub fn decode(bytes: &[u8], path: &str) -> Result<TierIdentity> {
        let corrupt = |offset: usize, why: String| Error::Corrupt {
            what: "tier identity",
            path: path.to_owned(),
            offset: offset as u64,
            why,
        };
        if bytes.len() < NAME_AT + CRC_BYTES {
            return Err(corrupt(0, format!("only {} bytes long", bytes.len())));
        }
        if bytes[..VERSION_AT] != MAGIC {
            return Err(corrupt(0, "not a heatfs tier identity".to_owned()));
        }
        let version = u32::from_le_bytes(array(bytes, VERSION_AT));
        if version != VERSION {
            return Err(corrupt(VERSION_AT, format!("version {version}; this program knows {VERSION}")));
        }
        let crc_at = bytes.len() - CRC_BYTES;
        if u32::from_le_bytes(array(bytes, crc_at)) != crc32c::crc32c(&bytes[..crc_at]) {
            return Err(corrupt(crc_at, "checksum mismatch".to_owned()));
        }
        let directory_at = NAME_AT + usize::from(bytes[NAME_LEN_AT]);
        let directory_len = usize::from(u16::from_le_bytes(array(bytes, DIRECTORY_LEN_AT)));
        let length = u32::from_le_bytes(array(bytes, LENGTH_AT));
        if directory_at + directory_len != crc_at || usize::try_from(length) != Ok(bytes.len()) {
            return Err(corrupt(LENGTH_AT, format!("lengths do not add up to {}", bytes.len())));
        }
        let text = |from: usize, to: usize| {
            String::from_utf8(bytes[from..to].to_vec()).map_err(|_| corrupt(from, "not UTF-8".to_owned()))
        };
        let phase = Phase::ALL.into_iter().find(|phase| phase.to_byte() == bytes[PHASE_AT]);
        let run = Run::ALL.into_iter().find(|run| run.to_byte() == bytes[RUN_AT]);
        Ok(TierIdentity {
            volume: Uuid::from_bytes(array(bytes, VOLUME_AT)),
            incarnation: u64::from_le_bytes(array(bytes, INCARNATION_AT)),
            tier: TierId(bytes[TIER_AT]),
            tiers: bytes[TIERS_AT],
            phase: phase.ok_or_else(|| corrupt(PHASE_AT, format!("unknown phase {}", bytes[PHASE_AT])))?,
            run: run.ok_or_else(|| corrupt(RUN_AT, format!("unknown run {}", bytes[RUN_AT])))?,
            origin: TierId(bytes[ORIGIN_AT]),
            name: text(NAME_AT, directory_at)?,
            directory: text(directory_at, crc_at)?,
        })
    }
}

/// `N` bytes from `at`; the caller has checked the length.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TierIdentity {
        TierIdentity {
            volume: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            incarnation: 0x0102_0304_0506_0708,
            tier: TierId(1),
            tiers: 3,
            phase: Phase::Ready,
            run: Run::Running,
            origin: TierId(2),
            name: "sata".to_owned(),
            directory: "/srv/pg".to_owned(),
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: &[u8] = &[
            b'H', b'E', b'A', b'T', b'T', b'I', b'E', b'R', 1, 0, 0, 0, 63, 0, 0, 0, //
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, //
            8, 7, 6, 5, 4, 3, 2, 1, 1, 3, 3, 1, 2, 4, 7, 0, //
            b's', b'a', b't', b'a', b'/', b's', b'r', b'v', b'/', b'p', b'g', //
            0x12, 0xca, 0xee, 0x81,
        ];
        assert_eq!(sample().encode().unwrap(), golden);
        assert_eq!(TierIdentity::decode(golden, "t").unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let good = sample().encode().unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(TierIdentity::decode(&bad, "t"), Err(Error::Corrupt { .. })), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(TierIdentity::decode(&good[..len], "t").is_err());
        }
        assert!(TierIdentity::decode(&[good.as_slice(), &[0]].concat(), "t").is_err());
    }

    #[test]
    fn lengths_that_lie_under_a_right_checksum_are_errors() {
        for at in [LENGTH_AT, NAME_LEN_AT, DIRECTORY_LEN_AT, PHASE_AT, RUN_AT] {
            let mut bad = sample().encode().unwrap();
            bad[at] = 200;
            let crc_at = bad.len() - CRC_BYTES;
            let crc = crc32c::crc32c(&bad[..crc_at]).to_le_bytes();
            bad[crc_at..].copy_from_slice(&crc);
            assert!(TierIdentity::decode(&bad, "t").is_err(), "byte {at}");
        }
    }

    #[test]
    fn names_and_paths_have_limits() {
        let long_name = TierIdentity { name: "n".repeat(NAME_MAX_BYTES + 1), ..sample() };
        let long_path = TierIdentity { directory: "d".repeat(DIRECTORY_MAX_BYTES + 1), ..sample() };
        assert!(long_name.encode().is_err() && long_path.encode().is_err());
        let longest =
            TierIdentity { name: "n".repeat(NAME_MAX_BYTES), directory: "d".repeat(DIRECTORY_MAX_BYTES), ..sample() };
        let bytes = longest.encode().unwrap();
        assert_eq!(bytes.len(), IDENTITY_MAX_BYTES);
        assert_eq!(TierIdentity::decode(&bytes, "t").unwrap(), longest);
    }
}
