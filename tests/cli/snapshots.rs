//! Snapshots by their commands: taken of a running volume, listed, restored.

use super::bench::{Bench, complaint, pattern, read};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Everything that a restore has to bring back.
#[derive(Debug, PartialEq)]
struct Thing {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    content: Vec<u8>,
}

fn tree(root: &Path) -> BTreeMap<String, Thing> {
    let mut things = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_file() {
            fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        };
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        things.insert(
            name,
            Thing {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                modified: (meta.mtime(), meta.mtime_nsec()),
                links: if meta.is_dir() { 0 } else { meta.nlink() },
                content,
            },
        );
    }
    things
}

fn started() -> Option<Bench> {
    let mut bench = Bench::new()?;
    bench.adopt();
    bench.ok(&["repo", "init", bench.path("repo").to_str().unwrap()]);
    let settings = fs::read_to_string(bench.config()).unwrap();
    let snapshot = format!("\n[snapshot]\nrepository = \"{}\"\n", bench.path("repo").display());
    fs::write(bench.config(), settings + &snapshot).unwrap();
    bench.start();
    Some(bench)
}

fn restored(bench: &Bench, id: &str, name: &str) -> BTreeMap<String, Thing> {
    let into = bench.path(name);
    bench.ok(&["restore", id, into.to_str().unwrap()]);
    tree(&into)
}

#[test]
fn a_snapshot_brings_back_what_was_there() {
    let Some(mut bench) = started() else { return };
    let data = bench.data();
    fs::write(data.join("sparse"), b"").unwrap();
    let sparse = fs::File::options().write(true).open(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 1 << 30).unwrap();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    fs::set_permissions(data.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    sparse.set_len(4 << 20).unwrap();
    sparse.write_all_at(&pattern(100_000), 1 << 20).unwrap();
    let before = tree(&data);
    let first = bench.json(&["snapshot", "create", "--label", "night=1"]);
    assert_eq!(first["labels"]["night"], "1");

    fs::File::options()
        .write(true)
        .open(data.join("base/1/table"))
        .unwrap()
        .write_all_at(&[7; 100], 1_000_000)
        .unwrap();
    fs::remove_file(data.join("small")).unwrap();
    fs::rename(data.join("base/1"), data.join("base/2")).unwrap();
    fs::write(data.join("base/2/new"), pattern(20_000)).unwrap();
    sparse.set_len(50_000).unwrap();
    let after = tree(&data);
    let second = bench.json(&["snapshot", "create"]);
    assert_eq!(second["parent"], first["id"]);
    // One page of the table, three of the new file, and no clean one.
    assert!(second["new_bytes"].as_u64().unwrap() <= 8192 + 3 * 8192, "{second}");
    let third = bench.json(&["snapshot", "create"]);
    assert!(third["new_bytes"] == 0 && third["stored_bytes"].as_u64().unwrap() < 16 << 10, "{third}");

    assert_eq!(restored(&bench, first["id"].as_str().unwrap(), "r1"), before);
    assert_eq!(restored(&bench, second["id"].as_str().unwrap(), "r2"), after);
    assert_eq!(restored(&bench, "latest", "r3"), after);
    assert!(bench.path("r1/sparse").metadata().unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    bench.ok(&["restore", "latest", bench.path("part").to_str().unwrap(), "--path", "base/2"]);
    assert_eq!(read(&bench.path("part/new")), pattern(20_000));

    // What changed while no snapshot was under way, and while nothing ran at all, is still known.
    fs::File::options().write(true).open(data.join("base/2/table")).unwrap().write_all_at(&[8; 9], 2_000_000).unwrap();
    drop(sparse);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    bench.start();
    let fourth = bench.json(&["snapshot", "create"]);
    assert_eq!(fourth["new_bytes"], 8192, "{fourth}");
    assert_eq!(restored(&bench, "latest", "r4"), tree(&data));

    let list = bench.json(&["snapshot", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 4);
    assert!(bench.ok(&["snapshot", "list"]).contains("night=1"));
    assert!(bench.ok(&["snapshot", "show", "latest"]).contains(third["id"].as_str().unwrap()));
    bench.ok(&["repo", "stats"]);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let Some(mut bench) = started() else { return };
    bench.json(&["snapshot", "create"]);
    let refused = |args: &[&str], code: i32| complaint(&bench.heatfs(args).output().unwrap(), code);
    let full = bench.path("nvme");
    assert!(refused(&["restore", "latest", full.to_str().unwrap()], 1).contains("not empty"));
    let into = bench.path("nowhere");
    let into = into.to_str().unwrap();
    assert!(refused(&["restore", "0", into, "--path", "base/none"], 1).contains("base/none"));
    assert!(refused(&["restore", "ZZZZ", into], 1).contains("`ZZZZ`"));
    assert!(refused(&["snapshot", "create", "--label", "novalue"], 2).contains("KEY=VALUE"));
    assert!(refused(&["snapshot", "create", "--label", "heatfs.mark=1"], 2).contains("heatfs.mark"));
    assert!(refused(&["repo", "init", bench.path("repo").to_str().unwrap()], 1).contains("already"));
    assert!(refused(&["snapshot", "list", "--repository", "/nonexistent"], 1).contains("/nonexistent"));
    let (key, locked) = (bench.path("key"), bench.path("locked"));
    fs::write(&key, [5; 64]).unwrap();
    bench.ok(&["repo", "init", locked.to_str().unwrap(), "--key-file", key.to_str().unwrap()]);
    let line = refused(&["snapshot", "list", "--repository", locked.to_str().unwrap()], 2);
    assert!(line.contains("key"), "{line}");
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}
