//! What would hurt later, found before: of the host, and of the directories that are or are to become tiers.
//!
//! Measuring and judging are apart: [`tiers::measure`] tries each directory with a temporary file of its own, [`tiers::judge`] is pure.

mod host;
mod tiers;

use crate::error::Result;
use serde::Serialize;
use std::path::PathBuf;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It works, but less well or less safely than it could.
    Warn,
    /// It does not work, or not safely.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    pub level: Level,
    /// What was looked at: `fuse`, `tier nvme`.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when it is well.
    pub advice: String,
}

impl Verdict {
    fn ok(subject: &str, found: impl Into<String>) -> Verdict {
        Verdict { level: Level::Ok, subject: subject.to_owned(), found: found.into(), advice: String::new() }
    }

    fn warn(subject: &str, found: impl Into<String>, advice: &str) -> Verdict {
        Verdict { level: Level::Warn, advice: advice.to_owned(), ..Verdict::ok(subject, found) }
    }

    fn fail(subject: &str, found: impl Into<String>, advice: &str) -> Verdict {
        Verdict { level: Level::Fail, ..Verdict::warn(subject, found, advice) }
    }
}

/// Looks at the host, then at the tiers, fastest first. Each tier is written to for a second or so: 64 MiB, removed again.
pub fn examine(named: &[(String, PathBuf)]) -> Result<Vec<Verdict>> {
    let mut verdicts = host::examine();
    let mut measured = Vec::new();
    for (name, path) in named {
        match tiers::measure(name, path) {
            Ok(tier) => measured.push(tier),
            Err(error) => verdicts.push(Verdict::fail(
                &format!("tier {name}"),
                format!("{}: {error}", path.display()),
                "is its disk mounted? The directory must exist and be writable",
            )),
        }
    }
    verdicts.extend(tiers::judge(&measured));
    Ok(verdicts)
}
