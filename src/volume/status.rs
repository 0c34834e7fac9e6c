//! What the engine tells about itself: plain structs for `status`, `tiers`, `top` and the metrics.

use super::reserve::ReserveStatus;
use crate::units::WallNs;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Everything `status`, `tiers`, `top` and the metrics show of the engine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// None: healthy. Otherwise why the volume is read-only.
    pub read_only: Option<String>,
    /// Why the volume is degraded; empty when it is not.
    pub degraded: Vec<String>,
    pub files: u64,
    pub tiers: Vec<TierStatus>,
    pub log: LogStatus,
    pub counters: Counters,
    pub overlay_extents: u64,
    pub map_memory_bytes: u64,
    pub overlay_memory_bytes: u64,
    pub payload_cache_bytes: u64,
    /// Images of blocks just read from the slowest tier, kept for their promotion.
    pub image_memory_bytes: u64,
    /// Blocks promised to writers whose image is not on any tier yet, in bytes.
    pub promised_bytes: u64,
    /// Of a volume made of a snapshot: blocks that are still in the repository, in bytes; they count as promised, too.
    #[serde(default)]
    pub in_repository_bytes: u64,
    /// As long as it was rolled back and may still be what it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackStatus>,
    /// Room on the fastest tier's filesystem that is kept for the volume's own state.
    #[serde(default)]
    pub state_reserve: ReserveStatus,
    /// When pages changed last: what incremental snapshots go by.
    #[serde(default)]
    pub change_memory_bytes: u64,
    #[serde(default)]
    pub marks: MarkStatus,
}

/// Snapshots in the making, as the engine sees them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MarkStatus {
    pub pending: u64,
    /// When the oldest pending mark was taken.
    pub oldest_wall: Option<WallNs>,
    /// Files that changed since some pending mark.
    pub kept_files: u64,
    /// Bytes in the log that only marks need.
    pub pinned_log_bytes: u64,
    /// Bytes saved for marks before base or log lost them; what their files take; and how much they may.
    pub staged_bytes: u64,
    pub staging_used_bytes: u64,
    pub staging_limit_bytes: u64,
    pub taken: u64,
    /// Marks that were given up by the engine.
    pub failed: u64,
    /// How long a mark kept writers waiting, in microseconds: the longest, and the bound that 99 of 100 kept.
    pub stall_us_max: u64,
    pub stall_us_p99: u64,
    /// How many there were of less than 1, 2, 4, ... microseconds; longer ones are among the last.
    #[serde(default)]
    pub stalls: Vec<u64>,
}

/// The log at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLoad {
    /// Share of the log in use.
    pub fill: f64,
    pub size_bytes: u64,
    /// All bytes written to it so far.
    pub written_bytes: u64,
    /// The fill from which coalescing is to begin at the latest, by the options.
    pub coalesce_at_fill: f64,
}

/// What the volume's users asked of it since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Reads, writes and syncs.
    pub requests: u64,
    pub log_groups: u64,
    /// Microseconds of group writes in total.
    pub log_group_us: u64,
    /// Microseconds that readers spent in each tier in total, fastest first.
    pub read_us: Vec<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TierStatus {
    pub name: String,
    pub path: String,
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub budget_bytes: u64,
    pub used_bytes: u64,
    /// Blocks whose current image is here.
    pub blocks: u64,
    /// Clean copies of blocks that live on a faster tier.
    pub copies: u64,
}

impl TierStatus {
    /// Bytes that can be written now: within the budget, and there.
    pub fn free_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.used_bytes).min(self.available_bytes)
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogStatus {
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// Bytes of records that are in no base yet.
    pub live_bytes: u64,
    pub segments: u32,
    pub free_segments: u32,
    pub durable_lsn: u64,
    pub next_lsn: u64,
}

/// Monotonic counters since the daemon started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub syncs: u64,
    pub log_groups: u64,
    pub log_written_bytes: u64,
    pub log_payload_bytes: u64,
    /// Bytes of payload that newer ones have replaced before they were written: never written at all.
    #[serde(default)]
    pub log_replaced_bytes: u64,
    /// Microseconds of group writes in total: divided by groups, the latency of a sync.
    pub log_group_us: u64,
    /// Reads answered from the overlay: in memory, and from the log.
    pub reads_from_payload_cache: u64,
    pub reads_from_log: u64,
    /// Reads of each tier that applications waited for, their bytes, and the microseconds they took in total.
    pub base_reads: Vec<u64>,
    pub base_read_bytes: Vec<u64>,
    pub base_read_us: Vec<u64>,
    /// Reads of each tier for the volume's own work (moves, snapshots, checks), and their bytes.
    #[serde(default)]
    pub background_reads: Vec<u64>,
    #[serde(default)]
    pub background_read_bytes: Vec<u64>,
    /// Reads that a tier's device failed.
    #[serde(default)]
    pub base_read_errors: Vec<u64>,
    /// Reads that failed and were answered from a copy on another tier or the last snapshot, and pages that were then written again.
    #[serde(default)]
    pub base_reads_rescued: Vec<u64>,
    #[serde(default)]
    pub base_pages_rewritten: Vec<u64>,
    pub base_writes: Vec<u64>,
    pub base_write_bytes: Vec<u64>,
    pub coalesced_blocks: u64,
    pub promoted_blocks: u64,
    pub demoted_blocks: u64,
    pub demoted_by_flip_blocks: u64,
    /// Blocks that got a copy on the slowest tier ahead of sinking there.
    pub premigrated_blocks: u64,
    /// Blocks that lost their image because it was nothing but zeros.
    #[serde(default)]
    pub zero_blocks: u64,
    /// Blocks promoted from what a reader had just read, without another read of the slow tier.
    pub moved_from_memory_blocks: u64,
    pub checkpoints: u64,
    pub checkpoint_us: u64,
    pub writer_waits: u64,
    /// Reads of the repository that the volume was made from, by whomever; their bytes; how long readers waited for them; and those that failed.
    #[serde(default)]
    pub repository_reads: u64,
    #[serde(default)]
    pub repository_read_bytes: u64,
    #[serde(default)]
    pub repository_read_us: u64,
    #[serde(default)]
    pub repository_errors: u64,
    /// Blocks that were brought from there to a tier ahead of anybody's need, and bytes written for it.
    #[serde(default)]
    pub hydrated_blocks: u64,
    #[serde(default)]
    pub hydrated_bytes: u64,
}

/// The counters as the engine keeps them.
pub(super) struct Live {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub syncs: AtomicU64,
    pub coalesced_blocks: AtomicU64,
    pub promoted_blocks: AtomicU64,
    pub demoted_blocks: AtomicU64,
    pub demoted_by_flip_blocks: AtomicU64,
    pub premigrated_blocks: AtomicU64,
    pub zero_blocks: AtomicU64,
    pub moved_from_memory_blocks: AtomicU64,
    pub checkpoints: AtomicU64,
    pub checkpoint_us: AtomicU64,
    pub writer_waits: AtomicU64,
    pub repository_reads: AtomicU64,
    pub repository_read_bytes: AtomicU64,
    pub repository_read_us: AtomicU64,
    pub repository_errors: AtomicU64,
    pub hydrated_blocks: AtomicU64,
    pub hydrated_bytes: AtomicU64,
    pub tiers: Vec<LiveTier>,
}

#[derive(Default)]
pub(super) struct LiveTier {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub read_us: AtomicU64,
    pub background_reads: AtomicU64,
    pub background_read_bytes: AtomicU64,
    pub read_errors: AtomicU64,
    pub reads_rescued: AtomicU64,
    pub pages_rewritten: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Live {
    pub fn new(tiers: usize) -> Live {
        Live {
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            coalesced_blocks: AtomicU64::new(0),
            promoted_blocks: AtomicU64::new(0),
            demoted_blocks: AtomicU64::new(0),
            demoted_by_flip_blocks: AtomicU64::new(0),
            premigrated_blocks: AtomicU64::new(0),
            zero_blocks: AtomicU64::new(0),
            moved_from_memory_blocks: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            checkpoint_us: AtomicU64::new(0),
            writer_waits: AtomicU64::new(0),
            repository_reads: AtomicU64::new(0),
            repository_read_bytes: AtomicU64::new(0),
            repository_read_us: AtomicU64::new(0),
            repository_errors: AtomicU64::new(0),
            hydrated_blocks: AtomicU64::new(0),
            hydrated_bytes: AtomicU64::new(0),
            tiers: (0..tiers).map(|_| LiveTier::default()).collect(),
        }
    }

    /// All but the log's own counters.
    pub fn snapshot(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let per_tier = |field: fn(&LiveTier) -> &AtomicU64| self.tiers.iter().map(|tier| get(field(tier))).collect();
        Counters {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            write_bytes: get(&self.write_bytes),
            syncs: get(&self.syncs),
            coalesced_blocks: get(&self.coalesced_blocks),
            promoted_blocks: get(&self.promoted_blocks),
            demoted_blocks: get(&self.demoted_blocks),
            demoted_by_flip_blocks: get(&self.demoted_by_flip_blocks),
            premigrated_blocks: get(&self.premigrated_blocks),
            zero_blocks: get(&self.zero_blocks),
            moved_from_memory_blocks: get(&self.moved_from_memory_blocks),
            checkpoints: get(&self.checkpoints),
            checkpoint_us: get(&self.checkpoint_us),
            writer_waits: get(&self.writer_waits),
            repository_reads: get(&self.repository_reads),
            repository_read_bytes: get(&self.repository_read_bytes),
            repository_read_us: get(&self.repository_read_us),
            repository_errors: get(&self.repository_errors),
            hydrated_blocks: get(&self.hydrated_blocks),
            hydrated_bytes: get(&self.hydrated_bytes),
            base_reads: per_tier(|tier| &tier.reads),
            base_read_bytes: per_tier(|tier| &tier.read_bytes),
            base_read_us: per_tier(|tier| &tier.read_us),
            background_reads: per_tier(|tier| &tier.background_reads),
            background_read_bytes: per_tier(|tier| &tier.background_read_bytes),
            base_read_errors: per_tier(|tier| &tier.read_errors),
            base_reads_rescued: per_tier(|tier| &tier.reads_rescued),
            base_pages_rewritten: per_tier(|tier| &tier.pages_rewritten),
            base_writes: per_tier(|tier| &tier.writes),
            base_write_bytes: per_tier(|tier| &tier.write_bytes),
            ..Counters::default()
        }
    }
}

/// A rollback that is neither confirmed nor undone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RollbackStatus {
    pub snapshot: String,
    pub at: WallNs,
    /// What the volume was before takes so much, in whole blocks.
    pub kept_bytes: u64,
}
