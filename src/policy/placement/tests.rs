mod residency;

use super::{
    BlockRun, Bounds, Decision, Pin, PlacementSettings, PlacementState, Plan, Reason, TierOutlook, TierState,
    immediate, plan,
};
use crate::units::{BlockNo, FileId, TierId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

const BLOCK: u64 = 65_536;
const LATENCIES_US: [f32; 4] = [100.0, 300.0, 2000.0, 8000.0];

fn settings() -> PlacementSettings {
    PlacementSettings {
        bytes_per_plan: 1 << 40,
        low_watermark: 0.92,
        high_watermark: 0.96,
        ..PlacementSettings::default()
    }
}

/// Tiers of so many blocks each, with nothing waiting to be freed.
fn tiers(blocks: &[u64], runs: &[BlockRun]) -> Vec<TierState> {
    let last = blocks.len() - 1;
    let state = |(at, blocks): (usize, &u64)| {
        let used: u64 = runs.iter().filter(|run| run.tier.index() == at).map(|run| run.count).sum();
        TierState {
            budget_bytes: blocks * BLOCK,
            free_bytes: blocks.saturating_sub(used) * BLOCK,
            latency_us: if at == last { 8000.0 } else { LATENCIES_US[at] },
            is_busy: false,
        }
    };
    blocks.iter().enumerate().map(state).collect()
}

fn run(first: u64, count: u64, tier: u8, heat: f32) -> BlockRun {
    BlockRun {
        file: FileId(1),
        first: BlockNo(first),
        count,
        tier: TierId(tier),
        copy: None,
        heat,
        moved: None,
        pin: Pin::None,
    }
}

fn decide(runs: &[BlockRun], tiers: &[TierState], settings: &PlacementSettings) -> Plan {
    plan(&PlacementState { number: 10, block_bytes: BLOCK, tiers, blocks: &runs }, settings)
}

impl super::Blocks for &[BlockRun] {
    fn visit(&self, each: &mut dyn FnMut(&BlockRun)) {
        self.iter().for_each(each);
    }
}

fn moves(plan: &Plan) -> Vec<(u64, u8, u8)> {
    plan.decisions.iter().map(|one| (one.block.0, one.from.0, one.to.0)).collect()
}

#[test]
fn free_room_is_filled_hottest_first() {
    let runs = [run(0, 100, 2, 0.0), run(100, 10, 2, 1.0), run(110, 10, 2, 3.0)];
    let made = decide(&runs, &tiers(&[13, 6, 1000], &runs), &settings());
    // 92 % of 13 and of 6 blocks; the last one of the fast tier's rounds down.
    let to = |tier: u8| made.decisions.iter().filter(|one| one.to.0 == tier).map(|one| one.block.0).collect::<Vec<_>>();
    assert_eq!(to(0), [110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 100]);
    assert_eq!(to(1), [101, 102, 103, 104, 105]);
    assert!(made.decisions.iter().all(|one| matches!(one.reason, Reason::Room { .. })));
}

#[test]
fn blocks_nobody_reads_stay() {
    let runs = [run(0, 1000, 2, 0.0)];
    assert!(decide(&runs, &tiers(&[100, 100, 2000], &runs), &settings()).decisions.is_empty());
}

#[test]
fn a_full_tier_takes_a_block_only_for_a_clearly_colder_one() {
    for (hot, moved) in [(10.0, false), (11.4, false), (13.0, true)] {
        let runs = [run(0, 92, 0, 10.0), run(200, 1, 1, hot)];
        let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings());
        assert_eq!(!made.decisions.is_empty(), moved, "{hot}: {:?}", made.decisions);
    }
}

#[test]
fn an_exchange_that_does_not_pay_is_not_made() {
    // Twice as hot, but read once in a hundred epochs.
    let runs = [run(0, 92, 0, 0.005), run(200, 1, 1, 0.01)];
    assert!(decide(&runs, &tiers(&[100, 1000], &runs), &settings()).decisions.is_empty());
}

#[test]
fn three_full_tiers_rotate() {
    let mut runs = vec![run(1000, 1, 2, 50.0)];
    runs.extend((0..92).map(|i| run(i, 1, 0, 20.0 + i as f32)));
    runs.extend((100..192).map(|i| run(i, 1, 1, 1.0 + i as f32 / 100.0)));
    let made = decide(&runs, &tiers(&[100, 100, 1000], &runs), &settings());
    assert_eq!(moves(&made), [(100, 1, 2), (0, 0, 1), (1000, 2, 0)], "the coldest of each tier sinks by one");
}

/// A fastest tier above its high watermark, with two of its coldest blocks copied on the slowest, and a middle tier.
fn overfull(middle: u64) -> Vec<BlockRun> {
    let mut runs: Vec<BlockRun> = (0..98).map(|i| run(i, 1, 0, 1.0 + i as f32)).collect();
    runs[3].copy = Some(TierId(2));
    runs[4].copy = Some(TierId(2));
    runs.push(run(200, middle, 1, 500.0));
    runs
}

#[test]
fn above_the_high_watermark_the_coldest_sink_and_copies_first() {
    let runs = overfull(9);
    let made = decide(&runs, &tiers(&[100, 10, 1000], &runs), &settings());
    let mut sunk: Vec<(u64, u8, bool)> = made.decisions.iter().map(|one| (one.block.0, one.to.0, one.flip)).collect();
    sunk.retain(|one| one.0 < 100);
    assert_eq!(&sunk[..2], [(3, 2, true), (4, 2, true)]);
    sunk.sort();
    assert!(sunk.iter().map(|one| one.0).take(6).eq(0..6), "{sunk:?}");
}

#[test]
fn a_block_that_belongs_on_the_middle_tier_does_not_sink_past_it_for_a_free_copy() {
    let runs = overfull(1);
    let made = decide(&runs, &tiers(&[100, 100, 1000], &runs), &settings());
    let sunk: HashSet<(u64, u8)> = made.decisions.iter().map(|one| (one.block.0, one.to.0)).collect();
    assert!(sunk.is_superset(&HashSet::from([(3, 1), (4, 1)])), "{sunk:?}");
}

#[test]
fn between_the_watermarks_only_what_costs_nothing_sinks() {
    let mut runs: Vec<BlockRun> = (0..94).map(|i| run(i, 1, 0, 1.0 + i as f32)).collect();
    runs[1].copy = Some(TierId(1));
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings());
    assert_eq!(moves(&made), [(1, 0, 1)]);
    assert_eq!(made.bytes, 0);
}

#[test]
fn promoting_from_a_busy_device_is_left_to_its_misses() {
    let runs = [run(0, 1, 1, 100.0)];
    let mut tiers = tiers(&[100, 1000], &runs);
    assert_eq!(decide(&runs, &tiers, &settings()).decisions.len(), 1);
    tiers[1].is_busy = true;
    let made = decide(&runs, &tiers, &settings());
    assert!(made.decisions.is_empty());
    assert!(made.tiers[0].room_blocks > 0, "the room is the misses'");
}

#[test]
fn pins_are_obeyed_and_pinned_blocks_are_no_victims() {
    let mut cold = run(0, 10, 0, 0.0);
    cold.pin = Pin::To(TierId(0));
    let mut up = run(50, 2, 1, 0.0);
    up.pin = Pin::To(TierId(0));
    let mut down = run(60, 2, 0, 99.0);
    down.pin = Pin::To(TierId(1));
    let runs = [cold, up, down, run(100, 5, 1, 50.0)];
    let made = decide(&runs, &tiers(&[14, 1000], &runs), &settings());
    assert!(made.decisions.contains(&Decision {
        file: FileId(1),
        block: BlockNo(50),
        from: TierId(1),
        to: TierId(0),
        reason: Reason::Pinned,
        gain_us: 0.0,
        flip: false
    }));
    let moved: HashSet<u64> = made.decisions.iter().map(|one| one.block.0).collect();
    assert!(moved.is_superset(&HashSet::from([50, 51, 60, 61])) && moved.iter().all(|block| *block >= 50));
}

#[test]
fn log_files_take_their_share_and_no_more() {
    let mut log = run(0, 50, 1, 0.0);
    log.pin = Pin::LogFile;
    let runs = [log];
    let settings = PlacementSettings { log_share: 0.1, ..settings() };
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    assert_eq!(made.decisions.len(), 10);
}

#[test]
fn a_block_rests_after_a_move() {
    let mut hot = run(0, 1, 1, 100.0);
    hot.moved = Some(9);
    let runs = [hot];
    assert!(decide(&runs, &tiers(&[100, 1000], &runs), &settings()).decisions.is_empty());
    hot.moved = Some(8);
    assert_eq!(decide(&[hot], &tiers(&[100, 1000], &[hot]), &settings()).decisions.len(), 1);
}

#[test]
fn the_fast_lane_takes_room_and_else_only_what_beats_the_cut() {
    let tier = |cut, room_blocks, slack_blocks, latency_us| TierOutlook {
        cut,
        room_blocks,
        slack_blocks,
        latency_us,
        ..TierOutlook::default()
    };
    let last = tier(0.0, 100, 100, 8000.0);
    let full = [tier(10.0, 0, 5, 100.0), tier(1.0, 0, 5, 300.0), last];
    let to = |heat, tiers: &[TierOutlook]| immediate(heat, TierId(2), tiers, &settings()).map(|(to, _)| to.0);
    assert_eq!(to(12.0, &full), Some(0));
    assert_eq!(to(11.0, &full), Some(1), "within the hysteresis of the fast tier");
    assert_eq!(to(1.1, &full), None);
    let roomy = [tier(10.0, 0, 0, 100.0), tier(1.0, 3, 5, 300.0), last];
    assert_eq!(to(0.1, &roomy), Some(1));
    assert_eq!(to(99.0, &[tier(10.0, 0, 0, 100.0), tier(1.0, 0, 0, 300.0), last]), None);
    assert_eq!(to(99.0, &[]), None);
}

#[test]
fn a_tebibyte_is_planned_without_keeping_its_blocks() {
    // 16 M blocks, one in ten with a heat of its own.
    struct Tebibyte;
    impl super::Blocks for Tebibyte {
        fn visit(&self, each: &mut dyn FnMut(&BlockRun)) {
            for i in 0..(1u64 << 24) / 10 {
                let heat = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 1000.0;
                each(&run(i * 10, 1, 2, heat));
                each(&run(i * 10 + 1, 9, 2, 0.0));
            }
        }
    }
    let tier = |blocks: u64, latency_us| TierState {
        budget_bytes: blocks * BLOCK,
        free_bytes: blocks * BLOCK,
        latency_us,
        is_busy: false,
    };
    let tiers = [tier(1 << 20, 100.0), tier(1 << 22, 300.0), tier(1 << 26, 8000.0)];
    let settings = PlacementSettings { bytes_per_plan: 4096 * BLOCK, ..settings() };
    let made = plan(&PlacementState { number: 1, block_bytes: BLOCK, tiers: &tiers, blocks: &Tebibyte }, &settings);
    assert_eq!(made.decisions.len(), 4096);
    let hot = made.ranks.cut(4096);
    assert!(made.decisions.iter().all(|one| one.to.0 == 0 && one.gain_us > 0.9 * hot * 7900.0));
}

/// Blocks by number, as a test world keeps them.
type World = BTreeMap<u64, BlockRun>;

fn apply(world: &mut World, made: &Plan, number: u32) {
    for one in &made.decisions {
        let block = world.get_mut(&one.block.0).expect("a block of the world");
        assert_eq!(block.tier, one.from);
        assert_ne!(one.from, one.to);
        block.tier = one.to;
        block.moved = Some(number);
        block.copy = None;
    }
}

fn step(world: &mut World, budgets: &[u64], settings: &PlacementSettings, number: u32) -> Plan {
    let runs: Vec<BlockRun> = world.values().copied().collect();
    let tiers = tiers(budgets, &runs);
    let made = plan(&PlacementState { number, block_bytes: BLOCK, tiers: &tiers, blocks: &&runs[..] }, settings);
    apply(world, &made, number);
    made
}

fn used(world: &World, tiers: usize) -> Vec<u64> {
    let count = |tier| world.values().filter(|block| block.tier.index() == tier).count() as u64;
    (0..tiers).map(count).collect()
}

prop_compose! {
    fn any_block(tiers: u8)(
        tier in 0..tiers,
        copy in proptest::option::weighted(0.2, 1..tiers),
        heat in prop_oneof![3 => Just(0.0f32), 5 => 0.0f32..100.0, 1 => 0.0f32..1e6, 1 => Just(f32::NAN)],
        moved in proptest::option::weighted(0.2, 5u32..12),
        pin in prop_oneof![8 => Just(Pin::None), 1 => (0..tiers).prop_map(|tier| Pin::To(TierId(tier))), 1 => Just(Pin::LogFile),
            1 => Just(Pin::Catalog), 1 => Just(Pin::Staged), 1 => (0u16..1 << tiers, any::<bool>(), any::<bool>()).prop_map(|(never, promoted, demoted)| {
                Pin::Within(Bounds { never, promoted, demoted })
            })],
    ) -> BlockRun {
        let copy = copy.filter(|copy| *copy > tier).map(TierId);
        BlockRun { file: FileId(1), first: BlockNo(0), count: 1, tier: TierId(tier), copy, heat, moved, pin }
    }
}

fn any_world() -> impl Strategy<Value = (World, Vec<u64>, u64)> {
    (2u8..=4).prop_flat_map(|tiers| {
        let blocks = proptest::collection::vec(any_block(tiers), 1..200);
        let budgets = proptest::collection::vec(1u64..150, usize::from(tiers));
        (blocks, budgets, 0u64..100).prop_map(|(blocks, mut budgets, budget)| {
            if let Some(last) = budgets.last_mut() {
                *last += 200;
            }
            let numbered = (0u64..).zip(blocks).map(|(at, block)| (at, BlockRun { first: BlockNo(at), ..block }));
            (numbered.collect(), budgets, budget)
        })
    })
}

proptest! {
    /// Whatever the state: budgets of bytes and tiers are kept, pins obeyed, nothing moves twice or without need.
    #[test]
    fn plans_keep_their_limits((world, budgets, budget) in any_world()) {
        let settings = PlacementSettings { bytes_per_plan: budget * BLOCK, ..settings() };
        let mut after = world.clone();
        let runs: Vec<BlockRun> = world.values().copied().collect();
        let tiers_before = tiers(&budgets, &runs);
        let made = step(&mut after, &budgets, &settings, 10);
        let copied = made.decisions.iter().filter(|one| !one.flip).count() as u64;
        prop_assert!(copied <= budget && made.bytes == copied * BLOCK);
        let left = budget - copied;
        prop_assert!(made.cooling.len() as u64 <= left, "ahead of sinking only what the budget leaves");
        for (_, block) in &made.cooling {
            let cooling = world[&block.0];
            prop_assert!(cooling.copy.is_none() && cooling.tier.index() + 1 < budgets.len());
            prop_assert!(made.decisions.iter().all(|one| one.block != *block), "it moves already");
        }
        let mut incoming = vec![0u64; budgets.len()];
        let mut seen = HashSet::new();
        for one in &made.decisions {
            let before = world[&one.block.0];
            prop_assert!(seen.insert(one.block), "moved twice");
            prop_assert_eq!(one.flip, before.copy == Some(one.to));
            incoming[one.to.index()] += u64::from(!one.flip);
            match before.pin {
                Pin::To(tier) => prop_assert_eq!(one.to, tier),
                Pin::LogFile | Pin::Catalog if one.to == TierId::FASTEST => {}
                Pin::Within(bounds) if one.reason == Reason::Forbidden => {
                    prop_assert!(!bounds.allows(one.from) && bounds.allows(one.to));
                }
                Pin::Within(bounds) if !bounds.allows(one.to) => prop_assert!(false, "not allowed there: {:?}", one),
                Pin::Staged => prop_assert!(false, "staged blocks are not the planner's: {:?}", one),
                Pin::None | Pin::LogFile | Pin::Catalog | Pin::Within(_) => {
                    let rested = before.moved.is_none_or(|moved| moved <= 8);
                    let relief = matches!(one.reason, Reason::Watermark { .. });
                    prop_assert!(rested || relief, "moved while it should rest: {:?}", one);
                    prop_assert!(one.to > one.from || before.heat > 0.0, "promoted without heat");
                }
            }
        }
        for (tier, incoming) in incoming.iter().enumerate() {
            prop_assert!(incoming * BLOCK <= tiers_before[tier].free_bytes, "tier {} gets more than it can take", tier);
        }
    }

    /// With heat that stays as it is, movement ends, and what moved up does not come down again.
    #[test]
    fn stationary_heat_comes_to_rest((mut world, budgets, _) in any_world()) {
        let settings = settings();
        let mut quiet = 0;
        for number in 10..80 {
            let made = step(&mut world, &budgets, &settings, number);
            quiet = if made.decisions.is_empty() { quiet + 1 } else { 0 };
        }
        prop_assert!(quiet > 3, "still moving after seventy plans");
    }
}

/// Blocks by Zipf, all on the slowest tier at first.
fn zipf_world(blocks: u64) -> World {
    let heat = |i: u64| 1000.0 / ((i.wrapping_mul(7919) % blocks + 1) as f32);
    (0..blocks).map(|i| (i, run(i, 1, 2, heat(i)))).collect()
}

#[test]
fn a_zipf_load_reaches_the_best_static_placement() {
    let budgets = [500u64, 500, 10_000];
    let mut world = zipf_world(4000);
    let settings = PlacementSettings { bytes_per_plan: 100 * BLOCK, ..settings() };
    for number in 1..60 {
        step(&mut world, &budgets, &settings, number);
    }
    let slow = |world: &World| world.values().filter(|block| block.tier.0 == 2).map(|block| block.heat).sum::<f32>();
    let mut heats: Vec<f32> = world.values().map(|block| block.heat).collect();
    heats.sort_by(|a, b| b.total_cmp(a));
    // Up to the low watermark of both fast tiers.
    let best: f32 = heats.iter().skip(920).sum();
    assert!(slow(&world) <= best * 1.01, "{} against {best}", slow(&world));
    assert_eq!(used(&world, 3)[..2], [460, 460]);
    let fastest: f32 = world.values().filter(|block| block.tier.0 == 0).map(|block| block.heat).sum();
    assert!(fastest >= 0.999 * heats.iter().take(460).sum::<f32>());
}

#[test]
fn a_moved_hot_set_is_followed() {
    let budgets = [500u64, 500, 10_000];
    let mut world = zipf_world(4000);
    let settings = PlacementSettings { bytes_per_plan: 100 * BLOCK, ..settings() };
    for number in 1..40 {
        step(&mut world, &budgets, &settings, number);
    }
    let heats: Vec<f32> = world.values().map(|block| block.heat).collect();
    for (at, block) in &mut world {
        block.heat = heats[usize::try_from((at + 2000) % 4000).unwrap()];
    }
    let slow = |world: &World| world.values().filter(|block| block.tier.0 == 2).map(|block| block.heat).sum::<f32>();
    let before = slow(&world);
    for number in 40..120 {
        step(&mut world, &budgets, &settings, number);
    }
    let mut sorted = heats;
    sorted.sort_by(|a, b| b.total_cmp(a));
    let best: f32 = sorted.iter().skip(920).sum();
    assert!(slow(&world) < before && slow(&world) <= best * 1.05, "{before} {} {best}", slow(&world));
}

/// Heat that wobbles by a tenth around its mean must not make blocks travel.
#[test]
fn noise_within_the_hysteresis_moves_nothing() {
    let budgets = [500u64, 500, 10_000];
    let mut world = zipf_world(4000);
    let steady: Vec<f32> = world.values().map(|block| block.heat).collect();
    let mut moved = 0;
    for number in 1..100u32 {
        for (at, block) in &mut world {
            let wobble = 1.0 + 0.06 * ((at * 31 + u64::from(number) * 17) % 20) as f32 / 10.0 - 0.06;
            block.heat = steady[usize::try_from(*at).unwrap()] * wobble;
        }
        let made = step(&mut world, &budgets, &settings(), number);
        if number > 50 {
            moved += made.decisions.len();
        }
    }
    assert_eq!(moved, 0);
}

#[test]
fn the_coldest_of_a_full_tier_get_a_copy_ahead_of_sinking() {
    let settings = PlacementSettings { premigrated_share: 0.05, ..settings() };
    let mut runs: Vec<BlockRun> = (0..92).map(|at| run(at, 1, 0, 1.0 + at as f32)).collect();
    runs[1].copy = Some(TierId(1));
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    let cooling: Vec<u64> = made.cooling.iter().map(|one| one.1.0).collect();
    assert_eq!(
        (made.decisions.len(), cooling),
        (0, vec![0, 2, 3, 4]),
        "the five coldest, but for the one that has a copy"
    );
    // Not while the tier has room, nor onto a tier that has none to spare.
    assert!(decide(&runs[..80], &tiers(&[100, 1000], &runs[..80]), &settings).cooling.is_empty());
    assert!(decide(&runs, &tiers(&[100, 10], &runs), &settings).cooling.len() <= 10);
    let mut short = tiers(&[100, 1000], &runs);
    short[1].free_bytes = 100 * BLOCK;
    assert!(decide(&runs, &short, &settings).cooling.is_empty());
}

#[test]
fn the_staging_share_is_kept_free_and_what_is_staged_is_nobodys_victim() {
    let staged = |first, count| BlockRun { pin: Pin::Staged, copy: Some(TierId(1)), ..run(first, count, 0, 0.0) };
    let settings = PlacementSettings { staging_blocks: 20, ..settings() };
    // 92 of 100 blocks may be filled: 20 are for staging, of which 5 are taken.
    let mut runs = vec![staged(0, 5)];
    runs.extend((100..300).map(|at| run(at, 1, 1, 50.0 + at as f32)));
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    assert_eq!(made.decisions.len(), 72, "room for what heat places");
    assert_eq!((made.tiers[0].room_blocks, made.tiers[0].reserved_blocks), (0, 15));
    // A tier that is full of placed blocks gives up the coldest of them.
    let runs: Vec<BlockRun> = (0..92).map(|at| run(at, 1, 0, 1.0 + at as f32)).collect();
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    let mut gone: Vec<u64> = made.decisions.iter().map(|one| one.block.0).collect();
    gone.sort_unstable();
    assert!(gone.into_iter().eq(0..20), "{:?}", made.decisions);
    // With the rest of the tier full, an exchange takes a placed block, however cold the staged ones are.
    let mut runs = vec![staged(0, 20)];
    runs.extend((30..102).map(|at| run(at, 1, 0, 10.0)));
    runs.push(run(200, 1, 1, 100.0));
    let made = decide(&runs, &tiers(&[100, 1000], &runs), &settings);
    let gone: Vec<u64> = made.decisions.iter().filter(|one| one.to.0 == 1).map(|one| one.block.0).collect();
    assert!(gone.len() == 1 && gone[0] >= 30, "{gone:?}");
}
