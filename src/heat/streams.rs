//! Telling sequential accesses from others, per file.

/// Streams remembered per file and direction: several backends may scan one table at once.
const STREAMS: usize = 16;
/// No access can start here, so it marks an unused slot.
const UNUSED: u64 = u64::MAX;

/// Where the latest streams of one file ended, most recent first.
#[derive(Clone, Copy)]
pub struct Streams {
    ends: [u64; STREAMS],
}

impl Default for Streams {
    fn default() -> Self {
        Streams::new()
    }
}

impl Streams {
    pub fn new() -> Streams {
        Streams { ends: [UNUSED; STREAMS] }
    }

    /// Notes an access; true when it starts where one of the latest streams ended.
    pub fn note(&mut self, offset: u64, len: u64) -> bool {
        let found = self.ends.iter().position(|end| *end == offset);
        let slot = found.unwrap_or(STREAMS - 1);
        if let Some(recent) = self.ends.get_mut(..=slot) {
            recent.rotate_right(1);
        }
        self.ends[0] = offset.saturating_add(len);
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_counts_once() {
        let mut streams = Streams::new();
        let counted = (0..1000u64).filter(|i| !streams.note(i * 8192, 8192)).count();
        assert_eq!(counted, 1);
    }

    #[test]
    fn sixteen_interleaved_scans_are_sequential_and_seventeen_are_not() {
        for (scans, expected) in [(16u64, 16usize), (17, 17 * 50)] {
            let mut streams = Streams::new();
            let mut counted = 0;
            for step in 0..50u64 {
                for scan in 0..scans {
                    if !streams.note(scan * (1 << 30) + step * 8192, 8192) {
                        counted += 1;
                    }
                }
            }
            assert_eq!(counted, expected, "{scans} scans");
        }
    }

    #[test]
    fn scattered_reads_all_count() {
        let mut streams = Streams::new();
        assert!((0..1000u64).all(|i| !streams.note((i * 7919 % 100_000) * 16_384, 8192)));
    }
}
