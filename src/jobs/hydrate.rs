//! The hydrator: brings the blocks of a clone from the repository to its tiers, behind everybody's back.
//!
//! Several streams share one pass over the files that are in the repository, in order of files and offsets, a mebibyte at a time; but what a reader has just
//! fetched comes first, since it will be read again and is still in the repository's cache. They keep to a budget of bytes, rest while others need the machine
//! ([`Pace`]), and let readers that wait for the repository go first. What cannot be read is passed over, named, and tried again by the next pass.
//!
//! Where a block is is part of the map, so nothing is remembered here: a pass of the next mount goes on where this one was. When no block is left and a
//! checkpoint has said so durably, the ref in the repository is dropped (R18), and then the note of the snapshot.

use super::background::Background;
use super::clone::{CloneNote, RepositorySource};
use super::pace::{Pace, TokenBucket};
use super::streams;
use crate::device::Device;
use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use crate::units::{BlockNo, FileId};
use crate::volume::{File, Volume};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that a stream takes at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes brought with one read and one write (R24).
const RUN_BYTES: u64 = 256 * 1024;
/// After a pass that could not bring everything.
const REST: Duration = Duration::from_secs(5);
/// Longest wait for readers before one piece is brought all the same, so that a volume that is always busy gets hydrated, too.
const YIELD_MAX: Duration = Duration::from_millis(500);
/// How long a stream steps back at a time.
const YIELD: Duration = Duration::from_millis(10);
/// The rate that is shown is that of the last so many seconds, about.
const RATE_WINDOW: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq)]
pub struct HydratorSettings {
    /// At least 1.
    pub streams: usize,
    pub bytes_per_second: u64,
    /// Share of its time that each stream works while others need the machine.
    pub busy_share: f64,
}

/// What `status` shows of a clone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HydrationStatus {
    /// The repository's directory.
    pub repository: String,
    pub snapshot: String,
    /// What holds the snapshot there.
    pub reference: String,
    /// What was in the repository at first, and what still is, in whole blocks.
    pub total_bytes: u64,
    pub left_bytes: u64,
    /// How fast blocks left it lately, whether brought here or written over.
    pub bytes_per_second: u64,
    /// At that rate; None: it stands still.
    pub eta_s: Option<u64>,
    /// Passes over everything that is left.
    pub passes: u64,
    /// Pieces that could not be read in the last pass that ended.
    pub failed: u64,
    /// Why the snapshot is not let go although nothing is left in it.
    pub holding: Option<String>,
}

/// How fast what is left becomes less.
struct Rate {
    since: Instant,
    left_bytes: u64,
    bytes_per_second: u64,
}

/// See the module's head.
pub struct Hydrator {
    volume: Arc<Volume>,
    source: Arc<RepositorySource>,
    home: Arc<dyn Device>,
    settings: HydratorSettings,
    bucket: TokenBucket,
    pace: Pace,
    rate: Mutex<Rate>,
    passes: AtomicU64,
    failed: AtomicU64,
    holding: Mutex<Option<String>>,
    done: AtomicBool,
    background: Background,
}

/// Where a pass is.
struct Cursor {
    files: Vec<FileId>,
    next: usize,
    open: Option<(Arc<File>, BlockNo)>,
}

/// A piece of work.
struct Piece {
    file: Arc<File>,
    first: BlockNo,
    blocks: u64,
}

impl Hydrator {
    /// `home`: the fastest tier's device, where the note lies.
    pub fn new(
        volume: Arc<Volume>,
        source: Arc<RepositorySource>,
        home: Arc<dyn Device>,
        settings: HydratorSettings,
    ) -> Arc<Hydrator> {
        let now = monotonic_now();
        Arc::new(Hydrator {
            bucket: TokenBucket::new(settings.bytes_per_second),
            // The budget is kept where a stop can interrupt the wait.
            pace: Pace::new(Arc::clone(&volume), settings.busy_share, u64::MAX),
            rate: Mutex::new(Rate { since: now, left_bytes: volume.bytes_in_repository(), bytes_per_second: 0 }),
            passes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            holding: Mutex::default(),
            done: AtomicBool::new(false),
            background: Background::default(),
            volume,
            source,
            home,
            settings,
        })
    }

    /// Begins in the background.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let hydrator = Arc::clone(self);
        self.background.spawn("heatfs-hydrate", move || hydrator.run())
    }

    /// Stops and waits for what is under way. Nothing is brought any more.
    pub fn stop(&self) {
        self.background.stop();
    }

    /// Everything is on the tiers, and the snapshot is let go.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub fn status(&self) -> HydrationStatus {
        let note = self.source.note();
        let left_bytes = self.volume.bytes_in_repository();
        let bytes_per_second = self.measure(left_bytes);
        HydrationStatus {
            repository: note.repository.display().to_string(),
            snapshot: note.snapshot.clone(),
            reference: note.reference.clone(),
            total_bytes: note.bytes,
            left_bytes,
            bytes_per_second,
            eta_s: left_bytes.checked_div(bytes_per_second),
            passes: self.passes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            holding: self.holding.lock().clone(),
        }
    }

    fn measure(&self, left_bytes: u64) -> u64 {
        let mut rate = self.rate.lock();
        let elapsed = rate.since.elapsed();
        if elapsed >= RATE_WINDOW || rate.bytes_per_second == 0 && elapsed >= Duration::from_millis(500) {
            let gone = rate.left_bytes.saturating_sub(left_bytes);
            let bytes_per_second = u128::from(gone) * 1000 / elapsed.as_millis().max(1);
            let bytes_per_second = u64::try_from(bytes_per_second).unwrap_or(u64::MAX);
            *rate = Rate { since: monotonic_now(), left_bytes, bytes_per_second };
        }
        rate.bytes_per_second
    }

    fn run(&self) {
        while !self.background.is_stopping() {
            if self.volume.bytes_in_repository() > 0 {
                if let Err(error) = self.pass() {
                    tracing::warn!("bringing blocks from the repository: {error}");
                }
                self.passes.fetch_add(1, Ordering::Relaxed);
            }
            if self.volume.bytes_in_repository() == 0 && !self.background.is_stopping() {
                match self.finish() {
                    Ok(()) => return,
                    Err(error) => {
                        let mut holding = self.holding.lock();
                        if holding.replace(error.to_string()).is_none() {
                            tracing::warn!("everything is here, but the snapshot cannot be let go yet: {error}");
                        }
                    }
                }
            }
            if self.background.sleep(REST) {
                return;
            }
        }
    }

    /// Nothing is left in the repository: says so durably, then lets the snapshot go. May be repeated, also by the next mount.
    fn finish(&self) -> Result<()> {
        if self.volume.needs_repository() {
            self.volume.checkpoint()?;
        }
        if self.volume.needs_repository() {
            return Err(Error::Busy("the last checkpoint had blocks in the repository".to_owned()));
        }
        self.source.let_go()?;
        CloneNote::remove(self.home.as_ref())?;
        tracing::info!("all blocks of snapshot {} are on the tiers", self.source.note().snapshot);
        self.done.store(true, Ordering::Release);
        *self.holding.lock() = None;
        Ok(())
    }

    /// Brings what is left, once. Errors: what kept streams from going on.
    fn pass(&self) -> Result<()> {
        let cursor = Mutex::new(Cursor { files: self.volume.files_in_repository()?, next: 0, open: None });
        let failed = AtomicU64::new(0);
        let stream = || self.stream(&cursor, &failed);
        let outcome = streams::together((0..self.settings.streams.max(1)).map(|_| &stream));
        self.failed.store(failed.load(Ordering::Relaxed), Ordering::Relaxed);
        outcome
    }

    fn stream(&self, cursor: &Mutex<Cursor>, failed: &AtomicU64) -> Result<()> {
        while !self.background.is_stopping() {
            let piece = match self.wanted() {
                Some(piece) => Some(piece),
                None => self.next_piece(cursor)?,
            };
            let Some(piece) = piece else { return Ok(()) };
            self.bring(&piece, failed)?;
        }
        Ok(())
    }

    /// What a reader fetched last and is still in the repository.
    fn wanted(&self) -> Option<Piece> {
        while let Some((file, first, blocks)) = self.volume.take_wanted() {
            // It may be gone by now.
            let Ok(file) = self.volume.file(file) else { continue };
            let here = self.volume.next_in_repository(&file, first).filter(|block| block.0 < first.0 + blocks);
            if let Some(here) = here {
                return Some(Piece { file, first: here, blocks: first.0 + blocks - here.0 });
            }
        }
        None
    }

    fn next_piece(&self, cursor: &Mutex<Cursor>) -> Result<Option<Piece>> {
        let mut cursor = cursor.lock();
        loop {
            if let Some((file, from)) = cursor.open.take()
                && let Some(first) = self.volume.next_in_repository(&file, from)
            {
                let per_piece = (PIECE_BYTES / self.volume.block_bytes()).max(1);
                // Pieces begin where the last one ended, so that the repository is read in whole slots.
                let end = (first.0 / per_piece + 1) * per_piece;
                cursor.open = Some((Arc::clone(&file), BlockNo(end)));
                return Ok(Some(Piece { file, first, blocks: end - first.0 }));
            }
            let Some(id) = cursor.files.get(cursor.next).copied() else { return Ok(None) };
            cursor.next += 1;
            cursor.open = Some((self.volume.file(id)?, BlockNo(0)));
        }
    }

    /// Errors: the volume or the repository as a whole; damage of single blocks is passed over.
    fn bring(&self, piece: &Piece, failed: &AtomicU64) -> Result<()> {
        let per_run = (RUN_BYTES / self.volume.block_bytes()).max(1);
        let (mut at, end) = (piece.first.0, piece.first.0 + piece.blocks);
        while at < end {
            let Some(first) = self.volume.next_in_repository(&piece.file, BlockNo(at)).filter(|block| block.0 < end)
            else {
                return Ok(());
            };
            let blocks = per_run.min(end - first.0);
            if self.wait_for_turn(blocks * self.volume.block_bytes()) {
                return Ok(());
            }
            let brought = self.pace.work(0, || self.volume.hydrate(&piece.file, first, blocks));
            at = first.0
                + match brought {
                    // Somebody is at the block, or its place waits for its punch: the next pass comes by.
                    Ok(done) => done.blocks.max(1),
                    Err(error) if !is_damage(&error) => return Err(error),
                    Err(_) => {
                        self.bring_singly(&piece.file, first, blocks, failed)?;
                        blocks
                    }
                };
        }
        Ok(())
    }

    /// One of these is damaged; the others need not suffer for it.
    fn bring_singly(&self, file: &Arc<File>, first: BlockNo, blocks: u64, failed: &AtomicU64) -> Result<()> {
        for block in (first.0..first.0 + blocks).map(BlockNo) {
            match self.volume.hydrate(file, block, 1) {
                Ok(_) => {}
                Err(error) if !is_damage(&error) => return Err(error),
                Err(_) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Keeps to the budget, and lets readers that wait for the repository go first. True: it is time to stop.
    fn wait_for_turn(&self, bytes: u64) -> bool {
        let owed = self.bucket.take(bytes);
        if !owed.is_zero() && self.background.sleep(owed) {
            return true;
        }
        let began = monotonic_now();
        while self.volume.readers_wait_for_repository() && began.elapsed() < YIELD_MAX {
            if self.background.sleep(YIELD) {
                return true;
            }
        }
        self.background.is_stopping()
    }
}

/// Of a block, not of the repository as a whole.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Source { cause, .. } if matches!(**cause, Error::Corrupt { .. }))
}
