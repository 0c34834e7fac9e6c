//! The engine's own threads: the log's committer, and maintenance, which keeps log room free and checkpoints.

use super::wake::Wake;
use super::{Activity, LogLoad, Volume};
use crate::device::clock;
use crate::error::{Error, Result};
use crate::units::{BlockNo, FileId, TierId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often maintenance looks around when nobody wakes it.
const TICK: Duration = Duration::from_millis(250);
/// Nobody has written, and few have read, for this many ticks: what is left in the overlay is coalesced.
const IDLE_TICKS: u32 = 20;
/// More reads than this in a tick are not idleness: coalescing would take the device and the processor from them.
const IDLE_READS_MAX: u64 = 50;
/// Blocks coalesced per look while idle.
const IDLE_BLOCKS: usize = 512;

#[derive(Default)]
pub(super) struct Maintenance {
    running: AtomicBool,
    /// Wakes and stops it.
    pub wake: Wake,
    /// Goes up with every round: what a watchdog looks at.
    rounds: AtomicU64,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Maintenance {
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    pub fn is_stopping(&self) -> bool {
        self.wake.is_stopping()
    }
}

/// What to take out of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Drain {
    /// What is bound for slow tiers, early: they need the time.
    SlowTiers,
    /// Whatever holds the oldest segments back.
    Oldest,
}

impl Volume {
    /// Starts committer and maintenance. They end with [`Volume::shut_down`].
    pub fn start_threads(self: &Arc<Self>) -> Result<()> {
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_string())
                .spawn(body)
                .map_err(|e| Error::io("start thread", name, e))
        };
        let committer = self.clone();
        let maintainer = self.clone();
        let committer = spawn("log-committer", Box::new(move || committer.log.run_committer()))?;
        self.maintenance.running.store(true, Ordering::Release);
        let maintainer = spawn("maintenance", Box::new(move || maintainer.maintain()))?;
        self.maintenance.handles.lock().extend([committer, maintainer]);
        if self.after_crash {
            let sweeper = self.clone();
            let sweeper = spawn("sweep", Box::new(move || sweeper.sweep_after_crash()))?;
            self.maintenance.handles.lock().push(sweeper);
        }
        Ok(())
    }

    fn sweep_after_crash(&self) {
        match self.sweep_abandoned() {
            Ok(0) => {}
            Ok(blocks) => {
                tracing::info!(blocks, "places that the last run left behind are freed with the next checkpoint")
            }
            Err(error) => tracing::warn!(%error, "cannot look for space that the last run left behind"),
        }
    }

    pub(super) fn stop_threads(&self) {
        self.maintenance.wake.stop();
        self.log.stop();
        for handle in std::mem::take(&mut *self.maintenance.handles.lock()) {
            if handle.join().is_err() {
                tracing::error!("an engine thread had died");
            }
        }
        self.maintenance.running.store(false, Ordering::Release);
    }

    /// Rounds of maintenance so far: it stands still only if the thread hangs or is at a long job.
    pub fn maintenance_rounds(&self) -> u64 {
        self.maintenance.rounds.load(Ordering::Relaxed)
    }

    pub(super) fn wake_maintenance(&self) {
        self.maintenance.wake.call();
    }

    fn maintain(&self) {
        let mut last_checkpoint = clock::monotonic_now();
        let mut last_writes = 0;
        let mut last_reads = 0;
        let mut quiet_ticks = 0;
        while !self.maintenance.is_stopping() {
            self.maintenance.wake.wait(TICK);
            self.maintenance.rounds.fetch_add(1, Ordering::Relaxed);
            if self.log.failure().is_some() {
                continue;
            }
            let writes = self.counters.writes.load(Ordering::Relaxed);
            let reads = self.counters.reads.load(Ordering::Relaxed);
            let quiet = writes == last_writes && reads - last_reads <= IDLE_READS_MAX;
            quiet_ticks = if quiet { quiet_ticks + 1 } else { 0 };
            (last_writes, last_reads) = (writes, reads);
            let interval = Duration::from_secs(self.options.checkpoint_interval_s.max(1));
            let checkpoint_time = clock::monotonic_now().duration_since(last_checkpoint) >= interval;
            let result = self.maintain_once(quiet_ticks >= IDLE_TICKS, checkpoint_time);
            if checkpoint_time {
                last_checkpoint = clock::monotonic_now();
            }
            if let Err(error) = result {
                self.degrade("maintenance", error.to_string());
                // A device that refuses now will refuse at once again.
                self.maintenance.wake.rest(clock::monotonic_now() + TICK);
            } else {
                self.restore_health("maintenance");
            }
        }
    }

    fn maintain_once(&self, idle: bool, checkpoint_time: bool) -> Result<()> {
        self.keep_room_for_state();
        // A tier that cannot say what it has left keeps its last budget; the log is drained all the same.
        match self.refresh_budgets() {
            Ok(()) => self.restore_health("budgets"),
            Err(error) => self.degrade("budgets", error.to_string()),
        }
        while self.log_fill() >= self.coalesce_at_fill() && !self.maintenance.is_stopping() {
            let (tail, in_use) = self.log.segments_in_use();
            let pressing = self.log_fill() >= f64::midpoint(self.options.coalesce_at_fill, 1.0)
                || in_use + 2 >= u64::from(self.geometry().segments);
            self.make_log_room(if pressing { Drain::Oldest } else { Drain::SlowTiers })?;
            if self.log.segments_in_use().0 == tail {
                break;
            }
        }
        if idle {
            self.coalesce_some_at_rest()?;
        }
        if checkpoint_time && self.checkpoint_due() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// From now on coalescing begins at this fill of the log, instead of that of the options.
    pub fn set_coalesce_at_fill(&self, fill: f64) {
        self.coalesce_at_fill_bits.store(fill.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
    }

    pub fn coalesce_at_fill(&self) -> f64 {
        f64::from_bits(self.coalesce_at_fill_bits.load(Ordering::Relaxed))
    }

    /// How much of the log is in use, and how much was written to it: cheap, for who looks often.
    pub fn log_load(&self) -> LogLoad {
        LogLoad {
            fill: self.log_fill(),
            size_bytes: self.geometry().segment_bytes * u64::from(self.geometry().segments),
            written_bytes: self.log.counters.written_bytes.load(Ordering::Relaxed),
            coalesce_at_fill: self.options.coalesce_at_fill,
        }
    }

    /// What the volume's users do: cheap, for who looks often.
    pub fn activity(&self) -> Activity {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Activity {
            requests: get(&self.counters.reads) + get(&self.counters.writes) + get(&self.counters.syncs),
            log_groups: get(&self.log.counters.groups),
            log_group_us: get(&self.log.counters.commit_us),
            read_us: self.counters.tiers.iter().map(|tier| get(&tier.read_us)).collect(),
        }
    }

    /// Segments in use over segments in all.
    pub(super) fn log_fill(&self) -> f64 {
        let (_, in_use) = self.log.segments_in_use();
        in_use as f64 / f64::from(self.geometry().segments)
    }

    /// Coalesces what is oldest in the log, then checkpoints, which frees the segments of which nothing is left, strictly in log order (R2).
    /// Of slow tiers what the oldest quarter holds, so that it comes in long runs of their order. Of the fastest, which
    /// keeps up with any log, a sixteenth and only when it must be: later its records may have died.
    pub(super) fn make_log_room(&self, drain: Drain) -> Result<()> {
        self.sync_log()?;
        let (tail, in_use) = self.log.segments_in_use();
        let (quarter, sixteenth) = (tail + (in_use / 4).max(1), tail + (in_use / 16).max(1));
        let mut blocks = Vec::new();
        if self.tiers.len() > 1 {
            for seq in self.slow_drained.load(Ordering::Relaxed).max(tail)..quarter {
                blocks.extend(self.touched_blocks(seq, |tier| tier.is_some_and(|tier| tier != TierId::FASTEST)));
            }
        }
        if drain == Drain::Oldest {
            self.unpin_log(sixteenth)?;
            for seq in tail..sixteenth {
                blocks.extend(self.touched_blocks(seq, |_| true));
            }
        } else if blocks.is_empty() {
            self.slow_drained.store(quarter, Ordering::Relaxed);
            return Ok(());
        }
        self.coalesce_blocks(blocks, sixteenth * self.geometry().segment_bytes, self.maintenance.is_running())?;
        self.slow_drained.store(quarter, Ordering::Relaxed);
        self.checkpoint_despite_tiers()?;
        let (now, _) = self.log.segments_in_use();
        if drain == Drain::Oldest && now == tail && in_use >= 2 {
            // Places that waited for their punch are free now; the next round takes what had to stay.
            tracing::debug!(tail, in_use, "no log segment could be freed in this round");
        }
        Ok(())
    }

    /// Writes are quiet: coalesces some blocks of files that are not logs.
    fn coalesce_some_at_rest(&self) -> Result<()> {
        let files: Vec<_> = self.files.read().values().filter(|file| !file.is_log_file()).cloned().collect();
        let mut blocks: Vec<(FileId, BlockNo)> = Vec::new();
        for file in files {
            let inner = file.read();
            for extent in inner.overlay.iter() {
                let (from, to) = (self.block_of(extent.start), self.block_of(extent.end - 1));
                blocks.extend((from.0..=to.0).map(|block| (file.id(), BlockNo(block))).take(IDLE_BLOCKS));
            }
            drop(inner);
            if blocks.len() >= IDLE_BLOCKS {
                break;
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }
        self.coalesce_blocks(blocks, u64::MAX, true).map(|_| ())
    }
}
