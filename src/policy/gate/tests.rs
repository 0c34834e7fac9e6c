use super::*;
use crate::heat::forecast::{BlockScores, ModelError, PREDICTORS};

/// Blocks 0..100, of which the model knows the ten that come, and decay believes in others.
fn scores(model: ModelState) -> Scores {
    let block = |block: u64| {
        let mut scores = [if block >= 90 { 5.0 } else { 1.0 }; PREDICTORS];
        scores[Predictor::Model.index()] = if block < 10 { 5.0 } else { 1.0 };
        BlockScores { file: FileId(1), block: BlockNo(block), scores }
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
                scores: [if block < 5000 { 9.0 } else { 1.0 }; 7],
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
