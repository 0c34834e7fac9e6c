//! Errands that take longer than a request should: started by one request, polled by others. The list is bounded.

use super::protocol::{JobReply, JobState};
use crate::device::clock::monotonic_now;
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Finished errands remembered.
const REMEMBERED: usize = 32;

/// What an errand does when it is through: a result to show, or the error.
pub(super) type Work = Box<dyn FnOnce() -> Result<Option<serde_json::Value>> + Send>;
/// Bytes that are still to do, asked at each poll.
pub(super) type Remaining = Box<dyn Fn() -> u64 + Send>;

struct Errand {
    reply: JobReply,
    started: Instant,
    remaining: Remaining,
}

#[derive(Default)]
pub(super) struct Errands {
    list: Mutex<VecDeque<Errand>>,
}

impl Errands {
    /// Starts `work` on a thread of its own. `Busy` while one of this kind is under way.
    pub(super) fn start(self: &Arc<Self>, kind: &str, remaining: Remaining, work: Work) -> Result<JobReply> {
        let mut list = self.list.lock();
        if let Some(other) =
            list.iter().find(|other| other.reply.kind == kind && other.reply.state == JobState::Running)
        {
            return Err(Error::Busy(format!("{kind} is under way already, as job {}", other.reply.id)));
        }
        while list.len() >= REMEMBERED {
            list.pop_front();
        }
        let id = list.back().map_or(1, |last| last.reply.id + 1);
        let reply = JobReply {
            id,
            kind: kind.to_owned(),
            state: JobState::Running,
            done_bytes: 0,
            total_bytes: remaining(),
            elapsed_ms: 0,
            error: None,
            result: None,
        };
        let errands = Arc::clone(self);
        std::thread::Builder::new()
            .name(kind.to_owned())
            .spawn(move || errands.finish(id, work()))
            .map_err(|error| Error::io("starting a thread for", kind, error))?;
        list.push_back(Errand { reply: reply.clone(), started: monotonic_now(), remaining });
        Ok(reply)
    }

    fn finish(&self, id: u64, outcome: Result<Option<serde_json::Value>>) {
        let mut list = self.list.lock();
        let Some(errand) = list.iter_mut().find(|errand| errand.reply.id == id) else { return };
        errand.reply.elapsed_ms = elapsed_ms(errand.started);
        match outcome {
            Ok(result) => {
                errand.reply.state = JobState::Done;
                errand.reply.done_bytes = errand.reply.total_bytes;
                errand.reply.result = result;
            }
            Err(error) => {
                tracing::error!("{}: {error}", errand.reply.kind);
                errand.reply.state = JobState::Failed;
                errand.reply.error = Some(error.to_string());
            }
        }
    }

    pub(super) fn poll(&self, id: u64) -> Result<JobReply> {
        let mut list = self.list.lock();
        let errand = list
            .iter_mut()
            .find(|errand| errand.reply.id == id)
            .ok_or_else(|| Error::NotFound(format!("job {id}: there is none with this number")))?;
        if errand.reply.state == JobState::Running {
            errand.reply.elapsed_ms = elapsed_ms(errand.started);
            errand.reply.done_bytes = errand.reply.total_bytes.saturating_sub((errand.remaining)());
        }
        Ok(errand.reply.clone())
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Errands, JobState};
    use crate::error::Error;
    use std::sync::{Arc, mpsc};

    #[test]
    fn an_errand_runs_once_and_is_remembered() {
        let errands = Arc::new(Errands::default());
        let (release, wait) = mpsc::channel::<()>();
        let work = move || {
            wait.recv().ok();
            Err(Error::NoSpace)
        };
        let started = errands.start("settle", Box::new(|| 100), Box::new(work)).expect("started");
        assert_eq!((started.state, started.total_bytes), (JobState::Running, 100));
        assert!(matches!(errands.start("settle", Box::new(|| 0), Box::new(|| Ok(None))), Err(Error::Busy(_))));
        release.send(()).expect("the errand waits");
        let end = loop {
            let reply = errands.poll(started.id).expect("known");
            if reply.state != JobState::Running {
                break reply;
            }
            std::thread::yield_now();
        };
        assert_eq!((end.state, end.error.as_deref()), (JobState::Failed, Some("no space left on any tier")));
        assert!(matches!(errands.poll(99), Err(Error::NotFound(_))));
        for _ in 0..100 {
            let reply = errands.start("quick", Box::new(|| 0), Box::new(|| Ok(None))).expect("started");
            while errands.poll(reply.id).expect("known").state == JobState::Running {
                std::thread::yield_now();
            }
        }
        assert!(errands.list.lock().len() <= super::REMEMBERED);
    }
}
