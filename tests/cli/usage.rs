//! What needs no volume: usage, settings, help.

use super::bench::{complaint, heatfs};
use std::fs;
use std::process::Stdio;

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (args, wanted) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["status", "--loud"], "--loud"),
        (&["adopt", "/nowhere"], "--tier"),
        (&["adopt", "/nowhere", "--tier", "nvme"], "NAME=PATH"),
        (&["adopt", "/nowhere", "--tier", "nvme=/x", "--log-size", "much"], "much"),
        (&["adopt", "/nowhere", "--tier", "nvme=/x", "--budget", "nvme=lots"], "lots"),
        (&["top", "--interval", "0"], "interval"),
        (&["completions", "cobol"], "cobol"),
        (&["explain"], "PATH"),
        (&["whatif"], "--tier"),
        (&["whatif", "--tier", "nvme=+much"], "NAME=+SIZE"),
        (&["why", "--count", "few"], "few"),
        (&["report"], "--html"),
        (&["rollback"], "SNAPSHOT"),
        (&["rollback", "--confirm", "--undo"], "--undo"),
        (&["rollback", "latest", "--undo"], "--undo"),
    ] {
        let output = heatfs().args(args).output().unwrap();
        let line = complaint(&output, 2);
        assert!(line.contains(wanted), "{args:?}: {line}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn wrong_settings_are_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v.toml");
    let good = "name = \"v\"\nmount = \"/nowhere/m\"\n[[tier]]\nname = \"n\"\npath = \"/nowhere/n\"\n";
    for (text, wanted) in [
        (format!("{good}budgit = 3"), "did you mean `tier.budget`"),
        (format!("{good}[log]\nsize = \"1MiB\""), "log.size = \"1MiB\""),
        (good.replace("/nowhere/n", "/nowhere/m/n"), "overlaps mount"),
        ("name = ".to_owned(), "line 1"),
        (
            format!("{good}[[rule]]\npath = \"base/\"\npin = \"n\"\n[[rule]]\npath = \"*.arc\"\npromote = false"),
            "rule[0] (path \"base/\", pin \"n\") and rule[1] (path \"*.arc\"",
        ),
    ] {
        fs::write(&file, text).unwrap();
        for command in ["daemon", "status", "release"] {
            let line = complaint(&heatfs().arg(command).arg("--config").arg(&file).output().unwrap(), 2);
            assert!(line.contains(wanted) && line.contains("v.toml"), "{command}: {line}");
        }
    }
    let absent = dir.path().join("none.toml");
    let line = complaint(&heatfs().arg("status").arg("--config").arg(&absent).output().unwrap(), 2);
    assert!(line.contains("none.toml"), "{line}");
}

#[test]
fn the_environment_overrides_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v.toml");
    fs::write(&file, "name = \"v\"\nmount = \"/nowhere/m\"\n[[tier]]\nname = \"n\"\npath = \"/nowhere/n\"\n").unwrap();
    let output =
        heatfs().arg("status").env("HEATFS_CONFIG", &file).env("HEATFS__FUSE__THREADS", "many").output().unwrap();
    let line = complaint(&output, 2);
    assert!(line.contains("environment") && line.contains("fuse.threads = \"many\""), "{line}");
}

#[test]
fn no_daemon_is_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for args in [
        &["status"][..],
        &["tiers"],
        &["stop"],
        &["settle"],
        &["heat"],
        &["explain", "x:1"],
        &["pin", "x"],
        &["why"],
        &["plan"],
        &["whatif", "--tier", "nvme=+1G"],
        &["report", "--html", "/nowhere/x.html"],
        &["top", "--once"],
    ] {
        let line = complaint(&heatfs().args(args).arg("--socket").arg(&socket).output().unwrap(), 1);
        assert!(line.starts_with("no daemon answers at"), "{line}");
    }
}

#[test]
fn help_man_and_completions_are_there() {
    let help = heatfs().arg("--help").output().unwrap();
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for command in [
        "adopt", "daemon", "stop", "status", "tiers", "top", "heat", "explain", "why", "plan", "whatif", "report",
        "pin", "unpin", "settle", "release", "check", "dump", "snapshot", "restore", "mount", "repo",
    ] {
        assert!(text.contains(&format!("\n  {command} ")), "{command} is not in\n{text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = heatfs().args(["completions", shell]).output().unwrap();
        assert!(script.status.success() && script.stdout.len() > 1000);
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(heatfs().arg("man").arg(dir.path()).output().unwrap().status.success());
    let page = fs::read_to_string(dir.path().join("heatfs-adopt.1")).unwrap();
    assert!(page.contains("Take over a directory") && dir.path().join("heatfs.1").exists());
}

/// `heatfs completions bash | head -c1` used to end in a panic about a broken pipe.
#[test]
fn a_reader_that_goes_is_no_error() {
    let mut child =
        heatfs().args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
