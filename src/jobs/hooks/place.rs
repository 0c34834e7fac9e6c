//! Puts PostgreSQL's label into a restored data directory.

use super::BackupLabel;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

/// Writes `backup_label`, and `tablespace_map` if there is one, durably, with the owner of the data directory. `root`: where the snapshot's
/// root was restored to. Errors: `NotFound` without a data directory there.
pub fn place_label(root: &Path, label: &BackupLabel) -> Result<()> {
    let directory = root.join(&label.directory);
    let failed = |path: &Path, error| Error::io("write backup label", path.display().to_string(), error);
    let control = directory.join("global/pg_control");
    let owner = match control.metadata() {
        Ok(meta) => (meta.uid(), meta.gid()),
        Err(_) => return Err(Error::NotFound(format!("{}: there is no data directory", directory.display()))),
    };
    for (name, text) in [("backup_label", &label.backup_label), ("tablespace_map", &label.tablespace_map)] {
        if text.is_empty() {
            continue;
        }
        let path = directory.join(name);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes())?;
            fchown(&file, Some(owner.0), Some(owner.1))?;
            file.sync_all()
        };
        write().map_err(|error| failed(&path, error))?;
    }
    File::open(&directory).and_then(|directory| directory.sync_all()).map_err(|error| failed(&directory, error))
}

#[cfg(test)]
mod tests {
    use super::place_label;
    use crate::jobs::hooks::BackupLabel;
    use std::fs;

    #[test]
    fn a_label_goes_where_the_server_looks_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let label =
            BackupLabel { directory: "15/main".into(), backup_label: "START\n".into(), ..BackupLabel::default() };
        let error = place_label(dir.path(), &label).expect_err("no data directory").to_string();
        assert!(error.contains("15/main"), "{error}");
        fs::create_dir_all(dir.path().join("15/main/global")).expect("mkdir");
        fs::write(dir.path().join("15/main/global/pg_control"), b"x").expect("write");
        place_label(dir.path(), &label).expect("placed");
        assert_eq!(fs::read(dir.path().join("15/main/backup_label")).expect("there"), b"START\n");
        assert!(!dir.path().join("15/main/tablespace_map").exists(), "an empty map is none");
    }
}
