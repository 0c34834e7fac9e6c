//! Progress of long work: a bar with rate and time left on a terminal, nothing elsewhere.

use crate::control::client::Client;
use crate::control::protocol::{self, JobReply, JobState};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(200);

/// A bar of bytes; indicatif draws it only on a terminal.
pub(super) fn bytes_bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{msg:<10} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// Waits for an errand of the daemon, showing how far it is.
pub(super) fn follow(client: &Client, mut job: JobReply) -> Result<JobReply> {
    let bar = bytes_bar(&job.kind);
    while job.state == JobState::Running {
        bar.set_length(job.total_bytes);
        bar.set_position(job.done_bytes);
        std::thread::sleep(POLL);
        job = client.get(&format!("{}/{}", protocol::JOBS, job.id))?;
    }
    bar.finish_and_clear();
    match &job.error {
        Some(error) => bail!("{}: {error}", job.kind),
        None => Ok(job),
    }
}
