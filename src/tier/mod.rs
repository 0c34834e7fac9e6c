//! Tiers: identity of a backing path (which tier of which volume, I7) and the object files that hold block images.

pub mod identity;
pub mod objects;
