//! The forecast's memory as bytes, to be kept across restarts: records of blocks, rows to learn from, the forest. Whoever keeps them puts magic, version and
//! checksum around them.
//!
//! Little-endian; numbers that are not whole are the bits of f32:
//! ```text
//! epochs                             u64
//! cycle: length in ms                u64
//!        times each part was seen    24 x u32
//! learning: state of its dice        u64
//!           mean rate                f32
//!           mean error               f32     a NaN: not known yet
//!           epochs                   u32     each: rows u32; rows: 26 features and outcome, f32
//! files                              u32     each:
//!   id                               u64
//!   class                            u8      0 heap, 1 index, 2 catalog, 3 map, 4 log, 5 temporary, 6 other
//!   last block ever touched          u64
//!   shards                           u32     each:
//!     number                         u64
//!     with seasons                   u8      0 or 1
//!     64 records                     18 bytes each: six decayed sums u16, age u16, gap, burst, write and sequential share u8
//!     64 seasons, if any             24 bytes each
//!   merged shards                    u32     each: number u64, one record
//! forest                             u32 bytes, 0: none; see `forest.rs`
//! ```

use super::features::FEATURES;
use super::forest::Row;
use super::history::{FileClass, FileHistory, SHARD_BLOCKS, Shard};
use super::merged::Merged;
use super::record::{BlockRecord, Coarse, RECORD_BYTES, SEASON_BINS, Season};
use super::{Forecast, ModelError};
use crate::units::FileId;
use std::collections::VecDeque;
use std::io::{self, Read, Write};

/// A forest larger than this is none of ours.
const FOREST_BYTES_MAX: u32 = 64 << 20;
/// Epochs and rows of one epoch that are believed.
const EPOCHS_MAX: u32 = 1024;
const ROWS_MAX: u32 = 1 << 16;

impl Forecast {
    /// Writes all that was learned; the running epoch's counts are not.
    pub fn save(&self, out: &mut impl Write) -> io::Result<()> {
        put_u64(out, self.epochs)?;
        put_u64(out, self.seasons.period_ms)?;
        self.seasons.seen.iter().try_for_each(|seen| put_u32(out, *seen))?;
        put_u64(out, self.training.state)?;
        put_f32(out, self.training.mean_rate)?;
        put_f32(out, self.training.error.unwrap_or(f32::NAN))?;
        put_count(out, self.training.epochs.len())?;
        for rows in &self.training.epochs {
            put_count(out, rows.len())?;
            for row in rows {
                row.features.iter().try_for_each(|feature| put_f32(out, *feature))?;
                put_f32(out, row.outcome)?;
            }
        }
        put_count(out, self.history.files.len())?;
        for (id, file) in &self.history.files {
            put_u64(out, id.0)?;
            out.write_all(&[class_code(file.class)])?;
            put_u64(out, file.tail)?;
            put_count(out, file.shards.len())?;
            file.shards.iter().try_for_each(|(number, shard)| put_shard(out, *number, shard))?;
            put_count(out, file.merged.len())?;
            for (number, merged) in file.merged.iter() {
                put_u64(out, number)?;
                out.write_all(&merged.record.to_bytes())?;
            }
        }
        // A forest that cannot be written is grown anew.
        let forest = self.forest.as_ref().and_then(|forest| forest.encode().ok()).unwrap_or_default();
        put_count(out, forest.len())?;
        out.write_all(&forest)
    }

    /// Takes what was saved; whatever this forecast had learned is replaced. A forest that is unusable is left out and named: a new one will be grown.
    /// After an error this forecast is of no use.
    pub fn load(&mut self, from: &mut impl Read) -> io::Result<Result<(), ModelError>> {
        self.epochs = get_u64(from)?;
        self.seasons.period_ms = get_u64(from)?;
        for seen in &mut self.seasons.seen {
            *seen = get_u32(from)?;
        }
        self.training.state = get_u64(from)? | 1 << 63;
        self.training.mean_rate = finite(get_f32(from)?)?.max(1e-6);
        let error = get_f32(from)?;
        self.training.error = error.is_finite().then_some(error);
        self.training.waiting.clear();
        self.training.epochs = get_rows(from)?;
        self.history.files.clear();
        for _ in 0..get_u32(from)? {
            let (id, file) = get_file(from)?;
            self.history.files.insert(id, file);
        }
        self.history.recount();
        let len = get_u32(from)?;
        if len > FOREST_BYTES_MAX {
            return Err(nonsense("a forest that is too large"));
        }
        let mut forest = Vec::new();
        from.take(u64::from(len)).read_to_end(&mut forest)?;
        if u32::try_from(forest.len()).ok() != Some(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (self.forest, self.failure) = (None, None);
        if forest.is_empty() { Ok(Ok(())) } else { Ok(self.load_model(&forest)) }
    }
}

fn put_shard(out: &mut impl Write, number: u64, shard: &Shard) -> io::Result<()> {
    put_u64(out, number)?;
    out.write_all(&[u8::from(shard.seasons.is_some())])?;
    shard.records.iter().try_for_each(|record| out.write_all(&record.to_bytes()))?;
    let seasons = shard.seasons.iter().flat_map(|seasons| seasons.iter());
    let bytes: Vec<u8> = seasons.flat_map(|season| season.all().map(|known| Coarse::new(known).code())).collect();
    out.write_all(&bytes)
}

fn get_rows(from: &mut impl Read) -> io::Result<VecDeque<Vec<Row>>> {
    let mut epochs = VecDeque::new();
    for _ in 0..at_most(get_u32(from)?, EPOCHS_MAX)? {
        let mut rows = Vec::new();
        for _ in 0..at_most(get_u32(from)?, ROWS_MAX)? {
            let mut features = [0.0; FEATURES];
            for feature in &mut features {
                *feature = finite(get_f32(from)?)?;
            }
            rows.push(Row { features, outcome: finite(get_f32(from)?)? });
        }
        epochs.push_back(rows);
    }
    Ok(epochs)
}

fn get_file(from: &mut impl Read) -> io::Result<(FileId, FileHistory)> {
    let id = FileId(get_u64(from)?);
    let [class] = get(from)?;
    let mut file = FileHistory { class: class_of(class), tail: get_u64(from)?, ..FileHistory::default() };
    for _ in 0..get_u32(from)? {
        let number = get_u64(from)?;
        let [has_seasons] = get(from)?;
        let mut shard = Shard::new();
        for record in &mut shard.records {
            *record = BlockRecord::from_bytes(&get::<RECORD_BYTES>(from)?);
        }
        if has_seasons != 0 {
            let mut seasons = Box::new([Season::default(); SHARD_BLOCKS]);
            for season in seasons.iter_mut() {
                for (bin, code) in get::<SEASON_BINS>(from)?.into_iter().enumerate() {
                    season.set(bin, Coarse::of_code(code).get());
                }
            }
            shard.seasons = Some(seasons);
        }
        file.shards.insert(number, shard);
    }
    for _ in 0..get_u32(from)? {
        let number = get_u64(from)?;
        file.merged.insert(number, Merged::of(BlockRecord::from_bytes(&get::<RECORD_BYTES>(from)?)));
    }
    Ok((id, file))
}

fn class_code(class: FileClass) -> u8 {
    match class {
        FileClass::Heap => 0,
        FileClass::Index => 1,
        FileClass::Catalog => 2,
        FileClass::Map => 3,
        FileClass::Log => 4,
        FileClass::Temporary => 5,
        FileClass::Other => 6,
    }
}

fn class_of(code: u8) -> FileClass {
    match code {
        0 => FileClass::Heap,
        1 => FileClass::Index,
        2 => FileClass::Catalog,
        3 => FileClass::Map,
        4 => FileClass::Log,
        5 => FileClass::Temporary,
        _ => FileClass::Other,
    }
}

fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn finite(value: f32) -> io::Result<f32> {
    if value.is_finite() { Ok(value) } else { Err(nonsense("what should be a number is none")) }
}

fn at_most(count: u32, most: u32) -> io::Result<u32> {
    if count <= most { Ok(count) } else { Err(nonsense("more than there can be")) }
}

fn put_u64(out: &mut impl Write, value: u64) -> io::Result<()> {
    out.write_all(&value.to_le_bytes())
}

fn put_u32(out: &mut impl Write, value: u32) -> io::Result<()> {
    out.write_all(&value.to_le_bytes())
}

fn put_f32(out: &mut impl Write, value: f32) -> io::Result<()> {
    out.write_all(&value.to_bits().to_le_bytes())
}

fn put_count(out: &mut impl Write, count: usize) -> io::Result<()> {
    put_u32(out, u32::try_from(count).map_err(|_| nonsense("too much to be saved"))?)
}

fn get<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn get_u64(from: &mut impl Read) -> io::Result<u64> {
    get(from).map(u64::from_le_bytes)
}

fn get_u32(from: &mut impl Read) -> io::Result<u32> {
    get(from).map(u32::from_le_bytes)
}

fn get_f32(from: &mut impl Read) -> io::Result<f32> {
    get(from).map(|bytes| f32::from_bits(u32::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::forecast::{Access, EpochClock, ForecastSettings, ModelState, Scores};

    fn epoch(forecast: &mut Forecast, number: u64) -> Scores {
        for read in 0..200u64 {
            let offset = (read * 7 % 60 + number / 4 % 4 * 64) * 65_536;
            let is_write = read.is_multiple_of(5);
            let file = FileId(1 + read % 2);
            forecast.observe(&Access { file, offset, len: 8192, is_write, is_sequential: false });
        }
        forecast.end_epoch(EpochClock { number, epoch_ms: 1000, period_ms: 16_000 })
    }

    fn grown(epochs: u64) -> Forecast {
        let mut forecast = Forecast::new(ForecastSettings::default());
        forecast.note_class(FileId(1), FileClass::Index);
        (0..epochs).for_each(|number| drop(epoch(&mut forecast, number)));
        forecast
    }

    fn bytes_of(forecast: &Forecast) -> Vec<u8> {
        let mut bytes = Vec::new();
        forecast.save(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_learned_goes_on_after_a_restart() {
        let before = grown(20);
        let bytes = bytes_of(&before);
        let mut after = Forecast::new(ForecastSettings::default());
        assert_eq!(after.load(&mut bytes.as_slice()).unwrap(), Ok(()));
        assert_eq!(bytes_of(&after), bytes);
        let mut before = before;
        let (known, again) = (epoch(&mut before, 20), epoch(&mut after, 20));
        assert_eq!(known.model, ModelState::Ready);
        assert_eq!(known, again, "the same scores as if nothing had happened");
    }

    #[test]
    fn a_forest_of_another_version_is_left_out_and_named() {
        let forecast = grown(12);
        let forest = forecast.save_model().unwrap().unwrap();
        let mut bytes = bytes_of(&forecast);
        let at = bytes.len() - forest.len();
        bytes[at + 8] ^= 1;
        let mut after = Forecast::new(ForecastSettings::default());
        assert!(matches!(after.load(&mut bytes.as_slice()).unwrap(), Err(ModelError::Saved(_))));
        // Its rows are there, so a new one is grown at once.
        assert_eq!(epoch(&mut after, 12).model, ModelState::Ready);
    }

    #[test]
    fn damage_is_an_error_or_other_numbers_and_never_more() {
        let bytes = bytes_of(&grown(4));
        for len in (0..bytes.len()).step_by(61) {
            let mut after = Forecast::new(ForecastSettings::default());
            assert!(after.load(&mut &bytes[..len]).is_err(), "cut at {len}");
        }
        let mut refused = 0;
        for at in (0..bytes.len()).step_by(13).chain(0..160) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x80;
            let mut after = Forecast::new(ForecastSettings::default());
            match after.load(&mut damaged.as_slice()) {
                Err(_) => refused += 1,
                Ok(_) => {
                    let scores = epoch(&mut after, 4);
                    let numbers = |scores: &[f32]| scores.iter().all(|score| score.is_finite() && *score >= 0.0);
                    assert!(scores.blocks.iter().all(|block| numbers(&block.scores)), "byte {at}");
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn golden_bytes_of_a_young_forecast() {
        let mut forecast = Forecast::new(ForecastSettings { seed: 3, ..ForecastSettings::default() });
        forecast.observe(&Access { file: FileId(7), offset: 65_536, len: 1, is_write: true, is_sequential: false });
        forecast.end_epoch(EpochClock::default());
        let bytes = bytes_of(&forecast);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(bytes.len(), 8 + 8 + 96 + 8 + 4 + 4 + 4 + 4 + 21 + 9 + 64 * RECORD_BYTES + 4 + 4);
        assert_eq!(&hex(&bytes[..16]), "01000000000000000000000000000000");
        assert_eq!(
            hex(&bytes[136..136 + 21 + 9 + 2 * RECORD_BYTES]),
            concat!(
                "07000000000000000601000000000000000100",
                "0000000000000000000000",
                "000000000000000000000000ffff00000000",
                "00785f712f6aa062db5af952000000214000"
            )
        );
    }
}
