//! A backing directory on a real filesystem.
//!
//! Every call goes through descriptors held since the device was opened, so that a filesystem mounted over the path
//! later, or a renamed parent, never diverts a write. Two are held: one that only names the directory, and one opened for
//! reading, since `syncfs` refuses the former and reports write-back errors only since its own descriptor was opened (R8).

use super::witness::Witness;
use super::{AlignedBuf, BackingFile, Device, OpenMode, Space, path, sys};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// O_DIRECT needs this alignment on every filesystem and disk that we know of.
const DIRECT_ALIGN: usize = 4096;

/// One directory of a mounted filesystem.
pub struct RealDevice {
    path: String,
    /// O_PATH: what names are resolved against.
    dir: OwnedFd,
    /// What syncfs and statvfs are asked on.
    sync: OwnedFd,
    /// Asked after calls that may say yes for nothing; made when first needed.
    witness: OnceLock<Witness>,
}

/// What a backing filesystem offers, found by trying it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Reads and writes can bypass the page cache.
    pub direct_io: bool,
    /// Holes can be punched.
    pub punch: bool,
    /// Space can be reserved before it is written.
    pub allocate: bool,
    /// Files can carry `user.` attributes.
    pub user_xattr: bool,
    /// Name of the kind of filesystem, or its magic number in hex.
    pub fs_type: String,
    /// `st_dev`: equal for two directories between which a rename is possible.
    pub fs_device: u64,
}

impl RealDevice {
    /// Opens an existing directory as a device.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Arc<dyn Device>> {
        Ok(Arc::new(RealDevice::at(path)?))
    }

    /// As [`RealDevice::open`], for callers that also want to [`RealDevice::probe`] it.
    pub fn at(path: impl AsRef<Path>) -> io::Result<RealDevice> {
        RealDevice::named(&path, &path)
    }

    /// As [`RealDevice::at`], and told of by another path than the one that leads there.
    pub fn named(path: impl AsRef<Path>, shown: impl AsRef<Path>) -> io::Result<RealDevice> {
        let (path, shown) = (path.as_ref(), shown.as_ref());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags | OFlag::O_PATH, Mode::empty())?;
        let sync = nix::fcntl::openat(&dir, ".", flags | OFlag::O_RDONLY, Mode::empty())?;
        Ok(RealDevice { path: shown.to_string_lossy().into_owned(), dir, sync, witness: OnceLock::new() })
    }

    /// Finds out what the backing filesystem can do, with a temporary file of two pages.
    pub fn probe(&self) -> io::Result<Capabilities> {
        let name = format!(".heatfs-probe-{}", std::process::id());
        let _ = self.remove_file(&name);
        let mode = OpenMode { create: true, direct: true, ..OpenMode::default() };
        let file = self.open_real(&name, mode)?;
        let user_xattr = sys::set_xattr(file.file.as_fd(), c"user.heatfs.probe", b"1");
        self.remove_file(&name)?;
        let mut pages = AlignedBuf::zeroed(2 * DIRECT_ALIGN);
        pages.fill(1);
        let direct_io = file.direct && supported(file.write_all_at(&pages, 0))?;
        if !direct_io {
            nix::fcntl::fcntl(&file.file, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()))?;
            file.write_all_at(&pages, 0)?;
        }
        let punch = supported(file.punch(0, DIRECT_ALIGN as u64))?;
        let allocate = supported(file.allocate(0, 4 * DIRECT_ALIGN as u64))?;
        Ok(Capabilities {
            direct_io,
            punch,
            allocate,
            user_xattr: supported(user_xattr)?,
            fs_type: fs_type_name(nix::sys::statfs::fstatfs(&self.sync)?.filesystem_type().0),
            fs_device: nix::sys::stat::fstat(&self.sync)?.st_dev,
        })
    }

    /// Flushes the disk, and finds out whether what came before counts.
    fn ask_witness(&self) -> io::Result<()> {
        if self.witness.get().is_none() {
            match Witness::of(&self.dir) {
                // Another thread's will do as well.
                Ok(made) => drop(self.witness.set(made)),
                Err(Errno::EIO) => return Err(Errno::EIO.into()),
                // Where there can be none (nothing may be written here, or a filesystem that is no tier's) there is nothing to ask.
                Err(_) => return Ok(()),
            }
        }
        Ok(self.witness.get().map_or(Ok(()), Witness::ask)?)
    }

    fn open_real(&self, path: &str, mode: OpenMode) -> io::Result<RealFile> {
        path::check(path)?;
        let access = if mode.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        let mut flags = access | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOATIME;
        flags.set(OFlag::O_CREAT, mode.create);
        flags.set(OFlag::O_EXCL, mode.create && mode.exclusive);
        flags.set(OFlag::O_DIRECT, mode.direct);
        flags.set(OFlag::O_DSYNC, mode.dsync);
        loop {
            let without = match nix::fcntl::openat(&self.dir, path, flags, Mode::from_bits_truncate(0o600)) {
                Ok(fd) => {
                    return Ok(RealFile { file: File::from(fd), direct: flags.contains(OFlag::O_DIRECT) });
                }
                Err(Errno::EINTR) => OFlag::empty(),
                // This filesystem has no direct I/O.
                Err(Errno::EINVAL) if flags.contains(OFlag::O_DIRECT) => OFlag::O_DIRECT,
                // Only the owner and root may leave access times alone.
                Err(Errno::EPERM) if flags.contains(OFlag::O_NOATIME) => OFlag::O_NOATIME,
                Err(errno) => return Err(errno.into()),
            };
            flags.remove(without);
            if !without.is_empty() {
                // A name that was there before is reported before either of those errors; but the file may have
                // been created by the attempt that failed, and must not be in the way of the next one.
                flags.remove(OFlag::O_EXCL);
            }
        }
    }

    /// A directory opened for reading; the empty path is the device itself.
    fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        path::check_dir(path)?;
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        uninterrupted(|| nix::fcntl::openat(&self.dir, path, flags, Mode::empty()))
    }
}

impl Device for RealDevice {
    fn path(&self) -> String {
        self.path.clone()
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        Ok(Arc::new(self.open_real(path, mode)?))
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        path::check_dir(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.filter(|&end| end > 0) {
            match nix::sys::stat::mkdirat(&self.dir, &path[..end], Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // What was there already may be no directory.
        self.open_dir(path).map(drop)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        path::check(from)?;
        path::check(to)?;
        Ok(nix::fcntl::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<()> {
        path::check(from)?;
        path::check(to)?;
        match nix::fcntl::renameat2(&self.dir, from, &self.dir, to, RenameFlags::RENAME_EXCHANGE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => self.rename(from, to),
            other => Ok(other?),
        }
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        path::check(from)?;
        path::check(to)?;
        // A link is refused when the name is taken, on every filesystem; renames are not. A crash in between leaves the first
        // name behind, which is what a caller of rename must expect anyhow.
        nix::unistd::linkat(&self.dir, from, &self.dir, to, AtFlags::empty())?;
        self.remove_file(from)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        path::check(path)?;
        Ok(nix::unistd::unlinkat(&self.dir, path, UnlinkatFlags::NoRemoveDir)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut dir = nix::dir::Dir::from_fd(self.open_dir(path)?)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                // We never make such names, so it is none of ours and nothing of ours can refer to it.
                Err(_) => {}
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        path::check_dir(path)?;
        let path = if path.is_empty() { "." } else { path };
        match nix::sys::stat::fstatat(&self.dir, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        File::from(self.open_dir(path)?).sync_all()?;
        self.ask_witness()
    }

    fn sync_all(&self) -> io::Result<()> {
        uninterrupted(|| nix::unistd::syncfs(&self.sync))?;
        self.ask_witness()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = uninterrupted(|| nix::sys::statvfs::fstatvfs(&self.sync))?;
        let bytes = |fragments: u64| fragments.saturating_mul(stat.fragment_size());
        Ok(Space { total_bytes: bytes(stat.blocks()), available_bytes: bytes(stat.blocks_available()) })
    }
}

struct RealFile {
    file: File,
    direct: bool,
}

impl BackingFile for RealFile {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.direct.then(|| self.file.as_fd())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            // A direct read that stops off the grid has met the end of the file; going on from there would be EINVAL.
            if self.direct && !done.is_multiple_of(DIRECT_ALIGN) {
                break;
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || self.direct {
            return Ok(());
        }
        match sys::start_range_writeback(self.file.as_fd(), off_t(offset)?, off_t(len)?) {
            // A hint: what the backing cannot do is no failure.
            Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(()),
            result => result,
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let seek = |from: u64, whence| match nix::unistd::lseek(&self.file, off_t(from)?, whence) {
            Ok(found) => Ok(Some(u64::try_from(found).unwrap_or(from))),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let Some(start) = seek(offset, nix::unistd::Whence::SeekData)? else { return Ok(None) };
        // Every file ends with a hole; if it was cut meanwhile, there is none.
        Ok(seek(start, nix::unistd::Whence::SeekHole)?.map(|end| (start, end)))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

impl RealFile {
    /// An empty range is EINVAL to the kernel and nothing to do for us.
    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (offset, len) = (off_t(offset)?, off_t(len)?);
        uninterrupted(|| nix::fcntl::fallocate(&self.file, mode, offset, len))
    }
}

fn off_t(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "offset beyond what files can have"))
}

fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => continue,
            result => return Ok(result?),
        }
    }
}

/// Tells "this filesystem cannot" from "this went wrong".
fn supported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(false),
        // user. attributes on a mount with nouser_xattr, or forbidden by policy.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e),
    }
}

/// Names of the magic numbers in statfs(2) that a tier may plausibly lie on.
fn fs_type_name(magic: i64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}
