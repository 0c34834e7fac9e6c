//! Snapshots beneath PostgreSQL: backup mode and its label, checksums of pages, rolling back. Says so and passes where there is no server, unless `HEATFS_REQUIRE_ALL`
//! is set.

use super::bench::{Bench, wait_until};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A server on one data directory after the other.
struct Server {
    bin: PathBuf,
    run: PathBuf,
    data: Option<PathBuf>,
}

impl Server {
    /// None, with a word about it, where there is no PostgreSQL that root could run.
    fn new(bench: &Bench) -> Option<Server> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let bin = versions.map(|entry| entry.unwrap().path().join("bin")).find(|bin| bin.join("initdb").exists());
        let Some(bin) = bin else {
            assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: no PostgreSQL");
            eprintln!("\n*** SKIPPED, nothing was tested: no PostgreSQL ***\n");
            return None;
        };
        let run = bench.short_path("pg");
        fs::create_dir(&run).unwrap();
        let server = Server { bin, run, data: None };
        server.give(&server.run);
        // Temporary directories are their makers' alone.
        for dir in [bench.path(""), bench.short_path("")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some(server)
    }

    fn give(&self, path: &Path) {
        assert!(Command::new("chown").arg("-R").arg("postgres:").arg(path).status().unwrap().success());
    }

    fn output(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.bin.join(program)).args(args).current_dir("/").output().unwrap()
    }

    fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.output(program, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {said}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.run.join("log")).unwrap_or_default()
    }

    fn start(&mut self, data: &Path) {
        self.start_with(data, "");
    }

    /// With further options.
    fn start_with(&mut self, data: &Path, further: &str) {
        let options = format!("-k {} -c listen_addresses= {further}", self.run.display());
        let log = self.run.join("log");
        // pg_ctl's own output is inherited by the server; a pipe would never end.
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.bin.join("pg_ctl")).arg("-D").arg(data).arg("-l").arg(&log);
        command.args(["-w", "-t", "120", "-o", &options, "start"]).current_dir("/");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        self.data = Some(data.to_owned());
        assert!(command.status().unwrap().success(), "{}", self.log());
    }

    fn stop(&mut self) {
        if let Some(data) = self.data.take() {
            self.output("pg_ctl", &["-D", data.to_str().unwrap(), "-m", "fast", "-w", "-t", "120", "stop"]);
        }
    }

    fn sql(&self, query: &str) -> String {
        self.ok("psql", &["-h", self.run.to_str().unwrap(), "-d", "postgres", "-XAtqc", query]).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A cluster with checksums on a volume that is being served, and its server's archive of WAL.
fn adopted() -> Option<(Server, Bench)> {
    let mut bench = Bench::new()?;
    let mut server = Server::new(&bench)?;
    let (data, archive) = (bench.data(), bench.path("archive"));
    for dir in [&data, &archive] {
        fs::create_dir(dir).unwrap();
        server.give(dir);
    }
    server.ok("initdb", &["-D", data.to_str().unwrap(), "--data-checksums", "--no-sync", "--auth", "trust"]);
    let archiving = format!(
        "\narchive_mode = on\narchive_command = 'cp %p {0}/%f'\nrestore_command = 'cp {0}/%f %p'\n",
        archive.display()
    );
    let conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    fs::write(data.join("postgresql.conf"), conf + &archiving).unwrap();
    let output = bench.adopt_command().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bench.ok(&["repo", "init", bench.path("repo").to_str().unwrap()]);
    let settings = fs::read_to_string(bench.config()).unwrap();
    let snapshot = format!(
        "\n[snapshot]\nrepository = \"{}\"\n[snapshot.postgresql]\nconnection = \"host={} dbname=postgres\"\nrun_as = \"postgres\"\n",
        bench.path("repo").display(),
        server.run.display()
    );
    fs::write(bench.config(), settings + &snapshot).unwrap();
    bench.start();
    server.start(&data);
    Some((server, bench))
}

#[test]
fn a_snapshot_in_backup_mode_recovers_by_itself_and_to_a_later_moment() {
    let Some((mut server, mut bench)) = adopted() else { return };
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    let taken = bench.json(&["snapshot", "create"]);
    assert_eq!(taken["consistency"], "app", "{taken}");
    let label = &taken["backup_label"];
    assert!(label["backup_label"].as_str().unwrap().starts_with("START WAL LOCATION"), "{taken}");
    assert!(label["first_wal"].as_str().unwrap().len() == 24 && label["stop_lsn"].as_str().unwrap().contains('/'));
    assert!(taken["pages"]["checked"].as_u64().unwrap() > 500 && taken["pages"]["bad"] == 0, "{taken}");
    assert!(taken["trouble"].is_null(), "{taken}");
    assert_eq!(server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'heatfs'"), "0");
    assert!(bench.ok(&["snapshot", "show", "latest"]).contains("recovery needs WAL from file"));
    server.sql("INSERT INTO t SELECT generate_series(1001, 1234)");
    server.sql("SELECT pg_switch_wal()");
    let archived =
        "SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1)";
    assert!(wait_until(60, || server.sql(archived) == "1"), "the archive has all");
    server.stop();

    // By itself: as of its moment, with nothing but what is in it.
    let alone = bench.path("alone");
    bench.ok(&["restore", "latest", alone.to_str().unwrap()]);
    assert!(!alone.join("backup_label").exists());
    // The server ran at the moment, and so does its number, perhaps, as another process.
    fs::remove_file(alone.join("postmaster.pid")).unwrap();
    // Two servers of one history must not write to one archive.
    server.start_with(&alone, "-c archive_mode=off");
    assert_eq!(server.sql("SELECT count(*) FROM t"), "1000");
    server.stop();
    // With its label and the archive: up to the end of WAL.
    let later = bench.path("later");
    bench.ok(&["restore", "latest", later.to_str().unwrap(), "--backup-label"]);
    assert!(later.join("backup_label").exists());
    fs::remove_file(later.join("postmaster.pid")).unwrap();
    fs::write(later.join("recovery.signal"), b"").unwrap();
    server.give(&later.join("recovery.signal"));
    server.start(&later);
    assert_eq!(server.sql("SELECT count(*) FROM t"), "1234");
    assert!(server.log().contains("consistent recovery state reached"));
    server.stop();

    // A server that is not there, and one that is another's: no snapshot, and a line that says why.
    let refused = bench.heatfs(&["snapshot", "create"]).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("PostgreSQL: "),
        "{refused:?}"
    );
    server.start_with(&alone, "-c archive_mode=off");
    let refused = bench.heatfs(&["snapshot", "create"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not on this volume"), "{refused:?}");
    server.stop();
    assert_eq!(bench.json(&["snapshot", "list"]).as_array().unwrap().len(), 1);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
}

/// A page that rots on the volume, as a disk does it, is in every snapshot from then on, and each of them says so.
#[test]
fn a_page_with_a_wrong_checksum_is_named_in_every_snapshot_that_has_it() {
    let Some((mut server, mut bench)) = adopted() else { return };
    server.sql("CREATE TABLE rotten AS SELECT generate_series(1, 5000) AS i");
    let path = server.sql("SELECT pg_relation_filepath('rotten')");
    server.sql("CHECKPOINT");
    let sound = bench.json(&["snapshot", "create"]);
    assert_eq!(sound["pages"]["bad"], 0, "{sound}");
    server.stop();
    let file = fs::File::options().read(true).write(true).open(bench.data().join(&path)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * 8192 + 7000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 3 * 8192 + 7000).unwrap();
    drop(file);
    server.start(&bench.data());
    let hurt = bench.json(&["snapshot", "create"]);
    assert_eq!(hurt["pages"]["named"], serde_json::json!([{ "path": path, "block": 3 }]), "{hurt}");
    let again = bench.json(&["snapshot", "create"]);
    assert_eq!(again["pages"]["bad"], 1, "not read again, and still wrong: {again}");
    let status = bench.heatfs(&["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(1));
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("1 pages have a wrong checksum") && said.contains(&format!("block 3 of {path}")), "{said}");
    let shown = bench.ok(&["snapshot", "show", "latest"]);
    assert!(shown.contains(&format!("block 3 of {path} (")) && shown.contains("rotten"), "{shown}");
    assert!(bench.log().contains("rotten"), "the journal names the relation:\n{}", bench.log());
    assert!(bench.ok(&["events"]).contains("1 pages with a wrong checksum"));
    let error = String::from_utf8_lossy(
        &server
            .output(
                "psql",
                &["-h", server.run.to_str().unwrap(), "-d", "postgres", "-XAtqc", "SELECT count(*) FROM rotten"],
            )
            .stderr,
    )
    .into_owned();
    assert!(error.contains("invalid page in block 3"), "the server is of the same mind: {error}");
    server.sql("DROP TABLE rotten");
    server.sql("CHECKPOINT");
    let healed = bench.json(&["snapshot", "create"]);
    assert_eq!(healed["pages"]["bad"], 0, "{healed}");
    assert!(bench.ok(&["status"]).contains("healthy"));
    server.stop();
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
}

/// The night it is for: a table was dropped, the volume goes back to before, and on, or back to what it was.
#[test]
fn a_dropped_table_is_back_after_a_rollback_and_gone_again_when_that_is_undone() {
    let Some((mut server, mut bench)) = adopted() else { return };
    let data = bench.data();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i");
    let id = bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned();
    server.sql("DROP TABLE t");
    server.sql("CREATE TABLE made_since AS SELECT 42 AS i");
    let on_another_root = |server: &mut Server, bench: &mut Bench, args: &[&str]| {
        server.stop();
        bench.ok(&["stop"]);
        assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
        bench.ok(args);
        bench.start();
        // As after a power cut the server's own is there. Where nobody reaps its process PostgreSQL takes it for one that runs.
        fs::remove_file(data.join("postmaster.pid")).ok();
        server.start(&data);
    };
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('t', 'made_since')";

    on_another_root(&mut server, &mut bench, &["rollback", &id]);
    assert_eq!((server.sql(tables), server.sql("SELECT sum(i) FROM t")), ("t".to_owned(), "200010000".to_owned()));
    server.sql("INSERT INTO t SELECT 1 FROM generate_series(1, 5000)");
    server.sql("VACUUM FULL t");
    on_another_root(&mut server, &mut bench, &["rollback", "--undo"]);
    assert_eq!(server.sql(tables), "made_since");

    on_another_root(&mut server, &mut bench, &["rollback", &id]);
    server.sql("INSERT INTO t VALUES (-10000)");
    on_another_root(&mut server, &mut bench, &["rollback", "--confirm"]);
    assert_eq!((server.sql(tables), server.sql("SELECT sum(i) FROM t")), ("t".to_owned(), "200000000".to_owned()));
    // All pages are read and their checksums verified.
    assert_eq!(bench.json(&["snapshot", "create"])["pages"]["bad"], 0);
}
