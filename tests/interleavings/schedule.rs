//! Every interleaving with a bounded number of preemptions, depth first.
//!
//! Most mistakes between threads need few preemptions, while the number of interleavings grows with every one allowed: a small bound, searched
//! completely, shows more than the same time spent on random ones.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner};
use std::cell::Cell;

/// A check that takes more is too large for a test run, and one that stopped here would not be complete.
const INTERLEAVINGS_MAX: usize = 300_000;

/// How far a check goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How often a thread that could go on is interrupted.
    pub preemptions: usize,
    /// How often a wait with a time limit ends by its limit; at any moment.
    pub timers: usize,
}

/// What the next scheduling point is.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Point {
    /// Another thread may go on, at the price of a preemption.
    #[default]
    Preemption,
    /// No other thread can tell this point from the next.
    Nothing,
    /// The thread waits here, for as long as it likes.
    Rest,
}

thread_local! {
    // An execution and its scheduler share one thread of the system.
    static POINT: Cell<Point> = const { Cell::new(Point::Preemption) };
    static TIMERS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `step`, whose first scheduling point is of this kind.
pub fn at<T>(point: Point, step: impl FnOnce() -> T) -> T {
    POINT.set(point);
    let result = step();
    POINT.set(Point::Preemption);
    result
}

/// Does the time limit of a wait end it now?
pub fn timer_fires() -> bool {
    let left = TIMERS.get();
    let fires = left > 0 && shuttle::rand::RngCore::next_u64(&mut shuttle::rand::thread_rng()) == 1;
    TIMERS.set(left - usize::from(fires));
    fires
}

/// Waits that may still end by their time limit.
pub fn timers_left() -> usize {
    TIMERS.get()
}

/// Runs `body` in every interleaving within the bounds. Its threads are made with [`crate::sync::thread`], and joined by it.
pub fn check(bounds: Bounds, body: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    let search = Search { bounds, trail: Vec::new(), depth: 0, preemptions: 0, interleavings: 0 };
    let interleavings = Runner::new(search, config).run(move || {
        TIMERS.set(bounds.timers);
        body();
    });
    println!("{interleavings} interleavings with at most {} preemptions", bounds.preemptions);
    assert!(interleavings > 1, "nothing was interleaved");
}

struct Search {
    bounds: Bounds,
    /// The choices that lead to the interleaving being run.
    trail: Vec<Choice>,
    depth: usize,
    preemptions: usize,
    interleavings: usize,
}

struct Choice {
    options: Vec<usize>,
    taken: usize,
}

impl Search {
    fn choose(&mut self, options: Vec<usize>) -> usize {
        match self.trail.get(self.depth) {
            Some(choice) => {
                assert_eq!(choice.options, options, "the body does the same whenever it is scheduled the same")
            }
            None => self.trail.push(Choice { options, taken: 0 }),
        }
        let Choice { options, taken } = &self.trail[self.depth];
        self.depth += 1;
        options[*taken]
    }
}

impl Scheduler for Search {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.interleavings > 0 {
            // To the deepest choice that has an option left.
            while self.trail.last().is_some_and(|choice| choice.taken + 1 == choice.options.len()) {
                self.trail.pop();
            }
            self.trail.last_mut()?.taken += 1;
        }
        self.interleavings += 1;
        assert!(
            self.interleavings <= INTERLEAVINGS_MAX,
            "more than {INTERLEAVINGS_MAX} interleavings: lower the bounds"
        );
        (self.depth, self.preemptions) = (0, 0);
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let mut options: Vec<usize> = runnable.iter().map(|task| task.id().into()).collect();
        let point = POINT.take();
        let current = current.map(usize::from).filter(|current| options.contains(current));
        if let (Some(current), Point::Preemption | Point::Nothing) = (current, point) {
            let may_switch = point == Point::Preemption && self.preemptions < self.bounds.preemptions;
            options.retain(|&task| task != current && may_switch);
            options.insert(0, current);
            let next = self.choose(options);
            self.preemptions += usize::from(next != current);
            return Some(next.into());
        }
        Some(self.choose(options).into())
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.choose(vec![0, 1]) == 1)
    }
}
