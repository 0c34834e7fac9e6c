//! Random operations: the volume always says what the model says.

use crate::harness::{FILES, Harness, Model, Op, Random};
use heatfs::device::sim::SimWorld;
use proptest::prelude::*;

fn compare(ops: &[Op]) {
    let mut harness = Harness::new(SimWorld::new(1)).expect("a new volume opens");
    let mut model = Model::default();
    for (index, op) in ops.iter().enumerate() {
        harness.run(index, op).unwrap_or_else(|error| panic!("operation {index} {op:?}: {error}"));
        model.apply(index, op);
        let seen = harness.contents().expect("contents are readable");
        for n in 0..FILES {
            assert_eq!(seen.files[n].len(), model.files[n].len(), "size of file {n} after operation {index} {op:?}");
            let differs = seen.files[n].iter().zip(&model.files[n]).position(|(a, b)| a != b);
            assert_eq!(differs, None, "file {n} after operation {index} {op:?}");
        }
    }
    let findings = harness.volume().check(true).expect("the check runs");
    assert_eq!(findings, vec![], "after all operations");
}

#[test]
fn many_random_operations_agree_with_the_model() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let ops: Vec<Op> = (0..150).map(|_| random.op(true)).collect();
        let result = std::panic::catch_unwind(|| compare(&ops));
        assert!(result.is_ok(), "seed {seed} fails");
    }
}

fn op() -> impl Strategy<Value = Op> {
    any::<u64>().prop_map(|seed| Random(seed).op(true))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn short_sequences_agree_with_the_model(ops in proptest::collection::vec(op(), 1..40)) {
        compare(&ops);
    }
}
