//! ClickHouse#73999: parts that were moved to the cold volume came back with the next merge, and went again, for ever. Here nothing goes up
//! and down twice while it should rest, whatever the load.

use super::{BLOCK, Bounds, Pin, World, any_block, apply, run, settings, tiers};
use crate::policy::placement::{
    BlockRun, Decision, PlacementSettings, PlacementState, Reason, TierOutlook, immediate, plan,
};
use crate::policy::staging::Staging;
use crate::units::{BlockNo, FileId, TierId};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A block's moves: in which plan, upwards or not, why.
type Moves = BTreeMap<u64, Vec<(u32, bool, Reason)>>;

/// Heats and misses of one plan's time, by block.
#[derive(Clone, Debug)]
struct Weather {
    heats: Vec<f32>,
    misses: Vec<u64>,
}

prop_compose! {
    fn weather(blocks: usize)(
        heats in proptest::collection::vec(prop_oneof![2 => Just(0.0f32), 3 => 0.0f32..1000.0], blocks),
        misses in proptest::collection::vec(0..blocks as u64, 0..40),
    ) -> Weather {
        Weather { heats, misses }
    }
}

fn note(moves: &mut Moves, number: u32, made: &[Decision]) {
    for one in made {
        moves.entry(one.block.0).or_default().push((number, one.to < one.from, one.reason));
    }
}

/// The fast lane, as the mover serves it between two plans.
fn lane(
    world: &mut World,
    outlook: &mut [TierOutlook],
    misses: &[u64],
    settings: &PlacementSettings,
    number: u32,
    staging: &mut Staging<u64>,
) -> Vec<Decision> {
    let mut made = Vec::new();
    for miss in misses {
        let Some(block) = world.get(miss).copied() else { continue };
        let moved_lately = block.moved.is_some_and(|moved| number - moved <= settings.residency_plans);
        if moved_lately || block.pin != Pin::None || block.tier.index() + 1 != outlook.len() {
            continue;
        }
        let target = immediate(block.heat, block.tier, outlook, settings);
        if target.is_none_or(|(to, _)| to != TierId::FASTEST) && staging.admit(*miss) {
            made.extend(stage(world, *miss, number, staging));
            continue;
        }
        let Some((to, reason)) = target else { continue };
        outlook[to.index()].room_blocks = outlook[to.index()].room_blocks.saturating_sub(1);
        outlook[to.index()].slack_blocks = outlook[to.index()].slack_blocks.saturating_sub(1);
        let (file, from) = (FileId(1), block.tier);
        made.push(Decision { file, block: BlockNo(*miss), from, to, reason, gain_us: 0.0, flip: false });
        let moved = world.get_mut(miss).expect("looked up above");
        (moved.tier, moved.moved, moved.copy) = (to, Some(number), Some(from));
    }
    made
}

/// A block that was admitted comes up, and those that had to leave for it go down to their copies.
fn stage(world: &mut World, miss: u64, number: u32, staging: &mut Staging<u64>) -> Vec<Decision> {
    let mut made = Vec::new();
    let comes = world.get_mut(&miss).expect("a block of the world");
    let (from, to) = (comes.tier, TierId::FASTEST);
    (comes.tier, comes.copy, comes.pin, comes.moved) = (to, Some(from), Pin::Staged, Some(number));
    let (file, reason) = (FileId(1), Reason::Staged);
    made.push(Decision { file, block: BlockNo(miss), from, to, reason, gain_us: 0.0, flip: false });
    for left in staging.take_left() {
        let goes = world.get_mut(&left).expect("a block of the world");
        goes.pin = Pin::None;
        let Some(to) = goes.copy.take().filter(|_| !staging.contains(left)) else { continue };
        (goes.tier, goes.moved) = (to, Some(number));
        let (from, reason) = (TierId::FASTEST, Reason::Unstaged);
        made.push(Decision { file, block: BlockNo(left), from, to, reason, gain_us: 0.0, flip: true });
    }
    made
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_goes_up_and_down_twice_while_it_should_rest(
        blocks in proptest::collection::vec(any_block(3), 60),
        budgets in (4u64..30, 4u64..30),
        storm in proptest::collection::vec(weather(60), 12),
        residency_plans in 1u32..5,
        staging_blocks in 0u64..8,
    ) {
        let settings = PlacementSettings { residency_plans, fill_heat_min: 0.001, staging_blocks, ..settings() };
        let mut staging = Staging::telling(usize::try_from(staging_blocks).unwrap());
        let budgets = [budgets.0, budgets.1, 200];
        let numbered = (0u64..).zip(blocks).map(|(at, block)| {
            let pin = if block.pin == Pin::Staged { Pin::None } else { block.pin };
            (at, BlockRun { first: BlockNo(at), moved: None, pin, ..block })
        });
        let mut world: World = numbered.collect();
        let mut moves = Moves::new();
        for (number, weather) in (10u32..).zip(&storm) {
            for (block, heat) in world.values_mut().zip(&weather.heats) {
                block.heat = *heat;
            }
            let runs: Vec<BlockRun> = world.values().copied().collect();
            let state = tiers(&budgets, &runs);
            let made = plan(&PlacementState { number, block_bytes: BLOCK, tiers: &state, blocks: &&runs[..] }, &settings);
            apply(&mut world, &made, number);
            note(&mut moves, number, &made.decisions);
            let mut outlook = made.tiers;
            let promoted = lane(&mut world, &mut outlook, &weather.misses, &settings, number, &mut staging);
            note(&mut moves, number, &promoted);
        }
        for (block, moves) in &moves {
            for pair in moves.windows(2) {
                let (before, after) = (pair[0], pair[1]);
                let asked_for = matches!(after.2, Reason::Pinned | Reason::LogFile | Reason::Catalog | Reason::Forbidden);
                if after.0 - before.0 >= residency_plans || asked_for {
                    continue;
                }
                // Only a tier that overflows, or the staging cache, gives up what has just come; it does not come back before it has rested.
                prop_assert!(!after.1, "block {} went up again: {:?}", block, moves);
                let gives_up = matches!(after.2, Reason::Watermark { .. } | Reason::Unstaged);
                prop_assert!(gives_up, "block {}: {:?}", block, moves);
            }
        }
    }
}

fn limited(first: u64, count: u64, tier: u8, heat: f32, bounds: Bounds) -> BlockRun {
    BlockRun { pin: Pin::Within(bounds), ..run(first, count, tier, heat) }
}

#[test]
fn bounds_hold_against_heat() {
    let off_fast = Bounds { never: 0b001, ..Bounds::default() };
    let excluded = Bounds { promoted: false, ..Bounds::default() };
    let kept_up = Bounds { demoted: false, ..Bounds::default() };
    let mut runs = vec![
        limited(0, 2, 2, 900.0, off_fast),
        limited(10, 2, 0, 900.0, off_fast),
        limited(20, 2, 2, 900.0, excluded),
        limited(30, 90, 0, 0.0, kept_up),
    ];
    runs.extend((200..210).map(|at| run(at, 1, 2, 500.0)));
    let made = super::decide(&runs, &tiers(&[100, 100, 1000], &runs), &settings());
    let to = |block: u64| made.decisions.iter().find(|one| one.block.0 == block).map(|one| (one.to.0, one.reason));
    assert!(matches!(to(0), Some((1, Reason::Room { .. }))), "the next tier that it may be on: {:?}", to(0));
    assert_eq!(to(10), Some((1, Reason::Forbidden)));
    assert_eq!(to(20), None);
    assert!((30..120).all(|block| to(block).is_none()), "what is kept up is nobody's victim");
    assert!(made.decisions.iter().all(|one| one.block.0 < 20 || one.block.0 >= 200));
}

#[test]
fn a_reserve_is_kept_free_for_logs_and_no_more_than_they_need() {
    let log = |first, count, tier| BlockRun { pin: Pin::LogFile, ..run(first, count, tier, 0.0) };
    let settings = PlacementSettings { log_share: 0.1, ..settings() };
    let hot: Vec<BlockRun> = (0..200).map(|at| run(1000 + at, 1, 1, 50.0 + at as f32)).collect();
    for (logs, others) in [(50, 82), (4, 88), (0, 92)] {
        let mut runs = hot.clone();
        runs.push(log(0, logs, 1));
        let few = PlacementSettings { bytes_per_plan: 300 * BLOCK, ..settings.clone() };
        let made = super::decide(&runs, &tiers(&[100, 1000], &runs), &few);
        let came = |is_log: bool| made.decisions.iter().filter(|one| (one.block.0 < 1000) == is_log).count() as u64;
        assert_eq!((came(true), came(false)), (logs.min(10), others), "{logs} blocks of log");
    }
    // What is in it stays, what is beyond it is a block like any other.
    let mut runs = vec![log(0, 40, 0)];
    runs.extend((100..152).map(|at| run(at, 1, 0, 10.0)));
    runs.extend((200..210).map(|at| run(at, 1, 1, 100.0)));
    let made = super::decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    let displaced: Vec<u64> = made.decisions.iter().filter(|one| one.to.0 == 1).map(|one| one.block.0).collect();
    assert!(displaced.len() >= 4 && displaced.iter().all(|block| (10..40).contains(block)), "{:?}", made.decisions);
}

#[test]
fn catalogs_beyond_their_share_are_placed_by_heat() {
    let catalog = |first, count, tier, heat| BlockRun { pin: Pin::Catalog, ..run(first, count, tier, heat) };
    let runs = [catalog(0, 100, 1, 5.0), run(200, 5, 1, 1.0)];
    let settings = PlacementSettings { catalog_share: 0.1, ..settings() };
    let made = super::decide(&runs, &tiers(&[50, 1000], &runs), &settings);
    let because = |wanted: Reason| made.decisions.iter().filter(|one| one.reason == wanted).count();
    assert_eq!(because(Reason::Catalog), 5);
    assert_eq!(because(Reason::Room { heat: 5.0 }), 41);
    assert!(made.decisions.iter().all(|one| one.to == TierId::FASTEST));
}
