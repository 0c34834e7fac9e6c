//! Progress of long work: a bar with rate and time left on a terminal, nothing elsewhere.

use crate::control::client::Client;
use crate::control::protocol::{self, JobReply, JobState};
use crate::jobs::{Progress, Watch};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// Time between two questions how far an errand is: at first, since many are over at once, and at most.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(200);

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

/// Has a bar follow what is told of bytes done and bytes to do.
pub(super) fn drawn_on(bar: &ProgressBar) -> impl FnMut(u64, u64) {
    |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// Waits for an errand of the daemon, showing how far it is.
pub(super) fn follow(client: &Client, mut job: JobReply) -> Result<JobReply> {
    let bar = bytes_bar(&job.kind);
    let mut poll = POLL_FIRST;
    while job.state == JobState::Running {
        bar.set_length(job.total_bytes);
        bar.set_position(job.done_bytes);
        std::thread::sleep(poll);
        // A quarter more each time: nobody waits much longer than the errand takes.
        poll = (poll + poll / 4).min(POLL_MAX);
        job = client.get(&format!("{}/{}", protocol::JOBS, job.id))?;
    }
    bar.finish_and_clear();
    match &job.error {
        Some(error) => bail!("{}: {error}", job.kind),
        None => Ok(job),
    }
}

/// Shows an offline job: a line for each part, a bar where there is something to count.
pub(super) struct Follower {
    bar: ProgressBar,
}

impl Follower {
    pub(super) fn new(what: &str) -> Follower {
        Follower { bar: bytes_bar(what) }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Follower {
    fn begin(&mut self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.reset();
    }

    fn progress(&mut self, progress: Progress) {
        // Jobs that copy nothing count files.
        let (done, total) = match progress.bytes {
            0 => (progress.files_done, progress.files),
            bytes => (progress.bytes_done, bytes),
        };
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
