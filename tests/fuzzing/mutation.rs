//! Bytes like others, but not the same: the usual mutations, by a seed.

const BYTES_MAX: usize = 16 << 10;
/// Where lengths and counts break.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX.unsigned_abs(), 1 << 63, u64::MAX];

pub struct Mutation {
    state: u64,
}

impl Mutation {
    pub fn new(seed: u64) -> Mutation {
        Mutation { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("small")
    }

    /// One of these, changed in one to eight places.
    pub fn of(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        match self.below(7) {
            0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (self.next() % 8)),
            1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte = self.next() as u8),
            2 => {
                let (edge, width) = (EDGES[self.below(EDGES.len())].to_le_bytes(), [1, 2, 4, 8][self.below(4)]);
                // Fields lie where their width says, mostly.
                let at = if self.below(4) == 0 { at } else { at - at % width };
                if let Some(field) = bytes.get_mut(at..at + width) {
                    field.copy_from_slice(&edge[..width]);
                }
            }
            3 => bytes.truncate(at),
            4 => {
                let more: Vec<u8> = (0..self.below(40)).map(|_| self.next() as u8).collect();
                bytes.splice(at..at, more);
            }
            5 => {
                let end = (at + self.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}
