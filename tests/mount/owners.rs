//! Owners, modes, ACLs, extended attributes.

use crate::server::Mount;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// Runs a shell line as another user, with the given supplementary groups (`setpriv` of util-linux).
fn run_as(uid: u32, gid: u32, groups: &str, line: &str) -> bool {
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    let status = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={gid}"), groups])
        .args(["sh", "-c", line])
        .status()
        .expect("setpriv (util-linux) runs");
    status.success()
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (Debian packages acl, attr, coreutils): {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn files_belong_to_who_made_them() {
    let Some(mount) = Mount::start() else { return };
    let line = |what: &str| format!("umask 027; cd {} && {what}", mount.path("").display());
    assert!(run_as(1234, 2345, "", &line("echo x > file && mkdir directory && ln -s a link && mkfifo pipe")));
    for name in ["file", "directory", "link", "pipe"] {
        let shown = fs::symlink_metadata(mount.path(name)).unwrap();
        assert_eq!((shown.uid(), shown.gid()), (1234, 2345), "{name}");
        let behind = fs::symlink_metadata(mount.behind(&format!("tree/{name}"))).unwrap();
        assert_eq!((behind.uid(), behind.gid()), (1234, 2345), "{name} in home");
    }
    assert_eq!((mode(&mount.path("file")), mode(&mount.path("directory"))), (0o640, 0o750));
    chmod(&mount.path(""), 0o750);
    assert!(!run_as(1234, 2345, "", &line("true")), "others may not enter");
    // Only the supplementary group, which requests do not carry, gives this caller the permission.
    fs::create_dir(mount.path("group")).unwrap();
    chmod(&mount.path(""), 0o755);
    std::os::unix::fs::chown(mount.path("group"), Some(0), Some(777)).unwrap();
    chmod(&mount.path("group"), 0o770);
    assert!(run_as(1234, 2345, "777", &line("echo x > group/file")));
    assert!(!run_as(1234, 2345, "", &line("echo x > group/other")));
    let shown = fs::metadata(mount.path("group/file")).unwrap();
    assert_eq!((shown.uid(), shown.gid()), (1234, 2345));
}

/// A user that every system has a name for, which the setuid program asks for.
const NOBODY: u32 = 65534;

/// R29: without root there are no other owners and no other users, and everything else works.
#[test]
fn r29_an_ordinary_user_can_serve_his_own_files() {
    let Some(mut mount) = Mount::start_as(NOBODY) else { return };
    let line = |what: &str| format!("set -e; cd {}; {what}", mount.path("").display());
    let work = "umask 027; echo first > file; echo second >> file; mkdir directory; mv file directory/moved; \
                ln directory/moved linked; chmod 600 linked; truncate -s 100000 linked; sync linked; \
                umask 0777; echo x > closed; chmod 600 closed; grep -q x closed; rm closed; \
                test $(stat -c %h:%s:%a:%u linked) = 2:100000:600:65534; ! chown 0 linked 2> /dev/null";
    assert!(run_as(NOBODY, NOBODY, "", &line(work)), "{}", mount.log());
    assert!(!run_as(4321, 4321, "", &line("true")), "nobody else may enter");
    mount.unmount();
    assert_eq!(fs::metadata(mount.behind("tree/linked")).unwrap().uid(), NOBODY);
}

#[test]
fn setgid_directories_hand_their_group_down() {
    let Some(mount) = Mount::start() else { return };
    let directory = mount.path("shared");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(0), Some(777)).unwrap();
    chmod(&directory, 0o2777);
    let line = format!("umask 002; cd {} && echo x > file && mkdir below", directory.display());
    assert!(run_as(1234, 2345, "", &line));
    assert_eq!(fs::metadata(directory.join("file")).unwrap().gid(), 777);
    let below = fs::metadata(directory.join("below")).unwrap();
    assert_eq!((below.gid(), below.mode() & 0o7777), (777, 0o2775));
}

/// A file made read-only by its mode must stay writable for the handle that made it.
#[test]
fn r21_the_mode_does_not_bind_the_handle_that_made_the_file() {
    let Some(mount) = Mount::start() else { return };
    let line = format!(
        "cd {} && umask 0377 && exec 3> readonly && echo first >&3 && echo second >&3 && grep -q second readonly",
        mount.path("").display()
    );
    assert!(run_as(1234, 2345, "", &line));
    assert_eq!(mode(&mount.path("readonly")), 0o400);
}

#[test]
fn set_id_bits_go_when_others_write() {
    let Some(mount) = Mount::start() else { return };
    let path = mount.path("program");
    fs::write(&path, b"x").unwrap();
    let line = |what: &str| what.replace('@', &path.display().to_string());
    for (what, keeps) in [("echo y >> @", false), ("truncate -s 5 @", false), ("true < @", true)] {
        std::os::unix::fs::chown(&path, Some(1234), Some(2345)).unwrap();
        chmod(&path, 0o6777);
        assert_eq!(mode(&path), 0o6777);
        assert!(run_as(4321, 5432, "", &line(what)));
        assert_eq!(mode(&path), if keeps { 0o6777 } else { 0o777 }, "{what}");
        assert_eq!(mode(&mount.behind("tree/program")), mode(&path));
    }
    chmod(&path, 0o6777);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1).unwrap();
    fs::write(&path, b"by root").unwrap();
    assert_eq!(mode(&path), 0o6777, "who may set them keeps them");
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(&path), 0o777, "a new owner does not");
}

#[test]
fn acls_are_kept_enforced_and_inherited() {
    let Some(mut mount) = Mount::start() else { return };
    let directory = mount.path("directory");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), b"x").unwrap();
    chmod(&directory.join("file"), 0o600);
    run("setfacl", &["-m", "u:1234:r--"], &directory.join("file"));
    let read = format!("cat {} > /dev/null", directory.join("file").display());
    assert!(run_as(1234, 2345, "", &read), "the ACL lets this user read");
    assert!(!run_as(1235, 2345, "", &read), "and nobody else");
    assert_eq!(mode(&directory.join("file")), 0o640, "the group bits show the mask");
    run("setfacl", &["-d", "-m", "u:1234:rwx,g::r-x,o::---,m::rwx"], &directory);
    let line = format!("umask 077; cd {} && echo x > inherited && mkdir below", directory.display());
    chmod(&directory, 0o777);
    assert!(run_as(4321, 5432, "", &line));
    let acl = run("getfacl", &["-n", "-c", "--absolute-names"], &directory.join("inherited"));
    assert!(acl.contains("user:1234:rwx"), "{acl}");
    // A default ACL takes the place of the umask.
    assert_eq!(mode(&directory.join("inherited")), 0o660, "{acl}");
    let below = run("getfacl", &["-n", "-c", "--absolute-names"], &directory.join("below"));
    assert!(below.contains("default:user:1234:rwx"), "{below}");
    mount.unmount();
    mount.restart();
    assert_eq!(run("getfacl", &["-n", "-c", "--absolute-names"], &directory.join("inherited")), acl);
    run("setfacl", &["-b"], &directory.join("file"));
    assert!(!run_as(1234, 2345, "", &read));
}

#[test]
fn our_attributes_cannot_be_seen_or_touched() {
    let Some(mount) = Mount::start() else { return };
    let path = mount.path("file");
    fs::write(&path, b"x").unwrap();
    let xattr = |arguments: &[&str]| {
        let output = Command::new("setfattr").args(arguments).arg(&path).output().expect("setfattr (attr) runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(xattr(&["-n", "user.mine", "-v", "value"]).0);
    for arguments in [["-n", "user.heatfs.id", "-v", "stolen"].as_slice(), &["-x", "user.heatfs.id"]] {
        let (done, said) = xattr(arguments);
        assert!(!done && said.contains("Operation not permitted"), "{said}");
    }
    let shown = run("getfattr", &["-d", "-m", "-", "--absolute-names"], &path);
    assert!(shown.contains("user.mine=\"value\"") && !shown.contains("heatfs"), "{shown}");
    let asked = Command::new("getfattr").args(["-n", "user.heatfs.id"]).arg(&path).output().unwrap();
    assert!(String::from_utf8_lossy(&asked.stderr).contains("No such attribute"));
    let behind = run("getfattr", &["-d", "-m", "-", "--absolute-names"], &mount.behind("tree/file"));
    assert!(behind.contains("user.heatfs.id"), "{behind}");
    assert!(xattr(&["-x", "user.mine"]).0);
    assert_eq!(fs::read(&path).unwrap(), b"x");
}
