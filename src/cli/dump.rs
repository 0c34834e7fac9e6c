//! `dump`: one on-disk object as JSON, which is the most readable form that loses nothing.

use super::args::Choice;
use super::out;
use crate::daemon::tier_plans;
use crate::jobs::dump::dump;
use anyhow::Result;

pub(super) fn run(volume: &Choice, what: &str) -> Result<()> {
    out::json(&dump(&tier_plans(&volume.settings()?)?, what)?)
}
