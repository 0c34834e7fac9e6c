//! When the next snapshot is due. Pure: moments in, moments out; it reads no clock, and no calendar but the one it is given.
//!
//! A moment that was missed, because nothing ran or the last snapshot took too long, is caught up once: however many were missed, one snapshot is as of now.
//! The wall clock may jump. Forward: as if the time between had been missed. Backward: the next moment is looked up anew from now, so nothing
//! waits until the clock has come back to where it was.

use crate::units::WallNs;
use std::time::Duration;

/// The first moment of a calendar after another.
pub type After<'a> = &'a dyn Fn(WallNs) -> Option<WallNs>;

/// Steps back of the clock up to this are corrections: what was just done is not done again.
const CORRECTION_NS: i64 = 120 * 1_000_000_000;
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// When the first snapshot of a run is due, given when those that there are were taken. A volume without any gets one at once.
pub fn first(taken: &[WallNs], now: WallNs, after: After<'_>) -> Option<WallNs> {
    match taken.iter().filter(|taken| **taken <= now).max() {
        Some(last) => after(*last),
        // All are of the future: the clock went back.
        None if !taken.is_empty() => after(now),
        None => Some(now),
    }
}

/// The next moment after one that was served at `served`.
pub fn next(served: WallNs, now: WallNs, after: After<'_>) -> Option<WallNs> {
    let corrected = served > now && served.0.saturating_sub(now.0) <= CORRECTION_NS;
    after(if corrected { served } else { now })
}

/// What was due at `next`, looked at again: sooner, if the clock went back since.
pub fn again(next: WallNs, served: Option<WallNs>, now: WallNs, after: After<'_>) -> WallNs {
    if next <= now {
        return next;
    }
    let sooner = match served {
        Some(served) => self::next(served, now, after),
        None => after(now),
    };
    sooner.map_or(next, |sooner| sooner.min(next))
}

/// How long to wait after so many failures in a row.
pub fn back_off(failures: u32) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::{again, back_off, first, next};
    use crate::units::WallNs;
    use std::time::Duration;

    const S: i64 = 1_000_000_000;
    const HOUR: i64 = 3600;

    fn at(seconds: i64) -> WallNs {
        WallNs(seconds * S)
    }

    fn hourly(after: WallNs) -> Option<WallNs> {
        Some(at((after.0.div_euclid(S * HOUR) + 1) * HOUR))
    }

    #[test]
    fn what_was_missed_is_caught_up_once() {
        let now = at(10 * HOUR + 100);
        assert_eq!(first(&[at(7 * HOUR), at(3 * HOUR)], now, &hourly), Some(at(8 * HOUR)), "due since then");
        assert_eq!(next(now, now, &hourly), Some(at(11 * HOUR)), "and not for 9 and 10 as well");
        assert_eq!(first(&[at(10 * HOUR + 1)], now, &hourly), Some(at(11 * HOUR)));
        assert_eq!(first(&[], now, &hourly), Some(now));
    }

    #[test]
    fn a_clock_that_jumps_does_no_harm() {
        // Back by a day: not idle for a day.
        let due = at(34 * HOUR);
        assert_eq!(again(due, Some(at(33 * HOUR)), at(9 * HOUR + 30), &hourly), at(10 * HOUR));
        assert_eq!(first(&[at(33 * HOUR)], at(9 * HOUR + 30), &hourly), Some(at(10 * HOUR)));
        // Back by a second, just after the hour: not twice.
        let served = at(10 * HOUR);
        assert_eq!(again(at(11 * HOUR), Some(served), at(10 * HOUR - 1), &hourly), at(11 * HOUR));
        assert_eq!(next(served, at(10 * HOUR - 1), &hourly), Some(at(11 * HOUR)));
        // Forward by a year: due, and then in an hour.
        let year = at(9000 * HOUR + 5);
        assert_eq!(again(at(11 * HOUR), Some(served), year, &hourly), at(11 * HOUR));
        assert_eq!(next(year, year, &hourly), Some(at(9001 * HOUR)));
    }

    #[test]
    fn failures_are_retried_ever_more_rarely() {
        let minutes: Vec<u64> = (1..=8).map(|failures| back_off(failures).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX), Duration::from_secs(3600));
    }
}
