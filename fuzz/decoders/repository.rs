//! Everything that a repository is made of. The first byte says which decoder, the second whether checksums are put right first.

use heatfs::repository::fuzzing::{DECODERS, decode, repair, seeds as encoded};

pub fn feed(data: &[u8]) {
    let [which, repaired, bytes @ ..] = data else { return };
    let decoder = DECODERS[usize::from(*which) % DECODERS.len()];
    let mut bytes = bytes.to_vec();
    if repaired % 2 == 1 {
        repair(decoder, &mut bytes);
    }
    decode(decoder, &bytes);
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let number = |name: &str| DECODERS.iter().position(|known| *known == name).expect("a decoder") as u8;
    let seeds = encoded().expect("the encoders work");
    for (name, bytes) in &seeds {
        // What is encoded is taken, and so it is when checksums are made anew; else mutations would all end at the same door.
        assert!(decode(name, bytes), "{name} does not take what its encoder wrote");
    }
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), [vec![number(name), 1], bytes].concat())).collect()
}
