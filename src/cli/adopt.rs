//! `adopt`: from a command line to a plan and a settings file, and from a report to what the operator does next.

use super::args::Adopt;
use super::new_volume::{self, LogSizes, Prospect, drop_in};
use super::progress::Follower;
use super::{out, volume};
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::settings::Settings;
use crate::daemon::{engine_options, tier_plans};
use crate::jobs::adopt::{AdoptPlan, AdoptReport, adopt};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

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
    let log = LogSizes { log_bytes: request.log_size, segment_bytes: request.segment_size };
    let essentials = new_volume::essentials(&request.volume, &log, &request.dir, None)?;
    let prospect = Prospect::new(&essentials, request.volume.config_out.as_deref())?;
    let settings = &prospect.settings;
    let unit = guess_unit(&settings.mount);
    let plan = AdoptPlan {
        directory: settings.mount.clone(),
        tiers: tier_plans(settings)?,
        home: request.home.clone(),
        origin: request.origin.clone(),
        options: engine_options(settings),
    };
    let mut follower = Follower::new("adopting");
    let report = prospect.make(|| adopt(&plan, &mut follower))?;
    follower.finish();
    let (file, drop_in) = (&prospect.file, drop_in(&settings.name, &report.directory));
    match as_json {
        true => out::json(&Adopted { name: &settings.name, settings_file: file, drop_in: &drop_in, report: &report }),
        false => out::text(&advice(settings, file, &report, &drop_in, &unit)),
    }
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
    use super::guess_unit;
    use std::path::Path;

    #[test]
    fn an_unknown_server_is_left_to_the_reader() {
        assert_eq!(guess_unit(Path::new("/nowhere")), "SERVER");
    }
}
