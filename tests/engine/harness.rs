//! A volume on the simulated device beside a plain model of what its files should contain.

use heatfs::device::sim::SimWorld;
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{ClonedFile, Lineage, Options, SourceSnapshot, Tier, Volume, Wait};
use std::sync::{Arc, Mutex};

pub const TIERS: [&str; 3] = ["nvme", "sata", "hdd"];
pub const FILES: usize = 3;
pub const BLOCK: u64 = 16 * 1024;

pub fn options() -> Options {
    Options {
        block_bytes: 16 * 1024,
        segment_bytes: 256 << 10,
        segments: 6,
        payload_cache_bytes: 64 << 10,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 30,
    }
}

pub fn tiers(world: &SimWorld) -> Vec<Tier> {
    let tier = |name: &str| Tier {
        name: name.to_string(),
        device: world.device(name),
        budget_bytes: Some(64 << 20),
        reserve_bytes: 0,
    };
    TIERS.iter().map(|name| tier(name)).collect()
}

/// One step of a workload. File indices and offsets are taken modulo what exists.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Write {
        file: usize,
        offset: u64,
        len: u64,
    },
    Read {
        file: usize,
        offset: u64,
        len: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Punch {
        file: usize,
        offset: u64,
        len: u64,
    },
    Allocate {
        file: usize,
        offset: u64,
        len: u64,
    },
    Sync {
        file: usize,
    },
    Coalesce,
    Checkpoint,
    Move {
        file: usize,
        block: u64,
        count: u64,
        to: u8,
    },
    CopyDown {
        file: usize,
        block: u64,
        count: u64,
    },
    /// A write of nothing but zeros.
    Zeros {
        file: usize,
        offset: u64,
        len: u64,
    },
    DropZeros {
        file: usize,
        block: u64,
        count: u64,
    },
    /// Of a volume that was made of a snapshot; of any other it does nothing.
    Hydrate {
        file: usize,
        block: u64,
        count: u64,
    },
    Reopen {
        clean: bool,
    },
}

/// A small deterministic generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Offsets and lengths like a database's, with some odd ones.
    fn range(&mut self) -> (u64, u64) {
        match self.below(4) {
            0 => (self.below(200_000), 1 + self.below(8000)),
            1 => (self.below(12) * BLOCK, BLOCK.min(8192)),
            _ => (self.below(24) * 8192, 8192),
        }
    }

    /// As [`Random::op`], with blocks that are brought from a repository.
    pub fn clone_op(&mut self, reopen: bool) -> Op {
        match self.below(4) {
            0 => {
                Op::Hydrate { file: self.below(FILES as u64) as usize, block: self.below(13), count: 1 + self.below(6) }
            }
            _ => self.op(reopen),
        }
    }

    /// As [`Random::op`], with whole blocks of zeros, and blocks that lose their image for that.
    pub fn zeros_op(&mut self, reopen: bool) -> Op {
        let file = self.below(FILES as u64) as usize;
        match self.below(8) {
            // One record: what survives is a prefix of records.
            0 | 1 => Op::Zeros { file, offset: self.below(12) * BLOCK, len: BLOCK },
            2 | 3 => Op::DropZeros { file, block: self.below(13), count: 1 + self.below(6) },
            4 => Op::Coalesce,
            _ => self.op(reopen),
        }
    }

    pub fn op(&mut self, reopen: bool) -> Op {
        let file = self.below(FILES as u64) as usize;
        let (offset, len) = self.range();
        match self.below(if reopen { 27 } else { 26 }) {
            0..=9 => Op::Write { file, offset, len },
            10 | 11 => Op::Truncate { file, size: offset },
            12 | 13 => Op::Punch { file, offset, len: len * 3 },
            14 => Op::Allocate { file, offset, len: len * 3 },
            15..=17 => Op::Sync { file },
            18 | 19 => Op::Coalesce,
            20 => Op::Checkpoint,
            24 | 25 => Op::Read { file, offset, len },
            22 => Op::CopyDown { file, block: self.below(13), count: 1 + self.below(3) },
            21 | 23 => Op::Move { file, block: self.below(13), count: 1 + self.below(3), to: self.below(3) as u8 },
            _ => Op::Reopen { clean: self.below(2) == 0 },
        }
    }
}

/// Contents of all files after some operation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    pub files: [Vec<u8>; FILES],
}

/// The byte that operation `index` writes at `offset`: never zero, so that lost bytes show.
fn pattern(index: usize, offset: u64) -> u8 {
    ((index as u64).wrapping_mul(31).wrapping_add(offset / 512) % 255 + 1) as u8
}

impl Model {
    /// Applies what an operation does to contents. True if it changes any (and so is a record of the log).
    pub fn apply(&mut self, index: usize, op: &Op) -> bool {
        match *op {
            Op::Write { file, offset, len } => {
                let content = &mut self.files[file];
                content.resize(content.len().max((offset + len) as usize), 0);
                for at in offset..offset + len {
                    content[at as usize] = pattern(index, at);
                }
            }
            Op::Zeros { file, offset, len } => {
                let content = &mut self.files[file];
                content.resize(content.len().max((offset + len) as usize), 0);
                content[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Truncate { file, size } => self.files[file].resize(size as usize, 0),
            Op::Punch { file, offset, len } => {
                let content = &mut self.files[file];
                let end = content.len().min((offset + len) as usize);
                if (offset as usize) < end {
                    content[offset as usize..end].fill(0);
                }
            }
            Op::Allocate { file, offset, len } => {
                let content = &mut self.files[file];
                content.resize(content.len().max((offset + len) as usize), 0);
            }
            _ => return false,
        }
        true
    }
}

pub struct Harness {
    pub world: SimWorld,
    /// None only while it is being opened again: two of them must never share a state database.
    volume: Option<Arc<Volume>>,
    pub ids: Vec<FileId>,
    source: Option<Arc<dyn SourceSnapshot>>,
}

impl Harness {
    pub fn new(world: SimWorld) -> heatfs::error::Result<Harness> {
        Volume::create(&tiers(&world), &options(), uuid::Uuid::from_u128(7), &mut |_| {})?;
        let (volume, _) = Volume::open(tiers(&world), options())?;
        let ids = (0..FILES).map(|_| volume.issue_file_id()).collect::<Result<Vec<_>, _>>()?;
        Ok(Harness { world, volume: Some(volume), ids, source: None })
    }

    pub fn open(world: SimWorld, ids: Vec<FileId>) -> heatfs::error::Result<Harness> {
        Harness::open_with(world, ids, None)
    }

    pub fn open_with(
        world: SimWorld,
        ids: Vec<FileId>,
        source: Option<Arc<dyn SourceSnapshot>>,
    ) -> heatfs::error::Result<Harness> {
        let (volume, _) = Volume::open_with(tiers(&world), options(), source.clone())?;
        Ok(Harness { world, volume: Some(volume), ids, source })
    }

    /// Makes, but does not open, a volume whose files are those of a snapshot.
    pub fn make_clone(world: &SimWorld, files: Vec<ClonedFile>) -> heatfs::error::Result<()> {
        let tiers = tiers(world);
        Volume::create(&tiers, &options(), uuid::Uuid::from_u128(7), &mut |_| {})?;
        let lineage = Lineage { files, mark: Some(uuid::Uuid::from_u128(9)) };
        Volume::import_snapshot(&tiers[0], &lineage)?;
        tiers.iter().try_for_each(|tier| tier.device.sync_all()).expect("the devices sync");
        Ok(())
    }

    pub fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().expect("the volume is open")
    }

    pub fn run(&mut self, index: usize, op: &Op) -> heatfs::error::Result<()> {
        let file = |n: usize| self.volume().file(self.ids[n]);
        match *op {
            Op::Write { file: n, offset, len } => {
                let bytes: Vec<u8> = (offset..offset + len).map(|at| pattern(index, at)).collect();
                self.volume().write(&file(n)?, offset, &bytes, Wait::Allowed)
            }
            Op::Read { file: n, offset, len } => {
                // What it finds is compared after the run; here it leaves images in memory, which a move may use.
                self.volume().read(&file(n)?, offset, &mut vec![0; len as usize], Wait::Allowed).map(|_| ())
            }
            Op::Truncate { file: n, size } => self.volume().set_size(&file(n)?, size),
            Op::Punch { file: n, offset, len } => self.volume().punch_hole(&file(n)?, offset, len),
            Op::Allocate { file: n, offset, len } => self.volume().allocate(&file(n)?, offset, len, false),
            Op::Sync { file: n } => {
                let (sender, receiver) = std::sync::mpsc::channel();
                self.volume().sync(&file(n)?, Box::new(move |result| sender.send(result).expect("the test listens")));
                receiver.recv().expect("a sync is always answered")
            }
            Op::Coalesce => self.volume().coalesce_all(&mut |_, _| {}),
            Op::Checkpoint => self.volume().checkpoint(),
            Op::Move { file: n, block, count, to } => {
                self.volume().move_run(&file(n)?, BlockNo(block), count, TierId(to)).map(|_| ())
            }
            Op::CopyDown { file: n, block, count } => {
                self.volume().copy_down(&file(n)?, BlockNo(block), count).map(|_| ())
            }
            Op::Zeros { file: n, offset, len } => {
                self.volume().write(&file(n)?, offset, &vec![0; len as usize], Wait::Allowed)
            }
            Op::DropZeros { file: n, block, count } => {
                self.volume().drop_zeros(&file(n)?, BlockNo(block), count).map(|_| ())
            }
            Op::Hydrate { file: n, block, count } => {
                let file = file(n)?;
                match self.volume().next_in_repository(&file, BlockNo(block)) {
                    Some(block) => self.volume().hydrate(&file, block, count).map(|_| ()),
                    None => Ok(()),
                }
            }
            Op::Reopen { clean } => {
                if clean {
                    self.volume().shut_down()?;
                } else {
                    // What is not durable in memory is lost with the process: flush, so that the model need not fork.
                    self.volume().sync_log()?;
                }
                self.volume = None;
                self.volume = Some(Volume::open_with(tiers(&self.world), options(), self.source.clone())?.0);
                Ok(())
            }
        }
    }

    /// What the volume says its files contain.
    pub fn contents(&self) -> heatfs::error::Result<Model> {
        let mut model = Model::default();
        for (n, content) in model.files.iter_mut().enumerate() {
            let file = self.volume().file(self.ids[n])?;
            let mut buf = vec![0xee; file.size_bytes() as usize + 100];
            let len = self.volume().read(&file, 0, &mut buf, Wait::Allowed)?;
            assert_eq!(len as u64, file.size_bytes(), "a read ends at the end of the file");
            buf.truncate(len);
            *content = buf;
        }
        Ok(model)
    }
}

/// The world in the middle of something: as the next sync of a file of a device leaves it.
pub struct Glimpse(Arc<Mutex<Option<SimWorld>>>);

impl Glimpse {
    pub fn at_next_sync(world: &SimWorld, device: &str) -> Glimpse {
        let glimpse = Glimpse(Arc::default());
        let (seen, whole) = (Arc::clone(&glimpse.0), world.clone());
        world.device(device).after_next_sync(move || *seen.lock().expect("nobody panicked") = Some(whole.fork()));
        glimpse
    }

    /// Panics if there was no sync.
    pub fn world(&self) -> SimWorld {
        self.0.lock().expect("nobody panicked").take().expect("a file was synced")
    }
}

/// What of a workload a crash must not take away any more.
pub struct Acknowledged {
    /// Operations covered by a sync that came back, or by an orderly end.
    pub count: usize,
    model: Model,
    /// Number of the last operation that changed each file, from 1.
    last_op_of: [usize; FILES],
}

impl Acknowledged {
    /// Of a workload that begins with this.
    pub fn after(base: &Model) -> Acknowledged {
        Acknowledged { count: 0, model: base.clone(), last_op_of: [0; FILES] }
    }

    /// The operation was asked for, with whatever outcome. One that changes nothing (an allocation within the file) leaves no record that a sync would wait for.
    pub fn asked(&mut self, index: usize, op: &Op) {
        let before = self.model.clone();
        self.model.apply(index, op);
        for (last_op, (now, before)) in self.last_op_of.iter_mut().zip(self.model.files.iter().zip(&before.files)) {
            if now != before {
                *last_op = index + 1;
            }
        }
    }

    /// And it succeeded.
    pub fn succeeded(&mut self, index: usize, op: &Op) {
        match op {
            Op::Sync { file } => self.count = self.count.max(self.last_op_of[*file]),
            Op::Reopen { .. } => self.count = index,
            _ => {}
        }
    }
}
