//! Standard output that may be closed early (`heatfs dump ... | head`): that is no error.

use anyhow::Result;
use serde::Serialize;
use std::io::{self, Write};

/// Prints a text as it is.
pub(super) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Nobody reads on: like any filter, end without a word.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => Ok(done?),
    }
}

/// Prints a value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
