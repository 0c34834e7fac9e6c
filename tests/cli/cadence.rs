//! Snapshots that nobody asks for: schedule, retention, prune, verification, hooks, and the events that tell of all that.

use super::bench::{Bench, complaint, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};

/// With these lines in its settings, below `[snapshot]`.
fn adopted(settings: &str) -> Option<Bench> {
    let bench = Bench::new()?;
    bench.adopt();
    bench.ok(&["repo", "init", bench.path("repo").to_str().unwrap()]);
    let text = fs::read_to_string(bench.config()).unwrap();
    let snapshot = format!("\n[snapshot]\nrepository = \"{}\"\n{settings}\n", bench.path("repo").display());
    fs::write(bench.config(), text + &snapshot).unwrap();
    Some(bench)
}

/// A hook that notes what it was told.
fn noting(bench: &Bench, code: u8) -> String {
    let script = format!(
        "echo $HEATFS_HOOK $HEATFS_VOLUME $HEATFS_REASON $HEATFS_SNAPSHOT_ID >> {}; exit {code}",
        bench.path("notes").display()
    );
    format!("[\"/bin/sh\", \"-c\", \"{script}\"]")
}

fn notes(bench: &Bench) -> Vec<String> {
    let notes = fs::read_to_string(bench.path("notes")).unwrap_or_default();
    notes.lines().map(|line| line.trim().to_owned()).collect()
}

/// `heatfs events --follow --json`; killed when dropped.
struct Follower(Child);

impl Follower {
    fn new(bench: &Bench) -> Follower {
        let out = fs::File::create(bench.path("events")).unwrap();
        let mut command = bench.heatfs(&["events", "--follow", "--json"]);
        Follower(command.stdout(out).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Whole lines only: the last one may be on its way.
fn events(bench: &Bench) -> Vec<Value> {
    let text = fs::read_to_string(bench.path("events")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event"] == kind).count()
}

fn stop(bench: &mut Bench) {
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
}

#[test]
fn scheduled_snapshots_are_taken_thinned_out_verified_and_told() {
    let Some(mut bench) = adopted(
        "schedule = \"* * * * * *\"\nprune_every = \"60s\"\n[snapshot.keep]\nlast = 2\n[snapshot.verify]\nbytes_per_day = \"1GiB\"",
    ) else {
        return;
    };
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}[snapshot.hooks]\ndone = {}\n", noting(&bench, 0))).unwrap();
    bench.start();
    let mut follower = Follower::new(&bench);
    let all_came = wait_until(120, || {
        let events = events(&bench);
        count(&events, "snapshot_finished") >= 4
            && ["snapshot_deleted", "prune_finished", "verified"].iter().all(|kind| count(&events, kind) > 0)
    });
    let heard = events(&bench);
    assert!(all_came, "{heard:?}\n{}", bench.log());
    assert_eq!(heard[0]["event"], "mounted", "who comes later hears of what was");
    assert!(heard.windows(2).all(|pair| pair[0]["number"].as_u64() < pair[1]["number"].as_u64()), "{heard:?}");
    let begun = count(&heard, "snapshot_started");
    assert!(begun - count(&heard, "snapshot_finished") <= 1, "never two at once: {heard:?}");

    let listed = bench.json(&["snapshot", "list"]).as_array().unwrap().len();
    assert!((2..=3).contains(&listed), "{listed} snapshots are left");
    assert!(wait_until(30, || notes(&bench).len() >= 4), "{:?}", notes(&bench));
    assert!(notes(&bench)[0].starts_with("done bench schedule 01"), "{:?}", notes(&bench));
    let schedule = bench.json(&["snapshot", "schedule"]);
    assert!(schedule["upcoming_ns"].as_array().unwrap().len() == 5, "{schedule}");
    assert!(schedule["status"]["taken"].as_u64().unwrap() >= 4 && schedule["status"]["failed"] == 0, "{schedule}");
    assert_eq!(schedule["keep"]["last"], 2, "{schedule}");
    let kept = schedule["retention"]["kept"].as_array().unwrap();
    assert!(kept.len() == 2 && kept[0]["because"] == serde_json::json!(["among the last"]), "{schedule}");
    let text = bench.ok(&["snapshot", "schedule"]);
    assert!(text.contains("* * * * * *") && text.contains("would free") && text.contains("last success"), "{text}");
    let (_, metrics) = bench.http("GET", "/metrics", "");
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
    };
    assert!(value("heatfs_snapshots_taken_total") >= 4.0 && value("heatfs_snapshots_deleted_total") >= 1.0);
    assert!(value("heatfs_repository_bytes") > 100_000.0 && value("heatfs_verified_bytes_total") > 0.0);
    assert!(value("heatfs_marks_stall_microseconds_count") >= 4.0);
    assert!(value("heatfs_snapshot_last_success_timestamp_seconds") > 1_600_000_000.0);
    assert!(bench.ok(&["status"]).contains("the latest of "));

    stop(&mut bench);
    assert!(
        wait_until(30, || follower.0.try_wait().unwrap().is_some()),
        "the daemon is gone, and so are its followers"
    );
    assert!(count(&events(&bench), "stopping") == 1, "{:?}", events(&bench));
    // Nothing of all this hurt anything.
    assert_eq!(bench.json(&["repo", "check"])["damage"], serde_json::json!([]));
    bench.ok(&["restore", "latest", bench.path("back").to_str().unwrap()]);
}

/// A volume without a snapshot gets one at once; one that has one of today waits for tomorrow.
#[test]
fn what_was_missed_is_caught_up_once() {
    let Some(mut bench) = adopted("schedule = \"yearly\"") else { return };
    bench.start();
    let taken = |bench: &Bench| bench.json(&["snapshot", "list"]).as_array().unwrap().len();
    assert!(wait_until(60, || taken(&bench) == 1), "{}", bench.log());
    stop(&mut bench);
    bench.start();
    // It is known that the next one is of next year, so the schedule was looked at, and nothing was due.
    let next = || bench.json(&["snapshot", "schedule"])["status"]["next_ns"].as_i64();
    assert!(wait_until(30, || next().is_some()));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    assert!(i128::from(next().unwrap()) > i128::try_from(now).unwrap());
    assert_eq!(taken(&bench), 1);
    stop(&mut bench);
}

#[test]
fn a_snapshot_that_fails_is_told_and_counted_until_one_succeeds() {
    let Some(mut bench) = adopted("schedule = \"* * * * * *\"") else { return };
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}[snapshot.hooks]\nfailure = {}\n", noting(&bench, 0))).unwrap();
    fs::write(bench.path("forbid"), b"").unwrap();
    let script = format!("! test -e {}", bench.path("forbid").display());
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}before = [\"/bin/sh\", \"-c\", \"{script}\"]\n")).unwrap();
    bench.start_anyway();
    let _follower = Follower::new(&bench);
    let told = wait_until(60, || {
        let events = events(&bench);
        ["hook_failed", "snapshot_failed", "health_changed"].iter().all(|kind| count(&events, kind) > 0)
    });
    assert!(told, "{:?}\n{}", events(&bench), bench.log());
    let status = bench.heatfs(&["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(1), "not healthy");
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("the scheduled snapshot failed (1 in a row)") && said.contains("hook before"), "{said}");
    assert!(wait_until(30, || notes(&bench) == ["failure bench schedule"]), "{:?}", notes(&bench));
    let line = complaint(&bench.heatfs(&["snapshot", "create"]).output().unwrap(), 1);
    assert!(line.contains("hook before"), "{line}");
    assert_eq!(bench.json(&["snapshot", "list"]), serde_json::json!([]));
    // What the operator repairs and tries by hand is no complaint any more.
    fs::remove_file(bench.path("forbid")).unwrap();
    bench.ok(&["snapshot", "create"]);
    assert!(bench.ok(&["status"]).contains("healthy"));
    assert!(wait_until(30, || {
        let events = events(&bench);
        events
            .iter()
            .rfind(|event| event["event"] == "health_changed")
            .is_some_and(|event| event["health"] == "healthy")
    }));
    stop(&mut bench);
}

#[test]
fn a_repository_that_is_gone_is_told_and_may_come_back() {
    let Some(mut bench) = adopted("schedule = \"hourly\"") else { return };
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}[snapshot.hooks]\nfailure = {}\n", noting(&bench, 0))).unwrap();
    fs::rename(bench.path("repo"), bench.path("elsewhere")).unwrap();
    bench.start_anyway();
    assert!(wait_until(30, || notes(&bench) == ["failure bench schedule"]), "{:?}\n{}", notes(&bench), bench.log());
    let said = bench.heatfs(&["status"]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let path = bench.path("repo").display().to_string();
    assert!(said.status.code() == Some(1) && text.contains("(1 in a row)") && text.contains(&path), "{text}");
    fs::rename(bench.path("elsewhere"), bench.path("repo")).unwrap();
    bench.ok(&["snapshot", "create"]);
    assert!(bench.ok(&["status"]).contains("healthy"));
    stop(&mut bench);
}

/// A hook holds the first one up; the second is refused, and nothing of it happens.
#[test]
fn never_two_snapshots_at_once() {
    let Some(mut bench) = adopted("") else { return };
    let hold = bench.path("hold");
    fs::write(&hold, b"").unwrap();
    let script = format!("while test -e {}; do sleep 0.05; done", hold.display());
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}[snapshot.hooks]\nbefore = [\"/bin/sh\", \"-c\", \"{script}\"]\n"))
        .unwrap();
    bench.start();
    let _follower = Follower::new(&bench);
    let mut first = bench.heatfs(&["snapshot", "create"]).stdout(Stdio::null()).spawn().unwrap();
    assert!(wait_until(30, || count(&events(&bench), "snapshot_started") == 1), "{}", bench.log());
    let line = complaint(&bench.heatfs(&["snapshot", "create"]).output().unwrap(), 1);
    assert!(line.contains("being taken already"), "{line}");
    assert!(bench.ok(&["status"]).contains("one is being taken"));
    fs::remove_file(&hold).unwrap();
    assert!(wait_until(60, || first.try_wait().unwrap().is_some()) && first.wait().unwrap().success());
    assert!(wait_until(30, || count(&events(&bench), "snapshot_finished") == 1));
    assert_eq!(count(&events(&bench), "snapshot_started"), 1);
    stop(&mut bench);
}

/// Damage in the repository is found within the day's budget, told, and not forgotten by a restart.
#[test]
fn verification_finds_what_rotted_and_remembers() {
    let Some(mut bench) = adopted("") else { return };
    bench.start();
    bench.ok(&["snapshot", "create"]);
    stop(&mut bench);
    let packs = fs::read_dir(bench.path("repo/packs")).unwrap();
    let packs = packs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let pack = packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let (mut byte, middle) = ([0], pack.metadata().unwrap().len() / 2);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}[snapshot.verify]\nbytes_per_day = \"64MiB\"\n")).unwrap();

    bench.start_anyway();
    let _follower = Follower::new(&bench);
    assert!(wait_until(60, || count(&events(&bench), "verified") == 1), "{:?}\n{}", events(&bench), bench.log());
    let heard = events(&bench);
    let finding = heard.iter().find(|event| event["event"] == "verify_finding").unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(finding["damage"].as_str().unwrap().contains(name), "{finding}");
    for _ in 0..2 {
        let said = bench.heatfs(&["status"]).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.code() == Some(1) && text.contains("the repository is damaged in 1 packs"), "{text}");
        let (_, metrics) = bench.http("GET", "/metrics", "");
        assert!(metrics.contains("heatfs_repository_damaged_packs 1.0"), "{metrics}");
        stop(&mut bench);
        bench.start_anyway();
        let knows = || bench.json(&["snapshot", "schedule"])["status"]["damaged_packs"] == 1;
        assert!(wait_until(30, knows), "{}", bench.log());
    }
    stop(&mut bench);
}

#[test]
fn events_without_following_end() {
    let Some(mut bench) = adopted("") else { return };
    bench.start();
    bench.ok(&["snapshot", "create"]);
    let text = bench.ok(&["events"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("mounted on") && lines[1].contains("begun (request)") && lines[2].contains("stored in"));
    let (code, body) = bench.http("GET", "/v1/events?fellow=true", "");
    assert!(code == 400 && body.contains("fellow"), "{body}");
    stop(&mut bench);
}
