//! `mount`: a snapshot to look at.

use super::args::{Choice, Mount};
use super::snapshot::{find, open};
use crate::daemon::View;
use anyhow::Result;
use std::io::Write;

pub(super) fn run(volume: &Choice, request: &Mount, as_json: bool) -> Result<()> {
    super::start_logging();
    let repository = open(volume, &request.storage)?;
    let id = find(&repository, &request.id)?;
    let view = View::open(repository, id, &request.dir)?;
    let point = view.mountpoint().display();
    let line = match as_json {
        true => serde_json::json!({ "snapshot": id.to_string(), "mountpoint": point.to_string() }).to_string(),
        false => format!("snapshot {id} is at {point}, to be read; Ctrl-C or `umount` ends it"),
    };
    // Whether or not anybody listens, it is mounted and served.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(view.serve()?)
}
