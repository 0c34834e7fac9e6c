//! The simulation's own source of chance: small, seeded, and the same on every machine and in every later version.

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(super) struct Coin(u64);

impl Coin {
    pub(super) fn new(seed: u64) -> Coin {
        Coin(seed)
    }

    /// As `new`, with one stream per name, so that devices fare independently of each other.
    pub(super) fn named(seed: u64, name: &str) -> Coin {
        let mut coin = Coin(seed);
        for byte in name.bytes() {
            coin.0 = coin.next() ^ u64::from(byte);
        }
        coin
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn heads(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// A number below `bound`, which is at least 1.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
