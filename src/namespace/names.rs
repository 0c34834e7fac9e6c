//! Names: looking up, creating, linking, removing, renaming.
//!
//! The kernel holds the directory locks of every call it sends here, so two changes of one name never meet. What still can
//! meet, and is locked here, is the last name of an inode going away by two ways at once ([`Node::buried`]).

use super::credentials::{Acting, Caller};
use super::descriptors::{Descriptor, Held};
use super::directory::{Stream, check_component};
use super::fault::{Fault, Outcome};
use super::node::{Content, Node, Place, ROOT_INODE};
use super::{Attributes, Namespace};
use crate::device::sys_home;
use crate::ondisk::file_id::{FileIdentity, XATTR_FILE_ID};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// A node that the kernel was just told about: one reference on it is the kernel's.
pub struct Linked {
    pub node: Arc<Node>,
    pub attributes: Attributes,
}

/// What mknod makes besides regular files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Special {
    /// S_IFIFO, S_IFSOCK, S_IFCHR or S_IFBLK.
    pub kind: u32,
    pub device: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// Read and write for the owner.
const OWNER_ACCESS: u32 = 0o600;
const O_NODE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Namespace {
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Outcome<Linked> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let node = self.resolve(&parent, name)?;
        self.linked(node)
    }

    fn linked(&self, node: Arc<Node>) -> Outcome<Linked> {
        match self.attributes(&node) {
            Ok(attributes) => Ok(Linked { node, attributes }),
            Err(fault) => {
                self.release(node.inode, 1);
                Err(fault)
            }
        }
    }

    /// The node behind a name, with one more reference.
    fn resolve(&self, parent: &Arc<Node>, name: &OsStr) -> Outcome<Arc<Node>> {
        let fd = openat(parent.fd()?, name, O_NODE, Mode::empty())?;
        let stat = fstat(&fd)?;
        let place = Place { parent: parent.inode, name: name.to_owned() };
        if let Some(node) = self.table.acquire_known(stat.st_ino) {
            node.place.lock().get_or_insert(place);
            return Ok(node);
        }
        if stat.st_dev != self.root_device || stat.st_ino == ROOT_INODE || stat.st_ino == self.root_inode {
            tracing::error!(
                "{}/{}: another filesystem inside home is not served",
                self.describe(parent),
                name.display()
            );
            return Err(Errno::EIO.into());
        }
        let content = self.content_of(&fd, &stat, || format!("{}/{}", self.describe(parent), name.display()));
        Ok(self.adopt(parent, fd, &stat, content, place))
    }

    /// Puts a node for an inode just opened into the table (or finds that somebody was faster), with one more reference.
    fn adopt(&self, parent: &Arc<Node>, fd: OwnedFd, stat: &FileStat, content: Content, place: Place) -> Arc<Node> {
        let node = self.table.acquire(stat.st_ino, || {
            let descriptor = Descriptor::new(Arc::clone(&self.budget), fd);
            Arc::new(Node::new(stat.st_ino, descriptor, content, Some(place)))
        });
        if self.table.take_left_unsynced(stat.st_ino) {
            node.mark_changed(&[parent]);
        }
        self.note_path(&node);
        node
    }

    /// Tells the engine the name by which it may recognise files that behave like logs.
    fn note_path(&self, node: &Node) {
        if let (Some(file), Some(path)) = (node.file(), self.path_of_node(node)) {
            self.volume.note_path(file, &path);
        }
    }

    /// Creates an empty regular file: nameless first, then marked with its identity, then named, so that it is never met without (R10).
    /// `EEXIST` as home says.
    pub fn create(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let id = self.volume.issue_file_id()?;
        let changing = self.changing();
        changing.name(&parent, name);
        let made = self.make_nameless(&parent, caller, mode & 0o7777, umask)?;
        let stat = fstat(&made)?;
        let identity = FileIdentity { volume: self.volume_id, file: id, home_inode: stat.st_ino }.encode();
        let attribute = CString::new(XATTR_FILE_ID).map_err(|_| Errno::EINVAL)?;
        sys_home::set_xattr(&made, &attribute, &identity, libc::XATTR_CREATE)?;
        self.settle_mode(&made, &parent, mode, umask)?;
        let file = self.volume.file(id)?;
        let path = sys_home::descriptor_path(&made);
        linkat(AT_FDCWD, path.as_c_str(), parent.fd()?, name, AtFlags::AT_SYMLINK_FOLLOW)?;
        let node_fd = openat(parent.fd()?, name, O_NODE, Mode::empty())?;
        let place = Place { parent: parent.inode, name: name.to_owned() };
        let node = self.adopt(&parent, node_fd, &stat, Content::File(file), place);
        self.note_change(&node, &[&parent]);
        self.linked(node)
    }

    /// A file without a name in the parent's directory: home gives it owner, group and ACL as to any file made there.
    fn make_nameless(&self, parent: &Node, caller: Caller, mode: u32, umask: u32) -> Outcome<OwnedFd> {
        // Setting an attribute needs the owner's write permission where the daemon has no privileges.
        let (open_mode, umask) =
            if self.daemon.privileged { (mode, umask) } else { (mode | OWNER_ACCESS, umask & !OWNER_ACCESS) };
        let (_acting, open_mode) = Acting::begin(self.daemon, caller, open_mode, umask);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(openat(parent.fd()?, c".", flags, Mode::from_bits_truncate(open_mode))?)
    }

    /// Takes back the access that [`Self::make_nameless`] added.
    fn settle_mode(&self, made: &OwnedFd, parent: &Node, mode: u32, umask: u32) -> Outcome<()> {
        if self.daemon.privileged || OWNER_ACCESS & (!mode | umask) == 0 {
            return Ok(());
        }
        // A default ACL takes the place of the umask.
        let has_acl = sys_home::get_xattr(parent.fd()?, c"system.posix_acl_default", &mut []).is_ok();
        let umask = if has_acl { 0 } else { umask };
        let kept = fstat(made)?.st_mode & 0o7777 & !(OWNER_ACCESS & (!mode | umask));
        Ok(fchmod(made, Mode::from_bits_truncate(kept))?)
    }

    pub fn make_directory(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked> {
        self.make(parent, name, caller, mode, umask, |at, name, mode| mkdirat(at, name, mode))
    }

    /// A pipe, socket or device.
    pub fn make_special(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        special: Special,
    ) -> Outcome<Linked> {
        let kind = SFlag::from_bits(special.kind & libc::S_IFMT).ok_or(Errno::EINVAL)?;
        let device = u64::from(special.device);
        self.make(parent, name, caller, mode, umask, |at, name, mode| mknodat(at, name, kind, mode, device))
    }

    pub fn make_symlink(&self, parent: u64, name: &OsStr, caller: Caller, target: &Path) -> Outcome<Linked> {
        self.make(parent, name, caller, 0o777, 0, |at, name, _| symlinkat(target, at, name))
    }

    fn make(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        create: impl FnOnce(&Held, &OsStr, Mode) -> nix::Result<()>,
    ) -> Outcome<Linked> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let changing = self.changing();
        changing.name(&parent, name);
        {
            let (_acting, mode) = Acting::begin(self.daemon, caller, mode & 0o7777, umask);
            create(&parent.fd()?, name, Mode::from_bits_truncate(mode))?;
        }
        let node = self.resolve(&parent, name)?;
        self.note_change(&node, &[&parent]);
        self.linked(node)
    }

    pub fn link(&self, inode: u64, parent: u64, name: &OsStr) -> Outcome<Linked> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let node = self.hold(inode)?;
        let changing = self.changing();
        changing.name(&parent, name);
        changing.inode(&node);
        if let Err(fault) = self.link_node(&node, &parent, name) {
            self.release(inode, 1);
            return Err(fault);
        }
        self.note_change(&node, &[&parent]);
        self.linked(node)
    }

    fn link_node(&self, node: &Node, parent: &Node, name: &OsStr) -> Outcome<()> {
        let buried = node.buried.lock();
        if *buried {
            return Err(Errno::ENOENT.into());
        }
        let fd = node.fd()?;
        let path = sys_home::descriptor_path(&fd);
        Ok(linkat(AT_FDCWD, path.as_c_str(), parent.fd()?, name, AtFlags::AT_SYMLINK_FOLLOW)?)
    }

    pub fn read_link(&self, inode: u64) -> Outcome<OsString> {
        let node = self.node(inode)?;
        Ok(nix::fcntl::readlinkat(node.fd()?, c"")?)
    }

    pub fn unlink(&self, parent: u64, name: &OsStr) -> Outcome<()> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let target = self.resolve(&parent, name)?;
        let changing = self.changing();
        changing.name(&parent, name);
        let unlinked = self.without_last_name(&target, || unlinkat(parent.fd()?, name, UnlinkatFlags::NoRemoveDir));
        if unlinked.is_ok() {
            self.note_change(&target, &[&parent]);
        }
        self.release(target.inode, 1);
        unlinked
    }

    pub fn remove_directory(&self, parent: u64, name: &OsStr) -> Outcome<()> {
        check_component(name)?;
        let parent = self.node(parent)?;
        let target = self.resolve(&parent, name)?;
        let changing = self.changing();
        changing.name(&parent, name);
        let removed = self.without_last_name(&target, || unlinkat(parent.fd()?, name, UnlinkatFlags::RemoveDir));
        self.release(target.inode, 1);
        removed
    }

    /// Runs `remove`, which takes one name of `target` away; if that is the last one of a file with content, the grave holds it before. Other
    /// inodes are held by a descriptor, for as long as somebody has them open.
    fn without_last_name(&self, target: &Node, remove: impl FnOnce() -> nix::Result<()>) -> Outcome<()> {
        let Some(file) = target.file() else {
            target.pin()?;
            return Ok(remove()?);
        };
        let mut buried = target.buried.lock();
        let loses_last = !*buried && fstat(target.fd()?)?.st_nlink == 1;
        if loses_last {
            self.grave.bury(file.id(), target.fd()?)?;
        }
        match remove() {
            Ok(()) => {
                *buried |= loses_last;
                Ok(())
            }
            Err(errno) => {
                if loses_last {
                    self.grave.unbury(file.id());
                }
                Err(errno.into())
            }
        }
    }

    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Outcome<()> {
        check_component(name)?;
        check_component(new_name)?;
        let parent = self.node(parent)?;
        let new_parent = self.node(new_parent)?;
        let source = self.resolve(&parent, name)?;
        let target = match self.resolve(&new_parent, new_name) {
            Ok(target) => Some(target),
            Err(Fault::Home(Errno::ENOENT)) => None,
            Err(fault) => {
                self.release(source.inode, 1);
                return Err(fault);
            }
        };
        let (from, to) = ((&parent, name), (&new_parent, new_name));
        let changing = self.changing();
        changing.name(&parent, name);
        changing.name(&new_parent, new_name);
        let renamed = self.rename_nodes(&source, target.as_deref(), from, to, mode);
        if renamed.is_ok() {
            self.after_rename(&source, target.as_ref(), from, to, mode);
        }
        self.release(source.inode, 1);
        if let Some(target) = target {
            self.release(target.inode, 1);
        }
        renamed
    }

    fn rename_nodes(
        &self,
        source: &Node,
        target: Option<&Node>,
        from: (&Arc<Node>, &OsStr),
        to: (&Arc<Node>, &OsStr),
        mode: RenameMode,
    ) -> Outcome<()> {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::RENAME_NOREPLACE,
            RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
        };
        let rename = || renameat2(from.0.fd()?, from.1, to.0.fd()?, to.1, flags);
        let Some(target) = target.filter(|target| target.inode != source.inode && mode != RenameMode::NoReplace) else {
            return Ok(rename()?);
        };
        // R11: home must not durably show the new content's name before the log durably holds the content.
        self.flush(source)?;
        match mode {
            RenameMode::Replace => self.without_last_name(target, rename),
            RenameMode::NoReplace => Ok(rename()?),
            RenameMode::Exchange => {
                self.flush(target)?;
                Ok(rename()?)
            }
        }
    }

    fn after_rename(
        &self,
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        from: (&Arc<Node>, &OsStr),
        to: (&Arc<Node>, &OsStr),
        mode: RenameMode,
    ) {
        let place = |(parent, name): (&Arc<Node>, &OsStr)| Some(Place { parent: parent.inode, name: name.to_owned() });
        *source.place.lock() = place(to);
        self.note_change(source, &[from.0, to.0]);
        self.note_path(source);
        let Some(target) = target else { return };
        self.note_change(target, &[to.0]);
        if mode == RenameMode::Exchange {
            *target.place.lock() = place(from);
            self.note_change(target, &[from.0]);
            self.note_path(target);
        }
    }

    pub fn open_directory(&self, inode: u64) -> Outcome<Stream> {
        Ok(Stream::new(self.node(inode)?))
    }
}
