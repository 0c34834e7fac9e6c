use super::*;
use proptest::prelude::*;

fn read(file: u64, block: u64) -> Access {
    Access { file: FileId(file), offset: block * 65_536, len: 8192, is_write: false, is_sequential: false }
}

fn clock(number: u64, period_ms: u64) -> EpochClock {
    EpochClock { number, epoch_ms: 1000, period_ms }
}

fn score(scores: &Scores, block: u64, predictor: Predictor) -> f32 {
    let found = scores.blocks.iter().find(|scored| scored.block == BlockNo(block));
    found.map_or(0.0, |scored| scored.scores[predictor.index()])
}

/// Every hour another quarter of a file is hot, for eight epochs; four hours are a day.
fn day(forecast: &mut Forecast, epoch: u64) -> Scores {
    let hour = epoch / 8 % 4;
    for block in 0..64 {
        (0..4).for_each(|_| forecast.observe(&read(1, hour * 64 + block)));
    }
    forecast.observe(&read(1, epoch * 31 % 256));
    forecast.end_epoch(clock(epoch, 32_000))
}

#[test]
fn a_cycle_is_predicted_before_its_hour() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    let mut scores = None;
    for epoch in 0..32 * 3 + 8 {
        scores = Some(day(&mut forecast, epoch));
    }
    let scores = scores.unwrap();
    assert_eq!(scores.model, ModelState::Ready);
    // The first hour has just ended, so the second one's blocks come next, and decay does not know.
    let mean =
        |first: u64, predictor| (first..first + 64).map(|block| score(&scores, block, predictor)).sum::<f32>() / 64.0;
    assert!(mean(64, Predictor::Model) > 2.0 * mean(0, Predictor::Model));
    assert!(mean(64, Predictor::PLAIN) < mean(0, Predictor::PLAIN));
}

#[test]
fn what_is_expected_has_reasons() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    assert!(forecast.reasons(FileId(1), BlockNo(70)).is_empty(), "no model yet");
    (0..32 * 3 + 8).for_each(|epoch| drop(day(&mut forecast, epoch)));
    // It was not accessed for a long time, but its hour comes: only the cycle can tell.
    let reasons = forecast.reasons(FileId(1), BlockNo(70));
    let first = reasons.first().expect("a reason");
    assert!(first.what.contains("cycle") && first.accesses > 0.5, "{reasons:?}");
    assert!(reasons.windows(2).all(|pair| pair[0].accesses.abs() >= pair[1].accesses.abs()));
    assert!(
        forecast.reasons(FileId(1), BlockNo(9999)).is_empty() && forecast.reasons(FileId(7), BlockNo(0)).is_empty()
    );
}

/// The model needs a change or two of the hour to believe in the cycle; the cycle's own prediction has all it needs after the first day.
#[test]
fn the_second_day_is_known_from_the_first() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    let mut scores = None;
    for epoch in 0..32 + 8 {
        scores = Some(day(&mut forecast, epoch));
    }
    let scores = scores.unwrap();
    let mean =
        |first: u64, predictor| (first..first + 64).map(|block| score(&scores, block, predictor)).sum::<f32>() / 64.0;
    assert!(mean(64, Predictor::Cycle) > 2.0 * mean(0, Predictor::Cycle));
    // Without a known cycle it is plain decay.
    let mut forecast = Forecast::new(ForecastSettings::default());
    forecast.observe(&read(1, 7));
    let scores = forecast.end_epoch(clock(0, 0));
    assert_eq!(score(&scores, 7, Predictor::Cycle), score(&scores, 7, Predictor::PLAIN));
}

#[test]
fn the_same_accesses_give_the_same_scores() {
    let run = || {
        let mut forecast = Forecast::new(ForecastSettings::default());
        (0..20).map(|epoch| day(&mut forecast, epoch)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn sequential_accesses_are_no_heat() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    for epoch in 0..12 {
        forecast.observe(&Access { is_sequential: true, ..read(1, epoch) });
        forecast.observe(&read(1, 40));
        let scores = forecast.end_epoch(clock(epoch, 0));
        assert_eq!(score(&scores, epoch, Predictor::PLAIN), 0.0);
        assert!(score(&scores, 40, Predictor::PLAIN) > 0.0);
    }
}

#[test]
fn truncated_blocks_are_forgotten() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    [1, 9, 100, 300].iter().for_each(|block| forecast.observe(&read(1, *block)));
    forecast.truncate(FileId(1), 10 * 65_536 - 1);
    let scores = forecast.end_epoch(clock(0, 0));
    assert!(score(&scores, 9, Predictor::PLAIN) > 0.0);
    assert!(scores.blocks.iter().all(|scored| scored.block.0 < 10));
    forecast.forget(FileId(1));
    assert_eq!(forecast.end_epoch(clock(1, 0)).blocks, []);
}

#[test]
fn memory_is_bounded_and_the_hottest_stay_fine() {
    let mut forecast = Forecast::new(ForecastSettings { shards_max: 10, ..ForecastSettings::default() });
    for epoch in 0..5 {
        (0..200).for_each(|shard| forecast.observe(&read(shard % 7, shard * 64)));
        assert!(forecast.shards() <= 10, "within an epoch, too");
        (0..9).for_each(|_| forecast.observe(&read(3, 31 * 64)));
        let scores = forecast.end_epoch(clock(epoch, 0));
        assert_eq!((forecast.shards(), forecast.merged_shards()), (10, 100), "and beyond that they are forgotten");
        // Memory was full when it came, so it is told apart from its neighbours from the next epoch on.
        let hot = score(&scores, 31 * 64, Predictor::PLAIN);
        assert!(epoch == 0 || hot > 1.0, "{hot} in epoch {epoch}");
    }
}

#[test]
fn shards_merge_when_memory_is_short_and_split_when_they_are_hot() {
    let mut forecast = Forecast::new(ForecastSettings { shards_max: 10, ..ForecastSettings::default() });
    let fine = |scores: &Scores, shard: u64| scores.blocks.iter().any(|scored| scored.block.0 / 64 == shard);
    let mut epoch = 0;
    let mut run = |forecast: &mut Forecast, hot: std::ops::Range<u64>| {
        (0..40).for_each(|shard| forecast.observe(&read(1, shard * 64 + epoch % 3)));
        hot.for_each(|shard| (0..20).for_each(|at| forecast.observe(&read(1, shard * 64 + at))));
        epoch += 1;
        forecast.end_epoch(clock(epoch, 0))
    };
    (0..12).for_each(|_| drop(run(&mut forecast, 0..8)));
    let scores = run(&mut forecast, 0..8);
    assert!((0..8).all(|shard| fine(&scores, shard)));
    assert_eq!((forecast.shards(), forecast.merged_shards()), (10, 30));
    // Others become hot: they split, the ones before merge, and their blocks are told apart again.
    let mut changes = 0;
    let mut last: Vec<bool> = Vec::new();
    for _ in 0..60 {
        let scores = run(&mut forecast, 20..28);
        let now: Vec<bool> = (0..40).map(|shard| fine(&scores, shard)).collect();
        changes += last.iter().zip(&now).filter(|(before, now)| before != now).count();
        last = now;
        assert!(forecast.shards() <= 10);
    }
    assert!((20..28).all(|shard| last[shard]), "{last:?}");
    assert!(changes <= 40, "with rest after each change there is no flutter: {changes}");
    let scores = run(&mut forecast, 20..28);
    let of = |block: u64| score(&scores, block, Predictor::PLAIN);
    assert!(of(20 * 64 + 5) > 3.0 * of(20 * 64 + 40));
}

#[test]
fn a_saved_model_is_taken_and_a_damaged_one_leads_to_a_new_one() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    assert_eq!(forecast.save_model(), Ok(None));
    (0..16).for_each(|epoch| drop(day(&mut forecast, epoch)));
    let mut bytes = forecast.save_model().unwrap().unwrap();
    let mut next = Forecast::new(ForecastSettings::default());
    assert_eq!(next.load_model(&bytes), Ok(()));
    assert_eq!(day(&mut next, 0).model, ModelState::Ready);
    bytes[30] ^= 4;
    let mut next = Forecast::new(ForecastSettings::default());
    assert_eq!(next.load_model(&bytes), Err(ModelError::Saved("checksum")));
    assert_eq!(day(&mut next, 0).model, ModelState::Learning);
    (1..10).for_each(|epoch| drop(day(&mut next, epoch)));
    assert_eq!(day(&mut next, 10).model, ModelState::Ready);
}

#[test]
fn an_empty_history_is_no_reason_to_fail() {
    let mut forecast = Forecast::new(ForecastSettings::default());
    for epoch in 0..30 {
        assert_eq!(forecast.end_epoch(clock(epoch, 7)).blocks, []);
    }
    forecast.observe(&read(1, 0));
    assert_eq!(forecast.end_epoch(clock(30, 7)).blocks.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_score_is_a_number(
        accesses in proptest::collection::vec((0u64..3, any::<u64>(), any::<u64>(), any::<[bool; 2]>()), 0..200),
        clocks in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..24),
    ) {
        let mut forecast = Forecast::new(ForecastSettings::default());
        for (number, epoch_ms, period_ms) in clocks {
            for (file, offset, len, [is_write, is_sequential]) in &accesses {
                let len = len >> (offset % 64);
                forecast.observe(&Access { file: FileId(*file), offset: *offset, len, is_write: *is_write, is_sequential: *is_sequential });
            }
            let scores = forecast.end_epoch(EpochClock { number, epoch_ms, period_ms });
            for block in &scores.blocks {
                prop_assert!(block.scores.iter().all(|score| score.is_finite() && *score >= 0.0));
            }
        }
    }
}
