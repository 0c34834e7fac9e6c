//! The clocks of the machine: the only place that reads them.

use crate::units::WallNs;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::time::Duration;
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

/// Processor time that this thread has used, for those who have a budget of it; zero where the system does not say.
pub fn thread_cpu_time() -> Duration {
    let micros = |time: TimeVal| {
        let part = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0)) + Duration::from_micros(part)
    };
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(Duration::ZERO, |usage| micros(usage.user_time()) + micros(usage.system_time()))
}
