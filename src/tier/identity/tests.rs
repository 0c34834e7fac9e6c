use super::*;
use std::fs;

struct Lab {
    dir: tempfile::TempDir,
    names: Vec<&'static str>,
}

impl Lab {
    fn new(names: &[&'static str]) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().unwrap(), names: names.to_vec() };
        for name in names {
            fs::create_dir(lab.path(name)).unwrap();
        }
        lab
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn listed(&self) -> Vec<(String, PathBuf)> {
        self.names.iter().map(|name| ((*name).to_owned(), self.path(name))).collect()
    }
    fn places(&self) -> Vec<Place> {
        Place::open_all(&self.listed()).unwrap()
    }
    fn made(names: &[&'static str]) -> Lab {
        let lab = Lab::new(names);
        let places = lab.places();
        let mut id = initialise(&places, Uuid::from_u128(7), "/srv/pg", TierId(0), Phase::AdoptBuild).unwrap();
        set_phase(&places, &mut id, Phase::Ready).unwrap();
        lab
    }
    fn save(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name).join(IDENTITY_FILE)).unwrap()
    }
    fn restore(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name).join(IDENTITY_FILE), bytes).unwrap();
    }
    fn refusal(&self) -> String {
        verify_all(&self.places()).unwrap_err().to_string()
    }
}

const THREE: [&str; 3] = ["nvme", "sata", "hdd"];

#[test]
fn a_volume_is_verified_raised_and_stopped() {
    let lab = Lab::made(&THREE);
    let places = lab.places();
    let before = verify_all(&places).unwrap();
    assert!(before.clean && before.incarnation == 0 && before.phase == Phase::Ready);
    let id = begin_run(&places).unwrap();
    assert_eq!(id.incarnation, 1);
    assert!(id.clean, "the run before ended cleanly");
    assert!(!begin_run(&places).unwrap().clean, "no clean stop since");
    mark_stopped(&places, &VolumeIdentity { incarnation: 2, ..id }).unwrap();
    let after = verify_all(&places).unwrap();
    assert!(after.clean && after.incarnation == 2);
}

#[test]
fn i7_a_missing_disk_is_never_an_empty_tier() {
    let lab = Lab::made(&THREE);
    fs::rename(lab.path("sata"), lab.path("elsewhere")).unwrap();
    let missing = Place::open_all(&lab.listed()).err().unwrap().to_string();
    assert!(missing.contains("`sata`") && missing.contains("is the disk mounted?"), "{missing}");
    fs::create_dir(lab.path("sata")).unwrap();
    let empty = lab.refusal();
    assert!(empty.contains("no heatfs.tier here; is the disk mounted?") && empty.contains("`sata`"), "{empty}");
    assert!(begin_run(&lab.places()).is_err());
    assert_eq!(fs::read_dir(lab.path("sata")).unwrap().count(), 0, "nothing changed");
}

#[test]
fn i7_foreign_and_swapped_tiers_are_named_both_ways() {
    let lab = Lab::made(&THREE);
    let other = Lab::new(&THREE);
    initialise(&other.places(), Uuid::from_u128(8), "/srv/other", TierId(0), Phase::AdoptBuild).unwrap();
    let (sata, hdd) = (lab.save("sata"), lab.save("hdd"));
    lab.restore("sata", &other.save("sata"));
    let foreign = lab.refusal();
    assert!(foreign.contains("/srv/other") && foreign.contains("/srv/pg") && foreign.contains("`sata`"), "{foreign}");
    lab.restore("sata", &hdd);
    lab.restore("hdd", &sata);
    let swapped = lab.refusal();
    assert!(swapped.contains("listed as tier 1 but holds tier 2 (`hdd`)"), "{swapped}");
    assert!(swapped.contains("holds tier 1 (`sata`)"), "{swapped}");
    lab.restore("sata", &sata);
    let twice = lab.refusal();
    assert!(twice.contains("listed as tier 2 but holds tier 1"), "{twice}");
}

#[test]
fn i7_a_volume_listed_with_fewer_tiers_or_other_names_is_refused() {
    let mut lab = Lab::made(&THREE);
    lab.names.pop();
    assert!(lab.refusal().contains("has 3 tiers, but 2 are listed"));
    let listed: Vec<_> = THREE.iter().map(|n| (n.replace("sata", "ssd"), lab.path(n))).collect();
    let renamed = verify_all(&Place::open_all(&listed).unwrap()).unwrap_err().to_string();
    assert!(renamed.contains("is named `sata` in its volume"), "{renamed}");
}

#[test]
fn i7_an_old_copy_is_refused_whichever_tier_it_is_of() {
    for stale in THREE {
        let lab = Lab::made(&THREE);
        let old = lab.save(stale);
        begin_run(&lab.places()).unwrap();
        lab.restore(stale, &old);
        let why = lab.refusal();
        assert!(why.starts_with(&format!("tier `{stale}`")) && why.contains("out of date"), "{why}");
    }
}

#[test]
fn i7_a_copy_made_while_mounted_is_refused_after_a_clean_stop() {
    let lab = Lab::made(&THREE);
    let id = begin_run(&lab.places()).unwrap();
    let mounted = lab.save("hdd");
    mark_stopped(&lab.places(), &id).unwrap();
    lab.restore("hdd", &mounted);
    assert!(lab.refusal().contains("stopped cleanly since"));
}

/// Raising and stopping interrupted after any number of identity files: the next mount must go through, since nothing was served in between.
#[test]
fn i7_an_interrupted_raise_or_stop_is_not_taken_for_an_old_copy() {
    for done in 0..=4 {
        let lab = Lab::made(&THREE);
        let before: Vec<_> = THREE.iter().map(|name| lab.save(name)).collect();
        begin_run(&lab.places()).unwrap();
        // Written so far: tier 0 raising, tier 1, tier 2, tier 0 running.
        for (index, name) in THREE.iter().enumerate() {
            if done < 4 && index >= done.max(1) {
                lab.restore(name, &before[index]);
            }
        }
        if done == 0 {
            lab.restore("nvme", &before[0]);
        } else if done < 4 {
            let raising = TierIdentity { run: Run::Raising, ..TierIdentity::decode(&before[0], "t").unwrap() };
            lab.restore("nvme", &raising.encode().unwrap());
        }
        let id = begin_run(&lab.places()).unwrap_or_else(|e| panic!("after {done} writes: {e}"));
        assert_eq!(id.incarnation, if done == 4 { 2 } else { 1 });
        let running: Vec<_> = THREE.iter().map(|name| lab.save(name)).collect();
        mark_stopped(&lab.places(), &id).unwrap();
        for stopped in 0..3 {
            // A stop marks the slowest first.
            for (index, name) in THREE.iter().enumerate().take(3 - stopped) {
                lab.restore(name, &running[index]);
            }
            assert!(!verify_all(&lab.places()).unwrap().clean);
            mark_stopped(&lab.places(), &id).unwrap();
        }
    }
}

#[test]
fn a_new_tier_needs_an_empty_directory_and_a_refusal_changes_nothing() {
    let lab = Lab::new(&THREE);
    fs::write(lab.path("hdd").join("precious"), b"x").unwrap();
    let why =
        initialise(&lab.places(), Uuid::from_u128(7), "/d", TierId(0), Phase::AdoptBuild).unwrap_err().to_string();
    assert!(why.contains("`hdd`") && why.contains("precious"), "{why}");
    assert_eq!(fs::read_dir(lab.path("nvme")).unwrap().count(), 0);
    let taken = Lab::made(&THREE);
    let why =
        initialise(&taken.places(), Uuid::from_u128(9), "/d", TierId(0), Phase::AdoptBuild).unwrap_err().to_string();
    assert!(why.contains("already holds tier `nvme`") && why.contains("/srv/pg"), "{why}");
}

#[test]
fn a_damaged_identity_is_named() {
    let lab = Lab::made(&THREE);
    let mut bytes = lab.save("sata");
    bytes[20] ^= 1;
    lab.restore("sata", &bytes);
    let why = lab.refusal();
    assert!(why.contains("corrupt tier identity") && why.contains("sata/heatfs.tier"), "{why}");
}

#[test]
fn unfinished_adoptions_and_releases_are_not_mounted() {
    let lab = Lab::made(&["one"]);
    let places = lab.places();
    let mut id = verify_all(&places).unwrap();
    for (phase, command) in [(Phase::AdoptMove, "`heatfs adopt`"), (Phase::ReleaseBuild, "`heatfs release`")] {
        set_phase(&places, &mut id, phase).unwrap();
        let why = begin_run(&places).unwrap_err().to_string();
        assert!(why.contains(command) && why.contains("/srv/pg"), "{why}");
    }
}

#[test]
fn a_second_daemon_is_told_who_holds_the_volume() {
    let lab = Lab::made(&THREE);
    let held = Locks::take(&lab.listed()).unwrap();
    assert_eq!(Locks::holder(&lab.path("hdd")), Some(std::process::id().to_string()));
    let why = Locks::take(&lab.listed()[1..]).err().unwrap().to_string();
    assert!(why.contains(&format!("in use by process {}", std::process::id())) && why.contains("`sata`"), "{why}");
    drop(held);
    assert_eq!(Locks::holder(&lab.path("hdd")), None);
    Locks::take(&lab.listed()).unwrap();
}
