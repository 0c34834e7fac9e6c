//! From settings to a mounted volume and back.
//!
//! The order matters at both ends. At the start: what could be wrong with the mountpoint or the tiers is found before anything is written; the log
//! is replayed before the mount appears; the service manager hears READY when a database may start. At the end: durable first, then unmounted,
//! because the time for stopping may run out while a database still uses the mount.

use super::callers::Callers;
use super::clones::CloneSettings;
use super::holders::{describe, holders, mount_at};
use super::patience::{self, Patience};
use super::process::FreeMemory;
use super::quantity::exact_bytes;
use super::served::{Event, Served, StartControl};
use super::service::{Notice, notify};
use super::settings::Settings;
use super::watchdog::Watchdog;
use super::{Control, mountpoint, process, signals};
use crate::error::{Error, Result};
use crate::fuse;
use crate::heat::{HeatSettings, Recorder, share_memory};
use crate::jobs::TierPlan;
use crate::jobs::clone::{self, CLONE_FILE, RepositorySource};
use crate::jobs::events::What;
use crate::jobs::forecaster::ForecasterSettings;
use crate::jobs::hydrate::{Hydrator, HydratorSettings};
use crate::jobs::log_archive::{LogArchive, LogArchiveSettings};
use crate::jobs::migrate::{FileRules, Mover, MoverSettings};
use crate::jobs::{orphans, rollback};
use crate::namespace::Namespace;
use crate::policy::glob::Pattern;
use crate::policy::placement::PlacementSettings;
use crate::policy::rules::Rules;
use crate::tier::identity::{self, Locks, Place, VolumeIdentity};
use crate::volume::{self, Recovery, Volume};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a stop that waits for a busy mount tries again.
const RETRY: Duration = Duration::from_secs(1);
/// Plans that an epoch has time for.
const PLANS_PER_EPOCH: u32 = 60;
/// How long a forced stop waits for requests under way.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);

/// How the mount is to look, beyond the settings.
#[derive(Clone, Debug, Default)]
pub struct MountAs {
    /// What /proc/mounts shows as its source; None: `heatfs:NAME`.
    pub source: Option<String>,
    pub no_exec: bool,
}

/// Serves the volume until it is told to stop or is unmounted. Errors: whatever keeps it from serving, or from a clean stop.
pub fn run(settings: Settings, mount_as: MountAs, start_control: StartControl) -> Result<()> {
    let ended = serve(settings, mount_as, start_control);
    if let Err(error) = &ended {
        notify(&Notice::Status(&format!("failed: {error}")));
    }
    ended
}

fn serve(settings: Settings, mount_as: MountAs, start_control: StartControl) -> Result<()> {
    let (events_in, events) = unbounded();
    signals::watch(events_in.clone())?;
    let mount_options = fuse_options(&settings, mount_as);
    mount_options.check()?;
    process::prepare();
    let patience = Patience::ask();
    let point = settings.mount_path();
    let (places, locks, id) = claim_tiers(&settings, &point)?;
    let home = settings.tiers[0].path.join("home");
    let (volume, recovery, source) = open_volume(&settings, &places, &home)?;
    let rules = judge_paths(&settings, &volume)?;
    let mover = open_mover(&settings, &volume, &places, &id, Arc::clone(&rules))?;
    let log_archive = log_archive(&settings, &volume, &places, &id);
    let namespace = Namespace::open(&home, Arc::clone(&volume), id.volume)?;
    if !recovery.was_clean {
        orphans::free(&home.join("tree"), id.volume, &volume, recovery.file_id_limit_before)?;
    }
    let opened = mountpoint::Opened::for_mounting(&point)?;
    let mounted = fuse::mount(Arc::clone(&namespace), &point, &mount_options)?;
    drop(opened);
    let hydrator = source.map(|source| {
        let CloneSettings { streams, bytes_per_second, busy_share, .. } = settings.clone;
        let how = HydratorSettings { streams, bytes_per_second, busy_share };
        Hydrator::new(Arc::clone(&volume), source, Arc::clone(&places[0].device), how)
    });
    let served = Arc::new(Served::new(settings, volume, namespace, mover, hydrator, log_archive, events_in.clone()));
    let running = Running { served, rules, mounted: Arc::new(mounted.mounted), point };
    let begun = running.begin(events_in, start_control);
    drop(patience);

    let ended = match &begun {
        Ok(control) => running.serve(&events, control.as_ref()),
        // Mounted already, but not to be used: it must not stay as a dead mount.
        Err(_) => running.mounted.unmount(),
    };
    let stopped = running.shut_down().and_then(|()| identity::mark_stopped(&places, &id));
    drop(locks);
    // Last, so that a client that no longer finds us knows that all is over.
    let begun = begun.map(drop);
    begun.and(ended).and(stopped)
}

/// Verifies the tiers, takes their locks, clears the mountpoint, and begins a run. The locks come before the mountpoint: while another
/// daemon lives, its mount is not touched.
fn claim_tiers(settings: &Settings, point: &Path) -> Result<(Vec<Place>, Locks, VolumeIdentity)> {
    let named = settings.tier_paths();
    let places = Place::open_all(&named)?;
    identity::verify_all(&places)?.require_ready()?;
    let locks = Locks::take(&named)?;
    mountpoint::clear(point)?;
    let id = identity::begin_run(&places)?;
    if !id.clean {
        tracing::warn!("the last run did not end cleanly: replaying the log");
    }
    Ok((places, locks, id))
}

/// The snapshot that it was made of is there as long as it is needed or was not let go.
type OpenVolume = (Arc<Volume>, Recovery, Option<Arc<RepositorySource>>);

fn open_volume(settings: &Settings, places: &[Place], home: &Path) -> Result<OpenVolume> {
    let tiers = engine_tiers(settings, places)?;
    let rolled_back = rollback::finish(home, &tiers, &engine_options(settings), &mut ())?;
    if let Some(rollback) = rolled_back {
        tracing::info!("rolled back to snapshot {}: what the volume was before is kept", rollback.snapshot);
    }
    let elsewhere = settings.snapshot.repository.clone().map(|path| (path, settings.snapshot.key_file.clone()));
    let source = clone::source_of(places[0].device.as_ref(), elsewhere)?.map(Arc::new);
    if let Some(fastest) = tiers.first() {
        let meta = Volume::peek(fastest)?;
        refuse_changed(settings, &meta)?;
        if meta.needs_repository() {
            refuse_without_repository(settings, places, source.as_deref())?;
        }
    }
    let reads = source.clone().map(|source| source as Arc<dyn volume::SourceSnapshot>);
    let (volume, recovery) = Volume::open_with(tiers, engine_options(settings), reads)?;
    if !recovery.was_clean {
        tracing::info!("replayed {} records in {} log writes", recovery.records_replayed, recovery.groups_replayed);
    }
    give_up_what_nobody_goes_on_with(settings, &volume)?;
    volume.start_threads()?;
    Ok((volume, recovery, source))
}

/// A snapshot that was under way when the last run ended is gone on with if its names were kept and there is a repository (R17).
fn give_up_what_nobody_goes_on_with(settings: &Settings, volume: &Volume) -> Result<()> {
    volume.set_staging_limit(settings.snapshot.staging_bytes);
    for mark in volume.pending_marks() {
        if settings.snapshot.repository.is_none() || volume.image(&mark)?.is_none() {
            tracing::warn!("a snapshot that was under way when the last run ended is given up");
            volume.release_mark(&mark);
        }
    }
    Ok(())
}

/// A database that gets EIO for pages takes its disk for broken: better it is not started.
fn refuse_without_repository(settings: &Settings, places: &[Place], source: Option<&RepositorySource>) -> Result<()> {
    let Some(source) = source else {
        let path = format!("{}/{CLONE_FILE}", places[0].device.path());
        return Err(Error::NotFound(format!(
            "{path} is missing: it says in which repository blocks of this volume are"
        )));
    };
    let Err(error) = source.open() else { return Ok(()) };
    let path = source.note().repository.display();
    if settings.clone.without_repository {
        tracing::error!("serving without the repository at {path}, where blocks of this volume are: {error}");
        return Ok(());
    }
    Err(Error::NotFound(format!(
        "blocks of this volume are still in the repository at {path}, which cannot be read: {error}. Bring it back, or name it as `snapshot.repository`; with \
         `clone.without_repository = true` the volume is served without them"
    )))
}

/// Has each path that is met judged: by the rules, and by the patterns of log files.
fn judge_paths(settings: &Settings, volume: &Volume) -> Result<Arc<FileRules>> {
    let tier_names = settings.tiers.iter().map(|tier| tier.name.clone()).collect();
    let rules = Rules::new(settings.rules.clone(), settings.placement.profiles.clone(), tier_names);
    let rules = Arc::new(FileRules::new(rules.map_err(Error::Invalid)?));
    let logs: Vec<Pattern> = settings.log_files.iter().map(|pattern| Pattern::new(pattern)).collect();
    let hears = Arc::clone(&rules);
    volume.on_path(Box::new(move |file, path| {
        hears.note_path(file, path);
        logs.iter().any(|pattern| pattern.matches(path))
    }));
    Ok(rules)
}

/// What was fixed when the volume was made must not silently differ from what the settings say.
fn refuse_changed(settings: &Settings, fixed: &volume::Meta) -> Result<()> {
    let log = &settings.log;
    for (key, given, fixed) in [
        ("block_size", u64::from(settings.block_bytes), u64::from(fixed.block_bytes)),
        ("log.segment_size", log.segment_bytes, fixed.segment_bytes),
        ("log.size", log.segment_bytes * u64::from(log.segments()), fixed.segment_bytes * u64::from(fixed.segments)),
    ] {
        if given != fixed {
            let (given, fixed) = (exact_bytes(given), exact_bytes(fixed));
            let line = format!("{key} = \"{given}\": the volume was made with \"{fixed}\", which cannot be changed");
            return Err(Error::Invalid(line));
        }
    }
    Ok(())
}

fn open_mover(
    settings: &Settings,
    volume: &Arc<Volume>,
    places: &[Place],
    id: &VolumeIdentity,
    rules: Arc<FileRules>,
) -> Result<Arc<Mover>> {
    let placement = &settings.placement;
    let (counters_bytes, forecast_bytes) = share_memory(placement.memory_bytes);
    let recorder = Arc::new(Recorder::new(HeatSettings {
        half_life_epochs: placement.half_life_epochs,
        memory_bytes: counters_bytes,
        ..HeatSettings::with_block_bytes(settings.block_bytes)
    }));
    volume.set_observer(Arc::clone(&recorder) as Arc<dyn volume::AccessObserver>);
    let mover = MoverSettings {
        placement: PlacementSettings {
            low_watermark: placement.low_watermark,
            high_watermark: placement.high_watermark,
            hysteresis: placement.hysteresis,
            residency_plans: placement.residency_plans,
            log_share: placement.log_share,
            ..PlacementSettings::default()
        },
        epoch: placement.epoch,
        bytes_per_second: placement.bytes_per_second,
        compact_bytes_per_second: placement.compact_bytes_per_second,
        // Plans follow heat, so they are as frequent as its unit of time asks: five seconds for one of five minutes.
        plan_every_min: (placement.epoch / PLANS_PER_EPOCH).clamp(Duration::from_millis(500), Duration::from_secs(5)),
        rules,
        forecast: ForecasterSettings {
            enabled: settings.forecast.enabled,
            period: settings.forecast.period,
            staging: settings.forecast.staging,
            memory_bytes: forecast_bytes,
            write_weight: recorder.settings().write_weight,
            epoch: placement.epoch,
        },
        ..MoverSettings::default()
    };
    Mover::open(Arc::clone(volume), recorder, Arc::clone(&places[0].device), *id.volume.as_bytes(), mover)
}

/// Where full segments of the log are kept: on the slowest tier.
fn log_archive(
    settings: &Settings,
    volume: &Arc<Volume>,
    places: &[Place],
    id: &VolumeIdentity,
) -> Option<Arc<LogArchive>> {
    let how = LogArchiveSettings { bytes_max: settings.log.archive_bytes, keep: settings.log.archive_keep };
    let slowest = places.last().filter(|_| how.bytes_max > 0)?;
    Some(LogArchive::new(Arc::clone(volume), id.volume, Arc::clone(&slowest.device), how))
}

/// The tiers of the settings, for the engine.
pub fn engine_tiers(settings: &Settings, places: &[Place]) -> Result<Vec<volume::Tier>> {
    let tier = |(tier, place): (&super::settings::TierSettings, &Place)| {
        let space = place.device.space().map_err(|error| Error::io("examining", place.device.path(), error))?;
        Ok(volume::Tier {
            name: tier.name.clone(),
            device: Arc::clone(&place.device),
            budget_bytes: tier.budget_bytes,
            reserve_bytes: tier.reserve.bytes_of(space.total_bytes),
        })
    };
    settings.tiers.iter().zip(places).map(tier).collect()
}

/// The tiers of the settings, for the offline jobs. Errors: a path that is not there.
pub fn tier_plans(settings: &Settings) -> Result<Vec<TierPlan>> {
    let plan = |tier: &super::settings::TierSettings| {
        let space = nix::sys::statvfs::statvfs(&tier.path).map_err(|errno| Error::WrongTier {
            tier: tier.name.clone(),
            path: tier.path.display().to_string(),
            why: match errno {
                nix::errno::Errno::ENOENT => {
                    "the path does not exist: is the disk mounted? If it is, make the directory".to_owned()
                }
                other => other.desc().to_owned(),
            },
        })?;
        Ok(TierPlan {
            name: tier.name.clone(),
            path: tier.path.clone(),
            budget_bytes: tier.budget_bytes,
            reserve_bytes: tier.reserve.bytes_of(space.blocks() * space.fragment_size()),
        })
    };
    settings.tiers.iter().map(plan).collect()
}

/// The engine's options of the settings.
pub fn engine_options(settings: &Settings) -> volume::Options {
    volume::Options {
        block_bytes: settings.block_bytes,
        segment_bytes: settings.log.segment_bytes,
        segments: settings.log.segments(),
        payload_cache_bytes: settings.log.payload_cache_bytes,
        coalesce_at_fill: settings.coalesce_log_fill_start,
        checkpoint_interval_s: settings.checkpoint_interval.as_secs(),
    }
}

fn fuse_options(settings: &Settings, mount_as: MountAs) -> fuse::Options {
    let callers = Callers::new(settings.forecast.maintenance.clone());
    fuse::Options {
        source: mount_as.source.unwrap_or_else(|| format!("heatfs:{}", settings.name)),
        no_exec: mount_as.no_exec,
        workers: settings.fuse.threads,
        slots: fuse::Slots { reads: settings.fuse.slow_read_slots, ..fuse::Slots::default() },
        read_ahead_kb: u32::try_from(settings.fuse.read_ahead_bytes / 1024).unwrap_or(u32::MAX),
        max_background: settings.fuse.max_background,
        everybody: settings.fuse.allow_other,
        context: settings.fuse.context.clone(),
        io_uring: settings.fuse.io_uring,
        maintains: Arc::new(move |pid| callers.maintains(pid)),
    }
}

/// Rules hold for files that nobody has opened yet, too: each name is looked at once.
fn learn_paths(rules: &FileRules, served: &Served) {
    let walked = served.namespace.walk(&mut |visit| {
        if let Some(Ok(id)) = visit.file {
            rules.note_path(id, visit.path);
        }
        Ok(())
    });
    if let Err(error) = walked {
        tracing::warn!(%error, "rules hold only for files that are opened: not all names could be looked at");
    }
}

/// A volume from its mount to its end.
struct Running {
    served: Arc<Served>,
    rules: Arc<FileRules>,
    mounted: Arc<fuse::Mounted>,
    point: PathBuf,
}

impl Running {
    /// What remains once the mount is there.
    fn begin(&self, events: Sender<Event>, start_control: StartControl) -> Result<Box<dyn Control>> {
        self.tell_when_unmounted(events)?;
        let (rules, served) = (Arc::clone(&self.rules), Arc::clone(&self.served));
        self.served.mover.start(move || learn_paths(&rules, &served))?;
        self.served.publish(What::Mounted { mount: self.point.display().to_string() });
        if let Some(hydrator) = &self.served.hydrator {
            hydrator.start()?;
        }
        if let Some(log_archive) = &self.served.log_archive {
            log_archive.start()?;
        }
        let control = start_control(Arc::clone(&self.served))?;
        self.served.keeper.start()?;
        tracing::info!("serving {} on {}", self.served.settings.name, self.point.display());
        notify(&Notice::Ready);
        notify(&Notice::Status(&format!("serving {}", self.point.display())));
        Ok(control)
    }

    fn tell_when_unmounted(&self, events: Sender<Event>) -> Result<()> {
        let mounted = Arc::clone(&self.mounted);
        std::thread::Builder::new()
            .name("unmounted".to_owned())
            .spawn(move || {
                mounted.wait();
                // Nobody listens when the daemon is through: then it does not matter.
                let _ = events.send(Event::Unmounted);
            })
            .map(|_| ())
            .map_err(|error| Error::io("starting thread for", self.point.display().to_string(), error))
    }

    /// Until the mount is gone.
    fn serve(&self, events: &Receiver<Event>, control: &dyn Control) -> Result<()> {
        let watchdog = Watchdog::new();
        let mut memory = FreeMemory::new();
        let mut stopping = false;
        loop {
            let patience = if stopping { RETRY } else { watchdog.interval().min(memory.interval()) };
            match events.recv_timeout(patience) {
                Ok(Event::Unmounted) => {
                    tracing::info!("{} is unmounted", self.point.display());
                    return Ok(());
                }
                Ok(Event::Stop { force: true }) => return self.force(events),
                Ok(Event::Stop { force: false }) if !stopping => {
                    stopping = true;
                    self.begin_to_stop();
                    self.try_to_leave();
                }
                Ok(Event::Stop { force: false }) | Err(RecvTimeoutError::Timeout) if stopping => self.try_to_leave(),
                Ok(Event::Stop { force: false }) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            watchdog.tell(&self.served, control);
            memory.return_sometimes();
        }
    }

    /// Makes durable what there is, while the mount still serves: whatever comes next, little is left to do.
    fn begin_to_stop(&self) {
        notify(&Notice::Stopping);
        self.served.publish(What::Stopping);
        self.served.keeper.stop();
        let _patience = Patience::ask();
        notify(&Notice::Status("stopping: checkpoint"));
        self.served.set_stopping("checkpoint".to_owned());
        let durable = self.served.volume.sync_log().and_then(|()| self.served.volume.checkpoint());
        if let Err(error) = durable {
            tracing::error!("checkpoint before stopping: {error}");
        }
    }

    /// Unmounts if nobody uses the volume; otherwise says who does.
    fn try_to_leave(&self) {
        let Err(error) = self.mounted.try_unmount() else { return };
        let holding = match mount_at(&self.point) {
            Ok(Some(mount)) => holders(&mount),
            Ok(None) | Err(_) => Vec::new(),
        };
        let line = match holding.is_empty() {
            true => format!("waiting: {error}"),
            false => format!("waiting for {}", describe(&holding)),
        };
        // Said when it changes, not each second.
        if self.served.stopping().as_deref() != Some(line.as_str()) {
            tracing::warn!("stopping: {line}; `heatfs stop --force` detaches the mount");
            self.served.set_stopping(line.clone());
        }
        notify(&Notice::Status(&format!("stopping: {line}")));
        notify(&Notice::ExtendTimeout(patience::EXTENSION));
    }

    /// A person asked for it: the mount goes from under its users. What they have synced is durable.
    fn force(&self, events: &Receiver<Event>) -> Result<()> {
        tracing::warn!("detaching {} by force", self.point.display());
        self.begin_to_stop();
        self.mounted.force_unmount()?;
        while let Ok(event) = events.recv_timeout(FORCED_PATIENCE) {
            if event == Event::Unmounted {
                return Ok(());
            }
        }
        tracing::warn!("processes still hold the detached mount; their calls fail from now on");
        Ok(())
    }

    fn shut_down(&self) -> Result<()> {
        notify(&Notice::Stopping);
        let _patience = Patience::ask();
        notify(&Notice::Status("stopping: bringing everything to the tiers"));
        self.served.set_stopping("bringing everything to the tiers".to_owned());
        self.served.keeper.stop();
        if let Some(hydrator) = &self.served.hydrator {
            hydrator.stop();
        }
        self.served.mover.stop();
        self.served.namespace.close();
        if let Some(log_archive) = &self.served.log_archive {
            log_archive.stop();
        }
        self.served.volume.shut_down()?;
        tracing::info!("stopped cleanly");
        Ok(())
    }
}
