//! What is secret is in no process's arguments, in no log however much it tells, and in no answer: the password of PostgreSQL's connection, and the key file of the repository.

use super::bench::{Bench, heatfs};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const PASSWORD: &str = "pa55word-of-the-server";
const KEY: &str = "k3y-of-the-repository-0123456789-abcdefghij";
const WRONG_KEY: &str = "wr0ng-key-of-another-repository-0123456789";

/// A `psql` that notes how it was called, and fails.
fn noting_psql(bench: &Bench) -> String {
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    let (args, password) = (bench.path("args"), bench.path("password"));
    let script = format!(
        "#!/bin/sh\ntr '\\0' ' ' < /proc/$$/cmdline >> {}\nprintf %s \"$PGPASSWORD\" >> {}\necho 'no server here' >&2\nexit 2\n",
        args.display(),
        password.display()
    );
    fs::write(bin.join("psql"), script).unwrap();
    fs::set_permissions(bin.join("psql"), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

fn assert_silent(what: &str, text: &str) {
    for secret in [PASSWORD, KEY, WRONG_KEY] {
        assert!(!text.contains(secret), "{what} tells {secret}:\n{text}");
    }
}

#[test]
fn a_password_that_everybody_may_read_is_told_of() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let settings = format!("\n[snapshot.postgresql]\nconnection = \"host=/nowhere user=u password={PASSWORD}\"\n");
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}{settings}")).unwrap();

    let told = |log: &str| log.lines().filter(|line| line.contains("holds a password")).count();
    let by_doctor = |bench: &Bench| {
        let output = bench.heatfs(&["doctor", "--json"]).output().unwrap();
        let verdicts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let of_settings = verdicts["verdicts"].as_array().unwrap().iter().filter(|one| one["subject"] == "settings");
        let lines: Vec<String> = of_settings.map(ToString::to_string).collect();
        assert_silent("doctor", &lines.concat());
        lines.len()
    };
    fs::set_permissions(bench.config(), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(by_doctor(&bench), 0);
    bench.start();
    bench.ok(&["stop"]);
    assert_eq!((bench.ended(60), told(&bench.log())), (Some(0), 0), "{}", bench.log());
    fs::set_permissions(bench.config(), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(by_doctor(&bench), 1);
    bench.start();
    assert_eq!(told(&bench.log()), 1, "{}", bench.log());
    assert_silent("the log", &bench.log());
}

#[test]
fn no_secret_is_in_logs_arguments_or_answers() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let (repository, key) = (bench.path("repo"), bench.path("key"));
    fs::write(&key, KEY).unwrap();
    bench.ok(&["repo", "init", repository.to_str().unwrap(), "--key-file", key.to_str().unwrap()]);
    let settings = format!(
        "\n[snapshot]\nrepository = \"{}\"\nkey_file = \"{}\"\n[snapshot.postgresql]\nconnection = \"host=/nowhere user=u password={PASSWORD}\"\n",
        repository.display(),
        key.display()
    );
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}{settings}")).unwrap();
    let path = noting_psql(&bench);
    bench.start_with(&[("PATH", &path), ("HEATFS_LOG", "trace")]);

    let refused = bench.heatfs(&["snapshot", "create"]).env("HEATFS_LOG", "trace").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("no server here"), "{said}");
    assert_silent("the command", &said);
    let args = fs::read_to_string(bench.path("args")).unwrap();
    assert!(args.contains("host=/nowhere user=u"), "psql was called otherwise: {args}");
    assert_silent("the arguments of psql", &args);
    assert_eq!(fs::read_to_string(bench.path("password")).unwrap(), PASSWORD, "it needs it");

    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", bench.pid())).unwrap();
    assert_silent("the arguments of the daemon", &arguments);
    for target in ["/v1/status", "/metrics", "/v1/events"] {
        let (code, body) = bench.http("GET", target, "");
        assert_eq!(code, 200, "{target}: {body}");
        assert_silent(target, &body);
    }
    let listed = bench.heatfs(&["snapshot", "list"]).env("HEATFS_LOG", "trace").output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_silent("the list", &String::from_utf8_lossy(&listed.stderr));

    fs::write(bench.path("wrong key"), WRONG_KEY).unwrap();
    let mut wrong = heatfs();
    wrong.args(["snapshot", "list", "--repository"]).arg(&repository).arg("--key-file").arg(bench.path("wrong key"));
    let wrong = wrong.env("HEATFS_LOG", "trace").output().unwrap();
    assert!(!wrong.status.success());
    assert_silent("what is said of a wrong key", &String::from_utf8_lossy(&wrong.stderr));

    let log = bench.log();
    assert!(log.contains("no server here"), "the log tells too little to be a test:\n{log}");
    assert_silent("the log", &log);
    let format = fs::read(repository.join("format")).unwrap();
    assert!(!format.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "the key is in the repository");
}
