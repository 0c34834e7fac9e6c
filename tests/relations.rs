//! Names of relations from a real cluster's files, compared with what PostgreSQL itself says of them.
//!
//! Where there is no PostgreSQL the test says so and passes, unless `HEATFS_REQUIRE_ALL` is set: then it fails.

use heatfs::jobs::relations::Relations;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The newest PostgreSQL of this machine.
fn postgres_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let found = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    found
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, bin)| bin.join("postgres").exists())
        .max()
        .map(|(_, bin)| bin)
}

/// A command as the user who may run the server.
fn as_server(program: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn why_not_here() -> Option<&'static str> {
    if postgres_bin().is_none() {
        return Some("no PostgreSQL server under /usr/lib/postgresql");
    }
    let may = as_server(Path::new("true")).status().is_ok_and(|status| status.success());
    (!may).then_some("PostgreSQL does not run as root, and there is no user postgres")
}

/// Runs statements, one a line, without a server; what they print.
fn single_user(bin: &Path, data: &Path, database: &str, sql: &str) -> String {
    let mut child = as_server(&bin.join("postgres"))
        .args(["--single", "-D"])
        .arg(data)
        .arg(database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("postgres runs");
    child.stdin.take().expect("piped").write_all(sql.as_bytes()).expect("postgres reads");
    let output = child.wait_with_output().expect("postgres ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("ERROR"), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn relations_of_a_real_cluster_have_their_names() {
    if let Some(reason) = why_not_here() {
        assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: {reason}");
        eprintln!("\n*** SKIPPED, nothing was tested: {reason} ***\n");
        return;
    }
    let bin = postgres_bin().expect("checked above");
    let dir = tempfile::tempdir().expect("a temporary directory");
    if nix::unistd::geteuid().is_root() {
        let owned = Command::new("chown").arg("postgres").arg(dir.path()).status().expect("chown runs");
        assert!(owned.success());
    }
    let data = dir.path().join("data");
    let made =
        as_server(&bin.join("initdb")).args(["-N", "-A", "trust", "-D"]).arg(&data).output().expect("initdb runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    single_user(&bin, &data, "postgres", "create database shop\n");
    let printed = single_user(
        &bin,
        &data,
        "shop",
        "create schema sales\n\
         create table sales.orders (id int primary key, note text)\n\
         insert into sales.orders select i, repeat(md5(i::text), 500) from generate_series(1, 200) i\n\
         alter table sales.orders rename to orders_kept\n\
         vacuum full pg_class\n\
         select c.oid::regclass || '=' || pg_relation_filepath(c.oid) as found from pg_class c where c.relkind in ('r','i','t')\n",
    );
    let relations = Relations::read(&data);
    let mut compared = 0;
    // Lines like `1: found = "pg_class=base/5/1259" (typeid = 25, ...)`.
    for (relation, path) in printed.lines().filter_map(|line| line.split('"').nth(1)?.split_once('=')) {
        let name = relations.name_of(path).unwrap_or_else(|| panic!("{path} of {relation} has no name"));
        let last = relation.rsplit('.').next().expect("a name");
        let toast = relation.starts_with("pg_toast");
        assert!(name.contains(last) || (toast && name.starts_with("toast ")), "{path} is {relation}, not {name}");
        compared += 1;
    }
    assert!(compared > 150, "only {compared} relations were compared:\n{printed:.2000}");
    let has = |wanted: &str| {
        let line = printed.lines().filter_map(|line| line.split('"').nth(1)?.split_once('='));
        line.map(|(_, path)| relations.name_of(path)).any(|name| name.as_deref() == Some(wanted))
    };
    for wanted in [
        "shop.sales.orders_kept",
        "index orders_pkey of shop.sales.orders_kept",
        "toast of shop.sales.orders_kept",
        "toast index of shop.sales.orders_kept",
        "shop.pg_catalog.pg_class",
        "pg_database",
    ] {
        assert!(has(wanted), "no file is called {wanted}");
    }
}
