use super::*;
use crate::heat::forecast::{BlockScores, ModelError, PREDICTORS};

/// Blocks 0..100, of which the model knows the ten that come, and decay believes in others.
fn scores(model: ModelState) -> Scores {
    let block = |block: u64| {
        let mut scores = [if block >= 90 { 5.0 } else { 1.0 }; PREDICTORS];
        scores[Predictor::Model.index()] = if block < 10 { 5.0 } else { 1.0 };
        BlockScores { file: FileId(1), block: BlockNo(block), write_share: 0.0, scores }
    };
    Scores { blocks: (0..100).map(block).collect(), model }
}

fn epoch(gate: &mut Gate, model: &ModelState) {
    (0..10).for_each(|block| gate.observe(FileId(1), BlockNo(block)));
    (90..92).for_each(|block| gate.observe(FileId(1), BlockNo(block)));
    gate.end_epoch(&scores(model.clone()), 10);
}

#[test]
fn the_model_is_chosen_when_it_wins_and_left_at_once_when_it_fails() {
    let mut gate = Gate::new(Contender::of(Predictor::all(), 0));
    for _ in 0..9 {
        epoch(&mut gate, &ModelState::Ready);
        assert_eq!(gate.choice(), Contender::PLAIN, "no model before ten epochs");
    }
    (0..20).for_each(|_| epoch(&mut gate, &ModelState::Ready));
    assert_eq!(gate.choice().predictor, Predictor::Model);
    assert!(matches!(gate.status().reason, Reason::Better { hits, than } if hits > than));
    epoch(&mut gate, &ModelState::Failed(ModelError::NotANumber));
    assert_eq!(gate.choice(), Contender::PLAIN);
    assert_eq!(gate.status().reason, Reason::ModelLost { why: ModelError::NotANumber.to_string() });
}

#[test]
fn plain_decay_keeps_ties() {
    let mut gate = Gate::new(Contender::of((0..6).map(Predictor::Decay), 0));
    (0..30).for_each(|_| epoch(&mut gate, &ModelState::Learning));
    assert_eq!((gate.choice(), gate.status().switches), (Contender::PLAIN, 0));
}

#[test]
fn staging_wins_where_reuse_is_short() {
    let mut gate = Gate::new(Contender::all());
    for round in 0..40u64 {
        for block in 0..50u64 {
            (0..3).for_each(|_| gate.observe(FileId(1), BlockNo(1000 + round * 50 + block)));
        }
        gate.end_epoch(&scores(ModelState::Learning), 10);
    }
    assert!(gate.choice().staging_percent > 0, "{}", gate.choice());
    assert!(gate.status().standings.iter().any(|standing| standing.hits.is_some_and(|hits| hits > 0.6)));
}

#[test]
fn the_sample_stays_small_and_is_scored_alike() {
    let mut gate = Gate::new(Contender::of([Predictor::PLAIN].into_iter(), 0));
    for _ in 0..20 {
        let blocks: Vec<BlockScores> = (0..100_000u64)
            .map(|block| BlockScores {
                file: FileId(2),
                block: BlockNo(block),
                write_share: 0.0,
                scores: [if block < 5000 { 9.0 } else { 1.0 }; PREDICTORS],
            })
            .collect();
        (0..5000).for_each(|block| gate.observe(FileId(2), BlockNo(block)));
        gate.end_epoch(&Scores { blocks, model: ModelState::Learning }, 2500);
        assert!(gate.numbers.len() <= 100_000);
    }
    let status = gate.status();
    assert!(status.sampled_one_in >= 4, "{}", status.sampled_one_in);
    let hits = status.standings[0].hits.unwrap();
    assert!((hits - 0.5).abs() < 0.1, "{hits}");
}

/// The model wins in the shadow, and the real tier has nothing of it: moves that are refused, pins, a disk that cannot keep up.
#[test]
fn a_choice_that_loses_in_the_real_tier_is_given_up_and_barred() {
    let real_epoch = |gate: &mut Gate, hits: bool| {
        (0..10).for_each(|block| gate.observe_real(FileId(1), BlockNo(block), hits));
        (90..93).for_each(|block| gate.observe_real(FileId(1), BlockNo(block), false));
        gate.end_epoch(&scores(ModelState::Ready), 10);
    };
    let mut gate = Gate::new(Contender::of(Predictor::all(), 0));
    (0..40).for_each(|_| real_epoch(&mut gate, true));
    assert_eq!(gate.choice().predictor, Predictor::Model, "it hits what it promised");
    let mut epochs = 0;
    while gate.choice() != Contender::PLAIN {
        real_epoch(&mut gate, false);
        epochs += 1;
        assert!(epochs < 60, "a loser stays: {:?}", gate.status());
    }
    assert!(matches!(gate.status().reason, Reason::Worse { hits, than } if hits < than), "{:?}", gate.status());
    for left in (1..=BARRED_EPOCHS).rev() {
        assert_eq!((gate.choice(), gate.status().barred_epochs), (Contender::PLAIN, left));
        real_epoch(&mut gate, false);
    }
}

#[test]
fn a_gate_goes_on_after_a_restart() {
    let mut gate = Gate::new(Contender::of(Predictor::all(), 0));
    (0..30).for_each(|_| epoch(&mut gate, &ModelState::Ready));
    let saved = gate.saved();
    let mut next = Gate::new(Contender::of(Predictor::all(), 0));
    next.resume(saved.clone());
    assert_eq!((next.choice(), next.status().reason), (gate.choice(), gate.status().reason));
    assert_eq!(next.saved(), saved);
    // A gate without the model does not take over that choice, and impossible figures are left out.
    let mut other = Gate::new(Vec::new());
    let real = [Tally { hits: f64::NAN, accesses: 1.0 }; 2];
    other.resume(SavedGate { real, ..saved });
    assert_eq!((other.choice(), other.status().real_hits), (Contender::PLAIN, None));
}

#[test]
fn a_gate_of_a_volume_starts_with_full_shadows_and_looks_on_first() {
    let hits_of = |mut gate: Gate| {
        for number in 0..3 {
            (0..100).for_each(|block| gate.observe(FileId(1), BlockNo(block)));
            gate.end_epoch(&scores(ModelState::Learning), 50);
            assert_eq!((gate.choice(), gate.status().epochs), (Contender::PLAIN, number + 1));
        }
        let plain = gate.status().standings.into_iter().find(|one| one.contender == Contender::PLAIN).unwrap();
        plain.hits.unwrap()
    };
    let plain = || Contender::of([Predictor::PLAIN].into_iter(), 0);
    // Full from the second epoch on: none of the first hundred, half of the next two hundred.
    let expected = (50.0 * 0.8 + 50.0) / (100.0 * 0.64 + 100.0 * 0.8 + 100.0);
    let full = hits_of(Gate::of_volume(plain()));
    assert!((full - expected).abs() < 0.01, "{full} against {expected}");
    assert!(hits_of(Gate::new(plain())) < full / 4.0, "a tenth of a tier per epoch, in a replay");
}

#[test]
fn a_volumes_sample_is_bounded_within_an_epoch_too() {
    let mut gate = Gate::of_volume(Contender::of([Predictor::PLAIN].into_iter(), 0));
    for block in 0..400_000 {
        gate.observe(FileId(2), BlockNo(block));
        assert!(gate.numbers.len() <= 2 * SAMPLE_IN_VOLUME);
    }
    gate.end_epoch(&scores(ModelState::Learning), 1000);
    assert!(gate.numbers.len() <= 2 * SAMPLE_IN_VOLUME && gate.status().sampled_one_in >= 8, "{:?}", gate.status());
    assert!(gate.numbers.keys().all(|(file, block)| gate.samples(*file, *block)));
}
