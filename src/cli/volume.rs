//! Finding the volume that a command is about.

use super::args::Choice;
use crate::control::client::Client;
use crate::daemon::settings::Settings;
use crate::error::Error;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const SYSTEM_DIR: &str = "/etc/heatfs";
/// Documents the keys; it is no volume.
const EXAMPLE: &str = "example.toml";

impl Choice {
    /// The settings file that was named, or the only one there is.
    pub(super) fn settings_file(&self) -> Result<PathBuf> {
        if let Some(file) = &self.config {
            return Ok(file.clone());
        }
        let mut found = settings_in(Path::new(SYSTEM_DIR));
        if let Some(dir) = user_dir() {
            found.extend(settings_in(&dir));
        }
        match found.as_slice() {
            [only] => Ok(only.clone()),
            [] => {
                Err(Error::Invalid(format!("no settings in {SYSTEM_DIR}: name the volume with --config FILE")).into())
            }
            several => {
                let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
                Err(Error::Invalid(format!("several volumes ({}): choose one with --config FILE", names.join(", ")))
                    .into())
            }
        }
    }

    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(Settings::load(&self.settings_file()?)?)
    }

    pub(super) fn socket_path(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(self.settings()?.socket_path()?),
        }
    }

    /// A client of the volume's daemon; whether one is there shows with the first request.
    pub(super) fn client(&self) -> Result<Client> {
        Client::new(&self.socket_path()?).context("starting the client")
    }
}

/// Where an ordinary user keeps settings; None for root.
pub(super) fn user_dir() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(base.join("heatfs"))
}

/// Where `adopt` writes the settings of a new volume.
pub(super) fn default_settings_file(name: &str) -> PathBuf {
    user_dir().unwrap_or_else(|| PathBuf::from(SYSTEM_DIR)).join(format!("{name}.toml"))
}

fn settings_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|end| end == "toml") && path.file_name().is_some_and(|name| name != EXAMPLE)
        })
        .collect();
    files.sort();
    files
}
