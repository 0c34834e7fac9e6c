//! The namespace as of one moment, walked while it goes on changing (R17).
//!
//! Nothing is stopped. While an [`Image`] exists every change notes, before it is made, what it is about to change: the name's old target,
//! the inode's old attributes. The walk then reads what is there now and puts the notes over it. A change counts as before the moment
//! if it had returned by then: its notes are thrown away. Notes are taken before the change and looked at after reading, so
//! whatever the walk sees of a later change, it also sees that change's notes.

use super::directory::{entries, open_entries};
use super::node::Node;
use super::{Namespace, read_identity};
use crate::device::sys_home;
use crate::error::{Error, Result};
use crate::jobs::snapshot::{ImageEntry, Inode, Moment, Names};
use crate::namespace::attributes::times;
use crate::namespace::xattr::{is_hidden, read_growing};
use crate::volume::Mark;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const O_NODE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What a name leads to.
struct Child {
    inode: Arc<Inode>,
    /// Of a directory: a descriptor of it.
    directory: Option<Arc<OwnedFd>>,
}

/// What a name or an inode was before a change.
#[derive(Default)]
struct Notes {
    /// By directory: what the names led to; None: nothing.
    names: HashMap<u64, HashMap<OsString, Option<u64>>>,
    inodes: HashMap<u64, Arc<Inode>>,
    /// Directories that may have left the place where the walk would find them.
    directories: HashMap<u64, Arc<OwnedFd>>,
}

impl Notes {
    /// What is known longer stays.
    fn merge(&mut self, later: Notes) {
        for (directory, names) in later.names {
            let known = self.names.entry(directory).or_default();
            for (name, target) in names {
                known.entry(name).or_insert(target);
            }
        }
        for (number, inode) in later.inodes {
            self.inodes.entry(number).or_insert(inode);
        }
        for (number, directory) in later.directories {
            self.directories.entry(number).or_insert(directory);
        }
    }
}

#[derive(Default)]
struct Recording {
    running: bool,
    /// The moment is over: what returns from now on is later than it.
    taken: bool,
    failure: Option<String>,
    next_change: u64,
    in_flight: HashMap<u64, Notes>,
    notes: Notes,
}

impl Recording {
    fn all_notes(&self) -> impl Iterator<Item = &Notes> {
        std::iter::once(&self.notes).chain(self.in_flight.values())
    }
}

/// Where changes leave their notes.
#[derive(Default)]
pub(super) struct Imaging {
    /// Looked at by every change; the rest only while it is set.
    active: AtomicBool,
    recording: Mutex<Recording>,
    changes: crate::volume::Readers,
}

/// A change of the namespace under way.
pub(super) struct Changing<'a> {
    namespace: &'a Namespace,
    /// Its number in the recording, if there is one.
    number: Option<u64>,
    _earlier: crate::volume::Reading<'a>,
}

impl Namespace {
    /// To be called before any change of home, and kept until it is done.
    pub(super) fn changing(&self) -> Changing<'_> {
        let earlier = self.imaging.changes.enter();
        let mut number = None;
        if self.imaging.active.load(Ordering::SeqCst) {
            let mut recording = self.imaging.recording.lock();
            if recording.running {
                recording.next_change += 1;
                number = Some(recording.next_change);
                let next_change = recording.next_change;
                recording.in_flight.insert(next_change, Notes::default());
            }
        }
        Changing { namespace: self, number, _earlier: earlier }
    }

    /// Starts noting changes. Errors: `Busy` while another image is being taken.
    pub fn begin_image(self: &Arc<Self>) -> Result<Image> {
        {
            let mut recording = self.imaging.recording.lock();
            if recording.running {
                return Err(Error::Busy("another snapshot's list of files is still being taken".to_owned()));
            }
            *recording = Recording { running: true, ..Recording::default() };
        }
        self.imaging.active.store(true, Ordering::SeqCst);
        // What began before leaves no notes, so it has to be over. Nothing that begins now waits for that.
        self.imaging.changes.wait_for_earlier();
        Ok(Image { namespace: Arc::clone(self) })
    }

    fn capture(&self, fd: impl AsFd) -> nix::Result<Inode> {
        let fd = fd.as_fd();
        let stat = fstat(fd)?;
        let kind = stat.st_mode & libc::S_IFMT;
        let (access, modification, _) = times(&stat);
        let mut mode = stat.st_mode;
        if stat.st_ino == self.root_inode
            && let Some(shown) = *self.root_mode.lock()
        {
            mode = kind | shown;
        }
        let is_link = kind == libc::S_IFLNK;
        Ok(Inode {
            number: stat.st_ino,
            mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            access: access.to_wall(),
            modification: modification.to_wall(),
            device: stat.st_rdev,
            target: if is_link { Some(nix::fcntl::readlinkat(fd, c"")?.into_vec()) } else { None },
            xattrs: read_xattrs(fd)?,
            file: (kind == libc::S_IFREG).then(|| read_identity(fd, self.volume_id, stat.st_ino)),
        })
    }
}

fn read_xattrs(fd: BorrowedFd<'_>) -> nix::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match read_growing(|buf| sys_home::list_xattr(fd, buf)) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_hidden(name)) {
        let Ok(c_name) = CString::new(name) else { continue };
        match read_growing(|buf| sys_home::get_xattr(fd, &c_name, buf)) {
            Ok(value) => xattrs.push((name.to_owned(), value)),
            // Removed since it was listed: whoever did that left a note.
            Err(Errno::ENODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

impl Changing<'_> {
    /// The name is about to be made, to go, or to lead elsewhere.
    pub fn name(&self, parent: &Node, name: &OsStr) {
        self.note(|notes| {
            let directory = parent.fd()?;
            let parent_inode = self.namespace.capture(&directory)?;
            let old = match openat(&directory, name, O_NODE, Mode::empty()) {
                Ok(fd) => Some(self.namespace.capture(&fd).map(|inode| (inode, fd))?),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno),
            };
            let target = old.as_ref().map(|(inode, _)| inode.number);
            notes.names.entry(parent_inode.number).or_default().entry(name.to_owned()).or_insert(target);
            notes.inodes.entry(parent_inode.number).or_insert_with(|| Arc::new(parent_inode));
            if let Some((inode, fd)) = old {
                if inode.is_directory() {
                    notes.directories.entry(inode.number).or_insert_with(|| Arc::new(fd));
                }
                notes.inodes.entry(inode.number).or_insert_with(|| Arc::new(inode));
            }
            Ok(())
        });
    }

    /// The inode's attributes are about to change.
    pub fn inode(&self, node: &Node) {
        self.note(|notes| {
            let inode = self.namespace.capture(node.fd()?)?;
            notes.inodes.entry(inode.number).or_insert_with(|| Arc::new(inode));
            Ok(())
        });
    }

    /// A note that cannot be taken fails the image, never the change.
    fn note(&self, take: impl FnOnce(&mut Notes) -> nix::Result<()>) {
        let Some(number) = self.number else { return };
        let mut notes = Notes::default();
        let taken = take(&mut notes);
        let mut recording = self.namespace.imaging.recording.lock();
        if let Err(errno) = taken {
            recording.failure.get_or_insert_with(|| format!("what a change replaces could not be read: {errno}"));
        }
        if let Some(known) = recording.in_flight.get_mut(&number) {
            known.merge(notes);
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut recording = self.namespace.imaging.recording.lock();
        if let Some(notes) = recording.in_flight.remove(&number)
            && recording.taken
        {
            recording.notes.merge(notes);
        }
    }
}

/// The namespace of one moment. Changes are noted for as long as this exists.
pub struct Image {
    namespace: Arc<Namespace>,
}

impl Drop for Image {
    fn drop(&mut self) {
        self.namespace.imaging.active.store(false, Ordering::SeqCst);
        *self.namespace.imaging.recording.lock() = Recording::default();
    }
}

impl Image {
    /// The moment is while `take` runs; changes that have not returned by then are later. `take` must be quick: changes wait for it.
    pub fn moment<T>(&self, take: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut recording = self.namespace.imaging.recording.lock();
        let taken = take()?;
        recording.taken = true;
        Ok(taken)
    }

    /// Visits the root and everything below, a directory before its entries, entries by name (as bytes). To be called after the moment. Errors: of
    /// home, of `visit`, and `SnapshotFailed` if a change could not note what it replaced.
    pub fn walk(&self, visit: &mut dyn FnMut(&ImageEntry) -> Result<()>) -> Result<()> {
        let io = |errno: Errno| self.io("open", b"", errno);
        let root = openat(self.namespace.root.fd().map_err(io)?, c".", O_NODE, Mode::empty()).map_err(io)?;
        let inode = self.namespace.capture(&root).map_err(io)?;
        let inode = self.noted_inode(inode.number).unwrap_or_else(|| Arc::new(inode));
        visit(&ImageEntry { path: b"", inode: &inode })?;
        self.walk_directory(&mut Vec::new(), inode.number, Arc::new(root), visit)?;
        match &self.namespace.imaging.recording.lock().failure {
            Some(why) => Err(Error::SnapshotFailed { why: why.clone() }),
            None => Ok(()),
        }
    }

    fn walk_directory(
        &self,
        path: &mut Vec<u8>,
        number: u64,
        directory: Arc<OwnedFd>,
        visit: &mut dyn FnMut(&ImageEntry) -> Result<()>,
    ) -> Result<()> {
        let listed = open_entries(&directory).and_then(entries).map_err(|errno| self.io("list", path, errno))?;
        let mut names: BTreeSet<OsString> = listed.into_iter().map(|entry| entry.name).collect();
        names.extend(self.noted_names(number));
        let length = path.len();
        for name in names {
            let child = self.child(number, &directory, &name).map_err(|errno| self.io("open an entry of", path, errno));
            let Some(Child { inode, directory: opened }) = child? else { continue };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name.into_vec());
            visit(&ImageEntry { path, inode: &inode })?;
            if inode.is_directory() {
                let opened = opened.ok_or_else(|| self.io("open", path, Errno::ESTALE))?;
                self.walk_directory(path, inode.number, opened, visit)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// What a name led to at the moment, with a descriptor if it is a directory. None: to nothing.
    fn child(&self, directory_number: u64, directory: &OwnedFd, name: &OsStr) -> nix::Result<Option<Child>> {
        let met = openat(directory, name, O_NODE, Mode::empty())
            .and_then(|fd| self.namespace.capture(&fd).map(|inode| (inode, fd)));
        // After reading: whoever changed the name meanwhile has noted what it led to.
        if let Some(noted) = self.noted_name(directory_number, name) {
            return noted.map(|number| self.noted_child(number)).transpose();
        }
        let (inode, fd) = match met {
            Ok(met) => met,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let inode = self.noted_inode(inode.number).unwrap_or_else(|| Arc::new(inode));
        let directory = inode.is_directory().then(|| Arc::new(fd));
        Ok(Some(Child { inode, directory }))
    }

    fn noted_child(&self, number: u64) -> nix::Result<Child> {
        let inode = self.noted_inode(number).ok_or(Errno::ESTALE)?;
        let recording = self.namespace.imaging.recording.lock();
        let directory = recording.all_notes().find_map(|notes| notes.directories.get(&number)).cloned();
        Ok(Child { inode, directory })
    }

    fn noted_name(&self, directory: u64, name: &OsStr) -> Option<Option<u64>> {
        let recording = self.namespace.imaging.recording.lock();
        recording.all_notes().find_map(|notes| notes.names.get(&directory)?.get(name).copied())
    }

    fn noted_inode(&self, number: u64) -> Option<Arc<Inode>> {
        let recording = self.namespace.imaging.recording.lock();
        recording.all_notes().find_map(|notes| notes.inodes.get(&number)).cloned()
    }

    fn noted_names(&self, directory: u64) -> BTreeSet<OsString> {
        let recording = self.namespace.imaging.recording.lock();
        let names = recording.all_notes().filter_map(|notes| notes.names.get(&directory));
        names.flat_map(|names| names.keys().cloned()).collect()
    }

    fn io(&self, action: &'static str, path: &[u8], errno: Errno) -> Error {
        let path = String::from_utf8_lossy(path);
        Error::io(action, format!("{}/{path}", self.namespace.tree_path), errno.into())
    }
}

impl Names for Arc<Namespace> {
    fn begin(&self) -> Result<Box<dyn Moment>> {
        Ok(Box::new(self.begin_image()?))
    }
}

impl Moment for Image {
    fn take(&self, mark: &dyn Fn() -> Result<Arc<Mark>>) -> Result<Arc<Mark>> {
        self.moment(mark)
    }

    fn walk(&self, visit: &mut dyn FnMut(&ImageEntry<'_>) -> Result<()>) -> Result<()> {
        Image::walk(self, visit)
    }
}
