//! What the model sees of a block: [`FEATURES`] finite numbers, heats relative to the mean rate, so that they mean the same on a busy and on an idle day.

use super::history::{FileClass, FileHistory, SHARD_BLOCKS, Shard, first_block};
use super::record::{DECAYS, NEVER, PLAIN_DECAY};
use std::f32::consts::TAU;

/// Numbers per block.
pub(super) const FEATURES: usize = 26;
pub(super) type Features = [f32; FEATURES];

/// Neighbours looked at on each side.
const REACH: usize = 16;
/// Close neighbours on each side.
const NEAR: usize = 4;
/// The decay in which neighbours are compared: a half-life of 2 epochs, since windows move.
const NEIGHBOUR_DECAY: usize = 1;

/// Where the epoch to be predicted lies in cycles, if any is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moment {
    /// Parts of the known cycle in which the next and the second-next epoch lie.
    pub(super) bins: Option<[usize; 2]>,
    /// Next epoch's place in the known cycle, in [0, 1).
    pub(super) phase: f32,
    /// Which of seven such cycles it is, in [0, 1).
    pub(super) day_of_week: f32,
}

/// What all blocks have in common at the end of an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings {
    /// Accesses per epoch of the mean block; positive.
    pub(super) mean_rate: f32,
    pub(super) moment: Moment,
}

/// What the blocks of a file have in common.
struct FileView {
    heat: f32,
    active_share: f32,
    class: f32,
    tail: u64,
}

/// Calls `each` with every block that has a score to expect: with heat left, near one that has, or with a season to come.
pub(super) fn visit(file: &FileHistory, around: &Surroundings, mut each: impl FnMut(u64, &Shard, usize, Features)) {
    let view = view_of(file);
    for (number, shard) in &file.shards {
        let heats = heats_around(file, *number, shard);
        for index in 0..SHARD_BLOCKS {
            let block = first_block(*number) + u64::try_from(index).unwrap_or(0);
            if block > view.tail {
                break;
            }
            let window = &heats[index..=index + 2 * REACH];
            if let Some(features) = features_of(shard, index, block, window, &view, around) {
                each(block, shard, index, features);
            }
        }
    }
}

/// Those of one block; None where it has no score to expect, or is known only as a part of its shard.
pub(super) fn of_block(file: &FileHistory, around: &Surroundings, block: u64) -> Option<Features> {
    let index = usize::try_from(block % first_block(1)).ok()?;
    let number = block / first_block(1);
    let shard = file.shards.get(&number)?;
    let heats = heats_around(file, number, shard);
    features_of(shard, index, block, &heats[index..=index + 2 * REACH], &view_of(file), around)
}

/// The heats of a shard's blocks, with as many on each side as are looked at.
fn heats_around(file: &FileHistory, number: u64, shard: &Shard) -> [f32; SHARD_BLOCKS + 2 * REACH] {
    let mut heats = [0.0f32; SHARD_BLOCKS + 2 * REACH];
    let side = |number: Option<u64>| number.and_then(|number| file.shards.get(&number));
    if let Some(left) = side(number.checked_sub(1)) {
        copy_heats(&left.records[SHARD_BLOCKS - REACH..], &mut heats[..REACH]);
    }
    copy_heats(&shard.records, &mut heats[REACH..REACH + SHARD_BLOCKS]);
    if let Some(right) = side(number.checked_add(1)) {
        copy_heats(&right.records[..REACH], &mut heats[REACH + SHARD_BLOCKS..]);
    }
    heats
}

fn copy_heats(records: &[super::record::BlockRecord], heats: &mut [f32]) {
    for (heat, record) in heats.iter_mut().zip(records) {
        *heat = record.decayed(NEIGHBOUR_DECAY);
    }
}

fn view_of(file: &FileHistory) -> FileView {
    let records = || file.shards.values().flat_map(|shard| &shard.records);
    let blocks = count_f32(records().filter(|record| record.age() != NEVER).count()).max(1.0);
    let heat: f32 = records().map(|record| record.decayed(PLAIN_DECAY)).sum();
    let active = count_f32(records().filter(|record| record.age() == 0).count());
    let class = match file.class {
        FileClass::Heap => 0.0,
        FileClass::Index => 1.0,
        FileClass::Catalog => 2.0,
        FileClass::Map => 3.0,
        FileClass::Log => 4.0,
        FileClass::Temporary => 5.0,
        FileClass::Other => 6.0,
    };
    FileView { heat: heat / blocks, active_share: active / blocks, class, tail: file.tail }
}

fn features_of(
    shard: &Shard,
    index: usize,
    block: u64,
    window: &[f32],
    file: &FileView,
    around: &Surroundings,
) -> Option<Features> {
    let record = shard.records.get(index)?;
    let season = |at: usize| {
        let bin = around.moment.bins.and_then(|bins| bins.get(at).copied())?;
        shard.seasons.as_ref()?.get(index).map(|known| known.get(bin))
    };
    let (next, second) = (season(0).unwrap_or(0.0), season(1).unwrap_or(0.0));
    let left = mean(&window[REACH - NEAR..REACH]);
    let right = mean(&window[REACH + 1..=REACH + NEAR]);
    if record.decayed(DECAYS - 1) == 0.0 && left == 0.0 && right == 0.0 && next == 0.0 && second == 0.0 {
        return None;
    }
    let relative = |heat: f32| (heat / around.mean_rate).ln_1p();
    let plain = record.decayed(PLAIN_DECAY);
    let (sin, cos) = match around.moment.bins {
        Some(_) => (around.moment.phase * TAU).sin_cos(),
        None => (0.0, 0.0),
    };
    let mut features = [0.0; FEATURES];
    let (bank, rest) = features.split_at_mut(DECAYS);
    for (decay, feature) in bank.iter_mut().enumerate() {
        *feature = relative(record.decayed(decay));
    }
    let others: [f32; FEATURES - DECAYS] = [
        relative(record.accesses()),
        f32::from(record.age().min(1024)).ln_1p(),
        record.gap().ln_1p(),
        record.write_share(),
        record.sequential_share(),
        relative(left),
        relative(right),
        relative(mean(window)),
        relative(file.heat),
        relative(record.decayed(0)) - relative(plain),
        relative(next),
        relative(second),
        relative(next) - relative(plain),
        sin,
        cos,
        around.moment.day_of_week,
        file.class,
        file.active_share,
        relative(record.burst()),
        count_f32(usize::try_from(file.tail.saturating_sub(block)).unwrap_or(usize::MAX)).ln_1p(),
    ];
    rest.copy_from_slice(&others);
    features.iter_mut().filter(|feature| !feature.is_finite()).for_each(|feature| *feature = 0.0);
    Some(features)
}

fn mean(heats: &[f32]) -> f32 {
    heats.iter().sum::<f32>() / count_f32(heats.len().max(1))
}

/// Exact below 2^24, and a rate or a logarithm needs no more.
#[allow(clippy::cast_precision_loss)]
pub(super) fn count_f32(count: usize) -> f32 {
    count as f32
}
