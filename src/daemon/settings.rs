//! The settings of one volume: a TOML file, overridden by the environment (`HEATFS__LOG__SIZE=2GiB` is `log.size`).
//!
//! Every key is in [`KEYS`], documented in `etc/heatfs/example.toml`, and checked here; a key that is not known is an error that names the
//! nearest known one, because a misspelt budget that is silently ignored fills a disk. Nothing is read from the tiers: what is on disk
//! is checked when the volume is opened.

use super::callers::MAINTENANCE;
use super::clones::CloneSettings;
use super::path_rules::{read_profiles, read_rules};
use super::quantity::{exact_bytes, parse_bytes};
use super::reader::Section;
use crate::error::{Error, Result};
use crate::jobs::cadence::SnapshotSettings;
use crate::jobs::hooks::PostgresSettings;
use crate::policy::profiles::Profile;
use crate::policy::rules::Rule;
use crate::units::{DEFAULT_BLOCK_BYTES, TierId};
use config::{Value, ValueKind};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const READ_BY_OTHERS: u32 = 0o004;
/// `snapshot.postgresql.connection`.
const CONNECTION_IN_ENVIRONMENT: &str = "HEATFS__SNAPSHOT__POSTGRESQL__CONNECTION";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

/// Every key, dotted; `tier.` stands for each `[[tier]]`.
pub const KEYS: &[&str] = &[
    "name",
    "mount",
    "socket",
    "block_size",
    "log_files",
    "log.size",
    "log.segment_size",
    "log.payload_cache",
    "log.archive_size",
    "log.archive_keep",
    "tier.name",
    "tier.path",
    "tier.budget",
    "tier.reserve",
    "fuse.threads",
    "fuse.max_background",
    "fuse.read_ahead",
    "fuse.slow_read_slots",
    "fuse.allow_other",
    "fuse.context",
    "fuse.io_uring",
    "placement.epoch",
    "placement.half_life_epochs",
    "placement.high_watermark",
    "placement.low_watermark",
    "placement.hysteresis",
    "placement.residency_plans",
    "placement.bytes_per_second",
    "placement.compact_bytes_per_second",
    "placement.memory",
    "placement.log_share",
    "placement.profiles",
    "forecast.enabled",
    "forecast.period",
    "forecast.staging",
    "forecast.maintenance",
    "rule.path",
    "rule.pin",
    "rule.never",
    "rule.promote",
    "checkpoint.interval",
    "coalesce.log_fill_start",
    "snapshot.repository",
    "snapshot.key_file",
    "snapshot.streams",
    "snapshot.busy_share",
    "snapshot.bytes_per_second",
    "snapshot.staging",
    "snapshot.schedule",
    "snapshot.prune_every",
    "snapshot.keep.last",
    "snapshot.keep.hourly",
    "snapshot.keep.daily",
    "snapshot.keep.weekly",
    "snapshot.keep.monthly",
    "snapshot.keep.yearly",
    "snapshot.verify.bytes_per_day",
    "snapshot.hooks.before",
    "snapshot.hooks.after",
    "snapshot.hooks.done",
    "snapshot.hooks.failure",
    "snapshot.hooks.limit",
    "snapshot.postgresql.connection",
    "snapshot.postgresql.run_as",
    "snapshot.postgresql.limit",
    "clone.streams",
    "clone.bytes_per_second",
    "clone.busy_share",
    "clone.without_repository",
];

/// The tables of the file.
const TABLES: &[&str] =
    &["log", "tier", "fuse", "placement", "forecast", "rule", "checkpoint", "coalesce", "snapshot", "clone"];

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The volume's name: of its socket, its unit instance and its messages.
    pub name: String,
    /// Where the volume is mounted.
    pub mount: PathBuf,
    /// The control socket; None: [`default_socket`].
    pub socket: Option<PathBuf>,
    pub block_bytes: u32,
    /// Further glob patterns of files that are written like logs.
    pub log_files: Vec<String>,
    pub log: LogSettings,
    /// Fastest first.
    pub tiers: Vec<TierSettings>,
    pub fuse: FuseSettings,
    pub placement: PlacementSettings,
    pub forecast: ForecastSettings,
    /// What is said about paths; none contradicts another.
    pub rules: Vec<Rule>,
    pub checkpoint_interval: Duration,
    /// Share of the log in use above which coalescing starts even for blocks that are still being written.
    pub coalesce_log_fill_start: f64,
    pub snapshot: SnapshotSettings,
    pub clone: CloneSettings,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    pub size_bytes: u64,
    pub segment_bytes: u64,
    pub payload_cache_bytes: u64,
    /// What full segments may take that are kept on the slowest tier; 0: none are added.
    pub archive_bytes: u64,
    pub archive_keep: Duration,
}

impl LogSettings {
    /// Whole segments that fit the size.
    pub fn segments(&self) -> u32 {
        u32::try_from(self.size_bytes / self.segment_bytes).unwrap_or(u32::MAX)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct TierSettings {
    pub name: String,
    pub path: PathBuf,
    /// None: as much as the backing filesystem has, less the reserve.
    pub budget_bytes: Option<u64>,
    pub reserve: Reserve,
}

/// Room on the backing filesystem that heatfs leaves alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reserve {
    Bytes(u64),
    /// Of the filesystem's size, but at least 64 MiB.
    Percent(u32),
}

impl Reserve {
    /// In bytes, on a filesystem of this size.
    pub fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            Reserve::Bytes(bytes) => bytes,
            Reserve::Percent(percent) => (total_bytes / 100 * u64::from(percent)).max(64 * MIB),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct FuseSettings {
    /// None: one more than cores, from 3 to 16.
    pub threads: Option<usize>,
    pub max_background: u16,
    pub read_ahead_bytes: u64,
    pub slow_read_slots: usize,
    /// None: as root yes, otherwise no.
    pub allow_other: Option<bool>,
    /// SELinux context of all files. None: that of the policy for FUSE.
    pub context: Option<String>,
    /// Requests come over io_uring, where the kernel has it switched on.
    pub io_uring: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PlacementSettings {
    pub epoch: Duration,
    pub half_life_epochs: f32,
    pub high_watermark: f32,
    pub low_watermark: f32,
    pub hysteresis: f32,
    pub residency_plans: u32,
    pub bytes_per_second: u64,
    /// 0: no compaction.
    pub compact_bytes_per_second: u64,
    /// For the counters of heat.
    pub memory_bytes: u64,
    /// Share of the fastest tier that is reserved for logs.
    pub log_share: f32,
    /// Databases whose files are recognised.
    pub profiles: Vec<Profile>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ForecastSettings {
    /// Without, heat is plain decay.
    pub enabled: bool,
    /// Length of the cycle that the load may have; zero: none.
    pub period: Duration,
    /// May a share of the fastest tier stage what was just missed?
    pub staging: bool,
    /// Parts of command lines or control groups whose accesses are no heat.
    pub maintenance: Vec<String>,
}

impl Settings {
    /// Reads a file and the environment of this process.
    pub fn load(path: &Path) -> Result<Settings> {
        let file = config::File::from(path).format(config::FileFormat::Toml);
        let absent = path.metadata().err();
        if let Some(error) = absent {
            return Err(Error::Invalid(format!("reading settings {}: {error}", path.display())));
        }
        Settings::from_sources(file, None, &path.display().to_string())
    }

    /// Reads a text as if it were the file, and `environment` as if it were that of the process.
    pub fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Settings> {
        let pairs = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let file = config::File::from_str(text, config::FileFormat::Toml);
        Settings::from_sources(file, Some(pairs), "settings")
    }

    fn from_sources(
        file: impl config::Source + Send + Sync + 'static,
        environment: Option<HashMap<String, String>>,
        origin: &str,
    ) -> Result<Settings> {
        // Two underscores, so that HEATFS_CONFIG, HEATFS_SOCKET and HEATFS_LOG are not taken for keys.
        let environment = config::Environment::with_prefix("HEATFS")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(environment);
        let merged = config::Config::builder()
            .add_source(file)
            .add_source(environment)
            .build()
            .map_err(|error| Error::Invalid(one_line(origin, &error.to_string())))?;
        match merged.cache.kind {
            ValueKind::Table(values) => read(Section::root(values), origin),
            _ => Err(Error::Invalid(format!("{origin}: a table of settings is wanted"))),
        }
    }

    /// One line if a password stands in the file that these were read from, and everybody may read that. It repeats nothing of the password.
    pub fn readable_password(&self, file: &Path) -> Option<String> {
        let has_password = self.snapshot.hooks.postgresql.as_ref().is_some_and(PostgresSettings::has_password);
        // Otherwise it is the environment's, which only root and the daemon's own user can read.
        let is_of_file = std::env::var_os(CONNECTION_IN_ENVIRONMENT).is_none();
        let mode = file.metadata().ok()?.permissions().mode();
        (has_password && is_of_file && mode & READ_BY_OTHERS != 0).then(|| {
            format!(
                "{} holds a password (snapshot.postgresql.connection), and everybody on this machine may read it",
                file.display()
            )
        })
    }

    /// The mountpoint as the kernel names it.
    pub fn mount_path(&self) -> PathBuf {
        resolve(&self.mount)
    }

    /// Names and paths of the tiers, fastest first.
    pub fn tier_paths(&self) -> Vec<(String, PathBuf)> {
        self.tiers.iter().map(|tier| (tier.name.clone(), tier.path.clone())).collect()
    }

    /// The socket of the control interface.
    pub fn socket_path(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => default_socket(&self.name),
        }
    }
}

/// `/run/heatfs/NAME.sock` for root, below `$XDG_RUNTIME_DIR` for others.
pub fn default_socket(name: &str) -> Result<PathBuf> {
    let file = format!("{name}.sock");
    if nix::unistd::geteuid().is_root() {
        return Ok(Path::new("/run/heatfs").join(file));
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir).join("heatfs").join(file)),
        None => Err(Error::Invalid("socket: not set, and XDG_RUNTIME_DIR is not set either: set one of them".into())),
    }
}

/// A parser's message with its picture of the source removed: the first line says where, the last says what.
fn one_line(origin: &str, message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => format!("{origin}: not valid TOML"),
        [only] => format!("{origin}: {only}"),
        [first, .., last] => format!("{origin}: {first}: {}", last.split(" in ").next().unwrap_or(last)),
    }
}

fn read(mut root: Section, origin: &str) -> Result<Settings> {
    refuse_unknown(&root, "")?;
    let mut log = root.section("log")?;
    let mut fuse = root.section("fuse")?;
    let mut placement = root.section("placement")?;
    let mut forecast = root.section("forecast")?;
    let mut checkpoint = root.section("checkpoint")?;
    let mut coalesce = root.section("coalesce")?;
    let mut snapshot = root.section("snapshot")?;
    let mut clone = root.section("clone")?;
    for (section, prefix) in [
        (&log, "log."),
        (&fuse, "fuse."),
        (&placement, "placement."),
        (&forecast, "forecast."),
        (&checkpoint, "checkpoint."),
        (&coalesce, "coalesce."),
        (&snapshot, "snapshot."),
        (&clone, "clone."),
    ] {
        refuse_unknown(section, prefix)?;
    }
    let tiers = read_tiers(&mut root, origin)?;
    let placement = read_placement(&mut placement, origin)?;
    let tier_names: Vec<String> = tiers.iter().map(|tier| tier.name.clone()).collect();
    let settings = Settings {
        name: required(origin, "name", root.name("name")?)?,
        mount: required(origin, "mount", root.path("mount")?)?,
        socket: root.path("socket")?,
        block_bytes: read_block_size(&mut root)?,
        log_files: root.texts("log_files")?,
        log: read_log(&mut log, origin)?,
        rules: read_rules(&mut root, &tier_names, &placement.profiles, origin)?,
        tiers,
        fuse: read_fuse(&mut fuse)?,
        placement,
        forecast: read_forecast(&mut forecast)?,
        checkpoint_interval: checkpoint.span("interval", seconds(30), seconds(1)..=seconds(3600))?,
        coalesce_log_fill_start: coalesce.number("log_fill_start", 0.5, 0.05..=0.9)?.into(),
        snapshot: super::snapshots::read(&mut snapshot)?,
        clone: super::clones::read(&mut clone)?,
    };
    refuse_overlap(&settings, origin)?;
    Ok(settings)
}

pub(super) fn required<T>(origin: &str, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::Invalid(format!("{origin}: `{key}` is not set, and there is no default for it")))
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn read_block_size(root: &mut Section) -> Result<u32> {
    let Some(value) = root.raw("block_size") else { return Ok(DEFAULT_BLOCK_BYTES) };
    let bytes = match &value.kind {
        ValueKind::String(text) => parse_bytes(text).ok(),
        ValueKind::I64(bytes) => u64::try_from(*bytes).ok(),
        ValueKind::U64(bytes) => Some(*bytes),
        _ => None,
    };
    bytes
        .and_then(|bytes| u32::try_from(bytes).ok())
        .filter(|bytes| bytes.is_power_of_two() && (4 * 1024..=1024 * 1024).contains(bytes))
        .ok_or_else(|| root.wrong("block_size", &value, "a power of two from 4KiB to 1MiB is allowed"))
}

fn read_log(log: &mut Section, origin: &str) -> Result<LogSettings> {
    let settings = LogSettings {
        size_bytes: log.bytes("size", 4 * GIB, 16 * MIB..=TIB)?,
        segment_bytes: log.bytes("segment_size", 64 * MIB, MIB..=GIB)?,
        payload_cache_bytes: log.bytes("payload_cache", 16 * MIB, 0..=64 * GIB)?,
        archive_bytes: log.bytes("archive_size", 0, 0..=1024 * TIB)?,
        archive_keep: log.span("archive_keep", seconds(86_400), seconds(60)..=seconds(366 * 86_400))?,
    };
    let archive_min = 4 * settings.segment_bytes;
    if settings.archive_bytes > 0 && settings.archive_bytes < archive_min {
        return Err(Error::Invalid(format!(
            "{origin}: log.archive_size = \"{}\": 0, or at least 4 times log.segment_size ({}) is allowed",
            exact_bytes(settings.archive_bytes),
            exact_bytes(archive_min)
        )));
    }
    if !settings.segment_bytes.is_multiple_of(MIB) {
        return Err(Error::Invalid(format!(
            "{origin}: log.segment_size = {}: a multiple of 1MiB is allowed",
            exact_bytes(settings.segment_bytes)
        )));
    }
    // The oldest quarter is what is drained, so there must be four.
    if settings.size_bytes / settings.segment_bytes < 4 {
        return Err(Error::Invalid(format!(
            "{origin}: log.size = {}: at least 4 times log.segment_size ({}) is allowed",
            exact_bytes(settings.size_bytes),
            exact_bytes(settings.segment_bytes)
        )));
    }
    Ok(settings)
}

fn read_tiers(root: &mut Section, origin: &str) -> Result<Vec<TierSettings>> {
    let mut tiers: Vec<TierSettings> = Vec::new();
    for (index, mut section) in root.sections("tier")?.into_iter().enumerate() {
        refuse_unknown(&section, "tier.")?;
        let tier = TierSettings {
            name: required(origin, &format!("tier[{index}].name"), section.name("name")?)?,
            path: required(origin, &format!("tier[{index}].path"), section.path("path")?)?,
            budget_bytes: match section.bytes("budget", 0, 16 * MIB..=1024 * TIB)? {
                0 => None,
                bytes => Some(bytes),
            },
            reserve: read_reserve(&mut section)?,
        };
        if let Some(twin) = tiers.iter().position(|other| other.name == tier.name) {
            return Err(Error::Invalid(format!(
                "{origin}: tier[{index}].name = \"{}\": tier[{twin}] has this name already; each tier needs its own",
                tier.name
            )));
        }
        tiers.push(tier);
    }
    if tiers.is_empty() || tiers.len() > TierId::MAX_TIERS {
        return Err(Error::Invalid(format!(
            "{origin}: {} tiers: from 1 to {} are allowed, each as [[tier]] with name and path, fastest first",
            tiers.len(),
            TierId::MAX_TIERS
        )));
    }
    Ok(tiers)
}

fn read_reserve(tier: &mut Section) -> Result<Reserve> {
    let Some(value) = tier.raw("reserve") else { return Ok(Reserve::Percent(2)) };
    let reserve = match &value.kind {
        ValueKind::String(text) => match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().filter(|percent| *percent <= 50).map(Reserve::Percent),
            None => parse_bytes(text).ok().map(Reserve::Bytes),
        },
        ValueKind::I64(bytes) => u64::try_from(*bytes).ok().map(Reserve::Bytes),
        _ => None,
    };
    reserve.ok_or_else(|| tier.wrong("reserve", &value, "a size such as 1GiB, or a share from 0% to 50%, is allowed"))
}

fn read_fuse(fuse: &mut Section) -> Result<FuseSettings> {
    let threads = fuse.count("threads", 0, 0..=256)?;
    let narrow = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Ok(FuseSettings {
        threads: (threads > 0).then(|| narrow(threads)),
        max_background: u16::try_from(fuse.count("max_background", 1024, 16..=65535)?).unwrap_or(u16::MAX),
        read_ahead_bytes: fuse.bytes("read_ahead", 128 * KIB, 0..=16 * MIB)?,
        slow_read_slots: narrow(fuse.count("slow_read_slots", 64, 1..=1024)?),
        context: fuse.security_context("context")?,
        io_uring: fuse.flag("io_uring", false)?,
        allow_other: match fuse.raw("allow_other") {
            None => None,
            Some(Value { kind: ValueKind::Boolean(flag), .. }) => Some(flag),
            Some(Value { kind: ValueKind::String(text), .. }) if text == "auto" => None,
            Some(other) => return Err(fuse.wrong("allow_other", &other, "true, false or \"auto\" is allowed")),
        },
    })
}

fn read_placement(placement: &mut Section, origin: &str) -> Result<PlacementSettings> {
    let settings = PlacementSettings {
        epoch: placement.span("epoch", seconds(300), seconds(1)..=seconds(86400))?,
        half_life_epochs: placement.number("half_life_epochs", 8.0, 0.5..=1000.0)?,
        high_watermark: placement.number("high_watermark", 0.98, 0.1..=1.0)?,
        low_watermark: placement.number("low_watermark", 0.95, 0.05..=1.0)?,
        hysteresis: placement.number("hysteresis", 0.15, 0.0..=10.0)?,
        residency_plans: u32::try_from(placement.count("residency_plans", 2, 0..=10_000)?).unwrap_or(u32::MAX),
        bytes_per_second: placement.bytes("bytes_per_second", 64 * MIB, 64 * KIB..=64 * GIB)?,
        compact_bytes_per_second: placement.bytes("compact_bytes_per_second", 0, 0..=64 * GIB)?,
        memory_bytes: placement.bytes("memory", 128 * MIB, MIB..=64 * GIB)?,
        log_share: placement.number("log_share", 0.02, 0.0..=0.5)?,
        profiles: read_profiles(placement)?,
    };
    if settings.low_watermark >= settings.high_watermark {
        return Err(Error::Invalid(format!(
            "{origin}: placement.low_watermark = {}: less than placement.high_watermark ({}) is allowed",
            settings.low_watermark, settings.high_watermark
        )));
    }
    Ok(settings)
}

fn read_forecast(forecast: &mut Section) -> Result<ForecastSettings> {
    let says_nothing = !forecast.names().any(|(name, _)| name == "maintenance");
    let known = || MAINTENANCE.iter().map(|text| (*text).to_owned()).collect();
    Ok(ForecastSettings {
        maintenance: if says_nothing { known() } else { forecast.texts("maintenance")? },
        enabled: forecast.flag("enabled", true)?,
        period: forecast.span("period", seconds(86_400), seconds(0)..=seconds(366 * 86_400))?,
        staging: forecast.flag("staging", true)?,
    })
}

pub(super) fn refuse_unknown(section: &Section, prefix: &str) -> Result<()> {
    for (name, value) in section.names() {
        let key = format!("{prefix}{name}");
        let is_table = KEYS.iter().any(|known| known.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.')));
        if is_table || KEYS.contains(&key.as_str()) {
            continue;
        }
        let origin = value.origin().unwrap_or("settings");
        return Err(Error::Invalid(format!("{origin}: unknown key `{key}`: did you mean `{}`?", nearest(&key))));
    }
    Ok(())
}

/// The known key most like this one; a right name in the wrong table counts as near.
fn nearest(key: &str) -> &'static str {
    let leaf = key.rsplit('.').next().unwrap_or(key);
    let distance = |known: &str| {
        let known_leaf = known.rsplit('.').next().unwrap_or(known);
        let misplaced = strsim::damerau_levenshtein(leaf, known_leaf) + 1;
        strsim::damerau_levenshtein(key, known).min(misplaced)
    };
    KEYS.iter().copied().chain(TABLES.iter().copied()).min_by_key(|known| distance(known)).unwrap_or("name")
}

/// Tier paths must not contain each other, nor the mount, nor lie in it: a block would be stored within itself.
fn refuse_overlap(settings: &Settings, origin: &str) -> Result<()> {
    let real: Vec<PathBuf> =
        settings.tiers.iter().map(|tier| tier.path.canonicalize().unwrap_or_else(|_| resolve(&tier.path))).collect();
    let mount = resolve(&settings.mount);
    for (index, (tier, path)) in settings.tiers.iter().zip(&real).enumerate() {
        if path.starts_with(&mount) || mount.starts_with(path) {
            return Err(Error::Invalid(format!(
                "{origin}: tier[{index}].path = \"{}\": it overlaps mount = \"{}\"; neither may lie in the other",
                tier.path.display(),
                settings.mount.display()
            )));
        }
        for (other, other_path) in real.iter().enumerate().take(index) {
            if path.starts_with(other_path) || other_path.starts_with(path) {
                return Err(Error::Invalid(format!(
                    "{origin}: tier[{index}].path = \"{}\": it overlaps the path of tier[{other}]; each tier needs a directory of its own",
                    tier.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// The path with the symlinks of its existing parents followed. The last component is left alone: it may be a dead mount.
fn resolve(path: &Path) -> PathBuf {
    let (Some(parent), Some(last)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    let mut missing: Vec<&OsStr> = vec![last];
    let mut ancestor = parent;
    loop {
        if let Ok(real) = ancestor.canonicalize() {
            return missing.iter().rev().fold(real, |path, part| path.join(part));
        }
        match (ancestor.parent(), ancestor.file_name()) {
            (Some(parent), Some(last)) => {
                missing.push(last);
                ancestor = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEYS, Reserve, Settings};
    use std::path::Path;
    use std::time::Duration;

    const EXAMPLE: &str = include_str!("../../etc/heatfs/example.toml");
    const LEAST: &str = r#"
        name = "pg"
        mount = "/nowhere/data"
        [[tier]]
        name = "nvme"
        path = "/nowhere/nvme"
    "#;

    fn tiers(count: usize) -> String {
        let tier = |index| format!("[[tier]]\nname = \"t{index}\"\npath = \"/nowhere/t{index}\"\n");
        (0..count).fold("name = \"pg\"\nmount = \"/nowhere/data\"\n".to_owned(), |text, index| text + &tier(index))
    }

    /// The one line that a text of settings is refused with.
    fn refusal(text: &str, environment: &[(&str, &str)]) -> String {
        let line = Settings::parse(text, environment).expect_err(text).to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    #[test]
    fn example_has_every_key_and_says_the_defaults() {
        // Keys without a default stand there commented out, `# key = ...`.
        let active: String = EXAMPLE
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| {
                        rest.starts_with("[[") || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
                    })
                    .unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let table: toml::Table = active.parse().expect("the example with all keys active is TOML");
        for key in KEYS {
            let found = match key.split_once('.') {
                None => table.contains_key(*key),
                Some((list @ ("tier" | "rule"), leaf)) => {
                    table[list].as_array().is_some_and(|entries| entries.iter().any(|entry| entry.get(leaf).is_some()))
                }
                Some((section, rest)) => {
                    let section = table.get(section);
                    rest.split('.').fold(section, |within, name| within.and_then(|table| table.get(name))).is_some()
                }
            };
            assert!(found, "etc/heatfs/example.toml lacks {key}");
        }
        Settings::parse(&active, &[]).expect("the example with all keys active is accepted");

        let example = Settings::parse(EXAMPLE, &[]).expect("the example is accepted");
        let least = Settings::parse(LEAST, &[]).expect("the least is accepted");
        let same_identity = Settings {
            name: least.name.clone(),
            mount: least.mount.clone(),
            tiers: least.tiers.clone(),
            ..example.clone()
        };
        assert_eq!(same_identity, least, "the example's values are the defaults");
        assert!(example.tiers.iter().all(|tier| tier.budget_bytes.is_none() && tier.reserve == Reserve::Percent(2)));
    }

    #[test]
    fn environment_overrides_the_file() {
        let env = [
            ("HEATFS__LOG__SIZE", "2GiB"),
            ("HEATFS__FUSE__THREADS", "4"),
            ("HEATFS__FUSE__ALLOW_OTHER", "false"),
            ("HEATFS__LOG_FILES", "*.wal, redo*"),
            ("HEATFS__PLACEMENT__HYSTERESIS", "0.5"),
        ];
        let settings = Settings::parse(LEAST, &env).expect("accepted");
        assert_eq!(settings.log.size_bytes, 2 << 30);
        assert_eq!(settings.fuse.threads, Some(4));
        assert_eq!(settings.fuse.allow_other, Some(false));
        assert_eq!(settings.log_files, ["*.wal", "redo*"]);
        assert_eq!(settings.placement.hysteresis, 0.5);
        let other_uses = [("HEATFS_CONFIG", "x"), ("HEATFS_SOCKET", "y"), ("HEATFS_LOG", "debug")];
        Settings::parse(LEAST, &other_uses).expect("variables of other uses are not keys");
    }

    #[test]
    fn values_are_read() {
        let text = format!(
            "{LEAST}budget = \"100 GiB\"\nreserve = \"5%\"\n[checkpoint]\ninterval = \"5m\"\n[fuse]\nread_ahead = 65536"
        );
        let settings = Settings::parse(&text, &[]).expect("accepted");
        assert_eq!(settings.tiers[0].budget_bytes, Some(100 << 30));
        assert_eq!(settings.tiers[0].reserve, Reserve::Percent(5));
        assert_eq!(settings.tiers[0].path, Path::new("/nowhere/nvme"));
        assert_eq!(settings.checkpoint_interval, Duration::from_secs(300));
        assert_eq!(settings.fuse.read_ahead_bytes, 65536);
        assert_eq!(Reserve::Percent(2).bytes_of(100 << 30), (100 << 30) / 100 * 2);
        assert_eq!(Reserve::Percent(2).bytes_of(1 << 30), 64 << 20);
        assert_eq!(Settings::parse(&tiers(14), &[]).expect("14 tiers").tiers.len(), 14);
    }

    /// Each bad input gets one line with key, value and what is allowed.
    #[test]
    fn bad_inputs_are_named() {
        let cases: &[(&str, &[&str])] = &[
            ("[log]\nsise = \"1GiB\"", &["unknown key `log.sise`", "`log.size`"]),
            ("[checkpoint]\nintervall = 3", &["`checkpoint.intervall`", "`checkpoint.interval`"]),
            ("[fuze]\nthreads = 3", &["`fuze`", "`fuse`"]),
            ("[placement]\nlog_fill_start = 0.5", &["`placement.log_fill_start`", "`coalesce.log_fill_start`"]),
            ("[log]\nsize = \"much\"", &["log.size", "\"much\"", "from 16MiB to 1TiB"]),
            ("[log]\nsize = true", &["log.size", "true", "from 16MiB"]),
            ("[log]\nsize = \"1MiB\"", &["log.size", "1MiB", "from 16MiB"]),
            ("[log]\nsize = \"128MiB\"", &["log.size", "at least 4 times"]),
            ("[log]\narchive_size = \"255MiB\"", &["log.archive_size", "255MiB", "4 times log.segment_size (256MiB)"]),
            ("[log]\narchive_keep = \"1s\"", &["log.archive_keep", "from 60s to"]),
            ("[log]\nsegment_size = 1048577", &["log.segment_size", "1048577", "multiple of 1MiB"]),
            ("[fuse]\nthreads = \"4\"", &["fuse.threads", "\"4\"", "from 0 to 256"]),
            ("[fuse]\nthreads = -1", &["fuse.threads", "-1"]),
            ("[fuse]\nthreads = 1.5", &["fuse.threads", "1.5"]),
            ("[fuse]\ncontext = \"postgres\"", &["fuse.context", "postgres", "system_u:object_r:"]),
            ("[fuse]\ncontext = \"a:b:c\\\",suid\"", &["fuse.context", "system_u:object_r:"]),
            ("[fuse]\nallow_other = 1", &["fuse.allow_other", "true, false"]),
            ("[placement]\nepoch = \"0s\"", &["placement.epoch", "from 1s"]),
            ("[placement]\nlow_watermark = 0.99", &["placement.low_watermark", "0.99", "0.98"]),
            ("[placement]\nhigh_watermark = 7", &["placement.high_watermark", "from 0.1 to 1"]),
            ("[forecast]\nperiod = \"daily\"", &["forecast.period", "\"daily\"", "from 0s"]),
            ("[forecast]\nenabled = 1", &["forecast.enabled", "1", "true or false"]),
            ("[forecast]\nstagging = true", &["`forecast.stagging`", "`forecast.staging`"]),
        ];
        for (text, wanted) in cases {
            let line = refusal(&format!("{LEAST}\n{text}"), &[]);
            for part in *wanted {
                assert!(line.contains(part), "{line} lacks {part}");
            }
        }
        let line = refusal(&format!("log = 3\n{LEAST}"), &[]);
        assert!(line.contains("log = 3") && line.contains("[log]"), "{line}");
        for (text, bytes) in [("4KiB", 4096), ("8KiB", 8192), ("1MiB", 1 << 20)] {
            let settings = Settings::parse(&format!("block_size = \"{text}\"\n{LEAST}"), &[]).unwrap();
            assert_eq!(settings.block_bytes, bytes, "all that adopt takes is read back");
        }
        let line = refusal(&format!("block_size = \"48KiB\"\n{LEAST}"), &[]);
        assert!(line.contains("block_size = \"48KiB\"") && line.contains("power of two"), "{line}");
        let line = refusal(&format!("log_files = 4\n{LEAST}"), &[]);
        assert!(line.contains("log_files = 4"), "{line}");
        let line = refusal(&format!("{LEAST}colour = 4\n"), &[]);
        assert!(line.contains("`tier.colour`"), "{line}");
        let line = refusal(&format!("{LEAST}reserve = \"80%\"\n"), &[]);
        assert!(line.contains("tier[0].reserve = \"80%\"") && line.contains("50%"), "{line}");
        let line = refusal("name = [", &[]);
        assert!(line.starts_with("settings: ") && line.contains("line 1"), "{line}");
        let line = refusal(LEAST, &[("HEATFS__LOG__SIZE", "some")]);
        assert!(line.contains("the environment: log.size"), "{line}");
        let line = refusal(LEAST, &[("HEATFS__LOG__SYZE", "1GiB")]);
        assert!(line.contains("`log.syze`"), "{line}");
    }

    #[test]
    fn bad_identities_are_named() {
        let least = |from: &str, to: &str| LEAST.replacen(from, to, 1);
        for (text, wanted) in [
            (least("name = \"pg\"", ""), "`name` is not set"),
            (least("name = \"pg\"", "name = \"a/b\""), "name = \"a/b\""),
            (least("mount = \"/nowhere/data\"", ""), "`mount` is not set"),
            (least("\"/nowhere/data\"", "\"data\""), "absolute path"),
            (least("\"/nowhere/data\"", "\"/nowhere/../data\""), "absolute path"),
            (least("\"/nowhere/data\"", "\"/\""), "absolute path"),
            (least("path = \"/nowhere/nvme\"", ""), "`tier[0].path` is not set"),
            (least("\"/nowhere/nvme\"", "\"/nowhere/data\""), "overlaps mount"),
            (least("\"/nowhere/nvme\"", "\"/nowhere/data/nvme\""), "overlaps mount"),
            (least("\"/nowhere/data\"", "\"/nowhere/nvme/data\""), "overlaps mount"),
            (format!("{LEAST}[[tier]]\nname = \"nvme\"\npath = \"/nowhere/sata\""), "tier[0] has this name"),
            (
                format!("{LEAST}[[tier]]\nname = \"sata\"\npath = \"/nowhere/nvme/sata\""),
                "overlaps the path of tier[0]",
            ),
            (tiers(15), "15 tiers"),
            (tiers(0), "0 tiers"),
        ] {
            let line = refusal(&text, &[]);
            assert!(line.contains(wanted), "{line} lacks {wanted}");
        }
        Settings::parse(&least("\"/nowhere/nvme\"", "\"/nowhere/data2\""), &[])
            .expect("a common prefix of names is no overlap");
    }

    /// A tier reached through a symlink is the directory that it points at.
    #[test]
    fn overlap_is_seen_through_symlinks() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let real = dir.path().join("real");
        std::fs::create_dir(&real).expect("mkdir");
        std::os::unix::fs::symlink(&real, dir.path().join("link")).expect("symlink");
        let text = LEAST.replace("/nowhere/nvme", &dir.path().join("link").display().to_string());
        let text = format!("{text}\n[[tier]]\nname = \"sata\"\npath = \"{}/deep\"", real.display());
        assert!(refusal(&text, &[]).contains("overlaps the path of tier[0]"));
    }
}
