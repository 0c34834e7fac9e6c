//! Every format: one file per persisted thing, with its table of bytes, its golden bytes and its flipped bits.

pub mod file_id;
pub mod identity;
