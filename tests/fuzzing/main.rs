//! Every decoder on bytes that nobody wrote: what `fuzz/` feeds without end, here on stable Rust and so many times. It begins with the committed
//! corpora, what the encoders make, and goes on with mutations of them, the same ones each time.
//!
//! `HEATFS_FUZZ_ITERATIONS=1000000 cargo nextest run --release --test fuzzing` feeds each family so often, and `HEATFS_FUZZ_SEED` others.
//! `HEATFS_WRITE_CORPORA=1` writes the corpora anew, after a format has changed.

#[path = "../../fuzz/decoders/control.rs"]
mod control;
#[path = "../../fuzz/decoders/heat.rs"]
mod heat;
#[path = "../../fuzz/decoders/ondisk.rs"]
mod ondisk;
#[path = "../../fuzz/decoders/repository.rs"]
mod repository;
#[path = "../../fuzz/decoders/ring.rs"]
mod ring;

mod mutation;

use mutation::Mutation;
use std::path::{Path, PathBuf};

const ITERATIONS: u64 = 50_000;
type Seeds = Vec<(String, Vec<u8>)>;

#[test]
fn what_lies_on_tiers_decodes_or_is_refused() {
    feed_many("ondisk", ondisk::seeds(), ondisk::feed);
}

#[test]
fn what_lies_in_a_repository_decodes_or_is_refused() {
    feed_many("repository", repository::seeds(), repository::feed);
}

#[test]
fn what_heat_remembers_and_traces_decode_or_are_refused() {
    feed_many("heat", heat::seeds(), heat::feed);
}

#[test]
fn what_comes_through_the_ring_decodes_or_is_refused() {
    feed_many("ring", ring::seeds(), ring::feed);
}

#[test]
fn control_requests_and_settings_decode_or_are_refused() {
    feed_many("control", control::seeds(), control::feed);
}

fn feed_many(family: &str, seeds: Seeds, feed: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(family);
    if std::env::var_os("HEATFS_WRITE_CORPORA").is_some() {
        write(&corpus, &seeds);
    }
    for (name, bytes) in &seeds {
        let committed = std::fs::read(corpus.join(name)).unwrap_or_else(|error| panic!("{family}/{name}: {error}"));
        // Times and random ids apart: encoders that are told all write the same each time.
        assert_eq!(
            &committed, bytes,
            "{family}/{name}: the format changed; HEATFS_WRITE_CORPORA=1 writes the corpus anew"
        );
    }
    let mut all: Vec<Vec<u8>> = files(&corpus).iter().map(|path| std::fs::read(path).expect("a corpus file")).collect();
    assert!(all.len() >= seeds.len() && !all.is_empty(), "the corpus of {family} is not there");
    all.iter().for_each(|bytes| feed(bytes));
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"));
    let mut mutation = Mutation::new(number("HEATFS_FUZZ_SEED", 1));
    let iterations = number("HEATFS_FUZZ_ITERATIONS", ITERATIONS);
    for iteration in 0..iterations {
        let bytes = mutation.of(&all);
        let fed = std::panic::catch_unwind(|| feed(&bytes));
        if fed.is_err() {
            let path = std::env::temp_dir().join(format!("heatfs-fuzz-{family}-{iteration}"));
            std::fs::write(&path, &bytes).expect("written");
            panic!(
                "{family}: iteration {iteration} of {iterations} failed; its {} bytes are in {}",
                bytes.len(),
                path.display()
            );
        }
    }
    all.clear();
    println!("{family}: {iterations} mutations fed");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn write(corpus: &Path, seeds: &Seeds) {
    std::fs::create_dir_all(corpus).expect("a directory for the corpus");
    for (name, bytes) in seeds {
        std::fs::write(corpus.join(name), bytes).expect("written");
    }
}
