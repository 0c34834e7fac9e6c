//! When records go to their blocks although those are still being written: from which fill of the log on, and from which cost to readers.
//!
//! Waiting pays: what is overwritten in the log is never written a second time. But a log that is full makes writers wait, and draining it takes time. So the
//! threshold of the settings holds while the log would not run full within [`LEAD`] at the rate of the last seconds; a burst lowers it by as much as would
//! be missing, so that draining begins while there is still room, and the threshold rises again as the burst passes.
//!
//! A block whose records are read one by one, where one read would do, has a threshold of its own ([`BlockThresholds`]): low when many reads are expected of it, high when
//! writes are, since its records will soon be dead.

use crate::units::{BlockNo, FileId};
use crate::volume::LogLoad;
use std::collections::HashMap;
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

/// What writing a block costs beyond reading its records once more, in device reads.
const WRITE_COST_READS: f32 = 4.0;
/// Blocks whose readers' costs are added up at once; beyond that it begins anew.
const BLOCKS_MAX: usize = 4096;

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Accesses that are expected in the next epoch.
    pub expected: f32,
    /// What was counted lately: reads of its place, and writes.
    pub reads: u16,
    pub writes: u16,
}

/// What a block's records have cost its readers.
#[derive(Clone, Copy, Debug, Default)]
struct Paid {
    /// Records that were read one by one.
    records: f32,
    /// By so many reads.
    reads: f32,
}

/// Adds up what blocks' records cost their readers; see the module's head.
#[derive(Debug, Default)]
pub struct BlockThresholds {
    paid: HashMap<(FileId, BlockNo), Paid>,
}

impl BlockThresholds {
    /// A read has met so many records of a block one by one. True when they cost readers more than coalescing them would: what was paid so far and what is
    /// expected to be. The block is forgotten then.
    pub fn is_reached(&mut self, block: (FileId, BlockNo), records: u16, seen: Seen) -> bool {
        let mut paid = self.paid.remove(&block).unwrap_or_default();
        paid.records += f32::from(records);
        paid.reads += 1.0;
        // Half of what comes is writes as long as nothing was seen.
        let (reads, writes) = (f32::from(seen.reads) + paid.reads, f32::from(seen.writes));
        let write_share = (writes + 1.0) / (reads + writes + 2.0);
        let expected = seen.expected.max(0.0);
        let threshold = (f32::from(records) + WRITE_COST_READS) * (1.0 + expected * write_share);
        if paid.records + f32::from(records) * expected * (1.0 - write_share) >= threshold {
            return true;
        }
        if self.paid.len() >= BLOCKS_MAX {
            self.paid.clear();
        }
        self.paid.insert(block, paid);
        false
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

    /// Reads of eight records each until a block's threshold is reached; None: not within a thousand.
    fn reads_until(expected: f32, reads: u16, writes: u16) -> Option<u32> {
        let mut thresholds = BlockThresholds::default();
        (1..1000).find(|_| thresholds.is_reached((FileId(1), BlockNo(2)), 8, Seen { expected, reads, writes }))
    }

    #[test]
    fn a_block_that_will_be_read_is_coalesced_at_once_and_one_that_will_be_written_waits() {
        assert_eq!(reads_until(0.0, 0, 0), Some(2), "a scan that comes again pays");
        assert_eq!(reads_until(4.0, 9, 0), Some(1));
        let written = reads_until(4.0, 0, 9).expect("readers have paid at last");
        assert!(written > 3, "{written}");
        assert!(reads_until(100.0, 0, 1000).expect("reads are seen") > 50, "its records die before anybody has paid");
        assert_eq!(reads_until(f32::NAN, 0, 0), Some(2), "nonsense is no expectation");
    }

    #[test]
    fn thresholds_of_countless_blocks_take_bounded_memory() {
        let mut thresholds = BlockThresholds::default();
        for block in 0..100_000 {
            assert!(!thresholds.is_reached((FileId(1), BlockNo(block)), 3, Seen::default()));
            assert!(thresholds.paid.len() <= BLOCKS_MAX);
        }
        let read = Seen { expected: 9.0, reads: 9, writes: 0 };
        assert!(thresholds.is_reached((FileId(1), BlockNo(0)), 3, read));
    }

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
