//! A volume's life by its commands.

use super::bench::{Bench, complaint, pattern, read, wait_until};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

fn is_tier(value: &serde_json::Value) -> bool {
    ["nvme", "sata", "hdd"].iter().any(|name| value == name)
}

#[test]
fn adopted_served_asked_stopped_released() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    assert!(!bench.data().join("small").exists(), "an adopted directory shows nothing until it is mounted");
    bench.start();
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    fs::write(bench.data().join("new"), pattern(500_000)).unwrap();

    let status = bench.json(&["status"]);
    assert_eq!((&status["health"], &status["name"]), (&"healthy".into(), &"bench".into()));
    assert_eq!(status["volume"]["tiers"].as_array().unwrap().len(), 3);
    assert!(bench.ok(&["status"]).contains("healthy"));
    assert!(bench.ok(&["tiers"]).contains("nvme"));
    assert_eq!(bench.json(&["tiers"])["tiers"][2]["name"], "hdd");
    assert_eq!(bench.socket().metadata().unwrap().permissions().mode() & 0o777, 0o660);

    let settled = bench.json(&["settle"]);
    assert_eq!(settled["state"], "done");
    assert!(bench.ok(&["checkpoint"]).contains("durable"));
    assert_eq!(bench.json(&["status"])["volume"]["log"]["live_bytes"], 0);

    asks_about_placement(&bench);

    let rates = bench.json(&["top", "--once", "--interval", "1"]);
    assert_eq!(rates["tiers"].as_array().unwrap().len(), 3);
    let checked = bench.json(&["check", "--deep"]);
    assert_eq!(checked["findings"], serde_json::json!([]), "{checked}");
    assert!(checked["files"].as_u64().unwrap() >= 3);

    assert!(bench.ok(&["stop"]).contains("stopped"));
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    assert!(!bench.is_mounted() && !bench.socket().exists());

    bench.start();
    assert_eq!(read(&bench.data().join("new")), pattern(500_000));
    for command in [&["release"][..], &["dump", "state"]] {
        let line = complaint(&bench.heatfs(command).output().unwrap(), 1);
        assert!(line.contains("stop the daemon first") || line.contains("in use by process"), "{line}");
    }
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    asks_offline(&bench);
    assert!(bench.ok(&["release"]).contains("released"));
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    assert_eq!(read(&bench.data().join("link")), b"hello");
    let line = complaint(&bench.heatfs(&["release"]).output().unwrap(), 1);
    assert!(line.contains("nvme"), "{line}");
}

fn asks_offline(bench: &Bench) {
    assert_eq!(bench.json(&["check", "--deep"])["findings"], serde_json::json!([]));
    assert_eq!(bench.json(&["dump", "identity"])[2]["identity"]["name"], "hdd");
    assert_eq!(bench.json(&["dump", "state"])["block_bytes"], 65536);
    bench.json(&["dump", "file:base/1/table"]);
    let line = complaint(&bench.heatfs(&["dump", "everything"]).output().unwrap(), 2);
    assert!(line.contains("`everything`") && line.contains("identity, state"), "{line}");
}

fn asks_about_placement(bench: &Bench) {
    let table = bench.data().join("base/1/table");
    let table = table.to_str().unwrap();
    let found = bench.json(&["explain", &format!("{table}:1MiB")]);
    assert_eq!((&found["path"], &found["explanation"]["block"]), (&"base/1/table".into(), &16.into()));
    assert!(is_tier(&found["explanation"]["tier"]), "{found}");
    // Relative to the mount is understood as well.
    assert!(bench.ok(&["explain", "base/1/table"]).contains("base/1/table"));
    let line = complaint(&bench.heatfs(&["explain", "base/1/table:1GiB"]).output().unwrap(), 2);
    assert!(line.contains("has 3000001 bytes"), "{line}");
    let line = complaint(&bench.heatfs(&["explain", "base/1/none"]).output().unwrap(), 1);
    assert!(line.contains("no such file"), "{line}");
    let line = complaint(&bench.heatfs(&["explain", "/etc/passwd"]).output().unwrap(), 2);
    assert!(line.contains("not below"), "{line}");

    assert!(bench.ok(&["heat"]).contains("base/1/table"));
    let heat = bench.json(&["heat", table]);
    assert_eq!(heat["files"][0]["blocks"], 46);

    let line = complaint(&bench.heatfs(&["pin", table, "--tier", "tape"]).output().unwrap(), 2);
    assert!(line.contains("`tape`") && line.contains("nvme, sata, hdd"), "{line}");
    bench.ok(&["pin", table, "--tier", "hdd"]);
    let on_hdd = || bench.json(&["explain", table])["explanation"]["tier"] == "hdd";
    assert!(wait_until(90, on_hdd), "{}", bench.ok(&["explain", table]));
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    let reasons = bench.json(&["explain", table])["explanation"]["history"].to_string();
    assert!(reasons.contains("pinned"), "{reasons}");
    asks_about_decisions(bench, table);
    assert!(bench.ok(&["unpin", "base"]).contains("1 file unpinned"));
}

fn asks_about_decisions(bench: &Bench, table: &str) {
    let blocks = |why: &serde_json::Value| -> u64 {
        why["entries"].as_array().unwrap().iter().map(|entry| entry["blocks"].as_u64().unwrap()).sum()
    };
    // The first block is there; the others follow in bounded moves.
    assert!(wait_until(90, || blocks(&bench.json(&["why", table])) == 46), "{}", bench.json(&["why", table]));
    let why = bench.json(&["why", table]);
    assert_eq!(why["entries"][0]["path"], "base/1/table");
    assert_eq!(why["entries"][0]["entry"]["reason"]["kind"], "pinned");
    let said = bench.ok(&["why"]);
    assert!(
        said.contains("base/1/table blocks") && said.contains("to hdd") && said.contains("pinned by a user"),
        "{said}"
    );
    assert!(bench.ok(&["why", "small"]).contains("no decision is remembered"));
    let line = complaint(&bench.heatfs(&["why", "base/1/none"]).output().unwrap(), 1);
    assert!(line.contains("no such file"), "{line}");

    let told = bench.ok(&["explain", table]);
    for part in ["rule        none", "budget      nvme: ", "next review in ", "accesses expected in 300 s"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
    assert!(bench.json(&["plan"])["blocks"].is_u64() && bench.ok(&["plan"]).starts_with("the next plan (due in "));
    let imagined = bench.json(&["whatif", "--tier", "nvme=+1GiB", "--tier", "hdd=64MiB"])["found"].clone();
    let (now, then) = (&imagined["budget_bytes"], &imagined["changed_bytes"]);
    assert_eq!(now[0].as_u64().unwrap() + (1 << 30), then[0].as_u64().unwrap());
    assert_eq!((now[1].as_u64(), then[2].as_u64()), (then[1].as_u64(), Some(64 << 20)));
    bench.ok(&["whatif", "--tier", "sata=-1GiB"]);
    let line = complaint(&bench.heatfs(&["whatif", "--tier", "tape=1G"]).output().unwrap(), 2);
    assert!(line.contains("`tape`") && line.contains("nvme, sata, hdd"), "{line}");
    let report = bench.path("report.html");
    bench.ok(&["report", "--html", report.to_str().unwrap()]);
    let page = fs::read_to_string(&report).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("base/1/table block") && page.ends_with("</html>\n"));
    let line = complaint(&bench.heatfs(&["report", "--html", "/nowhere/x.html"]).output().unwrap(), 1);
    assert!(line.contains("/nowhere/x.html"), "{line}");
    assert!(bench.ok(&["status"]).contains("at risk"));
    assert!(bench.json(&["status"])["only_on_fastest_bytes"].is_u64());
    let forecast = bench.json(&["status"])["mover"]["forecast"].clone();
    assert_eq!((&forecast["choice"], &forecast["off"]), (&"decay8".into(), &serde_json::Value::Null), "{forecast}");
    assert!(bench.ok(&["status"]).contains("heat by     decay8: nothing has shown to be better than plain decay"));
    assert!(told.contains("heat by     decay8: ") && page.contains("Whose heat is believed"));
    assert!(bench.ok(&["heat"]).contains("heat by decay8: "));
}

#[test]
fn rules_of_the_settings_hold() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let settings = fs::read_to_string(bench.config()).unwrap();
    let rules =
        "\n[[rule]]\npath = \"base/\"\npin = \"sata\"\n[[rule]]\npath = \"/small\"\nnever = [\"nvme\", \"sata\"]\n";
    fs::write(bench.config(), settings + rules).unwrap();
    bench.start();
    let tier_of = |path: &str| bench.json(&["explain", path])["explanation"]["tier"].clone();
    assert!(wait_until(60, || tier_of("base/1/table:1MiB") == "sata"), "{}", bench.ok(&["why"]));
    assert!(wait_until(60, || tier_of("small") == "hdd"), "{}", bench.ok(&["why"]));
    let told = bench.ok(&["explain", "base/1/table"]);
    assert!(told.contains("rule[0] (path \"base/\", pin \"sata\")"), "{told}");
    let line = complaint(&bench.heatfs(&["pin", "small"]).output().unwrap(), 2);
    assert!(line.contains("small") && line.contains("rule[1]"), "{line}");
    fs::write(bench.data().join("pg_filenode.map"), b"x").unwrap();
    fs::create_dir(bench.data().join("global")).unwrap();
    fs::rename(bench.data().join("pg_filenode.map"), bench.data().join("global/pg_filenode.map")).unwrap();
    let told = bench.ok(&["explain", "global/pg_filenode.map"]);
    assert!(told.contains("postgresql profile: a catalog or map"), "{told}");
}

/// What the forecast has learned is losable: a stop keeps it, damage costs one line, and the volume serves in any case.
#[test]
fn the_forecast_is_kept_and_its_loss_is_one_line() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let quick = [("HEATFS__PLACEMENT__EPOCH", "1s"), ("HEATFS__FORECAST__PERIOD", "10s")];
    let forecast = |bench: &Bench| bench.json(&["status"])["mover"]["forecast"].clone();
    let epochs = |bench: &Bench| forecast(bench)["epochs"].as_u64().unwrap();
    bench.start_with(&quick);
    assert!(wait_until(60, || epochs(&bench) >= 2), "{}", forecast(&bench));
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    bench.start_with(&quick);
    assert!(
        wait_until(60, || forecast(&bench)["memory"] == "goes on where the last run ended"),
        "{}",
        forecast(&bench)
    );
    assert!(epochs(&bench) >= 2);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    let saved = bench.path("nvme/forecast.bin");
    let mut bytes = fs::read(&saved).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&saved, bytes).unwrap();
    bench.start_with(&quick);
    let learns_anew = || forecast(&bench)["memory"].as_str().unwrap().starts_with("learning anew: ");
    assert!(wait_until(60, learns_anew), "{}", forecast(&bench));
    assert_eq!(bench.log().matches("what the forecast had learned is lost").count(), 1, "{}", bench.log());
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    assert!(bench.is_mounted());
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    // Release used to leave it behind, and the tier could not be adopted onto again.
    assert!(saved.exists());
    bench.ok(&["release"]);
    assert!(!saved.exists());
    for tier in ["nvme", "sata", "hdd"] {
        assert_eq!(fs::read_dir(bench.path(tier)).unwrap().count(), 0, "{tier} is empty after a release");
    }
}

/// A backup program's writes are no heat; it is known by its command line.
#[test]
fn maintenance_is_told_by_its_command() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start_with(&[("HEATFS__FORECAST__MAINTENANCE", "nightly-backup")]);
    let recorder = || bench.json(&["status"])["mover"]["recorder"].clone();
    let table = bench.data().join("base/1/table");
    let write = |name: &str, block: u64| {
        let status = Command::new("bash")
            .args([
                "-c",
                "exec -a \"$0\" dd of=\"$1\" bs=1 count=1 seek=\"$2\" conv=notrunc if=/dev/zero status=none",
                name,
            ])
            .arg(&table)
            .arg((block * 65_536).to_string())
            .status();
        assert!(status.unwrap().success());
    };
    write("nightly-backup", 3);
    assert_eq!((&recorder()["maintenance_accesses"], &recorder()["counted_writes"]), (&1.into(), &0.into()));
    write("worker", 9);
    assert_eq!((&recorder()["maintenance_accesses"], &recorder()["counted_writes"]), (&1.into(), &1.into()));
}

#[test]
fn the_control_socket_refuses_in_one_line() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    for (method, target, body, code, wanted) in [
        ("GET", "/v1/nothing", "", 404, "/v1/nothing"),
        ("GET", "/v1/settle", "", 405, "GET"),
        ("POST", "/v1/status", "", 405, "POST"),
        ("POST", "/v1/stop", "{\"farce\": true}", 400, "farce"),
        ("POST", "/v1/stop", "not json", 400, "request body"),
        ("POST", "/v1/pin", "{}", 400, "path"),
        ("POST", "/v1/pin", "{\"path\": \"../x\"}", 400, ".."),
        ("POST", "/v1/unpin", "{\"path\": \"small\", \"tier\": \"nvme\"}", 400, "tier"),
        ("GET", "/v1/explain", "", 400, "path"),
        ("GET", "/v1/explain?path=small&offset=-1", "", 400, "offset"),
        ("GET", "/v1/explain?path=small&colour=red", "", 400, "colour"),
        ("GET", "/v1/explain?path=gone", "", 404, "gone"),
        ("GET", "/v1/jobs/x", "", 400, "`x`"),
        ("GET", "/v1/jobs/77", "", 404, "77"),
    ] {
        let (status, answer) = bench.http(method, target, body);
        let answer: serde_json::Value =
            serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{method} {target}: {answer}"));
        let line = answer["error"].as_str().unwrap();
        assert_eq!(status, code, "{method} {target}: {line}");
        assert!(line.contains(wanted) && line.lines().count() == 1, "{method} {target}: {line}");
    }
    let (status, metrics) = bench.http("GET", "/metrics", "");
    assert_eq!(status, 200);
    assert!(
        metrics.contains("heatfs_tier_used_bytes{tier=\"nvme\"}") && metrics.contains("heatfs_healthy 1.0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("heatfs_gate_chosen{way=\"decay8\"} 1.0") && metrics.contains("heatfs_forecast_running 1.0")
    );
    assert!(bench.log().contains("POST /v1/pin by uid 0"), "{}", bench.log());
}

/// What the control socket can do is for root and its group alone, even where the way to it is open.
#[test]
fn an_ordinary_user_gets_nothing_from_the_control_socket() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    let (socket, way) = (bench.socket(), bench.short_path(""));
    fs::set_permissions(&way, fs::Permissions::from_mode(0o755)).unwrap();
    let knock = |user: u32| {
        let socket = socket.clone();
        // For one thread only; the file system ids are what counts for a socket's permissions.
        let answer = std::thread::spawn(move || {
            nix::unistd::setfsgid(user.into());
            nix::unistd::setfsuid(user.into());
            std::os::unix::net::UnixStream::connect(socket).map(drop)
        });
        answer.join().unwrap()
    };
    assert_eq!(knock(65534).unwrap_err().raw_os_error(), Some(libc::EACCES));
    knock(0).expect("root may");
}

#[test]
fn a_busy_mount_keeps_being_served_and_its_holders_are_named() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    let holder = bench.holder();
    let daemon = nix::unistd::Pid::from_raw(i32::try_from(bench.pid()).unwrap());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGTERM).unwrap();
    let waiting = || bench.json(&["status"])["stopping"].as_str().unwrap_or_default().to_owned();
    let named = format!("{} (sleep", holder.pid());
    assert!(wait_until(20, || waiting().contains(&named)), "{}\n{}", waiting(), bench.log());
    fs::write(bench.data().join("still"), b"served").unwrap();
    drop(holder);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    bench.start();
    assert_eq!(read(&bench.data().join("still")), b"served");

    let _holder = bench.holder();
    bench.ok(&["stop", "--force"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    assert!(!bench.is_mounted());
}

/// Who uses a directory is looked for in all processes, also in those that hold a file of a mount that does not answer.
#[test]
fn a_mount_that_hangs_holds_up_no_adoption_elsewhere() {
    use nix::sys::signal::{Signal, kill};
    let (Some(mut bench), Some(other)) = (Bench::new(), Bench::new()) else { return };
    bench.adopt();
    bench.start();
    // After a write the kernel asks the daemon when somebody wants to know its attributes.
    let mut held = fs::File::options().append(true).open(bench.data().join("small")).unwrap();
    held.write_all(b" and more").unwrap();
    let daemon = nix::unistd::Pid::from_raw(i32::try_from(bench.pid()).unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let adopting = std::thread::spawn(move || other.adopt());
    let in_time = wait_until(60, || adopting.is_finished());
    kill(daemon, Signal::SIGCONT).unwrap();
    adopting.join().unwrap();
    assert!(in_time, "it waited for the mount to answer");
}

#[test]
fn a_stop_that_ends_in_a_crash_is_not_called_one() {
    for disk_goes_too in [false, true] {
        let Some(mut bench) = Bench::new() else { return };
        bench.adopt();
        bench.start();
        let holder = bench.holder();
        let mut stopping = bench.heatfs(&["stop"]);
        let stopping = stopping.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(wait_until(20, || !bench.json(&["status"])["stopping"].is_null()), "{}", bench.log());
        if disk_goes_too {
            fs::rename(bench.path("sata"), bench.path("unplugged")).unwrap();
        }
        bench.kill();
        let output = stopping.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("not cleanly"), "{said}");
        drop(holder);
        if disk_goes_too {
            fs::rename(bench.path("unplugged"), bench.path("sata")).unwrap();
        }
        bench.start();
        assert_eq!(read(&bench.data().join("small")), b"hello");
    }
}

#[test]
fn an_external_unmount_is_a_clean_stop() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    fs::write(bench.data().join("x"), b"y").unwrap();
    nix::mount::umount(&bench.data()).unwrap();
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    assert!(bench.log().contains("stopped cleanly"));
    bench.start();
    assert!(!bench.log().contains("did not end cleanly"), "{}", bench.log());
    assert_eq!(read(&bench.data().join("x")), b"y");
}

#[test]
fn a_second_daemon_is_refused_and_a_dead_mount_is_cleared_when_nobody_holds_it() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    let last_line = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
    };
    let line = last_line(bench.daemon_command().output().unwrap());
    assert!(line.contains(&format!("in use by process {}", bench.pid())), "{line}");

    fs::write(bench.data().join("written"), b"before the kill").unwrap();
    let file = fs::File::open(bench.data().join("written")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let holder = bench.holder();
    bench.kill();
    let line = last_line(bench.daemon_command().output().unwrap());
    assert!(line.contains(&format!("{} (sleep", holder.pid())) && line.contains("still held"), "{line}");
    drop(holder);
    bench.start();
    assert_eq!(read(&bench.data().join("written")), b"before the kill");
}

#[test]
fn a_context_without_selinux_is_refused_before_anything_is_mounted() {
    let Some(mut bench) = Bench::new() else { return };
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return println!("skipped: SELinux is enabled here");
    }
    bench.adopt();
    let context = "system_u:object_r:postgresql_db_t:s0:c0,c1";
    let output = bench.daemon_command().env("HEATFS__FUSE__CONTEXT", context).output().unwrap();
    let line = complaint(&output, 2);
    assert!(line.contains(context) && line.contains("SELinux is not enabled"), "{line}");
    assert!(!bench.is_mounted());
    bench.start();
    assert!(!bench.log().contains("did not end cleanly"), "nothing was changed: {}", bench.log());
}

#[test]
fn what_was_fixed_at_adoption_cannot_be_changed_in_the_settings() {
    let Some(bench) = Bench::new() else { return };
    bench.adopt();
    for (from, to, wanted) in [
        (
            "block_size = \"64KiB\"",
            "block_size = \"32KiB\"",
            "block_size = \"32KiB\": the volume was made with \"64KiB\"",
        ),
        ("size = \"64MiB\"", "size = \"128MiB\"", "log.size = \"128MiB\": the volume was made with \"64MiB\""),
    ] {
        let text = fs::read_to_string(bench.config()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(bench.config(), text.replacen(from, to, 1)).unwrap();
        let output = bench.daemon_command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.lines().last().unwrap().contains(wanted), "{said}");
        fs::write(bench.config(), text).unwrap();
    }
    let line = complaint(&bench.adopt_command().output().unwrap(), 1);
    assert!(line.contains("nvme"), "{line}");
}

/// The service manager hears when to start the database, that the daemon lives, and to wait when it stops.
#[test]
fn the_service_manager_is_told() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let path = bench.short_path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    bench.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "600000")]);
    let heard = || {
        let mut buf = [0; 4096];
        let len = manager.recv(&mut buf).unwrap();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    };
    let wait_for = |wanted: &str| while !heard().contains(wanted) {};
    wait_for("EXTEND_TIMEOUT_USEC=");
    wait_for("READY=1");
    wait_for("STATUS=serving ");
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    let holder = bench.holder();
    bench.ok(&["stop", "--no-wait"]);
    wait_for("STOPPING=1");
    wait_for(&format!("STATUS=stopping: waiting for {} (sleep", holder.pid()));
    wait_for("EXTEND_TIMEOUT_USEC=30000000");
    wait_for("WATCHDOG=1");
    drop(holder);
    wait_for("STATUS=stopping: bringing everything");
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
}

/// A daemon that could not open its control socket used to end and leave a dead mount behind.
#[test]
fn a_failed_start_leaves_no_mount() {
    let Some(bench) = Bench::new() else { return };
    bench.adopt();
    let output = bench.daemon_command().env("HEATFS__SOCKET", "/proc/none/s").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().last().unwrap().contains("/proc/none"), "{said}");
    assert!(!bench.is_mounted());
    assert_eq!(bench.json(&["check"])["findings"], serde_json::json!([]));
}

/// A file whose name did not survive the crash used to keep its blocks for ever.
#[test]
fn content_without_a_name_goes_after_a_crash_unless_an_identity_is_in_doubt() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    bench.start();
    for name in ["lost", "lost-too"] {
        fs::write(bench.data().join(name), pattern(200_000)).unwrap();
    }
    bench.ok(&["settle"]);
    let home = bench.path("nvme/home/tree");
    let in_home = |name: &str| home.join(name);
    bench.kill();

    // Home lost a name; of another file it has a stranger's copy.
    fs::remove_file(in_home("lost")).unwrap();
    fs::write(in_home("stranger"), b"").unwrap();
    bench.start();
    assert!(bench.log().contains("1 files without a name keep their space"), "{}", bench.log());
    bench.kill();

    fs::remove_file(in_home("stranger")).unwrap();
    fs::remove_file(in_home("lost-too")).unwrap();
    bench.start();
    assert!(bench.log().contains("2 files that the crash left without a name"), "{}", bench.log());
    bench.ok(&["checkpoint"]);
    let left = bench.json(&["check", "--deep"]);
    assert_eq!((&left["findings"], &left["files"]), (&serde_json::json!([]), &2.into()));
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
}

/// What was written lies in the archive when the volume has stopped, its head too, and can be looked at; release leaves nothing of it.
#[test]
fn the_log_is_kept_for_who_asks_later() {
    let Some(mut bench) = Bench::new() else { return };
    bench.adopt();
    let segment = u64::from(u32::try_from(fs::metadata(bench.path("nvme/log/00000.seg")).unwrap().len()).unwrap());
    bench.start_with(&[("HEATFS__LOG__ARCHIVE_SIZE", "1GiB")]);
    fs::write(bench.data().join("much"), pattern(usize::try_from(segment).unwrap() + 100_000)).unwrap();
    fs::File::open(bench.data().join("much")).unwrap().sync_all().unwrap();
    assert!(
        wait_until(60, || bench.json(&["status"])["log_archive"]["segments"] == 1),
        "{}",
        bench.json(&["status"])["log_archive"]
    );
    assert!(bench.ok(&["status"]).contains("log archive"), "{}", bench.ok(&["status"]));
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    let kept = bench.json(&["dump", "log-archive"]);
    assert_eq!((kept.as_array().unwrap().len(), &kept[0]["tier"]), (2, &"hdd".into()), "{kept}");
    let first = bench.json(&["dump", &format!("log-archive:{}", kept[0]["segment_seq"])]);
    assert!(first["records"].as_u64().unwrap() > 0, "{first}");
    assert_eq!(first["group_headers"][0]["records"][0]["kind"], "data", "{first}");
    let line = complaint(&bench.heatfs(&["dump", "log-archive:4711"]).output().unwrap(), 1);
    assert!(line.contains("4711") && line.contains("not in the archive"), "{line}");
    bench.ok(&["release"]);
    assert_eq!(fs::read_dir(bench.path("hdd")).unwrap().count(), 0, "the tier is empty after a release");
}
