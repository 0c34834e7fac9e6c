//! How fast the mover may go: a byte budget, and stepping back when commits suffer.

use crate::device::clock::{Instant, monotonic_now};
use parking_lot::Mutex;
use std::time::Duration;

/// Bytes per second, with a burst of a tenth of a second.
pub(super) struct TokenBucket {
    bytes_per_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl TokenBucket {
    pub(super) fn new(bytes_per_second: u64) -> TokenBucket {
        let bytes_per_second = bytes_f64(bytes_per_second.max(1));
        TokenBucket { bytes_per_second, state: Mutex::new((0.0, monotonic_now())) }
    }

    /// Takes `bytes` and says how long to wait before using them.
    pub(super) fn take(&self, bytes: u64) -> Duration {
        let now = monotonic_now();
        let mut state = self.state.lock();
        let earned = now.duration_since(state.1).as_secs_f64() * self.bytes_per_second;
        state.0 = (state.0 + earned).min(self.bytes_per_second / 10.0) - bytes_f64(bytes);
        state.1 = now;
        if state.0 >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-state.0 / self.bytes_per_second)
    }
}

/// Watches the mean latency of log writes: over twice its baseline, the mover is in the way.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: (u64, u64),
    /// The quiet latency, in microseconds: follows a lower one at once and a higher one slowly.
    baseline_us: f64,
    recent_us: f64,
}

/// Below this a log write is not slow, whatever the baseline: scheduling noise on a fast device.
const UNNOTICED_US: f64 = 400.0;

impl Backoff {
    /// Takes the totals of log groups and of the microseconds that writing them took; true: step back for a moment.
    pub(super) fn sample(&mut self, groups: u64, micros: u64) -> bool {
        let (more, took) = (groups.saturating_sub(self.last.0), micros.saturating_sub(self.last.1));
        self.last = (groups, micros);
        if more == 0 {
            self.recent_us = 0.0;
            return false;
        }
        self.recent_us = bytes_f64(took) / bytes_f64(more);
        let up = if self.baseline_us == 0.0 { 1.0 } else { 0.02 };
        let weight = if self.recent_us < self.baseline_us { 0.5 } else { up };
        self.baseline_us += (self.recent_us - self.baseline_us) * weight;
        self.recent_us > UNNOTICED_US && self.recent_us > 2.0 * self.baseline_us
    }

    /// (recent, baseline), in microseconds.
    pub(super) fn latencies_us(&self) -> (f64, f64) {
        (self.recent_us, self.baseline_us)
    }
}

#[allow(clippy::cast_precision_loss)]
fn bytes_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_holds_back_what_was_not_earned() {
        let bucket = TokenBucket::new(1 << 20);
        let wait: Duration = (0..16).map(|_| bucket.take(64 << 10)).last().unwrap();
        assert!(wait > Duration::from_millis(800) && wait < Duration::from_millis(1100), "{wait:?}");
    }

    #[test]
    fn slow_commits_are_noticed_and_a_slower_device_becomes_the_baseline() {
        let mut backoff = Backoff::default();
        let (mut groups, mut micros) = (0, 0);
        let mut step = |latency_us: u64, backoff: &mut Backoff| {
            groups += 100;
            micros += 100 * latency_us;
            backoff.sample(groups, micros)
        };
        assert!((0..20).all(|_| !step(300, &mut backoff)));
        assert!(step(2000, &mut backoff));
        assert!(!step(320, &mut backoff));
        let noticed = (0..500).filter(|_| step(2000, &mut backoff)).count();
        assert!((10..100).contains(&noticed), "{noticed}");
    }
}
