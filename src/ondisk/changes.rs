//! A row of the `changes` table: when the pages of a piece of a file changed last.
//!
//! Key (file id, piece), a piece being [`PIECE_PAGES`] pages of [`CHANGE_PAGE_BYTES`]. Value:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version 1 |
//! | 1 | 3 | zero |
//! | 4 | 4 | base epoch |
//! | 8 | 4 x runs | runs, in order, without overlap |
//!
//! A run is one number: first page in the piece (12 bits, highest), pages less one (12 bits), epoch less the base epoch (8 bits, 1 to 255).
//! Pages without a run have not changed since before the oldest snapshot that may still be a parent. redb checks its own pages.

use super::bytes::{Malformed, Reader, put};

/// Unit in which changes are known, in bytes, whatever the block size.
pub const CHANGE_PAGE_BYTES: u64 = 8192;
/// Pages in one row: 32 MiB of a file.
pub const PIECE_PAGES: u32 = 4096;

/// Some pages in a row that changed last in the same epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    /// First and last page, within the piece.
    pub first: u32,
    pub last: u32,
    /// Epoch, counted from the row's base: 1 to 255.
    pub age: u32,
}

impl PageRun {
    pub fn pack(self) -> u32 {
        (self.first & 0xfff) << 20 | (self.last.saturating_sub(self.first) & 0xfff) << 8 | self.age & 0xff
    }

    pub fn unpack(packed: u32) -> PageRun {
        let first = packed >> 20;
        PageRun { first, last: first + (packed >> 8 & 0xfff), age: packed & 0xff }
    }
}

pub fn encode(base_epoch: u32, runs: &[u32]) -> Vec<u8> {
    let mut out = vec![0; 8 + runs.len() * 4];
    put(&mut out, 0, &[1]);
    put(&mut out, 4, &base_epoch.to_le_bytes());
    for (index, run) in runs.iter().enumerate() {
        put(&mut out, 8 + index * 4, &run.to_le_bytes());
    }
    out
}

/// The base epoch and the packed runs.
pub fn decode(bytes: &[u8]) -> Result<(u32, Vec<u32>), Malformed> {
    let mut r = Reader::new(bytes);
    if r.u8()? != 1 || r.take(3)?.iter().any(|&byte| byte != 0) {
        return Err(Malformed("unknown version of a row of changes"));
    }
    let base_epoch = r.u32()?;
    let mut runs = Vec::with_capacity(r.remaining() / 4);
    let mut next = 0;
    while r.remaining() > 0 {
        let packed = r.u32()?;
        let run = PageRun::unpack(packed);
        if run.first < next || run.last >= PIECE_PAGES || run.age == 0 {
            return Err(Malformed("runs of changed pages are out of order"));
        }
        next = run.last + 1;
        runs.push(packed);
    }
    Ok((base_epoch, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let run = |first, last, age| PageRun { first, last, age }.pack();
        encode(7, &[run(0, 0, 1), run(3, 9, 255), run(4095, 4095, 2)])
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample();
        assert_eq!(bytes, [1, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0xff, 6, 0x30, 0, 2, 0, 0xf0, 0xff]);
        let (base, runs) = decode(&bytes).expect("decodes");
        assert_eq!(base, 7);
        assert_eq!(PageRun::unpack(runs[1]), PageRun { first: 3, last: 9, age: 255 });
        let whole = PageRun { first: 0, last: PIECE_PAGES - 1, age: 3 };
        assert_eq!(PageRun::unpack(whole.pack()), whole);
    }

    #[test]
    fn any_flipped_bit_decodes_to_an_error_or_to_ordered_runs() {
        let good = sample();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok((_, runs)) = decode(&bad) else { continue };
            let runs: Vec<PageRun> = runs.into_iter().map(PageRun::unpack).collect();
            assert!(runs.windows(2).all(|pair| pair[0].last < pair[1].first), "bit {bit}");
        }
        assert!(decode(&good[..10]).is_err());
    }
}
