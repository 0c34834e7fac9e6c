//! Names of things in a repository. All are fixed bytes; what a person meets has a text form.

use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Reader};
use crate::units::WallNs;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Name of an object: BLAKE3 over its bytes, keyed with the repository's own key, so that nobody without the key can tell
/// whether a repository holds some known bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub [u8; 32]);

/// A pack. The upper 20 bits are the generation it was begun in, the rest is chance: prune tells from the name alone
/// whether a pack may be older than its seal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PackId(pub u64);

/// A snapshot: 48 bits of milliseconds since the epoch and 80 bits of chance, so that names sort by time. Its text is the 26
/// characters of a ULID (Crockford's base 32).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub u128);

/// A writer session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u128);

/// Counts seals: the current generation is one more than the last that was closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Generation(pub u32);

/// What an object is called, and where it was when it was written. The id is the truth; the place is a hint that spares the index
/// (prune may have moved the object since).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectRef {
    pub id: ObjectId,
    pub place: Place,
}

/// Bytes of an object within a decoded frame of a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    pub pack: PackId,
    /// Number of the frame in the pack's table of contents.
    pub frame: u32,
    /// Offset of the object in the frame's raw bytes.
    pub start: u32,
    /// Raw bytes of the object.
    pub len: u32,
}

/// Bits of chance in a pack's name.
const PACK_CHANCE_BITS: u32 = 44;

impl PackId {
    /// A name for a new pack of this generation.
    pub fn random(generation: Generation) -> Result<PackId> {
        let [a, b, c, d, e, f, ..] = random_bytes::<16>()?;
        let chance = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) & ((1 << PACK_CHANCE_BITS) - 1);
        Ok(PackId(u64::from(generation.0) << PACK_CHANCE_BITS | chance))
    }

    pub fn generation(self) -> Generation {
        Generation(u32::try_from(self.0 >> PACK_CHANCE_BITS).unwrap_or(u32::MAX))
    }

    /// Where the pack lies, relative to the repository.
    pub fn path(self) -> String {
        format!("{}/{self}", self.dir())
    }

    pub fn dir(self) -> String {
        format!("packs/{:x}", self.0 & 0xf)
    }

    /// All directories that packs lie in.
    pub fn dirs() -> impl Iterator<Item = String> {
        (0..16).map(|digit| PackId(digit).dir())
    }
}

impl Generation {
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl SnapshotId {
    pub fn random(now: WallNs) -> Result<SnapshotId> {
        let millis = u128::try_from(now.0 / 1_000_000).unwrap_or(0) & ((1 << 48) - 1);
        let chance = u128::from_le_bytes(random_bytes()?) >> 48;
        Ok(SnapshotId(millis << 80 | chance))
    }

    pub fn path(self) -> String {
        format!("snapshots/{self}")
    }
}

impl LeaseId {
    pub fn random() -> Result<LeaseId> {
        Ok(LeaseId(u128::from_le_bytes(random_bytes()?)))
    }
}

impl ObjectRef {
    pub const BYTES: usize = 52;

    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.place.pack.0.to_le_bytes());
        for field in [self.place.frame, self.place.start, self.place.len] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub fn take(r: &mut Reader<'_>) -> Decoded<ObjectRef> {
        let id = ObjectId(r.array()?);
        let place = Place { pack: PackId(r.u64()?), frame: r.u32()?, start: r.u32()?, len: r.u32()? };
        Ok(ObjectRef { id, place })
    }
}

/// Chance from the operating system.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::io("draw random bytes from", "the system", e.into()))?;
    Ok(bytes)
}

/// Crockford's alphabet: no I, L, O or U.
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ULID_CHARS: u32 = 26;

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |at: u32| {
            let index = usize::try_from(self.0 >> (5 * (ULID_CHARS - 1 - at)) & 31).unwrap_or(0);
            char::from(CROCKFORD[index])
        };
        let text: String = (0..ULID_CHARS).map(digit).collect();
        f.pad(&text)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<SnapshotId> {
        let wrong =
            || Error::Invalid(format!("`{text}` is no snapshot name: 26 characters of 0-9 and A-Z are expected"));
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return Err(wrong());
        }
        let mut value: u128 = 0;
        for byte in text.bytes() {
            let digit = CROCKFORD.iter().position(|c| *c == byte.to_ascii_uppercase()).ok_or_else(wrong)?;
            value = value << 5 | u128::try_from(digit).unwrap_or(0);
        }
        Ok(SnapshotId(value))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}
impl FromStr for PackId {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<PackId, ()> {
        if text.len() != 16 {
            return Err(());
        }
        u64::from_str_radix(text, 16).map(PackId).map_err(drop)
    }
}
impl FromStr for LeaseId {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<LeaseId, ()> {
        if text.len() != 32 {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(LeaseId).map_err(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_names_sort_by_time_and_read_back() {
        let early = SnapshotId::random(WallNs(1_000_000_000_000)).expect("random");
        let late = SnapshotId::random(WallNs(2_000_000_000_000_000)).expect("random");
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(late.to_string().parse::<SnapshotId>().expect("parses"), late);
        assert_eq!(SnapshotId(u128::MAX).to_string(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        for wrong in ["", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "01ARZ3NDEKTSV4RRFFQ69G5FAU", "01ARZ3NDEKTSV4RRFFQ69G5FA"] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn packs_carry_their_generation() {
        let pack = PackId::random(Generation(77)).expect("random");
        assert_eq!(pack.generation(), Generation(77));
        assert_eq!(pack.to_string().parse(), Ok(pack));
    }
}
