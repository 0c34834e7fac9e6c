//! Accesses that are no heat whatever they touch: of backups, of vacuum, of whoever reads everything once.
//!
//! The front knows who asks, the recorder what is asked, and the engine between them need know neither: the answer is carried along by the thread, since
//! the recorder is told of an access by the very thread that makes it.

use std::cell::Cell;

thread_local! {
    static MAINTAINS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; if `maintains`, nothing that it reads or writes on this thread counts as heat.
pub fn maintaining<R>(maintains: bool, work: impl FnOnce() -> R) -> R {
    let before = MAINTAINS.replace(maintains);
    // Also when `work` panics: the thread may serve others after that.
    let _after = Restore(before);
    work()
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        MAINTAINS.set(self.0);
    }
}

pub(super) fn is_maintaining() -> bool {
    MAINTAINS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_work_and_is_the_threads_own() {
        maintaining(true, || {
            assert!(is_maintaining());
            maintaining(false, || assert!(!is_maintaining()));
            assert!(is_maintaining());
            assert!(!std::thread::spawn(is_maintaining).join().unwrap());
        });
        assert!(!is_maintaining());
        assert!(std::panic::catch_unwind(|| maintaining(true, || panic!("in the work"))).is_err());
        assert!(!is_maintaining());
    }
}
