//! What a database's file is, told by its name and place alone: PostgreSQL, MariaDB and MySQL, SQLite.
//!
//! Three kinds want another treatment than heat gives them. Logs are hardly read, but a flood of them must not wait for a slow disk.
//! Temporary files die young: to demote one is to copy what is about to be deleted. Catalogs are small, and everything waits for them
//! after a restart, when heat says nothing about them yet.

use crate::heat::forecast::FileClass;
use crate::volume::log_paths;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    PostgreSql,
    MariaDb,
    Sqlite,
}

impl Profile {
    pub const ALL: [Profile; 3] = [Profile::PostgreSql, Profile::MariaDb, Profile::Sqlite];

    /// As settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Profile::PostgreSql => "postgresql",
            Profile::MariaDb => "mariadb",
            Profile::Sqlite => "sqlite",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// On the fastest tier within a reserve.
    Log,
    /// Never demoted.
    Temporary,
    /// On the fastest tier within a share.
    Catalog,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Log => "a log: kept on the fastest tier within its reserve",
            Kind::Temporary => "a temporary file: never demoted",
            Kind::Catalog => "a catalog or map: kept on the fastest tier",
        })
    }
}

/// What the file at `path` holds, as far as its name tells any of the databases: which of their users' files are tables and which indexes it does not.
pub fn class_of(path: &str) -> FileClass {
    if path.ends_with("_fsm") || path.ends_with("_vm") {
        return FileClass::Map;
    }
    match Profile::ALL.iter().find_map(|profile| profile.kind_of(path)) {
        Some(Kind::Log) => FileClass::Log,
        Some(Kind::Temporary) => FileClass::Temporary,
        Some(Kind::Catalog) => FileClass::Catalog,
        None => FileClass::Other,
    }
}

/// Objects with smaller ids are made by initdb: the catalogs. From the next one on they are users' (`FirstNormalObjectId`).
const FIRST_USER_OBJECT: u32 = 16_384;
/// `pg_largeobject` and its index: catalogs by number, users' data by content.
const LARGE_OBJECTS: [u32; 2] = [2613, 2683];
/// `template1` and `template0` (by its number since version 15): read when a database is made, and else by nobody. Each of their catalogs
/// would take a block of its own.
const TEMPLATES: [&str; 2] = ["1", "4"];

impl Profile {
    /// What this database has at `path`, relative to the mount or to any directory above the database's own.
    pub fn kind_of(self, path: &str) -> Option<Kind> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (name, above) = parts.split_last()?;
        let is_log = match self {
            Profile::PostgreSql => log_paths::is_postgresql_log(path),
            Profile::MariaDb => log_paths::is_mariadb_log(path),
            Profile::Sqlite => log_paths::is_sqlite_log(path),
        };
        if is_log {
            return Some(Kind::Log);
        }
        match self {
            Profile::PostgreSql => postgresql(name, above),
            Profile::MariaDb => mariadb(name, above),
            Profile::Sqlite => sqlite(name),
        }
    }
}

fn postgresql(name: &str, above: &[&str]) -> Option<Kind> {
    if name.starts_with("pgsql_tmp") || above.iter().any(|part| part.starts_with("pgsql_tmp")) {
        return Some(Kind::Temporary);
    }
    const STATE: [&str; 7] =
        ["pg_xact", "pg_clog", "pg_multixact", "pg_subtrans", "pg_commit_ts", "pg_logical", "pg_twophase"];
    if above.iter().any(|part| STATE.contains(part)) {
        return Some(Kind::Catalog);
    }
    let is_map = ["pg_filenode.map", "pg_internal.init", "PG_VERSION", "pg_control"].contains(&name);
    match above {
        [.., "global"] if is_map || is_relation_file(name) => Some(Kind::Catalog),
        [.., "base", database] if database.parse::<u32>().is_ok() => {
            let relation = relation_number(name);
            // The temporary tables of backend 3 are called t3_16402.
            let is_temporary = name
                .strip_prefix('t')
                .and_then(|rest| rest.split_once('_'))
                .is_some_and(|(backend, relation)| backend.parse::<u32>().is_ok() && is_relation_file(relation));
            let is_catalog = relation.is_some_and(|id| id < FIRST_USER_OBJECT && !LARGE_OBJECTS.contains(&id));
            match (is_temporary, (is_catalog || is_map) && !TEMPLATES.contains(database)) {
                (true, _) => Some(Kind::Temporary),
                (_, true) => Some(Kind::Catalog),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The relation of `1259`, `1259_vm` or `1259.1`.
fn relation_number(name: &str) -> Option<u32> {
    let end = name.find(['_', '.']).unwrap_or(name.len());
    name.get(..end)?.parse().ok()
}

fn is_relation_file(name: &str) -> bool {
    relation_number(name).is_some()
}

fn mariadb(name: &str, above: &[&str]) -> Option<Kind> {
    if name.starts_with("#sql") || name.starts_with("ibtmp") || above.contains(&"#innodb_temp") {
        return Some(Kind::Temporary);
    }
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    let is_system_table = above.last() == Some(&"mysql")
        && extension.is_some_and(|end| ["frm", "MAI", "MAD", "ibd", "CSM", "CSV", "opt"].contains(&end));
    let is_dictionary = name == "aria_log_control" || name == "mysql.ibd" || extension == Some("frm");
    (is_system_table || is_dictionary).then_some(Kind::Catalog)
}

fn sqlite(name: &str) -> Option<Kind> {
    match name {
        _ if name.starts_with("etilqs_") => Some(Kind::Temporary),
        _ if name.ends_with("-shm") => Some(Kind::Catalog),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Profile};

    #[test]
    fn files_are_recognised() {
        use Kind::{Catalog, Log, Temporary};
        use Profile::{MariaDb, PostgreSql, Sqlite};
        for (profile, path, kind) in [
            (PostgreSql, "pg_wal/000000010000000000000001", Some(Log)),
            (PostgreSql, "15/main/pg_wal/archive_status/x.done", Some(Log)),
            (PostgreSql, "base/pgsql_tmp/pgsql_tmp123.0", Some(Temporary)),
            (PostgreSql, "base/5/t3_16402", Some(Temporary)),
            (PostgreSql, "base/5/t3_16402_fsm", Some(Temporary)),
            (PostgreSql, "global/1262", Some(Catalog)),
            (PostgreSql, "global/pg_filenode.map", Some(Catalog)),
            (PostgreSql, "main/base/5/pg_filenode.map", Some(Catalog)),
            (PostgreSql, "base/5/1259", Some(Catalog)),
            (PostgreSql, "base/5/1259_vm", Some(Catalog)),
            (PostgreSql, "base/1/1259", None),
            (PostgreSql, "base/5/2613.1", None),
            (PostgreSql, "base/5/16385", None),
            (PostgreSql, "base/5/16385.2", None),
            (PostgreSql, "pg_xact/0000", Some(Catalog)),
            (PostgreSql, "pg_multixact/members/0000", Some(Catalog)),
            (PostgreSql, "postgresql.conf", None),
            (PostgreSql, "base/5/notes", None),
            (MariaDb, "ib_logfile0", Some(Log)),
            (MariaDb, "#innodb_redo/#ib_redo12", Some(Log)),
            (MariaDb, "shop/#sql-1f2_3.ibd", Some(Temporary)),
            (MariaDb, "ibtmp1", Some(Temporary)),
            (MariaDb, "mysql/proc.MAD", Some(Catalog)),
            (MariaDb, "shop/orders.frm", Some(Catalog)),
            (MariaDb, "shop/orders.ibd", None),
            (MariaDb, "ibdata1", None),
            (Sqlite, "app.db-wal", Some(Log)),
            (Sqlite, "app.db-shm", Some(Catalog)),
            (Sqlite, "etilqs_1234", Some(Temporary)),
            (Sqlite, "app.db", None),
            (Sqlite, "", None),
        ] {
            assert_eq!(profile.kind_of(path), kind, "{profile:?} {path}");
        }
    }
}
