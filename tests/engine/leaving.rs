//! Gathering a file for `release` must not be stopped by a budget: found when the demo could not leave because its fast tier was full by
//! budget while the disk behind it was nearly empty.

use crate::harness::{options, tiers};
use heatfs::device::sim::SimWorld;
use heatfs::units::TierId;
use heatfs::volume::{Volume, Wait};

#[test]
fn a_file_larger_than_the_budget_is_gathered_on_the_fast_tier() {
    let world = SimWorld::new(3);
    let mut tiers = tiers(&world);
    tiers[0].budget_bytes = Some(128 << 10);
    Volume::create(&tiers, &options(), uuid::Uuid::from_u128(9), &mut |_| {}).expect("a volume is made");
    let (volume, _) = Volume::open(tiers, options()).expect("it opens");
    let file = volume.file(volume.issue_file_id().expect("an id")).expect("a file");
    let bytes: Vec<u8> = (0..600_000u32).map(|at| (at % 251) as u8 + 1).collect();
    volume.write(&file, 0, &bytes, Wait::Allowed).expect("it is written");
    volume.coalesce_all(&mut |_, _| {}).expect("it is coalesced");
    volume.gather(&file, TierId(0), &mut |_| {}).expect("it is gathered beyond the budget");
    let runs = volume.block_map(&file);
    assert!(runs.iter().all(|(_, _, tier, _)| *tier == Some(TierId(0))), "{runs:?}");
    let mut seen = vec![0; bytes.len()];
    assert_eq!(volume.read(&file, 0, &mut seen, Wait::Allowed).expect("it is readable"), bytes.len());
    assert!(seen == bytes, "the gathered file differs");
}
