//! How much of its time work in the background takes while others need the machine.
//!
//! Nobody can say beforehand what a machine has to spare. So the share is felt for: doubled down to a floor at once when the foreground
//! works and something is scarce, raised in steps while there is plenty, and all of it when nobody is there. Work that would be in vain if it
//! took longer hurries.

/// Requests per second below which nobody is there.
const QUIET_PER_SECOND: f64 = 20.0;
/// Idle processors: below the first share they are scarce, above the second there is plenty.
const IDLE_SCARCE: f64 = 0.10;
const IDLE_PLENTY: f64 = 0.25;
/// Readers waiting in a slow tier, on average: above the first its device is scarce, below the second there is plenty.
const READERS_SCARCE: f64 = 0.5;
const READERS_PLENTY: f64 = 0.25;
const RAISE: f64 = 1.25;
/// With so much of its room used the work need not hurry; with so much it must, whomever it disturbs.
const ROOM_UNHURRIED: f64 = 0.25;
const ROOM_HURRIED: f64 = 0.75;

/// What was seen since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// Requests of the volume's users, per second.
    pub requests_per_s: f64,
    /// Share of the machine's processors with nothing to do; None: unknown.
    pub idle: Option<f64>,
    /// Readers that were in the busiest tier below the fastest, on average.
    pub slow_readers: f64,
    /// Commits take over twice as long as they do at quiet times.
    pub slow_commits: bool,
    /// Share of what holds this work's results back for it that is used up: at 1 the work was in vain.
    pub room_used: f64,
}

/// The share of its time that a thread works, felt for by [`Share::look`].
#[derive(Clone, Copy, Debug)]
pub struct Share {
    floor: f64,
    share: f64,
}

impl Share {
    /// `floor`: the share that is taken however busy others are, above 0 and at most 1. Where it begins, too.
    pub fn new(floor: f64) -> Share {
        let floor = floor.clamp(0.001, 1.0);
        Share { floor, share: floor }
    }

    pub fn get(&self) -> f64 {
        self.share
    }

    pub fn look(&mut self, signs: &Signs) {
        let floor = self.floor.max((signs.room_used - ROOM_UNHURRIED) / (ROOM_HURRIED - ROOM_UNHURRIED)).min(1.0);
        let idle = signs.idle.unwrap_or(0.0);
        self.share = if signs.requests_per_s < QUIET_PER_SECOND && signs.slow_readers < READERS_PLENTY {
            1.0
        } else if signs.slow_commits || idle < IDLE_SCARCE || signs.slow_readers > READERS_SCARCE {
            (self.share / 2.0).max(floor)
        } else if idle > IDLE_PLENTY && signs.slow_readers < READERS_PLENTY {
            (self.share * RAISE).clamp(floor, 1.0)
        } else {
            self.share.max(floor)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Signs =
        Signs { requests_per_s: 5000.0, idle: Some(0.02), slow_readers: 0.0, slow_commits: false, room_used: 0.0 };

    fn after(looks: usize, share: &mut Share, signs: Signs) -> f64 {
        (0..looks).for_each(|_| share.look(&signs));
        share.get()
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn nobody_there_leaves_everything_to_it_and_a_crowd_the_floor() {
        let mut share = Share::new(0.1);
        assert!(close(share.get(), 0.1), "it begins modestly");
        assert!(close(after(1, &mut share, Signs { requests_per_s: 3.0, ..BUSY }), 1.0));
        assert!(close(after(1, &mut share, BUSY), 0.5));
        assert!(close(after(9, &mut share, BUSY), 0.1));
    }

    #[test]
    fn each_scarcity_counts_alone() {
        let plenty = Signs { idle: Some(0.6), ..BUSY };
        let scarce = [
            Signs { idle: Some(0.05), ..plenty },
            Signs { idle: None, ..plenty },
            Signs { slow_readers: 0.8, ..plenty },
            Signs { slow_commits: true, ..plenty },
        ];
        for signs in scarce {
            let mut share = Share::new(0.01);
            assert!(close(after(100, &mut share, plenty), 1.0));
            assert!(close(after(1, &mut share, signs), 0.5), "{signs:?}");
        }
    }

    #[test]
    fn work_that_would_be_in_vain_hurries() {
        let mut share = Share::new(0.1);
        assert!(close(after(1, &mut share, Signs { room_used: 0.25, ..BUSY }), 0.1));
        assert!(close(after(1, &mut share, Signs { room_used: 0.5, ..BUSY }), 0.5));
        assert!(close(after(1, &mut share, Signs { room_used: 0.9, ..BUSY }), 1.0));
        assert!(close(after(9, &mut share, BUSY), 0.1), "and rests again when there is room");
    }

    #[test]
    fn between_scarce_and_plenty_it_stays() {
        let mut share = Share::new(0.1);
        let plenty = Signs { idle: Some(0.6), ..BUSY };
        let raised = after(3, &mut share, plenty);
        assert!(raised > 0.1 && raised < 1.0);
        assert!(close(after(5, &mut share, Signs { idle: Some(0.2), ..plenty }), raised));
        assert!(close(after(5, &mut share, Signs { slow_readers: 0.3, ..plenty }), raised));
    }
}
