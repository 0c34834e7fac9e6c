//! `heatfs doctor` on this machine: what it says, and its exit codes.

use super::bench::{complaint, heatfs};

#[test]
fn the_host_is_examined_and_a_missing_tier_fails() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tier = |name: &str| format!("{name}={}", dir.path().join(name).display());
    std::fs::create_dir(dir.path().join("nvme")).unwrap();
    let output =
        heatfs().args(["doctor", "--json", "--tier", &tier("nvme"), "--tier", &tier("gone")]).output().unwrap();
    assert_eq!(complaint(&output, 1).split_once(' ').unwrap().1, "check failed");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = told["verdicts"].as_array().unwrap();
    let of = |subject: &str| verdicts.iter().filter(|one| one["subject"] == subject).collect::<Vec<_>>();
    for subject in ["fuse", "fusermount3", "kernel", "limits", "memory", "clock"] {
        assert_eq!(of(subject).len(), 1, "{subject}: {told}");
    }
    assert_eq!(of("tier gone")[0]["level"], "fail");
    assert!(of("tier gone")[0]["advice"].as_str().unwrap().contains("is its disk mounted?"));
    assert!(of("tier nvme").iter().any(|one| one["found"].as_str().unwrap().contains("made durable in")), "{told}");
    assert_eq!(std::fs::read_dir(dir.path().join("nvme")).unwrap().count(), 0, "nothing is left behind");

    let lines = String::from_utf8(heatfs().args(["doctor", "--tier", &tier("gone")]).output().unwrap().stdout).unwrap();
    assert!(lines.lines().any(|line| line.starts_with("fail  tier gone")), "{lines}");
    let line = complaint(&heatfs().args(["doctor", "--config", "/nowhere/x.toml"]).output().unwrap(), 2);
    assert!(line.contains("/nowhere/x.toml"), "{line}");
}
