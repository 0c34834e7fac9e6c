//! How fast work in the background may go: a byte budget, stepping back when commits suffer, and resting between pieces of work
//! while the machine has nothing to spare.

use crate::device::clock::{Instant, monotonic_now};
use crate::device::host::{ProcessorTimes, processor_times};
use crate::policy::yielding::{Share, Signs};
use crate::volume::{Activity, Volume};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Time between two looks at what others do: some ticks of the processors' own count.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The first look comes as soon as there is anything to see, so that work that nobody minds does not begin with a rest.
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// A share from which the machine counts as free.
const FREE_SHARE: f64 = 0.7;
/// Longest rest after one piece of work, so that whoever waits for the work's end is not kept long.
const REST_MAX: Duration = Duration::from_millis(500);

/// Paces several threads that work for a volume in the background; see the module's head.
pub struct Pace {
    volume: Arc<Volume>,
    bucket: TokenBucket,
    looks: Mutex<Looks>,
    rested_us: AtomicU64,
}

struct Looks {
    at: Instant,
    /// When the next look is due, from `at` on.
    wait: Duration,
    share: Share,
    commits: Backoff,
    activity: Activity,
    processors: Option<ProcessorTimes>,
}

impl Pace {
    /// `busy_share`: the share of its time that each thread works while others need the machine. `bytes_per_second`: of all threads, however
    /// quiet the machine is.
    pub fn new(volume: Arc<Volume>, busy_share: f64, bytes_per_second: u64) -> Pace {
        let looks = Looks {
            at: monotonic_now(),
            wait: FIRST_LOOK,
            share: Share::new(busy_share),
            commits: Backoff::default(),
            activity: volume.activity(),
            processors: processor_times(),
        };
        let bucket = TokenBucket::new(bytes_per_second);
        Pace { volume, bucket, looks: Mutex::new(looks), rested_us: AtomicU64::new(0) }
    }

    /// Does one piece of work on so many bytes, some milliseconds of it, and then rests for as long as the share asks.
    pub fn work<Done>(&self, bytes: u64, work: impl FnOnce() -> Done) -> Done {
        self.rest(self.bucket.take(bytes));
        let began = monotonic_now();
        let done = work();
        let share = self.share_now();
        self.rest(began.elapsed().mul_f64((1.0 - share) / share).min(REST_MAX));
        done
    }

    /// Does nobody else need the machine? Only then is it worth working in more threads than there are streams.
    pub fn is_free(&self) -> bool {
        self.share_now() > FREE_SHARE
    }

    /// How long threads have rested, all together.
    pub fn rested(&self) -> Duration {
        Duration::from_micros(self.rested_us.load(Ordering::Relaxed))
    }

    fn rest(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        std::thread::sleep(time);
        self.rested_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    fn share_now(&self) -> f64 {
        let mut looks = self.looks.lock();
        let elapsed = looks.at.elapsed();
        if elapsed >= looks.wait {
            looks.wait = LOOK_EVERY;
            looks.look(self.volume.activity(), processor_times(), elapsed, self.volume.mark_room_used());
        }
        looks.share.get()
    }
}

impl Looks {
    fn look(&mut self, activity: Activity, processors: Option<ProcessorTimes>, elapsed: Duration, room_used: f64) {
        let before = std::mem::replace(&mut self.activity, activity);
        let idle = processors.zip(self.processors).and_then(|(now, then)| now.idle_share_since(&then));
        self.processors = processors;
        self.at = monotonic_now();
        let now = &self.activity;
        let spent = now.read_us.iter().zip(&before.read_us).skip(1);
        let longest = spent.map(|(now, before)| now.saturating_sub(*before)).max().unwrap_or(0);
        let signs = Signs {
            requests_per_s: bytes_f64(now.requests.saturating_sub(before.requests)) / elapsed.as_secs_f64(),
            idle,
            slow_readers: Duration::from_micros(longest).div_duration_f64(elapsed),
            slow_commits: self.commits.sample(now.log_groups, now.log_group_us),
            room_used,
        };
        self.share.look(&signs);
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
    fn what_is_seen_between_two_looks_decides() {
        let activity = |requests, slow_us| Activity { requests, read_us: vec![0, 0, slow_us], ..Activity::default() };
        let processors = |idle, total| Some(ProcessorTimes { idle, total });
        let mut looks = Looks {
            at: monotonic_now(),
            wait: FIRST_LOOK,
            share: Share::new(0.1),
            commits: Backoff::default(),
            activity: activity(0, 0),
            processors: processors(0, 0),
        };
        let second = Duration::from_secs(1);
        let mut look = |activity, processors| {
            looks.look(activity, processors, second, 0.0);
            looks.share.get()
        };
        assert!((look(activity(3, 0), processors(20, 200)) - 1.0).abs() < 1e-9, "nobody is there");
        assert!((look(activity(5003, 0), processors(160, 400)) - 1.0).abs() < 1e-9, "there is plenty");
        assert!((look(activity(9003, 0), processors(165, 600)) - 0.5).abs() < 1e-9, "processors are scarce");
        assert!((look(activity(9999, 900_000), processors(300, 800)) - 0.25).abs() < 1e-9, "the slow tier is busy");
    }

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
