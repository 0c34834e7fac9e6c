//! Something in a repository that may come and go with its disk: opened when it is first needed, and anew after it failed, once a second at most.

use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries to open what could not be opened: whoever asks meanwhile hears what the last one said.
const RETRY: Duration = Duration::from_secs(1);

struct Now<K, T> {
    /// Which, and when it was last asked for.
    opened: Option<(K, Arc<T>, Instant)>,
    /// When opening failed last, of which, and why.
    failed: Option<(K, Instant, String)>,
}

/// One thing at a time, known by a key.
pub(in crate::jobs) struct Reopening<K, T> {
    now: Mutex<Now<K, T>>,
}

impl<K, T> Default for Reopening<K, T> {
    fn default() -> Self {
        Reopening { now: Mutex::new(Now { opened: None, failed: None }) }
    }
}

impl<K: Copy + PartialEq, T> Reopening<K, T> {
    /// What is open, or what `open` gives. The lock is held while it opens: whoever comes meanwhile would only do the same. Errors: those of `open`; as
    /// `NotFound` while it is not tried again.
    pub fn get(&self, key: K, open: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut now = self.now.lock();
        if let Some((_, opened, asked)) = now.opened.as_mut().filter(|(known, ..)| *known == key) {
            *asked = monotonic_now();
            return Ok(Arc::clone(opened));
        }
        if let Some((_, at, why)) = now.failed.as_ref().filter(|(known, ..)| *known == key)
            && at.elapsed() < RETRY
        {
            return Err(Error::NotFound(why.clone()));
        }
        match open() {
            Ok(opened) => {
                let opened = Arc::new(opened);
                *now = Now { opened: Some((key, Arc::clone(&opened), monotonic_now())), failed: None };
                Ok(opened)
            }
            Err(error) => {
                *now = Now { opened: None, failed: Some((key, monotonic_now(), error.to_string())) };
                Err(error)
            }
        }
    }

    /// It failed: the next one opens it anew, if nobody has yet.
    pub fn forget(&self, failed: &Arc<T>) {
        let mut now = self.now.lock();
        if now.opened.as_ref().is_some_and(|(_, current, _)| Arc::ptr_eq(current, failed)) {
            now.opened = None;
        }
    }

    /// Lets go of what nobody has asked for in so long: its disk may be one that is taken away.
    pub fn close_idle(&self, after: Duration) {
        let mut now = self.now.lock();
        if now.opened.as_ref().is_some_and(|(.., asked)| asked.elapsed() >= after) {
            now.opened = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_opened_anew_but_not_at_once() {
        let reopening: Reopening<u8, u32> = Reopening::default();
        let first = reopening.get(1, || Ok(10)).unwrap();
        assert!(Arc::ptr_eq(&first, &reopening.get(1, || panic!("it is open")).unwrap()));
        assert_eq!(*reopening.get(2, || Ok(20)).unwrap(), 20, "another one takes its place");
        let again = reopening.get(1, || Ok(11)).unwrap();
        reopening.forget(&first);
        assert!(Arc::ptr_eq(&again, &reopening.get(1, || panic!("it is open")).unwrap()), "another one was forgotten");
        reopening.forget(&again);
        let gone = || Err(Error::Invalid("the disk is gone".to_owned()));
        assert!(matches!(reopening.get(1, gone), Err(Error::Invalid(_))));
        let told = reopening.get(1, || panic!("it is too early")).unwrap_err();
        assert!(matches!(&told, Error::NotFound(why) if why == "the disk is gone"), "{told}");
        assert_eq!(*reopening.get(3, || Ok(30)).unwrap(), 30, "that says nothing of others");
        reopening.close_idle(Duration::from_secs(3600));
        reopening.get(3, || panic!("it is open")).unwrap();
        reopening.close_idle(Duration::ZERO);
        assert_eq!(*reopening.get(3, || Ok(31)).unwrap(), 31);
    }
}
