use super::*;
use crate::units::FileId;

/// Blocks by rank, with seeded dice.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn trace(block_at: impl Fn(u64, &mut Dice) -> u64) -> Trace {
    let mut dice = Dice(88_172_645_463_325_252);
    let read = |at: u64| Record {
        ts_ms: at,
        operation: Operation::Read,
        file: FileId(1),
        // Two pages of each block are read, so that neighbours are no stream.
        offset: block_at(at, &mut dice) * 65_536 + 8192,
        len: 8192,
    };
    Trace { records: (0..20_000).map(read).collect(), has_classes: true, ..Trace::default() }
}

fn run(trace: &Trace) -> Vec<Outcome> {
    replay(trace, &Conditions { fast_percent: vec![10.0], policies: Policy::ALL.to_vec(), seed: 1 })
}

fn hits(outcomes: &[Outcome], policy: Policy) -> f64 {
    outcomes.iter().find(|outcome| outcome.policy == policy.name()).map_or(0.0, |outcome| outcome.hits)
}

/// Squared dice: low numbers are hot.
fn skewed(dice: &mut Dice) -> u64 {
    let (a, b) = (dice.below(1000), dice.below(1000));
    a * b / 1000 * 7919 % 1000
}

#[test]
fn a_stationary_load_is_served_alike_by_all_and_no_one_beats_the_clairvoyant() {
    let outcomes = run(&trace(|_, dice| skewed(dice)));
    let (decay, shipped, oracle) =
        (hits(&outcomes, Policy::Decay), hits(&outcomes, Policy::Shipped), hits(&outcomes, Policy::Oracle));
    assert!(decay > 0.2 && shipped >= 0.995 * decay && oracle > shipped, "{decay} {shipped} {oracle}");
    for outcome in &outcomes {
        assert!(outcome.moved_bytes <= outcome.budget_bytes, "{outcome:?}");
        assert!(outcome.latency_ms > 0.1 && outcome.latency_ms < 8.0, "{outcome:?}");
    }
    assert_eq!(outcomes, run(&trace(|_, dice| skewed(dice))), "the same trace and seed, the same figures");
}

#[test]
fn a_cycle_is_learned() {
    // Four hours of 5 epochs each; a day is a fifth of the trace.
    let mut cyclic = trace(|at, dice| match dice.below(10) {
        0 => dice.below(1000),
        _ => at / 1000 % 4 * 100 + dice.below(60),
    });
    cyclic.period_ms = 4000;
    let outcomes = run(&cyclic);
    assert!(hits(&outcomes, Policy::Model) > 1.1 * hits(&outcomes, Policy::Decay), "{outcomes:#?}");
    assert!(hits(&outcomes, Policy::Shipped) > 1.1 * hits(&outcomes, Policy::Decay), "{outcomes:#?}");
}

#[test]
fn short_reuse_is_staged() {
    let outcomes = run(&trace(|at, dice| at / 40 + dice.below(8)));
    assert!(hits(&outcomes, Policy::S3Fifo) > 0.5);
    assert!(hits(&outcomes, Policy::Shipped) > 0.9 * hits(&outcomes, Policy::S3Fifo), "{outcomes:#?}");
}

#[test]
fn a_scan_is_neither_heat_nor_hit() {
    let read = |at: u64| Record {
        ts_ms: at,
        operation: Operation::Read,
        file: FileId(at % 2),
        offset: if at.is_multiple_of(2) { at * 4096 } else { at % 7 * 655_360 },
        len: 8192,
    };
    let mixed = Trace { records: (0..5000).map(read).collect(), has_classes: true, ..Trace::default() };
    let outcomes = run(&mixed);
    assert!(hits(&outcomes, Policy::Decay) > 0.99, "{outcomes:#?}");
}

#[test]
fn odd_traces_are_replayed() {
    for records in [
        vec![],
        vec![Record { ts_ms: 9, operation: Operation::Write, file: FileId(0), offset: u64::MAX, len: u64::MAX }],
        vec![Record { ts_ms: 9, operation: Operation::Truncate, file: FileId(0), offset: 0, len: 0 }; 3],
    ] {
        for has_classes in [false, true] {
            let outcomes = run(&Trace { records: records.clone(), has_classes, ..Trace::default() });
            assert!(outcomes.iter().all(|outcome| outcome.hits.is_finite() && outcome.latency_ms.is_finite()));
        }
    }
}
