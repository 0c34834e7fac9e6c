//! A row of the `changes` table: when the pages of a piece of a file changed last.
//!
//! Key (file id, piece), a piece being [`PIECE_PAGES`] pages of [`CHANGE_PAGE_BYTES`]. Value, where few runs of pages have changed:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version 1 |
//! | 1 | 3 | zero |
//! | 4 | 4 | base epoch |
//! | 8 | 4 x runs | runs, in order, without overlap |
//!
//! A run is one number: first page in the piece (12 bits, highest), pages less one (12 bits), epoch less the base epoch (8 bits, 1 to 255).
//! Where there are many:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version 2 |
//! | 1 | 1 | layers, 1 or 2 |
//! | 2 | 2 | zero |
//! | 4 | 4 | base epoch |
//! | 8 | 516 x layers | layers, oldest first |
//!
//! A layer is its epoch less the base epoch (4 bytes, 1 to 255), and a bit for each page that changed last in it, or before it but perhaps after the layer before.
//! Pages in none have not changed since before the oldest snapshot that may still be a parent. redb checks its own pages.

use super::bytes::{Malformed, Reader};

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

/// Words of a layer's bits.
pub const LAYER_WORDS: usize = PIECE_PAGES as usize / 64;
/// A snapshot in the making and the changes since: more epochs are rarely asked about at once.
pub const LAYERS_MAX: usize = 2;

/// Pages that changed in one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// Epoch, counted from the row's base: 1 to 255.
    pub age: u32,
    /// A bit for each page, the lowest of the first word for the first.
    pub bits: Box<[u64; LAYER_WORDS]>,
}

/// The pages of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pages {
    /// Packed [`PageRun`]s; their order as numbers is their order in the file.
    Runs(Vec<u32>),
    /// From 1 to [`LAYERS_MAX`], oldest first.
    Layers(Vec<Layer>),
}

impl Pages {
    /// The youngest age; 0 when there are none.
    pub fn age(&self) -> u32 {
        match self {
            Pages::Runs(runs) => runs.iter().map(|&run| PageRun::unpack(run).age).max().unwrap_or(0),
            Pages::Layers(layers) => layers.last().map_or(0, |layer| layer.age),
        }
    }
}

pub fn encode(base_epoch: u32, pages: &Pages) -> Vec<u8> {
    match pages {
        Pages::Runs(runs) => {
            let head = [1u32.to_le_bytes(), base_epoch.to_le_bytes()];
            let runs = runs.iter().map(|run| run.to_le_bytes());
            head.into_iter().chain(runs).flatten().collect()
        }
        Pages::Layers(layers) => {
            let mut out = vec![2, u8::try_from(layers.len()).unwrap_or(u8::MAX), 0, 0];
            out.extend_from_slice(&base_epoch.to_le_bytes());
            for layer in layers {
                out.extend_from_slice(&layer.age.to_le_bytes());
                layer.bits.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
            out
        }
    }
}

/// The base epoch, and the pages.
pub fn decode(bytes: &[u8]) -> Result<(u32, Pages), Malformed> {
    let mut r = Reader::new(bytes);
    let (version, layers) = (r.u8()?, r.u8()?);
    if r.u16()? != 0 || !matches!((version, layers), (1, 0) | (2, 1..=2)) {
        return Err(Malformed("unknown version of a row of changes"));
    }
    let base_epoch = r.u32()?;
    let pages = if version == 1 { decode_runs(&mut r)? } else { decode_layers(&mut r, layers)? };
    Ok((base_epoch, pages))
}

fn decode_runs(r: &mut Reader<'_>) -> Result<Pages, Malformed> {
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
    Ok(Pages::Runs(runs))
}

fn decode_layers(r: &mut Reader<'_>, count: u8) -> Result<Pages, Malformed> {
    let mut layers: Vec<Layer> = Vec::new();
    for _ in 0..count {
        let age = r.u32()?;
        if age > 255 || age <= layers.last().map_or(0, |layer| layer.age) {
            return Err(Malformed("layers of changed pages are out of order"));
        }
        let mut bits = Box::new([0; LAYER_WORDS]);
        for word in bits.iter_mut() {
            *word = r.u64()?;
        }
        layers.push(Layer { age, bits });
    }
    if r.remaining() > 0 {
        return Err(Malformed("a row of changes is too long"));
    }
    Ok(Pages::Layers(layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let run = |first, last, age| PageRun { first, last, age }.pack();
        encode(7, &Pages::Runs(vec![run(0, 0, 1), run(3, 9, 255), run(4095, 4095, 2)]))
    }

    fn layered() -> Vec<u8> {
        let layer = |age, at: usize, word| {
            let mut bits = Box::new([0; LAYER_WORDS]);
            bits[at] = word;
            Layer { age, bits }
        };
        encode(7, &Pages::Layers(vec![layer(3, 0, 0x21), layer(255, 63, 1 << 63)]))
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample();
        assert_eq!(bytes, [1, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0xff, 6, 0x30, 0, 2, 0, 0xf0, 0xff]);
        let (base, pages) = decode(&bytes).expect("decodes");
        let Pages::Runs(runs) = &pages else { panic!("{pages:?}") };
        assert_eq!((base, pages.age()), (7, 255));
        assert_eq!(PageRun::unpack(runs[1]), PageRun { first: 3, last: 9, age: 255 });
        let whole = PageRun { first: 0, last: PIECE_PAGES - 1, age: 3 };
        assert_eq!(PageRun::unpack(whole.pack()), whole);
    }

    #[test]
    fn golden_bytes_of_layers() {
        let bytes = layered();
        assert_eq!(bytes.len(), 8 + 2 * 516);
        assert_eq!(bytes[..14], [2, 2, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0x21, 0]);
        assert_eq!(bytes[524..530], [255, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[1039], 0x80);
        assert!(bytes[14..524].iter().chain(&bytes[528..1039]).all(|byte| *byte == 0));
        let (base, pages) = decode(&bytes).expect("decodes");
        assert_eq!((base, pages.age(), encode(base, &pages)), (7, 255, bytes));
    }

    #[test]
    fn any_flipped_bit_decodes_to_an_error_or_to_ordered_pages() {
        for good in [sample(), layered()] {
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                match decode(&bad) {
                    Ok((_, Pages::Runs(runs))) => {
                        let runs: Vec<PageRun> = runs.into_iter().map(PageRun::unpack).collect();
                        assert!(runs.windows(2).all(|pair| pair[0].last < pair[1].first), "bit {bit}");
                    }
                    Ok((_, Pages::Layers(layers))) => {
                        assert!(layers.windows(2).all(|pair| pair[0].age < pair[1].age), "bit {bit}");
                        assert!((1..=LAYERS_MAX).contains(&layers.len()));
                    }
                    Err(_) => {}
                }
            }
            assert!(decode(&good[..10]).is_err() && decode(&[good.as_slice(), &[0]].concat()).is_err());
        }
    }
}
