//! Damaged media: an error that names the path, never a panic, never silent zeros or old bytes in place of what was durable.

use crate::harness::{BLOCK, Harness};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::device::{BackingFile, Device, OpenMode};
use heatfs::error::{Error, Result};
use heatfs::ondisk::group::GroupHeader;
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Severity, Wait};
use std::sync::Arc;

const SLOTS: u64 = 6;
const SEGMENT: u64 = 256 << 10;

fn handle(world: &SimWorld, path: &str) -> Arc<dyn BackingFile> {
    world.device("nvme").open(path, OpenMode::default()).expect("the file is there")
}

fn bytes(world: &SimWorld, path: &str) -> Vec<u8> {
    let file = handle(world, path);
    let mut buf = vec![0; usize::try_from(file.len().expect("length")).expect("small")];
    file.read_at(&mut buf, 0).expect("readable");
    buf
}

fn flip(world: &SimWorld, path: &str, at: u64, bit: u8) {
    let file = handle(world, path);
    let mut byte = [0];
    file.read_at(&mut byte, at).expect("readable");
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("writable");
}

/// A group in the log as a test sees it: where it is and what its header says.
struct Found {
    path: String,
    offset: u64,
    header: GroupHeader,
}

/// All groups of the log, in the order of their numbers.
fn groups(world: &SimWorld) -> Vec<Found> {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        let path = format!("log/{slot:05}.seg");
        for (page, content) in bytes(world, &path).chunks_exact(4096).enumerate() {
            if let Ok((header, _)) = GroupHeader::decode(content) {
                found.push(Found { path: path.clone(), offset: page as u64 * 4096, header });
            }
        }
    }
    found.sort_by_key(|group| group.header.group_seq);
    found
}

/// A volume that ended without coalescing: `rounds` synced writes of 8 KiB in the log, nothing in the base.
fn logged(rounds: u64) -> (SimWorld, Vec<FileId>, Vec<u8>) {
    let harness = Harness::new(SimWorld::new(3)).expect("opens");
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    for round in 0..rounds {
        let byte = u8::try_from(round % 250 + 1).expect("small");
        volume.write(&file, round * 8192, &[byte; 8192], Wait::Allowed).expect("writes");
        volume.sync_log().expect("syncs");
    }
    let mut expected = vec![0; usize::try_from(rounds * 8192).expect("small")];
    volume.read(&file, 0, &mut expected, Wait::Allowed).expect("readable");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop((file, harness));
    (world.recover(Survival::All), ids, expected)
}

fn content(world: &SimWorld, ids: &[FileId]) -> Result<Vec<u8>> {
    let harness = Harness::open(world.clone(), ids.to_vec())?;
    let file = harness.volume().file(ids[0])?;
    let mut buf = vec![0xee; usize::try_from(file.size_bytes()).expect("small")];
    harness.volume().read(&file, 0, &mut buf, Wait::Allowed)?;
    Ok(buf)
}

/// The error of a mount that must not succeed.
fn refused(result: Result<Vec<u8>>, what: &str) -> Error {
    match result {
        Ok(content) => panic!("{what}: opened, with {} bytes", content.len()),
        Err(error) => error,
    }
}

fn assert_names(error: &Error, path: &str) {
    assert!(error.to_string().contains(path), "`{error}` does not name {path}");
}

/// R7: damage to the header of any group but the last refuses the mount and names the segment; damage to the last looks like
/// a torn tail and costs exactly that group.
#[test]
fn a_damaged_group_header_is_corruption_unless_it_is_the_last() {
    let (world, ids, expected) = logged(40);
    let all = groups(&world);
    assert!(all.len() >= 40);
    for (index, group) in all.iter().enumerate() {
        let bad = world.fork();
        flip(&bad, &group.path, group.offset + 100, 3);
        let result = content(&bad, &ids);
        if index + 1 == all.len() {
            assert!(
                result.expect("opens") == expected[..expected.len() - 8192],
                "the last write is gone, nothing else"
            );
        } else {
            let error = refused(result, &format!("group {index} of {}", all.len()));
            assert!(matches!(error, Error::Corrupt { .. }), "group {index}: {error}");
            assert_names(&error, "log/");
        }
    }
}

/// R7, I8: damage to a payload in the middle of the log does not keep the volume from mounting: who reads these bytes gets an
/// error that names the segment, others go on, and nothing of it reaches the base. In the last group it is a torn tail.
#[test]
fn a_damaged_payload_is_an_error_to_its_reader_alone() {
    let (world, ids, expected) = logged(40);
    let all = groups(&world);
    for (index, group) in all.iter().enumerate().filter(|(_, group)| !group.header.payload_crcs.is_empty()) {
        let bad = world.fork();
        flip(&bad, &group.path, group.offset + 4096 + 77, 0);
        let harness = Harness::open(bad.clone(), ids.clone()).expect("opens");
        let file = harness.volume().file(ids[0]).expect("known");
        if index + 1 == all.len() {
            assert_eq!(file.size_bytes(), expected.len() as u64 - 8192, "the torn tail is dropped");
            continue;
        }
        let at = group.header.records[0].offset;
        let mut buf = vec![0; 8192];
        let error =
            harness.volume().read(&file, at, &mut buf, Wait::Allowed).expect_err("corrupt bytes are never handed out");
        assert_names(&error, &group.path);
        harness.volume().coalesce_all(&mut |_, _| {}).expect_err("a corrupt payload is not coalesced");
        harness.volume().read(&file, at, &mut buf, Wait::Allowed).expect_err("nor laundered");
        let other = (at + 16384) % expected.len() as u64;
        harness.volume().read(&file, other, &mut buf, Wait::Allowed).expect("other bytes are fine");
        assert_eq!(buf, expected[other as usize..other as usize + 8192]);
        let findings = harness.volume().check(true).expect("checks");
        assert!(
            findings.iter().any(|f| f.severity == Severity::Damage && f.what.contains(&group.path)),
            "{findings:?}"
        );
        let degraded = harness.volume().status().degraded;
        let named = format!("file {}", ids[0]);
        assert!(degraded.iter().any(|line| line.starts_with(&named)), "{degraded:?}");
        harness.volume().write(&file, at, &[9; 8192], Wait::Allowed).expect("what was there is given up");
        harness.volume().coalesce_all(&mut |_, _| {}).expect("and the log is drained again");
        assert!(harness.volume().status().degraded.is_empty());
    }
}

/// A summary is an index only: any damage to it changes nothing but the time of the mount.
#[test]
fn a_damaged_summary_is_ignored() {
    let harness = Harness::new(SimWorld::new(4)).expect("opens");
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    for round in 0..60u64 {
        volume.write(&file, round * 8192, &[9; 8192], Wait::Allowed).expect("writes");
        volume.sync_log().expect("syncs");
    }
    volume.checkpoint().expect("checkpoints and seals");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop((file, harness));
    let world = world.recover(Survival::All);
    let mut sealed = 0;
    for slot in 0..SLOTS {
        let path = format!("log/{slot:05}.seg");
        if !bytes(&world, &path)[(SEGMENT - 4096) as usize..].starts_with(b"HFSSUM") {
            continue;
        }
        sealed += 1;
        for at in [SEGMENT - 4096, SEGMENT - 4096 + 30, SEGMENT - 4096 + 60, SEGMENT - 8192 + 5, SEGMENT - 8192 + 300] {
            let bad = world.fork();
            flip(&bad, &path, at, 1);
            assert!(content(&bad, &ids).expect("opens") == vec![9; 60 * 8192], "{path} at {at}");
        }
    }
    assert!(sealed >= 1, "no segment was sealed");
}

/// R2: a segment in the middle that reads as zeros, is shorter, or is gone refuses the mount by name.
#[test]
fn a_dead_segment_refuses_the_mount() {
    let (world, ids, _) = logged(60);
    let all = groups(&world);
    let first = &all[0];
    let mut paths: Vec<String> = all.iter().map(|group| group.path.clone()).collect();
    paths.dedup();
    assert!(paths.len() >= 3);
    for path in &paths[..paths.len() - 1] {
        let zeroed = world.fork();
        handle(&zeroed, path).write_all_at(&vec![0; SEGMENT as usize], 0).expect("writes");
        assert_names(&refused(content(&zeroed, &ids), "a gap"), "log/");
        let short = world.fork();
        handle(&short, path).set_len(SEGMENT / 2).expect("truncates");
        assert_names(&refused(content(&short, &ids), "too short"), path);
        let gone = world.fork();
        gone.device("nvme").remove_file(path).expect("removes");
        assert_names(&refused(content(&gone, &ids), "missing"), path);
        let sick = world.fork();
        sick.device("nvme").break_range(path, 0, 4096).expect("breaks");
        assert_names(&refused(content(&sick, &ids), "unreadable"), path);
    }
    assert_eq!(first.offset, 0);
}

/// R2: what a checkpoint knew to be durable must be found again, even if what is missing looks like a torn tail.
#[test]
fn a_tail_that_was_durable_at_a_checkpoint_is_not_taken_for_torn() {
    let harness = Harness::new(SimWorld::new(5)).expect("opens");
    let file = harness.volume().file(harness.ids[0]).expect("known");
    for round in 0..5u64 {
        harness.volume().write(&file, round * 8192, &[9; 8192], Wait::Allowed).expect("writes");
        harness.volume().sync_log().expect("syncs");
    }
    harness.volume().checkpoint().expect("checkpoints");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop((file, harness));
    let world = world.recover(Survival::All);
    let all = groups(&world);
    let last = all.last().expect("groups");
    flip(&world, &last.path, last.offset + 4096, 1);
    assert_names(&refused(content(&world, &ids), "refused"), "log/");
}

/// A damaged state database is an error that names it, whatever part is damaged; a panic inside of it never escapes.
#[test]
fn a_damaged_state_database_is_a_named_error_or_harmless() {
    let harness = Harness::new(SimWorld::new(6)).expect("opens");
    let file = harness.volume().file(harness.ids[0]).expect("known");
    harness.volume().write(&file, 0, &[9; 50_000], Wait::Allowed).expect("writes");
    harness.volume().shut_down().expect("ends");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop((file, harness));
    let world = world.recover(Survival::All);
    let len = bytes(&world, "state.redb").len() as u64;
    let mut refused = 0;
    let mut try_one = |what: &str, damage: &dyn Fn(&SimWorld)| {
        let bad = world.fork();
        damage(&bad);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| content(&bad, &ids)));
        match result.unwrap_or_else(|_| panic!("{what}: a panic escaped")) {
            Ok(seen) => assert!(seen == vec![9; 50_000], "{what}: contents changed unnoticed"),
            Err(error) => {
                refused += 1;
                assert_names(&error, "state.redb");
            }
        }
    };
    for cut in [0, 1, 100, 4096, len / 4, len / 2, len - 4096, len - 1] {
        try_one(&format!("cut to {cut}"), &|bad| handle(bad, "state.redb").set_len(cut).expect("truncates"));
    }
    for page in 0..len / 4096 {
        let zeros = |bad: &SimWorld| handle(bad, "state.redb").write_all_at(&[0; 4096], page * 4096).expect("writes");
        if bytes(&world, "state.redb")[page as usize * 4096..][..4096].iter().any(|&byte| byte != 0) {
            try_one(&format!("page {page} zeroed"), &zeros);
        }
    }
    for at in (0..400).chain((0..len).step_by(997)) {
        try_one(&format!("bit at {at}"), &|bad| flip(bad, "state.redb", at, (at % 8) as u8));
    }
    assert!(refused >= 20, "only {refused} damages were noticed");
}

/// A bad sector used to cost the whole neighbourhood that is read around a miss on the slowest tier: pages that the disk could read
/// were errors. Now it costs its own pages; it is counted, and the status says so until a deep check has read everything.
#[test]
fn a_bad_sector_costs_its_own_pages_alone() {
    let harness = Harness::new(SimWorld::new(8)).expect("opens");
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    volume.write(&file, 0, &[9; 4 * BLOCK as usize], Wait::Allowed).expect("writes");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert_eq!(volume.move_run(&file, BlockNo(0), 4, TierId(2)).expect("moves"), 4);
    volume.checkpoint().expect("checkpoints");
    let path = heatfs::tier::objects::object_path(harness.ids[0]);
    harness.world.device("hdd").break_range(&path, BLOCK + 4096, 4096).expect("breaks");
    for page in 0..4 * BLOCK / 4096 {
        let mut buf = vec![0; 4096];
        let result = volume.read(&file, page * 4096, &mut buf, Wait::Allowed);
        if page * 4096 == BLOCK + 4096 {
            assert_names(&result.expect_err("EIO"), &path);
        } else {
            result.unwrap_or_else(|error| panic!("page {page} can be read: {error}"));
            assert_eq!(buf, vec![9; 4096], "page {page}");
        }
    }
    let status = volume.status();
    assert!(status.counters.base_read_errors[2] >= 1 && status.counters.base_read_errors[..2] == [0, 0]);
    assert!(status.degraded.iter().any(|line| line.contains("hdd") && line.contains(&path)), "{:?}", status.degraded);
    assert!(!volume.check(true).expect("checks").is_empty());
    assert!(!volume.status().degraded.is_empty(), "still there");
    volume
        .write(&file, BLOCK + 4096, &[8; 4096], Wait::Allowed)
        .expect("a disk takes a bad sector out when it is written");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert_eq!(volume.check(true).expect("checks"), vec![]);
    assert!(volume.status().degraded.is_empty(), "{:?}", volume.status().degraded);
}

/// A missing object is an error to whoever reads it, and damage to a check; a short one too where it matters: never silent zeros for
/// a missing file. (Bytes behind the end of an object are zeros by the format.)
#[test]
fn a_missing_object_is_an_error_never_zeros() {
    let harness = Harness::new(SimWorld::new(7)).expect("opens");
    let file = harness.volume().file(harness.ids[0]).expect("known");
    harness.volume().write(&file, 0, &[9; 2 * BLOCK as usize], Wait::Allowed).expect("writes");
    harness.volume().shut_down().expect("ends");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop((file, harness));
    let path = heatfs::tier::objects::object_path(ids[0]);
    let gone = world.recover(Survival::All);
    gone.device("nvme").remove_file(&path).expect("removes");
    assert_names(&refused(content(&gone, &ids), "an error"), &path);
    let again = Harness::open(gone.clone(), ids.clone()).expect("opens all the same");
    let findings = again.volume().check(false).expect("checks");
    assert!(findings.iter().any(|f| f.severity == Severity::Damage && f.what.contains("missing")), "{findings:?}");
    let sick = world.recover(Survival::All);
    sick.device("nvme").break_range(&path, BLOCK, 4096).expect("breaks");
    let again = Harness::open(sick, ids.clone()).expect("opens");
    let file = again.volume().file(ids[0]).expect("known");
    let mut buf = vec![0; BLOCK as usize];
    assert_names(&again.volume().read(&file, BLOCK, &mut buf, Wait::Allowed).expect_err("EIO"), &path);
    again.volume().read(&file, 0, &mut buf, Wait::Allowed).expect("the other block is fine");
    assert_eq!(buf, vec![9; BLOCK as usize]);
}
