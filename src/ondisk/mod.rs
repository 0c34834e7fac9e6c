//! Every format that heatfs writes, one file each: byte tables, encoders, decoders that answer corrupt bytes with an
//! error or an equal value and never panic, golden bytes. All integers are little-endian; `usize` is never written.

pub mod archived;
pub mod bytes;
pub mod changes;
pub mod file_id;
pub mod group;
pub mod identity;
pub mod image;
pub mod kept;
pub mod mark;
pub mod note;
pub mod rows;
pub mod sourced;
pub mod staged;
pub mod summary;

/// The first eight bytes of BLAKE3: guards headers, where a false match would be worse than eight bytes of space.
pub fn checksum64(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
