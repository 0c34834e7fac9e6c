//! Which paths are a database's logs: the one place that knows their names.

/// PostgreSQL's WAL.
pub fn is_postgresql_log(path: &str) -> bool {
    directories(path).any(|part| part == "pg_wal" || part == "pg_xlog")
}

/// InnoDB's redo, Aria's log, binary and relay logs.
pub fn is_mariadb_log(path: &str) -> bool {
    const PREFIXES: [&str; 7] =
        ["ib_logfile", "#ib_redo", "aria_log.", "binlog.", "mysql-bin.", "mariadb-bin.", "relay-bin."];
    PREFIXES.iter().any(|prefix| name_of(path).starts_with(prefix))
        || directories(path).any(|part| part == "#innodb_redo")
}

/// SQLite's WAL and rollback journals.
pub fn is_sqlite_log(path: &str) -> bool {
    path.ends_with("-wal") || path.ends_with("-journal")
}

pub(super) fn is_log_path(path: &str) -> bool {
    is_postgresql_log(path) || is_mariadb_log(path) || is_sqlite_log(path)
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn directories(path: &str) -> impl Iterator<Item = &str> {
    path.rsplit('/').skip(1)
}

#[cfg(test)]
mod tests {
    use super::is_log_path;

    #[test]
    fn log_files_are_known_by_name() {
        for path in [
            "pg_wal/000000010000000000000001",
            "ib_logfile0",
            "#innodb_redo/#ib_redo12",
            "app.db-wal",
            "x/mysql-bin.000001",
        ] {
            assert!(is_log_path(path), "{path}");
        }
        for path in ["base/5/1259", "pg_wal", "ibdata1", "wal/x", "app.db"] {
            assert!(!is_log_path(path), "{path}");
        }
    }
}
