//! Storing and reading back.

use super::lab::{Model, PAGE, Random, check, repository_on, take};
use crate::device::sim::SimWorld;

pub fn random_model(random: &mut Random) -> Model {
    let mut model = Model::default();
    for file in 1..=5 {
        for page in 0..random.below(40) {
            let bytes = if random.below(5) == 0 { vec![0; PAGE] } else { random.page() };
            model.write(file, page * PAGE, &bytes);
        }
        let tail = random.below(PAGE);
        let end = model.files.get(&file).map_or(0, Vec::len);
        model.write(file, end, &random.page()[..tail]);
    }
    model
}

pub fn change(model: &mut Model, random: &mut Random) {
    for _ in 0..random.below(6) {
        let file = 1 + random.below(6) as u64;
        let len = model.files.get(&file).map_or(0, Vec::len);
        match random.below(6) {
            0 => model.truncate(file, random.below(len + 3 * PAGE)),
            1 => {
                model.files.remove(&file);
                model.dirty.remove(&file);
                model.cut.insert(file, 0);
            }
            2 => model.write(file, random.below(len + 1), &vec![0; random.below(100_000)]),
            _ => {
                let n = random.below(3 * PAGE);
                let bytes: Vec<u8> = (0..3).flat_map(|_| random.page()).take(n).collect();
                model.write(file, random.below(len + 1), &bytes);
            }
        }
    }
}

#[test]
fn chains_of_snapshots_read_back_each_as_it_was() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let world = SimWorld::new(seed);
        let repository = repository_on(&world);
        let mut model = random_model(&mut random);
        let mut parent = None;
        let mut taken = Vec::new();
        for number in 0..6 {
            let root = take(&repository, &model, parent, number).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            parent = Some(root.id);
            model = model.settled();
            taken.push((root.id, model.clone()));
            change(&mut model, &mut random);
        }
        let again = crate::repository::Repository::open(world.device("repository"), None).expect("opens");
        assert_eq!(again.snapshots().expect("listed").len(), 6);
        for (number, (id, model)) in taken.iter().enumerate() {
            check(&again.snapshot(*id).expect("there"), model)
                .unwrap_or_else(|e| panic!("seed {seed}, snapshot {number}: {e}"));
        }
    }
}
