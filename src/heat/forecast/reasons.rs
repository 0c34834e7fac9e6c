//! Why the model expects what it expects of one block: what it would expect if it did not know this or that.

use super::Forecast;
use super::features::{FEATURES, Features, of_block};
use super::record::DECAYS;
use crate::units::{BlockNo, FileId};
use serde::{Deserialize, Serialize};

/// Share of the whole expectation from which a reason is worth telling.
const WORTH_TELLING: f32 = 0.05;

/// Features that are one thing to people, by their places; together all of them.
const GROUPS: [(&str, &[usize]); 8] = [
    ("its accesses of late", &[0, 1, 2, DECAYS, DECAYS + 9]),
    ("its longer past", &[3, 4, 5]),
    ("when it was last accessed, and how regularly", &[DECAYS + 1, DECAYS + 2, DECAYS + 18]),
    ("its reads, writes and streams", &[DECAYS + 3, DECAYS + 4]),
    ("its neighbours", &[DECAYS + 5, DECAYS + 6, DECAYS + 7]),
    ("its file", &[DECAYS + 8, DECAYS + 16, DECAYS + 17, DECAYS + 19]),
    ("this time in earlier cycles", &[DECAYS + 10, DECAYS + 11, DECAYS + 12]),
    ("the time of day and week", &[DECAYS + 13, DECAYS + 14, DECAYS + 15]),
];

/// What something known of a block adds to, or takes from, what is expected of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mattered {
    pub what: String,
    /// Accesses in the next epoch more than without knowing it.
    pub accesses: f32,
}

impl Forecast {
    /// What mattered most for the model's expectation of a block, the weightiest first. Empty without a model, or where nothing is expected.
    pub fn reasons(&self, file: FileId, block: BlockNo) -> Vec<Mattered> {
        let features = self.history.files.get(&file).and_then(|file| of_block(file, &self.around, block.0));
        let (Some(features), Some(forest)) = (features, &self.forest) else { return Vec::new() };
        let without = GROUPS.iter().map(|(_, places)| neutral(features, places));
        let values: Vec<Features> = std::iter::once(features).chain(without).collect();
        let Ok(outcomes) = forest.predict(values.as_flattened().to_vec()) else { return Vec::new() };
        let expected: Vec<f32> = outcomes.iter().map(|log| log.exp_m1().max(0.0) * self.around.mean_rate).collect();
        let whole = expected.first().copied().unwrap_or_default();
        let rest = expected.get(1..).unwrap_or_default();
        let mut reasons: Vec<Mattered> = GROUPS
            .iter()
            .zip(rest)
            .map(|((what, _), without)| Mattered { what: (*what).to_owned(), accesses: whole - without })
            .filter(|reason| reason.accesses.abs() > WORTH_TELLING * whole.max(1e-6))
            .collect();
        reasons.sort_by(|one, other| other.accesses.abs().total_cmp(&one.accesses.abs()));
        reasons
    }
}

/// The features of a block of which this is not known: as of one that was never accessed.
fn neutral(mut features: Features, places: &[usize]) -> Features {
    for place in places {
        if let Some(feature) = features.get_mut(*place) {
            *feature = 0.0;
        }
    }
    features
}

const _: () = {
    let (mut group, mut named) = (0, 0);
    while group < GROUPS.len() {
        named += GROUPS[group].1.len();
        group += 1;
    }
    assert!(named == FEATURES, "every feature is in a group");
};
