use super::{
    BadPage, CONTROL_BYTES, PAGE_BYTES, PageFiles, PageReport, Pages, checksum, is_sound, segment, segment_blocks,
};
use crate::units::FileId;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// Pages of a cluster made by initdb --data-checksums of PostgreSQL 15.18: block, and runs of bytes that are not 0.
const VECTORS: &[(u32, &[(usize, &str)])] = &[
    (0, &[(5, "cd4a0161ea00001800002000200420"), (24, "3f")]),
    (1, &[(4, "60ed4501322c00001c00e01ff01f0420"), (24, "e09f20"), (8164, "01001000f734"), (8188, "03")]),
    (
        2,
        &[
            (4, "38f47101707100001800002000200420"),
            (28, "e4e400e4"),
            (35, "e4"),
            (43, "e4"),
            (59, "e4"),
            (91, "e4"),
            (155, "e4"),
            (283, "e4"),
            (539, "e4"),
            (1051, "e4"),
            (2075, "e4"),
            (4123, "e4"),
        ],
    ),
];

fn page(runs: &[(usize, &str)]) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    for (at, hex) in runs {
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            let text = std::str::from_utf8(pair).expect("text");
            page[at + index] = u8::from_str_radix(text, 16).expect("hex");
        }
    }
    page
}

/// As PostgreSQL 13 to 17 writes it, with what matters here.
fn control(page_bytes: u32, segment_blocks: u32, checksums: u32) -> Vec<u8> {
    let mut bytes = vec![0; CONTROL_BYTES];
    bytes[208..216].copy_from_slice(&super::FLOAT_FORMAT.to_le_bytes());
    for (at, word) in [(216, page_bytes), (220, segment_blocks), (252, checksums)] {
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let sum = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn checksums_of_a_real_cluster() {
    for (block, runs) in VECTORS {
        let mut page = page(runs);
        assert!(is_sound(&page, *block), "block {block}");
        assert!(!is_sound(&page, *block + 1), "the block's number is part of it");
        for bit in [0, 63, 64 + 16, 8 * 14, 8 * 200, 8 * PAGE_BYTES - 1] {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sound(&page, *block), "bit {bit} of block {block}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
    let mut new = [0; PAGE_BYTES];
    assert!(is_sound(&new, 7), "a page that was added and not filled yet");
    new[5000] = 1;
    assert!(!is_sound(&new, 7), "but it has nothing in it");
}

#[test]
fn which_files_are_relations() {
    for (path, found) in [
        ("base/5/1259", Some((0, 0))),
        ("base/5/1259.3", Some((0, 3))),
        ("base/5/1259_fsm", Some((0, 0))),
        ("base/5/1259_vm.2", Some((0, 2))),
        ("base/5/16400_init", Some((0, 0))),
        ("global/1262", Some((0, 0))),
        ("15/main/base/5/1259", Some((8, 0))),
        ("15/main/global/1262.1", Some((8, 1))),
        ("main/pg_tblspc/16384/PG_15_202209061/5/16385.1", Some((5, 1))),
        ("base/5/pg_filenode.map", None),
        ("base/5/PG_VERSION", None),
        ("base/5/t3_16400", None),
        ("base/5/1259_other", None),
        ("base/5/1259.old", None),
        ("base/pgsql_tmp/1259", None),
        ("global/pg_control", None),
        ("pg_wal/000000010000000000000001", None),
        ("database/5/1259", None),
        ("1259", None),
    ] {
        assert_eq!(segment(path), found, "{path}");
    }
    assert_eq!(bad(3, "15/main/base/5/1259").in_cluster(), ("15/main/", "base/5/1259"));
}

#[test]
fn only_a_sound_control_file_that_says_so_is_believed() {
    assert_eq!(segment_blocks(&control(8192, 131_072, 1)), Ok(Some(131_072)));
    assert_eq!(segment_blocks(&control(8192, 131_072, 0)), Ok(None), "no checksums");
    assert!(segment_blocks(&control(16_384, 65_536, 1)).is_err_and(|why| why.contains("8 KiB")));
    assert!(segment_blocks(&control(8192, 131_072, 2)).is_err_and(|why| why.contains("unknown kind")));
    let mut torn = control(8192, 131_072, 1);
    torn[100] ^= 1;
    assert!(segment_blocks(&torn).is_err_and(|why| why.contains("wrong")));
    assert!(segment_blocks(&[]).is_err());
    assert!(segment_blocks(&control(8192, 131_072, 1)[..250]).is_err());
}

/// Two segments of two blocks each, the control file, and a stranger.
struct Lab {
    files: HashMap<FileId, Vec<u8>>,
}

impl Lab {
    fn new() -> Lab {
        let sound: Vec<u8> = VECTORS.iter().flat_map(|(_, runs)| page(runs)).collect();
        let files =
            [control(8192, 2, 1), sound[..2 * PAGE_BYTES].to_vec(), sound[2 * PAGE_BYTES..].to_vec(), vec![1; 9000]];
        Lab { files: files.into_iter().zip(1..).map(|(bytes, id)| (FileId(id), bytes)).collect() }
    }

    fn open(&self, before: Option<&PageReport>) -> Pages {
        let mut files = PageFiles::default();
        for (path, id) in
            [("global/pg_control", 1), ("base/5/16384", 2), ("base/5/16384.1", 3), ("base/5/PG_VERSION", 4)]
        {
            if self.files.contains_key(&FileId(id)) {
                files.meet(path.as_bytes(), FileId(id));
            }
        }
        let read = |file, at: u64, buf: &mut [u8]| {
            let bytes: &Vec<u8> = &self.files[&file];
            let rest = bytes.get(usize::try_from(at).expect("small")..).unwrap_or_default();
            let filled = rest.len().min(buf.len());
            buf[..filled].copy_from_slice(&rest[..filled]);
            Ok(filled)
        };
        Pages::open(files, before, &read).expect("opened")
    }

    fn all(&self, pages: &Pages) -> PageReport {
        for (file, bytes) in &self.files {
            pages.check(*file, 0, bytes);
        }
        pages.report().expect("a cluster with checksums")
    }
}

fn bad(block: u32, path: &str) -> BadPage {
    BadPage { path: path.to_owned(), block }
}

#[test]
fn wrong_pages_are_named_and_remembered_as_long_as_they_are_wrong() {
    let mut lab = Lab::new();
    assert_eq!(lab.all(&lab.open(None)), PageReport { checked: 3, bad: 0, named: vec![] });
    lab.files.get_mut(&FileId(3)).expect("there")[777] ^= 8;
    lab.files.get_mut(&FileId(2)).expect("there")[PAGE_BYTES + 8] ^= 1;
    let first = lab.all(&lab.open(None));
    assert_eq!((first.checked, first.bad), (3, 2));
    assert_eq!(first.named, [bad(1, "base/5/16384"), bad(2, "base/5/16384.1")]);
    // A snapshot that reads none of it says the same.
    let next = lab.open(Some(&first)).report().expect("a cluster");
    assert_eq!((next.checked, next.bad, &next.named), (0, 2, &first.named));
    // Read again, a page counts once.
    assert_eq!(lab.all(&lab.open(Some(&first))).bad, 2);
    // Written anew, or gone, it is not wrong any more.
    lab.files.get_mut(&FileId(3)).expect("there")[777] ^= 8;
    assert_eq!(lab.open(Some(&next)).report().expect("a cluster").named, [bad(1, "base/5/16384")]);
    lab.files.remove(&FileId(2));
    assert_eq!(lab.open(Some(&next)).report().expect("a cluster").bad, 0);
    // Without a control file that says so nothing is looked at.
    lab.files.remove(&FileId(1));
    assert_eq!(lab.open(Some(&next)).report(), None);
}

#[test]
fn more_than_are_named_are_counted() {
    let mut lab = Lab::new();
    let many = u64::try_from(super::NAMED_MAX + 5).expect("small");
    lab.files.insert(FileId(1), control(8192, 131_072, 1));
    lab.files.remove(&FileId(3));
    lab.files.insert(FileId(2), [1; PAGE_BYTES].repeat(super::NAMED_MAX + 5));
    let report = lab.all(&lab.open(None));
    assert_eq!((report.bad, report.named.len()), (many, super::NAMED_MAX));
    assert_eq!(lab.open(Some(&report)).report().expect("a cluster").bad, many);
}

/// Where PostgreSQL is installed: every page of a new cluster is sound.
#[test]
fn a_whole_new_cluster_is_sound() {
    let Some(initdb) = glob_initdb() else {
        assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: no initdb");
        eprintln!("\n*** SKIPPED, nothing was tested: no initdb ***\n");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut command = Command::new(&initdb);
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        let Ok(Some(user)) = nix::unistd::User::from_name("postgres") else { panic!("initdb, but no user postgres") };
        std::os::unix::fs::chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let made = command.arg("-D").arg(&data).args(["--data-checksums", "--no-sync"]).output().expect("initdb");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let control = std::fs::read(data.join("global/pg_control")).expect("pg_control");
    let blocks = segment_blocks(&control[..CONTROL_BYTES]);
    assert_eq!(blocks, Ok(Some(131_072)));
    let mut checked = 0;
    let directories = std::fs::read_dir(data.join("base")).expect("base").map(|entry| entry.expect("an entry").path());
    for directory in directories.chain([data.join("global")]) {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let relative = path.strip_prefix(&data).expect("below").to_str().expect("text");
            if segment(relative).is_none() {
                continue;
            }
            let bytes = std::fs::read(&path).expect("a relation");
            for (page, block) in bytes.as_chunks::<PAGE_BYTES>().0.iter().zip(0..) {
                assert!(is_sound(page, block), "{relative} block {block}: {:#x}", checksum(page, block));
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "only {checked} pages");
}

fn glob_initdb() -> Option<std::path::PathBuf> {
    let versions = std::fs::read_dir(Path::new("/usr/lib/postgresql")).ok()?;
    versions.map(|entry| entry.expect("an entry").path().join("bin/initdb")).find(|path| path.exists())
}
