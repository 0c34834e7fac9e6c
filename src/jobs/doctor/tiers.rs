//! The tiers: what their filesystems can do, how fast they are, and whether a sync can be as fast as it seems.

use super::{Level, Verdict};
use crate::device::real::{Capabilities, RealDevice};
use crate::device::{AlignedBuf, BackingFile, Device, OpenMode, clock};
use std::io;
use std::path::Path;
use std::time::Duration;

/// What is written to try a tier: more than what a disk's own cache keeps of it.
const PROBE_BYTES: u64 = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Reads and synchronous writes each; the median counts.
const TRIES: u64 = 24;
/// A tier with less is not written to.
const SPACE_TO_TRY_BYTES: u64 = 1 << 30;
const SPACE_SHARE_LOW: f64 = 0.05;
const INODE_SHARE_LOW: f64 = 0.05;
/// A disk of 15,000 turns a minute takes 2 ms for half a turn.
const ROTATING_SYNC_MIN: Duration = Duration::from_millis(1);
/// Reads of pages far apart that are faster come from no platter.
const ROTATING_READ_MIN: Duration = Duration::from_millis(1);
/// No device makes a page durable faster; memory does.
const SYNC_MIN: Duration = Duration::from_micros(3);
/// Two tiers of which the lower one is faster by more than this are in the wrong order.
const ORDER_TOLERANCE: f64 = 1.3;

/// A directory as it was found.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    name: String,
    path: String,
    capabilities: Capabilities,
    rotates: Option<bool>,
    space_bytes: u64,
    available_bytes: u64,
    /// Shares of inodes that are free; None where the filesystem has no limit.
    free_inodes: Option<f64>,
    /// Medians of a read and of a synchronous write of 4 KiB; None where there was no room to try.
    times: Option<Times>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    read: Duration,
    sync: Duration,
}

pub(super) fn measure(name: &str, path: &Path) -> io::Result<Measured> {
    let device = RealDevice::at(path)?;
    let capabilities = device.probe()?;
    let space = device.space()?;
    let inodes = nix::sys::statvfs::statvfs(path)?;
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let free_inodes = (inodes.files() > 0).then(|| inodes.files_available() as f64 / inodes.files() as f64);
    let times = match space.available_bytes >= SPACE_TO_TRY_BYTES {
        true => Some(try_speed(&device)?),
        false => None,
    };
    Ok(Measured {
        name: name.to_owned(),
        path: path.display().to_string(),
        rotates: super::host::rotates(capabilities.fs_device),
        capabilities,
        space_bytes: space.total_bytes,
        available_bytes: space.available_bytes,
        free_inodes,
        times,
    })
}

fn try_speed(device: &RealDevice) -> io::Result<Times> {
    let name = format!(".heatfs-doctor-{}", std::process::id());
    let mode = OpenMode { create: true, direct: true, dsync: true, ..OpenMode::default() };
    let plain = device.open(&name, OpenMode { dsync: false, ..mode });
    let times = plain.and_then(|file| {
        fill(file.as_ref())?;
        // Pages far apart, each once, in an order that no read-ahead guesses.
        let places: Vec<u64> =
            (0..TRIES).map(|n| (n * 7919 + 13) % (PROBE_BYTES / PAGE_BYTES as u64) * PAGE_BYTES as u64).collect();
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        let read = median(&places, |place| file.read_at(&mut page, place).map(drop))?;
        let synced = device.open(&name, mode)?;
        let page = AlignedBuf::zeroed(PAGE_BYTES);
        let sync = median(&places, |place| synced.write_all_at(&page, place))?;
        Ok(Times { read, sync })
    });
    device.remove_file(&name)?;
    times
}

/// Written, not only allocated: what was never written is read without asking the disk.
fn fill(file: &dyn BackingFile) -> io::Result<()> {
    let mut piece = AlignedBuf::zeroed(PIECE_BYTES);
    piece.fill(0xa5);
    for at in (0..PROBE_BYTES).step_by(PIECE_BYTES) {
        file.write_all_at(&piece, at)?;
    }
    file.sync_data()
}

fn median(places: &[u64], mut call: impl FnMut(u64) -> io::Result<()>) -> io::Result<Duration> {
    let mut took = Vec::with_capacity(places.len());
    for place in places {
        let began = clock::monotonic_now();
        call(*place)?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}

/// The tiers, fastest first by what the user says.
pub(super) fn judge(tiers: &[Measured]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (index, tier) in tiers.iter().enumerate() {
        filesystem(tier, index == 0, &mut verdicts);
        room(tier, &mut verdicts);
        speed(tier, &mut verdicts);
        if let Some(twin) =
            tiers[..index].iter().find(|other| other.capabilities.fs_device == tier.capabilities.fs_device)
        {
            verdicts.push(Verdict::warn(
                &subject(tier),
                format!("is on the same filesystem as tier {}", twin.name),
                "two tiers on one device bring nothing: each should have a device of its own",
            ));
        }
    }
    order(tiers, &mut verdicts);
    verdicts
}

fn subject(tier: &Measured) -> String {
    format!("tier {}", tier.name)
}

fn filesystem(tier: &Measured, is_fastest: bool, verdicts: &mut Vec<Verdict>) {
    let can = &tier.capabilities;
    let before = verdicts.len();
    let kind = format!("{} at {}", can.fs_type, tier.path);
    let mut complain = |level, found: &str, advice: &str| {
        verdicts.push(Verdict { level, ..Verdict::warn(&subject(tier), format!("{kind}: {found}"), advice) });
    };
    if ["nfs", "fuse", "overlay"].contains(&can.fs_type.as_str()) {
        complain(
            Level::Fail,
            "no local filesystem",
            "use ext4 or xfs on a local device: what a sync means here is not known",
        );
    }
    if can.fs_type == "tmpfs" {
        complain(Level::Fail, "memory", "nothing here survives a restart: use ext4 or xfs on a device");
    }
    if !can.punch {
        complain(Level::Fail, "holes cannot be punched", "use ext4 or xfs: what is moved away would keep its space");
    }
    if is_fastest && !can.user_xattr {
        complain(
            Level::Fail,
            "no user attributes",
            "mount it with user_xattr, or use ext4 or xfs: files carry their ids there",
        );
    }
    if !can.direct_io {
        complain(Level::Warn, "no direct I/O", "log and blocks go through the page cache, which costs memory and time");
    }
    if !can.allocate {
        complain(Level::Warn, "space cannot be allocated ahead", "keep more of it free: promised room is only counted");
    }
    if verdicts.len() == before {
        verdicts.push(Verdict::ok(&subject(tier), format!("{kind}: attributes, holes, direct I/O")));
    }
}

#[expect(clippy::cast_precision_loss, reason = "shares")]
fn room(tier: &Measured, verdicts: &mut Vec<Verdict>) {
    let free = tier.available_bytes as f64 / (tier.space_bytes.max(1)) as f64;
    let shown = format!("{:.0} % of {} GiB free", free * 100.0, tier.space_bytes >> 30);
    verdicts.push(match free < SPACE_SHARE_LOW || tier.times.is_none() {
        true => Verdict::warn(
            &subject(tier),
            shown,
            "make room, or give the tier a budget: a full filesystem ends in \"no space\"",
        ),
        false => Verdict::ok(&subject(tier), shown),
    });
    if let Some(share) = tier.free_inodes.filter(|share| *share < INODE_SHARE_LOW) {
        let found = format!("{:.1} % of its inodes free", share * 100.0);
        verdicts.push(Verdict::warn(&subject(tier), found, "each file takes one on every tier that it has blocks on"));
    }
}

fn speed(tier: &Measured, verdicts: &mut Vec<Verdict>) {
    let Some(Times { read, sync }) = tier.times else { return };
    // Virtual disks often say that they rotate, and read as nothing that does.
    let rotates = tier.rotates == Some(true) && read > ROTATING_READ_MIN;
    let kind = match tier.rotates {
        Some(true) if !rotates => "said to be rotating, reads as if it were not",
        Some(true) => "rotating",
        Some(false) => "not rotating",
        None => "of unknown kind",
    };
    let found = format!("{kind}; a page is read in {} us, made durable in {} us", read.as_micros(), sync.as_micros());
    verdicts.push(if rotates && sync < ROTATING_SYNC_MIN {
        let advice = "no disk is that fast: a cache answers before the data are durable. Right with a battery behind it; else switch \
                      it off (hdparm -W0), or a power cut loses what was acknowledged";
        Verdict::warn(&subject(tier), found, advice)
    } else if sync < SYNC_MIN {
        Verdict::warn(&subject(tier), found, "no device is that fast: something acknowledges what it has not written")
    } else {
        Verdict::ok(&subject(tier), found)
    });
}

fn order(tiers: &[Measured], verdicts: &mut Vec<Verdict>) {
    let mut well = true;
    for pair in tiers.windows(2) {
        let [upper, lower] = pair else { continue };
        let (Some(above), Some(below)) = (upper.times, lower.times) else { continue };
        if above.read.as_secs_f64() > below.read.as_secs_f64() * ORDER_TOLERANCE {
            well = false;
            let found = format!("tier {} reads slower than {} below it", upper.name, lower.name);
            verdicts.push(Verdict::warn(
                "order",
                found,
                "list tiers fastest first, and measure again on an idle machine",
            ));
        }
    }
    let log = tiers.first().and_then(|tier| tier.times);
    for tier in tiers.iter().skip(1) {
        let (Some(log), Some(times)) = (log, tier.times) else { continue };
        if log.sync.as_secs_f64() > times.sync.as_secs_f64() * ORDER_TOLERANCE {
            well = false;
            let found = format!("tier {} syncs faster than the first, which has the log", tier.name);
            verdicts.push(Verdict::warn(
                "order",
                found,
                "every commit waits for the log: put the fastest to sync first",
            ));
        }
    }
    if well && tiers.len() > 1 {
        verdicts.push(Verdict::ok("order", "the tiers are named fastest first"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &str, device: u64, read_us: u64, sync_us: u64) -> Measured {
        Measured {
            name: name.to_owned(),
            path: format!("/{name}"),
            capabilities: Capabilities {
                direct_io: true,
                punch: true,
                allocate: true,
                user_xattr: true,
                fs_type: "ext4".to_owned(),
                fs_device: device,
            },
            rotates: Some(name == "hdd"),
            space_bytes: 100 << 30,
            available_bytes: 50 << 30,
            free_inodes: Some(0.9),
            times: Some(Times { read: Duration::from_micros(read_us), sync: Duration::from_micros(sync_us) }),
        }
    }

    /// The complaints, as their level and what was found.
    fn complaints(tiers: &[Measured]) -> Vec<(Level, String)> {
        let verdicts = judge(tiers).into_iter().filter(|verdict| verdict.level != Level::Ok);
        verdicts
            .inspect(|verdict| assert!(!verdict.advice.is_empty()))
            .map(|verdict| (verdict.level, verdict.found))
            .collect()
    }

    fn complaint(tiers: &[Measured], level: Level, words: &str) {
        let found = complaints(tiers);
        assert!(found.len() == 1 && found[0].0 == level && found[0].1.contains(words), "{words}: {found:?}");
    }

    #[test]
    fn each_fault_is_told_and_nothing_else() {
        let good = [tier("nvme", 1, 80, 100), tier("sata", 2, 200, 500), tier("hdd", 3, 8000, 9000)];
        assert_eq!(complaints(&good), vec![]);
        let with = |change: &dyn Fn(&mut Vec<Measured>)| {
            let mut tiers = good.to_vec();
            change(&mut tiers);
            tiers
        };
        complaint(&with(&|tiers| tiers[1].capabilities.fs_device = 1), Level::Warn, "same filesystem as tier nvme");
        complaint(&with(&|tiers| tiers[2].capabilities.punch = false), Level::Fail, "holes");
        complaint(&with(&|tiers| tiers[0].capabilities.user_xattr = false), Level::Fail, "attributes");
        assert_eq!(
            complaints(&with(&|tiers| tiers[1].capabilities.user_xattr = false)),
            vec![],
            "only files of home have ids"
        );
        complaint(&with(&|tiers| tiers[0].capabilities.direct_io = false), Level::Warn, "direct");
        complaint(&with(&|tiers| tiers[0].capabilities.allocate = false), Level::Warn, "allocated");
        complaint(&with(&|tiers| tiers[1].capabilities.fs_type = "nfs".to_owned()), Level::Fail, "nfs");
        complaint(&with(&|tiers| tiers[0].capabilities.fs_type = "tmpfs".to_owned()), Level::Fail, "memory");
        complaint(&with(&|tiers| tiers[2].available_bytes = 1 << 30), Level::Warn, "1 % of 100 GiB");
        complaint(&with(&|tiers| tiers[1].free_inodes = Some(0.01)), Level::Warn, "inodes");
        complaint(&with(&|tiers| tiers[2] = tier("hdd", 3, 8000, 600)), Level::Warn, "made durable in 600 us");
        assert_eq!(complaints(&with(&|tiers| tiers[2] = tier("hdd", 3, 300, 600))), vec![], "a virtual disk");
        complaint(&with(&|tiers| tiers[0] = tier("nvme", 1, 80, 1)), Level::Warn, "made durable in 1 us");
        complaint(&with(&|tiers| tiers[0] = tier("nvme", 1, 300, 100)), Level::Warn, "nvme reads slower than sata");
        complaint(&with(&|tiers| tiers[0] = tier("nvme", 1, 80, 900)), Level::Warn, "sata syncs faster");
    }

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let found = measure("here", dir.path()).expect("measured");
        assert!(found.capabilities.punch && found.available_bytes > 0);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
        assert!(measure("none", &dir.path().join("none")).is_err());
    }
}
