//! What is kept of one block: 24 bytes, and 18 more where a cycle is known.

/// Half-lives of the decay bank, in epochs.
pub const HALF_LIVES_EPOCHS: [u16; DECAYS] = [1, 2, 4, 8, 16, 32];
/// Decays in the bank.
pub const DECAYS: usize = 6;
/// The bank's member that is plain decay: a half-life of 8 epochs.
pub const PLAIN_DECAY: usize = 3;
/// Parts of a known cycle that are told apart.
pub(super) const SEASON_BINS: usize = 24;
/// An age: never accessed.
pub(super) const NEVER: u16 = u16::MAX;

/// A non-negative number in 16 bits: 5 bits of exponent, 11 of mantissa, from 2^-16 to 2^16 with a relative error under 2^-11. Smaller is zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(in crate::heat) struct Half(u16);

/// The single-precision exponent of 2^-16: code 0, which stands for zero.
const HALF_BASE: u32 = (127 - 16) << 11;

impl Half {
    #[allow(clippy::cast_possible_truncation)]
    pub(in crate::heat) fn new(value: f32) -> Half {
        if value.is_nan() || value < 1.0 / 65_536.0 {
            return Half(0);
        }
        let rounded = (value.min(65_535.0).to_bits() + 0x800) >> 12;
        Half(rounded.saturating_sub(HALF_BASE).min(0xffff) as u16)
    }

    pub(in crate::heat) fn get(self) -> f32 {
        if self.0 == 0 { 0.0 } else { f32::from_bits((u32::from(self.0) + HALF_BASE) << 12) }
    }
}

/// A non-negative number in 8 bits, by its logarithm: 0 is 0, steps of 5 %, at most 65535.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(in crate::heat) struct Coarse(u8);

const COARSE_PER_DOUBLING: f32 = 14.0;
/// What makes small numbers distinct: one step above zero is 1/80.
const COARSE_UNIT: f32 = 4.0;

impl Coarse {
    pub(super) fn code(self) -> u8 {
        self.0
    }

    pub(super) fn of_code(code: u8) -> Coarse {
        Coarse(code)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(in crate::heat) fn new(value: f32) -> Coarse {
        // A cast from float saturates, and takes NaN for zero.
        Coarse(((value.max(0.0) * COARSE_UNIT).ln_1p() * (COARSE_PER_DOUBLING / std::f32::consts::LN_2)).round() as u8)
    }

    pub(in crate::heat) fn get(self) -> f32 {
        ((f32::from(self.0) * (std::f32::consts::LN_2 / COARSE_PER_DOUBLING)).exp_m1()) / COARSE_UNIT
    }
}

/// Bytes of a saved record: all but the counters of the running epoch.
pub(super) const RECORD_BYTES: usize = 2 * DECAYS + 2 + 4;

/// See the module's head. The counters are of the running epoch; all else is of epochs that ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRecord {
    decayed: [Half; DECAYS],
    /// Ended epochs since the last one with an access.
    age: u16,
    /// Epochs between two with accesses, smoothed.
    gap: Coarse,
    /// Most accesses within an epoch, slowly forgotten.
    burst: Coarse,
    /// Shares of 255.
    write_share: u8,
    sequential_share: u8,
    accesses: u16,
    writes: u16,
    sequential: u16,
}

/// A block's accesses by part of the cycle, each in 6 bits by its logarithm: 0 is 0, steps of 23 %, at most 69,000. What is drawn from so few accesses is not
/// known more exactly.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Season([u8; SEASON_BINS * SEASON_BITS / 8]);

const SEASON_BITS: usize = 6;
const SEASON_CODE_MAX: u16 = (1 << SEASON_BITS) - 1;
const SEASON_PER_DOUBLING: f32 = 3.3;
/// One step above zero is 1/34.
const SEASON_UNIT: f32 = 8.0;

impl Season {
    /// Accesses in a part of the cycle; zero for one that there is not.
    pub(super) fn get(&self, bin: usize) -> f32 {
        let (at, shift) = Season::place(bin);
        let word = u16::from_le_bytes([0, 1].map(|next| self.0.get(at + next).copied().unwrap_or(0)));
        let code = word >> shift & SEASON_CODE_MAX;
        (f32::from(code) * (std::f32::consts::LN_2 / SEASON_PER_DOUBLING)).exp_m1() / SEASON_UNIT
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn set(&mut self, bin: usize, accesses: f32) {
        let steps = (accesses.max(0.0) * SEASON_UNIT).ln_1p() * (SEASON_PER_DOUBLING / std::f32::consts::LN_2);
        // A cast from float saturates, and takes NaN for zero.
        let code = (steps.round() as u16).min(SEASON_CODE_MAX);
        let (at, shift) = Season::place(bin);
        let (cleared, set) = ((!(SEASON_CODE_MAX << shift)).to_le_bytes(), (code << shift).to_le_bytes());
        for (byte, (cleared, set)) in self.0.iter_mut().skip(at).zip(cleared.into_iter().zip(set)) {
            *byte = *byte & cleared | set;
        }
    }

    pub(super) fn all(&self) -> [f32; SEASON_BINS] {
        std::array::from_fn(|bin| self.get(bin))
    }

    /// Byte and bit at which a bin's code begins.
    fn place(bin: usize) -> (usize, usize) {
        (bin * SEASON_BITS / 8, bin * SEASON_BITS % 8)
    }
}

const _: () = assert!(size_of::<BlockRecord>() == 24 && size_of::<Season>() == 18);

impl Default for BlockRecord {
    fn default() -> Self {
        BlockRecord {
            decayed: [Half::default(); DECAYS],
            age: NEVER,
            gap: Coarse::default(),
            burst: Coarse::default(),
            write_share: 0,
            sequential_share: 0,
            accesses: 0,
            writes: 0,
            sequential: 0,
        }
    }
}

/// Factor by which each of the bank's sums falls per epoch.
pub(super) fn decay_factors() -> [f32; DECAYS] {
    HALF_LIVES_EPOCHS.map(|epochs| 0.5f32.powf(1.0 / f32::from(epochs)))
}

impl BlockRecord {
    pub(super) fn count(&mut self, is_write: bool, is_sequential: bool, times: u16) {
        if is_sequential {
            self.sequential = self.sequential.saturating_add(times);
            return;
        }
        self.accesses = self.accesses.saturating_add(times);
        self.writes = self.writes.saturating_add(if is_write { times } else { 0 });
    }

    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let (sums, rest) = bytes.split_at_mut(2 * DECAYS);
        for (bytes, sum) in sums.chunks_exact_mut(2).zip(self.decayed) {
            bytes.copy_from_slice(&sum.0.to_le_bytes());
        }
        let [low, high] = self.age.to_le_bytes();
        rest.copy_from_slice(&[low, high, self.gap.0, self.burst.0, self.write_share, self.sequential_share]);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> BlockRecord {
        let (sums, rest) = bytes.split_at(2 * DECAYS);
        let mut record = BlockRecord::default();
        for (sum, bytes) in record.decayed.iter_mut().zip(sums.chunks_exact(2)) {
            *sum = Half(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
        if let [low, high, gap, burst, write_share, sequential_share] = *rest {
            record.age = u16::from_le_bytes([low, high]);
            (record.gap, record.burst) = (Coarse(gap), Coarse(burst));
            (record.write_share, record.sequential_share) = (write_share, sequential_share);
        }
        record
    }

    /// Ends the epoch; its counters stay readable until [`BlockRecord::begin_epoch`].
    pub(super) fn end_epoch(&mut self, factors: &[f32; DECAYS]) {
        let count = f32::from(self.accesses);
        for (sum, factor) in self.decayed.iter_mut().zip(factors) {
            *sum = Half::new(sum.get() * factor + count * (1.0 - factor));
        }
        let all = count + f32::from(self.sequential);
        if all > 0.0 {
            self.sequential_share = towards(self.sequential_share, f32::from(self.sequential) / all);
        }
        if self.accesses == 0 {
            self.age = self.age.saturating_add(1);
            return;
        }
        self.write_share = towards(self.write_share, f32::from(self.writes) / count);
        if self.age != NEVER {
            let gap = f32::from(self.age) + 1.0;
            let known = self.gap.get();
            self.gap = Coarse::new(if known > 0.0 { 0.5 * known + 0.5 * gap } else { gap });
        }
        self.age = 0;
        self.burst = Coarse::new(count.max(0.95 * self.burst.get()));
    }

    /// One of `parts` blocks that this record is of all together.
    pub(super) fn part(&self, parts: u16) -> BlockRecord {
        let share = |value: f32| value / f32::from(parts.max(1));
        let decayed = self.decayed.map(|sum| Half::new(share(sum.get())));
        BlockRecord { decayed, burst: Coarse::new(share(self.burst.get())), ..*self }
    }

    /// Takes in another block's record: from now on this is of both.
    pub(super) fn absorb(&mut self, other: &BlockRecord) {
        let (mine, theirs) = (self.decayed(DECAYS - 1), other.decayed(DECAYS - 1));
        for (sum, more) in self.decayed.iter_mut().zip(other.decayed) {
            *sum = Half::new(sum.get() + more.get());
        }
        self.burst = Coarse::new(self.burst.get() + other.burst.get());
        if theirs > mine {
            (self.write_share, self.sequential_share, self.gap) =
                (other.write_share, other.sequential_share, other.gap);
        }
        self.age = self.age.min(other.age);
    }

    pub(super) fn begin_epoch(&mut self) {
        (self.accesses, self.writes, self.sequential) = (0, 0, 0);
    }

    /// Non-sequential accesses of the epoch that runs or has just ended.
    pub(super) fn accesses(&self) -> f32 {
        f32::from(self.accesses)
    }

    /// Accesses per epoch by one of the bank's decays.
    pub(super) fn decayed(&self, decay: usize) -> f32 {
        self.decayed.get(decay).map_or(0.0, |sum| sum.get())
    }

    /// Ended epochs since the last one with an access; [`NEVER`].
    pub(super) fn age(&self) -> u16 {
        self.age
    }

    pub(super) fn gap(&self) -> f32 {
        self.gap.get()
    }

    pub(super) fn burst(&self) -> f32 {
        self.burst.get()
    }

    pub(super) fn write_share(&self) -> f32 {
        f32::from(self.write_share) / 255.0
    }

    pub(super) fn sequential_share(&self) -> f32 {
        f32::from(self.sequential_share) / 255.0
    }

    /// Nothing is left of it: as good as never accessed.
    pub(super) fn is_cold(&self) -> bool {
        self.decayed == [Half::default(); DECAYS] && self.sequential == 0 && self.accesses == 0
    }
}

/// A quarter of the way from a share to what was last seen.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn towards(share: u8, seen: f32) -> u8 {
    (0.75 * f32::from(share) + 0.25 * 255.0 * seen.clamp(0.0, 1.0)).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_keep_their_value_within_their_step() {
        for exponent in -15..16 {
            for part in 0..64u16 {
                let value = 2f32.powi(exponent) * (1.0 + f32::from(part) / 64.0);
                assert!((Half::new(value).get() / value - 1.0).abs() < 1.0 / 2048.0, "{value}");
                let coarse = Coarse::new(value).get();
                assert!((coarse - value).abs() <= 0.05 * value + 0.0125, "{value}: {coarse}");
            }
        }
        for odd in [f32::NAN, -1.0, 0.0, f32::MIN_POSITIVE] {
            assert_eq!(Half::new(odd).get(), 0.0);
        }
        assert_eq!(Coarse::new(f32::NAN).get(), 0.0);
        assert!(Half::new(f32::INFINITY).get().is_finite() && Coarse::new(f32::INFINITY).get().is_finite());
    }

    #[test]
    fn order_survives_the_coding() {
        let mut last = Half::default();
        for step in 0..4000u16 {
            let coded = Half::new(1e-4 * 1.004f32.powf(f32::from(step)));
            assert!(coded.get() >= last.get());
            last = coded;
        }
    }

    #[test]
    fn each_decay_halves_in_its_own_time() {
        let factors = decay_factors();
        let mut record = BlockRecord::default();
        (0..1000).for_each(|_| record.count(false, false, 1));
        record.end_epoch(&factors);
        let before: Vec<f32> = (0..DECAYS).map(|decay| record.decayed(decay)).collect();
        record.begin_epoch();
        for epoch in 1..=32u16 {
            record.end_epoch(&factors);
            for (decay, half_life) in HALF_LIVES_EPOCHS.iter().enumerate().filter(|(_, life)| **life == epoch) {
                let share = record.decayed(decay) / before[decay];
                assert!((share - 0.5).abs() < 0.01, "half-life {half_life}: {share}");
            }
        }
        assert_eq!(record.age(), 32);
    }

    #[test]
    fn each_part_of_a_season_keeps_its_own_number() {
        let mut season = Season::default();
        let number = |bin: usize| f32::from(u8::try_from(bin).unwrap()).powi(3);
        (0..SEASON_BINS).rev().for_each(|bin| season.set(bin, number(bin)));
        for bin in 0..SEASON_BINS {
            let (known, wanted) = (season.get(bin), number(bin));
            assert!((known - wanted).abs() <= 0.12 * wanted, "{known} for {wanted}");
        }
        season.set(SEASON_BINS, 9.0);
        assert_eq!(season.get(SEASON_BINS), 0.0, "there is no such part");
        for nonsense in [f32::NAN, -1.0] {
            season.set(3, nonsense);
            assert_eq!(season.get(3), 0.0);
        }
        season.set(3, f32::INFINITY);
        assert!((60_000.0..80_000.0).contains(&season.get(3)));
        assert!((season.get(2) - 8.0).abs() < 1.0 && (season.get(4) - 64.0).abs() < 8.0, "neighbours stay");
    }

    #[test]
    fn what_is_saved_of_a_season_is_the_same_season() {
        let mut season = Season::default();
        for step in 0..400u16 {
            season.set(5, 0.02 * 1.04f32.powi(i32::from(step)));
            let known = season.get(5);
            season.set(5, Coarse::new(known).get());
            assert_eq!(season.get(5), known);
        }
    }

    #[test]
    fn scans_are_counted_apart() {
        let factors = decay_factors();
        let mut record = BlockRecord::default();
        (0..4).for_each(|_| record.count(false, true, 1));
        record.end_epoch(&factors);
        assert_eq!((record.age(), record.decayed(0)), (NEVER, 0.0));
        assert!(record.sequential_share() > 0.2);
    }
}
