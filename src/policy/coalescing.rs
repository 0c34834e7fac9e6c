//! From which fill of the log on records go to their blocks although those are still being written.
//!
//! Waiting pays: what is overwritten in the log is never written a second time. But a log that is full makes writers wait, and draining it takes time. So the
//! threshold of the settings holds while the log would not run full within [`LEAD`] at the rate of the last seconds; a burst lowers it by as much as would
//! be missing, so that draining begins while there is still room, and the threshold rises again as the burst passes.

use crate::volume::LogLoad;
use std::time::Duration;

/// How far ahead the log's fill is foreseen: what draining a quarter of a log takes on a slow disk.
const LEAD: Duration = Duration::from_secs(20);
/// The fill that must not be reached within that time.
const FULL: f64 = 0.9;
/// Coalescing never begins below this share of the threshold of the settings.
const EARLIEST: f64 = 0.25;
/// Time in which the rate is smoothed.
const SMOOTH: Duration = Duration::from_secs(4);

/// Watches the log's load; see the module's head.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// When it last looked, and the bytes written until then.
    last: Option<(Duration, u64)>,
    bytes_per_second: f64,
}

impl Watch {
    /// The fill from which coalescing is to begin. `at`: time since any fixed moment.
    pub fn threshold(&mut self, at: Duration, load: &LogLoad) -> f64 {
        if let Some((then, written)) = self.last.replace((at, load.written_bytes)) {
            let elapsed = at.saturating_sub(then).as_secs_f64();
            // Looks that follow each other closely, or a clock that stands, say nothing about a rate.
            if elapsed < 1e-3 {
                self.last = Some((then, written));
            } else {
                let rate = count_f64(load.written_bytes.saturating_sub(written)) / elapsed;
                let weight = 1.0 - (-elapsed / SMOOTH.as_secs_f64()).exp();
                self.bytes_per_second += (rate - self.bytes_per_second) * weight;
            }
        }
        let grows = self.bytes_per_second * LEAD.as_secs_f64() / count_f64(load.size_bytes.max(1));
        let missing = (load.fill + grows - FULL).max(0.0);
        let wanted = load.coalesce_at_fill.clamp(0.0, 1.0);
        (wanted - missing).clamp(wanted * EARLIEST, wanted)
    }

    pub fn bytes_per_second(&self) -> f64 {
        self.bytes_per_second
    }
}

#[allow(clippy::cast_precision_loss)]
fn count_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn load(fill: f64, size_bytes: u64, written_bytes: u64) -> LogLoad {
        LogLoad { fill, size_bytes, written_bytes, coalesce_at_fill: 0.5 }
    }

    /// Thresholds of a log that is written at a rate, without being drained, looked at four times a second.
    fn run(watch: &mut Watch, seconds: u64, bytes_per_second: u64, written: &mut u64) -> Vec<(f64, f64)> {
        let mut seen = Vec::new();
        for quarter in 0..4 * seconds {
            *written += bytes_per_second / 4;
            let fill = *written as f64 / SIZE as f64;
            let at = Duration::from_millis(250) * u32::try_from(quarter).unwrap();
            seen.push((fill, watch.threshold(at, &load(fill, SIZE, *written))));
        }
        seen
    }

    #[test]
    fn a_trickle_leaves_the_threshold_where_it_was() {
        let (mut watch, mut written) = (Watch::default(), 0);
        let seen = run(&mut watch, 60, 4 << 20, &mut written);
        assert!(seen.iter().all(|(fill, threshold)| *fill > 0.45 || *threshold == 0.5), "{seen:?}");
    }

    #[test]
    fn a_burst_is_met_before_it_has_filled_what_was_to_be_left_and_forgotten_after() {
        let (mut watch, mut written) = (Watch::default(), 0);
        let seen = run(&mut watch, 10, 50 << 20, &mut written);
        let begins = seen.iter().position(|(fill, threshold)| fill >= threshold).expect("it begins");
        assert!(seen[begins].0 < 0.4, "at {:?}", seen[begins]);
        assert!(seen.iter().all(|(_, threshold)| *threshold >= 0.5 * EARLIEST));
        // Half a minute of nothing, with the log drained.
        let mut last = 0.0;
        for second in 10..40 {
            last = watch.threshold(Duration::from_secs(second), &load(0.1, SIZE, written));
        }
        assert_eq!(last, 0.5);
    }

    #[test]
    fn odd_readings_do_no_harm() {
        let mut watch = Watch::default();
        let at = Duration::from_secs(5);
        for (at, written, size_bytes) in
            [(at, 9, 0), (at, u64::MAX, 1), (Duration::ZERO, 0, 7), (Duration::MAX, 1, SIZE)]
        {
            let threshold = watch.threshold(at, &load(0.2, size_bytes, written));
            assert!((0.125..=0.5).contains(&threshold), "{threshold}");
        }
    }
}
