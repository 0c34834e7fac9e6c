//! Names, links, attributes and times.

use crate::server::Mount;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
}

#[test]
fn directories_of_any_size_list_completely() {
    let Some(mut mount) = Mount::start() else { return };
    let directory = mount.path("many");
    fs::create_dir(&directory).unwrap();
    let names: BTreeSet<String> = (0..2500).map(|at| format!("entry-{at}-{}", "y".repeat(at % 90))).collect();
    for name in &names {
        File::create(directory.join(name)).unwrap();
    }
    let list = |directory: &Path| -> BTreeSet<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(list(&directory), names);
    // With attributes, as `ls -l` asks for them: readdirplus. Every entry is a reference that has to come back.
    for entry in fs::read_dir(&directory).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), 0);
    }
    mount.unmount();
    mount.restart();
    assert_eq!(list(&directory), names);
    let removed: usize =
        fs::read_dir(&directory).unwrap().map(|entry| fs::remove_file(entry.unwrap().path()).map_or(0, |()| 1)).sum();
    assert_eq!(removed, 2500);
    fs::remove_dir(&directory).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let known: u64 = mount.ask("nodes").parse().unwrap();
    assert!(known < 100, "{known} nodes are still known after everything was removed and forgotten");
}

/// The kernel keeps far more inodes than a process may have descriptors: tens of thousands of tables are not rare.
#[test]
fn more_inodes_than_descriptors() {
    let Some(mount) = Mount::start_with_descriptors(4700) else { return };
    let name = |at: usize| mount.path(&format!("d{}/f{at}", at % 50));
    for at in 0..50 {
        fs::create_dir(mount.path(&format!("d{at}"))).unwrap();
    }
    for at in 0..3000 {
        fs::write(name(at), format!("content {at}")).unwrap();
    }
    symlink("target", mount.path("link")).unwrap();
    fs::create_dir(mount.path("inside")).unwrap();
    let held: Vec<File> = (2900..3000).map(|at| File::open(name(at)).unwrap()).collect();
    let inside = File::open(mount.path("inside")).unwrap();
    for at in 2900..3000 {
        fs::set_permissions(name(at), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(name(at)).unwrap();
    }
    fs::remove_dir(mount.path("inside")).unwrap();
    assert_eq!(inside.metadata().unwrap().nlink(), 0);
    for at in 0..1000 {
        fs::rename(name(at), name(at + 5000)).unwrap();
    }
    for (at, mut file) in held.into_iter().enumerate() {
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!((content, file.metadata().unwrap().nlink()), (format!("content {}", at + 2900), 0));
    }
    for at in (1000..2900).chain(5000..6000) {
        let original = if at < 5000 { at } else { at - 5000 };
        assert_eq!(fs::read_to_string(name(at)).unwrap(), format!("content {original}"));
        assert_eq!(fs::metadata(name(at)).unwrap().nlink(), 1);
    }
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("target"));
}

#[test]
fn every_kind_of_inode() {
    let Some(mount) = Mount::start() else { return };
    symlink("some/target", mount.path("link")).unwrap();
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("some/target"));
    assert!(fs::symlink_metadata(mount.path("link")).unwrap().is_symlink());
    let mode = Mode::from_bits_truncate(0o640);
    mknod(&mount.path("pipe"), SFlag::S_IFIFO, mode, 0).unwrap();
    mknod(&mount.path("device"), SFlag::S_IFCHR, mode, libc::makedev(10, 300)).unwrap();
    mknod(&mount.path("socket"), SFlag::S_IFSOCK, mode, 0).unwrap();
    mknod(&mount.path("plain"), SFlag::S_IFREG, mode, 0).unwrap();
    assert!(fs::metadata(mount.path("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(mount.path("device")).unwrap().rdev(), libc::makedev(10, 300));
    fs::write(mount.path("plain"), b"has an identity").unwrap();
    std::os::unix::net::UnixListener::bind(mount.path("bound")).unwrap();
    fs::remove_file(mount.path("socket")).unwrap();
    fs::rename(mount.path("link"), mount.path("pipe")).unwrap();
    assert!(fs::symlink_metadata(mount.path("pipe")).unwrap().is_symlink());
}

#[test]
fn hard_links_share_size_times_and_count() {
    let Some(mount) = Mount::start() else { return };
    let (one, two, three) = (mount.path("one"), mount.path("two"), mount.path("three"));
    fs::write(&one, b"content").unwrap();
    let made = fs::metadata(&one).unwrap();
    fs::hard_link(&one, &two).unwrap();
    let linked = fs::metadata(&one).unwrap();
    assert_eq!((linked.nlink(), fs::metadata(&two).unwrap().nlink()), (2, 2));
    assert!((linked.ctime(), linked.ctime_nsec()) > (made.ctime(), made.ctime_nsec()));
    fs::OpenOptions::new().append(true).open(&two).unwrap().write_all(b" more").unwrap();
    assert_eq!(fs::metadata(&one).unwrap().len(), 12);
    fs::hard_link(&two, &three).unwrap();
    let before = fs::metadata(&three).unwrap();
    fs::remove_file(&one).unwrap();
    let after = fs::metadata(&three).unwrap();
    assert_eq!(after.nlink(), 2);
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    fs::rename(&two, &three).unwrap();
    assert_eq!(fs::metadata(&two).unwrap().nlink(), 2, "renaming one name of a file over another does nothing");
    fs::remove_file(&two).unwrap();
    assert_eq!(fs::read(&three).unwrap(), b"content more");
}

#[test]
fn a_file_without_names_lives_until_its_last_close() {
    let Some(mut mount) = Mount::start() else { return };
    let path = mount.path("unlinked");
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&[1; 100_000], 0).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::read_dir(mount.behind("grave")).unwrap().count(), 1);
    file.write_all_at(&[2; 100_000], 50_000).unwrap();
    let shown = file.metadata().unwrap();
    assert_eq!((shown.nlink(), shown.len()), (0, 150_000));
    mount.ask("checkpoint");
    file.sync_all().unwrap();
    let mut content = vec![0; 150_000];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content[..50_000].iter().all(|byte| *byte == 1) && content[50_000..].iter().all(|byte| *byte == 2));
    // A new file of that name is another file.
    fs::write(&path, b"new").unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), shown.ino());
    drop(file);
    wait_until("the grave is empty", || {
        mount.ask("checkpoint");
        fs::read_dir(mount.behind("grave")).unwrap().count() == 0
    });
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn renames_replace_refuse_and_exchange() {
    let Some(mount) = Mount::start() else { return };
    let (one, two) = (mount.path("one"), mount.path("two"));
    fs::write(&one, b"one").unwrap();
    fs::write(&two, b"two").unwrap();
    let refused = rename_with(&one, &two, RenameFlags::RENAME_NOREPLACE);
    assert_eq!(refused.unwrap_err(), nix::errno::Errno::EEXIST);
    rename_with(&one, &two, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&one).unwrap(), fs::read(&two).unwrap()), (b"two".to_vec(), b"one".to_vec()));
    let mut replaced = File::open(&two).unwrap();
    fs::rename(&one, &two).unwrap();
    assert_eq!(fs::read(&two).unwrap(), b"two");
    let mut old = String::new();
    replaced.read_to_string(&mut old).unwrap();
    assert_eq!((old.as_str(), replaced.metadata().unwrap().nlink()), ("one", 0));
    fs::create_dir(mount.path("directory")).unwrap();
    fs::rename(&two, mount.path("directory/three")).unwrap();
    rename_with(&mount.path("directory"), &mount.path("moved"), RenameFlags::RENAME_NOREPLACE).unwrap();
    assert_eq!(fs::read(mount.path("moved/three")).unwrap(), b"two");
    assert!(fs::remove_dir(mount.path("moved")).is_err());
}

#[test]
fn times_are_kept_exactly_and_move_when_they_should() {
    let Some(mut mount) = Mount::start() else { return };
    let path = mount.path("dated");
    fs::write(&path, b"content").unwrap();
    let of = |path: &Path| {
        let shown = fs::metadata(path).unwrap();
        ((shown.atime(), shown.atime_nsec()), (shown.mtime(), shown.mtime_nsec()), (shown.ctime(), shown.ctime_nsec()))
    };
    let set = |access: TimeSpec, modification: TimeSpec| {
        utimensat(AT_FDCWD, &path, &access, &modification, UtimensatFlags::FollowSymlink).unwrap();
    };
    set(TimeSpec::new(-5, 250_000_000), TimeSpec::new(1_234_567_890, 123_456_789));
    let (access, modification, change) = of(&path);
    assert_eq!((access, modification), ((-5, 250_000_000), (1_234_567_890, 123_456_789)));
    set(TimeSpec::UTIME_OMIT, TimeSpec::new(4_000_000_000, 7));
    assert_eq!(of(&path).1, (4_000_000_000, 7));
    assert!(of(&path).2 > change);
    mount.unmount();
    mount.restart();
    assert_eq!((of(&path).0, of(&path).1), ((-5, 250_000_000), (4_000_000_000, 7)));
    let before = of(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(of(&path).1, before.1, "a mode is not content");
    assert!(of(&path).2 > before.2);
    let before = of(&path);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
    let after = of(&path);
    assert!(after.1.0 > 1_700_000_000 && after.1.0 < 4_000_000_000 && after.2 > before.2, "{before:?} {after:?}");
    let before = of(&path);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap();
    assert!(of(&path).1 > before.1 && of(&path).2 > before.2);
    let parent = of(&mount.path(""));
    fs::remove_file(&path).unwrap();
    assert!(of(&mount.path("")).1 > parent.1);
}

#[test]
fn room_and_inodes_are_told() {
    let Some(mount) = Mount::start() else { return };
    let shown = nix::sys::statvfs::statvfs(&mount.path("")).unwrap();
    assert!(shown.blocks() > 0 && shown.blocks_available() > 0 && shown.blocks_available() <= shown.blocks());
    assert!(shown.files() > 0 && shown.name_max() == 255);
}

pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..100 {
        if is() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("waited 10 s in vain: {what}");
}
