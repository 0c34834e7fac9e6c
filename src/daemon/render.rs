//! The settings file of a new volume: what was decided at adoption, in full; everything else keeps its default.

use super::quantity::exact_bytes;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What a settings file must say about a volume.
#[derive(Clone, Debug)]
pub struct Essentials {
    pub name: String,
    pub mount: PathBuf,
    pub block_bytes: u64,
    pub log_bytes: u64,
    pub segment_bytes: u64,
    /// Name, path and budget, fastest first.
    pub tiers: Vec<(String, PathBuf, Option<u64>)>,
    /// The repository for its snapshots, and the file with its key.
    pub repository: Option<(PathBuf, Option<PathBuf>)>,
}

impl Essentials {
    /// As TOML that [`super::settings::Settings::parse`] reads.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# A heatfs volume. All keys with their defaults: /etc/heatfs/example.toml.\n\
             name = {}\nmount = {}\n# Fixed at adoption, like the sizes of the log.\nblock_size = \"{}\"\n\n\
             [log]\nsize = \"{}\"\nsegment_size = \"{}\"\n",
            quoted(&self.name),
            quoted_path(&self.mount),
            exact_bytes(self.block_bytes),
            exact_bytes(self.log_bytes),
            exact_bytes(self.segment_bytes),
        );
        for (name, path, budget_bytes) in &self.tiers {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[[tier]]\nname = {}\npath = {}\n", quoted(name), quoted_path(path));
            if let Some(bytes) = budget_bytes {
                let _ = writeln!(text, "budget = \"{}\"", exact_bytes(*bytes));
            }
        }
        if let Some((repository, key_file)) = &self.repository {
            let _ = write!(text, "\n[snapshot]\nrepository = {}\n", quoted_path(repository));
            if let Some(key_file) = key_file {
                let _ = writeln!(text, "key_file = {}", quoted_path(key_file));
            }
        }
        text
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::Essentials;
    use crate::daemon::settings::Settings;

    #[test]
    fn what_is_written_is_read() {
        let essentials = Essentials {
            name: "pg-15".into(),
            mount: "/nowhere/my \"data\"\\x".into(),
            block_bytes: 32768,
            log_bytes: 2 << 30,
            segment_bytes: 32 << 20,
            tiers: vec![
                ("nvme".into(), "/nowhere/n".into(), Some(100 << 30)),
                ("hdd".into(), "/nowhere/h".into(), None),
            ],
            repository: Some(("/nowhere/r".into(), Some("/nowhere/key".into()))),
        };
        let settings = Settings::parse(&essentials.to_toml(), &[]).expect("accepted");
        assert_eq!((settings.name, settings.mount), (essentials.name, essentials.mount));
        assert_eq!(
            (settings.block_bytes, settings.log.size_bytes, settings.log.segment_bytes),
            (32768, 2 << 30, 32 << 20)
        );
        let tiers: Vec<_> = settings.tiers.into_iter().map(|tier| (tier.name, tier.path, tier.budget_bytes)).collect();
        assert_eq!(tiers, essentials.tiers);
        assert_eq!(
            Some((settings.snapshot.repository.expect("set"), settings.snapshot.key_file)),
            essentials.repository
        );
    }
}
