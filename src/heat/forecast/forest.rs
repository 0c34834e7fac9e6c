//! The forest: trees grown from a volume's own past.
//!
//! On disk, little-endian. The body is what the crate of this very minor version reads; any other version means growing a new one.
//! ```text
//!  0  magic "HTFSFRST"             8
//!  8  version = 1                  u32
//! 12  features per block           u32
//! 16  CRC32C of 0..16 and the body u32
//! 20  the forest, as postcard of smartcore 0.7
//! ```

use super::features::{FEATURES, Features};
use smartcore::ensemble::random_forest_regressor::{RandomForestRegressor, RandomForestRegressorParameters};
use smartcore::linalg::basic::matrix::DenseMatrix;
use thiserror::Error;

const MAGIC: &[u8; 8] = b"HTFSFRST";
const VERSION: u32 = 1;
const HEADER: usize = 20;
/// Trees, and how far each may grow.
const TREES: usize = 24;
const DEPTH_MAX: u16 = 9;
/// Features that compete for each split.
const FEATURES_PER_SPLIT: usize = 14;
const ROWS_PER_LEAF_MIN: usize = 8;

/// Why there is no forest, or no answer of one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    #[error("the model cannot be trained: {0}")]
    Training(String),
    #[error("the model gave no answer: {0}")]
    Answer(String),
    #[error("the model predicted something that is no number")]
    NotANumber,
    #[error("the saved model is unusable: {0}")]
    Saved(&'static str),
}

type Trees = RandomForestRegressor<f32, f32, DenseMatrix<f32>, Vec<f32>>;

/// Features of a block, and what came after: log1p of the next epoch's accesses relative to the mean rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) features: Features,
    pub(super) outcome: f32,
}

pub(super) struct Forest {
    trees: Trees,
}

impl Forest {
    /// The same rows and seed give the same forest.
    pub(super) fn grow<'a>(rows: impl Iterator<Item = &'a Row>, seed: u64) -> Result<Forest, ModelError> {
        let (mut values, mut outcomes) = (Vec::new(), Vec::new());
        for row in rows {
            values.extend_from_slice(&row.features);
            outcomes.push(row.outcome);
        }
        let parameters = RandomForestRegressorParameters::default()
            .with_n_trees(TREES)
            .with_max_depth(DEPTH_MAX)
            .with_m(FEATURES_PER_SPLIT)
            .with_min_samples_leaf(ROWS_PER_LEAF_MIN)
            .with_seed(seed);
        let failed = |error: smartcore::error::Failed| ModelError::Training(error.to_string());
        let matrix = DenseMatrix::new(outcomes.len(), FEATURES, values, false).map_err(failed)?;
        Ok(Forest { trees: Trees::fit(&matrix, &outcomes, parameters).map_err(failed)? })
    }

    /// Expected outcome of each block whose features follow one another in `values`.
    pub(super) fn predict(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error: smartcore::error::Failed| ModelError::Answer(error.to_string());
        let matrix = DenseMatrix::new(values.len() / FEATURES, FEATURES, values, false).map_err(failed)?;
        let outcomes = self.trees.predict(&matrix).map_err(failed)?;
        if outcomes.iter().all(|outcome| outcome.is_finite()) { Ok(outcomes) } else { Err(ModelError::NotANumber) }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, ModelError> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&features_u32().to_le_bytes());
        let body = postcard::to_stdvec(&self.trees).map_err(|_| ModelError::Saved("it cannot be written"))?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Forest, ModelError> {
        let head = bytes.get(..HEADER).ok_or(ModelError::Saved("too short"))?;
        let body = bytes.get(HEADER..).unwrap_or_default();
        let field = |at: usize| head.get(at..at + 4).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
        if !head.starts_with(MAGIC) {
            return Err(ModelError::Saved("no magic"));
        }
        if field(8) != Some(VERSION) {
            return Err(ModelError::Saved("another version"));
        }
        if field(12) != Some(features_u32()) {
            return Err(ModelError::Saved("other features"));
        }
        let covered = head.get(..16).unwrap_or_default();
        if field(16) != Some(crc32c::crc32c_append(crc32c::crc32c(covered), body)) {
            return Err(ModelError::Saved("checksum"));
        }
        let trees = postcard::from_bytes(body).map_err(|_| ModelError::Saved("not a forest of this version"))?;
        Ok(Forest { trees })
    }
}

fn features_u32() -> u32 {
    u32::try_from(FEATURES).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |i: u16| {
            let mut features = [f32::from(i % 50); FEATURES];
            features[3] = f32::from(i % 7);
            Row { features, outcome: f32::from(i % 50) * 2.0 }
        };
        (0..1000).map(row).collect()
    }

    #[test]
    fn the_same_past_gives_the_same_forest_and_it_has_learned_it() {
        let rows = rows();
        let ask = || {
            let forest = Forest::grow(rows.iter(), 5).unwrap();
            forest.predict(rows.iter().take(50).flat_map(|row| row.features).collect()).unwrap()
        };
        let answers = ask();
        assert_eq!(answers, ask());
        for (answer, row) in answers.iter().zip(&rows) {
            assert!((answer - row.outcome).abs() < 10.0, "{answer} for {}", row.outcome);
        }
    }

    #[test]
    fn a_saved_forest_answers_alike_and_a_damaged_one_is_refused() {
        let rows = rows();
        let forest = Forest::grow(rows.iter().take(200), 5).unwrap();
        let ask = |forest: &Forest| forest.predict(rows[7].features.to_vec()).unwrap();
        let bytes = forest.encode().unwrap();
        assert_eq!(ask(&Forest::decode(&bytes).unwrap()), ask(&forest));
        for at in (0..bytes.len()).step_by(97).chain(0..HEADER) {
            for bit in [0, 5] {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(matches!(Forest::decode(&damaged), Err(ModelError::Saved(_))), "byte {at}");
            }
        }
        for len in [0, 7, HEADER, bytes.len() - 1] {
            assert!(Forest::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn nothing_to_learn_from_is_an_error_and_no_panic() {
        assert!(matches!(Forest::grow([].iter(), 1), Err(ModelError::Training(_))));
    }
}
