//! `mount-helper`: what mount(8), fstab and systemd's mount units call.

use super::args::MountHelper;
use super::volume::default_settings_file;
use crate::daemon;
use crate::daemon::settings::Settings;
use crate::error::Error;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names under which this program is the helper.
const HELPER_NAMES: [&str; 2] = ["mount.heatfs", "mount.fuse.heatfs"];
/// Options that say what holds in any case, or that are meant for mount(8), systemd or people.
const ACCEPTED: &[&str] = &[
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "noatime",
    "nodiratime",
    "nosuid",
    "nodev",
    "exec",
    "async",
    "allow_other",
    "default_permissions",
];
const ACCEPTED_BEGINNINGS: &[&str] = &["x-", "X-", "comment=", "user="];
const NO_EXEC: &str = "noexec";

/// The arguments of this process, as if the helper had been called by its own name.
pub(super) fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<OsString> = given.collect();
    let name = given.first().and_then(|first| Path::new(first).file_name()).unwrap_or_default();
    if HELPER_NAMES.iter().any(|helper| name == *helper) {
        given.insert(1, "mount-helper".into());
    }
    given
}

pub(super) fn run(request: &MountHelper) -> Result<()> {
    let no_exec = options(&request.options, request.sloppy)?;
    let file = settings_file(&request.source);
    let settings = Settings::load(&file)?;
    let shown = |path: &Path| path.display().to_string();
    let dir = std::path::absolute(&request.dir).with_context(|| format!("finding {}", shown(&request.dir)))?;
    // A mount point may be dead: then only its parent can be looked at.
    let dir = match (dir.parent().map(Path::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => dir,
    };
    if dir != settings.mount_path() {
        let line =
            format!("{} is to be mounted on {}, not on {}", shown(&file), shown(&settings.mount_path()), shown(&dir));
        return Err(Error::Invalid(line).into());
    }
    if request.fake {
        return Ok(());
    }
    let file = file.canonicalize().with_context(|| format!("finding {}", shown(&file)))?;
    let mount_as = daemon::MountAs { source: Some(request.source.clone()), no_exec };
    Ok(daemon::launch(&settings, &file, &mount_as)?)
}

/// A path, or the name of a volume of this machine.
fn settings_file(source: &str) -> PathBuf {
    match source.contains('/') {
        true => PathBuf::from(source),
        false => default_settings_file(source),
    }
}

/// Must nothing be executed? Errors: an option that would not be honoured, unless those are to be ignored.
fn options(given: &[String], sloppy: bool) -> Result<bool, Error> {
    let mut no_exec = false;
    for option in given.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
        let accepted = ACCEPTED.contains(&option) || ACCEPTED_BEGINNINGS.iter().any(|start| option.starts_with(start));
        match option {
            NO_EXEC => no_exec = true,
            "exec" => no_exec = false,
            "ro" => {
                let line =
                    "option ro: a volume is mounted to be written; to look at a snapshot there is `heatfs mount`";
                return Err(Error::Invalid(line.to_owned()));
            }
            _ if accepted || sloppy => {}
            _ => {
                let known = [ACCEPTED, &[NO_EXEC]].concat().join(", ");
                return Err(Error::Invalid(format!("option {option}: not one of {known}, x-...")));
            }
        }
    }
    Ok(no_exec)
}

#[cfg(test)]
mod tests {
    use super::{arguments, options};
    use std::ffi::OsString;

    #[test]
    fn the_name_makes_the_helper() {
        let called = |words: &[&str]| arguments(words.iter().map(OsString::from));
        assert_eq!(
            called(&["/sbin/mount.heatfs", "main", "/data"]),
            ["/sbin/mount.heatfs", "mount-helper", "main", "/data"]
        );
        assert_eq!(called(&["/usr/bin/heatfs", "status"]), ["/usr/bin/heatfs", "status"]);
        assert_eq!(called(&[]), Vec::<OsString>::new());
    }

    #[test]
    fn options_are_honoured_or_refused() {
        let given = |list: &str| options(&[list.to_owned()], false);
        assert!(!given("rw,noatime,nofail,_netdev,x-systemd.after=a.mount,user=root,comment=x").expect("accepted"));
        assert!(given("rw,user,noexec").expect("accepted"));
        assert!(!given("noexec,exec").expect("the last one counts"));
        assert!(!given("").expect("nothing asked for"));
        assert!(given("rw,ro").expect_err("refused").to_string().starts_with("option ro: "));
        assert!(given("sync").expect_err("refused").to_string().starts_with("option sync: not one of rw, "));
        assert!(!options(&["sync".to_owned()], true).expect("ignored"));
        assert!(options(&["ro".to_owned()], true).is_err(), "never ignored: it would be written to");
    }
}
