//! `check` says what is wrong and which files it touches, and changes nothing; `dump` shows every object.

use crate::lab::{Lab, assert_same, filled, get_xattr, options, set_xattr};
use heatfs::error::Error;
use heatfs::jobs::check::{CheckReport, check, examine};
use heatfs::jobs::dump::dump;
use heatfs::tier::objects::object_path;
use heatfs::units::{BlockNo, TierId};
use heatfs::volume::{Severity, Wait};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn adopted() -> Lab {
    let (lab, _) = filled();
    lab.adopt().unwrap();
    lab
}

fn has(report: &CheckReport, severity: Severity, words: &[&str]) {
    let fits = |what: &str| words.iter().all(|word| what.contains(word));
    let text = |finding: &heatfs::jobs::check::Finding| format!("{} {}", finding.what, finding.paths.join(" "));
    let found = report.findings.iter().any(|finding| finding.severity == severity && fits(&text(finding)));
    assert!(found, "{words:?} is not in {:#?}", report.findings);
}

#[test]
fn a_sound_volume_has_no_findings_and_stays_as_it_is() {
    let lab = adopted();
    let report = lab.check(true);
    assert_eq!((report.findings.as_slice(), report.files), ([].as_slice(), 5));
    lab.serve(|volume| {
        let file = volume.file(lab.id_of("base/1/16384")).unwrap();
        volume.write(&file, 0, b"online", Wait::Allowed).unwrap();
        let report = examine(volume, &lab.path("nvme").join("home"), true).unwrap();
        assert_eq!(report.findings, []);
        let busy = check(&lab.tiers(), &options(), false).unwrap_err();
        assert!(matches!(busy, Error::Busy(_)), "{busy}");
    });
    assert_eq!(lab.check(true).findings, []);
    lab.release().unwrap();
}

/// After a crash the log is replayed to be checked, and is left for the next mount.
#[test]
fn a_crashed_volume_is_checked_with_its_log() {
    let lab = adopted();
    lab.crash(|volume| {
        let file = volume.file(lab.id_of("PG_VERSION")).unwrap();
        volume.write(&file, 0, b"17", Wait::Allowed).unwrap();
        volume.sync_log().unwrap();
    });
    for _ in 0..2 {
        let report = lab.check(true);
        assert_eq!((report.findings.as_slice(), report.records), ([].as_slice(), 1));
    }
    lab.release().unwrap();
    assert_eq!(fs::read(lab.data().join("PG_VERSION")).unwrap(), b"17\n");
}

#[test]
fn damage_is_found_and_names_the_files() {
    let lab = adopted();
    let id = lab.id_of("base/1/16384");
    let object = lab.path("nvme").join(object_path(id));
    let away = lab.path("away");
    fs::rename(&object, &away).unwrap();
    let report = lab.check(false);
    has(&report, Severity::Damage, &["missing", "base/1/16384"]);
    assert_eq!(report.worst(), Some(Severity::Damage));
    assert_eq!(report.findings[0].file, Some(id));
    fs::rename(&away, &object).unwrap();

    let tree = lab.path("nvme").join("home/tree");
    let mark = get_xattr(&tree.join("PG_VERSION"), "user.heatfs.id").unwrap();
    fs::write(tree.join("copied"), "").unwrap();
    set_xattr(&tree.join("copied"), "user.heatfs.id", &mark);
    fs::write(tree.join("nameless"), "").unwrap();
    fs::write(tree.join("damaged"), "").unwrap();
    set_xattr(&tree.join("damaged"), "user.heatfs.id", &mark[1..]);
    let report = lab.check(false);
    has(&report, Severity::Damage, &["copied behind the mount", "copied"]);
    has(&report, Severity::Damage, &["carries no user.heatfs.id", "nameless"]);
    has(&report, Severity::Damage, &["corrupt", "damaged"]);
    ["copied", "nameless", "damaged"].iter().for_each(|name| fs::remove_file(tree.join(name)).unwrap());

    fs::write(tree.join("base/1/16385"), "put into home").unwrap();
    has(&lab.check(false), Severity::Notice, &["written behind the mount", "base/1/16385", "a second name"]);
    fs::write(tree.join("base/1/16385"), "").unwrap();

    fs::remove_file(tree.join("empty")).unwrap();
    has(&lab.check(false), Severity::Notice, &["has content but no name"]);
    fs::write(lab.path("hdd/objects/stray"), "").unwrap();
    has(&lab.check(false), Severity::Notice, &["stray", "no object"]);
}

#[test]
fn damaged_structures_are_findings_not_panics() {
    let lab = adopted();
    for (name, word) in [("state.redb", "state"), ("heatfs.tier", "tier identity"), ("log/00000.seg", "log segment")] {
        let path = lab.path("nvme").join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let report = lab.check(false);
        has(&report, Severity::Damage, &[word]);
        fs::write(&path, &good).unwrap();
    }
    fs::write(lab.path("nvme").join("pins.json"), "{}").unwrap();
    has(&lab.check(false), Severity::Damage, &["pins"]);
    fs::remove_file(lab.path("nvme").join("pins.json")).unwrap();
    fs::write(lab.path("nvme").join("heat.bin"), "rubbish").unwrap();
    has(&lab.check(false), Severity::Notice, &["heat"]);
    fs::remove_file(lab.path("nvme").join("heat.bin")).unwrap();
    fs::rename(lab.path("sata"), lab.path("unmounted")).unwrap();
    has(&lab.check(false), Severity::Damage, &["`sata`", "is the disk mounted?"]);
    fs::rename(lab.path("unmounted"), lab.path("sata")).unwrap();
    assert_eq!(lab.check(true).findings, []);
}

#[test]
fn everything_can_be_dumped() {
    let lab = adopted();
    lab.crash(|volume| {
        let file = volume.file(lab.id_of("PG_VERSION")).unwrap();
        volume.write(&file, 1, b"7", Wait::Allowed).unwrap();
        volume.sync_log().unwrap();
        let file = volume.file(lab.id_of("base/1/16384")).unwrap();
        assert!(volume.move_block(&file, BlockNo(1), TierId(2)).unwrap());
        volume.checkpoint().unwrap();
    });
    let before = lab.everything();
    let show = |what: &str| dump(&lab.tiers(), what).unwrap_or_else(|e| panic!("{what}: {e}"));
    let identity = show("identity");
    assert_eq!(identity[2]["identity"]["name"], "hdd");
    assert_eq!(show("state")["tiers"][0], "nvme");
    assert_eq!(show("files").as_array().unwrap().len(), 5);
    let file = show("file:base/1/16384");
    assert_eq!(file["size_bytes"], 300_000);
    assert_eq!(file["map"][1]["tier"], "hdd");
    assert_eq!(file["objects"][2]["length_bytes"], 131_072);
    assert_eq!(show(&format!("file:{}", file["file"].as_str().unwrap())), file);
    assert_eq!(show("home:PG_VERSION")["identity"]["file"], lab.id_of("PG_VERSION").to_string());
    let segments = show("log");
    let used = segments.as_array().unwrap().iter().position(|segment| segment["records"] != 0).unwrap();
    let segment = show(&format!("log:{used}"));
    let record = &segment["group_headers"][0]["records"][0];
    assert_eq!((record["kind"].as_str(), record["offset"].as_u64()), (Some("data"), Some(1)));
    assert_eq!(show("pins").as_array().unwrap().len(), 0);
    assert_eq!(show("heat")["present"], false);
    let wrong = dump(&lab.tiers(), "everything").unwrap_err().to_string();
    assert!(wrong.contains("identity, state") && wrong.contains("`everything`"), "{wrong}");
    let (mut after, mut before) = (lab.everything(), before);
    // The database writes its own header when it is opened, and the locks are touched.
    for path in ["nvme/state.redb", "nvme/heatfs.lock", "sata/heatfs.lock", "hdd/heatfs.lock"] {
        before.remove(Path::new(path));
        after.remove(Path::new(path));
    }
    assert_same(&after, &before, "after dumping");
}

#[test]
fn a_flipped_payload_in_the_log_is_found() {
    let lab = adopted();
    lab.crash(|volume| {
        let file = volume.file(lab.id_of("base/1/16385")).unwrap();
        volume.write(&file, 0, &[7; 8192], Wait::Allowed).unwrap();
        volume.sync_log().unwrap();
        volume.write(&file, 8192, &[8; 8192], Wait::Allowed).unwrap();
        volume.sync_log().unwrap();
    });
    let segments = dump(&lab.tiers(), "log").unwrap();
    let used = segments.as_array().unwrap().iter().position(|segment| segment["records"] != 0).unwrap();
    let segment = fs::File::options().write(true).open(lab.path("nvme").join(format!("log/{used:05}.seg"))).unwrap();
    segment.write_all_at(&[99], 4096 + 10).unwrap();
    drop(segment);
    has(&lab.check(true), Severity::Damage, &["base/1/16385"]);
}
