//! Making a volume, by whatever command: from its options to settings, which are a file once the volume is there.

use super::args::NewVolume;
use super::volume::default_settings_file;
use crate::daemon::render::Essentials;
use crate::daemon::settings::Settings;
use crate::error::Error;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Sizes of the log, which commands have defaults of their own for.
pub(super) struct LogSizes {
    pub(super) log_bytes: u64,
    pub(super) segment_bytes: u64,
}

pub(super) fn essentials(
    request: &NewVolume,
    log: &LogSizes,
    directory: &Path,
    repository: Option<(PathBuf, Option<PathBuf>)>,
) -> Result<Essentials> {
    let mount = absolute(directory)?;
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
        log_bytes: log.log_bytes,
        segment_bytes: log.segment_bytes,
        repository,
    })
}

/// As the settings name it: without symbolic links if it is there.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().or_else(|_| std::path::absolute(path));
    real.with_context(|| format!("path {}", path.display()))
}

/// Settings of a volume that does not exist yet.
pub(super) struct Prospect {
    pub(super) settings: Settings,
    /// Where they will be.
    pub(super) file: PathBuf,
    text: String,
}

impl Prospect {
    /// Errors: settings that are not allowed, or a file that describes another volume.
    pub(super) fn new(essentials: &Essentials, config_out: Option<&Path>) -> Result<Prospect> {
        let text = essentials.to_toml();
        let settings = Settings::parse(&text, &[])?;
        let file = config_out.map_or_else(|| default_settings_file(&settings.name), Path::to_owned);
        let file = std::path::absolute(&file).with_context(|| format!("settings file {}", file.display()))?;
        refuse_other_settings(&file, &settings)?;
        Ok(Prospect { settings, file, text })
    }

    /// Makes the volume. The settings are written before, beside their place, since a file that cannot be written must not be found out about afterwards;
    /// where nothing is made they go again, since there is nothing to describe.
    pub(super) fn make<Report>(&self, make: impl FnOnce() -> crate::error::Result<Report>) -> Result<Report> {
        let waiting = self.file.with_extension("toml.new");
        if let Some(directory) = waiting.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        std::fs::write(&waiting, &self.text).with_context(|| format!("writing {}", waiting.display()))?;
        let report = make().inspect_err(|_| {
            let _ = std::fs::remove_file(&waiting);
        })?;
        std::fs::rename(&waiting, &self.file)
            .with_context(|| format!("renaming {} to {}", waiting.display(), self.file.display()))?;
        Ok(report)
    }
}

/// Settings of another volume are not overwritten; those of this one stand there after an interruption.
fn refuse_other_settings(file: &Path, settings: &Settings) -> Result<()> {
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

/// The directory's own name, as far as a volume may be called so.
fn name_of(mount: &Path) -> String {
    let last = mount.file_name().unwrap_or_default().to_string_lossy();
    let name: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    match name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        true => name,
        false => format!("volume{name}"),
    }
}

/// What the server's own unit must be told: never to start beside an unmounted volume.
pub(super) fn drop_in(name: &str, mount: &Path) -> String {
    format!(
        "[Unit]\nBindsTo=heatfs@{name}.service\nAfter=heatfs@{name}.service\nAssertPathIsMountPoint={}\n",
        mount.display()
    )
}

#[cfg(test)]
mod tests {
    use super::{drop_in, name_of};
    use std::path::Path;

    #[test]
    fn names_and_units() {
        assert_eq!(name_of(Path::new("/var/lib/postgresql/15/main")), "main");
        assert_eq!(name_of(Path::new("/srv/my data")), "my-data");
        assert_eq!(name_of(Path::new("/srv/.hidden")), "volume.hidden");
        let text = drop_in("main", Path::new("/srv/data"));
        assert!(text.contains("BindsTo=heatfs@main.service") && text.contains("AssertPathIsMountPoint=/srv/data"));
    }
}
