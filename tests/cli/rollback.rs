//! Rolling a volume back by its commands, with everything that a directory can have; undone, and confirmed.

use super::bench::{Bench, complaint, pattern, read, wait_until};
use super::snapshots::{Thing, started, tree};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// So slow that a test sees most of it in the repository.
const SLOWLY: (&str, &str) = ("HEATFS__CLONE__BYTES_PER_SECOND", "64KiB");

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn set_xattr(path: &Path, value: &str) {
    let done = Command::new("setfattr").args(["-n", "user.note", "-v", value]).arg(path).status();
    assert!(done.is_ok_and(|status| status.success()), "setfattr, of the package attr, is needed");
}

/// Attributes of all names, as text.
fn xattrs(root: &Path) -> String {
    let found = Command::new("getfattr").args(["-R", "-h", "-d", "-m", "user.", "."]).current_dir(root).output();
    let text = String::from_utf8(found.unwrap().stdout).unwrap();
    let mut parts: Vec<&str> = text.split("\n\n").collect();
    parts.sort_unstable();
    parts.join("\n\n")
}

type Seen = (BTreeMap<String, Thing>, String);

fn seen(bench: &Bench) -> Seen {
    (tree(&bench.data()), xattrs(&bench.data()))
}

/// A volume with a snapshot, and much that has happened since. The snapshot's id, what it holds, what the volume is now.
fn with_history() -> Option<(Bench, String, Seen, Seen)> {
    let bench = started()?;
    let data = bench.data();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    fs::set_permissions(data.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(data.join("base"), Some(12), Some(34)).unwrap();
    set_xattr(&data.join("base/1/table"), "of the snapshot");
    set_xattr(&data.join("base"), "of a directory");
    fs::create_dir_all(data.join("gone/below")).unwrap();
    fs::write(data.join("gone/below/dropped"), pattern(500_000)).unwrap();
    fs::write(data.join("zeros"), vec![0; 300_000]).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 20 << 20).unwrap();
    drop(sparse);
    fs::create_dir(data.join("sticky")).unwrap();
    fs::set_permissions(data.join("sticky"), fs::Permissions::from_mode(0o1750)).unwrap();
    let was = seen(&bench);
    let id = bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned();

    fs::remove_dir_all(data.join("gone")).unwrap();
    write_at(&data.join("base/1/table"), 70_000, b"after the snapshot");
    fs::File::options().write(true).open(data.join("zeros")).unwrap().set_len(10).unwrap();
    fs::rename(data.join("small"), data.join("renamed")).unwrap();
    fs::remove_file(data.join("link")).unwrap();
    symlink("elsewhere", data.join("link")).unwrap();
    fs::write(data.join("new"), pattern(900_000)).unwrap();
    fs::set_permissions(data.join("base"), fs::Permissions::from_mode(0o711)).unwrap();
    set_xattr(&data.join("base/1/table"), "of now");
    fs::remove_file(data.join("sparse")).unwrap();
    fs::create_dir(data.join("sparse")).unwrap();
    let now = seen(&bench);
    assert!(was.0 != now.0 && was.1.contains("of the snapshot") && now.1.contains("of now"), "{} {}", was.1, now.1);
    Some((bench, id, was, now))
}

fn stop(bench: &mut Bench) {
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
}

fn used(bench: &Bench) -> u64 {
    let status = bench.json(&["status"]);
    status["volume"]["tiers"].as_array().unwrap().iter().map(|tier| tier["used_bytes"].as_u64().unwrap()).sum()
}

/// What `du` would say of a tier's objects.
fn on_disk(bench: &Bench) -> u64 {
    let mut bytes = 0;
    for tier in ["nvme", "sata", "hdd"] {
        for dir in fs::read_dir(bench.path(tier).join("objects")).unwrap() {
            let objects = fs::read_dir(dir.unwrap().path()).unwrap();
            bytes += objects.map(|object| object.unwrap().metadata().unwrap().blocks() * 512).sum::<u64>();
        }
    }
    bytes
}

#[test]
fn a_rolled_back_volume_is_the_snapshot_and_an_undone_one_what_it_was() {
    let Some((mut bench, id, was, now)) = with_history() else { return };
    let running = complaint(&bench.heatfs(&["rollback", &id]).output().unwrap(), 1);
    assert!(running.contains("stop"), "{running}");
    assert_eq!(seen(&bench), now);
    stop(&mut bench);

    let report = bench.json(&["rollback", &id[..12]]);
    assert_eq!(report["snapshot"], id.as_str(), "{report}");
    bench.start_with(&[SLOWLY]);
    assert_eq!(seen(&bench), was, "names, attributes and bytes are those of the snapshot");
    let status = bench.json(&["status"]);
    assert_eq!(status["health"], "healthy", "{status}");
    assert_eq!(status["volume"]["rollback"]["snapshot"], id.as_str(), "{status}");
    assert!(status["hydration"]["left_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    let text = bench.ok(&["status"]);
    assert!(text.contains("--confirm") && text.contains("still in"), "{text}");
    let held = complaint(&bench.heatfs(&["snapshot", "delete", &id]).output().unwrap(), 1);
    assert!(held.contains("in use") && held.contains("rolled back"), "{held}");
    assert!(bench.ok(&["check"]).contains("rolled back to snapshot"));

    // It lives on, is killed, and goes on.
    write_at(&bench.data().join("base/1/table"), 5, b"written to what was rolled back");
    fs::write(bench.data().join("made since"), pattern(100_000)).unwrap();
    fs::File::open(bench.data().join("made since")).unwrap().sync_all().unwrap();
    let since = seen(&bench);
    bench.ok(&["checkpoint"]);
    bench.kill();
    bench.start();
    assert_eq!(seen(&bench), since);
    assert!(wait_until(60, || !bench.path("nvme/clone.json").exists()), "{}", bench.log());
    assert_eq!(seen(&bench), since, "everything came to the tiers");
    // Told against nothing before: all of it is read, and most of it is in the repository already.
    let snapshot = bench.json(&["snapshot", "create"]);
    assert!(snapshot["stored_bytes"].as_u64().unwrap() < 1 << 20, "{snapshot}");
    bench.ok(&["restore", snapshot["id"].as_str().unwrap(), bench.path("restored").to_str().unwrap()]);
    assert_eq!(tree(&bench.path("restored")), since.0);
    stop(&mut bench);

    let release = complaint(&bench.heatfs(&["release"]).output().unwrap(), 1);
    assert!(release.contains("--confirm") && release.contains("--undo"), "{release}");
    let again = complaint(&bench.heatfs(&["rollback", &id]).output().unwrap(), 1);
    assert!(again.contains("--undo"), "{again}");
    bench.ok(&["rollback", "--undo"]);
    let nothing = complaint(&bench.heatfs(&["rollback", "--undo"]).output().unwrap(), 1);
    assert!(nothing.contains("not rolled back"), "{nothing}");
    bench.start();
    assert_eq!(seen(&bench), now, "as if nothing had been");
    assert_eq!(bench.json(&["status"])["volume"]["rollback"], serde_json::Value::Null);
    let told = bench.json(&["snapshot", "create"]);
    bench.ok(&["restore", told["id"].as_str().unwrap(), bench.path("told").to_str().unwrap()]);
    assert_eq!(tree(&bench.path("told")), now.0, "a snapshot after it is of what is there");
    stop(&mut bench);
    assert!(bench.ok(&["check", "--deep"]).contains("0 damages"));
    bench.ok(&["release"]);
    assert_eq!(tree(&bench.data()), now.0, "plain files again");
}

#[test]
fn a_confirmed_rollback_gives_the_space_back() {
    let Some((mut bench, id, was, _)) = with_history() else { return };
    bench.ok(&["settle"]);
    stop(&mut bench);
    let before = on_disk(&bench);
    bench.ok(&["rollback", &id]);
    assert_eq!(on_disk(&bench), before, "nothing was copied, nothing removed");
    bench.start();
    assert!(wait_until(60, || !bench.path("nvme/clone.json").exists()), "{}", bench.log());
    bench.ok(&["checkpoint"]);
    let both = used(&bench);
    stop(&mut bench);
    let said = bench.ok(&["rollback", "--confirm"]);
    assert!(said.contains("is gone"), "{said}");
    bench.start();
    assert_eq!(seen(&bench), was);
    let one = used(&bench);
    // The volume before held a table of 3 MB, and a new file of nearly one.
    assert!(one + 3_800_000 < both, "{one} of {both}");
    assert!(on_disk(&bench) < before + 1_000_000, "{} after {before}", on_disk(&bench));
    assert_eq!(bench.json(&["repo", "stats"])["refs"], 0);
    bench.ok(&["snapshot", "delete", &id]);
    bench.ok(&["snapshot", "prune"]);
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    stop(&mut bench);
    assert!(
        bench.ok(&["check", "--deep"]).contains("no findings") || bench.ok(&["check", "--deep"]).contains("0 damages")
    );
    bench.ok(&["release"]);
    assert_eq!(tree(&bench.data()), was.0, "plain files again");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let Some((mut bench, id, _, now)) = with_history() else { return };
    let refused = |bench: &Bench, args: &[&str], code: i32| complaint(&bench.heatfs(args).output().unwrap(), code);
    assert!(refused(&bench, &["rollback"], 2).contains("SNAPSHOT"));
    assert!(refused(&bench, &["rollback", &id, "--undo"], 2).contains("--undo"));
    assert!(refused(&bench, &["rollback", "--confirm", "--undo"], 2).contains("--undo"));
    stop(&mut bench);
    assert!(refused(&bench, &["rollback", "ZZZZ"], 1).contains("`ZZZZ`"));
    assert!(refused(&bench, &["rollback", "--confirm"], 1).contains("not rolled back"));
    assert!(refused(&bench, &["rollback", "--repository", "/nowhere", &id], 1).contains("/nowhere"));
    let settings = fs::read_to_string(bench.config()).unwrap();
    let full = settings.replace("[[tier]]", "[[tier]]\nreserve = \"1000TiB\"");
    fs::write(bench.config(), full).unwrap();
    let room = refused(&bench, &["rollback", &id], 1);
    assert!(room.contains("room for") && room.contains("--in-place"), "{room}");
    fs::write(bench.config(), settings).unwrap();
    bench.start();
    assert_eq!(seen(&bench), now, "what was refused changed nothing");
    assert_eq!(bench.json(&["repo", "stats"])["refs"], 0);
    stop(&mut bench);
}
