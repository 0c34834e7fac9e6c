//! The clocks of the machine: the only place that reads them.

use crate::units::WallNs;
pub use std::time::Instant;
use std::time::{SystemTime, UNIX_EPOCH};

/// Wall-clock time now.
pub fn wall_now() -> WallNs {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => WallNs(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        Err(before) => WallNs(-i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX)),
    }
}

/// A point of the monotonic clock, for intervals.
pub fn monotonic_now() -> Instant {
    Instant::now()
}
