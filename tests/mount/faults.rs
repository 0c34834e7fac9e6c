//! What happens when the world misbehaves: copies behind the mount, crashes, users who stay.

use crate::server::{self, Mount};
use heatfs::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::Command;

/// R10: a copy carries the attribute of the original, but it is another inode. Its content would be the original's, or nothing.
#[test]
fn r10_a_copy_made_behind_the_mount_is_an_error_never_zeros() {
    let Some(mut mount) = Mount::start() else { return };
    fs::write(mount.path("original"), b"content").unwrap();
    let copied = Command::new("cp")
        .args(["-a", "--preserve=all"])
        .arg(mount.behind("tree/original"))
        .arg(mount.behind("tree/copy"))
        .status()
        .unwrap();
    assert!(copied.success());
    fs::write(mount.behind("tree/stranger"), b"made behind the mount").unwrap();
    for name in ["copy", "stranger"] {
        let path = mount.path(name);
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "it is listed");
        for outcome in
            [fs::read(&path).map(drop), fs::write(&path, b"x"), OpenOptions::new().append(true).open(&path).map(drop)]
        {
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
        }
        assert!(nix::unistd::truncate(&path, 0).is_err());
        assert!(mount.log().contains(&format!("tree/{name}: ")), "the log names it: {}", mount.log());
    }
    assert_eq!(fs::read(mount.path("original")).unwrap(), b"content");
    fs::remove_file(mount.path("copy")).unwrap();
    fs::remove_file(mount.path("stranger")).unwrap();
    mount.unmount();
    mount.restart();
    assert_eq!(fs::read(mount.path("original")).unwrap(), b"content");
}

/// R13: what somebody wrote to home's file is neither shown nor covered up: the file is an error until the user has decided.
#[test]
fn r13_a_file_written_behind_the_mount_is_an_error_until_that_is_taken_back() {
    let Some(mut mount) = Mount::start() else { return };
    fs::write(mount.path("changed"), b"content").unwrap();
    fs::write(mount.path("other"), b"content").unwrap();
    mount.unmount();
    fs::write(mount.behind("tree/changed"), b"written behind").unwrap();
    mount.restart();
    for outcome in [fs::read(mount.path("changed")).map(drop), fs::write(mount.path("changed"), b"x")] {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    assert!(mount.log().contains("tree/changed: 14 bytes were written to it behind the mount"), "{}", mount.log());
    assert_eq!(fs::read(mount.path("other")).unwrap(), b"content");
    mount.unmount();
    File::options().write(true).truncate(true).open(mount.behind("tree/changed")).unwrap();
    mount.restart();
    assert_eq!(fs::read(mount.path("changed")).unwrap(), b"content");
}

#[test]
fn r10_what_was_synced_is_there_after_a_kill() {
    let Some(mut mount) = Mount::start() else { return };
    fs::create_dir_all(mount.path("new/directory")).unwrap();
    let mut file = File::create(mount.path("new/directory/file")).unwrap();
    for round in 0..20_u8 {
        file.write_all(&[round; 5000]).unwrap();
        file.sync_all().unwrap();
    }
    fs::write(mount.path("other"), b"other").unwrap();
    fs::rename(mount.path("new/directory/file"), mount.path("other")).unwrap();
    let gone = File::create(mount.path("gone")).unwrap();
    gone.sync_all().unwrap();
    fs::remove_file(mount.path("gone")).unwrap();
    drop(file);
    mount.kill_and_restart();
    let content = fs::read(mount.path("other")).unwrap();
    assert_eq!(content.len(), 100_000);
    assert!((0..20_u8).all(|round| content[usize::from(round) * 5000..][..5000].iter().all(|byte| *byte == round)));
    assert!(!mount.path("gone").exists());
    crate::names::wait_until("the grave is empty", || {
        mount.ask("checkpoint");
        fs::read_dir(mount.behind("grave")).unwrap().count() == 0
    });
}

/// R11: home must not show the new file under the old name before its bytes are durable in the log: a crash in between would leave
/// neither the old content nor the new. Nothing is synced here but by the rename itself.
#[test]
fn r11_a_rename_over_a_file_comes_after_the_bytes() {
    let base = tempfile::tempdir().unwrap();
    server::create(base.path());
    let (volume, namespace) = server::open(base.path());
    let caller = heatfs::namespace::Caller { uid: 0, gid: 0, pid: 0 };
    let root = heatfs::namespace::ROOT_INODE;
    let old = namespace.create(root, "target".as_ref(), caller, 0o600, 0).unwrap().node;
    let new = namespace.create(root, "new".as_ref(), caller, 0o600, 0).unwrap().node;
    namespace.write(&new, 0, b"new content", heatfs::volume::Wait::Allowed).unwrap();
    let log = volume.status().log;
    assert!(log.durable_lsn < log.next_lsn, "the bytes are not durable yet: {log:?}");
    namespace.rename(root, "new".as_ref(), root, "target".as_ref(), heatfs::namespace::RenameMode::Replace).unwrap();
    let after = volume.status().log;
    assert!(after.durable_lsn >= log.next_lsn, "{log:?}, then {after:?}");
    namespace.release(old.inode, 1);
    namespace.release(new.inode, 1);
    namespace.close();
    volume.shut_down().unwrap();
}

#[test]
fn a_mount_in_use_is_not_taken_away() {
    let Some(mut mount) = Mount::start() else { return };
    let mut file = File::create(mount.path("held")).unwrap();
    let said = mount.ask("unmount");
    assert!(said.contains("in use"), "{said}");
    file.write_all(b"goes on").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read(mount.path("held")).unwrap(), b"goes on");
}

#[test]
fn r28_an_unmount_by_somebody_else_is_a_clean_stop() {
    let Some(mut mount) = Mount::start() else { return };
    fs::write(mount.path("file"), b"content").unwrap();
    assert!(Command::new("umount").arg(mount.path("")).status().unwrap().success());
    assert_eq!(mount.ask("wait"), "ended");
    mount.restart();
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"content");
}

/// Paths and identities without a mount.
#[test]
fn files_are_found_by_path_and_by_walking() {
    let base = tempfile::tempdir().unwrap();
    server::create(base.path());
    let (volume, namespace) = server::open(base.path());
    let caller = heatfs::namespace::Caller { uid: 0, gid: 0, pid: 0 };
    let root = heatfs::namespace::ROOT_INODE;
    let directory = namespace.make_directory(root, "a".as_ref(), caller, 0o700, 0).unwrap();
    let file = namespace.create(directory.node.inode, "b".as_ref(), caller, 0o600, 0).unwrap();
    let (id, found) = namespace.file_at("/a/b").unwrap();
    assert_eq!((found.id(), namespace.path_of(id).as_deref()), (id, Some("a/b")));
    assert!(matches!(namespace.file_at("a"), Err(Error::Invalid(_))));
    assert!(matches!(namespace.file_at("a/../a/b"), Err(Error::Invalid(_))));
    assert!(matches!(namespace.file_at("a/c"), Err(Error::NotFound(_))));
    fs::write(base.path().join("fast/home/tree/stranger"), b"").unwrap();
    let mut seen = Vec::new();
    namespace
        .walk(&mut |visit| {
            seen.push((visit.path.to_owned(), visit.file.clone().map(|file| file.ok())));
            Ok(())
        })
        .unwrap();
    seen.sort();
    let expected = [("a", None), ("a/b", Some(Some(id))), ("stranger", Some(None))];
    assert_eq!(seen, expected.map(|(path, file)| (path.to_owned(), file)));
    namespace.release(file.node.inode, 1);
    assert_eq!(namespace.path_of(id), None, "forgotten by the kernel");
    namespace.close();
    volume.shut_down().unwrap();
}

/// R10: that the kernel forgot a new file before its first fsync must not make that fsync skip home.
#[test]
fn r10_forgetting_a_file_does_not_forget_what_its_fsync_owes() {
    let base = tempfile::tempdir().unwrap();
    server::create(base.path());
    let (volume, namespace) = server::open(base.path());
    let caller = heatfs::namespace::Caller { uid: 0, gid: 0, pid: 0 };
    let root = heatfs::namespace::ROOT_INODE;
    let inode = namespace.create(root, "file".as_ref(), caller, 0o600, 0).unwrap().node.inode;
    namespace.release(inode, 1);
    assert!(namespace.node(inode).is_err(), "it is forgotten");
    let again = namespace.lookup(root, "file".as_ref()).unwrap();
    assert!(namespace.is_home_pending(&again.node));
    namespace.sync_home(&again.node).unwrap();
    assert!(!namespace.is_home_pending(&again.node));
    namespace.release(inode, 1);
    let clean = namespace.lookup(root, "file".as_ref()).unwrap();
    assert!(!namespace.is_home_pending(&clean.node));
    namespace.release(inode, 1);
    volume.shut_down().unwrap();
}
