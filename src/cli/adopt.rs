//! `adopt`: from a command line to a plan and a settings file, and from a report to what the operator does next.

use super::args::Adopt;
use super::progress::Follower;
use super::{out, volume};
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::render::Essentials;
use crate::daemon::settings::Settings;
use crate::daemon::{engine_options, tier_plans};
use crate::error::Error;
use crate::jobs::adopt::{AdoptPlan, AdoptReport, adopt};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What `--json` prints.
#[derive(Serialize)]
struct Adopted<'a> {
    name: &'a str,
    settings_file: &'a Path,
    /// For the unit of the server that uses the directory.
    drop_in: &'a str,
    #[serde(flatten)]
    report: &'a AdoptReport,
}

pub(super) fn run(request: &Adopt, as_json: bool) -> Result<()> {
    let essentials = essentials(request)?;
    let text = essentials.to_toml();
    let settings = Settings::parse(&text, &[])?;
    let file = request.config_out.clone().unwrap_or_else(|| volume::default_settings_file(&settings.name));
    let file = std::path::absolute(&file).with_context(|| format!("settings file {}", file.display()))?;
    refuse_other_settings(&file, &settings)?;
    let unit = guess_unit(&settings.mount);
    let plan = AdoptPlan {
        directory: settings.mount.clone(),
        tiers: tier_plans(&settings)?,
        home: request.home.clone(),
        origin: request.origin.clone(),
        options: engine_options(&settings),
    };
    // Written before anything is moved: a settings file that cannot be written must not be found out about afterwards.
    let waiting = file.with_extension("toml.new");
    write_settings(&waiting, &text)?;
    let mut follower = Follower::new("adopting");
    let report = adopt(&plan, &mut follower).inspect_err(|_| {
        // Nothing was adopted, so there is nothing to describe.
        let _ = std::fs::remove_file(&waiting);
    })?;
    follower.finish();
    std::fs::rename(&waiting, &file)
        .with_context(|| format!("renaming {} to {}", waiting.display(), file.display()))?;
    let drop_in = drop_in(&settings.name, &report.directory);
    match as_json {
        true => out::json(&Adopted { name: &settings.name, settings_file: &file, drop_in: &drop_in, report: &report }),
        false => out::text(&advice(&settings, &file, &report, &drop_in, &unit)),
    }
}

/// As the settings name it: without symbolic links if it is there.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().or_else(|_| std::path::absolute(path));
    real.with_context(|| format!("path {}", path.display()))
}

fn essentials(request: &Adopt) -> Result<Essentials> {
    let mount = absolute(&request.dir)?;
    for (name, _) in &request.budgets {
        if !request.tiers.iter().any(|(tier, _)| tier == name) {
            return Err(Error::Invalid(format!("--budget {name}: there is no tier of this name")).into());
        }
    }
    let budget = |name: &str| request.budgets.iter().find(|(tier, _)| tier == name).map(|(_, bytes)| *bytes);
    let tiers = request.tiers.iter().map(|(name, path)| Ok((name.clone(), absolute(path)?, budget(name))));
    Ok(Essentials {
        name: request.name.clone().unwrap_or_else(|| name_of(&mount)),
        tiers: tiers.collect::<Result<_>>()?,
        mount,
        block_bytes: request.block_size,
        log_bytes: request.log_size,
        segment_bytes: request.segment_size,
        repository: None,
    })
}

/// The directory's own name, as far as a volume may be called so.
pub(super) fn name_of(mount: &Path) -> String {
    let last = mount.file_name().unwrap_or_default().to_string_lossy();
    let name: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    match name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        true => name,
        false => format!("volume{name}"),
    }
}

/// Settings of another volume are not overwritten; those of this one stand there after an interruption.
pub(super) fn refuse_other_settings(file: &Path, settings: &Settings) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    match Settings::load(file) {
        Ok(there) if there.mount == settings.mount && there.name == settings.name => Ok(()),
        _ => {
            Err(Error::Invalid(format!("--config-out {}: the file exists and is of another volume", file.display()))
                .into())
        }
    }
}

pub(super) fn write_settings(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// What the server's own unit must be told: never to start beside an unmounted volume.
pub(super) fn drop_in(name: &str, mount: &Path) -> String {
    format!(
        "[Unit]\nBindsTo=heatfs@{name}.service\nAfter=heatfs@{name}.service\nAssertPathIsMountPoint={}\n",
        mount.display()
    )
}

/// The unit that serves a directory, as distributions name it.
fn guess_unit(dir: &Path) -> String {
    let part = |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    if dir.join("PG_VERSION").exists() {
        let (cluster, version) = (part(Some(dir)), part(dir.parent()));
        return match dir.starts_with("/var/lib/postgresql") {
            true => format!("postgresql@{version}-{cluster}"),
            false => "postgresql".to_owned(),
        };
    }
    match dir.join("ibdata1").exists() {
        true => "mysql".to_owned(),
        false => "SERVER".to_owned(),
    }
}

fn advice(settings: &Settings, file: &Path, report: &AdoptReport, drop_in: &str, unit: &str) -> String {
    let name = &settings.name;
    let mut text = format!(
        "{} {}: {} files, {}, on tier {}\nsettings   {}\n",
        if report.resumed { "finished the interrupted adoption of" } else { "adopted" },
        report.directory.display(),
        report.files,
        rounded_bytes(report.bytes),
        report.origin,
        file.display()
    );
    // Writing to a String cannot fail.
    for warning in &report.warnings {
        let _ = writeln!(text, "warning    {warning}");
    }
    for link in &report.not_covered {
        let _ = writeln!(text, "not covered {link}");
    }
    let expected = volume::default_settings_file(name);
    if file != expected || !nix::unistd::geteuid().is_root() {
        let _ = writeln!(text, "\nServe it:   heatfs daemon --config {}", file.display());
    }
    if nix::unistd::geteuid().is_root() {
        let serve = match file == expected {
            true => "Serve it:  ".to_owned(),
            false => format!("As a service, once these settings are at {}:", expected.display()),
        };
        let _ = write!(
            text,
            "\n{serve} systemctl enable --now heatfs@{name}\n\n\
             Before the server starts again, let it depend on the volume (`systemctl edit {unit}`):\n\n{drop_in}\n\
             and let the volume bring it back after a failure (`systemctl edit heatfs@{name}`):\n\n[Unit]\nUpholds={unit}.service\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{drop_in, guess_unit, name_of};
    use std::path::Path;

    #[test]
    fn names_and_units() {
        assert_eq!(name_of(Path::new("/var/lib/postgresql/15/main")), "main");
        assert_eq!(name_of(Path::new("/srv/my data")), "my-data");
        assert_eq!(name_of(Path::new("/srv/.hidden")), "volume.hidden");
        assert_eq!(guess_unit(Path::new("/nowhere")), "SERVER");
        let text = drop_in("main", Path::new("/srv/data"));
        assert!(text.contains("BindsTo=heatfs@main.service") && text.contains("AssertPathIsMountPoint=/srv/data"));
    }
}
