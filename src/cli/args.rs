//! The command line's grammar. The texts here are the help and the man pages.

use super::decisions::{BudgetChange, budget_change};
use crate::daemon::quantity::{parse_bytes, parse_span};
use crate::jobs::dump::TARGETS;
use crate::jobs::replay::Policy;
use crate::repository::Retention;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

/// A tiering filesystem beneath a database's data directory.
///
/// A volume is one directory served by one daemon from several tiers, fastest first. `adopt` takes a directory over, `daemon` serves it, `release`
/// gives it back as plain files.
#[derive(Debug, Parser)]
#[command(name = "heatfs", version, max_term_width = 100, propagate_version = true, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) volume: Choice,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which volume is meant.
#[derive(Debug, Args)]
pub(super) struct Choice {
    /// The volume's settings file [default: the only file in /etc/heatfs].
    #[arg(long, short, global = true, env = "HEATFS_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The daemon's control socket, instead of the one that the settings name.
    #[arg(long, global = true, env = "HEATFS_SOCKET", value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Take over a directory: its files move onto the tiers, and its path becomes the mountpoint.
    ///
    /// The server that uses the directory must be stopped. Files are moved by renaming: nothing is copied on the tier that
    /// shares the directory's filesystem. An interrupted adoption is finished by the same command.
    Adopt(Adopt),
    /// Serve a volume in the foreground, until SIGTERM or `heatfs stop`.
    Daemon(Daemon),
    /// Stop the daemon: flush, checkpoint, unmount. While the mount is busy it keeps serving.
    Stop {
        /// Detach the mount even while processes use it.
        #[arg(long)]
        force: bool,
        /// Do not wait until it has stopped.
        #[arg(long)]
        no_wait: bool,
    },
    /// Health, occupancy, log and counters. Exit code 0: healthy; 1: not, or no daemon.
    Status,
    /// The tiers: what they hold and have room for.
    Tiers,
    /// Rates, latencies and hit shares, live.
    Top {
        /// Print one interval and end.
        #[arg(long)]
        once: bool,
        /// Seconds between two lines.
        #[arg(long, default_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
        interval: u64,
    },
    /// A map of what is hot; PostgreSQL's files by the names of their relations.
    Heat {
        /// A file or directory on the mount; without it the whole volume.
        path: Option<PathBuf>,
        /// Show at most so many files, hottest first.
        #[arg(long, value_name = "N")]
        files: Option<usize>,
    },
    /// Where a block is and why: heat, rule, room, what it displaced, when it is looked at again.
    Explain {
        /// A file on the mount, optionally with a byte offset: PATH:OFFSET (sizes like 8MiB are allowed).
        #[arg(value_name = "PATH[:OFFSET]")]
        place: String,
    },
    /// What was moved lately and why, newest first.
    Why {
        /// A file or directory on the mount; without it the whole volume.
        path: Option<PathBuf>,
        /// Show at most so many decisions.
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
    /// What the next plan would move and why; nothing is moved.
    Plan {
        /// Show at most so many moves, those that save most first.
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
    /// What other budgets would give, by the heat recorded so far.
    Whatif {
        /// A tier's budget to imagine, absolute or changed by +SIZE or -SIZE; repeat for each.
        #[arg(long = "tier", required = true, value_name = "NAME=[+-]SIZE", value_parser = budget_change)]
        tiers: Vec<BudgetChange>,
    },
    /// Write a page for a browser: heat over time, tiers, reads served by each, decisions. It needs no network.
    Report {
        /// The file to write.
        #[arg(long, required = true, value_name = "FILE")]
        html: PathBuf,
    },
    /// Keep a file or a directory's files on a tier.
    Pin {
        path: PathBuf,
        /// The tier; without it the fastest.
        #[arg(long, value_name = "NAME")]
        tier: Option<String>,
    },
    /// Let heat decide again about a file or a directory's files.
    Unpin { path: PathBuf },
    /// Apply all records of the log to the tiers.
    Settle,
    /// Make everything durable on the tiers now, and shorten the next start.
    Checkpoint,
    /// Give the directory back as plain files at its old path. The daemon must be stopped.
    ///
    /// An interrupted release is finished by the same command.
    Release(Release),
    /// Check every structure: of a running volume through its daemon, else on disk.
    Check {
        /// Also read every block and every record, and verify what has a checksum. What a running volume cannot read on a tier,
        /// and has on another one or unchanged in its last snapshot, is written again.
        #[arg(long)]
        deep: bool,
    },
    /// Look for what would hurt later: FUSE, kernel, limits, clock; the tiers' filesystems, speed, order, room, and syncs too fast to be true.
    ///
    /// Writes 64 MiB to each tier for a moment. Exit code 1 when something does not work or is not safe.
    Doctor {
        /// A directory that is to become a tier, fastest first; repeat for each [default: those of the settings, if there are any].
        #[arg(long = "tier", value_name = "NAME=PATH", value_parser = named_path)]
        tiers: Vec<(String, PathBuf)>,
    },
    /// Print an on-disk object readably, as JSON. The daemon must be stopped for most.
    Dump {
        #[arg(help = format!("What to print: {TARGETS}"))]
        what: String,
    },
    /// What happened to the volume: snapshots, health, prunes, findings.
    Events {
        /// Go on with what happens from now on, until the daemon ends.
        #[arg(long, short)]
        follow: bool,
    },
    /// Take snapshots of the running volume, and look at those in the repository.
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Bring a snapshot, or a part of it, back as plain files in an empty directory; or, in place, only what differs.
    ///
    /// In place nobody may use the directory, and the database must be stopped. PostgreSQL's control file comes back last: a server does not start on what was
    /// cut off, and the same command goes on.
    Restore(Restore),
    /// Make a volume of a snapshot, to be written to, at once: its blocks stay in the repository until they are read, written or brought to the tiers.
    ///
    /// Only names are made; `heatfs daemon` serves the volume, and brings everything to the tiers in the background. Until that is done the repository is needed,
    /// and the snapshot cannot be deleted there. An interrupted clone is made anew by the same command.
    Clone(Clone),
    /// Turn the volume back to a snapshot, at once; then confirm or undo that. The daemon must be stopped.
    ///
    /// Only names are made: the snapshot's blocks stay in the repository until they are read, written or brought to the tiers, as those of a clone do, and the tiers
    /// need room for all of them beside what the volume holds. What the volume was before is kept until `--confirm`. If it is cut off, the volume is either
    /// what it was or rolled back.
    Rollback(Rollback),
    /// Show a snapshot at a directory, to be read, in the foreground until SIGTERM, Ctrl-C or `umount`.
    ///
    /// Nothing is copied: what is read comes from the repository and is checked. Neither the volume nor its daemon is needed. A snapshot that
    /// is deleted and pruned while it is shown can no longer be read.
    Mount(Mount),
    /// What `mount -t heatfs SOURCE DIR` runs: starts a daemon in the background and returns when the volume is mounted.
    ///
    /// The same program does this when it is called `mount.heatfs`. `umount` is a clean stop.
    MountHelper(MountHelper),
    /// The repository that snapshots are kept in.
    Repo(Repo),
    /// Replay a trace of accesses against simulated tiers: what would each way of placing blocks have hit?
    Replay(Replay),
    /// Predict heat for another program, line by line on standard input and output.
    Predict {
        /// Read from standard input, answer on standard output.
        #[arg(long, required = true)]
        stdio: bool,
    },
    /// Record what is done with the volume's files.
    #[command(subcommand)]
    Trace(Trace),
    /// Print the completion script of a shell.
    Completions { shell: Shell },
    /// Write the man pages into a directory.
    Man { dir: PathBuf },
}

#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// What /proc/mounts shows as the mount's source [default: heatfs:NAME].
    #[arg(long, value_name = "SOURCE", value_parser = mount_source)]
    pub(super) source: Option<String>,
    /// Nothing on the mount may be executed.
    #[arg(long)]
    pub(super) noexec: bool,
    /// In a session of its own, apart from the terminal that started it.
    #[arg(long, hide = true)]
    pub(super) detached: bool,
}

/// As mount(8) calls its helpers: SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE].
#[derive(Debug, Args)]
pub(super) struct MountHelper {
    /// The volume's settings file, or its name: of /etc/heatfs/NAME.toml.
    #[arg(value_parser = mount_source)]
    pub(super) source: String,
    /// Where the settings say that the volume is mounted.
    pub(super) dir: PathBuf,
    /// Options of fstab, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub(super) options: Vec<String>,
    /// Only check what would be done.
    #[arg(short = 'f')]
    pub(super) fake: bool,
    /// Ignore options that are not known.
    #[arg(short = 's')]
    pub(super) sloppy: bool,
    /// Accepted: there is no table beside the kernel's.
    #[arg(short = 'n')]
    pub(super) no_table: bool,
    /// Accepted.
    #[arg(short = 'v')]
    pub(super) verbose: bool,
    /// Must be heatfs, or fuse.heatfs.
    #[arg(short = 't', value_name = "TYPE", value_parser = ["heatfs", "fuse.heatfs"])]
    pub(super) kind: Option<String>,
}

/// What a volume about to be made is to be.
#[derive(Debug, Args)]
pub(super) struct NewVolume {
    /// A tier, fastest first; repeat for each.
    #[arg(long = "tier", required = true, value_name = "NAME=PATH", value_parser = named_path)]
    pub(super) tiers: Vec<(String, PathBuf)>,
    /// The volume's name [default: the directory's].
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Where the settings file is written [default: /etc/heatfs/NAME.toml].
    #[arg(long, value_name = "FILE")]
    pub(super) config_out: Option<PathBuf>,
    /// Unit of placement, a power of two from 4KiB to 1MiB, fixed from now on.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_bytes)]
    pub(super) block_size: u64,
    /// Upper limit of what is stored on a tier; repeat for each.
    #[arg(long = "budget", value_name = "NAME=SIZE", value_parser = named_size)]
    pub(super) budgets: Vec<(String, u64)>,
}

#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// The directory to adopt.
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) volume: NewVolume,
    /// The tier that keeps names and attributes: the fastest, which is the default.
    #[arg(long, value_name = "NAME")]
    pub(super) home: Option<String>,
    /// The tier that the files come to lie on, on the directory's own filesystem [default: the fastest such tier that they fit].
    #[arg(long, value_name = "NAME")]
    pub(super) origin: Option<String>,
    /// Size of the write log on the fastest tier, fixed from now on.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_bytes)]
    pub(super) log_size: u64,
    /// Size of the log's segments, fixed from now on.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub(super) segment_size: u64,
}

#[derive(Debug, Args)]
pub(super) struct Release {
    /// Where the files go, if not to the directory that they were adopted from.
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    /// The tier to gather the files on, on the directory's own filesystem [default: the one they came from].
    #[arg(long, value_name = "NAME")]
    pub(super) origin: Option<String>,
    /// Go on in spite of files that cannot be trusted; they are given back as home has them.
    #[arg(long)]
    pub(super) accept_untrusted: bool,
}

/// Which repository is meant.
#[derive(Debug, Args)]
pub(super) struct Storage {
    /// The repository's directory [default: the one in the volume's settings].
    #[arg(long, value_name = "DIR")]
    pub(super) repository: Option<PathBuf>,
    /// The file with the key of an encrypted repository.
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Take a snapshot of the whole volume as it is at this instant, and wait until it is in the repository.
    ///
    /// The database may go on writing. What comes back is what a power cut at that instant would have left, on which it
    /// recovers by itself. Only pages that changed since the last snapshot are read and stored.
    Create {
        /// A label to find it by; repeat for each.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// All snapshots, oldest first.
    List {
        #[command(flatten)]
        storage: Storage,
    },
    /// What came, went and changed between two snapshots, and how many bytes of pages.
    Diff {
        before: String,
        /// The later one.
        #[arg(default_value = "latest")]
        after: String,
        #[command(flatten)]
        storage: Storage,
    },
    /// Keep a snapshot, whatever the rules of `prune` say.
    Pin {
        #[arg(value_name = "SNAPSHOT")]
        id: String,
        /// What `unpin` calls it by.
        #[arg(long)]
        name: Option<String>,
        /// Why.
        #[arg(long, default_value = "")]
        note: String,
        #[command(flatten)]
        storage: Storage,
    },
    /// Take a pin away.
    Unpin {
        name: String,
        /// Also what a clone, or a volume that was rolled back, holds its snapshot by: what it has not brought to its tiers is lost to it with the next prune.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        storage: Storage,
    },
    /// Delete snapshots; `prune` gives their space back.
    Delete {
        #[arg(value_name = "SNAPSHOT", required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        storage: Storage,
    },
    /// Delete snapshots that no rule keeps, if there are rules, and free what no snapshot uses.
    ///
    /// A snapshot is kept if any of the rules or a pin wants it. May run while snapshots are taken, and again after it was interrupted.
    Prune {
        #[command(flatten)]
        keep: KeepRules,
        /// Only tell what would be deleted and freed.
        #[arg(long, short = 'n')]
        dry_run: bool,
        #[command(flatten)]
        storage: Storage,
    },
    /// Read what is stored and check every byte of it. Exit code 1 when something is damaged.
    Verify {
        /// Read at most so much, what was verified longest ago first.
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        budget: Option<u64>,
        /// Only one in so many packs.
        #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
        one_in: u32,
        #[command(flatten)]
        storage: Storage,
    },
    /// When the next snapshots are due, how the last ones went, and what the volume's rules would delete and free now.
    Schedule {
        #[command(flatten)]
        storage: Storage,
    },
    /// One snapshot.
    Show {
        /// Its name, the beginning of it, or `latest`.
        #[arg(value_name = "SNAPSHOT")]
        id: String,
        #[command(flatten)]
        storage: Storage,
    },
}

/// How many snapshots of each kind stay: the newest of each hour, day, ... (UTC) that has one. None given: all stay.
#[derive(Debug, Args)]
pub(super) struct KeepRules {
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_last: u32,
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_hourly: u32,
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_daily: u32,
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_weekly: u32,
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_monthly: u32,
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) keep_yearly: u32,
}

impl KeepRules {
    pub(super) fn retention(&self) -> Retention {
        Retention {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// Its name, the beginning of it, or `latest`.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) id: String,
    /// An empty directory, or one that does not exist yet.
    pub(super) dir: PathBuf,
    /// Make an existing directory what the snapshot holds: pages that differ are written, names that are missing made, attributes set.
    #[arg(long, conflicts_with = "path")]
    pub(super) in_place: bool,
    /// With --in-place: remove what the snapshot does not have. Without, it is left and listed.
    #[arg(long, requires = "in_place")]
    pub(super) delete: bool,
    /// With --in-place: only tell what would be done.
    #[arg(long, short = 'n', requires = "in_place")]
    pub(super) dry_run: bool,
    /// Only this file, or this directory with everything in it: a path within the snapshot.
    #[arg(long, value_name = "PATH")]
    pub(super) path: Option<String>,
    /// Also write PostgreSQL's `backup_label`, if the snapshot was taken in backup mode (`snapshot.postgresql` in the settings).
    ///
    /// For recovery to a later moment, or a standby: with the label the server starts from the backup's own checkpoint and needs WAL from an archive or
    /// a primary (`restore_command`, `primary_conninfo`), at least up to where the backup ended. Without it the server recovers on
    /// what is in the snapshot, as after a power cut, and needs nothing else.
    #[arg(long, conflicts_with = "path")]
    pub(super) backup_label: bool,
    /// Files restored at once.
    #[arg(long, value_name = "N", default_value = "4", value_parser = streams)]
    pub(super) streams: usize,
    #[command(flatten)]
    pub(super) storage: Storage,
}

#[derive(Debug, Args)]
pub(super) struct Clone {
    /// Its name, the beginning of it, or `latest`.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) id: String,
    /// Where it will be mounted: an empty directory, or one that does not exist yet.
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) volume: NewVolume,
    /// Size of the write log on the fastest tier, fixed from now on. All of it is written first: what makes a clone slow is a large one.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    pub(super) log_size: u64,
    /// Size of the log's segments, fixed from now on.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_bytes)]
    pub(super) segment_size: u64,
    #[command(flatten)]
    pub(super) storage: Storage,
}

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// A snapshot of this volume: its name, the beginning of it, or `latest`.
    #[arg(value_name = "SNAPSHOT", required_unless_present_any = ["confirm", "undo"], conflicts_with_all = ["confirm", "undo"])]
    pub(super) id: Option<String>,
    /// Stay with the snapshot that the volume was rolled back to: what it was before is removed.
    #[arg(long, conflicts_with = "undo")]
    pub(super) confirm: bool,
    /// Become again what the volume was before it was rolled back: what was written since is removed.
    #[arg(long)]
    pub(super) undo: bool,
    #[command(flatten)]
    pub(super) storage: Storage,
}

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// Its name, the beginning of it, or `latest`.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) id: String,
    /// An empty directory.
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) storage: Storage,
}

#[derive(Debug, Args)]
pub(super) struct Repo {
    #[command(subcommand)]
    pub(super) command: RepoCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum RepoCommand {
    /// Make a repository of an empty directory.
    Init {
        dir: PathBuf,
        /// Encrypt everything in it with the key in this file. Without the file nothing can be restored.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Read everything and check every byte. Exit code 1 when something is damaged.
    Check {
        #[command(flatten)]
        storage: Storage,
    },
    /// Store again what is lost, where its bytes are still to be found: in the volume's files, or in another repository that snapshots were copied to.
    ///
    /// Reads everything, as `check` does. Exit code 1 when something stays lost.
    Repair {
        /// Another repository, with copies of snapshots.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        #[arg(long, value_name = "FILE", requires = "from")]
        from_key_file: Option<PathBuf>,
        /// A directory with the volume's files, for example a restored snapshot [default: where the volume is mounted].
        #[arg(long, value_name = "DIR")]
        live: Option<PathBuf>,
        #[command(flatten)]
        storage: Storage,
    },
    /// Copy a snapshot to another repository; what the other has of an earlier one is not copied again.
    Copy {
        #[arg(value_name = "SNAPSHOT")]
        id: String,
        /// The other repository's directory.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        #[arg(long, value_name = "FILE")]
        to_key_file: Option<PathBuf>,
        #[command(flatten)]
        storage: Storage,
    },
    /// How much it holds.
    Stats {
        #[command(flatten)]
        storage: Storage,
    },
    /// Move to another directory what only old snapshots use. It is read from there when somebody wants it.
    Archive(Archive),
}

#[derive(Debug, Args)]
pub(super) struct Archive {
    /// The archive's directory: an empty one, or where the archive is now after it was moved. Needed the first time.
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    /// Age of the snapshots that are old: with a unit, such as 90d.
    #[arg(long, value_name = "SPAN", default_value = "30d", value_parser = parse_span)]
    pub(super) older_than: Duration,
    /// Only tell what would go.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) storage: Storage,
}

#[derive(Debug, Subcommand)]
pub(super) enum Trace {
    /// Write a trace that `replay` reads: reads that missed the page cache, writes, syncs and truncations, without any content.
    ///
    /// Beside FILE.csv comes FILE.files.csv with the paths of the files.
    Record {
        /// The file to write, NAME.csv or NAME.csv.gz.
        file: PathBuf,
        /// End after so many seconds.
        #[arg(long, default_value = "60", value_parser = clap::value_parser!(u64).range(1..=604_800), value_name = "SECONDS")]
        seconds: u64,
        /// End after so many records.
        #[arg(long, default_value = "10000000", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), value_name = "N")]
        records: u64,
    },
}

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// CSV, plain or gzip, with the header ts_ms,op,file,offset,len.
    pub(super) trace: PathBuf,
    /// Sizes of the fastest tier, in percent of the blocks that the trace touches.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "5,10,20", value_parser = percent)]
    pub(super) fast: Vec<f64>,
    /// Policies to compare [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = |text: &str| text.parse::<Policy>())]
    pub(super) policy: Vec<Policy>,
    /// Seed of all that is random.
    #[arg(long, default_value = "1")]
    pub(super) seed: u64,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => Err("a percentage above 0 and up to 100 is wanted".to_owned()),
    }
}

fn label(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is wanted".to_owned()),
    }
}

fn streams(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=64).contains(count))
        .ok_or_else(|| "a number from 1 to 64 is wanted".to_owned())
}

/// Commas separate mount options.
fn mount_source(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(',') {
        false => Ok(text.to_owned()),
        true => Err("a name or path without commas is wanted".to_owned()),
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), PathBuf::from(path))),
        _ => Err("NAME=PATH is wanted, such as nvme=/nvme/heatfs".to_owned()),
    }
}

fn named_size(text: &str) -> Result<(String, u64), String> {
    match text.split_once('=') {
        Some((name, size)) if !name.is_empty() => Ok((name.to_owned(), parse_bytes(size)?)),
        _ => Err("NAME=SIZE is wanted, such as nvme=100GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn grammar_is_sound() {
        Cli::command().debug_assert();
    }
}
