//! A handle on a simulated file.

use super::content::{Content, Piece};
use super::inode::{Change, Inode};
use super::{Disk, Kind, SECTOR, Start, World, Written, eio, enospc};
use crate::device::{BackingFile, OpenMode};
use crate::units::{PAGE, PAGE_BYTES};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

pub(super) struct SimFile {
    pub(super) state: Arc<Mutex<World>>,
    pub(super) device: usize,
    pub(super) inode: u64,
    pub(super) mode: OpenMode,
}

impl SimFile {
    /// What the kernel says to a direct handle off its grid is EINVAL.
    fn check_grid(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let aligned = buf.as_ptr().addr().is_multiple_of(PAGE)
            && buf.len().is_multiple_of(PAGE)
            && offset.is_multiple_of(PAGE_BYTES);
        if self.mode.direct && !aligned {
            let what = format!("direct I/O of {} bytes from {:p} at {offset} is off the grid", buf.len(), buf);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(())
    }

    /// As the kernel answers on a handle that was opened for reading.
    fn check_access(&self) -> io::Result<()> {
        if self.mode.read_only { Err(io::Error::from_raw_os_error(libc::EBADF)) } else { Ok(()) }
    }

    /// A counted operation whose effect is one change. `new_pages`: how many it allocates.
    fn change(&self, change: Change, new_pages: impl FnOnce(&Content) -> u64) -> io::Result<()> {
        self.check_access()?;
        let mut world = self.state.lock();
        let start = world.begin(self.device, Kind::Change)?;
        let disk = &mut world.devices[self.device];
        let new_pages = new_pages(disk.inode(self.inode).content());
        disk.reserve(new_pages)?;
        disk.alter(self.inode, |file| file.change(change));
        start.finish()
    }
}

impl BackingFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check_grid(buf, offset)?;
        let mut world = self.state.lock();
        world.alive()?;
        let disk = &mut world.devices[self.device];
        if disk.reads_fail {
            return Err(eio());
        }
        let end = offset + buf.len() as u64;
        let file = disk.inode(self.inode);
        if file.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(eio());
        }
        let n = file.content().read(offset, buf);
        disk.traffic.reads += 1;
        disk.traffic.read_bytes += n as u64;
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_grid(buf, offset)?;
        self.check_access()?;
        if buf.is_empty() {
            return Ok(());
        }
        let mut world = self.state.lock();
        let start = world.begin(self.device, Kind::Write)?;
        let written = match start {
            Start::Short(chance) => short_of(buf.len(), chance),
            _ => buf.len(),
        };
        let pieces = Piece::cut(offset, &buf[..written]);
        let disk = &mut world.devices[self.device];
        let content = disk.inode(self.inode).content();
        let new_pages = pieces.iter().filter(|piece| !content.has_page(piece.page())).count();
        disk.reserve(new_pages as u64)?;
        disk.traffic.writes += 1;
        disk.traffic.written_bytes += written as u64;
        let (inode, syncs) = (self.inode, disk.traffic.syncs);
        disk.written.iter_mut().for_each(|list| list.push(Written { syncs, inode, offset }));
        let durable = self.mode.dsync && !matches!(start, Start::Crashing);
        disk.alter(self.inode, |file| {
            file.heal(offset..offset + written as u64);
            if durable { file.write_durably(pieces) } else { file.change(Change::Write(pieces)) }
        });
        start.finish()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.state.lock();
        let start = world.begin(self.device, Kind::Sync)?;
        let file = world.devices[self.device].inode(self.inode);
        match start {
            Start::Normal => file.sync(),
            Start::LosingUnsynced => file.lose_unsynced(),
            Start::Short(_) | Start::Crashing => {}
        }
        let after = Arc::clone(&world.devices[self.device].after_sync);
        drop(world);
        let action = after.lock().take();
        if let Some(action) = action {
            action();
        }
        start.finish()
    }

    fn start_writeback(&self, _offset: u64, _len: u64) -> io::Result<()> {
        // Promises nothing, so it does nothing: what it would make durable earlier may survive a crash anyhow.
        self.state.lock().alive()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return self.state.lock().alive();
        }
        self.change(Change::Allocate(offset, len), |content| content.missing_pages(offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return self.state.lock().alive();
        }
        self.change(Change::Punch(offset, len), |_| 0)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let mut world = self.state.lock();
        world.alive()?;
        Ok(world.devices[self.device].inode(self.inode).content().next_data(offset))
    }

    fn len(&self) -> io::Result<u64> {
        let mut world = self.state.lock();
        world.alive()?;
        Ok(world.devices[self.device].inode(self.inode).content().len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len), |_| 0)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = self.state.lock();
        let disk = &mut world.devices[self.device];
        disk.inode(self.inode).handles -= 1;
        disk.release(self.inode);
    }
}

impl Disk {
    fn reserve(&self, new_pages: u64) -> io::Result<()> {
        if new_pages * PAGE_BYTES > self.available_bytes() { Err(enospc()) } else { Ok(()) }
    }

    /// Changes a file and keeps count of its pages.
    fn alter(&mut self, inode: u64, call: impl FnOnce(&mut Inode)) {
        let file = self.inode(inode);
        let before = file.content().pages();
        call(file);
        let after = file.content().pages();
        self.used_pages = self.used_pages + after - before;
    }
}

/// Some number of whole sectors that is less than `len`.
fn short_of(len: usize, chance: u64) -> usize {
    let sectors = len.div_ceil(SECTOR) as u64;
    usize::try_from(chance % sectors).unwrap_or(0) * SECTOR
}
