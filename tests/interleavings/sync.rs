//! What `src/sync.rs` gives the modules under check, here with scheduling points.
//!
//! Each primitive is the real one, behind one of the checker's that is taken first, so that the real one is never contended. Outside of a check the
//! real one is used alone.

use crate::schedule::{Point, at, timer_fires};
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

fn is_checked() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// Here another thread may go on.
pub fn pause() {
    if is_checked() {
        shuttle::thread::yield_now();
    }
}

#[derive(Default)]
pub struct Mutex<T> {
    turn: shuttle::sync::Mutex<()>,
    real: parking_lot::Mutex<T>,
}

pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// Always there, except within [`Condvar::wait`].
    real: Option<parking_lot::MutexGuard<'a, T>>,
    turn: Option<shuttle::sync::MutexGuard<'a, ()>>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex { turn: shuttle::sync::Mutex::new(()), real: parking_lot::Mutex::new(value) }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let turn = is_checked().then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        MutexGuard { mutex: self, real: Some(self.real.lock()), turn }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.real.as_ref().expect("held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.real.as_mut().expect("held")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.real = None;
        at(Point::Nothing, || drop(self.turn.take()));
    }
}

#[derive(Default)]
pub struct Condvar {
    checked: shuttle::sync::Condvar,
    real: parking_lot::Condvar,
}

pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub fn new() -> Condvar {
        Condvar::default()
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        match guard.turn.take() {
            Some(turn) => {
                guard.real = None;
                // Somebody may notify without the lock just before this thread waits.
                guard.turn = Some(self.checked.wait(turn).unwrap_or_else(PoisonError::into_inner));
                guard.real = Some(guard.mutex.real.lock());
            }
            None => self.real.wait(guard.real.as_mut().expect("held")),
        }
    }

    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + timeout)
    }

    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) -> WaitTimeoutResult {
        if guard.turn.is_none() {
            return WaitTimeoutResult(self.real.wait_until(guard.real.as_mut().expect("held"), until).timed_out());
        }
        if !timer_fires() {
            self.wait(guard);
            return WaitTimeoutResult(false);
        }
        guard.real = None;
        at(Point::Nothing, || drop(guard.turn.take()));
        at(Point::Rest, pause);
        guard.turn = Some(guard.mutex.turn.lock().unwrap_or_else(PoisonError::into_inner));
        guard.real = Some(guard.mutex.real.lock());
        WaitTimeoutResult(true)
    }

    pub fn notify_one(&self) {
        if is_checked() {
            self.checked.notify_one();
        }
        self.real.notify_one();
    }

    pub fn notify_all(&self) {
        if is_checked() {
            self.checked.notify_all();
        }
        self.real.notify_all();
    }
}

#[derive(Default)]
pub struct RwLock<T> {
    turn: shuttle::sync::RwLock<()>,
    real: parking_lot::RwLock<T>,
}

pub struct RwLockReadGuard<'a, T> {
    real: Option<parking_lot::RwLockReadGuard<'a, T>>,
    turn: Option<shuttle::sync::RwLockReadGuard<'a, ()>>,
}

pub struct RwLockWriteGuard<'a, T> {
    real: Option<parking_lot::RwLockWriteGuard<'a, T>>,
    turn: Option<shuttle::sync::RwLockWriteGuard<'a, ()>>,
}

impl<T> RwLock<T> {
    pub fn new(value: T) -> RwLock<T> {
        RwLock { turn: shuttle::sync::RwLock::new(()), real: parking_lot::RwLock::new(value) }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let turn = is_checked().then(|| self.turn.read().unwrap_or_else(PoisonError::into_inner));
        RwLockReadGuard { real: Some(self.real.read()), turn }
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let turn = is_checked().then(|| self.turn.write().unwrap_or_else(PoisonError::into_inner));
        RwLockWriteGuard { real: Some(self.real.write()), turn }
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.real.as_ref().expect("held")
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.real = None;
        at(Point::Nothing, || drop(self.turn.take()));
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.real.as_ref().expect("held")
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.real.as_mut().expect("held")
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.real = None;
        at(Point::Nothing, || drop(self.turn.take()));
    }
}

pub mod atomic {
    pub use std::sync::atomic::Ordering;

    /// Relaxed operations are no scheduling points: with them are only counted what nobody decides by.
    fn pause_before(ordering: Ordering) {
        if ordering != Ordering::Relaxed {
            super::pause();
        }
    }

    #[derive(Debug, Default)]
    pub struct AtomicBool(std::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub fn new(value: bool) -> AtomicBool {
            AtomicBool(value.into())
        }

        pub fn load(&self, ordering: Ordering) -> bool {
            pause_before(ordering);
            self.0.load(ordering)
        }

        pub fn store(&self, value: bool, ordering: Ordering) {
            pause_before(ordering);
            self.0.store(value, ordering);
        }
    }

    #[derive(Debug, Default)]
    pub struct AtomicU64(std::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> AtomicU64 {
            AtomicU64(value.into())
        }

        pub fn load(&self, ordering: Ordering) -> u64 {
            pause_before(ordering);
            self.0.load(ordering)
        }

        pub fn store(&self, value: u64, ordering: Ordering) {
            pause_before(ordering);
            self.0.store(value, ordering);
        }

        pub fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
            pause_before(ordering);
            self.0.fetch_add(value, ordering)
        }

        pub fn fetch_sub(&self, value: u64, ordering: Ordering) -> u64 {
            pause_before(ordering);
            self.0.fetch_sub(value, ordering)
        }
    }
}

pub mod thread {
    use super::is_checked;
    use std::io;

    pub enum JoinHandle<T> {
        Checked(shuttle::thread::JoinHandle<T>),
        Real(std::thread::JoinHandle<T>),
    }

    impl<T> JoinHandle<T> {
        pub fn join(self) -> std::thread::Result<T> {
            match self {
                JoinHandle::Checked(handle) => handle.join(),
                JoinHandle::Real(handle) => handle.join(),
            }
        }
    }

    #[derive(Default)]
    pub struct Builder {
        name: String,
    }

    impl Builder {
        pub fn new() -> Builder {
            Builder::default()
        }

        pub fn name(self, name: String) -> Builder {
            Builder { name }
        }

        pub fn spawn<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
            if is_checked() {
                shuttle::thread::Builder::new().name(self.name).spawn(body).map(JoinHandle::Checked)
            } else {
                std::thread::Builder::new().name(self.name).spawn(body).map(JoinHandle::Real)
            }
        }
    }

    pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        Builder::new().spawn(body).expect("a thread")
    }
}
