//! What a tier path holds: its identity.

pub mod identity;
