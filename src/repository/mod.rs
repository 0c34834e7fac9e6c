//! The repository: snapshots as content-addressed objects in a directory, on any [`Device`].
//!
//! ```text
//! format                       what this repository is: version, feature bits, keys           format.rs
//! packs/<x>/<pack>             objects in compressed, perhaps encrypted frames                pack.rs
//! index/<generation>-<n>-<x>   which object lies where, sorted; can be made again from packs  segment.rs, index.rs
//! snapshots/<ulid>             roots                                                          root.rs
//! refs/<name>/<number>         pins and tags; the highest number counts                       refs.rs
//! leases/<id>, <id>.fence      writers at work, and those that prune gave up                  lease.rs
//! gc/<generation>-<step>       the steps of each prune                                        generations.rs, plan.rs
//! verify/ledger                what was verified when                                         verify.rs
//! archive                      where cold packs are moved to                                  archive.rs, shelf.rs
//! reserve                      room for the next prune                                        prune/clear.rs
//! tmp/                         files that have no name yet
//! ```
//!
//! **Objects** are pages and slots of files (up to 64 KiB) and nodes of trees. An object is named by keyed BLAKE3 of its bytes, and checked against this name whenever
//! it is read from the disk (I8). A reference to it carries its place too, so that reading needs no index; when prune has moved the object, the
//! index tells the new place. No object is ever overwritten; prune is the only deleter of packs.
//!
//! **A snapshot** is a root with two tables: names (path to attributes and file id) and files (file id to size and content tree). Tables
//! are sorted and cut by content (`table.rs`), trees by offset (`content.rs`); equal runs and subtrees are shared with the parent, so a snapshot
//! costs what changed, and one without changes only its root.
//!
//! **Writing** (`writer.rs`): lease, packs, index segments, root, each durable before the next. **Prune** (`prune.rs`) never races with a writer:
//! generations and leases decide, not clocks (`generations.rs`, `lease.rs`). Every crash leaves either a snapshot or garbage.
//!
//! All integers are little-endian. `FORMAT.md` beside this file describes every byte for those who write a reader of their own, or mend a repository by hand; the head of a file says of its format what its
//! code needs. Both change together. Golden bytes here, and those in `fuzz/corpus/repository`, hold the formats as they are.

mod archive;
mod cache;
mod content;
mod file;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod generations;
mod ids;
mod index;
mod keys;
mod lease;
mod mark;
mod namespace;
mod pack;
mod plan;
mod prune;
mod read;
mod refs;
mod retention;
mod root;
mod segment;
mod shelf;
mod sink;
mod small;
mod snapshot;
mod stats;
mod store;
mod table;
mod transfer;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use archive::{ArchiveOptions, ArchiveReport};
pub use content::SLOT_BYTES;
pub use file::{FileState, FileUpdate};
pub use ids::{Generation, LeaseId, ObjectId, ObjectRef, PackId, Place, SnapshotId};
pub use keys::KEY_FILE_BYTES_MIN;
pub use lease::Lease;
pub use namespace::{Entry, EntryKind, Names, NamespaceWriter, Walk};
pub use plan::{Condemned, Plan, Reason};
pub use prune::{PruneOptions, PruneReport};
pub use read::{FileContent, Run};
pub use refs::{Ref, RefKind};
pub use retention::{Keep, Retention, Verdict, judge};
pub use root::{Consistency, Root, SnapshotMeta, SnapshotStats};
pub use snapshot::{NameChange, Snapshot};
pub use stats::RepositoryStats;
pub use transfer::{COPIED_FROM, CopyBase};
pub use verify::{Hurt, HurtFile, VerifyOptions, VerifyReport, VerifyStanding};
pub use writer::{Stored, Writer, WriterOptions};

use crate::device::real::RealDevice;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::units::{FileId, WallNs};
use format::Format;
use keys::Keys;
use shelf::Shelf;
use small::{SmallObjects, create_file, io_error, read_file};
use std::path::Path;
use std::sync::Arc;
use store::Store;
use uuid::Uuid;

/// A pack is ended when it holds this much, unless the repository was made otherwise.
pub const PACK_BYTES: u64 = 64 << 20;
const PACK_BYTES_MIN: u64 = 64 << 10;
const PACK_BYTES_MAX: u64 = 1 << 30;

/// How files are opened that are never changed.
fn read_only() -> OpenMode {
    OpenMode { read_only: true, ..OpenMode::default() }
}

/// How a repository is made.
#[derive(Clone, Debug)]
pub struct InitOptions<'k> {
    /// Content of the key file, at least [`KEY_FILE_BYTES_MIN`] bytes; None: not encrypted.
    pub key: Option<&'k [u8]>,
    pub pack_bytes: u64,
    pub now: WallNs,
}

/// An open repository. All of it may be shared by threads; several processes may have one open at a time.
pub struct Repository {
    pub(crate) store: Store,
    shelf: Arc<Shelf>,
    format: Format,
}

impl Repository {
    /// Makes a repository of an empty directory and opens it. A crash leaves either a repository or a directory that `init` takes again.
    pub fn init(device: Arc<dyn Device>, options: &InitOptions<'_>) -> Result<Repository> {
        if !(PACK_BYTES_MIN..=PACK_BYTES_MAX).contains(&options.pack_bytes) {
            let bytes = options.pack_bytes;
            return Err(Error::Invalid(format!(
                "packs of {bytes} bytes: {PACK_BYTES_MIN} to {PACK_BYTES_MAX} are allowed"
            )));
        }
        let path = device.path();
        let exists = |name: &str| device.exists(name).map_err(|e| io_error(device.as_ref(), "look for", name, e));
        if exists(format::PATH)? {
            return Err(Error::Busy(format!("{path} is a repository already")));
        }
        let known = ["packs", "index", "snapshots", "refs", "leases", "gc", "verify", "tmp", "reserve", "lost+found"];
        let names = device.list("").map_err(|e| io_error(device.as_ref(), "list", "", e))?;
        if let Some(strange) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::Busy(format!("{path} is not empty: `{strange}` is in it")));
        }
        for dir in PackId::dirs().chain(known[1..8].iter().map(|name| (*name).to_owned())) {
            device.create_dir_all(&dir).map_err(|e| io_error(device.as_ref(), "create", &dir, e))?;
        }
        for dir in ["packs", ""] {
            device.sync_dir(dir).map_err(|e| io_error(device.as_ref(), "sync directory", dir, e))?;
        }
        let id = Uuid::new_v4();
        let master: [u8; 32] = ids::random_bytes()?;
        let wrapped = options.key.map(|key| keys::wrap(&master, key, id.as_bytes())).transpose()?;
        let format = Format {
            compat: 0,
            ro_compat: 0,
            incompat: if wrapped.is_some() { format::INCOMPAT_ENCRYPTED } else { 0 },
            id,
            made: options.now,
            pack_bytes: options.pack_bytes,
            master: wrapped.unwrap_or_else(|| master.to_vec()),
        };
        if !create_file(device.as_ref(), format::PATH, Generation(0), &format.encode())? {
            return Err(Error::Busy(format!("{path} was made a repository by somebody else meanwhile")));
        }
        Repository::open(device, options.key)
    }

    /// Opens a repository. Errors: `NotFound` where there is none, `Invalid` for a wrong or missing key and for what a later version wrote.
    pub fn open(device: Arc<dyn Device>, key: Option<&[u8]>) -> Result<Repository> {
        let real = |path: &str| RealDevice::open(Path::new(path)).map(|device| device as Arc<dyn Device>);
        Repository::open_with(device, key, &real)
    }

    /// As [`Repository::open`], with another way to open the directory of its archive, if it has one.
    fn open_with(device: Arc<dyn Device>, key: Option<&[u8]>, open_far: archive::OpenFar<'_>) -> Result<Repository> {
        let path = format!("{}/{}", device.path(), format::PATH);
        let bytes = read_file(device.as_ref(), format::PATH)?;
        let bytes = bytes.ok_or_else(|| Error::NotFound(format!("{}: there is no repository", device.path())))?;
        let format = Format::decode(&bytes, &path)?;
        let invalid = |why: &str| Error::Invalid(format!("{path}: {why}"));
        let master = match (format.encrypted(), key) {
            (false, _) => <[u8; 32]>::try_from(format.master.as_slice()).map_err(|_| Error::Corrupt {
                what: "repository format",
                path: path.clone(),
                offset: 72,
                why: "the master key has another length".to_owned(),
            })?,
            (true, None) => return Err(invalid("the repository is encrypted: a key file is needed")),
            (true, Some(key)) => keys::unwrap(&format.master, key, format.id.as_bytes())?
                .ok_or_else(|| invalid("wrong key: this key file does not open the repository"))?,
        };
        let keys = Arc::new(Keys::new(&master, format.encrypted()));
        let shelf = Arc::new(Shelf::new(device));
        let store = Store::new(SmallObjects { device: Arc::clone(&shelf) as Arc<dyn Device>, keys }, format.id);
        let repository = Repository { store, shelf, format };
        repository.find_archive(open_far);
        Ok(repository)
    }

    pub fn id(&self) -> Uuid {
        self.format.id
    }

    pub fn encrypted(&self) -> bool {
        self.format.encrypted()
    }

    /// Where the repository is, for messages.
    pub fn path(&self) -> String {
        self.store.small.device.path()
    }

    /// Begins to store a snapshot.
    pub fn begin(&self, options: WriterOptions) -> Result<Writer<'_>> {
        Writer::begin(self, options)
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Root>> {
        root::list(&self.store.small)
    }

    /// Opens a snapshot. Errors: `NotFound`.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot<'_>> {
        Ok(Snapshot::new(self, root::find(&self.store.small, id)?))
    }

    /// Opens a snapshot by a root that was read before; nothing is read again.
    pub fn reopen(&self, root: &Root) -> Snapshot<'_> {
        Snapshot::new(self, root.clone())
    }

    /// The content of a file by its row, which was read before.
    pub fn content(&self, file: FileId, state: FileState) -> FileContent<'_> {
        FileContent::new(&self.store, file, state)
    }

    /// Writers that are at work, or were when they died; and whether a prune has given them up.
    pub fn leases(&self) -> Result<Vec<(Lease, bool)>> {
        lease::list(&self.store.small)
    }

    /// The verified bytes of an object.
    pub fn object(&self, object: &ObjectRef) -> Result<Arc<Vec<u8>>> {
        self.store.object(object)
    }

    /// What an object of these bytes is named in this repository: to find the live copy of a damaged one.
    pub fn object_id(&self, bytes: &[u8]) -> ObjectId {
        self.store.keys().object_id(bytes)
    }

    /// Forgets everything that was read, so that later reads see the disk as it is now.
    pub fn forget(&self) {
        self.store.forget();
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.format.read_only() {
            return Err(Error::Invalid(format!(
                "{}: the repository uses features (ro_compat {:#x}) with which this program may only read it: use a newer heatfs",
                self.path(),
                self.format.ro_compat
            )));
        }
        Ok(())
    }
}
