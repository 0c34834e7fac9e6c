//! The thread of a [`Keeper`]: what is due, in the order of importance: snapshot, retention and prune, verification.

use super::{Keeper, Reason, judged};
use crate::device::clock::{Instant, monotonic_now, wall_now};
use crate::error::{Error, Result};
use crate::jobs::events::What;
use crate::jobs::shown;
use crate::jobs::snapshot::{SnapshotInfo, Tally};
use crate::policy::cadence::{self, back_off};
use crate::repository::{PruneOptions, Repository, Retention, VerifyOptions};
use crate::units::WallNs;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long the thread sleeps at most: the clock may jump.
const LOOK_MAX: Duration = Duration::from_secs(20);
/// A repository that what could not be read came from is closed after so long.
const REPOSITORY_IDLE: Duration = Duration::from_secs(60);
/// When to try again while somebody else takes a snapshot.
const BUSY: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(86_400);
const VERIFY_EVERY_MIN: Duration = Duration::from_secs(3600);
/// A pack is verified whole, so that more seldom is better than more than the budget.
const PACK_BYTES: u64 = 64 << 20;
/// Findings of one verification that become events.
const FINDINGS_MAX: usize = 20;

/// What is to come.
#[derive(Default)]
struct Agenda {
    /// The repository was looked at.
    known: bool,
    next: Option<WallNs>,
    served: Option<WallNs>,
    /// Nothing is tried before.
    wait_until: Option<Instant>,
    /// Of looks at the repository, in a row.
    failures: u32,
    pruned: Option<Instant>,
    /// Snapshots were deleted since.
    prune_wanted: bool,
    verify_at: Option<Instant>,
}

/// Until nobody holds the other end of `stopped`.
pub(super) fn run(keeper: &Keeper, stopped: &Receiver<Infallible>) {
    let mut agenda = Agenda::default();
    loop {
        keeper.published.close_idle(REPOSITORY_IDLE);
        // A panic must not end the schedule without a word: it is a failure like others, and all is looked at anew.
        if catch_unwind(AssertUnwindSafe(|| agenda.work(keeper, stopped))).is_err() {
            keeper.failed("an internal error, see the journal", Reason::Schedule);
            let failures = agenda.failures + 1;
            let wait_until = Some(monotonic_now() + back_off(failures));
            agenda = Agenda { failures, wait_until, ..Agenda::default() };
        }
        match stopped.recv_timeout(agenda.pause()) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(never) => match never {},
        }
    }
}

fn is_stopped(stopped: &Receiver<Infallible>) -> bool {
    matches!(stopped.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
}

impl Agenda {
    fn pause(&self) -> Duration {
        let now = monotonic_now();
        let mut pause = LOOK_MAX;
        match self.wait_until {
            Some(until) => pause = pause.min(until.saturating_duration_since(now)),
            None => {
                if let Some(next) = self.next {
                    let left_ns = u64::try_from(next.0.saturating_sub(wall_now().0)).unwrap_or(0);
                    pause = pause.min(Duration::from_nanos(left_ns));
                }
                if let Some(at) = self.verify_at {
                    pause = pause.min(at.saturating_duration_since(now));
                }
            }
        }
        pause.max(Duration::from_millis(5))
    }

    fn work(&mut self, keeper: &Keeper, stopped: &Receiver<Infallible>) {
        if self.wait_until.is_some_and(|until| monotonic_now() < until) || is_stopped(stopped) {
            return;
        }
        self.wait_until = None;
        if keeper.finish().is_err() {
            return self.try_later();
        }
        let worked = self.look(keeper).and_then(|()| self.snapshot_if_due(keeper));
        if let Err(error) = worked {
            self.try_later();
            // A snapshot that failed has said so itself.
            if !self.known && !keeper.settings.calendar.is_empty() {
                keeper.failed(&error.to_string(), Reason::Schedule);
            } else if !self.known {
                tracing::warn!("the repository cannot be looked at: {error}");
            }
            return;
        }
        if !is_stopped(stopped) && self.verify_at.is_some_and(|at| monotonic_now() >= at) {
            self.verify(keeper);
        }
    }

    /// Ever more rarely.
    fn try_later(&mut self) {
        self.failures += 1;
        self.wait_until = Some(monotonic_now() + back_off(self.failures));
    }

    /// Learns from the repository, once, how things stand.
    fn look(&mut self, keeper: &Keeper) -> Result<()> {
        if self.known {
            return Ok(());
        }
        let (repository, settings) = (keeper.repository()?, &keeper.settings);
        let mut roots = repository.snapshots()?;
        roots.retain(|root| root.volume == keeper.volume_id());
        let taken: Vec<WallNs> = roots.iter().map(|root| root.meta.taken).collect();
        let now = wall_now();
        if !settings.calendar.is_empty() {
            self.next = cadence::first(&taken, now, &|moment| settings.calendar.after(moment));
        }
        if let Some(root) = roots.last() {
            let info = SnapshotInfo::of(root);
            let mut status = keeper.status.lock();
            status.last_success_ns = Some(root.meta.taken);
            status.last_success = Some(info.id);
            status.bad_pages = info.pages.as_ref().map_or(0, |pages| pages.bad);
            let first = info.pages.as_ref().and_then(|pages| pages.named.first());
            status.first_bad_page = first.map(|page| format!("block {} of {}", page.block, page.path));
        }
        keeper.status.lock().next_ns = self.next;
        if settings.verify_bytes_per_day > 0 {
            let standing = repository.verify_standing()?;
            let since = standing.last.map(|last| u64::try_from(now.0.saturating_sub(last.0)).unwrap_or(0));
            let left =
                since.map_or(Duration::ZERO, |ns| self.verify_every(keeper).saturating_sub(Duration::from_nanos(ns)));
            self.verify_at = Some(monotonic_now() + left);
        }
        note_repository(keeper, &repository)?;
        (self.known, self.failures) = (true, 0);
        Ok(())
    }

    fn snapshot_if_due(&mut self, keeper: &Keeper) -> Result<()> {
        let after = |moment| keeper.settings.calendar.after(moment);
        let now = wall_now();
        let Some(next) = self.next.map(|next| cadence::again(next, self.served, now, &after)) else { return Ok(()) };
        self.next = Some(next);
        keeper.status.lock().next_ns = Some(next);
        if next > now {
            return Ok(());
        }
        let opened = keeper.repository().inspect_err(|error| keeper.failed(&error.to_string(), Reason::Schedule));
        let repository = opened?;
        match keeper.take(&repository, Reason::Schedule, BTreeMap::new(), &Tally::default()) {
            Err(Error::Busy(_)) => {
                self.wait_until = Some(monotonic_now() + BUSY);
                return Ok(());
            }
            taken => taken.map(drop)?,
        }
        self.failures = 0;
        self.served = Some(now);
        self.next = cadence::next(now, wall_now(), &after);
        keeper.status.lock().next_ns = self.next;
        self.tidy_up(keeper, &repository);
        Ok(())
    }

    /// Retention, and prune if it is time.
    fn tidy_up(&mut self, keeper: &Keeper, repository: &Repository) {
        let settings = &keeper.settings;
        if settings.keep == Retention::default() {
            return;
        }
        let tidied = delete_what_no_rule_keeps(keeper, repository).and_then(|deleted| {
            self.prune_wanted |= deleted > 0;
            let early = self.pruned.is_some_and(|pruned| pruned.elapsed() < settings.prune_every);
            if !self.prune_wanted || early {
                return Ok(());
            }
            // Counted from its end, and also when it fails: the next snapshot is not far.
            let report = repository.prune(&PruneOptions::default());
            self.pruned = Some(monotonic_now());
            let report = report?;
            self.prune_wanted = false;
            let mut status = keeper.status.lock();
            status.prunes += 1;
            status.pruned_bytes += report.bytes_deleted;
            drop(status);
            keeper
                .events
                .publish(What::PruneFinished { packs: report.packs_deleted, freed_bytes: report.bytes_deleted });
            tracing::info!(packs = report.packs_deleted, bytes = report.bytes_deleted, "pruned");
            note_repository(keeper, repository)
        });
        let error = tidied.err().map(|error| error.to_string());
        if let Some(error) = &error {
            self.pruned = None;
            tracing::error!("prune: {error}");
            keeper.status.lock().prune_failures += 1;
            keeper.events.publish(What::PruneFailed { error: error.clone() });
        }
        keeper.status.lock().last_prune_error = error;
    }

    /// Time between two parts of a day's budget.
    fn verify_every(&self, keeper: &Keeper) -> Duration {
        let per_day = keeper.settings.verify_bytes_per_day.max(1);
        let one_pack_s = DAY.as_secs().saturating_mul(PACK_BYTES) / per_day;
        Duration::from_secs(one_pack_s).clamp(VERIFY_EVERY_MIN, DAY)
    }

    fn verify(&mut self, keeper: &Keeper) {
        let every = self.verify_every(keeper);
        let per_day = u128::from(keeper.settings.verify_bytes_per_day);
        let budget =
            u64::try_from(per_day * u128::from(every.as_secs()) / u128::from(DAY.as_secs())).unwrap_or(u64::MAX);
        let verified = verify_part(keeper, budget);
        self.verify_at = Some(monotonic_now() + every);
        let error = verified.err().map(|error| error.to_string());
        if let Some(error) = &error {
            tracing::error!("verification of the repository: {error}");
            keeper.status.lock().verify_failures += 1;
            keeper.events.publish(What::VerifyFailed { error: error.clone() });
        }
        keeper.status.lock().last_verify_error = error;
    }
}

/// Returns how many went.
fn delete_what_no_rule_keeps(keeper: &Keeper, repository: &Repository) -> Result<u64> {
    shown::clear_abandoned(repository);
    let verdicts = judged(repository, keeper.volume_id(), &keeper.settings.keep)?;
    let mut deleted = 0;
    for verdict in verdicts.iter().filter(|verdict| verdict.keep.is_empty()) {
        repository.delete(verdict.id)?;
        deleted += 1;
        tracing::info!(id = %verdict.id, "snapshot deleted: no rule keeps it");
        keeper.events.publish(What::SnapshotDeleted { snapshot: verdict.id.to_string() });
        let mut status = keeper.status.lock();
        status.deleted += 1;
        status.repository_snapshots = status.repository_snapshots.saturating_sub(1);
    }
    Ok(deleted)
}

fn verify_part(keeper: &Keeper, budget_bytes: u64) -> Result<()> {
    let repository = keeper.repository()?;
    let options = VerifyOptions { now: wall_now(), budget_bytes: Some(budget_bytes), one_in: 1, walk_trees: false };
    let report = repository.verify(&options, &mut |_, _| {})?;
    for damage in report.damage.iter().take(FINDINGS_MAX) {
        tracing::error!("verification of the repository: {damage}");
        keeper.events.publish(What::VerifyFinding { damage: damage.clone() });
    }
    for hurt in &report.hurt {
        tracing::error!(
            "snapshot {} is hurt: {} files; `heatfs snapshot verify` names them",
            hurt.snapshot,
            hurt.files.len()
        );
    }
    {
        let mut status = keeper.status.lock();
        status.verified_packs += report.packs_verified;
        status.verified_bytes += report.bytes_read;
        status.damage = report.damage.first().cloned().or(status.damage.take());
    }
    keeper.events.publish(What::Verified { packs: report.packs_verified, read_bytes: report.bytes_read });
    note_repository(keeper, &repository)
}

/// Sizes, and what the ledger says.
fn note_repository(keeper: &Keeper, repository: &Repository) -> Result<()> {
    let (stats, standing) = (repository.stats()?, repository.verify_standing()?);
    let mut status = keeper.status.lock();
    status.repository_bytes = Some(stats.pack_bytes + stats.index_bytes);
    status.repository_snapshots = stats.snapshots;
    status.last_verified_ns = standing.last;
    status.damaged_packs = standing.damaged;
    if standing.damaged == 0 {
        status.damage = None;
    }
    Ok(())
}
