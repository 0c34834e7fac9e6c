//! The check of a running volume: the engine's structures against each other, and names against the engine.

use super::protocol::{CheckFinding, CheckReply};
use crate::daemon::Served;
use crate::error::Result;
use crate::units::FileId;
use crate::volume::{Finding, Severity};
use std::collections::HashMap;

/// Changes nothing. What is written meanwhile may be checked as it was or as it is.
pub(super) fn run(served: &Served, deep: bool) -> Result<CheckReply> {
    let mut paths: HashMap<FileId, (u64, String)> = HashMap::new();
    let mut findings = Vec::new();
    served.namespace.walk(&mut |visit| {
        match &visit.file {
            None => {}
            Some(Err(why)) => findings.push(damage(visit.path, why.clone())),
            Some(Ok(id)) => {
                let inode = visit.stat.st_ino;
                let first = paths.entry(*id).or_insert_with(|| (inode, visit.path.to_owned()));
                if first.0 != inode {
                    findings.push(damage(visit.path, format!("it has the same id as {}", first.1)));
                }
                if let Err(error) = served.volume.file(*id) {
                    findings.push(damage(visit.path, error.to_string()));
                }
            }
        }
        Ok(())
    })?;
    let name = |finding: Finding| {
        let path = finding.file.and_then(|id| paths.get(&id)).map(|(_, path)| path.clone());
        CheckFinding { severity: finding.severity, path, what: finding.what }
    };
    findings.extend(served.volume.check(deep)?.into_iter().map(name));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(CheckReply { files: u64::try_from(paths.len()).unwrap_or(u64::MAX), findings })
}

fn damage(path: &str, what: String) -> CheckFinding {
    CheckFinding { severity: Severity::Damage, path: Some(path.to_owned()), what }
}
